"""A BPF ring buffer read through its memory: no callback, no copy.

The map holds a page with the consumer's position, one with the producer's, then the data twice in
a row, so that a record never wraps. A record is an 8-byte header (bit 31: still being written,
bit 30: discarded, the rest: length) and its data, padded to 8 bytes.
Source: Linux Documentation/bpf/ringbuf.rst.
"""

import contextlib
import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

_BUSY = 1 << 31
_DISCARDED = 1 << 30
_LENGTH = _DISCARDED - 1
HEADER = 8
WALK, WALK_MOST = 64, 4096  # records to walk before the next look for a run; doubled in vain


class Ring:
    """The reading end of a ring of `size` bytes (a power of two).

    Records read stay in place until `release` gives their space back. Positions are bytes since
    the ring was made; `data` is addressed by `position & (size - 1)`.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.fd = fd
        self.size = size
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED)
        self._shared = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed = ctypes.c_uint64.from_buffer(self._consumer)
        whole = memoryview(self._shared)
        self._produced = whole[:8].cast("Q")
        self.data = whole[page:]
        self._headers = self.data.cast("I")
        # One record header a row is gathered from here, eight bytes at a time.
        self.words: NDArray[np.uint64] = np.frombuffer(self.data, np.uint64)
        self._lengths: NDArray[np.uint32] = np.frombuffer(self.data, np.uint32)
        self.position = self._consumed.value

    @property
    def produced(self) -> int:
        return self._produced[0]

    def read(self, until: int, limit: int) -> list[tuple[int, int]]:
        """Offset in `data` and length of the records from `position` to `until`, in their order;
        at most about `limit` bytes of them. Stops at a record that is still being written.
        """
        found = []
        headers, mask = self._headers, self.size - 1
        position = self.position
        until = min(until, position + limit)
        while position < until:
            at = position & mask
            header = headers[at >> 2]
            if header & _BUSY:
                break
            length = header & _LENGTH
            if not header & _DISCARDED:
                found.append((at + HEADER, length))
            position += (length + HEADER + 7) & ~7
        self.position = position
        return found

    def find(self, until: int, limit: int) -> NDArray[np.int64]:
        """The offsets alone, as `read` gives them: (n,) int64, multiples of 8.

        Traffic comes in runs of records of one length. Where one ends there is the header of the
        next, so headers a stride apart that all hold that very length are a run: one comparison
        finds it. What lies between runs is walked.
        """
        parts: list[NDArray[np.int64]] = []
        headers = self._headers
        # In words of four bytes; the data is there twice, so nothing wraps on the way.
        begin = word = (self.position & self.size - 1) >> 2
        end = word + (min(until - self.position, limit) >> 2)
        walk = WALK
        while word < end:
            header = headers[word]
            step = (header + HEADER + 7 >> 3) << 1
            if header < _DISCARDED:
                same = self._lengths[word:end:step] == header
                run = len(same) if same.all() else int(same.argmin())
                if run >= WALK // 4:
                    parts.append(np.arange(word, word + run * step, step))
                    word += run * step
                    walk = WALK
                    continue
            walked = []
            last = min(end, word + walk * step)
            while word < last:
                header = headers[word]
                if header >= _DISCARDED:
                    if header & _BUSY:
                        end = word
                        break
                    header &= _LENGTH
                else:
                    walked.append(word)
                word += (header + HEADER + 7 >> 3) << 1
            parts.append(np.array(walked, np.int64))
            walk = min(walk * 2, WALK_MOST)
        self.position += (word - begin) << 2
        return (np.concatenate(parts) << 2) + HEADER if parts else np.empty(0, np.int64)

    def length_at(self, offset: int) -> int:
        """Length of the record at an offset that `find` gave."""
        return self._headers[offset - HEADER >> 2] & _LENGTH

    def release(self) -> None:
        """Give the space of what was read back to the kernel."""
        self._consumed.value = self.position

    def close(self) -> None:
        """Unmaps; nobody may hold a view of `data` or `words` any more."""
        del self.words, self._lengths
        for view in (self._headers, self.data, self._produced):
            view.release()
        del self._consumed
        self._consumer.close()
        with contextlib.suppress(BufferError):  # a view is still out; the pages go with it
            self._shared.close()
