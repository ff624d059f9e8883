"""Landlock: what a process may still do with files, whatever user it is.

Nothing that is not allowed here can be opened, run, made, renamed or removed by its path, and
where the kernel knows of it, no TCP port bound or connected to, no abstract socket and no process
outside reached. Descriptors that are open already are not touched.
Source: Linux Documentation/userspace-api/landlock.rst.
"""

import errno
import os
import struct
from collections.abc import Sequence

from streamtap.service.syscalls import syscall

# The same numbers on every machine.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
_TRUNCATE = 1 << 14
# Files are read, written, made, replaced and removed. Not here: to execute, to move to another
# folder, folders, links, devices, sockets, pipes.
_RECORDING = _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_FILE | _MAKE_REG | _TRUNCATE

# Version of the interface -> all rights over files that it knows; later ones add to the earlier.
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK_SINCE, _NETWORK = 4, 0b11  # TCP: bind, connect
_SCOPE_SINCE, _SCOPE = 6, 0b11  # abstract sockets, signals


def version() -> int:
    """The version of the interface that the kernel has; 0 if none, or if it is turned off."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError as error:
        # Not built, not enabled, or hidden by a container.
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            return 0
        raise


def restrict(writable: Sequence[str]) -> int:
    """Denies this thread all use of files by their path for good, but for recording below the
    folders `writable`. Gives the version in force, 0 where the kernel has none.

    Needs PR_SET_NO_NEW_PRIVS. Raises OSError where a folder cannot be opened.
    """
    found = version()
    if not found:
        return 0
    files = max(rights for since, rights in _FILES.items() if since <= found)
    words = [files]
    if found >= _NETWORK_SINCE:
        words.append(_NETWORK)
    if found >= _SCOPE_SINCE:
        words.append(_SCOPE)
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset = syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for folder in writable:
            descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", _RECORDING & files, descriptor)
                syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
            finally:
                os.close(descriptor)
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return found
