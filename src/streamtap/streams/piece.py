"""Bytes that wait behind a hole."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from streamtap.model import Segment

PIECE_COST = 256  # what a held piece costs beside its bytes: a tuple, two integers, a header
BOUNDARY_COST = 64  # … and each segment of one that was joined: two integers and their places


class Piece(NamedTuple):
    """Bytes behind a hole, None for a counted range; ends and times of its segments as a chunk has
    them."""

    start: int
    end: int
    data: bytes | None
    ends: Sequence[int]
    times_ns: Sequence[int]


def cost_of(data: bytes | memoryview | None, ends: Sequence[int]) -> int:
    """Of a held piece."""
    return PIECE_COST + (0 if data is None else len(data)) + BOUNDARY_COST * (len(ends) - 1)


def boundaries(
    segment: Segment, start: int, first: int, last: int
) -> tuple[Sequence[int], Sequence[int]]:
    """`ends` and `times_ns` of the part `first` … `last` of the segment at `start`."""
    if not segment.ends:
        return (last,), (segment.time_ns,)
    begin = bisect_right(segment.ends, first - start)
    stop = bisect_left(segment.ends, last - start) + 1
    ends = [min(start + end, last) for end in segment.ends[begin:stop]]
    return ends, segment.times_ns[begin:stop]
