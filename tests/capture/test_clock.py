"""Unix time that jumps while flows are watched."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from capture.test_live import FakeCallouts
from helpers.rings import closed_record, opened_record, segment_record
from streamtap.capture.live import LiveSource
from streamtap.events import FlowClosed, FlowOpened, Record
from streamtap.patterns.model import Data
from streamtap.pipeline import Pipeline

S = 1_000_000_000
BEGIN_NS = 1_700_000_000 * S
HOUR = 3600.0


class Machine:
    """now_s: since the machine began. offset_ns: of Unix time, which somebody may set."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.offset_ns = BEGIN_NS

    def monotonic(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return round(self.now_s * S)

    def time_ns(self) -> int:
        return self.monotonic_ns() + self.offset_ns


class Watched:
    def __init__(self, callouts: FakeCallouts, machine: Machine) -> None:
        self.callouts = callouts
        self.machine = machine
        self.source = LiveSource(callouts, {0: "it"})
        self.pipeline = Pipeline()
        self.records: list[Record] = []
        self.said = 0

    def say(self, length: int) -> None:
        record = segment_record(
            sequence=self.said, data=b"x" * length, time_ns=self.machine.monotonic_ns()
        )
        self.said += length
        self.callouts.data.write(record)

    def poll(self, after_s: float) -> None:
        self.machine.now_s += after_s
        self.records += self.pipeline.feed(self.source.drain())
        self.records += self.pipeline.tick(self.source.given_ns)
        self.source.release()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    epoll = SimpleNamespace(register=lambda *_: None)
    machine, callouts = Machine(), FakeCallouts()
    monkeypatch.setattr("streamtap.capture.live.select.epoll", lambda _: epoll)
    monkeypatch.setattr("streamtap.capture.live.time", machine)
    yield Watched(callouts, machine)
    callouts.data.close()
    callouts.control.close()


@pytest.mark.parametrize("jump_s", [-HOUR, -2.0, 2.0, HOUR], ids=str)
def test_bursts_end_in_time_and_flows_are_whole_when_the_clock_is_set(
    watched: Watched, jump_s: float
) -> None:
    machine = watched.machine
    watched.callouts.control.write(opened_record(time_ns=machine.monotonic_ns()))
    watched.say(5)
    watched.poll(0.01)
    machine.offset_ns += round(jump_s * S)
    for _ in range(8):
        watched.poll(0.5)
    bursts = [one.body.bytes for one in watched.records if isinstance(one.body, Data)]
    assert bursts == [5], "nothing waits for a time that was taken away"
    watched.say(7)
    watched.poll(0.5)
    watched.callouts.control.write(closed_record(sent=12, time_ns=machine.monotonic_ns()))
    watched.poll(0.5)
    assert isinstance(watched.records[0].body, FlowOpened)
    closed = watched.records[-1]
    assert isinstance(closed.body, FlowClosed)
    assert closed.body.missing == 0
    assert closed.body.duration_ns >= 0
    # The times are those that the clock showed.
    assert abs(closed.time_ns - machine.time_ns()) < 2 * S
