"""Where a reader of rings that somebody else read before finds each flow."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.columns import headers_at
from streamtap.capture.layout import KIND_AT, OPENED_RECORD, RecordKind, Row
from streamtap.capture.ring import Ring

BUSY_S = 0.1  # to wait for a record that is being written
_opened_row = Row(OPENED_RECORD)
_KIND_AT = KIND_AT[OPENED_RECORD.itemsize]
_HALF = 1 << 31
_MASK = (1 << 32) - 1


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
    if len(listing) and len(records):
        order = np.argsort(opened["flow_id"])
        ids = opened["flow_id"][order]
        place = np.minimum(np.searchsorted(ids, records["flow_id"]), len(ids) - 1)
        mine = ids[place] == records["flow_id"]
        rows, sides = order[place[mine]], records["direction"][mine]
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


def flows_announced(control: Ring) -> set[int]:
    """The flows whose openings wait in the control ring; it stays as it is."""
    found = set()
    position = control.position
    for at, length in control.read(control.produced, control.size):
        if length == OPENED_RECORD.itemsize and control.data[at + _KIND_AT] == RecordKind.OPENED:
            found.add(int(_opened_row.read(control.data, at)["flow_id"]))
    control.position = position
    return found


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
