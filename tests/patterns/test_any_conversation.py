"""Whatever people say, over whichever way and however it is cut: each text is told once, with who
said it, and to whom."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from protocols.samples import counted, lines
from streamtap.events import Malformed, ParserFailed, Record, Skipped
from streamtap.model import App, Closed, Content, Direction, Endpoint, Flow, Opened, Role, Segment
from streamtap.patterns import Message
from streamtap.pipeline import Pipeline

C, S = Direction.TO_SERVER, Direction.TO_CLIENT
APP = App("/usr/bin/msn", 7, "msn", 1000, "", "test")
ME = "me@example.com"
HEAD = ("MIME-Version: 1.0", "Content-Type: text/plain; charset=UTF-8")
# What looks like commands, and like the end of a header.
BODIES = (
    "",
    "\r\nBYE p1@example.com\r\n",
    "\r\nMSG p1@example.com X 5\r\nMIME",
    "\r\n\r\n",
    "é ☕",
    "x" * 1300,
)
START_NS, STEP_NS = 10**18, 10**6


class Text(NamedTuple):
    """What is said."""

    text: str
    sender: str
    recipients: tuple[str, ...]


class Said(NamedTuple):
    """Bytes, and the text that they complete."""

    way: Direction
    data: bytes
    text: Text | None = None


def switchboard(draw: random.Random, name: str) -> Iterator[Said]:
    """One session. name: what all its texts begin with."""
    endpoints = draw.random() < 0.5
    own = f"{ME};{{5e8d0b1a-6c1f-4a3e-9b61-0c3f1a5d7e01}}" if endpoints else ME
    caps = " 2788999228:48" if endpoints else draw.choice(["", " 1342472230"])
    people: list[str] = []

    def comes(line: str) -> Iterator[Said]:
        account = f"p{draw.randrange(9)}@example.com"
        if account not in people:
            people.append(account)
            for form in (f"{account};{{a}}", account) if endpoints else (account,):
                yield Said(S, lines(f"{line} {form} Na%20me{caps}"))

    if draw.random() < 0.5:
        yield Said(C, lines(f"USR {draw.randrange(2)} {own} 1.2.{name}"))
        yield Said(S, lines(f"USR 1 OK {own} Me"))
        if endpoints:
            yield Said(C, lines(f"CAL 2 {ME}"))
            yield Said(S, lines(f"JOI {own} Me{caps}"))
        yield from comes("JOI")
    else:
        yield Said(C, lines(f"ANS 1 {own} 1.2.{name} {name}"))
        yield from comes("IRO 1 1 1")
        yield Said(S, lines("ANS 1 OK"))
    for number in range(draw.randrange(1, 12)):
        chance, text = draw.random(), f"{name}{number:03}{draw.choice(BODIES)}."
        sender = draw.choice(people)
        others = tuple(sorted({*people, ME} - {sender}))
        if chance < 0.4:
            data = counted(f"MSG {number} {draw.choice('UNA')}", *HEAD, "", text)
            yield Said(C, data, Text(text, ME, tuple(sorted(people))))
        elif chance < 0.7:
            shown = draw.choice([sender, sender.upper()])
            data = counted(f"MSG {shown} {draw.choice(['Me', '5', 'Two Words'])}", *HEAD, "", text)
            yield Said(S, data, Text(text, sender, others))
        elif chance < 0.8:
            yield from in_parts(draw, f"MSG {sender} N", Text(text, sender, others))
        elif chance < 0.9:
            yield from comes("JOI")
        elif len(people) > 1:
            people.remove(sender)
            for form in (f"{sender};{{a}}", sender) if endpoints else (sender,):
                yield Said(S, lines(f"BYE {form}"))
    yield Said(C, lines("OUT"))


def in_parts(draw: random.Random, line: str, text: Text) -> Iterator[Said]:
    """The parts of a message, in any order, cut within characters too."""
    data = text.text.encode()
    cuts = sorted(draw.sample(range(1, len(data)), draw.randrange(1, min(4, len(data)))))
    parts = [data[at:to] for at, to in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    order = list(range(len(parts)))
    draw.shuffle(order)
    for at in order:
        head = [f"Message-ID: {{{text.text[:4]}}}", f"Chunk: {at}"]
        if not at:
            head = [*HEAD, head[0], f"Chunks: {len(parts)}"]
        told = text if at == order[-1] else None
        yield Said(S, counted(line, *head, "", "", tail=parts[at]), told)


def in_gateway(draw: random.Random, said: Iterator[Said], name: str) -> Iterator[Said]:
    """The same in requests and answers, cut anywhere; answers may be in chunks."""
    session = 0
    for way, data, text in said:
        cut = draw.randrange(len(data))
        for body, last in ((data[:cut], False), (data[cut:], True)):
            query = f"SessionID={name}.{session}" if session else "Action=open&Server=SB"
            asked, answered = (body, b"") if way is C else (b"", body)
            head = (
                f"POST /gateway/gateway.dll?{query} HTTP/1.1",
                f"Content-Length: {len(asked)}",
                "",
            )
            yield Said(C, lines(*head) + asked, text if last and way is C else None)
            session += 1
            length = f"Content-Length: {len(answered)}"
            if answered and draw.random() < 0.5:
                length = "Transfer-Encoding: chunked"
                answered = b"%x\r\n%b\r\n0\r\n\r\n" % (len(answered), answered)
            head = (
                "HTTP/1.1 200 OK",
                length,
                f"X-MSN-Messenger: SessionID={name}.{session}; GW-IP=h",
            )
            yield Said(S, lines(*head, "") + answered, text if last and way is S else None)


def in_tunnel(said: Iterator[Said]) -> Iterator[Said]:
    yield Said(C, lines("CONNECT 192.0.2.30:1863 HTTP/1.0", ""))
    yield Said(S, lines("HTTP/1.0 200 OK", ""))
    yield from said


@pytest.mark.parametrize("seed", range(60))
def test_each_text_is_told_once_of_who_said_it_and_to_whom(seed: int) -> None:
    draw = random.Random(seed)
    pipeline, records, now_ns = Pipeline(content=Content.FULL), list[Record](), START_NS
    talks: dict[int, Iterator[Said]] = {}
    places: dict[int, list[int]] = {}
    for number in range(1, 4):
        talk = switchboard(draw, f"{number}")
        way = draw.choice(["plain", "plain", "gateway", "tunnel"])
        if way == "gateway":
            talk = in_gateway(draw, talk, f"s{number}")
        talks[number] = in_tunnel(talk) if way == "tunnel" else talk
        places[number] = [100, 200]
        ends = Endpoint("10.0.0.2", 1024 + number), Endpoint(f"192.0.2.{number}", 1863)
        flow = Flow(number, APP, *ends, Role.CLIENT, now_ns)
        records += pipeline.feed([Opened(flow, (100, 200))])
    size, batch = draw.choice([1, 3, 50, 1448, 1 << 20]), list[Segment]()
    expected: list[tuple[int, Text]] = []
    while talks:
        number = draw.choice(list(talks))
        said = next(talks[number], None)
        if said is None:
            del talks[number]
            continue
        if said.text is not None:
            expected.append((number, said.text))
        for at in range(0, len(said.data), size):
            now_ns += STEP_NS
            piece = said.data[at : at + size]
            batch.append(Segment(number, said.way, places[number][said.way], piece, now_ns))
            places[number][said.way] += len(piece)
        if draw.random() < 0.3:
            records += pipeline.feed(batch)
            batch = []
    records += pipeline.feed([*batch, *(Closed(number, now_ns, "fin") for number in places)])
    told: list[tuple[int, Text]] = []
    for record in records:
        body = record.body
        assert not isinstance(body, Malformed | ParserFailed | Skipped), body
        if isinstance(body, Message) and record.flow is not None:
            text = Text(body.content or "", body.sender or "", body.recipients)
            told.append((int(record.flow.flow, 16), text))
    assert Counter(told) == Counter(expected)
