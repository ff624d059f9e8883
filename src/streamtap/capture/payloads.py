"""What segments carry, put together: the payloads of a stretch in one place, in a given order.

NumPy copies rows of a fixed size fastest, and payloads have any. So a granule is copied from where
each begins, whatever its length: what is too much lies where the next payload goes, and is written
over by it. What is longer has had its further granules before. That takes a third of the time that
`pwritev` takes, which waits for the memory of one piece before it looks at the next.
"""

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.packets import SLACK

Payload = bytes | mmap.mmap  # of a batch: a slice of it is bytes

_STEP = 64  # bytes: granules are a multiple of it
_AT_ONCE = 1 << 18  # bytes that are copied at a time: less than a processor's own cache


class Payloads:
    """A file in memory, where payloads are put together; grows to the largest batch. Whoever has
    the descriptor may map it.

    size: of what was put together last.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("streamtap", os.MFD_CLOEXEC)
        self.size = 0
        self._bytes = np.empty(0, np.uint8)

    def gather(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        """Puts pieces of the data together, from the file's beginning on.

        data: with `SLACK` bytes behind the last piece. offsets, lengths: (n,) of the pieces.
        """
        places = np.concatenate(([0], np.cumsum(lengths)))
        self.size = int(places[-1])
        if not self.size:
            return
        mean = self.size // len(lengths)
        granule = min((mean + mean // 4) // _STEP * _STEP + _STEP, SLACK)
        self._grow(self.size + granule)
        longer = np.flatnonzero(lengths > granule)
        if len(longer):
            counts = (lengths[longer] - 1) // granule
            last = np.cumsum(counts)
            steps = (np.arange(1, last[-1] + 1) - np.repeat(last - counts, counts)) * granule
            longer = np.repeat(longer, counts)
            self._copy(data, offsets[longer] + steps, places[longer] + steps, granule)
        self._copy(data, offsets, places, granule)

    def _copy(
        self,
        data: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        places: NDArray[np.int64],
        granule: int,
    ) -> None:
        """Granules one after the other, from the offsets of the data to the places here."""
        size = f"V{granule}"
        source = np.ndarray((len(data) - granule + 1,), size, data, 0, (1,))
        target = np.ndarray((len(self._bytes) - granule + 1,), size, self._bytes, 0, (1,))
        count = max(1, _AT_ONCE // granule)
        for first in range(0, len(offsets), count):
            part = slice(first, first + count)
            rows = source[offsets[part]]
            target[places[part][: len(rows)]] = rows

    def _grow(self, size: int) -> None:
        if size <= len(self._bytes):
            return
        os.posix_fallocate(self.fd, 0, size)  # raises where memory is full; to touch it would kill
        self._bytes = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)

    def close(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        os.close(self.fd)
