"""The three passes in which a batch becomes records.

First every item meets its flow and its stream. Then each flow is heard by itself: its runs of
bytes go to its parser and become words, each with its time. What all flows said is put in the order
of time and told.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from streamtap.demux import Demux, Tap
from streamtap.events import Body, FlowInfo, Record, StreamLimit
from streamtap.model import (
    Chunk,
    Closed,
    Content,
    Direction,
    Flow,
    Gap,
    Opened,
    Policy,
    Scoped,
    Segment,
    StreamItem,
)
from streamtap.pipeline.hearing import Hearing
from streamtap.pipeline.steps import State, Step, Word, first_ns, in_order, is_plain
from streamtap.pipeline.telling import Telling
from streamtap.pipeline.wanted import Places, Terms, Wanted
from streamtap.protocols import Limits, by_name
from streamtap.speech import Speech

SetPolicy = Callable[[int, Policy], None]
LIMIT_PAUSE_NS = 1_000_000_000  # between two records of flows that were refused


class Pipeline:
    """One application's flows to records. Fed with batches by its owner; does no IO.

    content: the most that any record tells. `set_content`, `set_places` and `set_filters` may be
        called between batches.
    places: where records are wanted (provider, flag, level); None for everywhere. What nobody
        wants is not made, but all of it is understood.
    protocol: forces this parser on every flow; both_ends: a connection with both ends in scope is
        told twice, not once.
    set_policy: asked to copy less of a flow, where the source can do that.
    taps: are shown the flows' segments and bytes on the way.
    bytes, gaps: how many came out of the streams.
    """

    def __init__(
        self,
        *,
        content: Content = Content.META,
        places: Places | None = None,
        protocol: str | None = None,
        both_ends: bool = False,
        set_policy: SetPolicy | None = None,
        key: bytes | None = None,
        limits: Limits | None = None,
        wanted: Callable[[Flow], bool] | None = None,
        taps: Sequence[Tap] = (),
        max_flows: int = 65_536,
        idle_ns: int | None = None,
    ) -> None:
        self._demux: Demux[Speech] = Demux(
            self, wanted=wanted, taps=taps, max_flows=max_flows, idle_ns=idle_ns
        )
        self.table = self._demux.table
        self.bytes = 0
        self.gaps = 0
        self._wanted = Wanted(places, content)
        self._hearing = Hearing(self._wanted, self._copy)
        self._telling = Telling(self._wanted, self.table, self, key)
        self._forced = by_name(protocol) if protocol else None
        self._both_ends = both_ends
        self._set_policy = set_policy
        self._limits = limits or Limits()
        self._max_flows = max_flows
        self._refused = 0
        self._refused_due_ns = 0
        self._flows: dict[int, list[Step]] = {}  # of the batch, in the order of their flows

    @property
    def records(self) -> int:
        """How many there were."""
        return self._telling.records

    # --- what is wanted --------------------------------------------------------------------------

    def set_places(self, places: Places | None) -> None:
        """Where records are wanted from now on."""
        self._wanted.choose(places)
        self._plan_again()

    def set_content(self, content: Content) -> None:
        """The most that any record tells from now on. What no parser knows is copied again where
        its bytes are wanted now, and counted where they are not any more."""
        self._wanted.content = content
        self._telling.conversations.set_content(content)
        self._plan_again()

    def set_filters(self, filters: Mapping[str, Terms]) -> None:
        """What holds for the flows of some filters, by name: of what they tell at once, of how
        they are parsed for those that open from now on."""
        self._wanted.filters = dict(filters)
        self._plan_again()

    def _plan_again(self) -> None:
        for state in self.table:
            speech = state.parser
            if speech is not None:
                self._plan(state, speech)

    def _plan(self, state: State, speech: Speech) -> None:
        speech.content = self._wanted.content_of(state.flow)
        if speech.is_plain and not speech.secondary:
            self._hearing.stay_plain(state, speech)

    # --- the first pass: items to runs -----------------------------------------------------------

    def feed(self, items: Iterable[Opened | Segment | Closed | Scoped]) -> list[Record]:
        """The records that a batch gives. Views in it are not kept beyond this call."""
        closed = self._demux.feed(items)
        flows, self._flows = self._flows, {}
        said: list[Word] = []
        for own in flows.values():
            if is_plain(own):
                self._telling.tell_turns(own)
                continue
            if isinstance(own[0][3], Opened) and len(own) > 1:
                # What came with the handshake was seen before the opening was: that goes first.
                begin_ns = min(own[0][0], *map(first_ns, own[1:]))
                own[0] = (begin_ns, *own[0][1:])
            self._hearing.hear(own, said)
        for item in closed:
            state = self.table.find(item.flow_id)
            if state is None:
                self._demux.close(item)  # what came early for it will not be claimed
                continue
            # After all that the flow said, whatever the clocks of the two hooks say.
            last_ns = max((step[0] for step in flows.get(item.flow_id, ())), default=0)
            said.append((max(item.time_ns, last_ns), state, Direction.TO_SERVER, item))
        self._telling.tell(in_order(said))
        return self._telling.flush()

    def give(self, state: State, direction: Direction, items: Sequence[StreamItem]) -> None:
        """What a direction says next, kept until the batch is put in the order of time."""
        self._collect(state, direction, items, self._flows)

    def _collect(
        self,
        state: State,
        direction: Direction,
        given: Sequence[StreamItem],
        flows: dict[int, list[Step]],
    ) -> None:
        speech = state.parser
        unheard = speech is not None and speech.unheard
        steps: list[Step] = []
        for item in given:
            if type(item) is Chunk:
                if item.data is not None:
                    self.bytes += len(item.data)
                if unheard:
                    continue
                run = (item.offset, item.data, item.ends, item.times_ns)
                steps.append((item.times_ns[-1], state, direction, run))
            else:
                assert not isinstance(item, Chunk)
                if type(item) is Gap:
                    self.gaps += 1
                steps.append((item.time_ns, state, direction, item))
        if steps:
            flows.setdefault(state.flow.flow_id, []).extend(steps)

    def unwanted(self, flow: Flow) -> None:
        """Nobody wants it: its bytes need not be copied."""
        if self._set_policy is not None:
            self._set_policy(flow.flow_id, Policy.COUNT)

    def refused(self, flow: Flow) -> None:
        """Say that flows were refused, at most once a second."""
        count = self.table.refused - self._refused
        if count and flow.opened_ns >= self._refused_due_ns:
            self._refused = self.table.refused
            self._refused_due_ns = flow.opened_ns + LIMIT_PAUSE_NS
            body = StreamLimit(limit="flows", value=self._max_flows, count=count)
            self._telling.emit(flow.opened_ns, body)

    def begin(self, state: State, opened: Opened) -> None:
        """A flow begins: who listens to it, and what passed before."""
        flow = state.flow
        secondary = not state.primary and not self._both_ends
        protocol = self._wanted.terms_of(flow).protocol
        state.parser = Speech(
            _info(state),
            self._limits,
            secondary=secondary,
            content=self._wanted.content_of(flow),
            forced=by_name(protocol) if protocol else self._forced,
        )
        if state.paired is not None and state.paired.parser is not None:
            state.paired.parser.info = _info(state.paired)
        if secondary:
            self._reduce(state)
        steps = self._flows.setdefault(flow.flow_id, [])
        steps.append((flow.opened_ns, state, Direction.TO_SERVER, opened))
        for direction in Direction:
            if opened.offsets[direction]:
                gap = Gap(0, opened.offsets[direction], "midstream", flow.opened_ns)
                self._collect(state, direction, (gap,), self._flows)

    def scoped(self, state: State, scoped: Scoped) -> None:
        """A flow is in other filters; once what it said in this batch has been told."""
        step = (scoped.time_ns, state, Direction.TO_SERVER, scoped)
        self._flows.setdefault(scoped.flow_id, []).append(step)

    def _reduce(self, state: State) -> None:
        """Nobody will look at the bytes of this flow: let them be counted, not copied."""
        self._copy(state, Policy.COUNT)

    def _copy(self, state: State, policy: Policy) -> None:
        if self._set_policy is not None and state.policy is not policy:
            state.policy = policy
            self._set_policy(state.flow.flow_id, policy)

    # --- what words change, when all before them has been told -----------------------------------

    def flow_rescoped(self, state: State, speech: Speech, scoped: Scoped) -> None:
        """A flow is in other filters from now on."""
        flow = state.flow
        app = replace(flow.app, filter=scoped.filter) if flow.app else None
        state.flow = replace(flow, app=app, filters=scoped.filters)
        speech.info = _info(state)
        other = state.paired
        if other is not None:
            other.peer = app
            if other.parser is not None:
                other.parser.info = _info(other)
        self._plan(state, speech)

    def flow_closed(self, state: State, speech: Speech, closed: Closed) -> None:
        """A flow ends: what is left of it is heard and told, then its certificate."""
        ending = self._demux.close(closed)
        assert ending is not None
        left: dict[int, list[Step]] = {}
        for direction in Direction:
            self._collect(state, direction, ending.items[direction], left)
        said: list[Word] = []
        for steps in left.values():
            self._hearing.hear(steps, said)
        if not speech.secondary:
            self._hearing.end(state, closed.time_ns, said)
        self._telling.tell(said)
        self._telling.end(state, speech, closed, ending.certificate)

    # --- time, and what is about no batch --------------------------------------------------------

    @property
    def pending(self) -> bool:
        """A `tick` will soon have something to say."""
        return self._telling.conversations.pending

    def tick(self, now_ns: int) -> list[Record]:
        """Time has come to `now_ns` and everything older has been fed."""
        self._telling.tick(now_ns)
        return self.feed(self.table.expire(now_ns))

    def standing(self, now_ns: int) -> list[Record]:
        """The flows that are open, as if they had been found at `now_ns`."""
        return self._telling.standing(now_ns)

    def note(self, time_ns: int, body: Body) -> list[Record]:
        """A record that is about no flow."""
        self._telling.emit(time_ns, body)
        return self._telling.flush()


def _info(state: State) -> FlowInfo:
    flow = state.flow
    return FlowInfo(
        app=flow.app,
        flow=f"{flow.flow_id:x}",
        local=str(flow.local),
        remote=str(flow.remote),
        role=flow.role.value,
        peer=state.peer,
        filters=flow.filters,
    )
