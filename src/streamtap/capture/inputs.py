"""Where the bytes of a capture come from: a file, a pipe, standard input, compressed or not.

gzip and zstd are told by their first bytes, not by a name. What can be read of a file is given
first; that it is damaged or ends too early is the error that follows.
"""

import os
import select
import stat
import sys
import time
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from streamtap.errors import CaptureFileError, NotFound, PermissionMissing

_MAGIC = 4  # bytes that tell how a file is compressed
_PIECE = 1 << 17  # compressed bytes taken at a time
_ZSTD_BLOCK = 1 << 17  # bytes of the largest (RFC 8878 §3.1.1.2.4)
_WAIT_S = 0.2  # between two looks at a file that may grow

Wait = Callable[[float], bool]  # waits so many seconds; true where no more is wanted


class Input:
    """The bytes of one capture, decompressed, in order.

    name: for messages.
    regular: they lie as they are in a regular file, so that others can read them by `fileno`.
    """

    def __init__(self, source: "_Source") -> None:
        self.name = source.name
        self._source = source
        self._compression = _compression(source.peek(_MAGIC))
        self._decoder: _Decoder | None = None
        self._rest = b""  # compressed bytes that are not decompressed yet
        self.regular = source.on_disk and self._compression is None

    @property
    def size(self) -> int | None:
        """Bytes of the file as it lies there; None where it has no end that is known."""
        return self._source.size

    @property
    def position(self) -> int:
        """Bytes of the file that were taken: of `size`, also where it is compressed."""
        return self._source.position

    @property
    def stopped(self) -> bool:
        """It ended where it did because no more was wanted."""
        return self._source.stopped

    def readinto(self, view: memoryview) -> int:
        """Fills the view with the bytes that are there, at least one; how many, 0 at the end.

        Raises CaptureFileError where the compressed data is damaged or ends too early.
        """
        if self._compression is None:
            return self._source.take(view)
        name, make = self._compression
        while len(view) and (decoder := self._member(name, make)) is not None:
            if decoder.needs_input and not self._rest and not self._fill():
                raise self._error(f"the {name} data ends too early")
            try:
                data = decoder.decompress(self._rest, len(view))
            except Exception as error:
                raise self._error(f"the {name} data is damaged: {error}") from error
            self._rest = decoder.unused_data if decoder.eof else b""
            if data:
                view[: len(data)] = data
                return len(data)
        return 0

    def ready(self) -> bool:
        """Whether `readinto` would have something, or the end, without waiting for it."""
        return bool(self._rest) or self._source.ready()

    def fileno(self) -> int:
        return self._source.fd

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _member(self, name: str, make: "Callable[[], _Decoder]") -> "_Decoder | None":
        """The decoder of the member or frame that is being read; None at the end of the file."""
        if self._decoder is not None and not self._decoder.eof:
            return self._decoder
        while len(self._rest) < _MAGIC and self._fill():
            pass
        if self._decoder is not None:
            while not self._rest.strip(b"\0"):  # tapes, and some tools, pad with zeros
                self._rest = b""
                if not self._fill():
                    return None
        following = _compression(self._rest[:_MAGIC])
        if following is None or following[0] != name:
            raise self._error(f"what follows the {name} data is something else")
        self._decoder = make()
        return self._decoder

    def _fill(self) -> bool:
        piece = bytearray(_PIECE)
        count = self._source.take(memoryview(piece))
        self._rest += piece[:count]
        return count > 0

    def _error(self, reason: str) -> CaptureFileError:
        return CaptureFileError(self.name, self.position, reason)


def open_input(path: str, *, follow: bool = False, wait: Wait | None = None) -> Input:
    """The capture at `path`; `-` is standard input.

    follow: at the end of a regular file wait for more, until the file is truncated or replaced,
        which is an error.
    wait: waits some seconds, and says whether no more is wanted (`threading.Event.wait` serves):
        asked while a pipe, or a file that is followed, has nothing.
    Raises NotFound, PermissionMissing or CaptureFileError.
    """
    return Input(_Source(path, follow, wait or _sleep))


class _Source:
    """The bytes of a file, pipe or standard input as they are."""

    def __init__(self, path: str, follow: bool, wait: Wait) -> None:
        self.name = "standard input" if path == "-" else path
        if path == "-" and sys.stdin is None:  # its descriptor may be another file's by now
            raise CaptureFileError(self.name, None, "is closed")
        self.fd = 0 if path == "-" else _open(path)
        mode = os.fstat(self.fd).st_mode
        if stat.S_ISDIR(mode):
            self.close()
            raise CaptureFileError(self.name, None, "is a directory")
        self.on_disk = stat.S_ISREG(mode)
        # Standard input may be a file of which another program read the beginning.
        self.position = os.lseek(self.fd, 0, os.SEEK_CUR) if self.on_disk else 0
        self.stopped = False
        self._path = path
        self._follow = follow and self.on_disk
        self._wait_for = wait
        self._ahead = b""  # of a pipe: seen, and not taken yet

    @property
    def size(self) -> int | None:
        return os.fstat(self.fd).st_size if self.on_disk else None

    def peek(self, count: int) -> bytes:
        """The next bytes, fewer only at the end; they are still to be taken."""
        ahead = b""
        while len(ahead) < count:
            more = bytearray(count - len(ahead))
            got = self._read(memoryview(more), self.position + len(ahead))
            if not got and not self._more_comes(self.position + len(ahead)):
                break
            ahead += more[:got]
        if not self.on_disk:  # from there they can be read again
            self._ahead = ahead
        return ahead

    def take(self, view: memoryview) -> int:
        """Fills the view with what is there now, and waits for the first byte; 0 at the end."""
        if self._ahead:
            count = min(len(view), len(self._ahead))
            view[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
        else:
            count = self._read(view, self.position)
            while not count and len(view) and self._more_comes(self.position):
                count = self._read(view, self.position)
        self.position += count
        return count

    def ready(self) -> bool:
        """There is something to take, or it is the end."""
        if self._ahead:
            return True
        if self.on_disk:
            return not self._follow or os.fstat(self.fd).st_size > self.position
        return bool(select.select([self.fd], [], [], 0)[0])

    def close(self) -> None:
        if self.fd:  # standard input is not ours to close
            os.close(self.fd)

    def _read(self, view: memoryview, position: int) -> int:
        try:
            if self.on_disk:
                return os.preadv(self.fd, [view], position)
            while not select.select([self.fd], [], [], _WAIT_S)[0]:
                if self._wait(0):
                    return 0
            return os.readv(self.fd, [view])
        except BlockingIOError:  # another reader of the pipe was faster
            return self._read(view, position)
        except OSError as error:
            reason = f"can't be read: {error.strerror}"
            raise CaptureFileError(self.name, position, reason) from error

    def _more_comes(self, position: int) -> bool:
        """Whether more may come behind the end at `position`, after having waited for it."""
        if not self._follow:
            return False
        state = os.fstat(self.fd)
        if state.st_size < position:
            raise CaptureFileError(self.name, position, "the file was truncated")
        if state.st_size == position and self._path != "-" and not self._still_there(state):
            raise CaptureFileError(self.name, position, "the file was removed or replaced")
        return state.st_size > position or not self._wait(_WAIT_S)

    def _wait(self, seconds: float) -> bool:
        self.stopped = self.stopped or self._wait_for(seconds)
        return self.stopped

    def _still_there(self, state: os.stat_result) -> bool:
        try:
            return os.path.samestat(state, os.stat(self._path))
        except OSError:
            return False


class _Decoder(Protocol):
    """Decompresses one member or frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    """zlib's decompressor with the manners of a `_Decoder`. It forgets what it made of data that
    turns out to be damaged; that is told first, up to the damage."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._damage: zlib.error | None = None
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self._damage is not None:
            raise self._damage
        before = self._inner.copy()
        data = self._inner.unconsumed_tail + data
        try:
            piece = self._inner.decompress(data, max_length)
        except zlib.error as error:
            self._damage, self.needs_input = error, False
            return _up_to_damage(before, data, max_length)
        # A full piece may be all that fitted: more can wait inside.
        self.needs_input = len(piece) < max_length and not self._inner.unconsumed_tail
        return piece


def _up_to_damage(decoder: "zlib._Decompress", data: bytes, max_length: int) -> bytes:
    """What can be decompressed of damaged data: it is fed in steps that become shorter."""
    sound, at, step = b"", 0, len(data)
    while step and at < len(data) and len(sound) < max_length:
        before = decoder.copy()
        try:
            sound += decoder.decompress(data[at : at + step], max_length - len(sound))
        except zlib.error:
            decoder, step = before, step // 2
        else:
            at += step - len(decoder.unconsumed_tail)
    return sound


class _Unzstd:
    """A zstd decompressor that makes one block's length at a time: of data that turns out to be
    damaged it forgets no more."""

    def __init__(self) -> None:
        if sys.version_info >= (3, 14):
            from compression.zstd import ZstdDecompressor
        else:
            from backports.zstd import ZstdDecompressor
        self._inner = ZstdDecompressor()
        self._ready = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof and not self._ready

    @property
    def needs_input(self) -> bool:
        return self._inner.needs_input and not self._ready

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if not self._ready:
            self._ready = self._inner.decompress(data, _ZSTD_BLOCK)
        piece, self._ready = self._ready[:max_length], self._ready[max_length:]
        return piece


def _compression(magic: bytes) -> tuple[str, Callable[[], _Decoder]] | None:
    """What the first bytes say: a name, and what makes a decoder."""
    if magic.startswith(b"\x1f\x8b"):
        return "gzip", _Gunzip
    # RFC 8878: a frame, or a skippable frame, which some tools write first.
    if magic == b"\x28\xb5\x2f\xfd" or (magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5):
        return "zstd", _Unzstd
    return None


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path}") from error
    except PermissionError as error:
        raise PermissionMissing(f"{path} may not be read: {error.strerror}") from error
    except OSError as error:
        raise CaptureFileError(path, None, f"can't be opened: {error.strerror}") from error


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False
