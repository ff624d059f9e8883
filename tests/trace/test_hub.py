"""Sessions that come and go, each with its own selection, level, pace and losses."""

import json
import os
import select
import socket
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.records import FLOW, TIME, body, every_kind, message, opened, record
from streamtap.events import Body, Record
from streamtap.model import Content
from streamtap.patterns import clean
from streamtap.protocols.msnp import MsnpCommand
from streamtap.trace.hub import EVERY, Clean, Hub
from streamtap.trace.selection import Selection, parse

SECOND = 1_000_000_000
KEY = b"k" * 32
ALL = parse(["all:all"])
CHAT = parse(["notify:peer_to_peer"])
DEFAULT = parse([])
COMMAND = MsnpCommand(offset=0, length=9, verb="X", transaction=1, args=(), payload_length=0)

Line = dict[str, Any]


def cleaned(body: Body, content: Content) -> Body:
    return clean(body, content, KEY)


class Ends:
    """What the tests leave open."""

    hubs: ClassVar[list[Hub]] = []
    sockets: ClassVar[list[socket.socket]] = []

    @classmethod
    def close(cls) -> None:
        for hub in cls.hubs:
            hub.close()
        for end in cls.sockets:
            end.close()
        cls.hubs.clear()
        cls.sockets.clear()


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    yield
    Ends.close()


@pytest.fixture
def hub() -> Hub:
    return make_hub()


def make_hub(clean: Clean = cleaned, **bounds: Any) -> Hub:
    hub = Hub(clean=clean, **({"clock": lambda: TIME} | bounds))
    Ends.hubs.append(hub)
    return hub


class Reader:
    """The other end of a session."""

    def __init__(self, hub: Hub, name: str = "it", selection: Selection = ALL, **more: Any) -> None:
        self.here, there = socket.socketpair()
        Ends.sockets += [self.here, there]
        self.here.setblocking(False)
        self.data = b""
        hub.attach(name, there, selection, **more)

    def take(self, size: int = 1 << 20) -> int:
        """Reads what has come, in one go; how much."""
        try:
            data = self.here.recv(size)
        except BlockingIOError:
            return 0
        self.data += data
        return len(data)

    @property
    def lines(self) -> list[Line]:
        """All that has come, to the last whole line."""
        while self.take():
            pass
        whole = self.data[: self.data.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines() if line]

    @property
    def numbers(self) -> list[int]:
        return [line["number"] for line in self.lines]

    def close(self) -> None:
        self.here.close()


def messages(count: int, first: int = 0) -> list[Record]:
    """Records that differ in their time, by which they can be told apart."""
    return [
        msgspec.structs.replace(record(message(), "sent"), time_ns=TIME + first + at)
        for at in range(count)
    ]


def is_readable(hub: Hub) -> bool:
    return bool(select.select([hub.fd], [], [], 0)[0])


def settle(hub: Hub, *readers: Reader) -> None:
    """All that waits is sent and read."""
    while True:
        hub.flush()
        if sum(reader.take() for reader in readers) == 0 and not is_readable(hub):
            return


# --- who gets what --------------------------------------------------------------------------------


def test_each_session_numbers_what_it_selected(hub: Hub) -> None:
    everything, chat = Reader(hub, "a"), Reader(hub, "b", CHAT)
    hub.give([record(opened()), record(message(), "sent"), record(COMMAND, "sent")])
    hub.give([record(message(), "sent")])
    hub.flush()
    assert everything.numbers == [1, 2, 3, 4]
    assert [line["event"] for line in chat.lines] == ["im.message", "im.message"]
    assert chat.numbers == [1, 2]
    assert {name: each.number for name, each in hub.sessions.items()} == {"a": 4, "b": 2}


def test_lines_are_those_of_the_json_sink(hub: Hub) -> None:
    from helpers.records import Kept
    from streamtap.trace import JsonLines, Output

    kept, reader = Kept(), Reader(hub, content=Content.FULL)
    sink = JsonLines(Output(kept))
    records = [each for each, _ in every_kind()]
    for number, each in enumerate(records, 1):
        sink.write(number, [each])
    sink.flush()
    hub.give(records)
    hub.flush()
    assert len(reader.lines) == len(records)
    assert reader.data == kept.getvalue()


def test_sessions_come_and_go_in_the_middle_of_a_batch(hub: Hub) -> None:
    stays, goes = Reader(hub, "stays"), Reader(hub, "goes")
    hub.give(messages(2))
    comes = Reader(hub, "comes")
    hub.detach("goes")
    hub.give(messages(2, 2))
    hub.flush()
    assert [reader.numbers for reader in (stays, goes, comes)] == [[1, 2, 3, 4], [1, 2], [1, 2]]
    assert goes.here.recv(1) == b""
    again = Reader(hub, "goes")
    hub.give(messages(1, 4))
    hub.flush()
    assert again.numbers == [1]


def test_a_second_session_of_the_same_name_is_refused(hub: Hub) -> None:
    first = Reader(hub, "it")
    with pytest.raises(ValueError, match="there is a session 'it' already"):
        Reader(hub, "it")
    hub.give(messages(1))
    hub.flush()
    assert first.numbers == [1]


def test_a_mask_of_filters_lets_through_its_flows_and_what_is_of_no_flow(hub: Hub) -> None:
    flows = {bits: msgspec.structs.replace(FLOW, filters=bits) for bits in (0, 1, 2, 3, 1 << 63)}
    readers = {
        mask: Reader(hub, str(mask), filters=mask) for mask in (EVERY, 0, 1, 2, 4, 6, 1 << 63)
    }
    hub.give([record(message(size=bits & 7), "sent", flow) for bits, flow in flows.items()])
    hub.give([record(body("state.changed", enabled=True), flow=None)])
    hub.flush()
    for mask, reader in readers.items():
        wanted = [bits & 7 for bits in flows if mask == EVERY or bits & mask]
        assert [line["size"] for line in reader.lines[:-1]] == wanted
        assert reader.lines[-1]["event"] == "state.changed"


def test_places_and_content_are_the_most_that_anybody_wants() -> None:
    hub = make_hub(keep_bytes=0)
    assert (hub.places, hub.content) == (frozenset(), Content.META)
    chat = Reader(hub, "chat", CHAT, content=Content.NONE)
    assert (hub.places, hub.content) == (CHAT.places, Content.NONE)
    Reader(hub, "all", content=Content.FULL)
    assert (hub.places, hub.content) == (ALL.places, Content.FULL)
    hub.detach("all")
    assert (hub.places, hub.content) == (CHAT.places, Content.NONE)
    chat.close()
    hub.flush()
    assert (hub.places, hub.content) == (frozenset(), Content.META)


def test_the_flight_recorder_wants_the_default_and_not_less_for_a_session_that_does(
    hub: Hub,
) -> None:
    assert (hub.places, hub.content) == (DEFAULT.places, Content.META)
    Reader(hub, selection=CHAT, content=Content.NONE)
    assert (hub.places, hub.content) == (DEFAULT.places, Content.META)


# --- content levels -------------------------------------------------------------------------------


def test_each_session_is_told_what_its_level_allows(hub: Hub) -> None:
    readers = [Reader(hub, each.name, content=each) for each in Content]
    said = record(message(content="hello"), "sent")
    hub.give([said])
    hub.flush()
    none, meta, full = (reader.lines[0] for reader in readers)
    assert (full["content"], full["sender"]) == ("hello", "bob@example.com")
    assert ("content" in meta, meta["sender"]) == (False, "bob@example.com")
    assert "content" not in none
    assert none["sender"].endswith("@hidden")


def test_what_was_cleaned_for_a_level_stays_at_that_level(hub: Hub) -> None:
    reader = Reader(hub, "full", content=Content.FULL)
    same = Reader(hub, "none", content=Content.NONE)
    said = cleaned(message(content="hello"), Content.NONE)
    hub.give([msgspec.structs.replace(record(said, "sent"), content=Content.NONE)])
    hub.flush()
    assert reader.data == same.data
    assert reader.lines == same.lines
    assert reader.lines[0]["sender"] == cleaned(message(), Content.NONE).sender  # type: ignore[attr-defined]


def test_a_body_is_cleaned_once_a_level_however_many_listen() -> None:
    asked: list[Content] = []

    def count(body: Body, content: Content) -> Body:
        asked.append(content)
        return cleaned(body, content)

    hub = make_hub(count)
    readers = [
        Reader(hub, f"{number} {level.name}", selection, content=level)
        for level in Content
        for number, selection in enumerate((ALL, CHAT, DEFAULT, ALL))
    ]
    hub.give(messages(3))
    hub.flush()
    assert sorted(asked) == [Content.NONE] * 3 + [Content.META] * 3
    assert all(reader.numbers == [1, 2, 3] for reader in readers)


# --- a session that goes on, and what comes first -------------------------------------------------


def test_a_session_that_goes_on_has_its_numbers_and_losses_and_whole_lines(hub: Hub) -> None:
    begun = record(body("init.started", version="1", source="live"), flow=None)
    reader = Reader(hub, selection=CHAT, after=41, dropped=7, resumed=True, opening=[begun])
    hub.give(messages(1))
    hub.flush()
    assert [(line["number"], line["event"]) for line in reader.lines] == [
        (42, "init.started"),
        (43, "im.message"),
    ]
    assert reader.data.startswith(b"\n{")
    session = hub.sessions["it"]
    assert (session.number, session.dropped, session.queued) == (43, 7, 0)
    assert session.sent == len(reader.data)


def test_what_comes_first_is_cleaned_too(hub: Hub) -> None:
    reader = Reader(hub, content=Content.META, opening=[record(message(content="hello"), "sent")])
    hub.flush()
    assert reader.numbers == [1]
    assert b"hello" not in reader.data


def test_the_owner_is_woken_to_give_what_comes_first(hub: Hub) -> None:
    reader = Reader(hub, opening=messages(1))
    assert is_readable(hub)
    hub.flush()
    assert reader.numbers == [1]
    assert not is_readable(hub)


# --- the flight recorder --------------------------------------------------------------------------


def test_what_is_remembered_comes_first_as_the_session_selects_it(hub: Hub) -> None:
    first, second = (msgspec.structs.replace(FLOW, filters=bits) for bits in (1, 2))
    past = [
        record(message(size=1, content="hello"), "sent", first),
        record(opened(), flow=first),
        record(message(size=2), "sent", second),
        record(message(size=3), "sent", first),
    ]
    hub.give([msgspec.structs.replace(each, time_ns=TIME + at) for at, each in enumerate(past)])
    whole = Reader(hub, "whole", since_ns=TIME, content=Content.FULL)
    part = Reader(hub, "part", CHAT, since_ns=TIME, filters=1, content=Content.NONE)
    late = Reader(hub, "late", since_ns=TIME + 3)
    hub.give([record(message(size=4), "sent", first)])
    settle(hub, whole, part, late)
    assert [line.get("size") for line in whole.lines] == [1, None, 2, 3, 4]
    assert whole.lines[0]["content"] == "hello"
    assert [line["size"] for line in part.lines] == [1, 3, 4]
    assert b"example" not in part.data
    assert [line["size"] for line in late.lines] == [3, 4]
    assert all(reader.numbers == [*range(1, len(reader.lines) + 1)] for reader in (whole, part))


def test_what_is_remembered_of_open_flows_is_not_told_twice(hub: Hub) -> None:
    """One began within what is remembered, one before it, and of one nothing is remembered."""
    new, old, silent = (
        msgspec.structs.replace(FLOW, flow=name) for name in ("new", "old", "silent")
    )
    hub.give(
        [
            record(opened(), flow=new),
            record(message(size=1, offset=70), "sent", old),
            record(message(size=2, offset=0), "sent", new),
        ]
    )
    opening = [
        one
        for flow in (new, old, silent)
        for one in (
            record(opened(midstream=True), flow=flow),
            record(body("stream.gap", offset=0, length=100, cause="midstream"), "sent", flow),
        )
    ]
    reader = Reader(hub, since_ns=TIME, opening=opening)
    settle(hub, reader)
    told = [(line["flow"], line["event"], line.get("length")) for line in reader.lines]
    assert told[:4] == [
        ("old", "flow.opened", None),
        ("old", "stream.gap", 70),
        ("silent", "flow.opened", None),
        ("silent", "stream.gap", 100),
    ]
    assert [flow for flow, *_ in told[4:]] == ["new", "old", "new"]


def test_protocol_events_are_not_remembered(hub: Hub) -> None:
    Reader(hub, "before")
    hub.give([record(COMMAND, "sent"), *messages(1)])
    after = Reader(hub, "after", since_ns=0)
    settle(hub, after)
    assert [line["event"] for line in after.lines] == ["im.message"]


def test_what_the_flight_recorder_had_no_room_for_is_told() -> None:
    hub = make_hub(keep_bytes=20_000)
    given = messages(100)
    hub.give(given)
    reader = Reader(hub, since_ns=TIME)
    settle(hub, reader)
    limit, *rest = reader.lines
    told = (limit["event"], limit["limit"], limit["value"])
    assert told == ("stream.limit", "flight recorder", 20_000)
    assert limit["count"] == 100 - len(rest)
    assert 10 < len(rest) < 100
    assert [line["time_ns"] for line in rest] == [each.time_ns for each in given[-len(rest) :]]
    nothing_missed = Reader(hub, "later", since_ns=TIME + SECOND)
    settle(hub, nothing_missed)
    assert nothing_missed.lines == []


def test_what_is_too_old_is_forgotten_whether_or_not_something_happens() -> None:
    now = TIME
    hub = make_hub(clock=lambda: now, keep_s=2.0, keep_bytes=20_000)
    hub.give(messages(100))
    now += SECOND
    hub.give(messages(1, SECOND))
    now += 3 * SECOND // 2
    reader = Reader(hub, since_ns=0)
    settle(hub, reader)
    assert [line["time_ns"] for line in reader.lines][-1:] == [TIME + SECOND]
    now += 3 * SECOND
    hub.flush()
    reader = Reader(hub, "again", since_ns=0)
    settle(hub, reader)
    assert reader.lines == []


def test_more_may_be_remembered_than_may_wait_and_nothing_is_lost() -> None:
    hub = make_hub(queue_bytes=100_000)
    hub.give(messages(3000))
    reader = Reader(hub, since_ns=0)
    assert hub.sessions["it"].queued > 1_000_000
    for at in range(100):
        hub.give(messages(1, 3000 + at))
        hub.flush()
    settle(hub, reader)
    assert [line["time_ns"] - TIME for line in reader.lines] == list(range(3100))
    session = hub.sessions["it"]
    assert (session.number, session.dropped, session.queued) == (3100, 0, 0)


# --- readers that stall, and readers that leave ---------------------------------------------------


def test_a_reader_that_stalls_loses_its_own_records_and_is_told() -> None:
    hub = make_hub(queue_bytes=50_000)
    stalled, other = Reader(hub, "stalled"), Reader(hub, "other")
    for at in range(2000):
        hub.give(messages(1, at))
        hub.flush()
        other.take()
    assert other.numbers == [*range(1, 2001)]
    lost = hub.sessions["stalled"].dropped
    assert lost > 0
    assert hub.sessions["stalled"].queued < 51_000
    assert (hub.sessions["other"].dropped, hub.sessions["other"].queued) == (0, 0)
    settle(hub, stalled)
    hub.give(messages(1, 2000))
    settle(hub, stalled)
    *before, limit, after = stalled.lines
    assert [line["number"] for line in before] == [*range(1, 2001 - lost)]
    assert (limit["number"], limit["event"]) == (2001, "stream.limit")
    assert (limit["limit"], limit["value"], limit["count"]) == ("session queue", 50_000, lost)
    assert limit["time_ns"] == TIME + 1999
    assert (after["number"], after["time_ns"]) == (2002, TIME + 2000)
    assert hub.sessions["stalled"].number == 2002


def test_after_a_loss_smaller_records_are_lost_too_until_the_queue_is_empty() -> None:
    hub = make_hub(queue_bytes=5000)
    reader = Reader(hub, content=Content.FULL)
    large, small = record(message(content="x" * 3000), "sent"), record(opened())
    hub.give([large, large, small])
    hub.give([small])
    hub.flush()
    hub.give([small])
    settle(hub, reader)
    assert [(line["number"], line["event"]) for line in reader.lines] == [
        (1, "im.message"),
        (5, "stream.limit"),
        (6, "flow.opened"),
    ]
    assert reader.lines[1]["count"] == 3


def test_a_record_that_never_fits_is_lost_and_told() -> None:
    hub = make_hub(queue_bytes=2000)
    reader = Reader(hub, content=Content.FULL)
    hub.give([*messages(1), record(message(content="x" * 3000), "sent"), *messages(1)])
    settle(hub, reader)
    hub.give(messages(1))
    settle(hub, reader)
    assert [(line["number"], line["event"]) for line in reader.lines] == [
        (1, "im.message"),
        (4, "stream.limit"),
        (5, "im.message"),
    ]
    assert reader.lines[1]["count"] == 2


class Dribble(socket.socket):
    """Takes one byte at a time."""

    def send(self, data: Any, flags: int = 0) -> int:
        return super().send(data[:1], flags)


def test_a_socket_that_takes_one_byte_at_a_time_gets_whole_lines(hub: Hub) -> None:
    here, there = socket.socketpair()
    Ends.sockets.append(here)
    reader = Reader(hub, "other")
    hub.attach("it", Dribble(fileno=there.detach()), ALL)
    hub.give(messages(3))
    hub.flush()
    assert reader.numbers == [1, 2, 3]
    data = b""
    while data.count(b"\n") < 3:
        assert is_readable(hub)
        hub.flush()
        data += here.recv(10)
    hub.flush()
    assert data == reader.data
    assert not is_readable(hub)


def test_the_owner_is_woken_when_a_stalled_reader_takes_again(hub: Hub) -> None:
    reader = Reader(hub)
    hub.flush()
    hub.give(messages(3000))
    hub.flush()
    assert hub.sessions["it"].queued > 0
    while hub.sessions["it"].queued:
        while is_readable(hub):
            hub.flush()
        assert reader.take() > 0
    assert len(reader.numbers) == 3000
    hub.flush()
    assert not is_readable(hub)


def test_a_reader_that_went_away_is_found_without_a_send(hub: Hub) -> None:
    reader, other = Reader(hub, "it", CHAT), Reader(hub, "other", CHAT)
    hub.give(messages(2))
    hub.flush()
    assert not is_readable(hub)
    reader.close()
    assert is_readable(hub)
    hub.flush()
    session = hub.sessions["it"]
    assert (session.gone, session.number, session.dropped) == (True, 2, 0)
    assert session.socket.fileno() == -1
    assert not is_readable(hub)
    hub.give(messages(1))
    hub.flush()
    assert (session.number, session.queued) == (2, 0)
    assert other.numbers == [1, 2, 3]
    hub.detach("it")
    assert list(hub.sessions) == ["other"]


def test_what_waits_for_a_reader_that_goes_away_counts_as_dropped() -> None:
    hub = make_hub(queue_bytes=100_000_000)
    reader = Reader(hub, resumed=True)
    hub.give(messages(3000))
    hub.flush()
    sent = hub.sessions["it"].sent
    assert hub.sessions["it"].queued > 100_000
    got = len(reader.numbers)
    assert 0 < sent == len(reader.data)
    reader.close()
    hub.flush()
    session = hub.sessions["it"]
    assert (session.gone, session.number, session.dropped) == (True, 3000, 3000 - got)
    assert session.queued == 0


def test_a_reader_that_takes_no_more_is_gone_at_the_next_send(hub: Hub) -> None:
    reader = Reader(hub)
    reader.here.shutdown(socket.SHUT_RD)
    hub.give(messages(1))
    hub.flush()
    assert hub.sessions["it"].gone
    reader.close()


def test_a_reader_that_only_stops_talking_stays(hub: Hub) -> None:
    reader = Reader(hub)
    reader.here.send(b"words that nobody waits for")
    reader.here.shutdown(socket.SHUT_WR)
    hub.flush()
    hub.give(messages(1))
    hub.flush()
    assert not is_readable(hub)
    assert reader.numbers == [1]


def test_a_session_whose_socket_is_open_elsewhere_leaves_nothing(hub: Hub) -> None:
    reader = Reader(hub)
    elsewhere = os.dup(hub.sessions["it"].socket.fileno())
    hub.detach("it")
    reader.close()
    assert not is_readable(hub)
    hub.flush()
    os.close(elsewhere)


def test_detaching_sends_what_the_socket_takes(hub: Hub) -> None:
    reader = Reader(hub)
    hub.give(messages(200))
    hub.detach("it")
    assert reader.numbers == [*range(1, 201)]
    assert dict(hub.sessions) == {}
    with pytest.raises(KeyError):
        hub.detach("it")


def test_detaching_between_a_give_and_its_flush_leaves_nothing() -> None:
    hub = make_hub(queue_bytes=1_000_000)
    reader, other = Reader(hub), Reader(hub, "other", DEFAULT)
    hub.flush()
    hub.give(messages(3000))
    hub.detach("it")
    settle(hub, other)
    assert 0 < len(reader.numbers) < len(other.numbers)
    assert list(hub.sessions) == ["other"]


def test_a_session_that_leaves_takes_what_waits_for_it_and_nothing_more() -> None:
    hub = make_hub(queue_bytes=4_000_000)
    reader, stays = Reader(hub), Reader(hub, "stays")
    hub.flush()
    hub.give(messages(3000))
    hub.flush()
    hub.detach("it", wait_s=60.0)
    assert (list(hub.sessions), hub.leaving, hub.waiting) == (["stays"], 1, True)
    again = Reader(hub, "it")
    hub.give(messages(1, 3000))
    settle(hub, reader, stays, again)
    assert reader.numbers == [*range(1, 3001)]
    assert reader.here.recv(1) == b""
    assert (stays.numbers[-1], again.numbers) == (3001, [1])
    assert (hub.leaving, hub.waiting) == (0, False)


def test_a_session_that_leaves_and_takes_nothing_is_ended_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("streamtap.trace.hub.time.monotonic", lambda: now[0])
    hub = make_hub(queue_bytes=4_000_000)
    reader, gone = Reader(hub), Reader(hub, "gone")
    hub.give(messages(3000))
    hub.detach("it", wait_s=0.2)
    hub.detach("gone", wait_s=0.2)
    gone.close()
    hub.flush()
    assert hub.leaving == 1
    now[0] += 0.1
    hub.flush()
    assert hub.leaving == 1
    now[0] += 0.2
    hub.flush()
    assert hub.leaving == 0
    assert not is_readable(hub)
    assert 0 < len(reader.numbers) < 3000


def test_other_filters_of_a_session_hold_from_the_next_record_on(hub: Hub) -> None:
    reader = Reader(hub, filters=3)
    one, two = (msgspec.structs.replace(FLOW, filters=bits) for bits in (1, 2))
    hub.give([record(message(size=1), "sent", one), record(message(size=2), "sent", two)])
    hub.set_filters("it", 2)
    hub.give([record(message(size=3), "sent", one), record(message(size=4), "sent", two)])
    hub.flush()
    assert [(line["number"], line["size"]) for line in reader.lines] == [(1, 1), (2, 2), (3, 4)]
    reader.close()
    hub.flush()
    hub.set_filters("it", 1)
    assert hub.sessions["it"].gone


def test_nothing_is_kept_of_a_session_that_has_gone(hub: Hub) -> None:
    reader = Reader(hub)
    hub.give(messages(3000))
    hub.flush()
    reader.close()
    hub.flush()
    session = weakref.ref(hub.sessions["it"])
    hub.detach("it")
    assert session() is None


def test_two_hundred_sessions_at_once_leave_nothing_behind() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    hub = make_hub(queue_bytes=200_000)
    readers = [
        Reader(hub, str(at), (ALL, CHAT, DEFAULT)[at % 3], content=Content(at // 3 % 3))
        for at in range(200)
    ]
    batch = [record(COMMAND, "sent"), record(opened()), *messages(2)]
    for turn in range(100):
        hub.give(batch)
        hub.flush()
        for reader in readers[: 100 + turn]:
            reader.take()
        if turn % 10 == 0:
            hub.detach(str(turn))
            readers[turn].close()
            readers[turn] = Reader(hub, str(turn), DEFAULT)
    settle(hub, *readers)
    for at, reader in enumerate(readers):
        turns = 99 - at if at < 100 and at % 10 == 0 else 100
        each = 3 if at < 100 and at % 10 == 0 else (4, 2, 3)[at % 3]
        assert reader.numbers == [*range(1, turns * each + 1)], at
        reader.close()
    assert is_readable(hub)
    hub.flush()
    assert all(session.gone for session in hub.sessions.values())
    Ends.close()
    assert open_files() == before


# --- any order of events --------------------------------------------------------------------------

BOUND = 3000
GIVEN = [record(message(content="x" * 500), "sent"), record(COMMAND, "sent"), record(opened())]
SELECTIONS = (ALL, CHAT, DEFAULT)


def check(reader: Reader, wanted: list[Record], dropped: int, number: int) -> None:
    """Lines are the wanted records in order, but for holes that are as large as they are told."""
    at = last = missing = 0
    for line in reader.lines:
        hole = line["number"] - last - 1
        if line["event"] == "stream.limit":
            assert hole == line["count"] > 0
            at += hole
            missing += hole
        else:
            assert hole == 0
            assert line["time_ns"] == wanted[at].time_ns
            at += 1
        last = line["number"]
    assert at == len(wanted)
    assert (missing, last) == (dropped, number)


ACTIONS = st.one_of(
    st.tuples(st.just("attach"), st.integers(0, 2), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("detach"), st.integers(0, 2)),
    *[st.tuples(st.just("give"), st.lists(st.integers(0, 2), min_size=1, max_size=9))] * 3,
    st.tuples(st.just("read"), st.integers(0, 2), st.sampled_from([1, 100, 5000, 1 << 20])),
    *[st.just(("flush",))] * 2,
)
BEGIN: list[tuple[Any, ...]] = [("attach", 0, 0, False), ("attach", 1, 1, True), ("flush",)]


@settings(max_examples=200, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=10, max_size=60))
def test_any_order_gives_each_session_its_records_with_exact_holes(
    actions: list[tuple[Any, ...]],
) -> None:
    hub = make_hub(queue_bytes=BOUND)
    readers: dict[str, tuple[Reader, Selection, list[Record]]] = {}
    past: list[Record] = []

    def wants(selection: Selection, each: Record) -> bool:
        return selection.wants(each.body.provider, each.body.place()[1], each.body.level)

    def end(name: str) -> None:
        reader, _, wanted = readers.pop(name)
        settle(hub, reader)
        session = hub.sessions[name]
        check(reader, wanted, session.dropped, session.number)
        hub.detach(name)
        reader.close()

    for action in BEGIN + actions:
        name = str(action[1]) if len(action) > 1 else ""
        match action[0]:
            case "attach" if name not in readers:
                selection = SELECTIONS[action[2]]
                remembered = [
                    each for each in past if wants(selection, each) and wants(DEFAULT, each)
                ]
                reader = Reader(
                    hub, name, selection, content=Content.FULL, since_ns=TIME if action[3] else None
                )
                small = hub.sessions[name].socket
                small.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                readers[name] = (reader, selection, remembered if action[3] else [])
            case "detach" if name in readers:
                end(name)
            case "give":
                batch = [
                    msgspec.structs.replace(GIVEN[kind], time_ns=TIME + len(past) + at)
                    for at, kind in enumerate(action[1])
                ]
                hub.give(batch)
                past += batch
                for _, selection, wanted in readers.values():
                    wanted += [each for each in batch if wants(selection, each)]
            case "read" if name in readers:
                readers[name][0].take(action[2])
            case "flush":
                hub.flush()
    for name in list(readers):
        end(name)
    Ends.close()
