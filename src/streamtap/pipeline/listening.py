"""The first half of the way: what a source gives to words.

First every item meets its flow and its stream. Then each flow is heard by itself: its runs of
bytes go to its parser and become words, each with its time. What all flows said is put in the order
of time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from streamtap.demux import Demux, Tap
from streamtap.events import StreamLimit
from streamtap.flows import FlowTable
from streamtap.model import (
    LONG_AGO_NS,
    Chunk,
    Closed,
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
from streamtap.pipeline.speech import Speech
from streamtap.pipeline.steps import State, Step, first_ns, in_order, is_plain, time_of
from streamtap.pipeline.wanted import Wanted
from streamtap.pipeline.words import NOBODY, Begun, Ended, Note, Word
from streamtap.protocols import Limits, by_name
from streamtap.streams import Reassembler

SetPolicy = Callable[[int, Policy], None]
LIMIT_PAUSE_NS = 1_000_000_000  # between two words on flows that were refused
MOST = 1 << 16  # words of a batch that are put in order together: what is usual gives fewer


class Listening:
    """Hears all flows. Fed with batches by its owner; does no IO.

    wanted: where records are wanted, and how much they tell. protocol, both_ends, set_policy, taps:
        as of a `Pipeline`. follows: which flows are; None for all.
    bytes, gaps: how many came out of the streams.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        protocol: str | None = None,
        both_ends: bool = False,
        set_policy: SetPolicy | None = None,
        limits: Limits | None = None,
        follows: Callable[[Flow], bool] | None = None,
        taps: Sequence[Tap] = (),
        max_flows: int = 65_536,
        idle_ns: int | None = None,
    ) -> None:
        self._demux: Demux[Speech] = Demux(
            self, wanted=follows, taps=taps, max_flows=max_flows, idle_ns=idle_ns
        )
        self.table: FlowTable[Reassembler, Speech] = self._demux.table
        self.bytes = 0
        self.gaps = 0
        self._wanted = wanted
        self._hearing = Hearing(wanted, self._copy)
        self._forced = by_name(protocol) if protocol else None
        self._both_ends = both_ends
        self._set_policy = set_policy
        self._limits = limits or Limits()
        self._max_flows = max_flows
        self._refused = 0
        self._refused_due_ns = 0
        self._flows: dict[int, list[Step]] = {}  # of the batch, in the order of their flows
        self._said: list[Word] = []  # of the batch, about no flow

    # --- what is wanted --------------------------------------------------------------------------

    def plan(self) -> None:
        """What is wanted has changed. What no parser knows is copied again where its bytes are
        wanted now, and counted where they are not any more."""
        for state in self.table:
            speech = state.parser
            if speech is not None:
                self._plan(state, speech)

    def rescoped(self, flow: Flow) -> None:
        """That a flow is in other filters now was told."""
        state = self.table.find(flow.flow_id)
        if state is not None and state.parser is not None:
            state.flow = flow
            self._plan(state, state.parser)

    def _plan(self, state: State, speech: Speech) -> None:
        speech.content = self._wanted.content_of(state.flow)
        if speech.is_plain and not speech.secondary:
            self._hearing.stay_plain(state, speech)

    # --- items to runs, runs to words ------------------------------------------------------------

    def feed(
        self, items: Iterable[Opened | Segment | Closed | Scoped]
    ) -> Iterator[tuple[list[Word], bool]]:
        """The words that a batch gives, in the order of time; of a batch that gives very many, some
        at a time. With each: whether that is all. Views in the batch are in these words, and
        nowhere else."""
        words: list[Word] = []
        for said in self.hear(items):
            words += said
            if len(words) >= MOST:
                yield in_order(words), False
                words = []
        yield in_order(words), True

    def hear(self, items: Iterable[Opened | Segment | Closed | Scoped]) -> Iterator[Sequence[Word]]:
        """The same flow by flow: what each says is in stream order."""
        closed = self._demux.feed(items)
        flows, self._flows = self._flows, {}
        general, self._said = self._said, []
        yield general
        # When those that end began, and spoke last.
        spoke = {item.flow_id: (LONG_AGO_NS, LONG_AGO_NS) for item in closed}
        for flow_id, own in flows.items():
            begin_ns = last_ns = LONG_AGO_NS
            for said in self._speak(own):
                if said and type(said[0][3]) is Begun:
                    begin_ns = said[0][0]
                if flow_id in spoke:
                    last_ns = max((last_ns, *map(time_of, said)))
                yield said
            if flow_id in spoke:
                spoke[flow_id] = begin_ns, max((last_ns, *map(time_of, own)))
        for item in closed:
            yield from self._close(item, *spoke[item.flow_id])

    def _speak(self, own: list[Step]) -> Iterator[list[Word]]:
        """What one flow says; when it begins, that goes before all else."""
        if is_plain(own):
            yield [self._hearing.turn(own)]
            return
        heard = self._hearing.hear(own)
        if type(own[0][3]) is not Begun:
            yield from heard
            return
        # What came with the handshake was seen before the opening was.
        own[0] = (min(map(first_ns, own)), *own[0][1:])
        said = next(heard)
        begin_ns = min(map(time_of, said))  # also where the clock of a capture went back
        yield [(begin_ns, *said[0][1:]), *said[1:]]
        for said in heard:
            yield _not_before(begin_ns, said)

    def give(self, state: State, direction: Direction, items: Sequence[StreamItem]) -> None:
        """What a direction says next, kept until the batch has come."""
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
            self._said.append((flow.opened_ns, NOBODY, Direction.TO_SERVER, Note(body)))

    def begin(self, state: State, opened: Opened) -> None:
        """A flow begins: who listens to it, and what passed before."""
        flow = state.flow
        secondary = not state.primary and not self._both_ends
        protocol = self._wanted.terms_of(flow).protocol
        state.parser = Speech(
            self._limits,
            secondary=secondary,
            content=self._wanted.content_of(flow),
            forced=by_name(protocol) if protocol else self._forced,
        )
        pair = NOBODY if state.paired is None else state.paired.flow.flow_id
        if secondary:
            # Nobody will look at the bytes of this flow: let them be counted, not copied.
            self._copy(state, Policy.COUNT)
        steps = self._flows.setdefault(flow.flow_id, [])
        begun = Begun(flow, state.peer, pair)
        steps.append((flow.opened_ns, state, Direction.TO_SERVER, begun))
        for direction in Direction:
            if opened.offsets[direction]:
                gap = Gap(0, opened.offsets[direction], "midstream", flow.opened_ns)
                self._collect(state, direction, (gap,), self._flows)

    def scoped(self, state: State, scoped: Scoped) -> None:
        """A flow is in other filters; once what it said in this batch has been told."""
        step = (scoped.time_ns, state, Direction.TO_SERVER, scoped)
        self._flows.setdefault(scoped.flow_id, []).append(step)

    def _close(self, closed: Closed, begin_ns: int, last_ns: int) -> Iterator[list[Word]]:
        """A flow ends: what is left of it is heard, then it has ended. It is told between when it
        began and after all that it said, whatever the clocks say."""
        ending = self._demux.close(closed)
        if ending is None:
            return  # what came early for it will not be claimed
        state, speech = ending.state, ending.state.parser
        assert speech is not None
        left: dict[int, list[Step]] = {}
        for direction in Direction:
            self._collect(state, direction, ending.items[direction], left)
        for steps in left.values():
            for said in self._hearing.hear(steps):
                words = _not_before(begin_ns, said)
                last_ns = max((last_ns, *map(time_of, words)))
                yield words
        words = [] if speech.secondary else self._hearing.end(state, closed.time_ns)
        words = _not_before(begin_ns, words)
        time_ns = max((closed.time_ns, last_ns, *map(time_of, words)))
        ended = Ended(closed, ending.certificate)
        words.append((time_ns, closed.flow_id, Direction.TO_SERVER, ended))
        yield words

    def _copy(self, state: State, policy: Policy) -> None:
        if self._set_policy is not None and state.policy is not policy:
            state.policy = policy
            self._set_policy(state.flow.flow_id, policy)


def _not_before(begin_ns: int, said: list[Word]) -> list[Word]:
    return [(max(word[0], begin_ns), *word[1:]) for word in said]
