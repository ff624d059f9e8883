"""The last pass: what flows said, in the order of time, to records.

Events go to the patterns, which know of all flows; what is wanted of what comes out is cleaned, and
put into a record.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Protocol

from streamtap.events import (
    Body,
    Event,
    FlowClosed,
    FlowIdentified,
    FlowOpened,
    Record,
    StreamGap,
)
from streamtap.flows import Certificate, FlowTable
from streamtap.model import Closed, Content, Direction, Opened, Scoped
from streamtap.patterns import Conversations, Meaning, clean
from streamtap.pipeline.hearing import confidence, fail
from streamtap.pipeline.steps import Break, Note, Shown, State, Step, Told, Word, time_of
from streamtap.pipeline.wanted import Wanted
from streamtap.protocols.opaque import OpaqueData
from streamtap.speech import OPAQUE, Speech
from streamtap.streams import Reassembler

_record_time = attrgetter("time_ns")


class Changes(Protocol):
    """Who does what words change, when all that was said before them has been told."""

    def flow_closed(self, state: State, speech: Speech, closed: Closed) -> None: ...

    def flow_rescoped(self, state: State, speech: Speech, scoped: Scoped) -> None: ...


class Telling:
    """Makes records, and keeps them until they are flushed.

    table: where the flows are that a meaning may be about. key: of the hashes of names; random by
    default. records: how many there were.
    """

    def __init__(
        self,
        wanted: Wanted,
        table: FlowTable[Reassembler, Speech],
        changes: Changes,
        key: bytes | None,
    ) -> None:
        self.conversations = Conversations(wanted.content)
        self.records = 0
        self._wanted = wanted
        self._table = table
        self._changes = changes
        self._key = os.urandom(16) if key is None else key
        self._out: list[Record] = []

    def tell(self, said: Iterable[Word]) -> None:
        """Words in the order of time."""
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
                self._break(speech, error, time_ns)

    def tell_turns(self, steps: list[Step]) -> None:
        """The steps of one flow of which only bursts are told, and in which both ends spoke: the
        shortest way, for in a chat every message is a turn. Records are put in order of time
        later."""
        _, state, _, _ = steps[0]
        speech = state.parser
        assert speech is not None
        arrivals: list[tuple[int, Direction, int, int]] = []
        for _, _, direction, run in steps:
            assert isinstance(run, tuple)
            offset, _, ends, times = run
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
            self.emit(time_ns, event, speech, speech.sides[direction])
        meanings = self.conversations.interpret(
            state.flow, speech.name, direction, time_ns, event, data
        )
        if meanings:
            self._give(meanings, state)

    def _put_down(
        self, state: State, speech: Speech, direction: Direction, told: Told, time_ns: int
    ) -> None:
        """What is no event."""
        if isinstance(told, Shown):
            self._tell(state, speech, direction, told.event, time_ns, told.data)
        elif isinstance(told, Note):
            side = speech.sides[direction] if told.sided else None
            self.emit(time_ns, told.body, speech, side)
        elif isinstance(told, Break):
            self._give(self.conversations.gap(state.flow, direction, time_ns), state)
        elif isinstance(told, Opened):
            self.emit(time_ns, FlowOpened(midstream=state.flow.midstream), speech)
        elif isinstance(told, Closed):
            self._changes.flow_closed(state, speech, told)
        elif isinstance(told, Scoped):
            self._changes.flow_rescoped(state, speech, told)

    def _break(self, speech: Speech, error: Exception, time_ns: int) -> None:
        """What the parser of a flow gave could not be told: what is left of it is told plainly."""
        speech.broken = True
        self.emit(time_ns, fail(speech, error), speech)

    def end(self, state: State, speech: Speech, closed: Closed, certificate: Certificate) -> None:
        """A flow has ended, and all it said was told."""
        if not speech.secondary:
            try:
                ended = self.conversations.closed(state.flow, closed.time_ns, closed.reason)
                self._give(ended, state)
            except Exception as error:  # as in `tell`; the flow is closed all the same
                self._break(speech, error, closed.time_ns)
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
        self.emit(closed.time_ns, body, speech)

    def tick(self, now_ns: int) -> None:
        """Time has come to `now_ns`."""
        self._give(self.conversations.tick(now_ns))

    def standing(self, now_ns: int) -> list[Record]:
        """The open flows as if they had been found at `now_ns`: midstream, with what has passed of
        each direction, and will not be told yet, as a gap. Whatever is wanted otherwise."""
        out, self._out = self._out, []
        for state in self._table:
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

    # --- to records ------------------------------------------------------------------------------

    def _give(self, meanings: Sequence[Meaning], state: State | None = None) -> None:
        """What patterns told, of this flow mostly."""
        places = self._wanted.places
        for meaning in meanings:
            pattern = meaning.pattern
            if places is not None and pattern.place() not in places:
                continue
            of = state
            if of is None or of.flow.flow_id != meaning.flow_id:
                of = self._table.find(meaning.flow_id)
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

    def emit(
        self, time_ns: int, body: Body, speech: Speech | None = None, side: str | None = None
    ) -> None:
        """A record of a flow or of none, where it is wanted."""
        if self._wanted.wants(body):
            self._put(time_ns, body, speech, side)

    def _put(
        self,
        time_ns: int,
        body: Body,
        speech: Speech | None = None,
        side: str | None = None,
        content: Content | None = None,
    ) -> None:
        """content: the most that it tells; by default what the flow's records do."""
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

    def flush(self) -> list[Record]:
        """The records that were made since the last time, in the order of time."""
        records, self._out = self._out, []
        # A burst is told when it has ended, with the time of its last byte.
        records.sort(key=_record_time)
        self.records += len(records)
        return records
