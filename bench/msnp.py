"""Switchboard sessions in memory: what a chat by MSNP costs, stage by stage.

Many connections at once, as a busy network's capture has them. On each, two people talk: who types
is told before some messages, some are acknowledged, and people come and go. In a *ping-pong* each
segment is one command, so a parser never gets more than one at a time; in a *burst* each segment
holds eight commands of one side, as receive offload joins them.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from random import Random
from typing import NamedTuple

from bench.rounds import Plan, line, per_item, spread
from bench.spans import STEP_NS, TIME_NS, opening
from streamtap.cli.watching import GARBAGE_AFTER
from streamtap.events import Record
from streamtap.model import Content, Direction, Flow, Segment
from streamtap.patterns import Conversations
from streamtap.pipeline import Pipeline
from streamtap.protocols import Limits
from streamtap.protocols.msnp import MsnpParser
from streamtap.trace import JsonLines, Output, Session, choose

CONNECTIONS = 100
TURNS = 100
BATCH = 1000
BURST = 8
SEED = 5
TYPES = 0.25  # share of messages that are announced by a typing notification
ASKS = 0.2  # share of a client's messages that ask for an acknowledgement
STAYS = 40  # turns after which somebody goes and comes again
SHORTEST, LONGEST = 40, 1500  # bytes of a message, headers included

_TEXT = (
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=UTF-8\r\n"
    b"X-MMS-IM-Format: FN=Segoe%20UI; EF=; CO=0; CS=0; PF=22\r\n\r\n"
)
_SHORT_TEXT = b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n"
_TYPING = b"MIME-Version: 1.0\r\nContent-Type: text/x-msmsgscontrol\r\nTypingUser: %b\r\n\r\n\r\n"


class Said(NamedTuple):
    """One command of a session; message: it becomes an `im.message`."""

    direction: Direction
    data: bytes
    message: bool


class Load(NamedTuple):
    """Segments of all connections in order of time, and how much they hold."""

    segments: list[Segment]
    flows: list[Flow]
    commands: int
    messages: int


def _session(random: Random, number: int, turns: int) -> Iterator[Said]:
    """What is said on one connection."""
    to_server, to_client = Direction
    own, other = b"alice%d@example.com" % number, b"bob%d@example.com" % number
    name = b"Bob%%20%d" % number

    def message(direction: Direction, line: bytes, payload: bytes) -> Said:
        return Said(direction, b"MSG %b %d\r\n%b" % (line, len(payload), payload), True)

    yield Said(to_server, b"USR 1 %b 1234.5678\r\n" % own, False)
    yield Said(to_client, b"USR 1 OK %b Alice\r\n" % own, False)
    yield Said(to_server, b"CAL 2 %b\r\n" % other, False)
    yield Said(to_client, b"CAL 2 RINGING %d\r\n" % (1000 + number), False)
    yield Said(to_client, b"JOI %b %b\r\n" % (other, name), False)
    transaction = 2
    for turn in range(turns):
        length = int(min(LONGEST, SHORTEST + random.expovariate(1 / 120)))
        head = _TEXT if length > 2 * len(_TEXT) else _SHORT_TEXT
        text = head + b"x" * max(1, length - len(head))
        types = random.random() < TYPES
        transaction += 1
        if turn % 2:
            if types:
                yield message(to_client, b"%b %b" % (other, name), _TYPING % other)
            yield message(to_client, b"%b %b" % (other, name), text)
        else:
            if types:
                yield message(to_server, b"%d U" % transaction, _TYPING % own)
                transaction += 1
            asks = random.random() < ASKS
            yield message(to_server, b"%d %b" % (transaction, b"A" if asks else b"N"), text)
            if asks:
                yield Said(to_client, b"ACK %d\r\n" % transaction, False)
        if turn % STAYS == STAYS - 1:
            yield Said(to_client, b"BYE %b\r\n" % other, False)
            yield Said(to_client, b"JOI %b %b\r\n" % (other, name), False)


def load(connections: int, turns: int, burst: int) -> Load:
    """The sessions, command by command over all connections, or `burst` of a side at once."""
    random = Random(SEED)
    sessions = [list(_session(random, number, turns)) for number in range(connections)]
    cut = [_bursts(session, burst) for session in sessions]
    segments: list[Segment] = []
    sequences = [[0, 0] for _ in sessions]
    time_ns = TIME_NS
    for rank in zip_longest(*cut):
        for number, said in enumerate(rank):
            if said is None:
                continue
            time_ns += STEP_NS
            direction, data = said
            sequence = sequences[number]
            # As frames of a capture come: views of what was read at once.
            segments.append(
                Segment(
                    number + 1,
                    direction,
                    sequence[direction],
                    memoryview(data),
                    time_ns,
                    acknowledged=sequence[direction.opposite],
                )
            )
            sequence[direction] += len(data)
    said_all = [said for session in sessions for said in session]
    return Load(
        segments,
        [opening(number + 1).flow for number in range(connections)],
        len(said_all),
        sum(said.message for said in said_all),
    )


def _bursts(session: Sequence[Said], burst: int) -> list[tuple[Direction, bytes]]:
    """One command each, or what each side says joined to bursts."""
    if burst == 1:
        return [(said.direction, said.data) for said in session]
    head, rest = session[:5], session[5:]
    out = [(said.direction, said.data) for said in head]
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for said in rest:
        side = sides[said.direction]
        side.append(said.data)
        if len(side) == burst:
            out.append((said.direction, b"".join(side)))
            side.clear()
    out += [(direction, b"".join(sides[direction])) for direction in Direction if sides[direction]]
    return out


def parse(load: Load) -> int:
    """Bytes to protocol events, the parser alone."""
    parsers = [MsnpParser(limits=Limits(), midstream=False) for _ in load.flows]
    for segment in load.segments:
        for _ in parsers[segment.flow_id - 1].receive(segment.direction, segment.data):
            pass
    return load.commands


def understand(load: Load) -> int:
    """Bytes to patterns."""
    parsers = [MsnpParser(limits=Limits(), midstream=False) for _ in load.flows]
    conversations = Conversations(Content.META)
    flows = load.flows
    for segment in load.segments:
        number, direction, time_ns = segment.flow_id - 1, segment.direction, segment.time_ns
        for event in parsers[number].receive(direction, segment.data):
            conversations.interpret(flows[number], direction, time_ns, event)
    return load.messages


def feed(load: Load, take: Callable[[list[Record]], object]) -> int:
    """Segments through the whole pipeline."""
    pipeline = Pipeline(places=choose().places, content=Content.META)
    take(pipeline.feed([opening(flow.flow_id) for flow in load.flows]))
    for at in range(0, len(load.segments), BATCH):
        take(pipeline.feed(load.segments[at : at + BATCH]))
    return load.messages


def tell(load: Load) -> int:
    """Segments to lines of JSON, as the command writes them."""
    with open(os.devnull, "wb", buffering=0) as null:
        sink = JsonLines(Output(null))
        sink.open()
        session = Session(choose(), [sink])

        def write(records: list[Record]) -> None:
            session.offer(records)
            session.flush()

        return feed(load, write)


def record(load: Load) -> int:
    """Segments to records."""
    return feed(load, lambda records: None)


STAGES: dict[str, Callable[[Load], int]] = {
    "parser alone, per command": parse,
    "parser and patterns, per message": understand,
    "to records, per message": record,
    "to JSON, per message": tell,
}


def msnp(plan: Plan) -> None:
    """From the bytes of a switchboard session to events, patterns, records and lines of JSON."""
    gc.set_threshold(GARBAGE_AFTER)  # as the command does
    for name, burst in (("ping-pong", 1), ("bursts", BURST)):
        said = load(CONNECTIONS, TURNS, burst)
        for stage, action in STAGES.items():
            spent = per_item(partial(action, said), plan)
            line(f"msnp {name}: {stage}", spread(spent, "{:.0f}") + " ns")
