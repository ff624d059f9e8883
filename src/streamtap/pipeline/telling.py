"""The second half of the way: what flows said, in the order of time, to records.

Events go to the patterns, which know of all flows; what is wanted of what comes out is cleaned, and
put into a record.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import cast

from streamtap.events import (
    Body,
    Event,
    FlowClosed,
    FlowIdentified,
    FlowOpened,
    Record,
    StreamGap,
)
from streamtap.model import Content, Direction, Flow, Scoped
from streamtap.patterns import Conversations, Meaning, clean
from streamtap.pipeline.hearing import confidence, failure
from streamtap.pipeline.speech import Speech
from streamtap.pipeline.steps import State
from streamtap.pipeline.voice import Voice
from streamtap.pipeline.wanted import Wanted
from streamtap.pipeline.words import (
    Begun,
    Break,
    Ended,
    Note,
    Shown,
    Told,
    Turned,
    Word,
)
from streamtap.protocols.opaque import OpaqueData

# By the very type: to ask for an instance of a Struct costs as much as to make one.
_NO_EVENTS = frozenset({Break, Ended, Note, Scoped, Shown, Turned})
_record_time = attrgetter("time_ns")


class Telling:
    """Makes records, and keeps them until they are flushed.

    key: of the hashes of names; random by default. rescoped: called once it has been told that a
    flow is in other filters. records: how many there were.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        key: bytes | None = None,
        rescoped: Callable[[Flow], None] | None = None,
    ) -> None:
        self.records = 0
        self._wanted = wanted
        self._conversations = Conversations(wanted.content)
        self._key = os.urandom(16) if key is None else key
        self._rescoped = rescoped
        self._voices: dict[int, Voice] = {}  # of the flows that have begun, by their ids
        self._out: list[Record] = []

    def plan(self) -> None:
        """What is wanted has changed."""
        self._conversations.set_content(self._wanted.content)
        for voice in self._voices.values():
            self._plan(voice)

    def _plan(self, voice: Voice) -> None:
        voice.content = self._wanted.content_of(voice.flow)

    @property
    def pending(self) -> bool:
        """A `tick` will soon have something to say."""
        return self._conversations.pending

    def tell(self, said: Iterable[Word]) -> None:
        """Words in the order of time."""
        interpret, wanted, voices = self._conversations.interpret, self._wanted, self._voices
        for time_ns, flow_id, direction, told in said:
            voice = voices.get(flow_id)
            if voice is None:
                self._introduce(time_ns, told)
                continue
            try:
                kind = type(told)
                if kind in wanted.unwanted and not voice.broken:
                    # Most events: what `_tell` does with them, without the call.
                    meanings = interpret(voice.flow, direction, time_ns, cast(Event, told))
                    if meanings:
                        self._give(meanings, voice)
                elif kind in _NO_EVENTS:
                    self._put_down(voice, direction, cast(Told | Scoped, told), time_ns)
                else:
                    self._tell(voice, direction, cast(Event, told), time_ns)
            except Exception as error:  # no bytes may end a watch: it is ours to mend
                self._break(voice, error, time_ns)

    def _introduce(self, time_ns: int, told: Event | Told | Scoped) -> None:
        """What is about no flow, or about a new one."""
        if type(told) is Note:
            self.emit(time_ns, told.body)
            return
        if type(told) is not Begun:  # no bytes may end a watch: it is ours to mend
            self.emit(time_ns, failure("", LookupError("a flow that is not open")))
            return
        flow = told.flow
        voice = Voice(flow, self._wanted.content_of(flow), told.peer)
        if (other := self._voices.get(told.pair)) is not None:
            voice.meet(other)
        self._voices[flow.flow_id] = voice
        self.emit(time_ns, FlowOpened(midstream=flow.midstream), voice)

    def _tell(
        self,
        voice: Voice,
        direction: Direction,
        event: Event,
        time_ns: int,
        data: memoryview | None = None,
    ) -> None:
        if voice.broken:
            if not event.length:
                return
            event = OpaqueData(offset=event.offset, length=event.length)
        if self._wanted.wants_type(event):
            self.emit(time_ns, event, voice, voice.sides[direction])
        meanings = self._conversations.interpret(voice.flow, direction, time_ns, event, data)
        if meanings:
            self._give(meanings, voice)

    def _put_down(
        self, voice: Voice, direction: Direction, told: Told | Scoped, time_ns: int
    ) -> None:
        """What is no event."""
        if type(told) is Shown:
            self._tell(voice, direction, told.told, time_ns, told.data)
        elif type(told) is Turned:
            for when, turn, begin, end in told.arrivals:
                event = OpaqueData(offset=begin, length=end - begin)
                meanings = self._conversations.interpret(voice.flow, turn, when, event)
                if meanings:
                    self._give(meanings, voice)
        elif type(told) is Note:
            if isinstance(told.body, FlowIdentified):
                voice.protocol = told.body.protocol
            side = voice.sides[direction] if told.sided else None
            self.emit(time_ns, told.body, voice, side)
        elif type(told) is Break:
            self._give(self._conversations.gap(voice.flow, direction, time_ns), voice)
        elif type(told) is Ended:
            self._end(voice, told)
        elif type(told) is Scoped:
            voice.rescope(told)
            self._plan(voice)
            if self._rescoped is not None:
                self._rescoped(voice.flow)

    def _break(self, voice: Voice, error: Exception, time_ns: int) -> None:
        """What the parser of a flow gave could not be told: what is left of it is told plainly."""
        voice.broken = True
        self.emit(time_ns, failure(voice.protocol, error), voice)

    def _end(self, voice: Voice, ended: Ended) -> None:
        """A flow has ended, and all it said was told."""
        closed, certificate = ended.closed, ended.certificate
        try:
            last = self._conversations.closed(voice.flow, closed.time_ns, closed.reason)
            self._give(last, voice)
        except Exception as error:  # as in `tell`; the flow is closed all the same
            self._break(voice, error, closed.time_ns)
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
        self.emit(closed.time_ns, body, voice)
        del self._voices[voice.flow.flow_id]

    def tick(self, now_ns: int) -> None:
        """Time has come to `now_ns`."""
        self._give(self._conversations.tick(now_ns))

    def standing(self, flows: Iterable[State], now_ns: int) -> list[Record]:
        """Open flows as if they had been found at `now_ns`: midstream, with what has passed of
        each direction, and will not be told yet, as a gap. Whatever is wanted otherwise."""
        out, self._out = self._out, []
        for state in flows:
            if state.parser is not None:
                self._stand(state, state.parser, now_ns)
        found, self._out = self._out, out
        return found

    def _stand(self, state: State, speech: Speech, now_ns: int) -> None:
        voice = self._voices[state.flow.flow_id]
        self._put(now_ns, FlowOpened(midstream=True), voice)
        for direction in Direction:
            passed = state.streams[direction].offset
            untold = self._conversations.untold(voice.flow, direction)
            if passed := passed if untold is None else min(untold, passed):
                gap = StreamGap(offset=0, length=passed, cause="midstream")
                self._put(now_ns, gap, voice, voice.sides[direction])
        if speech.name:
            how = confidence(speech, speech.name)
            self._put(now_ns, FlowIdentified(protocol=speech.name, confidence=how), voice)

    # --- to records ------------------------------------------------------------------------------

    def _give(self, meanings: Sequence[Meaning], voice: Voice | None = None) -> None:
        """What patterns told, of this flow mostly."""
        places = self._wanted.places
        for meaning in meanings:
            pattern = meaning.pattern
            if places is not None and pattern.place() not in places:
                continue
            of = voice
            if of is None or of.flow.flow_id != meaning.flow_id:
                of = self._voices.get(meaning.flow_id)
            if of is None:
                self._put(meaning.time_ns, pattern, content=self._wanted.least)
                continue
            content = of.content
            if of is not voice and voice is not None:
                content = min(content, voice.content)  # it may tell what another flow said
            self._out.append(
                Record(
                    time_ns=meaning.time_ns,
                    body=clean(pattern, content, self._key),
                    flow=of.info,
                    direction=of.sides[meaning.direction],
                    content=content,
                )
            )

    def emit(
        self, time_ns: int, body: Body, voice: Voice | None = None, side: str | None = None
    ) -> None:
        """A record of a flow or of none, where it is wanted."""
        if self._wanted.wants(body):
            self._put(time_ns, body, voice, side)

    def _put(
        self,
        time_ns: int,
        body: Body,
        voice: Voice | None = None,
        side: str | None = None,
        content: Content | None = None,
    ) -> None:
        """content: the most that it tells; by default what the flow's records do."""
        info = None
        if voice is not None:
            info = voice.info
            content = voice.content if content is None else content
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
