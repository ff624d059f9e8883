"""What a batch says of one flow, step by step, and in which order it is heard and told."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from operator import itemgetter

import numpy as np

from streamtap.flows import FlowState
from streamtap.model import Direction, Limit, Overlap, Scoped
from streamtap.pipeline.speech import Bytes, Run, Speech
from streamtap.pipeline.words import Begun, Word
from streamtap.streams import Reassembler

State = FlowState[Reassembler, Speech]
Item = Run | Overlap | Limit | Begun | Scoped
Step = tuple[int, State, Direction, Item]  # its time comes first
time_of = itemgetter(0)
# A parser is given so much of a run at once, in bytes (the shortest commands have five) and in
# segments, of which each may be a word.
PART_BYTES, PART_SEGMENTS = 1 << 16, 1 << 13
MANY = 256  # words from which on NumPy puts them in order faster


def is_plain(steps: list[Step]) -> bool:
    """Whether bursts are all that is told of these steps of one flow, and both ends spoke."""
    speech = steps[0][1].parser
    return (
        speech is not None
        and speech.plain
        and all(type(step[3]) is tuple for step in steps)
        and not is_one_sided(steps)
    )


def is_one_sided(steps: list[Step]) -> bool:
    """Whether only one of the directions speaks."""
    first = steps[0][2]
    return all(step[2] is first for step in steps)


def first_ns(step: Step) -> int:
    """When its first bytes came."""
    run = step[3]
    return run[3][0] if type(run) is tuple else step[0]


def in_order(said: list[Word]) -> list[Word]:
    """In the order of time; of one time, as they came."""
    if len(said) < MANY:
        said.sort(key=time_of)
        return said
    return [said[at] for at in order_of(map(time_of, said))]


def order_of(times_ns: Iterable[int]) -> list[int]:
    """The places of times in their order; of equal ones, as they came."""
    order: list[int] = np.argsort(np.fromiter(times_ns, np.int64), kind="stable").tolist()
    return order


class Turns(Iterator[Step]):
    """The steps of one flow in the order in which its ends spoke, chunks cut where the other end
    did in between. Cut as they are asked for: `rest` are those that are left, as they were."""

    def __init__(self, steps: list[Step]) -> None:
        self._left: tuple[deque[tuple[int, Step]], ...] = (deque(), deque())
        for number, step in enumerate(steps):
            self._left[step[2]].append((number, step))

    def __next__(self) -> Step:
        left = [side for side in self._left if side]
        if not left:
            raise StopIteration
        keys = [(first_ns(side[0][1]), side[0][0]) for side in left]
        turn = keys.index(min(keys))
        number, step = left[turn].popleft()
        run = step[3]
        if len(left) == 1 or type(run) is not tuple:
            return step
        until_ns, other = keys[1 - turn]
        times = run[3]
        stop = (bisect_right if number < other else bisect_left)(times, until_ns)
        if stop >= len(times):
            return step
        step, rest = _cut(step, run, stop)
        left[turn].appendleft((number, rest))
        return step

    def rest(self) -> list[Step]:
        """What has not been asked for, one direction behind the other."""
        return [step for side in self._left for _, step in side]


def is_long(run: Bytes) -> bool:
    """Whether its words could be so many that it is heard in parts."""
    offset, _, ends, _ = run
    return ends[-1] - offset > PART_BYTES or len(ends) > PART_SEGMENTS


def parts(run: Bytes) -> Iterator[Bytes]:
    """A run, cut where segments end."""
    start, data, ends, times = run
    offset, first = start, 0
    while first < len(ends):
        last = max(bisect_right(ends, offset + PART_BYTES, first), first + 1)
        last = min(last, first + PART_SEGMENTS)
        end = ends[last - 1]
        part = None if data is None else data[offset - start : end - start]
        yield offset, part, ends[first:last], times[first:last]
        offset, first = end, last


def rounds(steps: list[Step]) -> Iterable[list[Step]]:
    """The steps of one flow whose directions are heard apart; where they are long together, up to
    one time after the other: none is ahead of the other by more than a part."""
    length = segments = 0
    for _, _, _, run in steps:
        if type(run) is tuple:
            length += run[2][-1] - run[0]
            segments += len(run[2])
    if length > PART_BYTES or segments > PART_SEGMENTS:
        return _rounds(steps)
    return (steps,)


def _rounds(steps: list[Step]) -> Iterator[list[Step]]:
    sides: tuple[deque[Step], ...] = (deque(), deque())
    for step in steps:
        _, state, direction, run = step
        if type(run) is tuple and is_long(run):
            sides[direction].extend((part[3][-1], state, direction, part) for part in parts(run))
        else:
            sides[direction].append(step)
    while left := [side for side in sides if side]:
        next_ = min(left, key=_head_ns)
        until_ns = _head_ns(next_)
        together = [next_.popleft()]
        for side in left:
            while side and first_ns(side[0]) <= until_ns:
                step = side.popleft()
                run = step[3]
                if type(run) is tuple and 0 < (stop := bisect_right(run[3], until_ns)) < len(
                    run[3]
                ):
                    step, rest = _cut(step, run, stop)
                    side.appendleft(rest)
                together.append(step)
        yield together


def _head_ns(side: deque[Step]) -> int:
    """When all of its first step had come."""
    return side[0][0]


def _cut(step: Step, run: Bytes, stop: int) -> tuple[Step, Step]:
    """A step of a run, cut before one of its segments."""
    time_ns, state, direction, _ = step
    offset, data, ends, times = run
    middle = ends[stop - 1]
    head = tail = None
    if data is not None:
        head, tail = data[: middle - offset], data[middle - offset :]
    rest = middle, tail, ends[stop:], times[stop:]
    first = offset, head, ends[:stop], times[:stop]
    return (times[stop - 1], state, direction, first), (time_ns, state, direction, rest)
