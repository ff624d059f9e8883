"""The socket that a service listens on: one a machine, and never half made."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from streamtap.errors import AlreadyRunning, PermissionMissing

LOCK = "control.lock"  # beside the socket
BACKLOG = 128


class Listener:
    """Listens on `path` from the moment it is made to `close`.

    A lock tells a living service from the socket of a dead one. It is the process's own: children
    do not have it, so a service that was killed is dead though its children live on, and it must
    be made by the process that stays.
    """

    def __init__(self, path: Path, group: int | None) -> None:
        """group: may connect, beside root. Raises AlreadyRunning, PermissionMissing, OSError."""
        self._path = path
        folder = path.parent
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise PermissionMissing(
                f"{folder}: the service cannot be started: {error.strerror}", "run with sudo"
            ) from error
        try:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunning(
                    f"a service serves {path} already", "see: streamtap status"
                ) from None
            self.socket = _listen(folder, path.name, group)
            self._made = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def is_found(self) -> bool:
        """By clients, under its path."""
        return is_same_file(self._made, self._path)

    @property
    def is_locked(self) -> bool:
        """Other services find the lock."""
        return is_same_file(self._lock, self._path.parent / LOCK)

    def close(self) -> None:
        """Takes the socket away, if it is ours still."""
        if self.is_found:
            self._path.unlink(missing_ok=True)
        self.socket.close()
        os.close(self._made)
        os.close(self._lock)


def _listen(folder: Path, name: str, group: int | None) -> socket.socket:
    """A socket that has its name only when all is set; it takes the place of a dead one's."""
    making = f".{name}.new"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # By way of the folder's descriptor, for the path of a socket has 107 bytes at most.
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(making, dir_fd=directory)  # of one that was killed here
        before = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{making}")
        finally:
            os.umask(before)
        if group is not None:
            os.chown(making, -1, group, dir_fd=directory)
            os.chmod(making, 0o660, dir_fd=directory)
        listener.listen(BACKLOG)
        os.rename(making, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def is_same_file(fd: int, path: Path) -> bool:
    """Is the open file what `path` names now?"""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except OSError:
        return False


def is_served(path: Path) -> bool:
    """Does anybody listen there? Raises no error."""
    try:
        connect(path).close()
    except OSError:
        return False
    return True


def connect(path: Path) -> socket.socket:
    """A connection. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    except BaseException:
        connection.close()
        raise
    return connection
