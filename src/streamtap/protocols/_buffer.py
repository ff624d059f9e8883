"""Bytes of one direction on their way through a parser, with their place in the stream.

One `bytearray` and an index of the first byte still held. Taking moves the index; the array is
trimmed when the taken part is the greater one, so each byte is moved at most a few times. A search
for the end of a line remembers where it stopped: bytes that come one by one are looked at once.
"""

import re
from collections import deque
from collections.abc import Iterator

from streamtap.events import Event

_TRIM = 4096  # below this a copy costs less than the bookkeeping


class ByteBuffer:
    """Ordered bytes with a position. All indices are relative to the first byte held.

    offset: place of the first byte held in its direction's stream.
    """

    __slots__ = ("_clean_from", "_clean_to", "_data", "_start", "offset")

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._data = bytearray()
        self._start = 0
        # Stream offsets between which no line ends.
        self._clean_from = self._clean_to = offset

    def __len__(self) -> int:
        return len(self._data) - self._start

    @property
    def end(self) -> int:
        """Place in the stream of the next byte to be appended."""
        return self.offset + len(self)

    def append(self, data: bytes | memoryview) -> None:
        """Store a copy of `data` behind what is held."""
        if self._start > _TRIM and self._start * 2 > len(self._data):
            del self._data[: self._start]
            self._start = 0
        self._data += data

    def pass_over(self, length: int) -> None:
        """Count bytes that are never stored, or never came; only while nothing is held."""
        assert not len(self)
        self.offset += length

    def skip(self, length: int) -> None:
        """Drop the first `length` bytes, which must be there."""
        assert 0 <= length <= len(self)
        self.offset += length
        self._start += length
        if self._start == len(self._data):
            self._data.clear()
            self._start = 0

    def take(self, length: int) -> bytes | None:
        """The first `length` bytes, or None while they are not all there."""
        if len(self) < length:
            return None
        taken = self.peek(0, length)
        self.skip(length)
        return taken

    def line(self, limit: int, start: int = 0) -> int:
        """Length, with its LF, of the line at `start`: 0 while its end is not there, -1 if it is
        longer than `limit`."""
        begin = search = self.offset + start
        if self._clean_from <= begin <= self._clean_to:
            search = self._clean_to
        else:
            self._clean_from = begin
        shift = self._start - self.offset
        stop = min(len(self._data), begin + limit + shift)
        found = self._data.find(b"\n", search + shift, stop)
        if found >= 0:
            self._clean_to = found - shift
            return found + 1 - (begin + shift)
        self._clean_to = max(search, stop - shift)
        return -1 if len(self) - start >= limit else 0

    def find(self, needle: bytes, start: int = 0, stop: int | None = None) -> int:
        """Index of the first `needle` within `start` … `stop`, or -1."""
        end = len(self._data) if stop is None else self._start + stop
        found = self._data.find(needle, self._start + start, end)
        return found - self._start if found >= 0 else -1

    def rfind(self, needle: bytes, start: int, stop: int) -> int:
        """Index of the last `needle` within `start` … `stop`, or -1."""
        found = self._data.rfind(needle, self._start + start, self._start + stop)
        return found - self._start if found >= 0 else -1

    def match(self, pattern: re.Pattern[bytes], start: int = 0, stop: int | None = None) -> int:
        """Index of the end of `pattern`, matched at `start`, or -1."""
        end = len(self._data) if stop is None else self._start + stop
        match = pattern.match(self._data, self._start + start, end)
        return match.end() - self._start if match else -1

    def search(self, pattern: re.Pattern[bytes], start: int, stop: int) -> tuple[int, int]:
        """Indices of the begin and the end of the first `pattern`, or (-1, -1)."""
        match = pattern.search(self._data, self._start + start, self._start + stop)
        if match is None:
            return -1, -1
        return match.start() - self._start, match.end() - self._start

    def peek(self, start: int, length: int) -> bytes:
        """A copy of up to `length` bytes from `start`, which stay held."""
        start += self._start
        return bytes(self._data[start : start + length])


def drain(ready: deque[Event]) -> Iterator[Event]:
    """What is ready, in order; what is not asked for stays ready."""
    while ready:
        yield ready.popleft()
