"""The three passes in which a batch becomes records.

First every item meets its flow and its stream. Then each flow is heard by itself: its runs of
bytes go to its parser and become words, each with its time. What all flows said is put in the order
of time; then events go to the patterns, which know of all flows, and what is left after cleaning
becomes a record.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter

from msgspec.structs import replace

from streamtap.demux import Demux, Tap
from streamtap.events import (
    Body,
    Event,
    FlowClosed,
    FlowIdentified,
    FlowInfo,
    FlowOpened,
    Record,
    StreamGap,
    StreamLimit,
)
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
from streamtap.patterns import Conversations, Meaning, clean
from streamtap.pipeline.hearing import Hearing, confidence, fail
from streamtap.pipeline.steps import (
    Break,
    Note,
    Shown,
    State,
    Step,
    Word,
    first_ns,
    in_order,
    is_plain,
    time_of,
)
from streamtap.pipeline.wanted import Places, Terms, Wanted
from streamtap.protocols import Limits, by_name
from streamtap.protocols.opaque import OpaqueData
from streamtap.speech import OPAQUE, Speech

SetPolicy = Callable[[int, Policy], None]
LIMIT_PAUSE_NS = 1_000_000_000  # between two records of flows that were refused

_record_time = attrgetter("time_ns")


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
    hearing: the second pass, which knows the totals of gaps and of bytes delivered.
    records: how many there were.
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
        self.conversations = Conversations(content)
        self.records = 0
        self._wanted = Wanted(places, content)
        self.hearing = Hearing(self._wanted, self._copy)
        self._forced = by_name(protocol) if protocol else None
        self._both_ends = both_ends
        self._set_policy = set_policy
        self._key = os.urandom(16) if key is None else key
        self._limits = limits or Limits()
        self._max_flows = max_flows
        self._refused = 0
        self._refused_due_ns = 0
        self._flows: dict[int, list[Step]] = {}  # of the batch, in the order of their flows
        self._out: list[Record] = []

    # --- what is wanted --------------------------------------------------------------------------

    def set_places(self, places: Places | None) -> None:
        """Where records are wanted from now on."""
        self._wanted.choose(places)
        self._plan_again()

    def set_content(self, content: Content) -> None:
        """The most that any record tells from now on. What no parser knows is copied again where
        its bytes are wanted now, and counted where they are not any more."""
        self._wanted.content = content
        self.conversations.set_content(content)
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
            self.hearing.stay_plain(state, speech)

    # --- the first pass: items to runs -----------------------------------------------------------

    def feed(self, items: Iterable[Opened | Segment | Closed | Scoped]) -> list[Record]:
        """The records that a batch gives. Views in it are not kept beyond this call."""
        closed = self._demux.feed(items)
        flows, self._flows = self._flows, {}
        said: list[Word] = []
        for own in flows.values():
            if is_plain(own):
                self._tell_turns(own)
                continue
            if isinstance(own[0][3], Opened) and len(own) > 1:
                # What came with the handshake was seen before the opening was: that goes first.
                begin_ns = min(own[0][0], *map(first_ns, own[1:]))
                own[0] = (begin_ns, *own[0][1:])
            self.hearing.hear(own, said)
        for item in closed:
            state = self.table.find(item.flow_id)
            if state is None:
                self._demux.close(item)  # what came early for it will not be claimed
                continue
            # After all that the flow said, whatever the clocks of the two hooks say.
            last_ns = max((step[0] for step in flows.get(item.flow_id, ())), default=0)
            said.append((max(item.time_ns, last_ns), state, Direction.TO_SERVER, item))
        self._tell_all(in_order(said))
        return self._flush()

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
                if unheard:
                    self.hearing.bytes += 0 if item.data is None else len(item.data)
                    continue
                run = (item.offset, item.data, item.ends, item.times_ns)
                steps.append((item.times_ns[-1], state, direction, run))
            else:
                assert not isinstance(item, Chunk)
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
            self._emit(flow.opened_ns, body)

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

    # --- the last pass: what was said to records -------------------------------------------------

    def _tell_all(self, said: Iterable[Word]) -> None:
        interpret, wanted = self.conversations.interpret, self._wanted
        for time_ns, state, direction, told in said:
            speech = state.parser
            assert speech is not None
            try:
                if type(told) in wanted.unwanted and not speech.broken:
                    # Most events: what `_tell` does with them, without the call.
                    assert isinstance(told, Event)
                    meanings = interpret(state.flow, speech.name, direction, time_ns, told)
                    if meanings:
                        self._give(meanings, state)
                elif isinstance(told, Event):
                    self._tell(state, speech, direction, told, time_ns)
                else:
                    self._put_down(state, speech, direction, told, time_ns)
            except Exception as error:  # no bytes may end a watch: it is ours to mend
                self._break(state, speech, error, time_ns)

    def _put_down(
        self,
        state: State,
        speech: Speech,
        direction: Direction,
        told: Shown | Note | Break | Opened | Closed | Scoped,
        time_ns: int,
    ) -> None:
        if isinstance(told, Shown):
            self._tell(state, speech, direction, told.event, time_ns, told.data)
        elif isinstance(told, Note):
            side = speech.sides[direction] if told.sided else None
            self._emit(time_ns, told.body, speech, side)
        elif isinstance(told, Break):
            self._give(self.conversations.gap(state.flow, direction, time_ns), state)
        elif isinstance(told, Opened):
            self._emit(time_ns, FlowOpened(midstream=state.flow.midstream), speech)
        elif isinstance(told, Closed):
            self._close(state, speech, told)
        else:
            self._rescope(state, speech, told)

    def _break(self, state: State, speech: Speech, error: Exception, time_ns: int) -> None:
        """What the parser of a flow gave could not be told: what is left of it is told plainly."""
        speech.broken = True
        self._emit(time_ns, fail(speech, error), speech)

    def _rescope(self, state: State, speech: Speech, scoped: Scoped) -> None:
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

    def _tell_turns(self, steps: list[Step]) -> None:
        """The same for a batch of one flow in which both ends spoke: the shortest way, for in a
        chat every message is a turn. Records are put in order of time later."""
        _, state, _, _ = steps[0]
        speech = state.parser
        assert speech is not None
        arrivals: list[tuple[int, Direction, int, int]] = []
        for _, _, direction, run in steps:
            assert isinstance(run, tuple)
            offset, data, ends, times = run
            self.hearing.bytes += 0 if data is None else len(data)
            speech.offsets[direction] = ends[-1]
            arrivals += zip(times, repeat(direction), (offset, *ends), ends, strict=False)
        arrivals.sort(key=time_of)
        interpret = self.conversations.interpret
        for when, direction, begin, end in arrivals:
            event = OpaqueData(offset=begin, length=end - begin)
            meanings = interpret(state.flow, OPAQUE, direction, when, event)
            if meanings:
                self._give(meanings, state)

    def _tell(
        self,
        state: State,
        speech: Speech,
        direction: Direction,
        event: Event,
        time_ns: int,
        data: bytes | memoryview | None = None,
    ) -> None:
        if speech.broken:
            if not event.length:
                return
            event = OpaqueData(offset=event.offset, length=event.length)
        if self._wanted.wants_type(event):
            self._emit(time_ns, event, speech, speech.sides[direction])
        meanings = self.conversations.interpret(
            state.flow, speech.name, direction, time_ns, event, data
        )
        if meanings:
            self._give(meanings, state)

    def _give(self, meanings: Sequence[Meaning], state: State | None = None) -> None:
        places = self._wanted.places
        for meaning in meanings:
            pattern = meaning.pattern
            if places is not None and pattern.place() not in places:
                continue
            of = state
            if of is None or of.flow.flow_id != meaning.flow_id:
                of = self.table.find(meaning.flow_id)
            speech = of.parser if of is not None else None
            if speech is None:
                self._put(meaning.time_ns, pattern, content=self._wanted.least)
                continue
            content = speech.content
            if of is not state and state is not None and state.parser is not None:
                content = min(content, state.parser.content)  # it may tell what another flow said
            self._out.append(
                Record(
                    time_ns=meaning.time_ns,
                    body=clean(pattern, content, self._key),
                    flow=speech.info,
                    direction=speech.sides[meaning.direction],
                    content=content,
                )
            )

    def _close(self, state: State, speech: Speech, closed: Closed) -> None:
        ending = self._demux.close(closed)
        assert ending is not None
        left: dict[int, list[Step]] = {}
        for direction in Direction:
            self._collect(state, direction, ending.items[direction], left)
        said: list[Word] = []
        for steps in left.values():
            self.hearing.hear(steps, said)
        if not speech.secondary:
            self.hearing.end(state, speech, closed.time_ns, said)
        self._tell_all(said)
        try:
            if not speech.secondary:
                ended = self.conversations.closed(state.flow, closed.time_ns, closed.reason)
                self._give(ended, state)
        except Exception as error:  # as in _tell_all; the flow is closed all the same
            self._break(state, speech, error, closed.time_ns)
        certificate = ending.certificate
        body = FlowClosed(
            reason=closed.reason,
            sent=certificate.sent,
            received=certificate.received,
            sent_total=certificate.sent_total,
            received_total=certificate.received_total,
            missing=certificate.missing,
            complete=certificate.complete,
            duration_ns=certificate.duration_ns,
            sent_counted=certificate.sent_counted,
            received_counted=certificate.received_counted,
            missing_ranges=certificate.missing_ranges,
        )
        self._emit(closed.time_ns, body, speech)

    # --- time, and the way out -------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """A `tick` will soon have something to say."""
        return self.conversations.pending

    def tick(self, now_ns: int) -> list[Record]:
        """Time has come to `now_ns` and everything older has been fed."""
        self._give(self.conversations.tick(now_ns))
        return self.feed(self.table.expire(now_ns))

    def standing(self, now_ns: int) -> list[Record]:
        """The flows that are open, as if they had been found at `now_ns`: midstream, with what has
        passed of each direction, and will not be told yet, as a gap. Whatever is wanted
        otherwise."""
        out, self._out = self._out, []
        for state in self.table:
            if state.parser is not None:
                self._stand(state, state.parser, now_ns)
        found, self._out = self._out, out
        return found

    def _stand(self, state: State, speech: Speech, now_ns: int) -> None:
        self._put(now_ns, FlowOpened(midstream=True), speech)
        for direction in Direction:
            passed = state.streams[direction].offset
            untold = self.conversations.untold(state.flow, direction)
            if passed := passed if untold is None else min(untold, passed):
                gap = StreamGap(offset=0, length=passed, cause="midstream")
                self._put(now_ns, gap, speech, speech.sides[direction])
        if speech.name:
            how = confidence(speech, speech.name)
            self._put(now_ns, FlowIdentified(protocol=speech.name, confidence=how), speech)

    def note(self, time_ns: int, body: Body) -> list[Record]:
        """A record that is about no flow."""
        self._emit(time_ns, body)
        return self._flush()

    def _emit(
        self,
        time_ns: int,
        body: Body,
        speech: Speech | None = None,
        side: str | None = None,
        content: Content | None = None,
    ) -> None:
        """Where it is wanted. content: the most that it tells; by default what the flow's records
        do."""
        if self._wanted.wants(body):
            self._put(time_ns, body, speech, side, content)

    def _put(
        self,
        time_ns: int,
        body: Body,
        speech: Speech | None = None,
        side: str | None = None,
        content: Content | None = None,
    ) -> None:
        info = None
        if speech is not None:
            info = speech.info
            content = speech.content if content is None else content
        elif content is None:
            content = self._wanted.content
        cleaned = clean(body, content, self._key)
        self._out.append(
            Record(time_ns=time_ns, body=cleaned, flow=info, direction=side, content=content)
        )

    def _flush(self) -> list[Record]:
        records, self._out = self._out, []
        # A burst is told when it has ended, with the time of its last byte.
        records.sort(key=_record_time)
        self.records += len(records)
        return records


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
