"""Where a reader of rings that somebody else read before finds each flow.

Of flows that are open the kernel's list tells. Of one that has ended since, its closing waits in
the control ring, but whose it was the reader before knew: a ledger that outlives it tells.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.columns import headers_at
from streamtap.capture.layout import (
    CLOSED_RECORD,
    FLOW_LISTING,
    KIND_AT,
    OPENED_RECORD,
    RecordKind,
    Row,
)
from streamtap.capture.ring import Ring
from streamtap.capture.totals import kernel_totals
from streamtap.model import Flow

BUSY_S = 0.1  # to wait for a record that is being written
_opened_row, _closed_row = Row(OPENED_RECORD), Row(CLOSED_RECORD)
_KIND_OPENED = KIND_AT[OPENED_RECORD.itemsize]
_HALF = 1 << 31
_MASK = (1 << 32) - 1
_LIFE = ("sequence", "passed", "space", "local_port", "remote_port")

Record = dict[str, Any]


class Remembered(NamedTuple):
    """A flow of which the reader before told the opening, and perhaps not the end.

    opened: its OPENED_RECORD, with the filters that it was in. path, cgroup: of its application,
    "" where they are not known. closed: its CLOSED_RECORD, if that has been read.
    """

    opened: Record
    path: str
    cgroup: str
    closed: Record | None


class Ledger(Protocol):
    """Remembers flows for the reader that follows. What it is told is in force at once, but for
    the end of a flow, which is so when it has been told on."""

    def opened(self, record: Record, flow: Flow) -> None:
        """A flow is about to be told of, by an OPENED_RECORD."""

    def scoped(self, flow_id: int, filters: int) -> None:
        """A flow is in other filters."""

    def ending(self, record: Record) -> None:
        """A CLOSED_RECORD has been read."""

    def closed(self, flow_id: int) -> None:
        """The end of a flow has been given to who tells it."""


class NoLedger:
    """Of a reader that nobody follows."""

    def opened(self, record: Record, flow: Flow) -> None: ...
    def scoped(self, flow_id: int, filters: int) -> None: ...
    def ending(self, record: Record) -> None: ...
    def closed(self, flow_id: int) -> None: ...


class Before(NamedTuple):
    """What is known of a flow from the time of another reader.

    starts: offsets at which its unread part begins, sent and received. since_ns: when that was, by
    the kernel's clock. path, cgroup: of its application, where they were remembered.
    """

    starts: tuple[int, int]
    since_ns: int
    path: str = ""
    cgroup: str = ""


class Found(NamedTuple):
    """What a new reader is to do.

    begin: the flows to be opened first, by their OPENED_RECORDs.
    ended: those of them that have ended: flow and CLOSED_RECORD, None where that waits in the
        control ring or was lost.
    again: OPENED_RECORDs of sockets in `ended` that connected again since.
    """

    begin: list[tuple[Record, Before]]
    ended: list[tuple[int, Record | None]]
    again: list[Record]


def find_flows(
    listing: NDArray[Any],
    remembered: Iterable[Remembered],
    control: Ring,
    data: Ring,
    enabled: int,
) -> Found:
    """listing: (n,) FLOW_LISTING of now; the rings stay as they are. enabled: mask of the filters
    in force. A flow that is remembered and in none of them is to be opened all the same."""
    announced, closings = _waiting(control)
    records = unread(data)
    since_ns = int(records["time_ns"].min()) if len(records) else time.monotonic_ns()
    gone = {one.opened["flow_id"]: one for one in remembered}
    found = Found([], [], [])
    starts = continues_at(listing, records)
    passed = listing["opened"]["passed"].astype(np.int64)
    begun_here = (starts == passed).all(axis=1).tolist()
    for row, start, whole in zip(listing, starts.tolist(), begun_here, strict=True):
        record = listed(row, enabled)
        flow_id = record["flow_id"]
        one = gone.get(flow_id)
        if one is not None and one.closed is None and _is_same_life(one.opened, record):
            del gone[flow_id]
            record["filters"] = record["filters"] or one.opened["filters"]
            before = Before((start[0], start[1]), since_ns, one.path, one.cgroup)
            found.begin.append((record, before))
        # With its opening still to be read, and all it said, it is as if we had been here.
        elif record["filters"] | record["candidates"] and not (whole and flow_id in announced):
            if one is not None:
                found.again.append(record)
            else:
                found.begin.append((record, Before((start[0], start[1]), since_ns)))
    _find_ended(found, list(gone.values()), closings, records, since_ns)
    return found


def _find_ended(
    found: Found,
    gone: Sequence[Remembered],
    closings: dict[int, Record],
    records: NDArray[Any],
    since_ns: int,
) -> None:
    ends: list[Record | None] = []
    for one in gone:
        waits = closings.get(one.opened["flow_id"])
        if waits is not None and waits["time_ns"] < one.opened["time_ns"]:
            waits = None  # of a life before
        ends.append(one.closed or waits)
    starts = continues_at(*_as_listed(gone, ends, records))
    for one, closed, start in zip(gone, ends, starts.tolist(), strict=True):
        # It is told as if found when it was there still.
        last_ns = since_ns if closed is None else min(since_ns, closed["time_ns"])
        before = Before((start[0], start[1]), last_ns, one.path, one.cgroup)
        found.begin.append((one.opened, before))
        found.ended.append((one.opened["flow_id"], one.closed))


def listed(row: Any, enabled: int) -> Record:
    """The OPENED_RECORD of a FLOW_LISTING, in filters that are in force."""
    record = _opened_row.read(row["opened"].tobytes())
    record["filters"] &= enabled
    record["candidates"] &= enabled
    return record


def continues_at(listing: NDArray[Any], records: NDArray[Any]) -> NDArray[np.int64]:
    """(n, 2) offsets at which the unread part of each listed flow begins, sent and received.

    listing: (n,) FLOW_LISTING. records: (m,) SEGMENT_RECORD, all that the ring holds unread.
    A flow continues with the first byte of what is unread, or that is counted in its context and
    not told yet; where there is neither, behind the kernel's total. The total is exact, so
    sequence numbers near it are told apart however long the connection has become.
    """
    opened = listing["opened"]
    totals = listing["totals"].astype(np.int64)
    passed = opened["passed"].astype(np.int64)
    numbers = opened["sequence"].astype(np.int64) + totals - passed  # of the byte at the total
    starts = totals.copy()
    growing = listing["range_length"] > 0
    starts[growing] = _near(listing["range_sequence"], numbers, totals)[growing]
    rows, mine = _rows_of(listing, records)
    sides = records["direction"][mine]
    offsets = _near(records["sequence"][mine], numbers[rows, sides], totals[rows, sides])
    np.minimum.at(starts, (rows, sides), offsets)
    # Nothing was copied before it was marked, and what lies past the total came after the listing.
    return np.minimum(np.maximum(starts, passed), totals)


def _near(
    sequence: NDArray[Any], number: NDArray[np.int64], offset: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The offset of `sequence` that is nearest to `offset`, whose sequence is `number`."""
    near: NDArray[np.int64] = offset + (sequence.astype(np.int64) - number + _HALF & _MASK) - _HALF
    return near


def _rows_of(
    listing: NDArray[Any], records: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which records, (m,), are of listed flows, and of which row each of those is."""
    if not len(listing):
        return np.empty(0, np.int64), np.zeros(len(records), bool)
    order = np.argsort(listing["opened"]["flow_id"])
    ids = listing["opened"]["flow_id"][order]
    place = np.minimum(np.searchsorted(ids, records["flow_id"]), len(ids) - 1)
    # A byte beyond two directions is of no record that the callouts write.
    mine = (ids[place] == records["flow_id"]) & (records["direction"] < 2)
    return order[place[mine]], mine


def _as_listed(
    gone: Sequence[Remembered], ends: Sequence[Record | None], records: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """How flows that have ended would be listed, (n,) FLOW_LISTING; and what is unread of them,
    without what a later life of the same socket said.

    Without its closing nobody knows the totals of a flow: they are then what is unread of it goes
    up to, if no more than 4 GiB have passed.
    """
    listing = np.zeros(len(gone), FLOW_LISTING)
    until_ns = np.full(len(gone), np.iinfo(np.int64).max)
    opened, totals = listing["opened"], listing["totals"]
    for at, (one, closed) in enumerate(zip(gone, ends, strict=True)):
        for name in ("flow_id", "sequence", "passed"):
            opened[name][at] = one.opened[name]
        if closed is not None:
            until_ns[at] = closed["time_ns"]
            for name in ("range_sequence", "range_length"):
                listing[name][at] = closed[name]
    rows, mine = _rows_of(listing, records)
    records = records[mine]
    early = records["time_ns"].astype(np.int64) <= until_ns[rows]
    records, rows = records[early], rows[early]
    sides = records["direction"]
    ends_at = records["sequence"].astype(np.int64) + records["length"]
    said = ends_at - opened["sequence"].astype(np.int64)[rows, sides] & _MASK
    totals[:] = opened["passed"]
    np.maximum.at(totals, (rows, sides), opened["passed"][rows, sides] + said.astype(np.uint64))
    for at, (one, closed) in enumerate(zip(gone, ends, strict=True)):
        if closed is not None:
            totals[at] = kernel_totals(closed, one.opened["passed"])
    return listing, records


def _is_same_life(before: Record, now: Record) -> bool:
    """A socket that connects again keeps its flow id, and has other sequence numbers."""
    return all(before[name] == now[name] for name in _LIFE)


def _waiting(control: Ring) -> tuple[set[int], dict[int, Record]]:
    """Of which flows the openings wait in the control ring, and the first closing of each; the
    ring stays as it is."""
    announced: set[int] = set()
    closings: dict[int, Record] = {}
    position = control.position
    for at, length in control.read(control.produced, control.size):
        if length == OPENED_RECORD.itemsize and control.data[at + _KIND_OPENED] == (
            RecordKind.OPENED
        ):
            announced.add(_opened_row.read(control.data, at)["flow_id"])
        elif length == CLOSED_RECORD.itemsize:
            record = _closed_row.read(control.data, at)
            if record["kind"] == RecordKind.CLOSED:
                closings.setdefault(record["flow_id"], record)
    control.position = position
    return announced, closings


def unread(ring: Ring) -> NDArray[Any]:
    """The segments that wait in the data ring, (n,) SEGMENT_RECORD; it stays as it is."""
    until, position, deadline = ring.produced, ring.position, time.monotonic() + BUSY_S
    parts = [ring.find(until, ring.size)]
    while ring.position < until and time.monotonic() < deadline:
        parts.append(ring.find(until, ring.size))
    ring.position = position
    records = headers_at(ring.words, np.concatenate(parts))
    found: NDArray[Any] = records[records["kind"] == RecordKind.SEGMENT]
    return found
