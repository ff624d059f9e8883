"""Captures as the network may make them: any cutting, order, copies, losses, fragments. What
`streams` gives is compared with one dictionary a direction that keeps the first copy of each byte.

Whether the file is read at once or a packet at a time makes no difference. So that it need not,
the ends acknowledge only what can't be captured any more.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpus import Case, contents
from helpers.packets import ACK, C, Captured, S, Talk, ethernet, fragments_of_ipv4
from streamtap import ordered
from streamtap.capture.reader import Single
from streamtap.model import Chunk, Direction, Gap, Overlap

LONGEST = 300  # bytes of a direction; less than the reassembler remembers
STRETCHES = (64, 500, 1 << 20)  # bytes of the file at a time; the first is a packet at a time


class Piece(NamedTuple):
    """A segment as it is captured. other: its bytes are not those that were sent at first."""

    direction: Direction
    start: int
    end: int
    other: bool
    fragmented: bool


class Exchange(NamedTuple):
    """What is sent, and the segments of it in the order in which they were captured."""

    isn: tuple[int, int]
    lengths: tuple[int, int]
    pieces: list[Piece]


def text(direction: Direction, start: int, end: int, *, other: bool = False) -> bytes:
    """The bytes of a direction: each tells its place."""
    base = (97 if direction is C else 65) + other
    return bytes(base + at * 7 % 25 for at in range(start, end))


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    numbers = st.sampled_from((0, 1000, (1 << 31) - 50, (1 << 32) - 150, (1 << 32) - 1))
    lengths = draw(st.tuples(*[st.integers(1, LONGEST)] * 2))
    # What comes in fragments is taken in behind the rest of its stretch: not always the first.
    in_fragments = draw(st.booleans())
    placed: list[tuple[float, Piece]] = []
    for direction, length in zip((C, S), lengths, strict=True):
        cuts = draw(st.sets(st.integers(1, LONGEST), max_size=8))
        edges = [0, *sorted(cut for cut in cuts if cut < length), length]
        ranges = list(pairwise(edges))
        for number, (start, end) in enumerate(ranges):
            lost = draw(st.integers(0, 7)) == 7
            late = draw(st.sampled_from((0.0, 0.0, 0.0, 1.5, 4.0)))
            fragmented = in_fragments and draw(st.booleans())
            if not lost:
                placed.append((number + late, Piece(direction, start, end, False, fragmented)))
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, length - 1))
            end = draw(st.integers(start + 1, length))
            other = not in_fragments and draw(st.booleans())
            when = draw(st.floats(0, len(ranges) + 2))
            placed.append((when, Piece(direction, start, end, other, False)))
    placed.sort(key=lambda entry: entry[0])
    return Exchange(draw(st.tuples(numbers, numbers)), lengths, [piece for _, piece in placed])


def settled(exchange: Exchange, count: int, direction: Direction) -> int:
    """How much of a direction was captured by the first pieces, or never will be."""
    seen, later = (
        {
            at
            for piece in pieces
            if piece.direction is direction
            for at in range(piece.start, piece.end)
        }
        for pieces in (exchange.pieces[:count], exchange.pieces[count:])
    )
    sent = max((at + 1 for at in seen), default=0)
    return next((at for at in range(sent) if at in later), sent)


def frames(exchange: Exchange) -> Iterator[Captured]:
    talk = Talk(isn=exchange.isn)
    yield from map(ethernet, talk.opening())
    for count, piece in enumerate(exchange.pieces, 1):
        direction = piece.direction
        data = text(direction, piece.start, piece.end, other=piece.other)
        ack = settled(exchange, count - 1, direction.opposite)
        packet = talk.packet(direction, piece.start, data, ack=ack)
        if piece.fragmented:
            parts = fragments_of_ipv4(packet, 8, 16, identification=count)
            yield from map(ethernet, (parts[2], parts[0], parts[1]))
        else:
            yield ethernet(packet)
        ack = settled(exchange, count, direction)
        other = exchange.lengths[direction.opposite]
        yield ethernet(talk.packet(direction.opposite, other, flags=ACK, ack=ack))
    yield from map(ethernet, talk.closing(*exchange.lengths))


def expected(exchange: Exchange) -> list[dict[int, int | None]]:
    """The byte at each place, None where none was captured."""
    kept: list[dict[int, int | None]] = [{}, {}]
    for direction, start, end, other, _ in exchange.pieces:
        for at, byte in enumerate(text(direction, start, end, other=other), start):
            kept[direction].setdefault(at, byte)
    for direction in Direction:
        for at in range(exchange.lengths[direction]):
            kept[direction].setdefault(at, None)
    return kept


@given(exchanges(), st.sampled_from(STRETCHES))
@settings(deadline=None)
def test_streams_are_the_first_copies_in_order(exchange: Exchange, stretch: int) -> None:
    case = Case("any-order", "", list(frames(exchange)), [])
    told: list[dict[int, int | None]] = [{}, {}]
    overlaps = 0
    with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
        Path(file.name).write_bytes(contents(case))
        with mock.patch.object(ordered, "Single", partial(Single, stretch=stretch)):
            parts = list(ordered.streams(file.name))
    for _, direction, item in parts:
        if isinstance(item, Chunk):
            assert item.data is not None
            told[direction] |= dict(enumerate(item.data, item.offset))
        elif isinstance(item, Gap):
            told[direction] |= dict.fromkeys(range(item.offset, item.offset + item.length))
        overlaps += isinstance(item, Overlap)
    assert len({part.flow.flow_id for part in parts}) == 1
    assert told == expected(exchange)
    if not any(piece.other for piece in exchange.pieces):
        assert not overlaps
