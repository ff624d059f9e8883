"""Where the records of a capture begin: each tells its length, and so where the next one is.

Followed one by one that costs a quarter of a microsecond a record. A long range is therefore cut
into lanes: a likely record is guessed at the beginning of each, all lanes go on by one record per
NumPy call, and then each lane must have arrived exactly where the next one began. That proves
every guess, for the first lane begins where a record is known to be. Where a guess was wrong, the
records are followed one by one until they meet a lane.
"""

from collections.abc import Callable
from itertools import pairwise
from math import isqrt
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FEW = 2000  # records: below, going one by one is as fast as cutting lanes
_SAMPLE = 64  # records that tell how long the others may be
_FEW_LANES = 16  # what so few lanes still have before them is followed one by one

Guess = Callable[[int, int, int], int]


class Form(NamedTuple):
    """How a record tells its length: a u32 at `field`, plus `added`.

    header: bytes at the beginning that must be there to know more.
    A record shorter than `shortest` or longer than `longest` is none.
    """

    order: str
    field: int
    added: int
    header: int
    shortest: int
    longest: int


def follow(
    data: NDArray[np.uint8], start: int, stop: int, form: Form, guess: Guess
) -> tuple[NDArray[np.int64], int]:
    """Offsets of the records from `start` on, whole in `data`, that begin before `stop`; and
    where the next one would begin.

    guess: where a record most likely begins, from `start` on and before `stop`, -1 if nowhere;
        the third argument is a place before it at which one was found.
    """
    few, at = _follow_plainly(data, start, stop, form, _SAMPLE)
    # The last header is kept out of the lanes: they need not ask whether one is there.
    lanes_stop = min(stop, len(data) - form.header)
    records = (lanes_stop - at) * len(few) // max(1, at - start)
    if len(few) < _SAMPLE or records < _FEW:
        more, at = _follow_plainly(data, at, stop, form)
        return np.array(few + more, np.int64), at
    # Each lane costs a guess, each step a few calls: as many steps as lanes is best.
    starts = _lane_starts(at, lanes_stop, isqrt(records), guess)
    lanes = _prove(data, _follow_lanes(data, starts, lanes_stop, form), starts, form)
    # Lanes look at headers only: whether the last record is one, and whole, is told here.
    more, at = _follow_plainly(data, int(lanes[-1]), stop, form)
    offsets = np.concatenate((np.array(few, np.int64), lanes[:-1], np.array(more, np.int64)))
    too_long = np.flatnonzero(np.diff(offsets) > form.longest)
    if len(too_long):
        at = int(offsets[too_long[0]])
        offsets = offsets[: too_long[0]]
    return offsets, at


def _follow_plainly(
    data: NDArray[np.uint8], at: int, stop: int, form: Form, most: int = -1
) -> tuple[list[int], int]:
    """The same record by record, `most` of them if that is given."""
    view = data.data
    end = len(view)
    last = min(stop, end - form.header + 1)
    read = Struct(form.order + "I").unpack_from
    _, field, added, _, shortest, longest = form
    offsets: list[int] = []
    while at < last and len(offsets) != most:
        length = read(view, at + field)[0] + added
        if not shortest <= length <= longest or at + length > end:
            break
        offsets.append(at)
        at += length
    return offsets, at


def _lane_starts(at: int, stop: int, count: int, guess: Guess) -> list[int]:
    starts = [at]
    size = (stop - at) // count
    for bound in range(at + size, stop - size, size):
        found = guess(max(bound, starts[-1] + 1), bound + size, starts[-1])
        if found > starts[-1]:
            starts.append(found)
    return starts


def _follow_lanes(
    data: NDArray[np.uint8], starts: list[int], stop: int, form: Form
) -> NDArray[np.int64]:
    """Offsets that the lanes come by before the next lane begins, ascending; none is proved."""
    last = len(data) - form.header
    lengths = _lengths(data, form)
    at = np.array(starts, np.int64)
    stops = np.append(at[1:], stop)
    parts: list[NDArray[np.int64]] = []
    steps = max(16, len(starts))
    least = form.shortest - form.added  # what is too short to be a record must not hold a lane
    while len(at) > _FEW_LANES:
        places = np.empty((steps + 1, len(at)), np.int64)
        places[0] = at
        for at, behind in pairwise(places):
            step = lengths[at]
            if least > 0:
                np.maximum(step, least, out=step)
            np.add(at, step, out=behind)
            behind += form.added
            np.minimum(behind, last, out=behind)
        at, places = places[-1], places[:-1]
        parts.append(places.T[(places < stops).T])
        going = at < stops
        at, stops = at[going], stops[going]
        steps = max(16, steps // 8)
    for begin, end in zip(at.tolist(), stops.tolist(), strict=True):
        offsets, _ = _follow_plainly(data, begin, end, form)
        # Where it broke off the next place is kept all the same: it is looked at again.
        parts.append(np.array(offsets or [begin], np.int64))
    # Each part ascends, so this merges them; it is no sorting from scratch.
    return np.sort(np.concatenate(parts), kind="stable")


def _prove(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], starts: list[int], form: Form
) -> NDArray[np.int64]:
    """The offsets that are proved: every lane was arrived at, or was followed anew."""
    bounds = np.searchsorted(offsets, starts)
    arrived = offsets[bounds[1:] - 1]  # the last record ahead of each lane but the first
    arrived = arrived + _lengths(data, form)[arrived] + form.added
    if (arrived == starts[1:]).all():
        return offsets
    proved: list[NDArray[np.int64]] = []
    at = starts[0]
    for start, lane in zip(starts, np.split(offsets, bounds[1:]), strict=True):
        if at < start:
            missed, at = _follow_plainly(data, at, start, form)
            proved.append(np.array(missed, np.int64))
        if at < start:  # what stands there is no record
            break
        if at == start:  # else a wrong guess: no record begins there
            proved.append(lane[:-1])
            at = int(lane[-1])  # looked at again, by itself
    return np.concatenate((*proved, [at]))


def _lengths(data: NDArray[np.uint8], form: Form) -> NDArray[np.uint32]:
    """The length field of a record at each byte of the data."""
    count = len(data) - form.header + 1
    return np.ndarray((count,), form.order + "u4", data, form.field, (1,))
