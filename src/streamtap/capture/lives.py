"""What waits for the data that the ring holds: endings, and what follows them for the same socket.

A socket that connects again keeps its flow id. Where one life ends and the next begins before the
data of both has been read, the time of the ending tells the segments of the two apart.
"""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]


class Closing(NamedTuple):
    """record: CLOSED, or what is known of an ending that nobody told."""

    flow_id: int
    record: Record


class Opening(NamedTuple):
    """record: OPENED, of a flow whose closing waits too."""

    flow_id: int
    record: Record


class Scoping(NamedTuple):
    """Of its filters a flow is left to those of the mask `keep`, and taken into those of `add`."""

    flow_id: int
    keep: int = -1
    add: int = 0


Step = Closing | Opening | Scoping


class Lives:
    """Steps in the lives of flows, each to be made when the data ring has been read so far.

    `last` tells what was added last of a flow, apart from scopings.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[int, Step]] = deque()
        self._last: dict[int, Closing | Opening] = {}
        self._scopings: Counter[int] = Counter()
        # Of flows that wait to be opened again: when each of the lives before ended, and what the
        # later ones said.
        self._ends_ns: dict[int, deque[int]] = {}
        self._held: dict[int, list[tuple[NDArray[Any], bytes]]] = {}

    def __bool__(self) -> bool:
        return bool(self._steps)

    def add(self, position: int, step: Step) -> None:
        """To be made once the data ring has been read up to `position`, which never falls."""
        if isinstance(step, Opening):
            before = self._last[step.flow_id].record["time_ns"]
            self._ends_ns.setdefault(step.flow_id, deque()).append(before)
        self._steps.append((position, step))
        if isinstance(step, Scoping):
            self._scopings[step.flow_id] += 1
        else:
            self._last[step.flow_id] = step

    def last(self, flow_id: int) -> Closing | Opening | None:
        return self._last.get(flow_id)

    def scopes(self, flow_id: int) -> bool:
        """Other filters of a flow wait: what comes then has to wait too."""
        return flow_id in self._scopings

    def narrow(self, enabled: int) -> None:
        """The filters that are not in the mask are none of the openings' any more."""
        for _, step in self._steps:
            if isinstance(step, Opening):
                step.record["filters"] &= enabled
                step.record["candidates"] &= enabled

    def due(self, position: int) -> Iterator[Step]:
        """The steps to be made; not both the end of a life and the begin of the next, for what is
        given together has each flow once."""
        closed = set()
        while self._steps and position >= self._steps[0][0]:
            step = self._steps[0][1]
            if isinstance(step, Opening) and step.flow_id in closed:
                return
            if isinstance(step, Closing):
                closed.add(step.flow_id)
            self._steps.popleft()
            if isinstance(step, Scoping):
                self._scopings[step.flow_id] -= 1
                if not self._scopings[step.flow_id]:
                    del self._scopings[step.flow_id]
            elif self._last.get(step.flow_id) is step:
                del self._last[step.flow_id]
            yield step

    @property
    def separates(self) -> bool:
        """There are segments to be told apart."""
        return bool(self._ends_ns)

    def hold(
        self, records: NDArray[Any], payloads: NDArray[np.int64], data: memoryview
    ) -> NDArray[np.bool_]:
        """Copies what belongs to lives that have not begun yet; (n,) bool: the rest."""
        mine: NDArray[np.bool_] = np.ones(len(records), bool)
        for flow_id, ends_ns in self._ends_ns.items():
            later = (records["flow_id"] == flow_id) & (records["time_ns"] > ends_ns[0])
            mine &= ~later
            for index in np.flatnonzero(later).tolist():
                at = int(payloads[index])
                piece = bytes(data[at : at + int(records["captured"][index])])
                self._held.setdefault(flow_id, []).append(
                    (records[index : index + 1].copy(), piece)
                )
        return mine

    def begin(self, flow_id: int) -> tuple[NDArray[Any], NDArray[np.int64], bytes] | None:
        """The next life of a flow begins: what was held of it, as records, the places of their
        payloads, and those."""
        ends_ns = self._ends_ns.get(flow_id)
        if ends_ns is None:
            return None
        ends_ns.popleft()
        held = self._held.pop(flow_id, [])
        if ends_ns:  # and will end again
            rest = [one for one in held if one[0]["time_ns"][0] > ends_ns[0]]
            held = [one for one in held if one[0]["time_ns"][0] <= ends_ns[0]]
            self._held[flow_id] = rest
        else:
            del self._ends_ns[flow_id]
        if not held:
            return None
        pieces = [piece for _, piece in held]
        ends = np.cumsum([len(piece) for piece in pieces])
        payloads = np.concatenate(([0], ends[:-1])).astype(np.int64)
        return np.concatenate([rows for rows, _ in held]), payloads, b"".join(pieces)
