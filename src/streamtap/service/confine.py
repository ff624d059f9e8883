"""Giving up rights for good: another user without any capability, then no files and no calls.

The order in a helper process: import, `preload`, `close_others`, `become`, `confine`. What the
kernel does not have is left out and told; what it has and refuses is an error. All of it belongs
to a thread, so a process with several is refused: start helpers with `helper_environment`.
"""

import ast  # noqa: F401  (Python, for the marks in a traceback, at the first one)
import codecs
import contextlib
import importlib
import linecache
import locale
import logging
import os
import pwd
import struct
import sys
import time
import unicodedata  # noqa: F401  (likewise)
import uuid  # noqa: F401  (msgspec, at the first value that is not of JSON)
import zoneinfo  # noqa: F401  (likewise)
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from streamtap.errors import PermissionMissing
from streamtap.service import landlock, seccomp
from streamtap.service.syscalls import capset, prctl, syscall

# NumPy's linear algebra starts threads when it is imported, and compiled Python needs memory that
# is executable. Neither is missed.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHON_JIT": "0",
}
# What a helper has of the environment of who starts it: how Python finds itself, in which words and
# hours it speaks, and which installation it is of. The rest may hold secrets, and is no business of
# who reads hostile bytes.
_PASSED = ("PYTHON", "LD_LIBRARY_PATH", "LANG", "LC_", "TZ", "STREAMTAP_")

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _AMBIENT_CLEAR = 47, 4

# linux/securebits.h: uid 0 means nothing at exec (0x1), the kernel still takes capabilities away
# when the uid changes (not 0x4, not 0x10), none becomes ambient (0x40), and all that is locked.
_SECUREBITS = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x80

_CAPABILITY_VERSION_3 = 0x20080522
_DAC_OVERRIDE = 1 << 1
_FACCESSAT2 = 439  # on every machine
_AT_FDCWD, _AT_EACCESS = (1 << 64) - 100, 0x200


class User(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]


class Confinement(NamedTuple):
    """What is in force. seccomp: the filter of system calls; landlock_abi: 0 for none."""

    seccomp: bool
    landlock_abi: int

    @property
    def words(self) -> tuple[str, ...]:
        return (
            "system calls filtered" if self.seccomp else "no filter of system calls",
            f"Landlock ABI {self.landlock_abi}" if self.landlock_abi else "no Landlock",
        )


def helper_environment() -> dict[str, str]:
    """The environment for a helper process."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}
    return passed | ENVIRONMENT


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """What is imported meanwhile starts no threads; for a process that was not started with
    `helper_environment`, and whose children are to have the environment it was started with."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def unprivileged_user() -> User:
    """Who the parser runs as: user `streamtap` if there is one, else `nobody`; in no group but
    that of `nobody`, for members of group `streamtap` may ask the service for things."""
    nobody = User(65534, 65534, ())  # as the kernel shows who is nobody
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam("nobody")
        nobody = User(entry.pw_uid, entry.pw_gid, ())
    with contextlib.suppress(KeyError):
        return nobody._replace(uid=pwd.getpwnam("streamtap").pw_uid)
    return nobody


def close_others(keep: Iterable[int]) -> None:
    """Closes every descriptor but these; standard error is one of those to name.

    Only for descriptors that no Python object owns: it would close them a second time.
    """
    kept = set(keep)
    for name in os.listdir("/proc/self/fd"):
        if (descriptor := int(name)) not in kept:
            with contextlib.suppress(OSError):  # the one that listed them is closed already
                os.close(descriptor)


def become(user: User, writable: Sequence[str] = ()) -> bool:
    """Makes this process the user's, without any capability, and without a way to get one back.

    That holds for uid 0 too: files of root can be used, rights of root cannot. writable, and what
    this gives: as for `drop_capabilities`. Raises PermissionMissing where a capability for this is
    missing (CAP_SETPCAP, CAP_SETUID, CAP_SETGID); the process is then as it was or in between, and
    has to end, or to drop those that it has.
    """
    _require_one_thread()
    try:
        prctl(_PR_SET_SECUREBITS, _SECUREBITS)
        for capability in range(64):
            try:
                prctl(_PR_CAPBSET_READ, capability)
            except OSError:  # past the last one that this kernel knows
                break
            prctl(_PR_CAPBSET_DROP, capability)
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except PermissionError as error:
        raise PermissionMissing(
            f"cannot become user {user.uid} without rights: {error.strerror}",
            "CAP_SETPCAP, CAP_SETUID and CAP_SETGID are needed to give rights up",
        ) from error
    return drop_capabilities(writable)


def drop_capabilities(writable: Sequence[str] = ()) -> bool:
    """Gives up all capabilities for good; whoever this process is, it may.

    writable: folders where files have to be made later. Where one of them is not ours, as the home
    of the person behind sudo, CAP_DAC_OVERRIDE alone stays, if it is there, and this is True.
    """
    _require_one_thread()
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR)
    stays = False
    if writable:
        with contextlib.suppress(PermissionError):
            _have_capabilities(effective=0, permitted=_DAC_OVERRIDE)
            stays = not all(map(_is_writable, writable))
    kept = _DAC_OVERRIDE if stays else 0
    _have_capabilities(kept, kept)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)  # no one of the same user may look into its memory
    return stays


def _have_capabilities(effective: int, permitted: int) -> None:
    # Effective, permitted, inheritable, in two halves; the upper one comes last.
    sets = struct.pack("=6I", effective, permitted, 0, 0, 0, 0)
    capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), sets)


def _is_writable(folder: str) -> bool:
    """With the effective capabilities of now: of the calls that ask this, the only one to do so
    for uid 0 too."""
    try:
        syscall(_FACCESSAT2, _AT_FDCWD, os.fsencode(folder), os.W_OK | os.X_OK, _AT_EACCESS)
    except OSError:
        return False
    return True


def confine(writable: Sequence[str] | None = None) -> Confinement:
    """Denies this process, for good, all that it does not need for loops over descriptors it has.

    writable: folders below which files may be written, replaced and read; None: no file at all.
    Nothing can be executed, no process or thread started, no socket made, also with `writable`.
    Raises OSError where one of the folders cannot be opened.
    """
    _require_one_thread()
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    abi = landlock.restrict(writable or ())
    return Confinement(seccomp.restrict(files=writable is not None), abi)


def give_up(writable: Sequence[str] = ()) -> tuple[str, ...]:
    """All of the above for a process that goes on: it may use the descriptors that it has and,
    below the folders `writable`, files, for which it stays root if it is root. What was given up,
    in words. Raises OSError where one of the folders cannot be opened.
    """
    preload()
    words = []
    stays = False
    try:
        if os.geteuid():
            stays = drop_capabilities(writable)
        elif writable:
            stays = become(User(0, os.getegid(), ()), writable)
        else:
            become(unprivileged_user())
            words.append("no privileged user")
    except PermissionMissing:  # root in a container, with but few of its rights
        stays = drop_capabilities(writable)
    words.append("no capability but CAP_DAC_OVERRIDE" if stays else "no capability")
    return (*words, *confine(writable or None).words)


def _require_one_thread() -> None:
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"rights belong to a thread, and this process has {threads}")


def preload() -> None:
    """Has Python load what it would otherwise look for when it is needed, while it still can.

    That is: what prints a traceback, codecs, the time zone. Modules that the caller needs are
    the caller's to import.
    """
    locale.getpreferredencoding(False)
    time.strftime("%Z", time.localtime())
    for codec in ("idna", "punycode", "ascii", "latin-1", "utf-16-le", "unicode_escape"):
        codecs.lookup(codec)
    try:
        raise AttributeError("to be suggested a better name", name="excepthok", obj=sys)
    except AttributeError:  # what was formatted once can be formatted again
        logging.Formatter().formatException(sys.exc_info())
    linecache.clearcache()
    if "numpy" in sys.modules:
        importlib.import_module("numpy.ma")  # numpy.unique asks it for a constant
