"""A lock that one process at a time has, by a file or a folder."""

import fcntl
import os
from pathlib import Path

from streamtap.service.listening import is_same_file


class Lock:
    """Held from when it is made until `close`; the kernel lets go of it with the process."""

    def __init__(self, path: Path, flags: int) -> None:
        """flags: of `open`. Raises BlockingIOError where somebody has it, and what `open` does."""
        self._path = path
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def is_found(self) -> bool:
        """Others find it, and are kept out: its path names it still."""
        return is_same_file(self._fd, self._path)

    def close(self) -> None:
        """May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
