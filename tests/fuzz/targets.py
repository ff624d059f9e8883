"""What fuzzing feeds: any bytes in, an exception for a fault.

`scripts/fuzz` makes a coverage-guided run of it; `seeds` and `words` give it something to begin
with. What it finds becomes a file `corpus/NAME-….bin`, replayed by `test_corpus.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from fuzz import reading
from helpers import transcripts
from helpers.streams import Script, Step, Trace, assert_tiles, bytewise, run
from protocols.samples import HTTP, MSNP, SLP, packet, second
from streamtap.events import Body, ParserFailed, Record
from streamtap.model import App, Closed, Content, Direction, Endpoint, Flow, Opened, Role, Segment
from streamtap.patterns import Conversations, Pattern, clean
from streamtap.patterns.msnp.mime import fields_of, parse_mime
from streamtap.patterns.msnp.transfers import FILE_GUIDS, MEDIA_GUIDS
from streamtap.patterns.msnp.words import (
    account_of,
    list_entries,
    personal_message,
    presence_of,
    roster,
    roster_status,
    routed,
)
from streamtap.pipeline import Pipeline, Word, WordReader, write_words
from streamtap.protocols import Limits
from streamtap.protocols.msnp import MsnpParser
from streamtap.protocols.msnp.commands import FORMS, OPENINGS
from streamtap.protocols.msnp.p2p import decode, decode_all, parse_slp
from streamtap.protocols.msnp.secrets import redact_payload

SMALL = Limits(line=64, headers=256, payload=256, probe=64)
KEY = b"k" * 16
WORDS = WordReader()
START_NS = 1_227_567_676_000_000_000
MIDSTREAM, SMALLER = 1, 2  # bits of the first byte of an input
CLIENTS, LOST, FLOW, AGAIN = 1, 2, 4, 16  # bits of the first byte of a step
FLOWS = 4
GOLDEN = Path(__file__).parent.parent / "golden" / "msnp"


def steps_of(data: bytes) -> Iterator[Step]:
    """Steps from bytes: each has a byte of flags, two of length, and if it is no gap the data."""
    at = 0
    while at + 3 <= len(data):
        direction = Direction.TO_CLIENT if data[at] & CLIENTS else Direction.TO_SERVER
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        at += 3
        if data[at - 3] & LOST:
            yield direction, length or 1
            continue
        yield direction, data[at : at + length]
        at += length


def bytes_of(flags: int, steps: Sequence[Step]) -> bytes:
    """The reverse of `steps_of`, with the first byte of an input."""
    out = bytearray([flags])
    for direction, data in steps:
        length = data if isinstance(data, int) else len(data)
        out += bytes([direction | (LOST if isinstance(data, int) else 0)])
        out += length.to_bytes(2, "big")
        out += b"" if isinstance(data, int) else data
    return bytes(out)


def conversation(data: bytes) -> None:
    """A flow through the parser, whole and byte by byte, then to patterns and records."""
    if not data:
        return
    limits = SMALL if data[0] & SMALLER else Limits()
    midstream = bool(data[0] & MIDSTREAM)
    steps = list(steps_of(data[1:]))
    whole = run(MsnpParser, steps, midstream=midstream, limits=limits)
    assert_tiles(whole)
    if len(data) < 4096:
        single = run(MsnpParser, bytewise(steps), midstream=midstream, limits=limits)
        assert_tiles(single)
        assert single.merged() == whole.merged()
    MsnpParser.probe(*(_joined(steps, direction) for direction in Direction))
    meanings(whole, midstream)


def _joined(steps: Script, direction: Direction) -> bytes:
    return b"".join(data for way, data in steps if way is direction and isinstance(data, bytes))


def meanings(trace: Trace, midstream: bool) -> None:
    """Events to patterns to what records show."""
    ends = Endpoint("10.0.0.2", 1025), Endpoint("192.0.2.20", 1863)
    flow = Flow(1, None, *ends, Role.CLIENT, START_NS, midstream)
    conversations = Conversations(Content.FULL)
    time_ns = START_NS
    words: list[Word] = []
    for direction in (Direction.TO_CLIENT, Direction.TO_SERVER):
        for event in trace.of(direction):
            time_ns += 1_000_000_000
            words.append((time_ns, flow.flow_id, direction, event))
            bodies: list[Body] = [event]
            for meaning in conversations.interpret(flow, direction, time_ns, event):
                assert isinstance(meaning.pattern, Pattern)
                bodies.append(meaning.pattern)
            conversations.tick(time_ns)
            for body in bodies:
                for content in Content:
                    msgspec.json.encode(clean(body, content, KEY))
    conversations.closed(flow, time_ns)
    ((pieces, whole),) = write_words([words])
    assert whole
    assert [word for piece in pieces for word in WORDS.read(piece)] == words


def packets(data: bytes) -> None:
    """Peer-to-peer packets and MSNSLP."""
    for footer in (False, True):
        for either in (False, True):
            decode(data, footer=footer, second=either)
    for raw, length in decode_all(data):
        assert length
        assert len(raw.data) <= length
    slp = parse_slp(data)
    if slp is not None:
        msgspec.json.encode(slp)


def payloads(data: bytes) -> None:
    """MIME messages, routed payloads, lists and presence in XML."""
    announced = len(data) + 5
    parse_mime(data, announced)
    routed(data, announced)
    roster_status(data)
    roster(data)
    personal_message(data)
    list_entries(data)
    fields_of(data)
    text = data.decode("utf-8", "backslashreplace")
    account_of(text)
    presence_of(tuple(text.split(" ")))
    for verb in ("MSG", "UUN", "SDG"):
        redact_payload(verb, ["1", "10" if verb == "UUN" else "x"], data)


class Placed(NamedTuple):
    """What one end of one of `FLOWS` flows says next; data: bytes, or how many were lost.

    again: it begins earlier by its own length, as what TCP sends again does.
    """

    flow: int
    direction: Direction
    data: bytes | int
    again: bool = False


def placed_of(data: bytes) -> Iterator[Placed]:
    """As `steps_of`, with further flags: the flow, and whether the bytes come again."""
    at = 0
    while at + 3 <= len(data):
        flags, length = data[at], int.from_bytes(data[at + 1 : at + 3], "big")
        direction = Direction.TO_CLIENT if flags & CLIENTS else Direction.TO_SERVER
        flow = flags // FLOW % FLOWS
        at += 3
        if flags & LOST:
            yield Placed(flow, direction, length)
            continue
        yield Placed(flow, direction, data[at : at + length], bool(flags & AGAIN))
        at += length


def placed_bytes(flags: int, steps: Iterable[Placed]) -> bytes:
    """The reverse of `placed_of`, with the first byte of an input."""
    out = bytearray([flags])
    for flow, direction, data, again in steps:
        lost = isinstance(data, int)
        length = data if isinstance(data, int) else len(data)
        out.append(direction | flow % FLOWS * FLOW | (LOST if lost else AGAIN if again else 0))
        out += length.to_bytes(2, "big")
        out += b"" if isinstance(data, int) else data
    return bytes(out)


def pipelined(data: bytes, protocol: str | None) -> None:
    """Flows of one application through the whole pipeline: segments that are lost or come again,
    what is said across flows, and the time limits of what stays incomplete. The first byte says
    what a record may tell and which flows were open before."""
    if not data:
        return
    pipeline = Pipeline(protocol=protocol, content=Content(data[0] % len(Content)), key=KEY)
    app = App("/usr/bin/pidgin", 4121, "pidgin", 1000, "", "")
    places = [[0, 0] for _ in range(FLOWS)]
    records: list[Record] = []
    time_ns = START_NS
    for number in range(FLOWS):
        port = 80 if protocol == "http" else 1863
        ends = Endpoint("10.0.0.2", 1025 + number), Endpoint(f"192.0.2.{20 + 10 * number}", port)
        midstream = bool(data[0] >> 4 + number & 1)
        flow = Flow(number, app, *ends, Role.CLIENT, time_ns, midstream)
        records += pipeline.feed([Opened(flow, (0, 0))])
    for number, direction, piece, again in placed_of(data[1:]):
        time_ns += 1_000_000_000
        place = places[number]
        length = piece if isinstance(piece, int) else len(piece)
        start = max(0, place[direction] - length) if again else place[direction]
        if isinstance(piece, bytes):
            segment = Segment(number, direction, start, memoryview(piece), time_ns)
            records += pipeline.feed([segment])
        place[direction] = max(place[direction], start + length)
        records += pipeline.tick(time_ns)
    for number in range(FLOWS):
        records += pipeline.feed([Closed(number, time_ns, "fin")])
    records += pipeline.tick(time_ns + 1_000_000_000_000)
    for record in records:
        assert not isinstance(record.body, ParserFailed), record.body
        msgspec.json.encode(record.body)


def web(data: bytes) -> None:
    """Flows that speak HTTP: gateway and tunnels."""
    pipelined(data, "http")


def flows(data: bytes) -> None:
    """Flows of which the first bytes say what they speak."""
    pipelined(data, None)


GATEWAY = (
    (
        Direction.TO_SERVER,
        b"POST /gateway/gateway.dll?Action=open&Server=NS&IP=192.0.2.20 HTTP/1.1\r\n"
        b"Content-Length: 18\r\n\r\nVER 1 MSNP8 CVR0\r\n",
    ),
    (
        Direction.TO_CLIENT,
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n"
        b"X-MSN-Messenger: SessionID=1.1; GW-IP=192.0.2.80\r\n\r\nVER 1 MSNP8\r\n",
    ),
    (
        Direction.TO_SERVER,
        b"POST /gateway/gateway.dll?Action=poll&SessionID=1.1 HTTP/1.1\r\n\r\n"
        b"CONNECT h:1863 HTTP/1.1\r\n\r\nVER 1 MSNP8\r\n",
    ),
    (
        Direction.TO_CLIENT,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
        b"X-MSN-Messenger: SessionID=1.2; Session=close\r\n\r\n5\r\nVER 1\r\n0\r\n\r\n",
    ),
)

TARGETS: dict[str, Callable[[bytes], None]] = {
    "conversation": conversation,
    "packets": packets,
    "payloads": payloads,
    "web": web,
    "flows": flows,
    "files": reading.files,
    "frames": reading.frames,
}
OF_CAPTURES = ("files", "frames")


def words(name: str) -> Iterator[bytes]:
    """What a target looks for: a dictionary for mutations."""
    if name in OF_CAPTURES:
        yield from reading.words()
        return
    for forms in FORMS:
        yield from (verb.encode() for verb in forms if not verb.isdigit())
    yield from (opening for openings in OPENINGS.values() for opening in openings)
    yield from (b"\r\n", b"\r\n\r\n", b" OK", b" 0", b"217 1 5", b" CKI ", b"MSNP21", b"{1}", b"@e")
    yield from (f"{name}: ".encode() for name in FIELDS.split())
    yield from (guid.encode() for guid in (*FILE_GUIDS, *MEDIA_GUIDS))


FIELDS = """
Content-Type Content-Length Message-ID Chunks Chunk TypingUser P2P-Dest P2P-Src Routing Reliability
Messaging Notification Publication From To Uri Message-Type Message-Subtype Call-ID Via EUF-GUID
SessionID Context Nonce Hashed-Nonce Bridge Listening IPv4Internal-Addrs IPv4Internal-Port
Invitation-Command Invitation-Cookie Application-GUID Application-File Application-FileSize
AuthCookie IP-Address PortX Cancel-Code X-MSN-Messenger Transfer-Encoding Mail-Data MSPAuth
"""


def seeds(name: str) -> Iterator[bytes]:
    """Inputs that a run of this target begins with."""
    if name in OF_CAPTURES:
        yield from reading.seeds(name)
    elif name == "conversation":
        for number, script in enumerate((*MSNP, *HTTP[:1])):
            yield bytes_of(number & 3, script)
            yield bytes_of(0, script)
    elif name == "web":
        yield placed_bytes(0, (Placed(0, *step) for step in GATEWAY))
        twice = [Placed(number % 3, *step) for number, step in enumerate((*GATEWAY, *GATEWAY))]
        yield placed_bytes(1, (*twice[:4], Placed(0, Direction.TO_CLIENT, 10), *twice[4:]))
    elif name == "flows":
        for path in sorted(GOLDEN.glob("*.transcript")):
            transcript = transcripts.read(path)
            numbers = {flow: number for number, flow in enumerate(transcript.flows)}
            yield placed_bytes(
                1,
                (
                    Placed(numbers[step.flow], step.direction, step.data)
                    for step in transcript.steps
                    if step.data is not None
                ),
            )
    elif name == "packets":
        yield SLP
        yield packet(0, SLP, len(SLP))
        yield second(SLP) + second(b"data", 9)
    else:
        for script in MSNP:
            for _, data in script:
                assert isinstance(data, bytes)
                yield data.partition(b"\r\n")[2]
