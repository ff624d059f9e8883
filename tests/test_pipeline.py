"""From a source's items to records: order, pairing, policy, loss, and what is never told."""

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from streamtap.events import (
    FlowClosed,
    FlowIdentified,
    FlowOpened,
    ParserFailed,
    Record,
    StreamGap,
    StreamLimit,
    tag_of,
)
from streamtap.model import (
    App,
    Closed,
    Content,
    Direction,
    Endpoint,
    Flow,
    Opened,
    Policy,
    Role,
    Scoped,
    Segment,
    StreamItem,
)
from streamtap.patterns import Conversations, Data, Message
from streamtap.pipeline import Pipeline, Terms
from streamtap.pipeline.speech import SECOND_LOOKS
from streamtap.protocols import Limits
from streamtap.protocols.http import HttpParser, HttpRequest
from streamtap.protocols.msnp import MsnpParser

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
MS = 1_000_000


def app(pid: int) -> App:
    return App("/opt/chat", pid, "chat", 1000, "/", "chat")


def opened(
    flow_id: int = 1, *, role: Role = Role.CLIENT, pid: int = 10, midstream: bool = False,
    at_ns: int = 0, passed: tuple[int, int] = (0, 0), namespace: int = 7, name: str = "chat",
) -> Opened:  # fmt: skip
    client, server = Endpoint("127.0.0.1", 5000), Endpoint("127.0.0.1", 1863)
    local, remote = (client, server) if role is Role.CLIENT else (server, client)
    flow = Flow(
        flow_id, replace(app(pid), filter=name), local, remote, role, at_ns, midstream, namespace
    )
    return Opened(flow, (100, 200), passed)


class Talk:
    """Makes the segments of a flow, each with the next sequence number of its direction."""

    def __init__(self, flow_id: int = 1) -> None:
        self.flow_id = flow_id
        self.next = [100, 200]

    def say(self, direction: Direction, data: bytes, at_ns: int, *, skip: int = 0) -> Segment:
        sequence = self.next[direction] + skip
        self.next[direction] = sequence + len(data)
        return Segment(self.flow_id, direction, sequence, data, at_ns, lost=int(bool(skip)))

    def count(self, direction: Direction, length: int, at_ns: int) -> Segment:
        sequence = self.next[direction]
        self.next[direction] += length
        return Segment(self.flow_id, direction, sequence, b"", at_ns, counted=length)


def tags(records: list[Record]) -> list[str]:
    """Events of the default selection: without those of the parsers."""
    return [tag_of(record.body) for record in records if record.body.place()[1] != "all_traffic"]


def bodies(records: list[Record], kind: type) -> list[object]:
    return [record.body for record in records if isinstance(record.body, kind)]


def closing(records: list[Record]) -> FlowClosed:
    (body,) = bodies(records, FlowClosed)
    assert isinstance(body, FlowClosed)
    return body


def test_records_come_in_the_order_of_time_over_all_flows() -> None:
    pipe, one, two = Pipeline(), Talk(1), Talk(2)
    records = pipe.feed(
        [
            opened(1, at_ns=1 * MS, namespace=1),
            opened(2, at_ns=4 * MS, namespace=2),
            one.say(UP, b"\0ping", 3 * MS),
            one.say(DOWN, b"\0pong", 6 * MS),
            two.say(UP, b"\0ping", 5 * MS),
            Closed(1, 7 * MS, "fin", (5, 5)),
            Closed(2, 8 * MS, "fin", (5, 0)),
        ]
    )
    assert [r.time_ns for r in records] == sorted(r.time_ns for r in records)
    assert tags(records) == [
        "flow.opened", "flow.identified", "data", "flow.opened", "flow.identified", "data",
        "data", "flow.closed", "flow.closed",
    ]  # fmt: skip


def test_data_that_came_with_the_handshake_follows_the_opening() -> None:
    pipe, talk = Pipeline(), Talk()
    early = talk.say(UP, b"GET / HTTP/1.1\r\n\r\n", 1 * MS)
    assert pipe.feed([early]) == []
    records = pipe.feed([opened(at_ns=2 * MS)])
    assert tags(records) == ["flow.opened", "flow.identified", "data"]


def test_directions_joined_per_batch_are_told_in_the_order_they_spoke() -> None:
    pipe = Pipeline()
    pipe.feed([opened()])
    up = Segment(1, UP, 100, b"\0aaaabbbb"[1:], 3 * MS, (4, 8), (1 * MS, 3 * MS))
    down = Segment(1, DOWN, 200, b"ccccdddd", 4 * MS, (4, 8), (2 * MS, 4 * MS))
    records = pipe.feed([up, down, Closed(1, 5 * MS, "fin", (8, 8))])
    told = [(r.direction, r.body.offset) for r in records if isinstance(r.body, Data)]
    assert told == [("sent", 0), ("received", 0), ("sent", 4), ("received", 4)]


def test_a_connection_with_both_ends_in_scope_is_told_once_and_names_both() -> None:
    reduced: list[int] = []
    pipe = Pipeline(set_policy=lambda flow_id, policy: reduced.append(flow_id))
    client, server = Talk(1), Talk(2)
    records = pipe.feed(
        [
            opened(1, pid=10),
            opened(2, role=Role.SERVER, pid=20, at_ns=1),
            client.say(UP, b"GET /a HTTP/1.1\r\n\r\n", 1 * MS),
            server.say(UP, b"GET /a HTTP/1.1\r\n\r\n", 2 * MS),
            Closed(1, 3 * MS, "fin", (19, 0)),
            Closed(2, 4 * MS, "fin", (19, 0)),
        ]
    )
    (told,) = [r for r in records if isinstance(r.body, Data)]
    assert told.flow is not None
    assert (told.flow.app, told.flow.peer) == (app(10), app(20))
    assert len(bodies(records, FlowOpened)) == len(bodies(records, FlowClosed)) == 2
    assert reduced == [2]


def test_both_ends_are_told_where_that_is_asked_for() -> None:
    pipe, client, server = Pipeline(both_ends=True), Talk(1), Talk(2)
    records = pipe.feed(
        [
            opened(1, pid=10),
            opened(2, role=Role.SERVER, pid=20, at_ns=1),
            client.say(UP, b"GET /a HTTP/1.1\r\n\r\n", 1 * MS),
            server.say(UP, b"GET /a HTTP/1.1\r\n\r\n", 2 * MS),
        ]
    )
    assert [r.direction for r in records if isinstance(r.body, Data)] == ["sent", "received"]


class Openings:
    """A tap that keeps which flows began, and of which others they are the other end."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int | None]] = []

    def opened(self, opened: Opened, first: Flow | None) -> None:
        self.told.append((opened.flow.flow_id, None if first is None else first.flow_id))

    def segment(self, flow: Flow, segment: Segment) -> None:
        pass

    def item(self, flow: Flow, direction: Direction, item: StreamItem) -> None:
        pass

    def closed(self, flow: Flow, closed: Closed) -> None:
        pass


def test_taps_are_told_which_flow_is_the_other_end_of_one_that_is_open() -> None:
    openings = Openings()
    pipe = Pipeline(taps=[openings])
    pipe.feed([opened(1), opened(2, role=Role.SERVER, at_ns=1)])
    pipe.feed([Closed(1, 2 * MS, "fin"), Closed(2, 2 * MS, "fin")])
    pipe.feed([opened(3, at_ns=3 * MS), Closed(3, 4 * MS, "fin")])
    pipe.feed([opened(4, role=Role.SERVER, at_ns=5 * MS)])
    assert openings.told == [(1, None), (2, 1), (3, None), (4, None)]


def test_an_opaque_flow_is_turned_to_count_and_its_counted_bytes_are_told() -> None:
    asked: list[tuple[int, Policy]] = []
    pipe = Pipeline(set_policy=lambda flow_id, policy: asked.append((flow_id, policy)))
    talk = Talk()
    records = pipe.feed([opened(), talk.say(UP, b"\x16\x03\x01", 1 * MS)])
    assert asked == [(1, Policy.COUNT)]
    records += pipe.feed([talk.count(UP, 997, 2 * MS), talk.count(DOWN, 50_000, 3 * MS)])
    records += pipe.feed([Closed(1, 4 * MS, "fin", (1000, 50_000))])
    assert [(r.direction, r.body.bytes) for r in records if isinstance(r.body, Data)] == [
        ("sent", 1000),
        ("received", 50_000),
    ]
    end = closing(records)
    assert (end.sent, end.sent_counted, end.received_counted) == (3, 997, 50_000)
    assert (end.missing, end.complete) == (0, True)


def test_an_opaque_flow_is_copied_in_full_where_content_is_wanted() -> None:
    asked: list[int] = []
    pipe = Pipeline(content=Content.FULL, set_policy=lambda flow_id, policy: asked.append(flow_id))
    talk = Talk()
    records = pipe.feed([opened(), talk.say(UP, "héllo".encode(), 1 * MS)])
    records += pipe.feed([Closed(1, 2 * MS, "fin", (6, 0))])
    assert not asked
    (data,) = bodies(records, Data)
    assert isinstance(data, Data)
    assert data.content == "héllo"


def test_a_loss_is_a_gap_record_and_is_named_by_the_certificate() -> None:
    pipe, talk = Pipeline(), Talk()
    records = pipe.feed([opened(), talk.say(UP, b"\0abc", 1 * MS)])
    records += pipe.feed([talk.say(UP, b"xyz", 2 * MS, skip=10)])
    records += pipe.feed([Closed(1, 3 * MS, "rst", (17, 0), (1, 0))])
    (gap,) = [r for r in records if isinstance(r.body, StreamGap)]
    assert isinstance(gap.body, StreamGap)
    assert (gap.direction, gap.body.offset, gap.body.length, gap.body.cause) == (
        "sent", 4, 10, "lost",
    )  # fmt: skip
    end = closing(records)
    assert (end.sent, end.missing, end.complete) == (7, 10, False)
    assert end.missing_ranges == (("sent", 4, 10),)
    assert pipe.gaps == 1


def test_a_flow_joined_midstream_counts_from_its_true_beginning() -> None:
    pipe, talk = Pipeline(), Talk()
    records = pipe.feed([opened(midstream=True, passed=(1000, 0))])
    records += pipe.feed([talk.say(UP, b"\0more", 1 * MS), Closed(1, 2 * MS, "fin", (1005, 0))])
    (data,) = bodies(records, Data)
    assert isinstance(data, Data)
    assert data.offset == 1000
    assert [g.cause for g in bodies(records, StreamGap) if isinstance(g, StreamGap)] == [
        "midstream"
    ]
    assert (closing(records).missing, closing(records).complete) == (1000, False)


def test_who_comes_while_a_burst_is_open_is_told_it_whole_and_once() -> None:
    pipe, talk = Pipeline(), Talk()
    pipe.feed([opened(), talk.say(UP, b"\0early", 1 * MS)])
    pipe.tick(500 * MS)
    pipe.feed([talk.say(UP, b"late", 501 * MS)])
    (gap,) = bodies(pipe.standing(502 * MS), StreamGap)
    (data,) = bodies(pipe.tick(900 * MS), Data)
    assert isinstance(gap, StreamGap)
    assert isinstance(data, Data)
    assert (gap.offset, gap.length, data.offset, data.length) == (0, 6, 6, 4)


def test_a_chat_joined_inside_a_message_is_understood_from_the_next_one() -> None:
    pipe, talk = Pipeline(), Talk()
    body = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=UTF-8\r\n\r\nhi"
    message = b"MSG bob@example.com Bob %d\r\n" % len(body) + body
    records = pipe.feed([opened(midstream=True, passed=(0, 500))])
    records += pipe.feed([talk.say(DOWN, b"the tail of something", 1 * MS)])
    records += pipe.feed([talk.say(DOWN, message, 2 * MS)])
    records += pipe.feed([talk.say(DOWN, message, 3 * MS), Closed(1, 4 * MS, "rst")])
    assert len(bodies(records, Message)) == 2


def test_nothing_of_an_unwanted_flow_is_told() -> None:
    pipe, talk = Pipeline(wanted=lambda flow: flow.remote.port == 80), Talk()
    records = pipe.feed([opened(), talk.say(UP, b"hello", 1 * MS), Closed(1, 2 * MS, "fin")])
    assert records == []
    assert pipe.table.early_expired == pipe.table.early_refused == 0


def test_a_parser_that_breaks_is_reported_and_the_flow_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: object, direction: Direction, data: bytes) -> None:
        raise RuntimeError("secret payload")

    monkeypatch.setattr(HttpParser, "receive", broken)
    pipe, talk = Pipeline(), Talk()
    records = pipe.feed([opened(), talk.say(UP, b"GET / HTTP/1.1\r\n\r\n", 1 * MS)])
    records += pipe.feed([talk.say(DOWN, b"HTTP/1.1 200 OK\r\n", 2 * MS)])
    records += pipe.feed([Closed(1, 3 * MS, "fin", (18, 17))])
    (failed,) = bodies(records, ParserFailed)
    assert isinstance(failed, ParserFailed)
    assert (failed.protocol, failed.error) == ("http", "RuntimeError")
    assert "secret" not in msgspec.json.encode(failed).decode()
    assert [r.direction for r in records if isinstance(r.body, Data)] == ["received"]
    assert closing(records).complete is True


def test_what_a_broken_parser_held_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits()
    pipe, talk = Pipeline(limits=limits), Talk()
    held = b"ADL 3 900000\r\n<ml>"
    pipe.feed([opened(), talk.say(UP, b"VER 1 MSNP15 CVR0\r\n" + held, 1 * MS)])
    assert limits.pool.held == len(held)

    def broken(*_: object) -> None:
        raise RuntimeError("secret payload")

    monkeypatch.setattr(MsnpParser, "receive", broken)
    records = pipe.feed([talk.say(UP, b"x", 2 * MS)])
    assert bodies(records, ParserFailed)
    assert (limits.pool.held, limits.pool._sharers) == (0, 0)


def test_what_breaks_before_the_protocol_is_known_ends_neither_the_flow_nor_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(to_server: bytes, to_client: bytes) -> None:
        if b"secret" in to_server:
            raise RuntimeError("secret payload")

    monkeypatch.setattr(HttpParser, "probe", broken)
    pipe, talk, other = Pipeline(), Talk(), Talk(2)
    records = pipe.feed(
        [
            opened(),
            opened(2, namespace=8),
            talk.say(UP, b"secret", 1 * MS),
            other.say(UP, b"\0", 2 * MS),
        ]
    )
    records += pipe.feed([talk.say(UP, b"more", 3 * MS)])
    records += pipe.feed([Closed(1, 40 * MS, "fin", (10, 0)), Closed(2, 40 * MS, "fin", (1, 0))])
    (failed,) = bodies(records, ParserFailed)
    assert isinstance(failed, ParserFailed)
    assert failed.error == "RuntimeError"
    closings = [r.body for r in records if isinstance(r.body, FlowClosed)]
    assert [(body.sent, body.complete) for body in closings] == [(10, True), (1, True)]
    assert [r.body.bytes for r in records if isinstance(r.body, Data)] == [1, 4]
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_what_a_parser_gave_is_told_plainly_once_its_meaning_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe, talk = Pipeline(), Talk()
    interpret: Any = Conversations.interpret

    def broken(*given: Any) -> object:
        if isinstance(given[4], HttpRequest):
            raise KeyError("secret payload")
        return interpret(*given)

    monkeypatch.setattr(Conversations, "interpret", broken)
    records = pipe.feed(
        [
            opened(),
            talk.say(UP, b"GET / HTTP/1.1\r\n\r\n", 1 * MS),
            talk.say(DOWN, b"HTTP/1.1 204 No Content\r\n\r\n", 2 * MS),
            talk.say(UP, b"GET /2 HTTP/1.1\r\n\r\n", 3 * MS),
        ]
    )
    records += pipe.feed([Closed(1, 30 * MS, "fin", (37, 27))])
    assert len(bodies(records, ParserFailed)) == 1
    told = [(r.direction, r.body.bytes) for r in records if isinstance(r.body, Data)]
    assert told == [("received", 27), ("sent", 19)]
    assert closing(records).complete is True


def test_a_flow_that_breaks_the_patterns_at_its_end_is_closed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret payload")

    pipe, talk = Pipeline(), Talk()
    monkeypatch.setattr(Conversations, "closed", broken)
    records = pipe.feed([opened(), talk.say(UP, b"\0", 1 * MS), Closed(1, 2 * MS, "fin", (1, 0))])
    assert tags(records)[-2:] == ["stream.parser_failed", "flow.closed"]


def test_a_forced_protocol_is_told_only_where_something_was_said() -> None:
    pipe = Pipeline(protocol="msnp")
    records = pipe.feed([opened(), Closed(1, 1 * MS, "fin", (0, 0))])
    assert tags(records) == ["flow.opened", "flow.closed"]


def test_a_forced_protocol_is_not_detected() -> None:
    pipe, talk = Pipeline(protocol="opaque"), Talk()
    records = pipe.feed([opened(), talk.say(UP, b"GET / HTTP/1.1\r\n\r\n", 1 * MS)])
    (identified,) = [r.body for r in records if tag_of(r.body) == "flow.identified"]
    assert json.loads(msgspec.json.encode(identified))["confidence"] == "forced"


def test_what_nobody_wants_is_not_made_but_understood() -> None:
    places = frozenset({("monitor", "flow_established", "info")})
    pipe, talk = Pipeline(places=places), Talk()
    records = pipe.feed([opened(), talk.say(UP, b"\0", 1 * MS), Closed(1, 2 * MS, "fin", (1, 0))])
    assert tags(records) == ["flow.opened", "flow.identified", "flow.closed"]


def test_second_looks_are_bounded() -> None:
    pipe, talk = Pipeline(), Talk()
    pipe.feed([opened(midstream=True, passed=(0, 1))])
    for n in range(SECOND_LOOKS + 2):
        pipe.feed([talk.say(DOWN, b"\0noise", n * MS)])
    records = pipe.feed([talk.say(UP, b"GET / HTTP/1.1\r\n\r\n", 100 * MS)])
    assert "flow.identified" not in tags(records)


def test_flows_beyond_the_limit_are_refused_and_said() -> None:
    pipe = Pipeline(max_flows=1)
    many = [opened(n, namespace=n, at_ns=n * MS) for n in range(1, 5)]
    records = pipe.feed(many)
    records += pipe.feed([opened(9, namespace=9, at_ns=2000 * MS)])
    limits = [r.body for r in records if isinstance(r.body, StreamLimit)]
    assert [(b.limit, b.value, b.count) for b in limits] == [("flows", 1, 1), ("flows", 1, 3)]
    assert pipe.table.refused == 4


def test_content_that_is_wanted_later_has_plain_flows_copied_again_and_told() -> None:
    asked: list[Policy] = []
    pipe = Pipeline(set_policy=lambda flow_id, policy: asked.append(policy))
    talk = Talk()
    pipe.feed([opened(), talk.say(UP, b"\0plain", 1 * MS), talk.say(DOWN, b"\1", 2 * MS)])
    assert asked == [Policy.COUNT]
    pipe.set_content(Content.FULL)
    pipe.set_content(Content.FULL)
    records = pipe.feed([talk.say(UP, b"shown", 90 * MS), talk.say(DOWN, b"?", 91 * MS)])
    records += pipe.tick(2000 * MS)
    assert [record.body.content for record in records if isinstance(record.body, Data)] == [
        None, "shown", "?",
    ]  # fmt: skip
    pipe.set_content(Content.META)
    assert asked == [Policy.COUNT, Policy.FULL, Policy.COUNT]
    records = pipe.feed([talk.say(UP, b"hidden", 3000 * MS)]) + pipe.tick(4000 * MS)
    assert [record.body.content for record in records if isinstance(record.body, Data)] == [None]


def texts(records: list[Record]) -> list[str | None]:
    return [record.body.content for record in records if isinstance(record.body, Message)]


def test_text_of_messages_follows_the_level_and_the_ceiling_of_the_flows_filter() -> None:
    pipe, talks = Pipeline(), {1: Talk(1), 2: Talk(2)}
    begin = b"VER 1 MSNP8 CVR0\r\n"
    pipe.set_filters({"low": Terms(None, Content.META)})
    pipe.feed([opened(1, name="chat", namespace=1), opened(2, name="low", namespace=2)])
    for talk in talks.values():
        pipe.feed([talk.say(UP, begin, 1), talk.say(DOWN, begin, 2)])
    message = b"MSG a@x.com Ann %d\r\n" % len(BODY) + BODY

    def say(flow_id: int) -> list[str | None]:
        return texts(pipe.feed([talks[flow_id].say(DOWN, message, 3)]))

    assert (say(1), say(2)) == ([None], [None])
    pipe.set_content(Content.FULL)
    assert (say(1), say(2)) == (["hello"], [None])
    pipe.set_filters({"chat": Terms(None, Content.META)})
    assert (say(1), say(2)) == ([None], ["hello"])


BODY = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=UTF-8\r\n\r\nhello"


def test_a_filter_forces_the_parser_of_its_own_flows() -> None:
    pipe, forced, other = Pipeline(), Talk(1), Talk(2)
    pipe.set_filters({"web": Terms("http", None)})
    records = pipe.feed(
        [
            opened(1, name="web", namespace=1),
            opened(2, namespace=2),
            forced.say(UP, b"\0\1", 1 * MS),
            other.say(UP, b"\0\1", 2 * MS),
        ]
    )
    identified = [
        (record.body.protocol, record.body.confidence)
        for record in records
        if isinstance(record.body, FlowIdentified)
    ]
    assert identified == [("http", "forced"), ("opaque", "none")]


def test_a_flow_in_another_filter_is_told_under_that_one_from_then_on() -> None:
    pipe, talk = Pipeline(content=Content.FULL), Talk()
    pipe.set_filters({"low": Terms(None, Content.META)})
    pipe.feed([opened(name="low"), talk.say(UP, b"\0", 1 * MS)])
    records = pipe.feed([talk.say(DOWN, b"a", 2 * MS), Scoped(1, 3 * MS, 6, "chat")])
    records += pipe.feed([talk.say(UP, b"b", 4 * MS)]) + pipe.tick(2000 * MS)
    told = [
        (record.flow.filters, record.flow.app.filter, record.body.content)
        for record in records
        if isinstance(record.body, Data) and record.flow and record.flow.app
    ]
    assert told == [(0, "low", None), (6, "chat", None), (6, "chat", "b")]


def test_places_that_are_wanted_later_are_made_from_then_on() -> None:
    pipe, talk = Pipeline(places=frozenset()), Talk()
    assert pipe.feed([opened(), talk.say(UP, b"\0plain", 1 * MS)]) == []
    pipe.set_places(None)
    records = pipe.feed([talk.say(UP, b"more", 50 * MS)])
    assert [tag_of(record.body) for record in records] == ["data", "opaque.data"]
    pipe.set_places(frozenset())
    assert pipe.feed([talk.say(UP, b"more", 150 * MS)]) + pipe.tick(9000 * MS) == []
