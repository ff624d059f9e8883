"""What a batch says of one flow, step by step, and in which order it is heard and told."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from operator import itemgetter

import numpy as np

from streamtap.flows import FlowState
from streamtap.model import Direction, Limit, Overlap, Scoped
from streamtap.pipeline.speech import Run, Speech
from streamtap.pipeline.words import Begun, Word
from streamtap.streams import Reassembler

State = FlowState[Reassembler, Speech]
Item = Run | Overlap | Limit | Begun | Scoped
Step = tuple[int, State, Direction, Item]  # its time comes first
time_of = itemgetter(0)
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
        offset, data, ends, times = run
        stop = (bisect_right if number < other else bisect_left)(times, until_ns)
        if stop >= len(times):
            return step
        _, state, direction, _ = step
        middle = ends[stop - 1]
        head = tail = None
        if data is not None:
            head, tail = data[: middle - offset], data[middle - offset :]
        rest = (middle, tail, ends[stop:], times[stop:])
        left[turn].appendleft((number, (step[0], state, direction, rest)))
        return times[stop - 1], state, direction, (offset, head, ends[:stop], times[:stop])

    def rest(self) -> list[Step]:
        """What has not been asked for, one direction behind the other."""
        return [step for side in self._left for _, step in side]
