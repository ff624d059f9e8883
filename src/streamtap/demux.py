"""The first pass: openings, segments and closings meet their flow and its two streams.

What comes out is in stream order for each direction of each flow. Who understands it, or writes it
down, is a receiver's business: the pipeline, the API's `streams`. Taps are shown the same on the
way, before anything is understood.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from streamtap.flows import Ending, FlowState, FlowTable
from streamtap.model import DIRECTIONS, Closed, Direction, Flow, Opened, Scoped, Segment, StreamItem
from streamtap.streams import Pool, Reassembler

OwnT = TypeVar("OwnT")


class Tap(Protocol):
    """Is shown what passes: segments as they came, and the bytes in order.

    Views in it are valid during the call only. Flows that nobody wants are not shown.
    """

    def opened(self, opened: Opened, first: Flow | None) -> None:
        """A flow begins: before anything else of it. first: the other end of its connection, where
        that is open already; then this one says the same once more, and may be counted only."""

    def segment(self, flow: Flow, segment: Segment) -> None:
        """As it came, out of order and again too."""

    def item(self, flow: Flow, direction: Direction, item: StreamItem) -> None:
        """In stream order."""

    def closed(self, flow: Flow, closed: Closed) -> None:
        """After the last item."""


class Receiver(Protocol[OwnT]):
    """Who is given what comes out of the streams."""

    def begin(self, state: FlowState[Reassembler, OwnT], opened: Opened) -> None:
        """A flow begins."""

    def unwanted(self, flow: Flow) -> None:
        """A flow begins that nobody wants; it is not heard of again."""

    def refused(self, flow: Flow) -> None:
        """A flow beyond the most that are followed, or one that is open already."""

    def give(
        self,
        state: FlowState[Reassembler, OwnT],
        direction: Direction,
        items: Sequence[StreamItem],
    ) -> None:
        """What a direction says next."""

    def scoped(self, state: FlowState[Reassembler, OwnT], scoped: Scoped) -> None:
        """A flow is in other filters from now on."""


class Demux(Generic[OwnT]):
    """Puts what a source gives into order, per flow and direction.

    wanted: which flows are followed; None for all.
    """

    def __init__(
        self,
        receiver: Receiver[OwnT],
        *,
        wanted: Callable[[Flow], bool] | None = None,
        taps: Sequence[Tap] = (),
        max_flows: int = 65_536,
        idle_ns: int | None = None,
    ) -> None:
        pool = Pool()
        self.table: FlowTable[Reassembler, OwnT] = FlowTable(
            lambda sequence, offset: Reassembler(sequence, offset, pool),
            max_flows=max_flows,
            idle_ns=idle_ns,
        )
        self.taps = list(taps)
        self._receiver = receiver
        self._wanted = wanted
        self._unwanted: set[int] = set()

    def feed(self, items: Iterable[Opened | Segment | Closed | Scoped]) -> list[Closed]:
        """Takes a batch; the closings in it, of which each is to be given to `close` when all that
        the batch gave has been dealt with. Views in it are not kept beyond this call."""
        closed: list[Closed] = []
        acknowledged: dict[tuple[int, Direction], Segment] = {}
        find, give = self.table.find, self._receiver.give
        taps = self.taps
        for item in items:
            if type(item) is Segment:
                state = find(item.flow_id)
                if state is None:
                    if item.flow_id not in self._unwanted:
                        self.table.early(item)
                    continue
                if taps:
                    self._show(state, item)
                given = state.streams[item.direction].push(item)
                if given:
                    if taps:
                        self._show_items(state, item.direction, given)
                    give(state, item.direction, given)
                if item.acknowledged is not None:
                    acknowledged[item.flow_id, item.direction] = item
            elif type(item) is Opened:
                self._open(item)
            elif type(item) is Closed:
                closed.append(item)
            elif type(item) is Scoped:
                state = find(item.flow_id)
                if state is not None:
                    self._receiver.scoped(state, item)
        # Once the whole batch has come: no acknowledgement overtakes data that it is for.
        for (flow_id, direction), segment in acknowledged.items():
            state = find(flow_id)
            if state is not None and segment.acknowledged is not None:
                other = direction.opposite
                stream = state.streams[other]
                self._give(state, other, stream.acknowledge(segment.acknowledged, segment.time_ns))
        return closed

    def _open(self, opened: Opened) -> None:
        flow = opened.flow
        if self._wanted is not None and not self._wanted(flow):
            self._unwanted.add(flow.flow_id)
            self._receiver.unwanted(flow)
            return
        found = self.table.open(opened)
        if found is None:
            self._receiver.refused(flow)
            return
        state, early = found
        first = state.paired.flow if state.paired is not None and not state.primary else None
        for tap in self.taps:
            tap.opened(opened, first)
        self._receiver.begin(state, opened)
        for segment in early:
            if self.taps:
                self._show(state, segment)
            self._give(state, segment.direction, state.streams[segment.direction].push(segment))

    def close(self, closed: Closed) -> Ending[Reassembler, OwnT] | None:
        """Ends a flow; what is left of it. None where it is not open."""
        self._unwanted.discard(closed.flow_id)
        ending = self.table.close(closed)
        if ending is not None and self.taps:
            for direction in DIRECTIONS:
                self._show_items(ending.state, direction, ending.items[direction])
            for tap in self.taps:
                tap.closed(ending.state.flow, closed)
        return ending

    def _give(
        self,
        state: FlowState[Reassembler, OwnT],
        direction: Direction,
        items: Sequence[StreamItem],
    ) -> None:
        if items:
            if self.taps:
                self._show_items(state, direction, items)
            self._receiver.give(state, direction, items)

    def _show(self, state: FlowState[Reassembler, OwnT], segment: Segment) -> None:
        for tap in self.taps:
            tap.segment(state.flow, segment)

    def _show_items(
        self,
        state: FlowState[Reassembler, OwnT],
        direction: Direction,
        items: Sequence[StreamItem],
    ) -> None:
        for tap in self.taps:
            for item in items:
                tap.item(state.flow, direction, item)
