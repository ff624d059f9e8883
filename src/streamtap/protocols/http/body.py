"""Where the body of a message ends (RFC 9112 §6, §7), apart from what is told of it.

A framing looks at the bytes at the front of a buffer and says how many of them are its own, and
which of those are content: who wants the content (a gateway whose bodies carry another protocol)
takes the spans from the buffer before they are skipped.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from streamtap.protocols._base import Limits
from streamtap.protocols._buffer import ByteBuffer

# A size line: hexadecimal digits, then extensions that nobody needs (RFC 9112 §7.1).
_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")


class Taken(NamedTuple):
    """length: bytes at the front that belong to the body; spans: start and length of the content
    among them."""

    length: int
    spans: Sequence[tuple[int, int]]


class Framing(Protocol):
    """How one body ends.

    finished: all of it was taken. broken: why its end can't be found any more, or "".
    """

    finished: bool
    broken: str

    def take(self, buffer: ByteBuffer) -> Taken:
        """What of the buffer belongs to the body; the caller skips it."""
        ...

    def swallow(self, length: int) -> bool:
        """Count `length` bytes that are content without being looked at: bytes of a gap, or too
        many to store. False, and nothing counted, if they might be more than content."""
        ...


class Counted:
    """A body of a known length."""

    broken = ""

    def __init__(self, length: int) -> None:
        self._remaining = length
        self.finished = False

    def take(self, buffer: ByteBuffer) -> Taken:
        length = min(self._remaining, len(buffer))
        self.swallow(length)
        return Taken(length, ((0, length),))

    def swallow(self, length: int) -> bool:
        if length > self._remaining:
            return False
        self._remaining -= length
        self.finished = not self._remaining
        return True


class UntilClose:
    """A body that ends with the connection."""

    broken = ""
    finished = False

    def take(self, buffer: ByteBuffer) -> Taken:
        return Taken(len(buffer), ((0, len(buffer)),))

    def swallow(self, length: int) -> bool:
        return True


class _Part(Enum):
    SIZE = "size line"
    DATA = "data"
    DATA_END = "end of data"
    TRAILER = "trailer"


class Chunked:
    """A body in chunks; extensions and trailers are passed over."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._part = _Part.SIZE
        self._remaining = 0  # of the data of this chunk
        self._trailers = 0  # bytes of trailers so far
        self.finished = False
        self.broken = ""

    def take(self, buffer: ByteBuffer) -> Taken:
        at = 0
        spans: list[tuple[int, int]] = []
        while not self.finished and not self.broken:
            if self._part is _Part.DATA:
                length = min(self._remaining, len(buffer) - at)
                if length:
                    spans.append((at, length))
                    at += length
                    self.swallow(length)
                if self._part is _Part.DATA:
                    break
                continue
            length = buffer.line(self._limits.line, at)
            if length == 0:
                break
            if length < 0:
                self.broken = "line of a chunk too long"
                break
            self._line(buffer, at, length)
            if not self.broken:
                at += length
        return Taken(at, spans)

    def swallow(self, length: int) -> bool:
        if self._part is not _Part.DATA or length > self._remaining:
            return False
        self._remaining -= length
        if not self._remaining:
            self._part = _Part.DATA_END
        return True

    def _line(self, buffer: ByteBuffer, at: int, length: int) -> None:
        line = buffer.peek(at, length)
        blank = line in (b"\r\n", b"\n")
        if self._part is _Part.SIZE:
            size = _SIZE.fullmatch(line)
            if size is None:
                self.broken = "chunk size is not a number"
                return
            self._remaining = int(size[1], 16)
            self._part = _Part.DATA if self._remaining else _Part.TRAILER
        elif self._part is _Part.DATA_END:
            if not blank:
                self.broken = "chunk is longer than its size"
                return
            self._part = _Part.SIZE
        else:
            self._trailers += length
            self.finished = blank
            if self._trailers > self._limits.headers:
                self.broken = "trailers too long"
