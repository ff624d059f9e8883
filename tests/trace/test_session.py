"""Sessions: numbers, counts, and sinks that fail."""

import errno
from collections.abc import Sequence

import msgspec

from helpers.records import message, opened, record
from streamtap.events import Record
from streamtap.trace.selection import parse
from streamtap.trace.session import Counters, Session
from streamtap.trace.sink import Sink

MESSAGE, OPENED = record(message(), "sent"), record(opened())


class Memory:
    """A sink that keeps records, and fails when told to."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.written: list[tuple[int, Record]] = []
        self.flushed = 0
        self.closed = 0
        self.failure: OSError | None = None

    def open(self) -> None: ...

    def write(self, first: int, records: Sequence[Record]) -> None:
        if self.failure:
            raise self.failure
        self.written += enumerate(records, first)

    def flush(self) -> None:
        if self.failure:
            raise self.failure
        self.flushed = len(self.written)

    def close(self) -> None:
        self.closed += 1


def test_wanted_records_are_numbered_from_one_for_every_sink() -> None:
    first, second = Memory(), Memory()
    session = Session(parse(["notify"]), [first, second])
    assert session.offer([MESSAGE, OPENED, MESSAGE]) == 2
    assert session.offer([OPENED]) == 0
    assert first.written == second.written == [(1, MESSAGE), (2, MESSAGE)]


def test_numbers_that_records_have_are_kept_as_long_as_they_ascend() -> None:
    records = [msgspec.structs.replace(MESSAGE, number=n) for n in (3, 7, 7, 2, 12, 0)]
    expected = [3, 7, 8, 9, 12, 13]
    for cut in range(len(records)):
        sink = Memory()
        session = Session(parse([]), [sink], keep_numbers=True)
        session.offer(records[:cut])
        session.offer(records[cut:])
        assert sink.written == list(zip(expected, records, strict=True))


def test_two_sessions_number_apart() -> None:
    one, all_ = Memory(), Memory()
    sessions = Session(parse(["monitor"]), [one]), Session(parse(["all:all"]), [all_])
    for each in (MESSAGE, OPENED):
        for session in sessions:
            session.offer([each])
    assert (one.written, all_.written) == ([(1, OPENED)], [(1, MESSAGE), (2, OPENED)])


def test_counters_tell_how_many_records_were_taken() -> None:
    counters = Counters()
    session = Session(parse([]), [Memory()], counters)
    for each in (MESSAGE, OPENED, MESSAGE):
        session.offer([each])
    assert counters.records == 3


def test_lines_are_flushed_at_once_only_when_asked() -> None:
    batch, line = Memory(), Memory()
    sessions = Session(parse([]), [batch]), Session(parse([]), [line], line_buffered=True)
    for session in sessions:
        session.offer([MESSAGE])
    assert (batch.flushed, line.flushed) == (0, 1)
    sessions[0].flush()
    assert batch.flushed == 1


def test_records_missed_on_the_way_leave_a_hole_in_the_numbers() -> None:
    sink = Memory()
    session = Session(parse([]), [sink])
    session.offer([MESSAGE])
    session.miss(5)
    session.offer([MESSAGE])
    assert [number for number, _ in sink.written] == [1, 7]
    assert session.counters.dropped == 5


def test_a_full_disk_is_reported_once_and_the_other_sinks_go_on() -> None:
    full, healthy = Memory("full"), Memory()
    reports: list[tuple[Sink, OSError]] = []
    session = Session(
        parse([]), [full, healthy], report=lambda sink, error: reports.append((sink, error))
    )
    session.offer([MESSAGE])
    session.flush()
    full.failure = OSError(errno.ENOSPC, "no space left")
    for _ in range(3):
        session.offer([MESSAGE])
        session.flush()
    assert [(sink.name, error.errno) for sink, error in reports] == [("full", errno.ENOSPC)]
    assert full.closed == 1
    assert len(healthy.written) == 4
    assert session.counters.dropped == 1
    assert not session.over


def test_a_sink_that_fails_at_a_flush_counts_what_it_held() -> None:
    full = Memory()
    session = Session(parse([]), [full])
    for _ in range(3):
        session.offer([MESSAGE])
    full.failure = OSError(errno.ENOSPC, "no space left")
    session.flush()
    assert session.counters.dropped == 3
    assert session.over


def test_a_reader_that_goes_away_ends_the_session_quietly() -> None:
    pipe = Memory()
    reports: list[OSError] = []
    session = Session(parse([]), [pipe], report=lambda _, error: reports.append(error))
    session.offer([MESSAGE])
    pipe.failure = BrokenPipeError(errno.EPIPE, "broken pipe")
    session.flush()
    assert session.over
    assert not session.offer([MESSAGE])
    assert (reports, session.counters.dropped) == ([], 0)


def test_closing_closes_every_sink_once() -> None:
    sinks = [Memory(), Memory()]
    session = Session(parse([]), sinks)
    session.close()
    session.close()
    assert [sink.closed for sink in sinks] == [1, 1]
