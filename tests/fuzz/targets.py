"""What fuzzing feeds: any bytes in, an exception for a fault.

A coverage-guided run needs atheris, in an environment of its own (`instrument_imports` around the
import of this module, then `atheris.Setup(argv, TARGETS[name])`, `atheris.Fuzz()`); `seeds` gives
it something to begin with. What it finds becomes a file `corpus/NAME-….bin`, replayed by
`test_corpus.py`.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from helpers.streams import Script, Step, Trace, assert_tiles, bytewise, run
from protocols.samples import HTTP, MSNP, SLP, packet, second
from streamtap.events import Body, ParserFailed, Record
from streamtap.model import Closed, Content, Direction, Endpoint, Flow, Opened, Role, Segment
from streamtap.patterns import Conversations, Pattern, clean
from streamtap.patterns.msnp.mime import fields_of, parse_mime
from streamtap.patterns.msnp.words import (
    account_of,
    list_entries,
    personal_message,
    presence_of,
    roster,
    roster_status,
    routed,
)
from streamtap.pipeline import Pipeline
from streamtap.protocols import Limits
from streamtap.protocols.msnp import MsnpParser
from streamtap.protocols.msnp.p2p import decode, decode_all, parse_slp
from streamtap.protocols.msnp.secrets import redact_payload

SMALL = Limits(line=64, headers=256, payload=256, probe=64)
KEY = b"k" * 16
START_NS = 1_227_567_676_000_000_000
MIDSTREAM, SMALLER = 1, 2  # bits of the first byte of an input
CLIENTS, LOST = 1, 2  # bits of the first byte of a step


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
    for direction in (Direction.TO_CLIENT, Direction.TO_SERVER):
        for event in trace.of(direction):
            time_ns += 1_000_000_000
            bodies: list[Body] = [event]
            for meaning in conversations.interpret(flow, "msnp", direction, time_ns, event):
                assert isinstance(meaning.pattern, Pattern)
                bodies.append(meaning.pattern)
            conversations.tick(time_ns)
            for body in bodies:
                for content in Content:
                    msgspec.json.encode(clean(body, content, KEY))
    conversations.closed(flow, time_ns)


def packets(data: bytes) -> None:
    """Peer-to-peer packets and MSNSLP."""
    for footer in (False, True):
        for endpoints in (False, True):
            decode(data, footer=footer, endpoints=endpoints)
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


def web(data: bytes) -> None:
    """Two flows that speak HTTP, through the whole pipeline: gateway and tunnels. The bits of the
    first byte say in turn which of them a step is of."""
    if not data:
        return
    flows = (1, 2)
    pipeline = Pipeline(protocol="http")
    records: list[Record] = []
    places: dict[int, list[int]] = {}
    time_ns = START_NS
    for number in flows:
        ends = Endpoint("10.0.0.2", 1025 + number), Endpoint("192.0.2.80", 80)
        flow = Flow(number, None, *ends, Role.CLIENT, time_ns)
        records += pipeline.feed([Opened(flow, (0, 0))])
        places[number] = [0, 0]
    for index, (direction, piece) in enumerate(steps_of(data[1:])):
        number = flows[data[0] >> (index & 7) & 1]
        time_ns += 1_000_000_000
        place = places[number]
        length = piece if isinstance(piece, int) else len(piece)
        if isinstance(piece, bytes):
            segment = Segment(number, direction, place[direction], memoryview(piece), time_ns)
            records += pipeline.feed([segment])
        place[direction] += length
        records += pipeline.tick(time_ns)
    for number in flows:
        records += pipeline.feed([Closed(number, time_ns, "fin")])
    records += pipeline.tick(time_ns + 1_000_000_000_000)
    for record in records:
        assert not isinstance(record.body, ParserFailed), record.body
        msgspec.json.encode(record.body)


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
}


def seeds(name: str) -> Iterator[bytes]:
    """Inputs that a run of this target begins with."""
    if name == "conversation":
        for number, script in enumerate((*MSNP, *HTTP[:1])):
            yield bytes_of(number & 3, script)
            yield bytes_of(0, script)
    elif name == "web":
        yield bytes_of(0, GATEWAY)
        yield bytes_of(5, (*GATEWAY, (Direction.TO_CLIENT, 10), *GATEWAY))
    elif name == "packets":
        yield SLP
        yield packet(0, SLP, len(SLP))
        yield second(SLP) + second(b"data", 9)
    else:
        for script in MSNP:
            for _, data in script:
                assert isinstance(data, bytes)
                yield data.partition(b"\r\n")[2]
