"""How many packets a capture says it lost."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_Places = NDArray[np.int64]


class Dropped(NamedTuple):
    """What a stretch of a capture says of one interface of one section.

    since: packets lost, by what each packet says of those between it and the one before.
    total: the same from the beginning of the capture, by the latest statistics; None without any.
    """

    section: int
    interface: int
    since: int
    total: int | None


class Collected:
    """What the blocks of a stretch say, by section and interface."""

    def __init__(self) -> None:
        self._since: dict[tuple[int, int], int] = {}
        self._total: dict[tuple[int, int], int] = {}

    def of_statistics(self, section: int, interface: int, total: int) -> None:
        self._total[section, interface] = total

    def of_packets(
        self, sections: _Places, interfaces: _Places, high: _Places, low: _Places
    ) -> None:
        """high, low: halves of how many were lost before each packet. All (n,)."""
        order = np.lexsort((interfaces, sections))
        sections, interfaces = sections[order], interfaces[order]
        changes = (sections[1:] != sections[:-1]) | (interfaces[1:] != interfaces[:-1])
        first = np.flatnonzero(np.append(True, changes))
        sums = (np.add.reduceat(half[order], first).tolist() for half in (high, low))
        keys = zip(sections[first].tolist(), interfaces[first].tolist(), strict=True)
        for key, highs, lows in zip(keys, *sums, strict=True):
            self._since[key] = self._since.get(key, 0) + (highs << 32) + lows

    def told(self, section: int) -> tuple[Dropped, ...]:
        """In the order of the sections, of which the first has this number."""
        return tuple(
            Dropped(section + key[0], key[1], self._since.get(key, 0), self._total.get(key))
            for key in sorted(self._since.keys() | self._total)
        )


class Drops:
    """Adds that up, stretch by stretch. Packets and statistics may tell of the same losses, so of
    each interface the higher number counts."""

    def __init__(self) -> None:
        self._section = 0
        self._before = 0  # of earlier sections
        self._known: dict[int, tuple[int, int]] = {}

    def add(self, told: Iterable[Dropped]) -> None:
        """told: in the order of their sections."""
        for section, interface, since, total in told:
            if section != self._section:
                self._before, self._section = self.total, section
                self._known.clear()
            so_far, latest = self._known.get(interface, (0, 0))
            self._known[interface] = so_far + since, latest if total is None else total

    @property
    def total(self) -> int:
        return self._before + sum(map(max, self._known.values()))
