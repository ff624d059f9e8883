"""The options of pcapng blocks: of one block, and of many packets by column."""

from collections.abc import Iterator
from struct import Struct

import numpy as np
from numpy.typing import NDArray

END = 0
COMMENT = 1
_MOST = 64  # options of a packet; what comes behind them is not looked at
_ROW = np.dtype((np.void, 4))


def options(block: memoryview, order: str, at: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Code and value of each option that lies in block[at:end].

    What is not an option (it would reach past the end) ends the list.
    """
    read = Struct(order + "HH").unpack_from
    while at + 4 <= end:
        code, length = read(block, at)
        at += 4
        if code == END or at + length > end:
            return
        yield code, block[at : at + length]
        at += (length + 3) & ~3


class PacketOptions:
    """The options of packets in lockstep: first the first of all, then the second of all…

    Each step gives (index of the packet, code, offset of the value, its length), by column.
    """

    def __init__(
        self,
        data: NDArray[np.uint8],
        order: str,
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> None:
        """starts, ends: (n,) of the list of options of each packet; empty where it has none."""
        self._order = order
        self._view = data.data
        self._rows = np.ndarray((max(0, len(data) - 3),), _ROW, data, 0, (1,))
        self._starts, self._ends = starts, ends

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], ...]]:
        which = np.flatnonzero(self._starts + 4 <= self._ends)
        at, ends = self._starts[which], self._ends[which]
        for _ in range(_MOST):
            if not len(which):
                return
            head = self._rows[at].view(self._order + "u2").reshape(-1, 2).astype(np.int64)
            code, length = head[:, 0], head[:, 1]
            there = (code != END) & (at + 4 + length <= ends)
            which, at, ends = which[there], at[there] + 4, ends[there]
            code, length = code[there], length[there]
            yield which, code, at, length
            at = at + ((length + 3) & ~3)
            more = at + 4 <= ends
            which, at, ends = which[more], at[more], ends[more]

    def as_u32(self, text: bytes) -> int:
        """Four bytes, as `u32` would read them."""
        return int.from_bytes(text, "little" if self._order == "<" else "big")

    def u32(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers at offsets of the data."""
        return self._rows[at].view(self._order + "u4").astype(np.int64)

    def u64(self, at: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """High and low halves of numbers of 8 bytes."""
        halves = self.u32(at), self.u32(at + 4)
        return halves[::-1] if self._order == "<" else halves

    def value(self, at: int, length: int) -> bytes:
        return bytes(self._view[at : at + length])
