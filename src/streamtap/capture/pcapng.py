"""pcapng files: sections, interfaces, packets of three kinds, and whose they are.

Format: draft-ietf-opsawg-pcapng. A file is a chain of blocks; each tells its length in front and
at its end. Packet blocks are records; a few others change the layout; the rest is passed over.
Process data is in `capture.processes`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.chain import Form, follow
from streamtap.capture.container import MOST_RECORDS, UNKNOWN_LINK, Packets, Stop, Taken
from streamtap.capture.drops import Collected
from streamtap.capture.interfaces import Interface, Interfaces, nanoseconds, read_interface
from streamtap.capture.options import PacketOptions, options
from streamtap.capture.processes import APPLE, CUSTOM, Processes, Said, Told, read_process
from streamtap.errors import CaptureFileError

# Block types: draft-ietf-opsawg-pcapng, section 10.1.
SECTION = 0x0A0D0D0A  # the same in either byte order
INTERFACE = 1
PACKET = 2  # obsolete
SIMPLE_PACKET = 3
STATISTICS = 5
ENHANCED_PACKET = 6

LONGEST = 16 << 20  # of a block; Wireshark's bound as well
_FRAME = 12  # of any block: type and length in front, length at the end
_HEAD = 28  # of an enhanced packet block: what stands before the packet
_SIMPLE_HEAD = 12
_SHORTEST = {
    PACKET: _HEAD + 4,
    SIMPLE_PACKET: _SIMPLE_HEAD + 4,
    ENHANCED_PACKET: _HEAD + 4,
    INTERFACE: _FRAME + 8,
    SECTION: _FRAME + 16,
}
_PACKETS = (ENHANCED_PACKET, SIMPLE_PACKET, PACKET)
_CHANGES = (SECTION, INTERFACE)
_RECORDS = (*_PACKETS, STATISTICS, APPLE, *CUSTOM, *_CHANGES)  # the others are passed over
_SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"
_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_DROPS = (5, 7)  # isb_ifdrop, isb_osdrop
_ROW = np.dtype((np.void, _HEAD))
_SECTION_ROW = np.dtype((np.void, 8))  # byte order and version
_MAGIC = 0x1A2B3C4D
_TRIPLE = np.dtype((np.void, 12))
_PAIR_OF = {order: Struct(order + "II").unpack_from for order in "<>"}
_WORD_OF = {order: Struct(order + "I").unpack_from for order in "<>"}
_MOST_INTERFACES = 16_384  # of a section
_MOST_OTHERS = 16_384  # records that are no packets, of a walk: what they say is held at once
_MOST_SWAPS = 256  # of the byte order: files of several machines put together, no more
_UNKNOWN = 0xFFFF  # drops of an obsolete packet block
_FIRST_SPAN = 1 << 12  # bytes walked first, lest each change of the layout cost a long walk
_LAST_SPAN = 1 << 22  # the same, at the most: blocks take memory, however short they are
_CANDIDATES = 64  # places looked at for a guess: more, and it costs more than it saves


class _Seen(NamedTuple):
    """What a walk came by: interfaces of the latest section, records that are no packets."""

    interfaces: int
    others: int


@dataclass(frozen=True)
class PcapngLayout:
    """What the blocks of a section said so far.

    section: its number, from 1; 0 before the first. swaps: sections that changed the byte order.
    """

    name: str
    order: str = "<"
    interfaces: tuple[Interface, ...] = ()
    section: int = 0
    swaps: int = 0
    processes: Processes = field(default_factory=Processes)
    longest: int = LONGEST

    def walk(
        self, data: NDArray[np.uint8], start: int, stop: int
    ) -> tuple[NDArray[np.int64], int, Stop]:
        """As in `Layout`. Blocks of sections and interfaces, with process data and statistics are
        records too: they change nothing of where the others are, and `read` keeps what they tell.
        """
        parts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        at, span, why = start, _FIRST_SPAN, None if self.section else Stop.CHANGE
        seen = _Seen(len(self.interfaces), 0)
        count = 0
        while why is None and count <= MOST_RECORDS:
            bound = min(stop, at + span)
            blocks, end = follow(data, at, bound, _form(self.order), partial(self._guess, data))
            found, at, why, seen = self._sift(data, blocks, end, seen)
            parts.append(found)
            count += len(found)
            if why is None and (at >= stop or at < bound):
                why = self._stop_at(data, at, stop)
            span = min(span * 16, _LAST_SPAN)
        records = np.concatenate(parts)
        if count > MOST_RECORDS:
            return records[:MOST_RECORDS], int(records[MOST_RECORDS]), Stop.PAUSE
        assert why is not None
        return records, at, why

    def _sift(
        self, data: NDArray[np.uint8], blocks: NDArray[np.int64], end: int, seen: "_Seen"
    ) -> tuple[NDArray[np.int64], int, Stop | None, "_Seen"]:
        """The records among the blocks, as far as none of them ends the walk."""
        if not len(blocks):
            return blocks, end, None, seen
        sizes = np.diff(blocks, append=end)
        # The length at the end of each block lies before the next, so it is gathered with that.
        pair, word = _PAIR_OF[self.order], _WORD_OF[self.order]
        words = np.empty((len(blocks) + 1, 3), self.order + "u4")
        words[1:-1] = _rows(data, _TRIPLE)[blocks[1:] - 4].view(words.dtype).reshape(-1, 3)
        words[0, 1:] = pair(data.data, blocks[0])
        words[-1, 0] = word(data.data, end - 4)[0]
        kinds, lengths, trailers = words[:-1, 1], words[:-1, 2], words[1:, 0]
        sound = (lengths == sizes) & (trailers == sizes)
        records = kinds == ENHANCED_PACKET
        usual = sound.all() and records.all() and not np.bitwise_or.reduce(sizes) & 3
        if usual and sizes.min() >= _SHORTEST[ENHANCED_PACKET]:
            return blocks, end, None, seen
        stops = ~sound | (sizes & 3 != 0)
        for kind, shortest in _SHORTEST.items():
            stops |= (kinds == kind) & (sizes < shortest)
        if np.isin(kinds, _CHANGES).any():
            count = _count(kinds, seen.interfaces)
            sections = np.flatnonzero((kinds == SECTION) & ~stops)
            stops[sections[~self._continues(data, blocks[sections])]] = True
            stops |= (kinds == INTERFACE) & (count > _MOST_INTERFACES)
            seen = seen._replace(interfaces=int(count[-1]))
        records = np.isin(kinds, _RECORDS)
        others = seen.others + np.cumsum(records & ~np.isin(kinds, _PACKETS))
        seen = seen._replace(others=int(others[-1]))
        many = int(np.searchsorted(others, _MOST_OTHERS, "right"))
        first = int(stops.argmax())
        if many < len(blocks) and (many < first or not stops[first]):
            return blocks[:many][records[:many]], int(blocks[many]), Stop.PAUSE, seen
        if not stops[first]:
            return blocks[records], end, None, seen
        # A section of the other byte order has a length that looks wrong in this one. What is wrong
        # with a block that changes the layout is for `change` to say.
        changes = kinds[first] in _CHANGES
        found = blocks[:first][records[:first]]
        return found, int(blocks[first]), Stop.CHANGE if changes else Stop.BAD, seen

    def _continues(self, data: NDArray[np.uint8], sections: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether these sections are read as this one is: (n,)."""
        heads = _rows(data, _SECTION_ROW)[sections + 8].view(
            [("magic", self.order + "u4"), ("major", self.order + "u2"), ("minor", "V2")]
        )
        same: NDArray[np.bool_] = (heads["magic"] == _MAGIC) & (heads["major"] == 1)
        return same

    def _stop_at(self, data: NDArray[np.uint8], at: int, stop: int) -> Stop:
        """Why the chain of blocks did not go on at this place."""
        if at >= stop or at + _FRAME > len(data):
            return Stop.END
        kind, length = _PAIR_OF[self.order](data.data, at)
        if kind == SECTION:
            return Stop.CHANGE
        return Stop.END if _FRAME <= length <= LONGEST and not length & 3 else Stop.BAD

    def read(self, data: NDArray[np.uint8], records: NDArray[np.int64]) -> Taken:
        heads = self._heads(data, records)
        known, told, drops = Interfaces(self.interfaces), list[Told](), Collected()
        if not (heads[0] == ENHANCED_PACKET).all():
            for at, kind, body in self._others(data, records, heads):
                if kind == SECTION:
                    known.add_section(at)
                elif kind == INTERFACE:
                    known.add(at, read_interface(body, self.order))
                elif kind == STATISTICS:
                    self._read_statistics(known, body, drops)
                elif process := read_process(kind, body, self.order):
                    told.append((at, known.section, process))
            chosen = np.isin(heads[0], _PACKETS)
            records, heads = records[chosen], heads[:, chosen]
        kinds, sizes, interfaces, high, low, captured, lengths = heads
        starts: NDArray[np.int64] = records + _HEAD
        ends = records + sizes - 4
        simple = np.flatnonzero(kinds == SIMPLE_PACKET)
        lost = None  # before each packet, by obsolete blocks
        if not (kinds == ENHANCED_PACKET).all():
            # Half as wide in the obsolete block; the other half counts drops.
            halves = interfaces & 0xFFFF, interfaces >> 16
            half, lost = halves if self.order == "<" else halves[::-1]
            lost = np.where((kinds == PACKET) & (lost != _UNKNOWN), lost, 0)
            wire, interfaces = interfaces, np.where(kinds == PACKET, half, interfaces)
            interfaces[simple] = 0
        sections, rows = known.find(records, interfaces)
        if len(simple):
            captured, lengths = captured.copy(), lengths.copy()
            starts[simple] -= _HEAD - _SIMPLE_HEAD
            lengths[simple] = wire[simple]
            limits = np.array([one.snaplen or LONGEST for one in known.table] + [LONGEST])
            captured[simple] = np.minimum(wire[simple], limits[rows[simple]])
        # A packet that claims more than its block has is given as far as the block goes.
        captured = np.minimum(captured, ends - starts)
        ticks = high.astype(np.uint64) << np.uint64(32) | low
        links, times_ns = _links_and_times(known.table, rows, ticks)
        times_ns[simple] = 0
        options_at = starts + ((captured + 3) & ~3)
        options_at[simple] = ends[simple]
        found = PacketOptions(data, self.order, options_at, ends)
        said = Said.of(found, len(records))
        if said.drops or (lost is not None and lost.any()):
            # Whatever number an interface has that was never described, it is none.
            named = np.where(rows < len(known.table), interfaces, -1)
            for which, places in said.drops:
                drops.of_packets(sections[which], named[which], *found.u64(places))
            if lost is not None:
                drops.of_packets(sections, named, np.zeros_like(sections), lost.astype(np.int64))
        whose = self.processes.of_packets(said, records, times_ns, sections, told)
        lengths = np.maximum(captured, lengths)
        packets = Packets(data, starts, captured, lengths, times_ns, links, *whose)
        return Taken(packets, self._behind(known, told), drops.told(self.section))

    def _behind(self, known: Interfaces, told: Sequence[Told]) -> "PcapngLayout":
        """The layout behind what was told in a stretch."""
        if not told and len(known.table) == len(self.interfaces) and not known.section:
            return self
        processes = self.processes if not known.section else Processes()
        latest = (process for _, section, process in told if section == known.section)
        return replace(
            self,
            interfaces=known.latest,
            section=self.section + known.section,
            processes=processes.with_blocks(latest),
        )

    def change(
        self, data: NDArray[np.uint8], at: int, base: int = 0
    ) -> "tuple[PcapngLayout, int] | None":
        """As in `Layout`; sections and interfaces that follow one another are read in one go."""
        layout, interfaces, start = self, [*self.interfaces], at
        while at + _FRAME <= len(data):
            if _WORD_OF[layout.order](data.data, at)[0] not in _CHANGES:
                break
            order, kind, body = layout._block(data, at, base)
            if body is None:
                break
            if kind == SECTION:
                layout, interfaces = layout._section(order, body, base + at), []
            elif len(body) < 8 or len(interfaces) >= _MOST_INTERFACES:
                raise self._error(base + at, "an interface that can't be read")
            else:
                interfaces.append(read_interface(body, order))
            at += len(body) + _FRAME
        return (replace(layout, interfaces=tuple(interfaces)), at) if at > start else None

    def guess(self, data: NDArray[np.uint8], start: int, stop: int) -> int:
        places = (self._find(data, start, stop, kind) for kind in _PACKETS)
        return next((place for place in places if place >= 0), -1)

    def _guess(self, data: NDArray[np.uint8], start: int, stop: int, near: int) -> int:
        """The same, knowing that a block begins at `near`: others of its kind are looked for."""
        (kind,) = _WORD_OF[self.order](data.data, near)
        return self._find(data, start, stop, kind if kind in _PACKETS else ENHANCED_PACKET, near)

    def _find(
        self, data: NDArray[np.uint8], start: int, stop: int, kind: int, near: int | None = None
    ) -> int:
        view = data.data
        pattern = re.compile(re.escape(kind.to_bytes(4, "little" if self.order == "<" else "big")))
        matches = pattern.finditer(view, start, min(len(view), stop + 3))
        for match in islice(matches, _CANDIDATES):
            at = match.start()
            # Blocks begin at multiples of four from one another.
            if (near is None or not (at - near) & 3) and self._looks_right(view, at):
                return at
        return -1

    def _looks_right(self, view: memoryview, at: int) -> bool:
        """Three blocks, each where the one before it says, with the same length at either end."""
        pair, word = _PAIR_OF[self.order], _WORD_OF[self.order]
        for seen in range(3):
            if at + _FRAME > len(view):
                return seen > 0
            kind, size = pair(view, at)
            if size & 3 or not _SHORTEST.get(kind, _FRAME) <= size <= LONGEST:
                return False
            at += size
            if at > len(view):
                return seen > 0
            if word(view, at - 4) != (size,):
                return False
        return True

    def _heads(self, data: NDArray[np.uint8], records: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The first words of the blocks, (7, n)."""
        heads = np.zeros(len(records), _ROW)
        # A block can be shorter; then those at the end of the data can't be read in whole rows.
        fits = int(np.searchsorted(records, len(data) - _HEAD, "right"))
        heads[:fits] = _rows(data, _ROW)[records[:fits]]
        for index in range(fits, len(records)):
            heads[index] = data[records[index] :].tobytes().ljust(_HEAD, b"\0")
        words: NDArray[np.uint32] = heads.view(self.order + "u4").reshape(-1, 7)
        return words.T

    def _others(
        self, data: NDArray[np.uint8], records: NDArray[np.int64], heads: NDArray[np.uint32]
    ) -> Iterator[tuple[int, int, memoryview]]:
        """Offset, kind and body of the records that are no packets."""
        for index in np.flatnonzero(~np.isin(heads[0], _PACKETS)).tolist():
            at, size = int(records[index]), int(heads[1, index])
            yield at, int(heads[0, index]), data.data[at + 8 : at + size - 4]

    def _block(
        self, data: NDArray[np.uint8], at: int, base: int
    ) -> tuple[str, int, memoryview | None]:
        """Byte order, kind and body of a block; no body where it is not whole in the data."""
        view, order = data.data, self.order
        if view[at : at + 4] == _SECTION_MAGIC:
            if (magic := bytes(view[at + 8 : at + 12])) not in _ORDERS:
                raise self._error(base + at, "a section without a byte order")
            order = _ORDERS[magic]
        kind, size = _PAIR_OF[order](view, at)
        if size & 3 or not _FRAME <= size <= LONGEST:
            raise self._error(base + at, f"a block of {size} bytes, which can't be")
        if at + size > len(view):
            return order, kind, None
        if _WORD_OF[order](view, at + size - 4) != (size,):
            raise self._error(base + at, "a block with another length at its end than in front")
        return order, kind, view[at + 8 : at + size - 4]

    def _section(self, order: str, body: memoryview, offset: int) -> "PcapngLayout":
        if len(body) < 16:
            raise self._error(offset, "a section that can't be read")
        major, minor = Struct(order + "HH").unpack_from(body, 4)
        if major != 1:
            raise self._error(offset, f"pcapng version {major}.{minor} is not known")
        swaps = self.swaps + (order != self.order and self.section > 0)
        if swaps > _MOST_SWAPS:
            raise self._error(offset, "a section that changes the byte order once more")
        return PcapngLayout(self.name, order, section=self.section + 1, swaps=swaps)

    def _read_statistics(self, known: Interfaces, body: memoryview, drops: Collected) -> None:
        if len(body) < 12:
            return
        (interface,) = _WORD_OF[self.order](body)
        counts = [
            Struct(self.order + "Q").unpack(value)[0]
            for code, value in options(body, self.order, 12, len(body))
            if code in _DROPS and len(value) == 8
        ]
        if counts and interface < known.count:  # both count from the beginning of the capture
            drops.of_statistics(known.section, interface, sum(counts))

    def _error(self, offset: int, reason: str) -> CaptureFileError:
        return CaptureFileError(self.name, offset, reason)


def _links_and_times(
    table: Sequence[Interface], rows: NDArray[np.int64], ticks: NDArray[np.uint64]
) -> tuple[int | NDArray[np.uint16], NDArray[np.int64]]:
    """rows: of the table, one behind its end for packets whose interface was never described."""
    first = int(rows[0]) if len(rows) else len(table)
    if first < len(table) and (rows == first).all():
        link, _, divide, units, offset_ns = table[first]
        return link, nanoseconds(ticks, divide, units, offset_ns)
    whole = (*table, Interface(UNKNOWN_LINK, 0, 1, 1_000_000, 0))
    link_of, divide_of, units_of = (
        np.array([interface[column] for interface in whole], np.uint64) for column in (0, 2, 3)
    )
    offset_of = np.array([interface.offset_ns for interface in whole], np.int64)
    times_ns = nanoseconds(ticks, divide_of[rows], units_of[rows], offset_of[rows])
    return link_of.astype(np.uint16)[rows], times_ns


def _count(kinds: NDArray[np.uint32], before: int) -> NDArray[np.int64]:
    """How many interfaces the section of each block has up to it; before: ahead of the first."""
    count = before + np.cumsum(kinds == INTERFACE)
    earlier: NDArray[np.int64] = np.maximum.accumulate(np.where(kinds == SECTION, count, 0))
    return count - earlier


def _form(order: str) -> Form:
    return Form(order, field=4, added=0, header=_FRAME, shortest=_FRAME, longest=LONGEST)


def _rows(data: NDArray[np.uint8], row: np.dtype[np.void]) -> NDArray[np.void]:
    """A row at each byte, overlapping: those wanted are then gathered in one go."""
    return np.ndarray((max(0, len(data) - row.itemsize + 1),), row, data, 0, (1,))
