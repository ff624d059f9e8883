"""Segments of one direction of one flow -> chunks and gaps, in stream order.

Nearly every segment begins where the last one ended: it becomes one `Chunk` around the same
bytes, and nothing is copied. The rest goes the slow way:

- What was given already is a duplicate, and compared with what is remembered of it.
- What lies behind a hole is copied and held, sorted and without overlaps, until the hole fills.
- A hole is given up, as a `Gap`, when its bytes cannot come any more: the source says that it lost
  segments, the peer has acknowledged what lies after it, or the stream ends; or when too much
  waits behind it. Bytes that come for it later are duplicates.

An acknowledgement alone moves nothing: only data behind a hole, or the end, turns the hole into a
gap. So it does no harm when one overtakes the data it is for, and the number that stands for a
FIN is never taken for a byte.
"""

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter

from streamtap.model import Chunk, Gap, Limit, Overlap, Segment, StreamItem
from streamtap.streams.piece import Piece, boundaries, cost_of
from streamtap.streams.pool import Pool
from streamtap.streams.seqnum import SPACE, advance, unwrap

# Bytes of memory that one direction may hold. What is in flight comes behind a hole: 6 MB of a peer
# 100 ms away at 500 Mbit/s, or on loopback all that is sent while one processor is late.
HOLD = 8 << 20
WINDOW = 1 << 30  # no TCP window is larger (RFC 7323 §2.3): farther data is not of this stream
RANGES = 16  # missing ranges that are listed; all are counted

_MASK = SPACE - 1
_start = itemgetter(0)

# Most streams have no hole: all share these until there is one, for lists cost time to make and,
# as the collector looks at them, to have.
_NO_RANGES: list[tuple[int, int]] = []
_NO_PIECES: list[Piece] = []


class Reassembler:
    """Puts the segments of one direction into order.

    Chunks and gaps tile the stream from the starting offset: each begins where the one before it
    ended. The memory held never passes `limit`. Bytes that were held carry the time at which
    they could be given, so that times never go back along the stream.

    offset: of the next byte; everything below it has been given.
    counted: bytes that the policy let be counted, not copied.
    missing, missing_ranges: bytes in gaps of every other cause; the first ranges as (offset,
        length), joined where they touch, at most `RANGES`.
    duplicates: bytes that came again, or for a gap that was given up.
    overlaps: how often they came with other content, as far as that can be known.
    ignored: bytes too far from the stream to belong to it, or held past its known end.
    beyond: bytes of the stream past the kernel's total, known after `end`.
    held: bytes of memory in use for what waits behind a hole.
    """

    __slots__ = (
        "_acked",
        "_begin",
        "_held",
        "_limit",
        "_lost",
        "_origin",
        "_pool",
        "_recent",
        "_sequence",
        "_unexplained",
        "beyond",
        "counted",
        "duplicates",
        "held",
        "ignored",
        "missing",
        "missing_ranges",
        "offset",
        "overlaps",
    )

    def __init__(
        self, sequence: int | None, offset: int, pool: Pool | None = None, *, limit: int = HOLD
    ) -> None:
        """sequence: number of the byte at `offset`; None lets the first segment decide.
        pool: that of the other directions and flows; None for one of its own."""
        self.offset = offset
        self.counted = 0
        self.missing = 0
        self.missing_ranges = _NO_RANGES
        self.duplicates = 0
        self.overlaps = 0
        self.ignored = 0
        self.beyond = 0
        self.held = 0
        self._begin = offset
        self._limit = limit
        self._pool = Pool() if pool is None else pool
        self._pool.share(1)
        self._sequence = sequence  # of the byte at `offset`
        self._origin = 0 if sequence is None else advance(sequence, -offset)
        self._acked = offset  # everything below it has reached the peer
        self._lost = 0
        self._unexplained = False  # segments were lost, and no hole has shown where
        self._recent: bytes | bytearray = b""  # the bytes that end at `offset`
        self._held = _NO_PIECES

    @property
    def delivered(self) -> int:
        """Bytes given in chunks."""
        return self.offset - self._begin - self.counted - self.missing

    def push(self, segment: Segment) -> Sequence[StreamItem]:
        """What can be given in order now that `segment` has come.

        A chunk may share the segment's memory: it is valid as long as the segment's data is.
        """
        data = segment.data
        if (
            segment.sequence != self._sequence
            or self._held
            or segment.lost != self._lost
            or not data
        ):
            return self._push_unusual(segment)
        start, length = self.offset, len(data)
        self.offset = end = start + length
        self._sequence = segment.sequence + length & _MASK
        most = self._pool.remembered
        # As in `_remember`, for the length that most have.
        if type(data) is bytes and most <= length <= 4 * most:
            self._recent = data
        else:
            self._remember(data)
        if segment.ends:
            return (Chunk(start, data, [start + at for at in segment.ends], segment.times_ns),)
        return (Chunk(start, data, (end,), (segment.time_ns,)),)

    def acknowledge(self, number: int, time_ns: int) -> Sequence[StreamItem]:
        """The peer has every byte before the sequence number `number`.

        Give the segments that were seen before an acknowledgement first: what is held behind
        a hole that it covers is given at once.
        """
        if number == self._sequence or self._sequence is None:
            return ()
        near = self._acked if self._acked > self.offset else self.offset
        acked = unwrap(number, near, self._origin)
        if not near < acked <= near + WINDOW:
            return ()
        self._acked = acked
        if not self._held:
            return ()
        out: list[StreamItem] = []
        self._drain(time_ns, out)
        return out

    def end(
        self,
        time_ns: int,
        total: int | None = None,
        lost: int | None = None,
        fin: int | None = None,
    ) -> Sequence[StreamItem]:
        """Everything that is left; the holes in it, and the bytes that never came, are gaps. To be
        asked for once.

        lost: the final count of segments that the source could not keep, if it is known.
        total: the kernel's count of the bytes of this direction, from the first byte of the
            connection. What is held past it was refused by TCP and is not given.
        fin: sequence number behind the last byte, which tells the same where there is no count.
        """
        out: list[StreamItem] = []
        if total is None and fin is not None and self._sequence is not None:
            told = unwrap(fin, self.offset, self._origin)
            total = told if told >= self.offset else None
        if lost is not None and lost != self._lost:
            self._unexplained = True
        for start, end, data, _, _ in self._held:
            if total is not None and end > total:
                self.ignored += end - max(start, total)
                end = total
                if start >= end:
                    continue
                data = None if data is None else data[: end - start]
            if start > self.offset:
                self._give_up(start, self._cause(), time_ns, out)
            self._give(start, end, data, (end,), (time_ns,), out)
        self._held.clear()
        self._hold(-self.held)
        self._pool.share(-1)
        # Without a total, the last number acknowledged may stand for the FIN, not for a byte.
        last = self._acked - 1 if total is None else total
        if last > self.offset:
            self._give_up(last, self._cause(), time_ns, out)
        if total is not None:
            self.beyond = self.offset - total if self.offset > total else 0
        return out

    def _push_unusual(self, segment: Segment) -> Sequence[StreamItem]:
        length = segment.counted or len(segment.data)
        if not length:
            return ()
        if (
            segment.sequence == self._sequence
            and not self._held
            and segment.counted
            and segment.lost == self._lost
        ):
            return self._count(segment)
        if self._sequence is None:
            self._sequence = segment.sequence
            self._origin = advance(segment.sequence, -self.offset)
        near = max(self.offset, self._acked)
        # Told of a loss, any jump forward is believed: a fast flow may lose gigabytes.
        lost = segment.lost != self._lost
        ahead = SPACE - WINDOW if lost else WINDOW
        start = unwrap(segment.sequence, near, self._origin, WINDOW if lost else SPACE // 2)
        out: list[StreamItem] = []
        if not -WINDOW <= start - near <= ahead:
            if not self.ignored:
                out.append(Limit("window", WINDOW, segment.time_ns))
            self.ignored += length
            return out
        self._lost = segment.lost
        missing = self.missing
        for first, last in self._fresh(segment, start, start + length, out):
            self._place(segment, start, first, last, lost, out)
        if lost and self.missing == missing:
            self._unexplained = True
        return out

    def _count(self, segment: Segment) -> Sequence[StreamItem]:
        """The bytes that come next were counted."""
        start = self.offset
        self.offset = end = start + segment.counted
        self._sequence = advance(segment.sequence, segment.counted)
        self.counted += segment.counted
        self._recent = b""
        if segment.ends:
            return (Chunk(start, None, [start + at for at in segment.ends], segment.times_ns),)
        return (Chunk(start, None, (end,), (segment.time_ns,)),)

    def _fresh(
        self, segment: Segment, start: int, end: int, out: list[StreamItem]
    ) -> list[tuple[int, int]]:
        """The ranges of `start` … `end` that have neither been given nor are held."""
        begin = start
        if start < self.offset:
            self.duplicates += min(end, self.offset) - start
            # One byte just before the next one is a keep-alive; its content means nothing.
            if end - start > 1 or end < self.offset:
                remembered = self.offset - len(self._recent)
                self._compare(segment, start, remembered, self._recent, out)
            start = self.offset
        fresh = []
        index = max(bisect_right(self._held, start, key=_start) - 1, 0)
        while start < end and index < len(self._held):
            first, last, data, _, _ = self._held[index]
            if first >= end:
                break
            if last > start:
                if first > start:
                    fresh.append((start, first))
                self.duplicates += min(end, last) - max(start, first)
                if data is not None:
                    self._compare(segment, begin, first, data, out)
                start = last
            index += 1
        if start < end:
            fresh.append((start, end))
        return fresh

    def _compare(
        self,
        segment: Segment,
        start: int,
        other: int,
        known: bytes | bytearray,
        out: list[StreamItem],
    ) -> None:
        """Report where the segment at `start` differs from `known`, the bytes at `other`."""
        first = max(start, other)
        last = min(start + len(segment.data), other + len(known))
        if first >= last:
            return
        ours = known[first - other : last - other]
        theirs = segment.data[first - start : last - start]
        if ours == theirs:
            return
        # As one big number, the highest and lowest bits that differ tell the bytes.
        bits = int.from_bytes(ours, "big") ^ int.from_bytes(theirs, "big")
        above = (bits.bit_length() - 1) // 8
        below = ((bits & -bits).bit_length() - 1) // 8
        self.overlaps += 1
        out.append(Overlap(last - 1 - above, above - below + 1, segment.time_ns))

    def _place(
        self,
        segment: Segment,
        start: int,
        first: int,
        last: int,
        lost: bool,
        out: list[StreamItem],
    ) -> None:
        """Give or hold the bytes `first` … `last` of the segment at `start`.

        They overlap nothing that was given or is held.
        """
        data = None if segment.counted else segment.data[first - start : last - start]
        ends, times = boundaries(segment, start, first, last)
        cost = cost_of(data, ends)
        while first > self.offset:
            if lost:
                cause = "lost"
            elif first <= self._acked:
                cause = self._cause()
            elif self._is_full(cost):
                cause = "limit"
            else:
                break
            hole_end = min(first, self._held[0][0]) if self._held else first
            self._give_up(hole_end, cause, segment.time_ns, out)
            self._drain(segment.time_ns, out)
        if first == self.offset:
            self._give(first, last, data, ends, times, out)
            self._drain(segment.time_ns, out)
            return
        piece = Piece(first, last, None if data is None else bytes(data), ends, times)
        if not self._held:
            self._held = []
        self._held.insert(bisect_right(self._held, first, key=_start), piece)
        self._hold(cost)

    def _is_full(self, cost: int) -> bool:
        """There is no room for a piece that costs so much."""
        held = self.held + cost
        return held > self._limit or self._pool.refuses(held, cost)

    def _hold(self, cost: int) -> None:
        self.held += cost
        self._pool.held += cost

    def _drain(self, time_ns: int, out: list[StreamItem]) -> None:
        """Give what is held up to the first hole that may yet be filled."""
        count = 0
        for start, end, data, ends, times in self._held:
            if start > self.offset:
                if start > self._acked:
                    break
                self._give_up(start, self._cause(), time_ns, out)
            # Given when the hole was filled, but for what had come by then only in the same batch.
            times = [max(when, time_ns) for when in times]
            self._give(start, end, data, ends, times, out)
            self._hold(-cost_of(data, ends))
            count += 1
        del self._held[:count]

    def _give(
        self,
        start: int,
        end: int,
        data: bytes | memoryview | None,
        ends: Sequence[int],
        times_ns: Sequence[int],
        out: list[StreamItem],
    ) -> None:
        if data is None:
            self.counted += end - start
            self._recent = b""
        else:
            self._remember(data)
        out.append(Chunk(start, data, ends, times_ns))
        self._move_to(end)

    def _remember(self, data: bytes | memoryview) -> None:
        most = self._pool.remembered
        if len(data) >= most:
            # Of bytes that are not much more, no copy is made.
            if type(data) is bytes and len(data) <= 4 * most:
                self._recent = data
            else:
                self._recent = bytes(data[-most:])
            return
        recent = self._recent
        if not isinstance(recent, bytearray):
            recent = self._recent = bytearray(recent[-most:])
        recent += data
        if len(recent) > 2 * most:  # rarely: the cut costs more than the copy
            del recent[:-most]

    def _give_up(self, end: int, cause: str, time_ns: int, out: list[StreamItem]) -> None:
        """The bytes up to `end` will not come."""
        length = end - self.offset
        out.append(Gap(self.offset, length, cause, time_ns))
        self.missing += length
        ranges = self.missing_ranges
        if ranges and sum(ranges[-1]) == self.offset:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        elif not ranges:
            self.missing_ranges = [(self.offset, length)]
        elif len(ranges) < RANGES:
            ranges.append((self.offset, length))
        self._recent = b""
        self._move_to(end)

    def _move_to(self, offset: int) -> None:
        self.offset = offset
        self._sequence = advance(self._origin, offset)

    def _cause(self) -> str:
        """Why a hole that nothing else explains is there."""
        if self._unexplained:
            self._unexplained = False
            return "lost"
        return "unseen"
