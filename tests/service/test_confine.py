"""Rights that are given up, tried for real in a child process; and what must still work."""

import json
import os
import platform
import pwd
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import streamtap
from streamtap.service import landlock
from streamtap.service.confine import ENVIRONMENT, Confinement, User, unprivileged_user

SRC = Path(streamtap.__file__).parent.parent
PRELUDE = """
import ctypes, errno, json, os, sys
from streamtap.service.confine import *
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
    return ctypes.get_errno() if answer < 0 else 0

def refused(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""
"""

# Calls that no helper needs, with arguments that do no harm where they are let through.
# Name -> number on x86-64, on arm64 (None: not there), arguments.
FORBIDDEN: dict[str, tuple[int | None, int | None, tuple[int, ...]]] = {
    "socket": (41, 198, (1, 1, 0)),
    "socketpair": (53, 199, (1, 1, 0, 0)),
    "connect": (42, 203, (0, 0, 0)),
    "bind": (49, 200, (0, 0, 0)),
    "listen": (50, 201, (99, 0)),
    "accept4": (288, 242, (99, 0, 0, 0)),
    "creat": (85, None, (0, 0)),
    "openat2": (437, 437, (0, 0, 0, 0)),
    "open_by_handle_at": (304, 265, (0, 0, 0)),
    "name_to_handle_at": (303, 264, (0, 0, 0, 0, 0)),
    "mkdirat": (258, 34, (0, 0, 0)),
    "mknodat": (259, 33, (0, 0, 0, 0)),
    "linkat": (265, 37, (0, 0, 0, 0, 0)),
    "symlinkat": (266, 36, (0, 0, 0)),
    "fchmod": (91, 52, (99, 0)),
    "fchmodat": (268, 53, (0, 0, 0)),
    "fchown": (93, 55, (99, 0, 0)),
    "setxattr": (188, 5, (0, 0, 0, 0, 0)),
    "chdir": (80, 49, (0,)),
    "chroot": (161, 51, (0,)),
    "execve": (59, 221, (0, 0, 0)),
    "execveat": (322, 281, (0, 0, 0, 0, 0)),
    "fork": (57, None, ()),
    "vfork": (58, None, ()),
    "clone": (56, 220, (0xFFFFFFFF,)),
    "clone3": (435, 435, (0, 0)),
    "unshare": (272, 97, (0,)),
    "setns": (308, 268, (99, 0)),
    "ptrace": (101, 117, (99, 0, 0, 0)),
    "process_vm_readv": (310, 270, (0, 0, 0, 0, 0, 0)),
    "process_vm_writev": (311, 271, (0, 0, 0, 0, 0, 0)),
    "kcmp": (312, 272, (0, 0, 0, 0, 0)),
    "bpf": (321, 280, (99, 0, 0)),
    "perf_event_open": (298, 241, (0, 0, 0, 0, 0)),
    "pidfd_open": (434, 434, (0, 0)),
    "pidfd_getfd": (438, 438, (99, 0, 0)),
    "pidfd_send_signal": (424, 424, (99, 0, 0, 0)),
    "rt_sigqueueinfo": (129, 138, (0, 0, 0)),
    "tkill": (200, 130, (0, 0)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "umount2": (166, 39, (0, 0)),
    "open_tree": (428, 428, (0, 0, 0)),
    "fsopen": (430, 430, (0, 0)),
    "keyctl": (250, 219, (99, 0, 0, 0, 0)),
    "add_key": (248, 217, (0, 0, 0, 0, 0)),
    "io_uring_setup": (425, 425, (0, 0)),
    "io_uring_enter": (426, 426, (99, 0, 0, 0, 0, 0)),
    "userfaultfd": (323, 282, (0xFFFFFFFF,)),
    "memfd_create": (319, 279, (0, 0)),
    "memfd_secret": (447, 447, (0xFFFFFFFF,)),
    "prctl": (157, 167, (0xFFFFFFFF, 0, 0, 0, 0)),
    "seccomp": (317, 277, (99, 0, 0)),
    "personality": (135, 92, (0xFFFFFFFF,)),
    "setuid": (105, 146, (0,)),
    "setresgid": (119, 149, (0, 0, 0)),
    "capset": (126, 91, (0, 0)),
    "pkey_mprotect": (329, 288, (0, 0, 4, 0)),
    "shmget": (29, 194, (0, 0, 0)),
    "mq_open": (240, 180, (0, 0, 0, 0)),
    "quotactl": (179, 60, (0, 0, 0, 0)),
    "syslog": (103, 116, (99, 0, 0)),
    "setpriority": (141, 140, (99, 0, 0)),
    "splice": (275, 76, (99, 0, 99, 0, 0, 0)),
    "fanotify_init": (300, 262, (0xFFFFFFFF, 0)),
    "inotify_init1": (294, 26, (0xFFFFFFFF,)),
}
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine())

filtered = pytest.mark.skipif(COLUMN is None, reason="no system call filter for this machine")
landlocked = pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")


def run(code: str, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(SRC)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def child(code: str, *arguments: object) -> Any:
    """What the code prints, as JSON."""
    done = run(code, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- another user --------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("uid", [0, 65534])
def test_a_process_that_became_a_user_has_no_capability_and_gets_none_back(uid: int) -> None:
    told = child(
        """
        import subprocess
        become(User(int(sys.argv[1]), 65534, (65533,)))
        print(json.dumps({
            "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
            "dumpable": libc.prctl(3, 0, 0, 0, 0),
            "securebits": libc.prctl(27, 0, 0, 0, 0),
            "exec": subprocess.run(["cat", "/proc/self/status"], stdout=-1, text=True).stdout,
            "back": refused(lambda: os.setresuid(1, 1, 1)),
            "groups": refused(lambda: os.setgroups([0])),
        }))
        """,
        uid,
    )
    assert told["ids"] == [[uid] * 3, [65534] * 3, [65533]]
    assert told["dumpable"] == 0
    assert told["securebits"] & 0x3 == 0x3
    assert (told["back"], told["groups"]) == ("EPERM", "EPERM")
    status = dict(line.split(":\t", 1) for line in told["exec"].splitlines())
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert int(status[f"Cap{kind}"], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"


@pytest.mark.root
def test_root_without_capabilities_cannot_pass_over_the_rights_of_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    os.chown(secret, 65534, 65534)
    secret.chmod(0o600)
    code = "become(User(0, 0, ())); print(json.dumps(refused(lambda: open(sys.argv[1]))))"
    assert child(code, secret) == "EACCES"


@pytest.mark.root
def test_who_has_no_right_to_change_the_user_is_told_which_is_missing() -> None:
    told = child(
        """
        become(User(65534, 65534, ()))
        try:
            become(User(0, 0, ()))
        except Exception as error:
            print(json.dumps([type(error).__name__, str(error), error.hint]))
        """
    )
    assert told[0] == "PermissionMissing"
    assert "CAP_SETUID" in told[2]


def test_a_process_with_several_threads_is_refused() -> None:
    done = run(
        """
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        confine()
        """
    )
    assert "RuntimeError: rights belong to a thread, and this process has 2" in done.stderr


@pytest.mark.parametrize(
    ("known", "user"),
    [
        ({"nobody": (99, 98), "streamtap": (450, 451)}, User(450, 98, ())),
        ({"nobody": (99, 98)}, User(99, 98, ())),
        ({}, User(65534, 65534, ())),
    ],
)
def test_the_parser_is_a_user_of_its_own_or_nobody_and_in_no_group_of_ours(
    known: dict[str, tuple[int, int]], user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(name: str) -> pwd.struct_passwd:
        uid, gid = known[name]
        return pwd.struct_passwd((name, "x", uid, gid, "", "/", "/bin/false"))

    monkeypatch.setattr(pwd, "getpwnam", entry)
    assert unprivileged_user() == user


def test_every_descriptor_but_those_named_is_closed() -> None:
    told = child(
        """
        kept, other = os.pipe()
        close_others([1, 2, kept])
        print(json.dumps([refused(lambda: os.fstat(fd)) for fd in (0, 1, 2, kept, other)]))
        """
    )
    assert told == ["EBADF", "", "", "", "EBADF"]


# --- no files, no calls --------------------------------------------------------------------------

EACH_PROFILE = pytest.mark.parametrize("given", ["", "'/'"], ids=["no files", "files"])


@filtered
@EACH_PROFILE
def test_each_forbidden_call_is_an_error_and_not_a_death(given: str) -> None:
    assert COLUMN is not None
    calls = {name: (row[COLUMN], row[2]) for name, row in FORBIDDEN.items() if row[COLUMN]}
    told = child(
        f"""
        calls = json.loads(sys.argv[1])
        confine({given and f"[{given}]"})
        print(json.dumps({{name: call(number, *rest) for name, (number, rest) in calls.items()}}))
        """,
        json.dumps(calls),
    )
    assert {name: code for name, code in told.items() if code != 1} == {}


@filtered
@EACH_PROFILE
def test_arguments_that_would_give_a_right_are_refused(given: str) -> None:
    told = child(
        f"""
        import fcntl, mmap, resource, signal, socket, termios
        held = socket.socketpair()[0]
        parent = os.getppid()
        numbers = (9, 10) if os.uname().machine == "x86_64" else (222, 226)
        confine({given and f"[{given}]"})
        print(json.dumps({{
            "executable": refused(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_EXEC)),
            "made executable": call(numbers[1], 0, 4096, mmap.PROT_EXEC),
            "signal": refused(lambda: os.kill(parent, 0)),
            "group": refused(lambda: os.kill(0, 0)),
            "everyone": refused(lambda: os.kill(-1, 0)),
            "owner": refused(lambda: fcntl.fcntl(held, fcntl.F_SETOWN, parent)),
            "ioctl": refused(lambda: fcntl.ioctl(2, termios.TIOCSTI, b"x")),
            "option": refused(lambda: held.setsockopt(socket.IPPROTO_TCP, 1, 1)),
            "limits": refused(lambda: resource.prlimit(parent, resource.RLIMIT_CORE)),
            "fork": refused(os.fork),
        }}))
        """
    )
    assert told.pop("made executable") == 1
    assert set(told.values()) == {"EPERM"}, told


@filtered
def test_calls_of_other_kinds_of_programs_are_refused() -> None:
    """32-bit numbers on x86-64: through bit 30, and calls newer than the tables."""
    told = child(
        "confine(); print(json.dumps([call(39 | 1 << 30), call(1 << 29), call(0x8000_0027)]))"
    )
    assert told == [1, 38, 1]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is of x86")
def test_32_bit_calls_are_refused() -> None:
    code = """
        import mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex("b814000000 cd80 c3"))  # getpid, by its 32-bit number
        getpid = ctypes.CFUNCTYPE(ctypes.c_int)(
            ctypes.addressof(ctypes.c_char.from_buffer(page))
        )
        {confine}
        print(json.dumps([getpid(), os.getpid()]))
    """
    before = run(code.format(confine=""))
    if before.returncode == -signal.SIGSEGV:
        pytest.skip("this kernel has no 32-bit calls")
    got, pid = json.loads(before.stdout)
    assert got == pid
    got, _ = child(code.format(confine="confine()"))
    assert got == -1


@filtered
@landlocked
def test_what_is_in_force_is_told() -> None:
    assert child("print(json.dumps(confine()))") == [True, landlock.version()]


def test_a_kernel_without_landlock_and_seccomp_is_told_of_and_no_failure() -> None:
    told = child(
        """
        from streamtap.service import landlock, seccomp
        def missing(*arguments):
            raise OSError(errno.ENOSYS, "not there")
        landlock.syscall = missing
        seccomp.prctl = missing
        print(json.dumps(confine()))
        """
    )
    assert Confinement(*told) == Confinement(seccomp=False, landlock_abi=0)


@filtered
@pytest.mark.parametrize(
    "what",
    [
        "open('/etc/passwd')",
        "open('/dev/null', 'w')",
        "os.stat('/')",
        "os.listdir('/')",
        "os.readlink('/proc/self/exe')",
        "os.unlink(sys.argv[1])",
        "os.rename(sys.argv[1], sys.argv[1] + '2')",
        "os.truncate(sys.argv[1], 0)",
    ],
)
def test_a_process_without_files_finds_none(what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code = f"confine(); print(json.dumps(refused(lambda: {what})))"
    assert child(code, tmp_path / "file") == "EPERM"
    assert (tmp_path / "file").read_text() == "x"


WITHOUT_SECCOMP = """
    from streamtap.service import seccomp
    seccomp.restrict = lambda files: False
"""


@landlocked
def test_landlock_alone_denies_files_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    told = child(
        WITHOUT_SECCOMP
        + """
    import subprocess
    confine()
    print(json.dumps([
        refused(lambda: open("/etc/passwd")),
        refused(lambda: open(sys.argv[1], "a")),
        refused(lambda: os.unlink(sys.argv[1])),
        refused(lambda: os.listdir("/")),
        refused(lambda: os.execv("/bin/true", ["true"])),
    ]))
        """,
        tmp_path / "file",
    )
    assert told == ["EACCES"] * 5


@landlocked
@pytest.mark.skipif(landlock.version() < 4, reason="Landlock 4 knows of the network")
def test_landlock_alone_denies_tcp() -> None:
    told = child(
        WITHOUT_SECCOMP
        + """
    import socket
    listening = socket.create_server(("127.0.0.1", 0))
    confine()
    print(json.dumps([
        refused(lambda: socket.create_connection(listening.getsockname())),
        refused(lambda: socket.socket().bind(("127.0.0.1", 0))),
    ]))
        """
    )
    assert told == ["EACCES", "EACCES"]


@landlocked
@pytest.mark.skipif(landlock.version() < 6, reason="Landlock 6 knows of signals and sockets")
def test_landlock_alone_denies_signals_and_abstract_sockets() -> None:
    told = child(
        WITHOUT_SECCOMP
        + """
    import socket
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("")
    listening.listen()
    confine()
    print(json.dumps([
        refused(lambda: os.kill(os.getppid(), 0)),
        refused(lambda: socket.socket(socket.AF_UNIX).connect(listening.getsockname())),
    ]))
        """
    )
    assert told == ["EPERM", "EPERM"]


# --- files below folders -------------------------------------------------------------------------


@landlocked
def test_files_are_written_and_replaced_below_the_given_folders_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").write_text("x")
    (inside / "program").write_text("#!/bin/sh\n")
    (inside / "program").chmod(0o755)
    told = child(
        """
        inside, outside = sys.argv[1:]
        confine([inside])
        with open(f"{inside}/a", "w") as file:
            file.write("recorded")
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{inside}/a", f"{inside}/b")
        os.truncate(f"{inside}/b", 4)
        with open(f"{inside}/c", "w"):
            os.unlink(f"{inside}/c")
        print(json.dumps([
            sorted(os.listdir(inside)),
            open(f"{inside}/b").read(),
            refused(lambda: open(f"{outside}/file")),
            refused(lambda: open(f"{outside}/new", "w")),
            refused(lambda: open(f"{inside}/../outside/file", "a")),
            refused(lambda: os.unlink(f"{outside}/file")),
            refused(lambda: os.rename(f"{inside}/b", f"{outside}/b")),
            refused(lambda: os.symlink("b", f"{inside}/link")),
            refused(lambda: os.mkfifo(f"{inside}/pipe")),
            refused(lambda: os.mkdir(f"{inside}/folder")),
            refused(lambda: os.chmod(f"{inside}/b", 0o4755)),
            refused(lambda: os.execv(f"{inside}/program", ["program"])),
        ]))
        """,
        inside,
        outside,
    )
    names, text, *refusals = told
    assert names == ["b", "program"]
    assert text == "reco"
    assert set(refusals) <= {"EACCES", "EPERM", "EXDEV"}, refusals
    assert (outside / "file").read_text() == "x"


@filtered
def test_no_file_is_made_that_runs_with_the_rights_of_its_owner(tmp_path: Path) -> None:
    told = child(
        """
        confine([sys.argv[1]])
        make = lambda mode: os.close(os.open(f"{sys.argv[1]}/{mode:o}", os.O_CREAT, mode))
        print(json.dumps([refused(lambda: make(mode)) for mode in (0o644, 0o4755, 0o2755)]))
        """,
        tmp_path,
    )
    assert told == ["", "EPERM", "EPERM"]


def test_a_database_is_written_confined(tmp_path: Path) -> None:
    told = child(
        """
        import sqlite3
        preload()
        confine([sys.argv[1]])
        database = sqlite3.connect(f"{sys.argv[1]}/db", isolation_level=None)
        mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        database.execute("CREATE TABLE t (a)")
        database.execute("BEGIN")
        database.executemany("INSERT INTO t VALUES (?)", [(b"x" * 1000,)] * 5000)
        database.execute("COMMIT")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        count = database.execute("SELECT count(*) FROM t ORDER BY a").fetchone()[0]
        database.close()
        print(json.dumps([mode, count, os.listdir(sys.argv[1])]))
        """,
        tmp_path,
    )
    assert told == ["wal", 5000, ["db"]]


# --- what must still work ------------------------------------------------------------------------

NEEDED: dict[str, str] = {
    "time": "import time; time.sleep(0.001); assert time.localtime().tm_zone == zone",
    "descriptors": """
        held.setblocking(False); os.set_inheritable(held.fileno(), True)
        other = os.dup(held.fileno()); os.fstat(other); os.close(other)
        held.getsockopt(1, 4); held.getsockname(); os.isatty(2)
    """,
    "epoll": """
        poll = select.epoll(); poll.register(peer, select.EPOLLIN); held.send(b"x")
        assert poll.poll(5) == [(peer.fileno(), select.EPOLLIN)]; peer.recv(1)
        select.select([], [held], [], 5); select.poll().poll(1); poll.close()
    """,
    "a descriptor that is handed over, mapped": """
        socket.send_fds(held, [b"x"], [memory])
        _, (received,), *_ = socket.recv_fds(peer, 10, 1)
        shared = mmap.mmap(received, 4096)
        shared[:3] = b"abc"
        assert os.pread(memory, 3, 0) == b"abc"
    """,
    "memory": """
        import gc
        held_bytes = [bytearray(1 << 20) for _ in range(64)]
        held_bytes[0].extend(bytes(1 << 24)); del held_bytes; gc.collect()
    """,
    "arrays": """
        column = numpy.arange(1 << 20, dtype="u8"); column = numpy.concatenate([column, column])
        assert repr(numpy.sort(column)[:3]) and numpy.lexsort((column, column)).size
        numpy.add.at(column, [1, 2], 3); numpy.unique(column); str(column[:5] / 7)
        numpy.frombuffer(b"12345678", "<u8").astype(">u4"); column.searchsorted([5]); column.mean()
    """,
    "json": """
        assert msgspec.json.decode(b'{"number": 1}', type=Row).number == 1
        try: msgspec.json.decode(b'{"number": "x"}', type=Row)
        except msgspec.ValidationError: pass
        else: raise AssertionError
        msgspec.json.encode({"t": datetime.datetime.now(datetime.timezone.utc), "d": uuid.uuid4()})
    """,
    "text": """
        "ü".encode("idna"); b"\\xff".decode("utf-8", "backslashreplace"); "ü".encode("utf-16-le")
        unicodedata.name("ü"); re.compile("(a|b)+" + "x?" * 20)
    """,
    "signals": """
        seen = []
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
        os.kill(os.getpid(), signal.SIGUSR1); signal.raise_signal(signal.SIGUSR1)
        signal.setitimer(signal.ITIMER_REAL, 0); assert seen == [1, 1]
    """,
    "chance": "os.urandom(16); random.SystemRandom().random()",
    "itself": "os.getpid(); os.getppid(); resource.getrusage(resource.RUSAGE_SELF); os.uname()",
    "an import that fails": """
        try: import wave
        except ImportError: pass
        else: raise AssertionError
    """,
    "a thread that is refused": """
        import threading
        try: threading.Thread(target=print).start()
        except RuntimeError: pass
        else: raise AssertionError
    """,
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_loop_over_descriptors_needs_still_works(name: str) -> None:
    done = run(
        f"""
        import datetime, mmap, random, re, resource, select, signal, socket
        import msgspec, numpy, threading, time, unicodedata, uuid
        class Row(msgspec.Struct):
            number: int
        held, peer = socket.socketpair()
        memory = os.memfd_create("board"); os.ftruncate(memory, 4096)
        zone = time.localtime().tm_zone
        preload()
        confine()
        {textwrap.indent(textwrap.dedent(NEEDED[name]), " " * 8).lstrip()}
        """
    )
    assert done.returncode == 0, done.stderr


@filtered
def test_an_exception_is_logged_with_its_traceback(tmp_path: Path) -> None:
    """The lines of the source cannot be read any more; all else is there."""
    (tmp_path / "program.py").write_text(
        textwrap.dedent(
            """
            import logging, os
            from streamtap.service.confine import confine, preload

            def fail():
                raise ValueError("first") from KeyError(
                    "the cause"
                )

            logging.basicConfig(format="%(asctime)s %(name)s %(message)s")
            preload()
            confine()
            try:
                fail()
            except ValueError:
                logging.exception("it failed, %s", "and goes on")
            try:
                os.getpidd()
            except AttributeError:
                logging.exception("no such name")
            print("still there", flush=True)
            os.getppidd()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-P", tmp_path / "program.py"],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "still there\n", done.stderr
    assert "it failed, and goes on" in done.stderr
    assert f'File "{tmp_path}/program.py", line 6, in fail' in done.stderr
    assert "KeyError: 'the cause'" in done.stderr
    assert "AttributeError: module 'os' has no attribute 'getppidd'" in done.stderr


def test_every_parser_works_confined() -> None:
    """All the golden conversations, understood by a process that can load nothing any more."""
    tests = Path(__file__).parent.parent
    code = """
        sys.path.insert(0, sys.argv[1])
        import re
        from pathlib import Path
        from helpers.transcripts import play, read
        transcripts = [read(path) for path in sorted(Path(sys.argv[1]).rglob("*.transcript"))]
        {confine}
        told = [repr(one) for transcript in transcripts for one in play(transcript)]
        # Hashes of what is secret are keyed anew in each process.
        print(json.dumps([re.sub("redacted:[0-9a-f]*", "", one) for one in told]))
    """
    expected = child(code.format(confine=""), tests)
    assert len(expected) > 100
    assert child(code.format(confine="preload(); confine()"), tests) == expected


# --- for a process that goes on ------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize(
    ("owner", "mode", "stays"),
    [(0, 0o700, False), (65534, 0o777, False), (65534, 0o700, True), (0, 0o500, True)],
)
def test_the_right_to_make_files_stays_only_where_it_is_needed(
    owner: int, mode: int, stays: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    told = child(
        """
        words = give_up([sys.argv[1]])
        with open(sys.argv[1] + "/made", "w") as file:
            file.write("x")
        os.unlink(sys.argv[1] + "/made")
        print(json.dumps({
            "words": words,
            "elsewhere": refused(lambda: open(sys.argv[2])),
            "ids": [os.getuid(), os.getgid(), os.getgroups()],
        }))
        """,
        folder,
        __file__,
    )
    kept = "no capability but CAP_DAC_OVERRIDE" if stays else "no capability"
    assert told["words"][0] == kept
    assert told["ids"] == [0, os.getegid(), []]
    assert told["elsewhere"] == ("EACCES" if landlock.version() else "")


@pytest.mark.root
def test_root_without_the_right_to_change_users_drops_what_it_has() -> None:
    told = child(
        """
        from streamtap.service import confine
        status = os.open("/proc/self/status", os.O_RDONLY)
        def sets():
            lines = map(str.split, os.pread(status, 4096, 0).decode().splitlines())
            return [int(words[1], 16) for words in lines if words[0] in ("CapEff:", "CapPrm:")]
        few = 1 << 1 | 1 << 12 & sets()[0]  # CAP_DAC_OVERRIDE, CAP_NET_ADMIN
        confine._have_capabilities(few, few)
        assert sets() == [few, few]
        print(json.dumps({"words": give_up(), "sets": sets()}))
        """
    )
    assert told["words"][0] == "no capability"
    assert told["sets"] == [0, 0]


def test_what_is_imported_with_one_thread_leaves_no_trace() -> None:
    done = child(
        """
        for name in ENVIRONMENT:
            os.environ.pop(name, None)
        os.environ["OMP_NUM_THREADS"] = "7"
        before = dict(os.environ)
        with single_threaded():
            import numpy
        print(json.dumps([len(os.listdir("/proc/self/task")), os.environ == before]))
        """
    )
    assert done == [1, True]
