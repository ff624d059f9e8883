"""A file of whole lines that grows: nothing in it is ever half a line, whatever happens."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_OPEN = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MODE = 0o666  # less the umask, as for any new file


class LineFile:
    """Lines are appended at once and whole, or not at all.

    A line that a crash of the machine cut is left as it is, and ended: the next one is a new line.
    begins: with what its first line does; a file that begins in another way is somebody else's.
    size: bytes of the file, as far as they were written by us.
    """

    def __init__(self, path: Path, begins: bytes) -> None:
        self._path = path
        self._begins = begins
        self._file = -1
        self.size = 0

    def open(self) -> None:
        """Raises OSError, also where the place is a pipe, a device or somebody else's file."""
        file = os.open(self._path, _OPEN, _MODE)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a file", str(self._path))
            first = os.pread(file, len(self._begins), 0).partition(b"\n")[0]
            if not self._begins.startswith(first):  # of a line that was cut there is less
                raise OSError(errno.EEXIST, "a file of something else", str(self._path))
            self._file, self.size = file, status.st_size
            if self.size and os.pread(file, 1, self.size - 1) != b"\n":
                self.append(b"\n")
        except BaseException:
            self._file = -1
            os.close(file)
            raise

    def append(self, lines: bytes | memoryview) -> None:
        """Raises OSError; the file then is as it was before."""
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):  # then `open` finds half a line, and ends it
                os.ftruncate(self._file, self.size)
            raise
        self.size += len(lines)

    def close(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)
