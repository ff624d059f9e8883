"""The parser as a process: sessions that come and go, filters that change, crashes, the end."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from helpers.kernels import FakeKernel
from helpers.parsers import Keeper, Session, descriptors_of, keep, status_of
from helpers.rings import BUSY, closed_record, listing, opened_record, segment_record
from streamtap.events import Started
from streamtap.model import Policy
from streamtap.service import messages

GIB = 1 << 30
Keep = Callable[..., Keeper]


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    made = FakeKernel()
    yield made
    made.close()


@pytest.fixture
def start(kernel: FakeKernel) -> Iterator[Keep]:
    made: list[Keeper] = []

    def start_one(**options: Any) -> Keeper:
        made.append(keep(kernel, **options))
        return made[-1]

    yield start_one
    for keeper in made:
        keeper.close()


def now() -> int:
    return time.monotonic_ns()


def open_flow(kernel: FakeKernel, flow_id: int = 1, **options: Any) -> None:
    kernel.control.write(opened_record(flow_id, time_ns=now(), **options))


def say(kernel: FakeKernel, data: bytes, at: int = 0, *, flow_id: int = 1, side: int = 0) -> None:
    kernel.data.write(segment_record(flow_id, side, at & 0xFFFFFFFF, data, time_ns=now()))


def test_what_the_rings_hold_arrives_at_sessions_each_with_its_filters_and_numbers(
    kernel: FakeKernel, start: Keep
) -> None:
    keeper = start()
    everything = keeper.attach("all")
    chat = keeper.attach("chat", 1, filters=1, selection=("monitor",))
    open_flow(kernel, 1, filters=1)
    open_flow(kernel, 2, filters=2)
    say(kernel, b"\0hello", flow_id=1)
    kernel.control.write(closed_record(1, sent=6, time_ns=now()))
    keeper.until(lambda: chat.of("flow.closed"), "the flow is closed")
    assert chat.events() == ["flow.opened", "flow.identified", "flow.closed"]
    assert [record["number"] for record in chat.records] == [1, 2, 3]
    assert {record["app"]["filter"] for record in chat.records} == {"chat"}
    assert chat.records[-1]["complete"] is True
    assert chat.records[0]["app"]["cgroup"] == "/group-0-\\udcff"
    keeper.until(lambda: everything.of("flow.closed"), "all is told")
    opened = everything.of("flow.opened")
    assert {record["app"]["filter"] for record in opened} == {"chat", "web"}
    keeper.until(lambda: keeper.board.session(1) == (3, 0), "the board tells")
    keeper.until(lambda: keeper.board.total("flows_opened") == 2, "the board sums up")
    assert keeper.board.total("bytes") == 6
    assert keeper.board.total("flows_open") == 1
    assert now() - keeper.board.total("beat_ns") < 5e9


def test_a_session_that_begins_later_is_told_of_the_flows_that_are_open(
    kernel: FakeKernel, start: Keep
) -> None:
    keeper = start()
    first = keeper.attach("first")
    open_flow(kernel, 1, filters=1)
    open_flow(kernel, 2, filters=2)
    say(kernel, b"GET / HTTP/1.1\r\n\r\n")
    keeper.until(lambda: first.of("flow.identified"), "the protocol is known")
    late = keeper.attach("late", 1, filters=1, opening=True)
    keeper.until(lambda: late.of("flow.identified"), "it is told")
    assert late.events() == ["flow.opened", "stream.gap", "flow.identified"]
    opened, gap, identified = late.records
    assert opened["midstream"] is True
    assert (gap["direction"], gap["offset"], gap["length"]) == ("sent", 0, 18)
    assert gap["cause"] == "midstream"
    assert identified["protocol"] == "http"
    say(kernel, b"GET /2 HTTP/1.1\r\n\r\n", 18)
    keeper.until(lambda: late.of("data"), "it goes on")
    assert late.of("data")[0]["offset"] == 18
    recalled = keeper.attach("recalled", 2, last_s=60.0)
    keeper.until(lambda: len(recalled.records) == len(first.records), "it is told again")
    assert [r["event"] for r in recalled.records] == first.events()


def test_content_follows_the_sessions_and_the_ceilings_of_filters(
    kernel: FakeKernel, start: Keep
) -> None:
    filters = {0: messages.FilterTerms("chat"), 1: messages.FilterTerms("web", None, "meta")}
    keeper = start(filters=filters)
    open_flow(kernel, 1, filters=1)
    open_flow(kernel, 2, filters=2)
    meta = keeper.attach("meta")
    for flow_id in (1, 2):
        say(kernel, b"\0hidden", flow_id=flow_id)
    keeper.until(lambda: kernel.policies == [(1, Policy.COUNT), (2, Policy.COUNT)], "counted")
    keeper.until(lambda: len(meta.of("data")) == 2, "both are told")
    full = keeper.attach("full", 1, content="full")
    keeper.until(lambda: kernel.policies[2:] == [(1, Policy.FULL)], "copied again")
    for flow_id in (1, 2):
        say(kernel, b"shown", 7, flow_id=flow_id)
    keeper.until(lambda: len(full.of("data")) >= 2, "it is told")
    shown = {record["flow"]: record.get("content") for record in full.of("data")}
    assert shown == {"1": "shown", "2": None}
    keeper.until(lambda: len(meta.of("data")) >= 4, "the other too")
    assert not any("content" in record for record in meta.of("data"))
    keeper.end.order(messages.Detach("full"))
    keeper.until(lambda: kernel.policies[3:] == [(1, Policy.COUNT)], "counted again")
    assert full.ended


def test_a_session_that_is_detached_takes_what_it_was_told_and_its_name_is_free(
    kernel: FakeKernel, start: Keep
) -> None:
    keeper = start()
    session = keeper.attach("one", selection=("all:all",))
    said = b"".join(b"GET /%04d HTTP/1.1\r\n\r\n" % number for number in range(2000))
    open_flow(kernel)
    # What a socket takes is less than what is told; nobody reads until the session is detached.
    keeper.sessions.pop("one")
    for at in range(0, len(said), 20_000):
        say(kernel, said[at : at + 20_000], at)
        behind = kernel.data.produced
        keeper.until(lambda: kernel.data.consumed == behind, "it is read")  # noqa: B023
    keeper.until(lambda: keeper.board.session(0)[0] >= 4000, "it is told")
    keeper.end.order(messages.Detach("one"))
    again = keeper.attach("one", 1)
    keeper.sessions["left"] = session
    keeper.until(lambda: session.ended, "it ends")
    assert [r["number"] for r in session.records] == list(range(1, len(session.records) + 1))
    assert len(session.records) == keeper.board.session(0)[0]
    kernel.control.write(closed_record(1, sent=len(said), time_ns=now()))
    keeper.until(lambda: again.of("flow.closed"), "another of that name goes on")
    keeper.end.order(messages.Narrow("one", 2))
    open_flow(kernel, 2, filters=1)
    open_flow(kernel, 3, filters=2)
    keeper.until(lambda: again.of("flow.opened"), "it is told of other flows")
    assert [record["flow"] for record in again.of("flow.opened")] == ["3"]


def test_flows_of_filters_that_go_are_closed_and_their_bit_serves_another(
    kernel: FakeKernel, start: Keep
) -> None:
    keeper = start()
    session = keeper.attach("all")
    open_flow(kernel, 1, filters=1)
    open_flow(kernel, 2, filters=2)
    open_flow(kernel, 3, filters=3)
    keeper.until(lambda: len(session.of("flow.opened")) == 3, "they are open")
    other = {1: messages.FilterTerms("web"), 0: messages.FilterTerms("mail")}
    keeper.end.order(messages.SetFilters(other, 3))
    keeper.until(lambda: session.of("flow.closed"), "one is closed")
    (closed,) = session.of("flow.closed")
    assert (closed["flow"], closed["reason"]) == ("1", "removed")
    say(kernel, b"\0hello", flow_id=3)
    keeper.until(lambda: session.of("data"), "the third goes on")
    assert session.of("data")[0]["app"]["filter"] == "web"
    open_flow(kernel, 4, filters=1)
    keeper.until(lambda: len(session.of("flow.opened")) == 4, "another is open")
    assert session.of("flow.opened")[3]["app"]["filter"] == "mail"


def test_notes_of_the_keeper_and_the_end_of_everything_are_told(
    kernel: FakeKernel, start: Keep
) -> None:
    keeper = start()
    session = keeper.attach("all")
    body = Started(version="1.0", source="live callouts")
    keeper.end.order(messages.Note(time.time_ns(), msgspec.json.encode(body)))
    open_flow(kernel)
    say(kernel, b"\0hello")
    keeper.until(lambda: session.of("flow.identified"), "it is open")
    kernel.rows = listing(totals=(11, 0))
    say(kernel, b"world", 6)
    assert keeper.finish() == 0
    assert session.ended
    assert session.events()[0] == "init.started"
    assert session.events()[-1] == "init.stopped"
    (closed,) = session.of("flow.closed")
    assert (closed["reason"], closed["sent"], closed["complete"]) == ("end", 11, True)
    stopped = session.records[-1]
    assert (stopped["flows"], stopped["bytes"], stopped["gaps"]) == (1, 11, 0)
    assert keeper.board.session(0) == (len(session.records), 0)


def test_a_reader_that_goes_away_is_told_to_the_keeper(kernel: FakeKernel, start: Keep) -> None:
    keeper = start()
    keeper.attach("one")
    keeper.attach("two", 1)
    keeper.until(lambda: keeper.board.total("turns") > 2, "it runs")
    keeper.sessions.pop("one").close()
    keeper.until(lambda: keeper.parted == ["one"], "the keeper hears of it")
    again = keeper.attach("one", after=7)
    open_flow(kernel)
    keeper.until(lambda: again.records, "the name can be had again")
    assert again.records[0]["number"] == 8


@pytest.mark.parametrize("before", [0, 5 * GIB])
def test_after_a_crash_the_next_parser_goes_on_where_the_first_one_was(
    kernel: FakeKernel, start: Keep, before: int
) -> None:
    first = start()
    session = first.attach("all")
    open_flow(kernel)
    say(kernel, b"\0told")
    first.until(lambda: session.of("flow.identified"), "it is told")
    first.until(lambda: first.board.session(0)[0] == len(session.records), "and counted")
    first.until(lambda: kernel.data.consumed == kernel.data.produced, "and read")
    os.kill(first.process.pid, signal.SIGKILL)
    first.until_ended()
    told = len(session.records)
    # Meanwhile: bytes are said that were not read, flows end and begin.
    at = before + 5
    say(kernel, b"un", at)
    say(kernel, b"read", at + 2)
    open_flow(kernel, 2)
    say(kernel, b"\0new", flow_id=2)
    kernel.rows = np.concatenate((listing(1, totals=(at + 6, 0)), listing(2, totals=(4, 0))))
    number, dropped = first.board.session(0)
    assert number == told
    attach = messages.Attach("all", 0, after=number, dropped=dropped, resumed=True, opening=True)
    second = start(board=first.board, sessions=[attach])
    again = second.sessions["all"]
    kernel.control.write(closed_record(2, sent=4, time_ns=now()))
    second.until(lambda: again.of("flow.closed"), "the second flow ends")
    say(kernel, b"more", at + 6)
    second.until(lambda: again.of("data") and again.of("data")[-1]["flow"] == "1", "it goes on")
    assert again.records[0]["number"] == told + 1
    opened = {record["flow"]: record["midstream"] for record in again.of("flow.opened")}
    assert opened["1"] is True
    (gap,) = again.of("stream.gap")
    assert (gap["flow"], gap["offset"], gap["length"], gap["cause"]) == ("1", 0, at, "midstream")
    data = [r for r in again.of("data") if r["flow"] == "1"]
    assert data[0]["offset"] == at
    (closed,) = again.of("flow.closed")
    assert (closed["flow"], closed["sent"], closed["complete"]) == ("2", 4, True)


def test_what_is_told_between_the_reply_to_a_session_and_its_beginning_belongs_to_it(
    kernel: FakeKernel, start: Keep
) -> None:
    keeper = start()
    first = keeper.attach("first")
    asked_ns = time.time_ns()
    open_flow(kernel)
    say(kernel, b"\0told")
    kernel.control.write(closed_record(1, sent=5, time_ns=now()))
    keeper.until(lambda: first.of("flow.closed"), "it is over")
    late = keeper.attach("late", 1, opening=True, asked_ns=asked_ns)
    keeper.until(lambda: late.of("flow.closed"), "it is told all the same")
    (opened,) = late.of("flow.opened")
    assert not opened["midstream"]
    (data,) = late.of("data")
    assert (data["offset"], data["length"]) == (0, 5)


def test_a_flow_that_ends_between_the_reply_to_a_session_and_its_beginning_is_told_whole(
    kernel: FakeKernel, start: Keep
) -> None:
    keeper = start()
    first = keeper.attach("first")
    open_flow(kernel)
    say(kernel, b"\0before")
    keeper.until(lambda: first.of("data"), "it is open")
    asked_ns = time.time_ns()
    say(kernel, b"\0after", 7)
    kernel.control.write(closed_record(1, sent=13, time_ns=now()))
    keeper.until(lambda: first.of("flow.closed"), "it is over")
    late = keeper.attach("late", 1, opening=True, asked_ns=asked_ns)
    keeper.until(lambda: late.of("flow.closed"), "it is told all the same")
    (opened,) = late.of("flow.opened")
    assert opened["midstream"]
    assert [one["event"] for one in late.records if one.get("flow") == "1"] == [
        "flow.opened",
        "stream.gap",
        "data",
        "flow.closed",
    ]


def test_flows_that_end_while_there_is_no_parser_are_closed_by_the_next_one(
    kernel: FakeKernel, start: Keep
) -> None:
    first = start()
    session = first.attach("all")
    for flow_id in (1, 2, 3):
        open_flow(kernel, flow_id)
        say(kernel, b"\0told", flow_id=flow_id)
    kernel.control.write(closed_record(3, sent=5, time_ns=now()))
    first.until(lambda: session.of("flow.closed"), "one is closed")
    first.until(lambda: len(session.of("flow.identified")) == 3, "all are told")
    # Bytes that cannot be read yet: an ending is read, and waits for them.
    being_written = kernel.data.write(segment_record(2, 0, 5, b"lost", time_ns=now()), BUSY)
    kernel.control.write(closed_record(2, sent=9, time_ns=now()))
    first.until(lambda: kernel.control.consumed == kernel.control.produced, "it is read")
    os.kill(first.process.pid, signal.SIGKILL)
    first.until_ended()
    kernel.data.finish(being_written)
    say(kernel, b"unread", 7)
    kernel.control.write(closed_record(1, sent=13, time_ns=now()))
    attach = messages.Attach("all", 0, resumed=True)
    second = start(ledger_fd=first.ledger_fd, sessions=[attach])
    again = second.sessions["all"]
    second.until(lambda: len(again.of("flow.closed")) == 2, "they are closed")
    assert {record["flow"] for record in again.of("flow.opened")} == {"1", "2"}
    closed = {record["flow"]: record for record in again.of("flow.closed")}
    assert [closed["1"][name] for name in ("sent", "sent_total", "missing")] == [6, 13, 7]
    assert closed["1"]["missing_ranges"] == [["sent", 0, 7]]
    assert [closed["2"][name] for name in ("sent", "sent_total", "missing")] == [4, 9, 5]
    turns = second.board.total("turns")
    second.until(lambda: second.board.total("turns") > turns + 1, "that is noted")
    os.kill(second.process.pid, signal.SIGKILL)
    second.until_ended()
    third = start(ledger_fd=first.ledger_fd, sessions=[attach])
    assert third.finish() == 0
    assert third.sessions["all"].of("flow.closed") == [], "nothing is told again"


def test_flows_that_are_closed_at_the_end_are_not_told_of_by_the_next_parser(
    kernel: FakeKernel, start: Keep
) -> None:
    first = start()
    session = first.attach("all")
    open_flow(kernel)
    first.until(lambda: session.of("flow.opened"), "it is open")
    assert first.finish() == 0
    assert session.of("flow.closed")
    second = start(ledger_fd=first.ledger_fd, sessions=[messages.Attach("all", 0)])
    assert second.finish() == 0
    assert second.sessions["all"].events() == ["init.stopped"]


def test_ten_thousand_flows_are_taken_over(kernel: FakeKernel, start: Keep) -> None:
    kernel.rows = np.repeat(listing(totals=(100, 7)), 10_000)
    kernel.rows["opened"]["flow_id"] = np.arange(1, 10_001)
    keeper = start(sessions=[messages.Attach("all", 0, ("monitor",))])
    session = keeper.sessions["all"]
    keeper.until(lambda: len(session.records) == 10_000, "they are told")
    assert all(record["midstream"] for record in session.of("flow.opened"))
    assert keeper.board.total("flows_open") == 10_000
    late = keeper.attach("late", 1, opening=True)
    keeper.until(lambda: len(late.records) == 30_000, "they are told again")
    assert len(late.of("stream.gap")) == 20_000
    assert keeper.finish() == 0
    assert len(session.of("flow.closed")) == 10_000


def test_a_flow_that_waits_in_the_rings_is_told_whole_by_the_next_parser(
    kernel: FakeKernel, start: Keep
) -> None:
    open_flow(kernel)
    say(kernel, b"\0hello")
    kernel.rows = listing(totals=(6, 0))
    kernel.rows["opened"]["time_ns"] = now()
    keeper = start(sessions=[messages.Attach("all", 0)])
    session = keeper.sessions["all"]
    kernel.control.write(closed_record(sent=6, time_ns=now()))
    keeper.until(lambda: session.of("flow.closed"), "the flow ends")
    assert session.events() == ["flow.opened", "flow.identified", "data", "flow.closed"]
    assert session.records[0]["midstream"] is False


def test_a_broken_record_ends_no_parser(kernel: FakeKernel, start: Keep) -> None:
    keeper = start()
    session = keeper.attach("all")
    kernel.control.write(b"?" * 48)
    kernel.data.write(segment_record(9, data=b"of no flow"))
    kernel.data.write(segment_record(8, 7, data=b"x", length=3))
    open_flow(kernel)
    say(kernel, b"\0hello")
    keeper.until(lambda: session.of("flow.identified"), "what follows is told")
    assert keeper.process.poll() is None


def test_a_session_that_cannot_be_is_refused_and_the_others_go_on(
    kernel: FakeKernel, start: Keep
) -> None:
    keeper = start()
    session = keeper.attach("one")
    refused = keeper.attach("two", 1, selection=("nonsense",)), keeper.attach("three", 5000)
    keeper.until(lambda: keeper.parted == ["two", "three"], "they are refused")
    keeper.until(lambda: all(one.ended for one in refused), "their sockets are closed")
    twice = Session()
    keeper.end.order(messages.Attach("one", 2), twice.theirs.fileno())
    keeper.end.order(messages.Note(0, b'{"event": "what?"}'))
    open_flow(kernel)
    keeper.until(lambda: session.records, "the first goes on")
    assert keeper.parted == ["two", "three"]
    twice.theirs.close()
    twice.close()


def test_a_parser_without_a_keeper_ends(kernel: FakeKernel, start: Keep) -> None:
    keeper = start()
    keeper.end.close()
    assert keeper.process.wait(20) == 1


@pytest.mark.root
def test_the_parser_has_no_right_but_to_its_descriptors(kernel: FakeKernel, start: Keep) -> None:
    keeper = start()
    keeper.attach("all")
    keeper.until(lambda: keeper.board.total("turns") > 2, "it runs")
    status = status_of(keeper.process.pid)
    assert {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {
        "CapEff": 0, "CapPrm": 0, "CapBnd": 0, "CapInh": 0,
    }  # fmt: skip
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert keeper.confined is not None
    assert keeper.confined.seccomp
    pid = keeper.process.pid
    found = Counter(what.partition(":[")[0] for what, _ in descriptors_of(pid))
    assert found["/memfd:ring"] == 2
    assert found["/memfd:board"] == found["/memfd:flows"] == 1
    assert found["socket"] == 2  # the link and the session
    known = {"/memfd:ring", "/memfd:board", "/memfd:flows", "socket", "anon_inode", "/dev/null"}
    errors = os.readlink(f"/proc/{pid}/fd/2").removesuffix(" (deleted)").partition(":[")[0]
    assert set(found) <= known | {errors}
