import random
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.reference import Reference
from streamtap.model import Chunk, Direction, Gap, Limit, Overlap, Segment, StreamItem
from streamtap.streams import Pool, Reassembler
from streamtap.streams.piece import BOUNDARY_COST, PIECE_COST
from streamtap.streams.pool import HOLD_OWN, HOLD_OWN_ALL, REMEMBERED, REMEMBERED_ALL
from streamtap.streams.reassembler import RANGES, WINDOW

FIRST = 2**32 - 60  # sequence number of the first byte: every longer stream wraps


def segment(
    offset: int,
    data: bytes | memoryview = b"",
    *,
    time_ns: int = 1,
    ends: Sequence[int] = (),
    times_ns: Sequence[int] = (),
    counted: int = 0,
    lost: int = 0,
    first: int = FIRST,
) -> Segment:
    return Segment(
        1,
        Direction.TO_SERVER,
        (first + offset) % 2**32,
        data,
        time_ns,
        ends,
        times_ns,
        counted,
        None,
        lost,
    )


def number(offset: int) -> int:
    return (FIRST + offset) % 2**32


def spell(items: Iterable[StreamItem]) -> list[int | str]:
    """An entry a byte: the byte itself, or the cause of the gap that it lies in."""
    out: list[int | str] = []
    for item in items:
        if isinstance(item, Chunk) and item.data is None:
            out += ["policy"] * (item.ends[-1] - item.offset)
        elif isinstance(item, Chunk):
            out += bytes(item.data or b"")
        elif isinstance(item, Gap):
            out += [item.cause] * item.length
    return out


def check_tiling(items: Iterable[StreamItem], begin: int) -> int:
    """Each chunk and gap begins where the one before it ended; boundaries fit. Gives the end."""
    latest = 0
    for item in items:
        if isinstance(item, Chunk):
            assert item.offset == begin
            length = item.ends[-1] - item.offset if item.data is None else len(item.data)
            assert length > 0
            begin += length
            assert list(item.ends) == sorted(set(item.ends))
            assert item.offset < item.ends[0]
            assert item.ends[-1] == begin
            assert len(item.ends) == len(item.times_ns)
            assert latest <= item.times_ns[0]
            assert list(item.times_ns) == sorted(item.times_ns)
            latest = item.times_ns[-1]
        elif isinstance(item, Gap):
            assert item.offset == begin
            assert item.length > 0
            begin += item.length
    return begin


# --- in order ------------------------------------------------------------------------------


def test_a_segment_in_order_is_one_chunk_around_the_same_bytes() -> None:
    view = memoryview(bytearray(b"hello"))
    (chunk,) = Reassembler(FIRST, 0).push(segment(0, view, time_ns=7))
    assert isinstance(chunk, Chunk)
    assert chunk.data is view
    assert (chunk.offset, list(chunk.ends), list(chunk.times_ns)) == (0, [5], [7])


def test_joined_segments_are_one_chunk_that_keeps_their_boundaries_and_times() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"ab"))
    (chunk,) = reassembler.push(segment(2, b"cdefg", ends=[2, 5], times_ns=[8, 9], time_ns=9))
    assert isinstance(chunk, Chunk)
    assert (list(chunk.ends), list(chunk.times_ns)) == ([4, 7], [8, 9])


def test_without_a_known_number_the_first_segment_decides() -> None:
    reassembler = Reassembler(None, 0)
    assert reassembler.acknowledge(77, 1) == ()
    (chunk,) = reassembler.push(segment(500, b"abc"))
    assert isinstance(chunk, Chunk)
    assert chunk.offset == 0


def test_a_midstream_direction_goes_on_from_its_offset() -> None:
    reassembler = Reassembler(number(1000), 1000)
    (chunk,) = reassembler.push(segment(1000, b"abc"))
    assert isinstance(chunk, Chunk)
    assert chunk.offset == 1000
    assert reassembler.delivered == 3
    assert reassembler.push(segment(990, b"0123456789")) == []


def test_a_segment_without_payload_gives_nothing() -> None:
    reassembler = Reassembler(FIRST, 0)
    assert not reassembler.push(segment(0))
    assert not reassembler.push(segment(-1))
    assert reassembler.offset == 0


# --- holes ---------------------------------------------------------------------------------


def test_out_of_order_segments_wait_and_are_given_when_the_hole_is_filled() -> None:
    reassembler = Reassembler(FIRST, 0)
    buffer = bytearray(b"world")
    assert not reassembler.push(segment(5, memoryview(buffer), time_ns=1))
    buffer[:] = b"XXXXX"  # a view is valid only during the call
    items = reassembler.push(segment(0, b"hello", time_ns=2))
    assert bytes(spell(items)) == b"helloworld"  # type: ignore[arg-type]
    assert check_tiling(items, 0) == 10
    assert reassembler.held == 0


def test_segments_that_came_after_the_hole_was_filled_keep_their_times() -> None:
    """A source joins what it sees in a batch: of a run that was held, the last segments may be
    newer than what fills the hole."""
    stream = Reassembler(FIRST, 0)
    assert not stream.push(
        segment(5, b"bcdef", time_ns=9, ends=[1, 2, 3, 4, 5], times_ns=[2, 3, 5, 8, 9])
    )
    first, second = stream.push(segment(0, b"aaaaa", time_ns=4))
    assert (first, second) == (
        Chunk(0, b"aaaaa", (5,), (4,)),
        Chunk(5, b"bcdef", [6, 7, 8, 9, 10], [4, 4, 5, 8, 9]),
    )
    assert stream.held == 0


def test_what_is_held_counts_the_boundaries_of_its_segments() -> None:
    alone, joined = Reassembler(FIRST, 0), Reassembler(FIRST, 0)
    alone.push(segment(5, b"b" * 500))
    joined.push(segment(5, b"b" * 500, ends=range(1, 501), times_ns=range(500)))
    assert joined.held >= alone.held + 499 * BOUNDARY_COST


def test_held_bytes_carry_the_time_at_which_they_could_be_given() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(5, b"world", time_ns=1))
    first, second = reassembler.push(segment(0, b"hello", time_ns=2))
    assert isinstance(first, Chunk)
    assert isinstance(second, Chunk)
    assert (list(first.times_ns), list(second.times_ns)) == ([2], [2])


def test_a_hole_that_the_peer_acknowledged_is_unseen() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(5, b"world"))
    assert reassembler.acknowledge(number(3), 2) == []
    gap, chunk = reassembler.acknowledge(number(10), 3)
    assert gap == Gap(0, 5, "unseen", 3)
    assert isinstance(chunk, Chunk)
    assert chunk.data is not None
    assert (chunk.offset, bytes(chunk.data)) == (5, b"world")
    assert reassembler.missing_ranges == [(0, 5)]


def test_an_acknowledgement_of_just_the_hole_ends_it() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(5, b"world"))
    assert spell(reassembler.acknowledge(number(5), 2)) == ["unseen"] * 5 + list(b"world")


def test_acknowledgements_lead_across_gigabytes_that_were_never_seen() -> None:
    reassembler = Reassembler(FIRST, 0)
    for offset in range(0, 5 * WINDOW, WINDOW // 2):
        assert not reassembler.acknowledge(number(offset), 1)
    gap, chunk = reassembler.push(segment(offset, b"here", time_ns=2))
    assert gap == Gap(0, offset, "unseen", 2)
    assert isinstance(chunk, Chunk)
    assert chunk.offset == offset > 2**32


def test_data_behind_a_hole_that_was_acknowledged_before_is_given_at_once() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.acknowledge(number(10), 1)
    assert spell(reassembler.push(segment(5, b"world"))) == ["unseen"] * 5 + list(b"world")


def test_an_acknowledgement_that_overtakes_its_data_loses_nothing() -> None:
    reassembler = Reassembler(FIRST, 0)
    assert not reassembler.acknowledge(number(10), 1)
    items = [*reassembler.push(segment(0, b"hello")), *reassembler.push(segment(5, b"world"))]
    assert bytes(spell(items)) == b"helloworld"  # type: ignore[arg-type]


def test_the_acknowledged_fin_is_not_a_missing_byte() -> None:
    for total in (5, None):
        reassembler = Reassembler(FIRST, 0)
        reassembler.push(segment(0, b"hello"))
        assert not reassembler.acknowledge(number(6), 2)
        assert not reassembler.end(3, total)
        assert reassembler.missing == 0


def test_a_new_count_of_lost_segments_ends_the_hole_before_it_at_once() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"ab"))
    reassembler.push(segment(4, b"ef"))
    items = reassembler.push(segment(8, b"ij", lost=1))
    assert spell(items) == ["lost", "lost", *b"ef", "lost", "lost", *b"ij"]
    assert not reassembler.push(segment(12, b"mn", lost=1)), "the count is not new"


def test_a_loss_that_showed_no_hole_explains_the_next_one() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"ab", lost=1))
    reassembler.push(segment(4, b"ef", lost=1))
    reassembler.push(segment(8, b"ij", lost=1))
    assert spell(reassembler.end(5)) == ["lost", "lost", *b"ef", "unseen", "unseen", *b"ij"]


def test_a_loss_of_gigabytes_is_a_gap_and_the_stream_goes_on() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"ab"))
    gap, chunk = reassembler.push(segment(2 + 5 * 2**29, b"cd", lost=9))
    assert isinstance(gap, Gap)
    assert (gap.offset, gap.length, gap.cause) == (2, 5 * 2**29, "lost")
    assert isinstance(chunk, Chunk)
    assert reassembler.push(segment(4 + 5 * 2**29, b"ef", lost=9))


def test_bytes_that_come_for_a_gap_are_too_late() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(5, b"world", lost=1))
    assert not reassembler.push(segment(0, b"hello", lost=1))
    assert (reassembler.duplicates, reassembler.overlaps) == (5, 0)


def test_counted_ranges_are_chunks_without_data_and_not_missing() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"head"))
    given = reassembler.push(segment(4, counted=100_000, time_ns=3))
    assert list(given) == [Chunk(4, None, (100_004,), (3,))]
    assert not reassembler.push(segment(100_010, counted=10))
    assert spell(reassembler.push(segment(100_004, b"tail  "))) == [*b"tail  ", *["policy"] * 10]
    assert (reassembler.counted, reassembler.delivered, reassembler.missing) == (100_010, 10, 0)


def test_only_the_first_missing_ranges_are_listed_and_all_are_counted() -> None:
    reassembler = Reassembler(FIRST, 0)
    for index in range(2 * RANGES):
        reassembler.push(segment(10 * index + 5, b"01234", lost=index + 1))
    assert reassembler.missing == 2 * RANGES * 5
    assert reassembler.missing_ranges == [(10 * index, 5) for index in range(RANGES)]


# --- end -----------------------------------------------------------------------------------


def test_bytes_that_the_kernel_counted_and_never_came_are_a_trailing_gap() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"hello"))
    assert reassembler.end(9, 12) == [Gap(5, 7, "unseen", 9)]
    assert (reassembler.delivered, reassembler.missing, reassembler.beyond) == (5, 7, 0)


def test_a_direction_that_never_began_ends_with_everything_missing() -> None:
    assert Reassembler(None, 0).end(9, 12) == [Gap(0, 12, "unseen", 9)]
    assert not Reassembler(None, 0).end(9, 0)
    assert not Reassembler(None, 0).end(9)


def test_held_bytes_past_the_kernels_total_are_not_given() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(5, b"worldXXX"))
    reassembler.push(segment(20, b"YYY"))
    assert spell(reassembler.end(9, 10)) == ["unseen"] * 5 + list(b"world")
    assert reassembler.ignored == 6
    assert reassembler.beyond == 0


def test_bytes_given_past_the_kernels_total_are_counted_as_beyond() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"hello"))
    assert not reassembler.end(9, 3)
    assert (reassembler.beyond, reassembler.delivered) == (2, 5)


# --- duplicates and overlaps ---------------------------------------------------------------


def test_an_equal_retransmission_is_counted_and_gives_nothing() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"hello"))
    assert not reassembler.push(segment(0, memoryview(b"hello")))
    assert (reassembler.duplicates, reassembler.overlaps) == (5, 0)


def test_a_retransmission_cut_differently_gives_only_its_new_bytes() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"hello"))
    data = b"lo world"
    (chunk,) = reassembler.push(
        segment(3, data, ends=[1, 2, 4, 8], times_ns=[5, 6, 7, 8], time_ns=8)
    )
    assert isinstance(chunk, Chunk)
    assert chunk.data is not None
    assert (chunk.offset, bytes(chunk.data)) == (5, b" world")
    assert (list(chunk.ends), list(chunk.times_ns)) == ([7, 11], [7, 8])


def test_a_retransmission_with_other_content_is_reported_where_it_differs() -> None:
    for kind in (bytes, memoryview):
        reassembler = Reassembler(FIRST, 0)
        reassembler.push(segment(0, kind(b"pay alice 100")))
        reassembler.push(segment(13, kind(b" now")))
        items = reassembler.push(segment(0, kind(b"pay mallo 900"), time_ns=4))
        assert items == [Overlap(4, 7, 4)]
        assert reassembler.overlaps == 1


def test_held_bytes_are_compared_too_and_the_first_copy_wins() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(4, b"EFGH"))
    items = reassembler.push(segment(2, b"cdeFGHij", time_ns=4))
    assert items == [Overlap(4, 1, 4)]
    assert bytes(spell(reassembler.push(segment(0, b"ab")))) == b"abcdEFGHij"  # type: ignore[arg-type]


def test_a_large_chunk_is_remembered_by_its_last_bytes() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, bytes(100_000)))
    assert reassembler.push(segment(0, b"x" * 100_000)) == [
        Overlap(100_000 - REMEMBERED, REMEMBERED, 1)
    ]


def test_a_keep_alive_with_a_garbage_byte_is_no_overlap() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"hello"))
    assert not reassembler.push(segment(4, b"\0"))
    assert reassembler.overlaps == 0


# --- bounds --------------------------------------------------------------------------------


def test_data_out_of_any_window_is_counted_and_reported_once() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"hello"))
    assert reassembler.push(segment(WINDOW + 6, b"far", time_ns=2)) == [Limit("window", WINDOW, 2)]
    assert not reassembler.push(segment(WINDOW + 6, b"far"))
    assert not reassembler.push(segment(-WINDOW, b"far"))
    assert reassembler.ignored == 9
    assert spell(reassembler.push(segment(5, b"!"))) == [*b"!"]


def test_too_much_behind_a_hole_ends_the_hole_and_the_data_flows_on() -> None:
    reassembler = Reassembler(FIRST, 0, limit=4096)
    assert not reassembler.push(segment(10, b"x" * 2000))
    assert not reassembler.push(segment(2020, b"y" * 1000))
    items = reassembler.push(segment(3020, b"z" * 2000, time_ns=5))
    assert [item for item in items if isinstance(item, Gap)] == [Gap(0, 10, "limit", 5)]
    assert check_tiling(items, 0) == 2010
    assert reassembler.held <= 4096


def test_a_window_of_megabytes_behind_a_late_segment_costs_nothing() -> None:
    reassembler = Reassembler(FIRST, 0)
    size = 64 << 10
    for number in range(1, 100):
        assert not reassembler.push(segment(number * size, bytes(size)))
    items = reassembler.push(segment(0, bytes(size)))
    assert check_tiling(items, 0) == 100 * size
    assert reassembler.missing == reassembler.held == 0


def test_many_flows_with_holes_share_a_bound_and_each_has_a_little_of_its_own() -> None:
    pool = Pool(limit=1 << 20)
    flows = [Reassembler(FIRST, 0, pool) for _ in range(40)]
    for offset in range(1, 200_000, 1000):
        for flow in flows[:39]:
            flow.push(segment(offset, bytes(1000)))
    assert pool.held == sum(flow.held for flow in flows)
    assert pool.held <= (1 << 20) + 39 * HOLD_OWN
    latest = flows[39]
    assert not latest.push(segment(5, b"56789"))
    assert spell(latest.push(segment(0, b"01234"))) == [*b"0123456789"]
    for flow in flows:
        flow.end(0)
    assert pool.held == 0


def test_the_more_flows_there_are_the_less_each_remembers_and_has_of_its_own() -> None:
    pool = Pool(limit=0)
    count = 2 * REMEMBERED_ALL // REMEMBERED
    flows = [Reassembler(FIRST, 0, pool) for _ in range(count)]
    assert (pool.remembered, pool.own) == (REMEMBERED // 2, HOLD_OWN_ALL // count)
    one, data = flows[0], b"\1" * 128 * 80
    one.push(segment(0, data))
    for at in range(0, len(data), 128):  # what is remembered, and what is not
        one.push(segment(at, b"\0" * 128))
    assert one.overlaps == REMEMBERED // 2 // 128
    kept = PIECE_COST + 100
    for number in range(1, 20):
        one.push(segment(len(data) + 200 * number, bytes(100)))
        assert one.held <= max(pool.own, kept)
    for flow in flows:
        flow.end(0)
    assert (pool.remembered, pool.own) == (REMEMBERED, HOLD_OWN)


def test_a_segment_larger_than_the_limit_is_given_not_held() -> None:
    reassembler = Reassembler(FIRST, 0, limit=4096)
    items = reassembler.push(segment(10, b"x" * 10_000))
    assert spell(items) == ["limit"] * 10 + [*b"x" * 10_000]


def test_tiny_pieces_do_not_outgrow_the_limit() -> None:
    limit = 256 * 1024
    reassembler = Reassembler(FIRST, 0, limit=limit)
    offsets = list(range(1, 10_000, 2))
    random.Random(1).shuffle(offsets)
    segments = [segment(offset, b"x") for offset in offsets]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for one in segments:
            reassembler.push(one)
            assert reassembler.held <= limit
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < limit
    assert reassembler.missing > 0


def test_a_segment_across_thousands_of_held_pieces_is_handled_in_bounded_time() -> None:
    reassembler = Reassembler(FIRST, 0)
    for offset in range(1, 8000, 2):
        reassembler.push(segment(offset, b"x"))
    began = time.perf_counter()
    items = reassembler.push(segment(0, b"y" * 100_000))
    assert time.perf_counter() - began < 1
    assert check_tiling(items, 0) == 100_000
    assert reassembler.overlaps == 4000


# --- against the reference -----------------------------------------------------------------


class Step(NamedTuple):
    kind: str
    start: int
    length: int
    corrupt: bool
    counted: bool
    new_loss: bool
    cuts: tuple[int, ...]


LENGTH = 120
starts = st.integers(0, LENGTH)
steps = st.builds(
    Step,
    kind=st.sampled_from(["next", "next", "push", "push", "push", "ack"]),
    start=starts,
    length=st.integers(1, 40),
    corrupt=st.sampled_from([False, False, False, True]),
    counted=st.sampled_from([False, False, False, True]),
    new_loss=st.sampled_from([False] * 7 + [True]),
    cuts=st.lists(st.integers(1, 39), max_size=4, unique=True).map(
        lambda cuts: tuple(sorted(cuts))
    ),
)


@settings(max_examples=600, deadline=None)
@given(
    run=st.lists(steps, max_size=30),
    first=st.sampled_from([0, 5, 2**31 - 50, 2**32 - 60, 2**32 - 1]),
    begin=st.sampled_from([0, 30, 2**33 + 7]),
    total=st.one_of(st.none(), st.integers(0, LENGTH + 50)),
)
def test_any_segments_in_any_order_give_what_the_reference_gives(
    run: list[Step], first: int, begin: int, total: int | None
) -> None:
    truth = bytes(random.Random(3).randbytes(LENGTH + 50))
    reassembler = Reassembler((first + begin) % 2**32, begin)
    reference = Reference(begin)
    items: list[StreamItem] = []
    lost = 0
    for time_ns, step in enumerate(run, 1):
        start = reassembler.offset - begin if step.kind == "next" else step.start
        if start >= len(truth):
            continue
        if step.kind == "ack":
            items += reassembler.acknowledge((first + begin + start) % 2**32, time_ns)
            reference.acknowledge(begin + start)
        else:
            data = truth[start : start + step.length]
            if step.corrupt:
                data = bytes((data[0] ^ 1,)) + data[1:-1] + bytes((data[-1] ^ 128,))
            lost += step.new_loss
            ends = [cut for cut in step.cuts if cut < len(data)] + [len(data)]
            buffer = bytearray(data)
            items += [
                # as the owner does: a view is used up before the next call
                Chunk(
                    item.offset,
                    None if item.data is None else bytes(item.data),
                    item.ends,
                    item.times_ns,
                )
                if isinstance(item, Chunk)
                else item
                for item in reassembler.push(
                    segment(
                        begin + start,
                        b"" if step.counted else memoryview(buffer),
                        time_ns=time_ns,
                        ends=() if step.counted or len(ends) == 1 else ends,
                        times_ns=() if step.counted or len(ends) == 1 else [time_ns] * len(ends),
                        counted=len(data) if step.counted else 0,
                        lost=lost,
                        first=first,
                    )
                )
            ]
            buffer[:] = bytes(len(data))
            content: list[int | str] = ["policy"] * len(data) if step.counted else [*data]
            reference.push(begin + start, content, step.new_loss)
        assert spell(items) == reference.stream
    end = None if total is None else begin + total
    items += reassembler.end(len(run) + 1, end)
    reference.end(end)

    assert spell(items) == reference.stream
    assert check_tiling(items, begin) == reassembler.offset == reference.offset
    assert reassembler.held == 0
    causes = [entry for entry in reference.stream if isinstance(entry, str)]
    assert reassembler.counted == causes.count("policy")
    assert reassembler.missing == len(causes) - causes.count("policy")
    assert reassembler.delivered == len(reference.stream) - len(causes)
    if end is not None:
        assert reassembler.beyond == max(0, reassembler.offset - end)
        assert reassembler.offset >= end
    overlaps = [item for item in items if isinstance(item, Overlap)]
    assert len(overlaps) == reassembler.overlaps
    covered = {at for item in overlaps for at in range(item.offset, item.offset + item.length)}
    edges = {at for item in overlaps for at in (item.offset, item.offset + item.length - 1)}
    assert edges <= reference.differing <= covered


@settings(max_examples=200, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 4999), max_size=40, unique=True),
    seed=st.integers(0, 2**32),
    first=st.integers(0, 2**32 - 1),
)
def test_whatever_the_order_and_the_duplicates_all_bytes_come_once_and_without_gaps(
    cuts: list[int], seed: int, first: int
) -> None:
    chance = random.Random(seed)
    truth = chance.randbytes(5000)
    bounds = [0, *sorted(cuts), len(truth)]
    pieces = list(pairwise(bounds))
    pieces += [
        (start, min(start + chance.randrange(1, 600), len(truth)))
        for start in (chance.randrange(len(truth)) for _ in range(10))
    ]
    chance.shuffle(pieces)
    reassembler = Reassembler(first, 0)
    items: list[StreamItem] = []
    for start, end in pieces:
        items += reassembler.push(segment(start, truth[start:end], first=first))
    items += reassembler.end(2, len(truth))
    assert bytes(spell(items)) == truth  # type: ignore[arg-type]
    assert (reassembler.missing, reassembler.overlaps, reassembler.delivered) == (0, 0, 5000)


@settings(max_examples=200, deadline=None)
@given(
    run=st.lists(
        st.tuples(
            st.integers(0, 2**32 - 1),
            st.binary(max_size=50),
            st.sampled_from([0, 0, 0, 10, 2**33]),
            st.integers(0, 3),
            st.booleans(),
        ),
        max_size=40,
    ),
    total=st.one_of(st.none(), st.integers(0, 2**40)),
)
def test_no_numbers_raise_break_the_tiling_or_pass_the_limit(
    run: list[tuple[int, bytes, int, int, bool]], total: int | None
) -> None:
    reassembler = Reassembler(None, 0, limit=2048)
    items: list[StreamItem] = []
    for sequence, data, counted, lost, ack in run:
        if ack:
            items += reassembler.acknowledge(sequence, 1)
        else:
            items += reassembler.push(
                segment(sequence, b"" if counted else data, counted=counted, lost=lost, first=0)
            )
        assert reassembler.held <= 2048
    items += reassembler.end(1, total)
    assert check_tiling(items, 0) == reassembler.offset


def test_a_stream_longer_than_the_number_space_keeps_counting() -> None:
    reassembler = Reassembler(FIRST, 0)
    step = 2**29
    for index in range(20):
        assert reassembler.push(segment(index * step, counted=step))
    (chunk,) = reassembler.push(segment(20 * step, b"end"))
    assert isinstance(chunk, Chunk)
    assert chunk.offset == 20 * step


@pytest.mark.parametrize("size", [100, 60_000])
def test_a_segment_in_order_costs_microseconds_at_most(size: int) -> None:
    """A generous bound: it catches a copy of the payload or a search, not a slow machine."""
    reassembler = Reassembler(FIRST, 0)
    segments = [segment(index * size, memoryview(bytes(size))) for index in range(2000)]
    best = 1.0
    for _ in range(3):
        reassembler = Reassembler(FIRST, 0)
        began = time.perf_counter()
        for one in segments:
            reassembler.push(one)
        best = min(best, time.perf_counter() - began)
    assert best / len(segments) < 10e-6
    assert reassembler.held < PIECE_COST


def test_a_loss_that_only_the_end_tells_of_is_called_lost() -> None:
    reassembler = Reassembler(FIRST, 0)
    reassembler.push(segment(0, b"head"))
    assert reassembler.end(9, 10, lost=2) == [Gap(4, 6, "lost", 9)]
