"""What a batch says of one flow, step by step, and in which order it is told."""

from operator import itemgetter

from streamtap.flows import FlowState
from streamtap.model import Closed, Direction, Limit, Opened, Overlap, Scoped
from streamtap.speech import Run, Speech
from streamtap.streams import Reassembler

State = FlowState[Reassembler, Speech]
Item = Run | Overlap | Limit | Opened | Closed | Scoped
Step = tuple[int, State, Direction, Item]  # its time comes first
time_of = itemgetter(0)


def is_plain(steps: list[Step]) -> bool:
    """Whether bursts are all that is told of these steps of one flow, and both ends spoke."""
    speech = steps[0][1].parser
    if speech is None or not speech.plain:
        return False
    first = steps[0][2]
    return all(type(step[3]) is tuple for step in steps) and any(
        step[2] is not first for step in steps
    )


def runs(steps: list[Step]) -> list[Step]:
    """The steps of one flow, its chunks cut where the other direction spoke in between. What need
    not be cut is as it was: all steps are put in the order of time together."""
    first = steps[0][2] if steps else None
    if all(step[2] is first for step in steps):
        return steps
    for _, _, _, run in steps:
        if isinstance(run, tuple) and len(run[3]) > 1:
            break
    else:
        return steps
    pieces: list[tuple[int, int, Step, int]] = []  # time, step's number, step, segment's number
    for number, step in enumerate(steps):
        run = step[3]
        if isinstance(run, tuple):
            pieces += [(when, number, step, index) for index, when in enumerate(run[3])]
        else:
            pieces.append((step[0], number, step, 0))
    pieces.sort(key=time_of)
    out: list[Step] = []
    begin = 0
    for index in range(1, len(pieces) + 1):
        if index < len(pieces) and pieces[index][1] == pieces[begin][1]:
            continue
        _, _, step, start = pieces[begin]
        _, state, direction, run = step
        if isinstance(run, tuple):
            stop = pieces[index - 1][3] + 1
            offset, data, ends, times = run
            if start or stop < len(ends):
                low = ends[start - 1] if start else offset
                high = ends[stop - 1]
                part = None if data is None else data[low - offset : high - offset]
                run = (low, part, ends[start:stop], times[start:stop])
            out.append((run[3][-1], state, direction, run))
        else:
            out.append(step)
        begin = index
    return out
