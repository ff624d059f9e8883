"""The system calls that a process may still make: a seccomp filter, built from tables.

What is not listed is refused with EPERM, so that a forgotten call is a Python exception that is
logged, and not a death without a word. Refused are thus: to open a file by any name, to make,
connect or bind a socket, to execute, to start a process or a thread, to trace or signal another
process, bpf, io_uring, keys, mounts, namespaces. Memory is never executable. Calls newer than the
tables are answered with ENOSYS, as an older kernel would, so that C libraries fall back.
The order of the tables is the order of the tests: frequent ones first. Kernels from 5.11 on keep
the answer for calls whose arguments are not looked at.
Source: Linux Documentation/userspace-api/seccomp_filter.rst.
"""

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import termios

from streamtap.service.syscalls import prctl

# Name, number on x86-64, number on arm64.
_ANY = """
    read 0 63  write 1 64  recvmsg 47 212  sendmsg 46 211  recvfrom 45 207  sendto 44 206
    epoll_wait 232 -  epoll_pwait 281 22  epoll_pwait2 441 441  epoll_ctl 233 21
    epoll_create1 291 20  poll 7 -  ppoll 271 73  select 23 -  pselect6 270 72  readv 19 65
    writev 20 66  pread64 17 67  pwrite64 18 68  lseek 8 62  close 3 57  close_range 436 436
    dup 32 23  dup2 33 -  dup3 292 24  fstat 5 80  newfstatat 262 79  fcntl 72 25  ioctl 16 29
    shutdown 48 210  getsockopt 55 209  setsockopt 54 208  getsockname 51 204  getpeername 52 205
    pipe2 293 59  eventfd2 290 19  mmap 9 222  munmap 11 215  mremap 25 216  mprotect 10 226
    madvise 28 233  brk 12 214  futex 202 98  membarrier 324 283  rseq 334 293
    clock_gettime 228 113  clock_getres 229 114  clock_nanosleep 230 115  nanosleep 35 101
    gettimeofday 96 169  time 201 -  rt_sigaction 13 134  rt_sigprocmask 14 135
    rt_sigreturn 15 139  rt_sigsuspend 130 133  rt_sigpending 127 136  rt_sigtimedwait 128 137
    sigaltstack 131 132  restart_syscall 219 128  pause 34 -  alarm 37 -  setitimer 38 103
    getitimer 36 102  kill 62 129  tgkill 234 131  exit 60 93  exit_group 231 94
    getrandom 318 278  getpid 39 172  getppid 110 173  gettid 186 178  getuid 102 174
    geteuid 107 175  getgid 104 176  getegid 108 177  getgroups 115 158  getresuid 118 148
    getresgid 120 150  uname 63 160  sysinfo 99 179  getrusage 98 165  times 100 153
    prlimit64 302 261  getrlimit 97 163  sched_yield 24 124  sched_getaffinity 204 123
    getcpu 309 168
"""
# To write and replace files, as SQLite and rotation do. Landlock says where.
_FILES = """
    open 2 -  openat 257 56  access 21 -  faccessat 269 48  faccessat2 439 439  stat 4 -
    lstat 6 -  statx 332 291  statfs 137 43  fstatfs 138 44  readlink 89 -  readlinkat 267 78
    getcwd 79 17  getdents64 217 61  rename 82 -  renameat 264 38  renameat2 316 276  unlink 87 -
    unlinkat 263 35  truncate 76 45  ftruncate 77 46  fallocate 285 47  fsync 74 82
    fdatasync 75 83  sync_file_range 277 84  fadvise64 221 223  flock 73 32  umask 95 166
"""

# Lowest bits of seccomp_data's architecture, and the column of the tables.
_MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}
_X32 = 1 << 30  # x86-64 with 32-bit pointers: the same architecture, other numbers
_NEWEST = 462  # the last number that was looked at; from 424 on they are the same everywhere

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_LOAD, _EQUAL, _GREATER, _GREATER_EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in seccomp_data

_PROT_EXEC = 4
_AT_EMPTY_PATH = 0x1000
_SET_ID = 0o6000
_FIOCLEX, _FIONCLEX = termios.FIOCLEX, termios.FIONCLEX


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many to skip."""
    return struct.pack("=HBBI", code, yes, no, value)


def _argument(index: int) -> bytes:
    """Loads the lower half: all that the kernel looks at in an int."""
    return _op(_LOAD, _ARGUMENTS + 8 * index)


def _one_of(index: int, *values: int) -> bytes:
    tests = (_op(_EQUAL, value, len(values) - at) for at, value in enumerate(values))
    return _argument(index) + b"".join(tests) + _op(_RETURN, _REFUSE) + _op(_RETURN, _ALLOW)


def _without(index: int, bits: int) -> bytes:
    return _argument(index) + _op(_BITS, bits, 1) + _op(_RETURN, _ALLOW) + _op(_RETURN, _REFUSE)


def _with(index: int, bit: int) -> bytes:
    return _argument(index) + _op(_BITS, bit, 1) + _op(_RETURN, _REFUSE) + _op(_RETURN, _ALLOW)


_COMMANDS = (
    *(fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD),
    *(fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW),
    *(fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW),
)


def _conditions(files: bool) -> dict[str, bytes]:
    """Calls that are allowed for some arguments only."""
    myself = os.getpid()
    conditions = {
        "mmap": _without(2, _PROT_EXEC),
        "mprotect": _without(2, _PROT_EXEC),
        "ioctl": _one_of(1, termios.FIONBIO, _FIOCLEX, _FIONCLEX, termios.FIONREAD),
        "fcntl": _one_of(1, *_COMMANDS),  # not F_SETOWN, which has signals sent
        "setsockopt": _one_of(1, socket.SOL_SOCKET),
        "kill": _one_of(0, myself),
        "tgkill": _one_of(0, myself),
        "prlimit64": _one_of(0, 0, myself),
    }
    if files:
        # No file that runs with the rights of who made it.
        return conditions | {"open": _without(2, _SET_ID), "openat": _without(3, _SET_ID)}
    # Of a descriptor, not of a path: some C libraries make fstat of it.
    return conditions | {"newfstatat": _with(3, _AT_EMPTY_PATH)}


def program(files: bool, machine: str) -> bytes:
    """The filter as instructions of classic BPF (8 bytes each), b"" for an unknown machine."""
    if machine not in _MACHINES:
        return b""
    architecture, column = _MACHINES[machine]
    words = (_ANY + _FILES * files).split()
    numbers = dict(zip(words[::3], words[column::3], strict=True))
    conditions = _conditions(files)
    parts = [
        _op(_LOAD, _ARCHITECTURE) + _op(_EQUAL, architecture, 1) + _op(_RETURN, _REFUSE),
        _op(_LOAD, _NUMBER),
        _op(_GREATER_EQUAL, _X32, 0, 1) + _op(_RETURN, _REFUSE),
        _op(_GREATER, _NEWEST, 0, 1) + _op(_RETURN, _UNKNOWN),
    ]
    for name, number in numbers.items():
        if number != "-":
            body = conditions.get(name, _op(_RETURN, _ALLOW))
            parts.append(_op(_EQUAL, int(number), 0, len(body) // 8) + body)
    return b"".join(parts) + _op(_RETURN, _REFUSE)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict(files: bool) -> bool:
    """Puts the filter on this thread for good; False where the machine or kernel has none.

    Needs PR_SET_NO_NEW_PRIVS.
    """
    # A 32-bit Python on a 64-bit kernel makes calls of the other architecture.
    instructions = program(files, platform.machine()) if ctypes.sizeof(ctypes.c_long) == 8 else b""
    if not instructions:
        return False
    given = _Program(len(instructions) // 8, instructions)
    try:
        prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(given))
    except OSError as error:
        # Not built, or refused by a filter that is in force already.
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES):
            return False
        raise
    return True
