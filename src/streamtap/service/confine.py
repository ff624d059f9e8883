"""Giving up rights for good: another user without any capability, then no files and no calls.

The order in a helper process: import, `preload`, `close_others`, `become`, `confine`. What the
kernel does not have is left out and told; what it has and refuses is an error. All of it belongs
to a thread, so a process with several is refused: start helpers with `ENVIRONMENT`.
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
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from streamtap.errors import PermissionMissing
from streamtap.service import landlock, seccomp
from streamtap.service.syscalls import capset, prctl

# NumPy's linear algebra starts threads when it is imported, and compiled Python needs memory that
# is executable. Neither is missed.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHON_JIT": "0",
}

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


class User(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]


class Confinement(NamedTuple):
    """What is in force. seccomp: the filter of system calls; landlock_abi: 0 for none."""

    seccomp: bool
    landlock_abi: int


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


def become(user: User) -> None:
    """Makes this process the user's, without any capability, and without a way to get one back.

    That holds for uid 0 too: files of root can be used, rights of root cannot. Raises
    PermissionMissing where a capability for this is missing (CAP_SETPCAP, CAP_SETUID,
    CAP_SETGID); the process is then as it was or in between, and has to end.
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
        prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR)
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except PermissionError as error:
        raise PermissionMissing(
            f"cannot become user {user.uid} without rights: {error.strerror}",
            "CAP_SETPCAP, CAP_SETUID and CAP_SETGID are needed to give rights up",
        ) from error
    # Effective, permitted, inheritable, in two halves.
    capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)  # no one of the same user may look into its memory


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
