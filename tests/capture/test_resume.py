"""What a new reader is to do with flows that are open, that have ended, and that began anew."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.kernels import SIZE, FakeKernel
from helpers.rings import closed_record, listing, opened_record, segment_record
from streamtap.capture.layout import CLOSED_RECORD, FLOW_LISTING, OPENED_RECORD, Row
from streamtap.capture.live import AT_ONCE, LiveSource
from streamtap.capture.resume import Found, Remembered, find_flows
from streamtap.capture.ring import Ring
from streamtap.model import Closed, Flow, Opened, Scoped, Segment

_opened, _closed = Row(OPENED_RECORD), Row(CLOSED_RECORD)
GIB = 1 << 30
NONE = np.zeros(0, FLOW_LISTING)


class Told:
    """A ledger that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def opened(self, record: dict[str, Any], flow: Flow) -> None:
        self.calls.append(("opened", record["flow_id"], flow.filters))

    def scoped(self, flow_id: int, filters: int) -> None:
        self.calls.append(("scoped", flow_id, filters))

    def ending(self, record: dict[str, Any]) -> None:
        self.calls.append(("ending", record["flow_id"]))

    def closed(self, flow_id: int) -> None:
        self.calls.append(("closed", flow_id))


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    made = FakeKernel()
    yield made
    made.close()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def source(kernel: FakeKernel, told: Told, monkeypatch: pytest.MonkeyPatch) -> LiveSource:
    class NoPoll:
        def __init__(self, size: int) -> None: ...
        def register(self, fd: int, events: int) -> None: ...

    monkeypatch.setattr("streamtap.capture.live.select.epoll", NoPoll)
    return LiveSource(kernel, {0: "it"}, told)


def remembered(
    flow_id: int = 1, *, first: int = 0, filters: int = 1, closed: bytes | None = None
) -> Remembered:
    record = _opened.read(opened_record(flow_id, filters=filters, time_ns=10))
    record["sequence"] = (first, 0)
    return Remembered(record, "/bin/it", "slice", None if closed is None else _closed.read(closed))


def find(kernel: FakeKernel, rows: NDArray[Any], *before: Remembered) -> Found:
    data, control = Ring(kernel.data.fd, SIZE), Ring(kernel.control.fd, SIZE)
    found = find_flows(rows, before, control, data, -1)
    assert (data.position, control.position) == (0, 0)
    return found


def said(items: list[Any]) -> list[bytes]:
    return [bytes(item.data) for item in items if isinstance(item, Segment)]


@pytest.mark.parametrize("before", [0, 100, 5 * GIB + 7])
@pytest.mark.parametrize("read", [False, True])
def test_a_flow_that_has_ended_begins_where_its_unread_part_does(
    kernel: FakeKernel, before: int, read: bool
) -> None:
    first = 0xFFFF_FFF0
    end = np.frombuffer(closed_record(1, sent=before + 6, time_ns=70), CLOSED_RECORD).copy()
    end["origin"] = first, 0
    end["snd_nxt"] = end["snd_una"] = (first + before + 6) % (1 << 32)
    for at, data in ((before, b"un"), (before + 2, b"read")):
        number = (first + at) % (1 << 32)
        kernel.data.write(segment_record(1, 0, number, data, time_ns=50))
    # What another life of the socket said.
    kernel.data.write(segment_record(1, 0, 17, b"later", time_ns=90))
    closed = end.tobytes()
    if not read:
        kernel.control.write(closed)
    found = find(kernel, NONE, remembered(first=first, closed=closed if read else None))
    ((record, known),) = found.begin
    assert (record["flow_id"], known.starts, known.since_ns) == (1, (before, 0), 50)
    assert (known.path, known.cgroup) == ("/bin/it", "slice")
    ((flow_id, told),) = found.ended
    assert (flow_id, told is not None) == (1, read)


def test_counted_bytes_that_a_closing_tells_are_not_passed_over(kernel: FakeKernel) -> None:
    end = np.frombuffer(closed_record(1, sent=80, time_ns=70), CLOSED_RECORD).copy()
    end["range_sequence"], end["range_length"] = (50, 0), (30, 0)
    kernel.control.write(end.tobytes())
    ((_, known),) = find(kernel, NONE, remembered()).begin
    assert known.starts == (50, 0)
    assert known.since_ns == 70


def test_a_flow_whose_closing_is_lost_begins_with_what_is_unread(
    kernel: FakeKernel, source: LiveSource
) -> None:
    kernel.data.write(segment_record(1, 0, 40, b"last", time_ns=50))
    source.resume(-1, [remembered(), remembered(2)])
    items = source.drain()
    opened = [item for item in items if isinstance(item, Opened)]
    assert [item.offsets for item in opened] == [(40, 0), (0, 0)]
    assert said(items) == [b"last"]
    closed = [item for item in items if isinstance(item, Closed)]
    assert [(one.flow_id, one.reason, one.totals) for one in closed] == [
        (1, "end", None), (2, "end", None),
    ]  # fmt: skip
    assert source.is_drained


def test_flows_that_ended_meanwhile_are_told_and_closed_with_their_totals(
    kernel: FakeKernel, source: LiveSource, told: Told
) -> None:
    kernel.data.write(segment_record(1, 0, 3, b"unread", time_ns=50))
    kernel.control.write(closed_record(1, sent=9, time_ns=70))
    kernel.control.write(closed_record(9, sent=9, time_ns=70))  # of which nobody was told
    source.resume(-1, [remembered(1), remembered(2, closed=closed_record(2, sent=4, time_ns=60))])
    one, two, segment, *closed = source.drain()
    assert isinstance(one, Opened)
    assert isinstance(two, Opened)
    assert (one.flow.midstream, one.offsets, two.offsets) == (True, (3, 0), (4, 0))
    assert one.flow.app is not None
    assert (one.flow.app.path, one.flow.app.cgroup) == ("/bin/it", "slice")
    assert said([segment]) == [b"unread"]
    assert sorted((x.flow_id, x.totals) for x in closed if isinstance(x, Closed)) == [
        (1, (9, 0)), (2, (4, 0)),
    ]  # fmt: skip
    assert ("ending", 1) in told.calls
    assert told.calls[-2:] == [("closed", 2), ("closed", 1)]


def test_a_flow_that_is_open_still_is_opened_once(kernel: FakeKernel, source: LiveSource) -> None:
    kernel.rows = listing(1, totals=(5, 0))
    kernel.control.write(opened_record(1))  # told again, as for one more filter
    source.resume(-1, [remembered()])
    (opened,) = source.drain()
    assert isinstance(opened, Opened)
    assert (opened.offsets, opened.flow.midstream) == ((5, 0), True)
    assert source.is_drained


@pytest.mark.parametrize("read", [False, True])
def test_a_socket_that_connected_again_is_closed_before_it_is_opened(
    kernel: FakeKernel, source: LiveSource, read: bool
) -> None:
    end = closed_record(1, sent=3, time_ns=60)
    kernel.rows = listing(1, totals=(6, 0), sequence=(900, 0))
    kernel.data.write(segment_record(1, 0, 0, b"old", time_ns=50))
    if not read:
        kernel.control.write(end)
        record = np.frombuffer(opened_record(1, time_ns=65), OPENED_RECORD).copy()
        record["sequence"] = 900, 0
        kernel.control.write(record.tobytes())
    kernel.data.write(segment_record(1, 0, 900, b"second", time_ns=70))
    source.resume(-1, [remembered(closed=end if read else None)])
    first, second = source.drain(), source.drain()
    assert [type(item) for item in first] == [Opened, Segment, Closed]
    assert said(first) == [b"old"]
    assert [type(item) for item in second] == [Opened, Segment]
    assert said(second) == [b"second"]
    assert isinstance(second[0], Opened)
    assert second[0].sequences == (900, 0)


def test_flows_of_filters_that_are_not_in_force_any_more_are_closed_as_removed(
    kernel: FakeKernel, source: LiveSource
) -> None:
    kernel.rows = listing(1, totals=(5, 0), filters=2)
    kernel.control.write(closed_record(3, sent=7, time_ns=70))
    source.resume(1, [remembered(n, filters=2) for n in (1, 2, 3)] + [remembered(4, filters=3)])
    items = source.drain()
    assert [type(item) for item in items[:4]] == [Opened] * 4
    closed = {item.flow_id: item for item in items if isinstance(item, Closed)}
    assert {n: one.reason for n, one in closed.items()} == {
        1: "removed", 2: "removed", 3: "rst", 4: "end",
    }  # fmt: skip
    assert closed[3].totals == (7, 0)
    assert [item.filters for item in items if isinstance(item, Scoped)] == [1]


def test_thousands_that_have_ended_are_closed_in_parts(
    kernel: FakeKernel, source: LiveSource
) -> None:
    count = 3 * AT_ONCE
    ends = (closed_record(n, time_ns=20) for n in range(1, count + 1))
    source.resume(-1, [remembered(n, closed=end) for n, end in enumerate(ends, 1)])
    parts: list[list[Any]] = []
    while not source.is_drained:
        parts.append(source.drain())
    assert max(map(len, parts)) <= 2 * AT_ONCE
    items = [item for part in parts for item in part]
    assert [type(item) for item in items].count(Closed) == count
    assert len(items) == 2 * count


def test_a_ledger_is_told_of_what_happens_to_flows(
    kernel: FakeKernel, source: LiveSource, told: Told
) -> None:
    kernel.control.write(opened_record(1, filters=1))
    kernel.control.write(opened_record(2, filters=0))  # out of scope
    kernel.control.write(opened_record(1, filters=3))
    kernel.control.write(closed_record(1))
    kernel.control.write(closed_record(2))
    kernel.control.write(opened_record(3, filters=2))
    source.drain()
    assert told.calls == [
        ("opened", 1, 1), ("scoped", 1, 3), ("ending", 1), ("ending", 2), ("opened", 3, 2),
        ("closed", 1),
    ]  # fmt: skip
    told.calls.clear()
    assert [type(item) for item in source.finish({})] == [Closed]
    assert told.calls == [("closed", 3)]
