"""MSNP that HTTP carries: the gateway's sessions, and tunnels through a proxy."""

import msgspec
import pytest

from protocols.samples import TEXT, counted, lines
from streamtap.events import Record, tag_of
from streamtap.model import App, Closed, Content, Direction, Endpoint, Flow, Opened, Role, Segment
from streamtap.patterns import Connect, Data, Join, Message, Pattern, Redirect, SignIn, SignOut
from streamtap.patterns.msnp import gateway
from streamtap.pipeline import Pipeline

C, S = Direction.TO_SERVER, Direction.TO_CLIENT
MS = 1_000_000
GATEWAY, PROXY = Endpoint("192.0.2.80", 80), Endpoint("192.0.2.99", 3128)
APP = App("/usr/bin/msn", 7, "msn", 1000, "", "test")
ANA, BO = "ana@example.com", "bo@example.com"


class Web:
    """HTTP connections of one application, fed to a pipeline as they come.

    pieces: segments are cut to at most so many bytes.
    """

    def __init__(self, content: Content = Content.META, pieces: int = 1 << 16) -> None:
        self.pipeline = Pipeline(content=content)
        self.records: list[Record] = []
        self.now_ns = 1_000 * MS
        self._pieces = pieces
        self._next: dict[int, list[int]] = {}

    def open(self, number: int, server: Endpoint = GATEWAY, *, midstream: bool = False) -> None:
        client = Endpoint("10.0.0.2", 1024 + number)
        flow = Flow(number, APP, client, server, Role.CLIENT, self.now_ns, midstream)
        self._next[number] = [100, 200]
        self.records += self.pipeline.feed([Opened(flow, (100, 200))])

    def say(self, number: int, direction: Direction, data: bytes) -> None:
        if number not in self._next:
            self.open(number)
        for start in range(0, len(data), self._pieces):
            piece = data[start : start + self._pieces]
            self.now_ns += 10 * MS
            sequence = self._next[number][direction]
            self._next[number][direction] += len(piece)
            segment = Segment(number, direction, sequence, memoryview(piece), self.now_ns)
            self.records += self.pipeline.feed([segment])

    def lose(
        self, number: int, direction: Direction, length: int, *, received: bool = False
    ) -> None:
        """received: the other end acknowledges the bytes."""
        place = self._next[number]
        place[direction] += length
        if received:
            other, end = direction.opposite, place[direction]
            segment = Segment(number, other, place[other], b"", self.now_ns, acknowledged=end)
            self.records += self.pipeline.feed([segment])

    def close(self, number: int, reason: str = "fin") -> None:
        self.now_ns += 10 * MS
        self.records += self.pipeline.feed([Closed(number, self.now_ns, reason)])

    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * 1_000 * MS
        self.records += self.pipeline.tick(self.now_ns)

    def ask(self, number: int, query: str, body: bytes = b"", *, absolute: bool = False) -> None:
        target = f"/gateway/gateway.dll?{query}"
        if absolute:
            target = f"http://gateway.example.com{target}"
        head = f"POST {target} HTTP/1.1\r\nHost: g\r\nContent-Length: {len(body)}\r\n\r\n"
        self.say(number, C, head.encode() + body)

    def answer(
        self, number: int, session: str, body: bytes = b"", *, more: str = "", status: int = 200
    ) -> None:
        head = f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n"
        head += f"X-MSN-Messenger: SessionID={session}; GW-IP=192.0.2.80{more}\r\n\r\n"
        self.say(number, S, head.encode() + body)

    def patterns(self) -> list[Pattern]:
        return [record.body for record in self.records if isinstance(record.body, Pattern)]


def worked(web: Web) -> None:
    """A session whose id changes with every answer; an answer comes in two halves."""
    web.ask(
        1, "Action=open&Server=NS&IP=messenger.hotmail.com", lines("VER 1 MSNP12 CVR0")[:-1] + b"\n"
    )
    web.answer(1, "81730.1", lines("VER 1 MSNP12"))
    client = lines("CVR 2 0x0409 winnt 5.1 i386 MSNMSGR 7.5.0324 msmsgs ana@example.com")
    web.ask(1, "SessionID=81730.1", client)
    web.answer(1, "81730.2")
    web.ask(1, "Action=poll&SessionID=81730.2")
    web.answer(1, "81730.3", b"CVR 2 7.5.0324 7.5.0324 7.5.03")
    web.ask(1, "Action=poll&SessionID=81730.3")
    web.answer(1, "81730.4", b"24 http://msgr.example.com/dl http://msgr.example.com\r\n")
    web.ask(1, "SessionID=81730.4", lines("USR 3 TWN I ana@example.com"))
    web.answer(1, "81730.5", lines("USR 3 OK ana@example.com Ana 1 0"))
    web.ask(1, "SessionID=81730.5", lines("OUT"))
    web.answer(1, "81730.6", more="; Session=close")


@pytest.mark.parametrize("pieces", [1 << 16, 7, 1])
def test_a_session_is_followed_over_changing_ids(pieces: int) -> None:
    web = Web(pieces=pieces)
    worked(web)
    told = web.patterns()
    assert [tag_of(body) for body in told] == [
        "im.connect",
        "im.connect",
        "im.sign_in",
        "im.sign_out",
    ]
    gateway, notification, *_ = told
    assert isinstance(gateway, Connect)
    assert gateway.service == "gateway"
    assert isinstance(notification, Connect)
    assert (notification.service, notification.protocol_version, notification.client) == (
        "notification",
        "MSNP12",
        "MSNMSGR 7.5.0324",
    )


def test_patterns_stand_where_the_body_is_that_completed_them() -> None:
    web = Web()
    worked(web)
    (record,) = (record for record in web.records if isinstance(record.body, SignIn))
    assert record.direction == "received"
    assert isinstance(record.body, SignIn)
    assert record.body.length == len(lines("USR 3 OK ana@example.com Ana 1 0"))
    assert record.flow is not None
    assert record.flow.remote == str(GATEWAY)


@pytest.mark.parametrize("content", list(Content))
def test_ids_of_sessions_are_in_no_record(content: Content) -> None:
    web = Web(content)
    worked(web)
    shown = msgspec.json.encode([msgspec.to_builtins(record.body) for record in web.records])
    assert b"81730" not in shown
    assert b"redacted:" not in shown


def chat(web: Web, first: int, second: int, third: int) -> None:
    """Sign-in and a switchboard, both through the gateway, over up to three connections."""
    web.ask(first, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"), absolute=True)
    web.answer(first, "n.1", lines("VER 1 MSNP8", "USR 3 OK ana@example.com Ana 1 0"))
    web.ask(second, "SessionID=n.1", lines("XFR 4 SB"))
    web.answer(second, "n.2", lines("XFR 4 SB 192.0.2.30:1863 CKI 12.34.56"))
    # Two requests under way on one connection, as long as each is of another session.
    web.ask(third, "Action=open&Server=SB&IP=192.0.2.30", lines("USR 1 ana@example.com 12.34.56"))
    web.ask(third, "Action=poll&SessionID=n.2")
    web.answer(third, "s.1", lines("USR 1 OK ana@example.com Ana", "JOI bo@example.com Bo"))
    web.answer(third, "n.3", lines("NLN BSY bo@example.com Bo"))
    hello = counted("MSG 2 N", *TEXT, "hello")
    web.ask(first, "SessionID=s.1", hello[:50])
    web.answer(first, "s.2")
    web.ask(third, "SessionID=s.2", hello[50:])
    web.answer(third, "s.3", counted("MSG bo@example.com Bo", *TEXT, "hi"))


@pytest.mark.parametrize("flows", [(1, 1, 1), (1, 2, 3), (1, 1, 2)])
def test_sessions_share_connections_and_connections_sessions(flows: tuple[int, int, int]) -> None:
    web = Web()
    chat(web, *flows)
    told = web.patterns()
    messages = [body for body in told if isinstance(body, Message)]
    assert [(body.sender, body.recipients) for body in messages] == [(ANA, (BO,)), (BO, (ANA,))]
    conversations = {
        body.conversation for body in told if isinstance(body, Message | Redirect | Join)
    }
    assert len(conversations) == 1
    assert not any(isinstance(body, Data) for body in told)


def test_a_session_that_is_silent_for_long_has_ended() -> None:
    web = Web()
    web.ask(1, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
    web.answer(1, "n.1", lines("VER 1 MSNP8", "USR 3 OK ana@example.com Ana 1 0"))
    web.close(1)
    assert not [body for body in web.patterns() if isinstance(body, SignOut)]
    web.wait(200)
    (out,) = (body for body in web.patterns() if isinstance(body, SignOut))
    assert out.account == ANA


@pytest.mark.parametrize("reason", ["end", "removed"])
def test_nobody_signs_out_because_watching_ended(reason: str) -> None:
    web = Web()
    web.ask(1, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
    web.answer(1, "n.1", lines("VER 1 MSNP8", "USR 3 OK ana@example.com Ana 1 0"))
    web.close(1, reason)
    web.wait(200)
    assert not [body for body in web.patterns() if isinstance(body, SignOut)]


def test_what_sessions_hold_is_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "HELD", 10_000)
    web = Web()
    sessions = web.pipeline._telling._conversations._gateway
    for number in range(30):
        name = f"s{number % 20}.1"  # some names are given again
        web.ask(1, f"SessionID={name}", b"PNG\r\nPNG\r\nADL 1 2000\r\n" + b"<" * 1000)
        web.answer(1, name)
        assert sessions._held <= 10_000
    assert 0 < len(sessions) <= 10
    web.wait(200)
    assert (len(sessions), sessions._held) == (0, 0)


def test_a_session_that_must_make_room_while_it_closes_ends_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    web = Web()
    web.ask(1, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
    web.answer(1, "n.1", lines("VER 1 MSNP8", "USR 3 OK ana@example.com Ana 1 0"))
    held = web.pipeline._telling._conversations._gateway._memory.limits.pool
    monkeypatch.setattr(gateway, "HELD", 100)
    web.ask(1, "Action=poll&SessionID=n.1")
    web.answer(1, "n.2", b"MSG Hotmail Hotmail 2000\r\n" + b"x" * 1000, more="; Session=close")
    web.wait(200)
    assert (held.held, held._sharers) == (0, 0)


PART = ("MIME-Version: 1.0", "Content-Type: text/plain", "Message-ID: {1}", "Chunks: 2", "")


@pytest.mark.parametrize("way", ["silent", "over", "closed", "evicted", "named again"])
def test_of_a_session_that_ends_what_is_unfinished_is_told(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "SESSIONS", 1)
    web = Web()
    web.ask(1, "Action=open&Server=SB&IP=192.0.2.30", lines("USR 1 ana@example.com 12.34.56"))
    web.answer(1, "s.1", lines("JOI bo@example.com Bo"))
    web.ask(1, "SessionID=s.1", counted("MSG 2 N", *PART, "first"))
    web.answer(1, "s.2", b"MSG bo@example.com Bo 100\r\nMIME-Version: 1.0\r\n\r\n")
    if way == "silent":
        web.wait(200)
    elif way == "over":
        web.close(1, "end")
    elif way == "closed":
        web.ask(1, "Action=poll&SessionID=s.2")
        web.answer(1, "s.3", more="; Session=close")
    elif way == "evicted":
        web.ask(2, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
    else:
        web.ask(2, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
        web.answer(2, "s.2")
    told = [
        (record.direction, record.flow and record.flow.flow, record.body.sender, record.body.size)
        for record in web.records
        if isinstance(record.body, Message)
    ]
    assert sorted(told) == [("received", "1", BO, 79), ("sent", "1", ANA, 5)]


def test_a_message_in_parts_stands_in_http_where_its_first_part_does() -> None:
    web = Web()
    web.ask(1, "Action=open&Server=SB&IP=192.0.2.30", lines("USR 1 ana@example.com 12.34.56"))
    web.answer(1, "s.1", lines("JOI bo@example.com Bo"))
    part = counted("MSG 2 N", *PART, "first")
    web.ask(2, "SessionID=s.1", part)
    web.answer(2, "s.2")
    web.wait(200)
    (record,) = (record for record in web.records if isinstance(record.body, Message))
    assert record.flow is not None
    assert isinstance(record.body, Message)
    assert (record.flow.flow, record.body.length) == ("2", len(part))


def test_of_a_tunnel_that_ends_what_is_unfinished_is_told() -> None:
    web = Web()
    tunnelled(web, 1, "192.0.2.30:1863")
    web.say(1, C, lines("USR 1 ana@example.com 12.34.56"))
    web.say(1, S, lines("JOI bo@example.com Bo"))
    web.say(1, C, counted("MSG 2 N", *PART, "first"))
    web.close(1)
    (message,) = (body for body in web.patterns() if isinstance(body, Message))
    assert (message.sender, message.recipients, message.size) == (ANA, (BO,), 5)


def test_a_connection_keeps_no_session_that_has_ended() -> None:
    web = Web()
    for number in range(30):
        web.ask(1, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
        web.answer(1, f"n{number}.1", more="; Session=close")
    (carrier,) = web.pipeline._telling._conversations._gateway._carriers.values()
    assert len(carrier.heard) <= 1  # the latest


def test_a_refused_request_ends_its_session() -> None:
    web = Web()
    web.ask(1, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
    web.answer(1, "n.1", lines("VER 1 MSNP8", "USR 3 OK ana@example.com Ana 1 0"))
    web.ask(1, "Action=poll&SessionID=n.1")
    web.answer(1, "n.2", b"no such session", status=400)
    assert [tag_of(body) for body in web.patterns()][-1] == "im.sign_out"


def test_a_session_joined_late_is_understood_from_its_next_message() -> None:
    web = Web()
    web.ask(1, "Action=poll&SessionID=s.7")
    web.answer(1, "s.8", counted("MSG bo@example.com Bo", *TEXT, "hi"))
    web.ask(1, "Action=poll&SessionID=s.8")
    web.answer(1, "s.9", lines("BYE bo@example.com", "JOI cal@example.com Cal", "ACK 4"))
    assert [tag_of(body) for body in web.patterns()] == ["im.message", "im.leave", "im.join"]


@pytest.mark.parametrize("content", list(Content))
def test_a_gateway_joined_before_a_response_is_told_by_its_header(content: Content) -> None:
    web = Web(content)
    web.open(1, midstream=True)
    message = counted("MSG bo@example.com Bo", *TEXT, "hi")
    web.answer(1, "s.7", message + lines("XFR 4 SB 192.0.2.30:1863 CKI 12.secret"))
    web.ask(1, "Action=poll&SessionID=s.7")
    web.answer(1, "s.8", lines("BYE bo@example.com"))
    web.close(1)
    assert [tag_of(body) for body in web.patterns()] == ["im.message", "im.redirect", "im.leave"]
    assert "secret" not in msgspec.json.encode(web.records).decode()


@pytest.mark.parametrize("content", list(Content))
def test_a_response_whose_request_was_lost_is_still_one_of_a_gateway(content: Content) -> None:
    web = Web(content)
    web.open(1)
    web.lose(1, C, 90)
    web.answer(1, "s.1", lines("XFR 4 SB 192.0.2.30:1863 CKI 12.secret"))
    web.answer(1, "s.2", status=500)
    web.answer(1, "s.3", lines("RNG 5 192.0.2.30:1863 CKI 13.secret bo@example.com Bo"))
    web.close(1)
    assert [tag_of(body) for body in web.patterns()] == ["im.redirect", "im.invite"]
    assert "secret" not in msgspec.json.encode(web.records).decode()


def test_blanks_beside_the_id_of_a_session_neither_show_it_nor_lose_it() -> None:
    web = Web()
    web.ask(1, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
    web.say(1, S, head + b"X-MSN-Messenger: GW-IP=h; SessionID = n.secret\r\n\r\n")
    web.ask(2, "SessionID=n.secret")
    web.answer(2, "n.2", lines("VER 1 MSNP8", "USR 3 OK ana@example.com Ana 1 0"))
    assert "im.sign_in" in [tag_of(body) for body in web.patterns()]
    assert "secret" not in msgspec.json.encode(web.records).decode()


@pytest.mark.parametrize("pieces", [1 << 16, 7, 3, 2, 1])
def test_bodies_in_chunks_are_read_without_their_framing(pieces: int) -> None:
    """Also where a segment ends within it."""
    web = Web(pieces=pieces)
    web.ask(1, "Action=open&Server=NS&IP=192.0.2.20", lines("VER 1 MSNP8 CVR0"))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    head += b"X-MSN-Messenger: SessionID=n.1; GW-IP=192.0.2.80\r\n\r\n"
    web.say(1, S, head + b"9\r\nVER 1 MSN\r\n")
    web.say(1, S, b"26\r\nP8\r\nUSR 3 OK ana@example.com Ana 1 0\r\n\r\n0\r\n\r\n")
    assert [tag_of(body) for body in web.patterns()] == ["im.connect", "im.connect", "im.sign_in"]


def test_a_lost_body_costs_what_it_held() -> None:
    web = Web()
    chat(web, 1, 1, 1)
    before = len(web.patterns())
    lost = counted("MSG bo@example.com Bo", *TEXT, "lost")
    web.ask(1, "Action=poll&SessionID=s.3")
    web.answer(1, "s.4", lost[: len(lost) // 2])
    web.lose(1, S, 400)
    web.ask(1, "Action=poll&SessionID=s.5")
    web.answer(1, "s.6", counted("MSG bo@example.com Bo", *TEXT, "again"))
    web.close(1)
    told = [body for body in web.patterns()[before:] if isinstance(body, Message)]
    assert told
    assert told[-1].size == len("again")


def test_other_requests_beside_the_gateway_stay_plain() -> None:
    web = Web()
    chat(web, 1, 1, 1)
    before = len(web.patterns())
    web.say(1, C, b"GET /index.html HTTP/1.1\r\nHost: g\r\n\r\n")
    web.say(1, S, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    web.ask(1, "Action=poll&SessionID=s.3")
    web.answer(1, "s.4", lines("BYE bo@example.com"))
    assert [tag_of(body) for body in web.patterns()[before:]] == ["data", "data", "im.leave"]


def tunnelled(web: Web, number: int, target: str) -> None:
    web.open(number, PROXY)
    web.say(
        number,
        C,
        lines(f"CONNECT {target} HTTP/1.0", "Proxy-Authorization: Basic c2VjcmV0OnNlY3JldA==", ""),
    )
    web.say(number, S, lines("HTTP/1.0 200 Connection established", ""))


@pytest.mark.parametrize("pieces", [1 << 16, 3])
def test_msnp_in_a_tunnel_is_told_as_if_there_were_none(pieces: int) -> None:
    web = Web(pieces=pieces)
    tunnelled(web, 1, "messenger.example.com:1863")
    web.say(1, C, lines("VER 1 MSNP8 CVR0"))
    web.say(1, S, lines("VER 1 MSNP8", "USR 3 OK ana@example.com Ana 1 0"))
    web.say(1, C, lines("XFR 4 SB"))
    web.say(1, S, lines("XFR 4 SB 192.0.2.30:1863 CKI 12.34.56"))
    tunnelled(web, 2, "192.0.2.30:1863")
    web.say(2, C, lines("USR 1 ana@example.com 12.34.56"))
    web.say(2, S, lines("USR 1 OK ana@example.com Ana", "JOI bo@example.com Bo"))
    web.say(2, S, counted("MSG bo@example.com Bo", *TEXT, "hi"))
    web.close(1)
    told = [body for body in web.patterns() if not isinstance(body, Data)]
    assert [tag_of(body) for body in told] == [
        *("im.connect", "im.sign_in", "im.redirect", "im.connect", "im.join", "im.message"),
        "im.sign_out",
    ]
    assert len({body.conversation for body in told if body.conversation}) == 1
    shown = msgspec.json.encode([msgspec.to_builtins(record.body) for record in web.records])
    assert b"c2VjcmV0" not in shown
    assert b"12.34.56" not in shown
    assert all(body.summary for body in web.patterns() if isinstance(body, Data))


def test_nothing_is_made_of_what_stands_on_both_sides_of_a_hole_in_a_tunnel() -> None:
    web = Web()
    tunnelled(web, 1, "192.0.2.30:1863")
    web.say(1, C, b"USR 1 an")
    web.lose(1, C, 1, received=True)
    web.say(
        1, C, b"@example.com 12.34.56\r\n" + counted("MSG 2 N", *TEXT, "hi") + lines("CAL 3 c@e")
    )
    web.say(1, S, lines("USR 1 OK ana@example.com Ana", "JOI bo@example.com Bo"))
    web.say(1, S, counted("MSG bo@example.com Bo", *TEXT, "hi"))
    web.close(1)
    told = [body for body in web.patterns() if isinstance(body, Join | Message)]
    assert [tag_of(body) for body in told] == ["im.message", "im.join", "im.message"]
    assert [body.sender for body in told if isinstance(body, Message)] == [None, BO]
    assert b"an@example.com" not in msgspec.json.encode(web.records)


def test_a_name_that_a_lost_answer_gave_is_that_of_the_session() -> None:
    web = Web()
    web.ask(1, "Action=open&Server=SB&IP=192.0.2.30", lines("USR 1 ana@example.com 12.34.56"))
    web.answer(1, "s.1", lines("JOI bo@example.com Bo"))
    web.ask(1, "SessionID=s.1", counted("MSG 2 N", *TEXT, "one"))
    web.lose(1, S, 150)
    web.ask(1, "SessionID=s.2", counted("MSG 3 N", *TEXT, "two"))
    web.ask(1, "SessionID=s.3", counted("MSG 4 N", *TEXT, "three"))
    web.answer(1, "s.4", counted("MSG bo@example.com Bo", *TEXT, "four!"))
    web.close(1)
    told = [body for body in web.patterns() if isinstance(body, Message)]
    assert [(body.sender, body.recipients, body.size) for body in told] == [
        *((ANA, (BO,), size) for size in (3, 3, 5)),
        (BO, (ANA,), 5),
    ]


def test_what_is_no_msnp_in_a_tunnel_stays_plain() -> None:
    web = Web()
    tunnelled(web, 1, "www.example.com:443")
    web.say(1, C, b"\x16\x03\x01 hello")
    web.say(1, S, b"\x16\x03\x03 hello")
    web.close(1)
    data = [body.bytes for body in web.patterns() if isinstance(body, Data) and not body.summary]
    assert data == [9, 9]


def test_a_tunnel_that_ends_undecided_is_plain() -> None:
    web = Web()
    tunnelled(web, 1, "www.example.com:443")
    web.say(1, C, b"VE")
    web.close(1)
    data = [body.bytes for body in web.patterns() if isinstance(body, Data) and not body.summary]
    assert data == [2]
