"""Conversations as text that a person can write, played through parser and patterns.

-- flow NS 10.0.0.2:1025 192.0.2.20:1863    client's and server's end; lines that follow
                                             belong to it; `-- flow NS` goes back to it
-- midstream                                 the flow was open before we came
-- server                                    of the flow: the application is the server
-- app 4121 /usr/bin/pidgin                  of flows from here on
C> USR 1 TWN I alice@example.com             a line of the client, CR LF added
S< MSG bob@example.com Bob *                 of the server; `*` is the payload's length
S| MIME-Version: 1.0                         the payload, lines joined by CR LF …
S# 00 0a                                     … or bytes
S= MSG bob@exa                               bytes as they are, no CR LF added
-- gap S 120                                 bytes of the server that were lost
-- wait 2000                                 milliseconds; each command takes 10
-- close                                     the flow ends
-- secret SECRET                             must not be found in anything that is told
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from streamtap.events import Body, Event
from streamtap.model import App, Content, Direction, Endpoint, Flow, Role
from streamtap.patterns import Conversations, Meaning
from streamtap.protocols import Limits
from streamtap.protocols.msnp import MsnpParser

START_NS = 1_227_567_676_000_000_000
STEP_NS = 10_000_000
C, S = Direction.TO_SERVER, Direction.TO_CLIENT
_SIDES = {"C": C, "S": S}


class Step(NamedTuple):
    """Bytes, a gap (a number of bytes), or the end of a flow (None)."""

    flow: str
    direction: Direction
    time_ns: int
    data: bytes | int | None


class Transcript(NamedTuple):
    flows: dict[str, Flow]
    steps: list[Step]
    secrets: list[str]


class Told(NamedTuple):
    flow: str
    direction: Direction
    time_ns: int
    body: Body


def read(path: Path) -> Transcript:
    return parse(path.read_text())


def parse(text: str) -> Transcript:
    flows: dict[str, Flow] = {}
    steps: list[Step] = []
    secrets: list[str] = []
    app: App | None = None
    name = ""
    time_ns = START_NS
    line = ""
    payload: list[str | bytes] = []

    def finish() -> None:
        nonlocal line, time_ns
        if line:
            body = _payload(payload)
            head = line[3:].replace("*", str(len(body)))
            side = _SIDES[line[0]]
            steps.append(Step(name, side, time_ns, f"{head}\r\n".encode() + body))
            time_ns += STEP_NS
        line = ""
        payload.clear()

    for number, raw in enumerate(text.splitlines(), 1):
        mark = raw[1:2]
        if raw[:1] in _SIDES and mark in ("|", "#"):
            payload.append(bytes.fromhex(raw[2:]) if mark == "#" else raw[3:])
            continue
        finish()
        if raw[:1] in _SIDES and raw[1:3] in ("> ", "< "):
            line = raw
        elif raw[:1] in _SIDES and raw[1:3] == "= ":
            steps.append(Step(name, _SIDES[raw[0]], time_ns, raw[3:].encode()))
        elif raw[:1] in _SIDES and raw[1:3] == ": ":
            steps.append(Step(name, _SIDES[raw[0]], time_ns, bytes.fromhex(raw[3:])))
        elif raw.startswith("-- "):
            word, *args = raw[3:].split()
            if word == "flow":
                name = args[0]
                if len(args) > 1:
                    flows[name] = _flow(len(flows) + 1, args[1], args[2], app, time_ns)
            elif word == "midstream":
                flows[name] = _changed(flows[name], midstream=True)
            elif word == "server":
                flows[name] = _changed(flows[name], role=Role.SERVER)
            elif word == "app":
                app = App(args[1], int(args[0]), args[1].rpartition("/")[2], 1000, "", "test")
            elif word == "gap":
                steps.append(Step(name, _SIDES[args[0]], time_ns, int(args[1])))
            elif word == "wait":
                time_ns += int(args[0]) * 1_000_000
            elif word == "close":
                steps.append(Step(name, C, time_ns, None))
            elif word == "secret":
                secrets.append(args[0])
            else:
                raise ValueError(f"line {number}: what is {raw!r}?")
        elif raw and not raw.startswith("#"):
            raise ValueError(f"line {number}: what is {raw!r}?")
    finish()
    return Transcript(flows, steps, secrets)


def _payload(parts: list[str | bytes]) -> bytes:
    data = b""
    for index, part in enumerate(parts):
        if isinstance(part, bytes):
            data += part
        else:
            data += part.encode() + (b"\r\n" if index + 1 < len(parts) else b"")
    return data


def _flow(number: int, client: str, server: str, app: App | None, time_ns: int) -> Flow:
    return Flow(number, app, _endpoint(client), _endpoint(server), Role.CLIENT, time_ns)


def _endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return Endpoint(host, int(port))


def _changed(flow: Flow, *, midstream: bool | None = None, role: Role | None = None) -> Flow:
    turned = role is Role.SERVER
    return Flow(
        flow.flow_id,
        flow.app,
        flow.remote if turned else flow.local,
        flow.local if turned else flow.remote,
        role or flow.role,
        flow.opened_ns,
        flow.midstream if midstream is None else midstream,
    )


def play(transcript: Transcript, content: Content = Content.META) -> Iterator[Told]:
    """Protocol events and patterns as they come, not yet cleaned."""
    conversations = Conversations(content)
    parsers: dict[str, MsnpParser] = {}
    names = {flow.flow_id: name for name, flow in transcript.flows.items()}
    last_ns = START_NS
    open_flows: dict[str, None] = {}

    def tell(name: str, direction: Direction, time_ns: int, events: Iterator[Event]) -> list[Told]:
        told = []
        for event in events:
            told.append(Told(name, direction, time_ns, event))
            flow = transcript.flows[name]
            meanings = conversations.interpret(flow, direction, time_ns, event)
            told += (_told(names, meaning) for meaning in meanings)
        return told

    for step in transcript.steps:
        flow = transcript.flows[step.flow]
        if step.flow not in parsers:
            parsers[step.flow] = MsnpParser(limits=Limits(), midstream=flow.midstream)
            open_flows[step.flow] = None
        parser = parsers[step.flow]
        last_ns = step.time_ns
        yield from (_told(names, meaning) for meaning in conversations.tick(step.time_ns))
        if step.data is None:
            for direction in Direction:
                yield from tell(step.flow, direction, last_ns, parser.end(direction))
            for meaning in conversations.closed(flow, last_ns):
                yield _told(names, meaning)
            open_flows.pop(step.flow, None)
        elif isinstance(step.data, int):
            events = parser.gap(step.direction, step.data)
            yield from tell(step.flow, step.direction, last_ns, events)
        else:
            events = parser.receive(step.direction, step.data)
            yield from tell(step.flow, step.direction, last_ns, events)
    for name in open_flows:
        for direction in Direction:
            yield from tell(name, direction, last_ns, parsers[name].end(direction))
        for meaning in conversations.closed(transcript.flows[name], last_ns, "end"):
            yield _told(names, meaning)


def _told(names: dict[int, str], meaning: Meaning) -> Told:
    return Told(names[meaning.flow_id], meaning.direction, meaning.time_ns, meaning.pattern)
