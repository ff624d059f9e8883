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
    opened_record,
    segment_record,
)
from streamtap.capture.kernel import Candidate
from streamtap.capture.layout import FLOW_LISTING, OPENED_RECORD
from streamtap.capture.live import LiveSource
from streamtap.capture.ring import Ring
from streamtap.capture.totals import kernel_totals
from streamtap.model import Closed, Opened, Policy, Segment

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
