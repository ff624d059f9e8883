"""Joining by column gives what taking the records one by one would."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helpers.rings import segment_record
from streamtap.capture.columns import headers_at, join
from streamtap.capture.layout import SEGMENT_RECORD
from streamtap.model import Direction, Segment

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT


def joined(records: list[bytes], sent: dict[int, Direction] | None = None) -> list[Segment]:
    memory, offsets = bytearray(), []
    for record in records:
        offsets.append(len(memory))
        memory += record + bytes(-len(record) % 8)
    words = np.frombuffer(memory + bytes(-len(memory) % 8), np.uint64)
    at = np.array(offsets, np.int64)
    view = memoryview(bytes(memory))
    return join(headers_at(words, at), at + SEGMENT_RECORD.itemsize, view, sent or {}, 1000)


def test_records_in_sequence_become_one_segment_with_their_boundaries_and_times() -> None:
    (segment,) = joined(
        [
            segment_record(sequence=10, data=b"abc", time_ns=1, acknowledgment=7),
            segment_record(sequence=13, data=b"de", time_ns=2, acknowledgment=9),
        ]
    )
    assert bytes(segment.data) == b"abcde"
    assert (segment.sequence, segment.acknowledged, segment.time_ns) == (10, 9, 1002)
    assert (list(segment.ends), list(segment.times_ns)) == ([3, 5], [1001, 1002])


def test_the_sequence_may_wrap_inside_a_run() -> None:
    (segment,) = joined(
        [segment_record(sequence=2**32 - 2, data=b"ab"), segment_record(sequence=0, data=b"c")]
    )
    assert bytes(segment.data) == b"abc"


def test_a_hole_a_loss_or_another_direction_ends_a_run() -> None:
    segments = joined(
        [
            segment_record(sequence=0, data=b"a"),
            segment_record(sequence=5, data=b"b"),
            segment_record(sequence=6, data=b"c", lost=1),
            segment_record(direction=1, sequence=7, data=b"d"),
        ]
    )
    assert [bytes(s.data) for s in segments] == [b"a", b"b", b"c", b"d"]
    assert [s.lost for s in segments] == [0, 0, 1, 0]
    assert [s.direction for s in segments] == [UP, UP, UP, DOWN]


def test_directions_follow_the_role_of_the_local_end() -> None:
    records = [segment_record(7, 0, 0, b"a"), segment_record(7, 1, 0, b"b")]
    assert [s.direction for s in joined(records, {7: DOWN})] == [DOWN, UP]


def test_what_the_policy_left_out_of_a_segment_is_counted_behind_it() -> None:
    segments = joined([segment_record(sequence=0, data=b"head", length=100)])
    assert [(s.sequence, bytes(s.data), s.counted) for s in segments] == [
        (0, b"head", 0),
        (4, b"", 96),
    ]


def test_counted_records_in_sequence_are_joined_too() -> None:
    (segment,) = joined(
        [segment_record(sequence=0, length=100), segment_record(sequence=100, length=50)]
    )
    assert (segment.counted, list(segment.ends)) == (150, [100, 150])


row = st.tuples(
    st.integers(1, 3),  # flow
    st.integers(0, 1),  # direction
    st.integers(0, 6),  # length
    st.integers(0, 2),  # how far behind what came last; 0 is in order
    st.integers(0, 3),  # bytes that the policy left out
    st.booleans(),  # a loss before it
)


@given(st.lists(row, max_size=30))
def test_no_byte_boundary_or_loss_is_changed_by_joining(rows: list[tuple[int, ...]]) -> None:
    following: dict[tuple[int, int], int] = {}
    lost: dict[tuple[int, int], int] = {}
    records, expected = [], []
    for index, (flow, direction, length, jump, cut, loss) in enumerate(rows):
        key = flow, direction
        if length + cut == 0:
            continue
        sequence = (following.get(key, 2**32 - 10) + jump) % 2**32
        following[key] = (sequence + length + cut) % 2**32
        lost[key] = lost.get(key, 0) + loss
        data = bytes([index + 1]) * length
        records.append(
            segment_record(
                flow, direction, sequence, data, time_ns=index, length=length + cut, lost=lost[key]
            )
        )
        for n in range(length + cut):
            byte = data[n] if n < length else None
            expected.append((key, (sequence + n) % 2**32, byte, lost[key], 1000 + index))
    given_back = []
    for segment in joined(records) if records else []:
        ends = list(segment.ends) or [segment.counted or len(segment.data)]
        times = list(segment.times_ns) or [segment.time_ns]
        assert len(ends) == len(times)
        start = 0
        for end, time_ns in zip(ends, times, strict=True):
            for n in range(start, end):
                byte = None if segment.counted else segment.data[n]
                sequence = (segment.sequence + n) % 2**32
                key = segment.flow_id, int(segment.direction)
                given_back.append((key, sequence, byte, segment.lost, time_ns))
            start = end
    key_of = [entry[0] for entry in expected]
    assert sorted(given_back, key=lambda e: e[0]) == sorted(expected, key=lambda e: e[0])
    assert sorted(set(key_of)) == sorted({entry[0] for entry in given_back})
