"""The live source on rings that a test writes: order, orphans, candidates, totals."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.rings import (
    BUSY,
    DISCARDED,
    FakeRing,
    closed_record,
    listing,
    opened_record,
    segment_record,
)
from streamtap.capture.kernel import Candidate
from streamtap.capture.layout import FLOW_LISTING, OPENED_RECORD
from streamtap.capture.live import LiveSource
from streamtap.capture.ring import Ring
from streamtap.capture.totals import kernel_totals
from streamtap.model import Closed, Direction, Opened, Policy, Scoped, Segment

SIZE = 1 << 16


class FakeCallouts:
    """What a source asks of the callouts, over rings in memory."""

    def __init__(self) -> None:
        self.data, self.control = FakeRing(SIZE), FakeRing(SIZE)
        self.decided: dict[int, int] = {}
        self.control_lost = 0
        self.listing = np.zeros(0, FLOW_LISTING)
        self.meanwhile: list[bytes] = []  # control records that come while flows are listed

    def counters(self) -> dict[str, int]:
        return {"control_lost": self.control_lost}

    def list_flows(self) -> NDArray[Any]:
        listed, self.listing = self.listing, np.zeros(0, FLOW_LISTING)
        for record in self.meanwhile:
            self.control.write(record)
        return listed

    def rings(self) -> tuple[Ring, Ring]:
        return Ring(self.data.fd, SIZE), Ring(self.control.fd, SIZE)

    def decide(self, candidate: Candidate) -> int:
        self.decided[candidate.process_id] = candidate.filters
        return candidate.filters

    def set_flow_policy(self, flow_id: int, policy: Policy) -> None:
        raise AssertionError("nobody asked for a policy")

    def cgroup_path(self, cgroup_id: int) -> str:
        return "/"

    def program_of(self, pid: int) -> str:
        return os.readlink("/proc/self/exe") if pid == os.getpid() else ""


@pytest.fixture
def callouts() -> Iterator[FakeCallouts]:
    made = FakeCallouts()
    yield made
    made.data.close()
    made.control.close()


@pytest.fixture
def source(callouts: FakeCallouts, monkeypatch: pytest.MonkeyPatch) -> LiveSource:
    class NoPoll:
        def __init__(self, size: int) -> None: ...
        def register(self, fd: int, events: int) -> None: ...
        def close(self) -> None: ...

    # A memfd cannot be waited for; what is tested here is what a drain gives.
    monkeypatch.setattr("streamtap.capture.live.select.epoll", NoPoll)
    return LiveSource(callouts, {0: "it"})


def kinds(items: list[Any]) -> list[type]:
    return [type(item) for item in items]


def test_an_opening_precedes_its_data_and_a_closing_follows_it(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(opened_record())
    callouts.data.write(segment_record(data=b"hello"))
    callouts.control.write(closed_record(sent=5))
    assert kinds(source.drain()) == [Opened, Segment, Closed]


def test_a_closing_waits_for_data_that_cannot_be_read_yet(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(opened_record())
    being_written = callouts.data.write(segment_record(data=b"hello"), BUSY)
    callouts.control.write(closed_record(sent=5))
    assert kinds(source.drain()) == [Opened]
    assert not source.is_drained
    callouts.data.finish(being_written)
    assert kinds(source.drain()) == [Segment, Closed]
    assert source.is_drained


def test_a_discarded_record_is_passed_over(callouts: FakeCallouts, source: LiveSource) -> None:
    callouts.control.write(opened_record())
    callouts.data.write(segment_record(data=b"gone"), DISCARDED)
    callouts.data.write(segment_record(data=b"kept"))
    (segment,) = [item for item in source.drain() if isinstance(item, Segment)]
    assert bytes(segment.data) == b"kept"


def test_space_is_given_back_only_when_the_batch_was_used(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(opened_record())
    callouts.data.write(segment_record(data=b"hello"))
    source.drain()
    assert callouts.data.consumed == 0
    source.release()
    assert callouts.data.consumed == callouts.data.produced


def test_records_that_wrap_around_the_end_of_the_ring_are_whole(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(opened_record())
    sent, got = bytearray(), bytearray()
    for number in range(40):
        data = bytes([number]) * 5000
        sent += data
        callouts.data.write(segment_record(sequence=5000 * number, data=data))
        for item in source.drain():
            if isinstance(item, Segment):
                got += item.data
        source.release()
    assert got == sent


def test_a_flow_of_no_filter_is_never_handed_on(callouts: FakeCallouts, source: LiveSource) -> None:
    callouts.control.write(opened_record(filters=0))
    callouts.data.write(segment_record(data=b"private"))
    callouts.control.write(closed_record())
    assert source.drain() == []


def test_openings_and_closings_that_were_lost_are_made_up(
    callouts: FakeCallouts, source: LiveSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtap.capture.live.CLOCK_S", 0.0)
    callouts.control.write(opened_record(1))
    assert kinds(source.drain()) == [Opened]
    callouts.control_lost = 2
    callouts.listing = np.zeros(1, FLOW_LISTING)
    callouts.listing["opened"] = np.frombuffer(opened_record(2), OPENED_RECORD)
    callouts.data.write(segment_record(2, data=b"hello"))
    opening, segment, closing = source.drain()
    assert isinstance(opening, Opened)
    assert opening.flow.flow_id == 2
    assert isinstance(segment, Segment)
    assert isinstance(closing, Closed)
    assert (closing.flow_id, closing.totals) == (1, None)


def test_flows_opened_while_the_kernel_lists_its_flows_are_opened_once_and_stay_open(
    callouts: FakeCallouts, source: LiveSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtap.capture.live.CLOCK_S", 0.0)
    callouts.control_lost = 1
    callouts.listing = np.zeros(1, FLOW_LISTING)
    callouts.listing["opened"] = np.frombuffer(opened_record(1), OPENED_RECORD)
    callouts.meanwhile = [opened_record(1), opened_record(2)]
    items = source.drain()
    assert kinds(items) == [Opened, Opened]
    assert [item.flow.flow_id for item in items if isinstance(item, Opened)] == [1, 2]
    assert source.drain() == []


def test_a_candidate_whose_own_record_was_lost_is_judged_when_it_connects(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    pid = os.getpid()
    callouts.control.write(opened_record(filters=0, candidates=1, pid=pid))
    callouts.data.write(segment_record(data=b"hello"))
    opened, segment = source.drain()
    assert isinstance(opened, Opened)
    assert opened.flow.app
    assert opened.flow.app.path == os.path.realpath("/proc/self/exe")
    assert isinstance(segment, Segment)
    assert list(callouts.decided.values()) == [1]


def test_segments_of_a_crowd_out_of_scope_are_never_handed_on(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    """The callouts copied them until the crowd was judged."""
    for flow_id in range(1, 101):
        callouts.control.write(opened_record(flow_id, filters=0))
        callouts.data.write(segment_record(flow_id, data=b"private"))
    assert source.drain() == []


def record(**values: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "flags": 0, "snd_nxt": 0, "snd_una": 0, "rcv_nxt": 0, "origin": (0, 0), "fin": (0, 0),
        "bytes_acked": 0, "bytes_received": 0,
    }  # fmt: skip
    return base | values


@pytest.mark.parametrize("gigabytes", [0, 4, 8, 13])
def test_totals_are_exact_past_the_wrap_of_sequence_numbers(gigabytes: int) -> None:
    sent = (gigabytes << 30) + 12_345
    first = 4_000_000_000
    counters = record(
        flags=32 | 64,
        origin=(first, 77),
        snd_nxt=(first + sent + 1) % 2**32,
        snd_una=(first + sent + 1) % 2**32,
        fin=((first + sent) % 2**32, 77 + 10),
        rcv_nxt=77 + 11,
        bytes_acked=sent + 2,  # SYN and FIN are counted
        bytes_received=11,  # FIN is counted
    )
    assert kernel_totals(counters, (0, 0)) == (sent, 10)


def test_bytes_in_flight_at_a_reset_are_part_of_what_was_sent() -> None:
    counters = record(origin=(100, 0), snd_una=600, snd_nxt=1100, bytes_acked=501)
    assert kernel_totals(counters, (0, 0)) == (1000, 0)


def test_a_fin_that_never_left_is_not_subtracted() -> None:
    counters = record(flags=32, origin=(0, 0), fin=(500, 0), snd_nxt=400, snd_una=400)
    assert kernel_totals(counters, (0, 0))[0] == 400


def test_totals_of_a_flow_joined_midstream_begin_with_the_connection() -> None:
    counters = record(origin=(100, 50), snd_nxt=110, snd_una=110, rcv_nxt=53, bytes_acked=1011)
    assert kernel_totals(counters, (1000, 2000)) == (1010, 2003)


def said(items: list[Any]) -> list[tuple[int, bytes]]:
    return [(item.sequence, bytes(item.data)) for item in items if isinstance(item, Segment)]


def test_a_socket_that_connects_again_within_a_drain_has_two_flows_each_with_its_data(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(opened_record(time_ns=1))
    callouts.data.write(segment_record(sequence=0, data=b"first", time_ns=2))
    callouts.control.write(closed_record(sent=5, time_ns=3))
    callouts.control.write(opened_record(time_ns=4, active=False))
    callouts.data.write(segment_record(sequence=900, data=b"sec", time_ns=5))
    callouts.control.write(closed_record(sent=6, time_ns=7))
    callouts.data.write(segment_record(sequence=903, data=b"ond", time_ns=6))
    callouts.control.write(opened_record(time_ns=8))
    callouts.data.write(segment_record(sequence=70, data=b"third", time_ns=9))
    drains = [source.drain() for _ in range(3)]
    # One life in each, for what takes a batch closes flows when it has seen all of it.
    assert [kinds(items) for items in drains] == [
        [Opened, Segment, Closed], [Opened, Segment, Closed], [Opened, Segment],
    ]  # fmt: skip
    items = [item for items in drains for item in items]
    assert said(items) == [(0, b"first"), (900, b"second"), (70, b"third")]
    directions = [item.direction for item in items if isinstance(item, Segment)]
    assert directions == [Direction.TO_SERVER, Direction.TO_CLIENT, Direction.TO_SERVER]
    assert source.is_drained
    callouts.data.write(segment_record(sequence=75, data=b" more", time_ns=10))
    assert said(source.drain()) == [(75, b" more")]


def test_a_flow_taken_into_one_more_filter_is_told_once(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(opened_record(filters=2))
    (opened,) = source.drain()
    assert isinstance(opened, Opened)
    assert opened.flow.filters == 2
    for _ in range(2):
        callouts.control.write(opened_record(filters=3))
    (scoped,) = source.drain()
    assert isinstance(scoped, Scoped)
    assert (scoped.flow_id, scoped.filters, scoped.filter) == (1, 3, "it")


def test_flows_of_retired_filters_are_closed_behind_what_the_ring_holds(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(opened_record(1, filters=2))
    callouts.control.write(opened_record(2, filters=3))
    callouts.control.write(opened_record(3, filters=1))
    source.drain()
    callouts.data.write(segment_record(1, data=b"one"))
    callouts.data.write(segment_record(2, data=b"two"))
    source.retire(1)
    items = source.drain()
    assert kinds(items) == [Segment, Segment, Closed, Scoped]
    closed, scoped = items[2:]
    assert isinstance(closed, Closed)
    assert (closed.flow_id, closed.reason, closed.totals) == (1, "removed", None)
    assert isinstance(scoped, Scoped)
    assert (scoped.flow_id, scoped.filters) == (2, 1)
    callouts.data.write(segment_record(1, sequence=3, data=b"late"))
    assert source.drain() == []
    # It was taken in again.
    callouts.control.write(opened_record(1, filters=1, time_ns=1))
    callouts.data.write(segment_record(1, sequence=7, data=b"again"))
    assert kinds(source.drain()) == [Opened, Segment]


def test_what_was_opened_under_a_filter_before_it_was_retired_is_closed(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(opened_record(1, filters=2))
    callouts.data.write(segment_record(1, data=b"hello"))
    source.retire(1)
    assert kinds(source.drain()) == [Opened, Segment, Closed]


GIB = 1 << 30


@pytest.mark.parametrize("before", [0, 5, 5 * GIB + 7])
def test_a_new_reader_goes_on_exactly_where_the_unread_part_of_each_flow_begins(
    callouts: FakeCallouts, source: LiveSource, before: int
) -> None:
    first = 0xFFFF_FFF0
    callouts.data.write(segment_record(1, 0, (first + before) % (1 << 32), b"un", time_ns=50))
    callouts.data.write(segment_record(1, 0, (first + before + 2) % (1 << 32), b"read", time_ns=60))
    callouts.listing = np.concatenate(
        (
            listing(1, totals=(before + 6, 9), sequence=(first, 1000)),
            listing(2, totals=(before + 80, 0), counted=(before % (1 << 32), 30)),
        )
    )
    source.resume()
    one, two, *segments = source.drain()
    assert isinstance(one, Opened)
    assert isinstance(two, Opened)
    assert (one.flow.flow_id, one.flow.midstream, one.offsets) == (1, True, (before, 9))
    assert one.sequences == ((first + before) % (1 << 32), 1009)
    assert (two.flow.flow_id, two.offsets) == (2, (before, 0))
    assert [bytes(item.data) for item in segments if isinstance(item, Segment)] == [b"unread"]
    assert all(item.time_ns >= one.flow.opened_ns for item in segments if isinstance(item, Segment))


def test_a_new_reader_opens_no_flow_twice_that_the_control_ring_tells_of(
    callouts: FakeCallouts, source: LiveSource
) -> None:
    callouts.control.write(closed_record(1, time_ns=10))  # of another life of the same socket
    callouts.control.write(opened_record(1, time_ns=20))
    callouts.data.write(segment_record(1, data=b"whole", time_ns=21))
    callouts.listing = np.concatenate((listing(1, totals=(5, 0)), listing(2, totals=(7, 0))))
    callouts.listing["opened"]["time_ns"] = 30
    callouts.meanwhile = [opened_record(3, time_ns=31), opened_record(2, time_ns=31)]
    source.resume()
    items = source.drain()
    opened = {item.flow.flow_id: item.flow.midstream for item in items if isinstance(item, Opened)}
    assert opened == {1: False, 2: True, 3: False}
    assert kinds(items).count(Opened) == 3
    assert said(items) == [(0, b"whole")]
    assert Closed not in kinds(items)
    callouts.control.write(closed_record(2, sent=7, time_ns=40))
    (closed,) = source.drain()
    assert isinstance(closed, Closed)
    assert closed.totals == (7, 0)
