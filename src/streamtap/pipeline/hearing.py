"""The second pass: what each flow says by itself, from runs of bytes to words that have a time.

Nothing here knows of other flows, so a flow may be heard to the end of a batch before the next one
is. Where a parser hears each direction for itself, that goes for directions too: chunks of many
segments go to it whole.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable
from traceback import extract_tb

from streamtap.events import FlowIdentified, ParserFailed, StreamGap, StreamLimit, StreamOverlap
from streamtap.model import Content, Direction, Gap, Limit, Overlap, Policy
from streamtap.patterns import INSIDE
from streamtap.patterns.bursts import PAUSE_NS
from streamtap.pipeline.steps import (
    Break,
    Note,
    Shown,
    State,
    Step,
    Turns,
    Word,
    is_one_sided,
)
from streamtap.pipeline.wanted import Wanted
from streamtap.protocols import Parser, by_name
from streamtap.protocols.opaque import OpaqueData
from streamtap.speech import OPAQUE, Run, Speech

FULL = Content.FULL  # looking up an enum's member is slow

_log = logging.getLogger(__name__)


class Hearing:
    """Finds out what flows speak, and has their parsers understand it.

    copy: asked to copy more or less of a flow. gaps, bytes: that were heard of.
    """

    def __init__(self, wanted: Wanted, copy: Callable[[State, Policy], None]) -> None:
        self.gaps = 0
        self.bytes = 0
        self._wanted = wanted
        self._copy = copy

    def hear(self, steps: list[Step], said: list[Word]) -> None:
        """The steps of one flow; what they say is put behind `said`, in stream order."""
        speech = steps[0][1].parser
        assert speech is not None
        if speech.sides_apart or is_one_sided(steps):
            for step in steps:
                self._take(speech, step, said)
            return
        turns = Turns(steps)
        for step in turns:
            self._take(speech, step, said)
            if speech.sides_apart:
                for left in turns.rest():
                    self._take(speech, left, said)
                return

    def end(self, state: State, speech: Speech, time_ns: int, said: list[Word]) -> None:
        """There will be no more: what waited, and what the parser holds."""
        try:
            if not speech.name:
                self._identify(state, speech, time_ns, said, final=True)
            if speech.parser is not None:
                for direction in Direction:
                    said += [
                        (time_ns, state, direction, event) for event in speech.parser.end(direction)
                    ]
        except Exception as error:  # the flow is closed all the same
            said.append((time_ns, state, Direction.TO_SERVER, Note(fail(speech, error))))

    def _take(self, speech: Speech, step: Step, said: list[Word]) -> None:
        time_ns, state, direction, item = step
        try:
            if type(item) is tuple:
                if item[1] is not None:
                    self.bytes += len(item[1])
                    if speech.fluent:
                        self._understand(state, speech, direction, item, said)
                        return
                self._hear(state, speech, direction, item, time_ns, said)
            elif isinstance(item, Gap):
                self.gaps += 1
                gap = StreamGap(offset=item.offset, length=item.length, cause=item.cause)
                said.append((time_ns, state, direction, Note(gap, sided=True)))
                self._hear(state, speech, direction, item, time_ns, said)
            elif isinstance(item, Overlap):
                overlap = StreamOverlap(offset=item.offset, length=item.length)
                said.append((time_ns, state, direction, Note(overlap, sided=True)))
            elif isinstance(item, Limit):
                limit = StreamLimit(limit=item.limit, value=item.value, count=1)
                said.append((time_ns, state, direction, Note(limit, sided=True)))
            else:
                assert not isinstance(item, tuple)
                said.append((time_ns, state, direction, item))
        except Exception as error:  # no bytes may end a watch: it is ours to mend
            said.append((time_ns, state, Direction.TO_SERVER, Note(fail(speech, error))))

    def _hear(
        self,
        state: State,
        speech: Speech,
        direction: Direction,
        run: Run,
        time_ns: int,
        said: list[Word],
    ) -> None:
        if speech.secondary:
            return
        if isinstance(run, Gap):
            said.append((time_ns, state, direction, Break()))
        if speech.looks:
            self._look_again(state, speech, direction, run, time_ns, said)
        if speech.name:
            self._parse(state, speech, direction, run, time_ns, said)
            return
        final = speech.keep(direction, run)
        self._identify(state, speech, time_ns, said, final=final)

    # --- which protocol it is --------------------------------------------------------------------

    def _identify(
        self, state: State, speech: Speech, time_ns: int, said: list[Word], *, final: bool
    ) -> None:
        """Decide on the protocol by the first bytes; then give the parser what waited."""
        parser = speech.identify(final=final)
        if parser is not None:
            self._settle(state, speech, parser, confidence(speech, parser.name), time_ns, said)

    def _settle(
        self,
        state: State,
        speech: Speech,
        parser: type[Parser],
        how: str,
        time_ns: int,
        said: list[Word],
    ) -> None:
        waiting = speech.settle(parser, midstream=state.flow.midstream)
        identified = FlowIdentified(protocol=parser.name, confidence=how)
        said.append((time_ns, state, Direction.TO_SERVER, Note(identified)))
        if speech.is_plain:
            self.stay_plain(state, speech)
        for direction, run in waiting:
            when = run.time_ns if isinstance(run, Gap) else run[3][-1]
            self._parse(state, speech, direction, run, when, said)

    def _look_again(
        self,
        state: State,
        speech: Speech,
        direction: Direction,
        run: Run,
        time_ns: int,
        said: list[Word],
    ) -> None:
        parser = speech.look_again(direction, run)
        if parser is not None:
            said.append((time_ns, state, direction, Break()))
            self._settle(state, speech, parser, "content", time_ns, said)
        elif not speech.looks:
            self.stay_plain(state, speech)

    def stay_plain(self, state: State, speech: Speech) -> None:
        """It is decided that no parser knows what the flow says."""
        full = speech.content is FULL
        speech.unheard = not self._wanted.plain
        speech.plain = not (full or self._wanted.events)
        self._copy(state, Policy.FULL if full else Policy.COUNT)

    # --- what its parser understands -------------------------------------------------------------

    def _parse(
        self,
        state: State,
        speech: Speech,
        direction: Direction,
        run: Run,
        time_ns: int,
        said: list[Word],
    ) -> None:
        parser = speech.parser
        assert parser is not None
        speech.offsets[direction] = run.offset + run.length if isinstance(run, Gap) else run[2][-1]
        if isinstance(run, Gap):
            consequences = parser.gap(direction, run.length)
            said += [(time_ns, state, direction, event) for event in consequences]
        elif speech.name == OPAQUE:
            self._hear_plain(state, speech, direction, run, said)
        elif run[1] is None:  # counted under a policy
            consequences = parser.gap(direction, run[2][-1] - run[0])
            said += [(run[3][-1], state, direction, event) for event in consequences]
        else:
            self._understand(state, speech, direction, run, said)

    def _understand(
        self, state: State, speech: Speech, direction: Direction, run: Run, said: list[Word]
    ) -> None:
        """Bytes to their parser; each event has the time of the segment that completed it."""
        assert isinstance(run, tuple)
        offset, data, ends, times = run
        assert data is not None
        assert speech.parser is not None
        speech.offsets[direction] = ends[-1]
        events = speech.parser.receive(direction, data)
        if speech.name in INSIDE:
            last = len(times) - 1
            for event in events:
                end = event.offset + event.length
                when = times[min(bisect_left(ends, end), last)]
                part = data[max(0, event.offset - offset) : max(0, end - offset)]
                said.append((when, state, direction, Shown(event, part)))
            return
        last = len(ends) - 1
        at = 0
        for event in events:
            if at < last:
                end = event.offset + event.length
                if ends[at] < end:
                    at += 1  # mostly the next segment holds the next event
                    if ends[at] < end:
                        at = min(bisect_left(ends, end, at), last)
            said.append((times[at], state, direction, event))

    def _hear_plain(
        self, state: State, speech: Speech, direction: Direction, run: Run, said: list[Word]
    ) -> None:
        """Plain send and receive: how much and when is all there is to know, whether the bytes
        were copied or counted, so nothing is parsed."""
        assert isinstance(run, tuple)
        offset, data, ends, times = run
        if times[-1] - times[0] < PAUSE_NS and not self._wanted.events:
            ends, times = ends[-1:], times[-1:]  # no burst ends in between
        begin = offset
        for end, when in zip(ends, times, strict=True):
            event = OpaqueData(offset=offset, length=end - offset)
            if data is not None and speech.content is FULL:
                shown = Shown(event, data[offset - begin : end - begin])
                said.append((when, state, direction, shown))
            else:
                said.append((when, state, direction, event))
            offset = end


def fail(speech: Speech, error: Exception) -> ParserFailed:
    """Something of ours broke: from now on the flow is plain send and receive."""
    # The places alone: what an exception says may quote what was said on the wire.
    places = (f"{at.filename}:{at.lineno}" for at in extract_tb(error.__traceback__))
    name = speech.name or "unknown"
    _log.error("%s in protocol %s at %s", type(error).__name__, name, ", ".join(places))
    failed = ParserFailed(protocol=speech.name, error=type(error).__name__)
    speech.give_up(by_name(OPAQUE))
    return failed


def confidence(speech: Speech, protocol: str) -> str:
    """How the protocol was decided."""
    if speech.forced:
        return "forced"
    return "none" if protocol == OPAQUE else "content"
