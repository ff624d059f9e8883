"""The interfaces of a pcapng section: what links their packets are of, and what their times mean.

draft-ietf-opsawg-pcapng, section 4.2.
"""

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.options import options

_RESOLUTION = 9  # if_tsresol
_OFFSET = 14  # if_tsoffset
_LIMIT = (1 << 63) - 1
_S = 1_000_000_000

Numbers = int | NDArray[np.uint64]


class Interface(NamedTuple):
    """snaplen: 0 for no limit.

    divide, units: a time divided by the first is a number of the second to the second; that
    keeps what is far finer than a nanosecond in bounds.
    offset_ns: added to all times.
    """

    link: int
    snaplen: int
    divide: int
    units: int
    offset_ns: int


class Interfaces:
    """The interfaces of a stretch of a file, of all sections in it, in one table.

    table: those known before the stretch, then those described in it.
    section: the latest; 0 is the one that the stretch begins in.
    """

    def __init__(self, known: Sequence[Interface]) -> None:
        self.table = [*known]
        self.section = 0
        self._first = 0  # of the latest section, in the table
        # From which place on how many interfaces of which section are known, the first of them.
        self._places = [-1]
        self._states = [(0, 0, len(known))]

    def add_section(self, at: int) -> None:
        self.section += 1
        self._first = len(self.table)
        self._note(at)

    def add(self, at: int, interface: Interface) -> None:
        self.table.append(interface)
        self._note(at)

    def _note(self, at: int) -> None:
        self._places.append(at)
        self._states.append((self.section, self._first, self.count))

    @property
    def count(self) -> int:
        """How many the latest section has."""
        return len(self.table) - self._first

    @property
    def latest(self) -> tuple[Interface, ...]:
        """Those of the latest section."""
        return tuple(self.table[self._first :])

    def find(
        self, records: NDArray[np.int64], interfaces: NDArray[np.uint32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Section of packets, and the row of their interface in the table, one behind its end where
        it was not described before. records: where their blocks begin. All (n,)."""
        if len(self._states) == 1:
            return np.zeros(len(records), np.int64), np.minimum(interfaces, len(self.table))
        at = np.searchsorted(self._places, records, "right") - 1
        sections, first, count = np.array(self._states, np.int64)[at].T
        return sections, np.where(interfaces < count, first + interfaces, len(self.table))


def read_interface(body: memoryview, order: str) -> Interface:
    """The interface of a block's body, which has at least 8 bytes."""
    link, _, snaplen = Struct(order + "HHI").unpack_from(body)
    divide, units, offset_ns = 1, 1_000_000, 0
    for code, value in options(body, order, 8, len(body)):
        if code == _RESOLUTION and len(value) == 1:
            divide, units = _resolution(value[0])
        elif code == _OFFSET and len(value) == 8:
            (seconds,) = Struct(order + "q").unpack(value)
            offset_ns = max(-_LIMIT, min(_LIMIT, seconds * _S))
    return Interface(link, snaplen, divide, units, offset_ns)


def _resolution(code: int) -> tuple[int, int]:
    """divide and units of an if_tsresol: a negative power of 10, or of 2 if its top bit is set."""
    power = code & 0x7F
    if code & 0x80:
        # 2**34 * 10**9 still fits 64 bits; a 2**34th of a second is finer than a nanosecond.
        kept = min(power, 34)
        return 1 << min(power - kept, 63), 1 << kept
    kept = min(power, 9)
    return 10 ** min(power - kept, 19), 10**kept


def nanoseconds(
    ticks: NDArray[np.uint64], divide: Numbers, units: Numbers, offset_ns: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """Unix times of the time stamps of one interface, or of one each: all (n,).

    What a 64-bit count of nanoseconds can't hold (before 1677, after 2262) is its limit.
    """
    if isinstance(divide, int) and isinstance(units, int) and divide == 1 and _S % units == 0:
        scale = _S // units
        times = (np.minimum(ticks, _LIMIT // scale) * np.uint64(scale)).astype(np.int64)
    else:
        units = np.asarray(units, np.uint64)
        ticks = ticks // np.asarray(divide, np.uint64)
        seconds = ticks // units
        rest = ticks - seconds * units
        seconds = np.minimum(seconds, _LIMIT // _S - 1)
        times = (seconds * np.uint64(_S) + rest * np.uint64(_S) // units).astype(np.int64)
    offsets = np.asarray(offset_ns, np.int64)
    unix: NDArray[np.int64] = np.minimum(times, _LIMIT - np.maximum(offsets, 0)) + offsets
    return unix
