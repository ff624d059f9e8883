"""The MSNP parser: one flow, both directions."""

import re
from collections.abc import Iterator
from typing import ClassVar

from streamtap.events import Event, Malformed, Skipped
from streamtap.model import Direction
from streamtap.protocols._base import Limits, Verdict
from streamtap.protocols.msnp.commands import FORMS, OPENING, OPENINGS, is_number, plausible
from streamtap.protocols.msnp.direct import DirectStream, Kind, recognise, recognise_both
from streamtap.protocols.msnp.events import MsnpCommand, MsnpDirect, MsnpPacket, MsnpPrelude
from streamtap.protocols.msnp.framing import CommandStream
from streamtap.protocols.msnp.prelude import Prelude, without_prelude

_HEADER = b"(?i:" + b"|".join(OPENINGS["MSG"]) + b")"
# What no server says, and what no client does.
_OF_CLIENT = re.compile(
    rb"USR [0-9]{1,10} (?:(?:MD5|TWN|SSO|CTP) I |[^ \r\n@]+@[^ \r\n]+ [^ \r\n]+ *\r?\n)"
    rb"|ANS [0-9]{1,10} [^ \r\n@]+@[^ \r\n]+ [^ \r\n]+ [^ \r\n]+ *\r?\n"
    rb"|MSG [0-9]{1,10} [UNADS] [0-9]{1,7}\r?\n" + _HEADER + rb"|CAL [0-9]{1,10} [^ \r\n@]+@"
    rb"|XFR [0-9]{1,10} SB *\r?\n|CVR [0-9]{1,10} 0x|QRY [0-9]{1,10} [^ \r\n]+ 32\r?\n"
    rb"|UUX [0-9]{1,10} [0-9]{1,7}\r?\n<|(?:PUT|SDG) [1-9][0-9]{0,9} [0-9]{1,7}\r?\nRouting:"
    rb"|ADL [1-9][0-9]{0,9} [0-9]{1,7}\r?\n<ml"
)
_OF_SERVER = re.compile(
    rb"(?:NLN|ILN [0-9]{1,10}) [A-Z]{3} [^ \r\n@]+@|FLN [^ \r\n@]+@|USR [0-9]{1,10} OK [^ \r\n@]+@"
    rb"|MSG (?:Hotmail|[^ \r\n@]+@[^ \r\n]+) [^\r\n]+ [0-9]{1,7}\r?\n"
    + _HEADER
    + rb"|(?:JOI|BYE) [^ \r\n@]+@[^ \r\n]+[ \r\n]|IRO [0-9]{1,10} [0-9]+ [0-9]+ [^ \r\n@]+@"
    rb"|RNG [^ \r\n]+ [^ \r\n]+ CKI |XFR [0-9]{1,10} (?:NS [^ \r\n]+[: ]|SB [^ \r\n]+ CKI )"
    rb"|CAL [0-9]{1,10} RINGING |ANS [0-9]{1,10} OK *\r?\n|CHL 0 [0-9]+ *\r?\n"
    rb"|UBX [^ \r\n@]+@[^ \r\n]+ [0-9 ]+\r?\n<|NFY (?:PUT|DEL) [0-9]{1,7}\r?\nRouting:"
    rb"|SDG 0 [0-9]{1,7}\r?\nRouting:|LST (?:N=)?[^ \r\n@]+@"
)
# And what is of this protocol, whoever says it: VER, USR, CHG and lists come back as they went.
_ALSO_CLIENT = re.compile(
    rb"VER [0-9]{1,10} (?:MSNP[0-9]|CVR0)|USR [0-9]{1,10} (?:MD5|TWN|SSO|CTP|SHA) [ISA]\b"
    rb"|XFR [0-9]{1,10} NS|CNT [0-9]{1,10} CON |ADL [0-9]+ [0-9]+\r?\n<"
    rb"|CHG [0-9]+ [A-Z]{3}[ \r]|PNG\r?\n"
)
_ALSO_SERVER = re.compile(
    rb"VER [0-9]{1,10} (?:MSNP|CVR0|0\r)|USR [0-9]+ (?:MD5|TWN|SSO) S |QNG(?: [0-9]+)?\r?\n"
)
# Found anywhere, it tells a flow that was joined in the middle of a message.
_MESSAGE = re.compile(
    rb"MSG (?:[0-9]{1,10} [UNAD]|[^ \r\n@]{1,256}@[^ \r\n]{1,256} [^\r\n]{1,400}) [0-9]{1,5}\r?\n"
    + _HEADER
    + rb"[^\r\n]{0,400}\r?\n"
    + _HEADER
)
# Words that lines of other protocols may begin with too.
_COMMON = frozenset(
    ("ACK", "ADD", "DEL", "GET", "INF", "MSG", "NAK", "NOT", "OUT", "PUT", "REG", "REM", "URL")
)
_HTTP = re.compile(rb"(?:GET|PUT) [^0-9]")
_Streams = tuple[CommandStream, CommandStream] | tuple[DirectStream, DirectStream]
_LINE = 1024  # a first line is decided by then


def _verdict(direction: Direction, data: bytes, patterns: tuple[re.Pattern[bytes], ...]) -> Verdict:
    if any(pattern.match(data) for pattern in patterns):
        return Verdict.YES
    if _MESSAGE.search(data):
        return Verdict.YES
    return _commands(direction, data)


def _commands(direction: Direction, data: bytes) -> Verdict:
    """By two commands in a row, or by one whose payload begins as it should."""
    forms = FORMS[direction]
    stop = 0
    common = True
    for _ in range(2):
        line, end, _ = data[stop : stop + _LINE].partition(b"\n")
        verb = str(line[:3], "latin-1")
        if not end:
            fits = line[3:4] in (b"", b" ", b"\r") and not _HTTP.match(line)
            known = any(known.startswith(verb) for known in forms if known.isalpha() or stop)
            return Verdict.MORE if data and fits and known and len(line) < _LINE else Verdict.NO
        words = str(line.rstrip(b"\r "), "utf-8", "backslashreplace").split(" ")
        form = forms.get(words[0])
        if form is None or not (verb.isalpha() or stop) or not plausible(direction, words):
            return Verdict.NO
        common = common and verb in _COMMON
        stop += len(line) + 1
        if len(words) - 1 in form.counts and is_number(words[-1]) and not form.doubtful:
            length = int(words[-1])
            if verb in OPENINGS and length:
                opening = data[stop : stop + min(length, OPENING)].lower()
                begins = [known.startswith(opening) for known in OPENINGS[verb]]
                if any(map(opening.startswith, OPENINGS[verb])):
                    return Verdict.YES
                return Verdict.MORE if any(begins) and len(opening) < length else Verdict.NO
            stop += length
    return Verdict.NO if common else Verdict.YES


class MsnpParser:
    """One flow of an MSN Messenger client or server.

    The first bytes tell a direct connection from one to a server; what server it is, is a matter
    of meaning and left to the patterns.
    """

    name: ClassVar[str] = "msnp"
    events: ClassVar[tuple[type[Event], ...]] = (
        MsnpCommand,
        MsnpPacket,
        MsnpDirect,
        MsnpPrelude,
        Malformed,
        Skipped,
    )

    def __init__(self, *, limits: Limits, midstream: bool) -> None:
        self._limits = limits
        self._ready: list[Iterator[Event]] = [iter(()), iter(())]  # what was given last
        self._first = (bytearray(), bytearray())  # bytes that do not tell the kind yet
        # What is said to a proxy first, by direction; None once that is over.
        self._preludes: list[Prelude | None] = [None, None]
        if not midstream:
            self._preludes = [Prelude(direction) for direction in Direction]
        self._first_offset = [0, 0]  # where MSNP begins
        self._streams = self._begin(None, midstream=True) if midstream else None

    @classmethod
    def probe(cls, to_server: bytes, to_client: bytes) -> Verdict:
        """By the first bytes of the client; by the server's where only those were seen."""
        if not to_server and not to_client:
            return Verdict.MORE
        to_server = without_prelude(Direction.TO_SERVER, to_server)
        to_client = without_prelude(Direction.TO_CLIENT, to_client)
        if not to_server and not to_client:
            return Verdict.MORE
        kind = recognise_both(to_server, to_client)
        if kind is not False:
            return Verdict.MORE if kind is True else Verdict.YES
        asked = _verdict(Direction.TO_SERVER, to_server, (_OF_CLIENT, _ALSO_CLIENT))
        answered = _verdict(Direction.TO_CLIENT, to_client, (_OF_SERVER, _ALSO_SERVER))
        if Verdict.YES in (asked, answered):
            return Verdict.YES
        return Verdict.MORE if Verdict.MORE in (asked, answered) else Verdict.NO

    @classmethod
    def speaks(cls, data: bytes) -> Direction | None:
        """By a command at the beginning, or a message anywhere."""
        if _OF_CLIENT.match(data):
            return Direction.TO_SERVER
        if _OF_SERVER.match(data):
            return Direction.TO_CLIENT
        found = _MESSAGE.search(data)
        if found is None:
            return None
        return Direction.TO_CLIENT if b"@" in found[0] else Direction.TO_SERVER

    @property
    def sides_apart(self) -> bool:
        return self._streams is not None  # which kind it is, either may tell

    @property
    def held(self) -> int:
        first = len(self._first[0]) + len(self._first[1])
        for prelude in self._preludes:
            first += prelude.held if prelude is not None else 0
        if self._streams is None:
            return first
        return first + self._streams[0].held + self._streams[1].held

    def receive(self, direction: Direction, data: bytes | memoryview) -> Iterator[Event]:
        data = bytes(data)
        streams = self._streams
        if streams is None or self._preludes[direction] is not None or self._first[direction]:
            return self._told(direction, self._begin_with(direction, data))
        return self._told(direction, streams[direction].receive(data))

    def gap(self, direction: Direction, length: int) -> Iterator[Event]:
        stream, events = self._stream(direction)
        return self._told(direction, events + stream.gap(length))

    def end(self, direction: Direction) -> Iterator[Event]:
        stream, events = self._stream(direction)
        return self._told(direction, events + stream.end())

    def _told(self, direction: Direction, events: list[Event]) -> Iterator[Event]:
        """The events, and before them those of an iterator that was not used up."""
        if left := list(self._ready[direction]):
            events = left + events
        ready = self._ready[direction] = iter(events)
        return ready

    def _begin_with(self, direction: Direction, data: bytes) -> list[Event]:
        """The first bytes of a direction, that tell what kind of flow it is."""
        events: list[Event] = []
        prelude = self._preludes[direction]
        if prelude is not None:
            events, data = prelude.receive(data)
            if prelude.finished:
                self._preludes[direction] = None
                self._first_offset[direction] = prelude.offset
                if self._streams is not None:
                    self._streams[direction].begin(prelude.offset)
            if not data:
                return events
        first = self._first[direction]
        first += data
        if self._streams is None:
            kind = recognise(bytes(first))
            if kind is True:
                return events
            self._streams = self._begin(kind or None)
        data = bytes(first)
        first.clear()
        return events + self._streams[direction].receive(data)

    def _stream(self, direction: Direction) -> tuple[CommandStream | DirectStream, list[Event]]:
        """The stream of a direction, and the events of bytes that had not told its kind."""
        if self._streams is None:
            self._streams = self._begin(None)
        events: list[Event] = []
        stream = self._streams[direction]
        prelude = self._preludes[direction]
        if prelude is not None:
            events += prelude.stop()
            self._preludes[direction] = None
            stream.begin(prelude.offset)
        first = self._first[direction]
        if first:
            events += stream.receive(bytes(first))
            first.clear()
        return stream, events

    def _begin(self, kind: Kind | None, *, midstream: bool = False) -> _Streams:
        streams: _Streams
        if kind is None:
            streams = (
                CommandStream(Direction.TO_SERVER, self._limits, midstream=midstream),
                CommandStream(Direction.TO_CLIENT, self._limits, midstream=midstream),
            )
        else:
            streams = (
                DirectStream(kind, Direction.TO_SERVER, self._limits),
                DirectStream(kind, Direction.TO_CLIENT, self._limits),
            )
        for direction in Direction:
            streams[direction].begin(self._first_offset[direction])
        return streams
