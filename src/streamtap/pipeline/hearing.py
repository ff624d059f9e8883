"""The second pass: what each flow says by itself, from runs of bytes to words that have a time.

Nothing here knows of other flows, so a flow may be heard to the end of a batch before the next one
is. Where a parser hears each direction for itself, that goes for directions too: chunks of many
segments go to it whole, unless they are so long that their words could fill the memory.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from traceback import extract_tb

from streamtap.events import (
    Event,
    FlowIdentified,
    ParserFailed,
    StreamGap,
    StreamLimit,
    StreamOverlap,
)
from streamtap.model import Content, Direction, Gap, Limit, Overlap, Policy, Scoped
from streamtap.patterns import INSIDE
from streamtap.patterns.bursts import PAUSE_NS
from streamtap.pipeline.speech import OPAQUE, Run, Speech
from streamtap.pipeline.steps import (
    Item,
    State,
    Step,
    Turns,
    is_long,
    is_one_sided,
    parts,
    rounds,
    time_of,
)
from streamtap.pipeline.wanted import Wanted
from streamtap.pipeline.words import Break, Note, Shown, Told, Turned, Word
from streamtap.protocols import Parser, by_name
from streamtap.protocols.opaque import OpaqueData

SOME = 1 << 14  # words of a flow that are given on before more of it is heard
FULL = Content.FULL  # looking up an enum's member is slow
TO_SERVER = Direction.TO_SERVER

_log = logging.getLogger(__name__)


class Hearing:
    """Finds out what flows speak, and has their parsers understand it.

    copy: asked to copy more or less of a flow.
    """

    def __init__(self, wanted: Wanted, copy: Callable[[State, Policy], None]) -> None:
        self.wanted = wanted
        self._copy = copy

    def hear(self, steps: list[Step]) -> Iterator[list[Word]]:
        """What the steps of one flow say, in stream order: all of it, or some at a time where it is
        very much."""
        ear = _Ear(self, steps[0][1])
        for together in _in_turn(ear.speech, steps):
            for time_ns, _, direction, item in together:
                if type(item) is tuple and is_long(item):  # the other direction is silent meanwhile
                    for part in parts(item):
                        ear.take(direction, part, part[3][-1])
                        ear.continues = True
                        if len(ear.said) >= SOME:
                            yield ear.give()
                    ear.continues = False
                else:
                    ear.take(direction, item, time_ns)
            if len(ear.said) >= SOME:
                yield ear.give()
        yield ear.said

    def turn(self, steps: list[Step]) -> Word:
        """The steps of one flow of which only bursts are told, and in which both ends spoke: the
        shortest way, for in a chat every message is a turn."""
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
        return arrivals[0][0], state.flow.flow_id, TO_SERVER, Turned(arrivals)

    def end(self, state: State, time_ns: int) -> list[Word]:
        """There will be no more of a flow: what waited, and what its parser holds."""
        ear = _Ear(self, state)
        ear.end(time_ns)
        return ear.said

    def stay_plain(self, state: State, speech: Speech) -> None:
        """It is decided that no parser knows what the flow says."""
        full = speech.content is FULL
        speech.unheard = not self.wanted.plain
        speech.plain = not (full or self.wanted.events)
        self._copy(state, Policy.FULL if full else Policy.COUNT)


class _Ear:
    """Hears one flow.

    said: what it said. continues: what comes next is the same run still.
    """

    __slots__ = ("_flow_id", "_hearing", "_state", "continues", "said", "speech")

    def __init__(self, hearing: Hearing, state: State) -> None:
        assert state.parser is not None
        self.speech = state.parser
        self.said: list[Word] = []
        self.continues = False
        self._flow_id = state.flow.flow_id
        self._hearing = hearing
        self._state = state

    def give(self) -> list[Word]:
        """What it said until now, once."""
        said, self.said = self.said, []
        return said

    def take(self, direction: Direction, item: Item, time_ns: int) -> None:
        """What comes next."""
        try:
            if type(item) is tuple:
                if self.speech.fluent and item[1] is not None:
                    self._understand(direction, item)
                else:
                    self._hear(direction, item, time_ns)
            elif isinstance(item, Gap):
                gap = StreamGap(offset=item.offset, length=item.length, cause=item.cause)
                self._say(time_ns, direction, Note(gap, sided=True))
                self._hear(direction, item, time_ns)
            elif isinstance(item, Overlap):
                overlap = StreamOverlap(offset=item.offset, length=item.length)
                self._say(time_ns, direction, Note(overlap, sided=True))
            elif isinstance(item, Limit):
                limit = StreamLimit(limit=item.limit, value=item.value, count=1)
                self._say(time_ns, direction, Note(limit, sided=True))
            else:
                assert not isinstance(item, tuple)
                self._say(time_ns, direction, item)
        except Exception as error:  # no bytes may end a watch: it is ours to mend
            self._fail(error, time_ns)

    def end(self, time_ns: int) -> None:
        """There will be no more."""
        speech = self.speech
        try:
            if not speech.name:
                self._identify(time_ns, final=True)
            if speech.parser is not None:
                for direction in Direction:
                    for event in speech.parser.end(direction):
                        self._say(time_ns, direction, event)
        except Exception as error:  # the flow is closed all the same
            self._fail(error, time_ns)

    def _say(self, time_ns: int, direction: Direction, told: Event | Told | Scoped) -> None:
        self.said.append((time_ns, self._flow_id, direction, told))

    def _fail(self, error: Exception, time_ns: int) -> None:
        """From now on the flow is plain send and receive."""
        self._say(time_ns, TO_SERVER, Note(failure(self.speech.name, error)))
        self.speech.give_up(by_name(OPAQUE))

    # --- which protocol it is --------------------------------------------------------------------

    def _hear(self, direction: Direction, run: Run, time_ns: int) -> None:
        speech = self.speech
        if speech.secondary:
            return
        if not isinstance(run, tuple):
            self._say(time_ns, direction, Break())
        if speech.looks and not self.continues:
            self._look_again(direction, run, time_ns)
        if speech.name:
            self._parse(direction, run, time_ns)
            return
        final = speech.keep(direction, run)
        self._identify(time_ns, final=final)

    def _identify(self, time_ns: int, *, final: bool) -> None:
        """Decide on the protocol by the first bytes; then give the parser what waited."""
        parser = self.speech.identify(final=final)
        if parser is not None:
            self._settle(parser, confidence(self.speech, parser.name), time_ns)

    def _settle(self, parser: type[Parser], how: str, time_ns: int) -> None:
        state, speech = self._state, self.speech
        waiting = speech.settle(parser, midstream=state.flow.midstream)
        identified = FlowIdentified(protocol=parser.name, confidence=how)
        self._say(time_ns, TO_SERVER, Note(identified))
        if speech.is_plain:
            self._hearing.stay_plain(state, speech)
        for direction, run in waiting:
            self._parse(direction, run, run[3][-1] if isinstance(run, tuple) else run.time_ns)

    def _look_again(self, direction: Direction, run: Run, time_ns: int) -> None:
        parser = self.speech.look_again(direction, run)
        if parser is not None:
            self._say(time_ns, direction, Break())
            self._settle(parser, "content", time_ns)
        elif not self.speech.looks:
            self._hearing.stay_plain(self._state, self.speech)

    # --- what its parser understands -------------------------------------------------------------

    def _parse(self, direction: Direction, run: Run, time_ns: int) -> None:
        speech, parser = self.speech, self.speech.parser
        assert parser is not None
        if not isinstance(run, tuple):
            speech.offsets[direction] = run.offset + run.length
            speech.held[direction] = b""
            for event in parser.gap(direction, run.length):
                self._say(time_ns, direction, event)
            return
        speech.offsets[direction] = run[2][-1]
        if speech.name == OPAQUE:
            self._hear_plain(direction, run)
        elif run[1] is None:  # counted under a policy
            speech.held[direction] = b""
            for event in parser.gap(direction, run[2][-1] - run[0]):
                self._say(run[3][-1], direction, event)
        else:
            self._understand(direction, run)

    def _understand(self, direction: Direction, run: Run) -> None:
        """Bytes to their parser; each event has the time of the segment that completed it."""
        assert isinstance(run, tuple)
        offset, data, ends, times = run
        speech, flow_id, said = self.speech, self._flow_id, self.said
        assert data is not None
        assert speech.parser is not None
        speech.offsets[direction] = ends[-1]
        events = speech.parser.receive(direction, data)
        if speech.name in INSIDE:
            last = len(times) - 1
            if held := speech.held[direction]:  # an event may begin in what came before
                data = held + bytes(data)
                offset -= len(held)
            view = memoryview(data)
            told = offset
            for event in events:
                end = event.offset + event.length
                when = times[min(bisect_left(ends, end), last)]
                part = view[max(0, event.offset - offset) : max(0, end - offset)]
                said.append((when, flow_id, direction, Shown(event, part)))
                told = max(told, end)
            speech.hold(direction, view[told - offset :])
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
            said.append((times[at], flow_id, direction, event))

    def _hear_plain(self, direction: Direction, run: Run) -> None:
        """Plain send and receive: how much and when is all there is to know, whether the bytes
        were copied or counted, so nothing is parsed."""
        assert isinstance(run, tuple)
        offset, data, ends, times = run
        if times[-1] - times[0] < PAUSE_NS and not self._hearing.wanted.events:
            ends, times = ends[-1:], times[-1:]  # no burst ends in between
        begin = offset
        for end, when in zip(ends, times, strict=True):
            event = OpaqueData(offset=offset, length=end - offset)
            if data is not None and self.speech.content is FULL:
                shown = memoryview(data)[offset - begin : end - begin]
                self._say(when, direction, Shown(event, shown))
            else:
                self._say(when, direction, event)
            offset = end


def _in_turn(speech: Speech, steps: list[Step]) -> Iterable[list[Step]]:
    """The steps in the order in which they are heard, which may depend on what is heard. What comes
    together is told in the order of time, whatever is heard first."""
    if is_one_sided(steps):
        return ([step] for step in steps)
    return rounds(steps) if speech.sides_apart else _by_turns(speech, steps)


def _by_turns(speech: Speech, steps: list[Step]) -> Iterator[list[Step]]:
    turns = Turns(steps)
    for step in turns:
        yield [step]
        if speech.sides_apart:
            yield from rounds(turns.rest())
            return


def failure(protocol: str, error: Exception) -> ParserFailed:
    """Something of ours broke on a flow."""
    # The places alone: what an exception says may quote what was said on the wire.
    places = (f"{at.filename}:{at.lineno}" for at in extract_tb(error.__traceback__))
    name = protocol or "unknown"
    _log.error("%s in protocol %s at %s", type(error).__name__, name, ", ".join(places))
    return ParserFailed(protocol=protocol, error=type(error).__name__)


def confidence(speech: Speech, protocol: str) -> str:
    """How the protocol was decided."""
    if speech.forced:
        return "forced"
    return "none" if protocol == OPAQUE else "content"
