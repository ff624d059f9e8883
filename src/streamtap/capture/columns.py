"""Segment records by column -> `Segment`s, with what is in order joined per flow.

The same for a drained span of the ring as for a batch of a capture: headers are decoded as
columns, records are grouped by flow and direction, and each run of records that follow one
another in sequence becomes one `Segment`. Python objects are made per run, not per record.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.layout import SEGMENT_RECORD
from streamtap.model import Direction, Segment

JOIN = 8192  # payloads up to this many bytes are joined; larger ones are cheaper left in place
_HEADER_WORDS = SEGMENT_RECORD.itemsize // 8
_ROW = np.dtype((np.void, SEGMENT_RECORD.itemsize))
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def headers_at(words: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """The records at byte offsets (multiples of 8) of `words`: (n,) SEGMENT_RECORD."""
    # A row at each word, overlapping: the rows wanted are then gathered in one go.
    rows: NDArray[Any] = np.ndarray((len(words) - _HEADER_WORDS + 1,), _ROW, words, strides=(8,))
    records: NDArray[Any] = rows[offsets >> 3].view(SEGMENT_RECORD)
    return records


def join(
    records: NDArray[Any],
    payloads: NDArray[np.int64],
    data: memoryview,
    sent: Mapping[int, Direction],
    clock_ns: int,
) -> list[Segment]:
    """Segments of the records: (n,) SEGMENT_RECORD, their payloads at offsets (n,) of `data`.

    sent: the direction in which the local end of a flow sends; client where it is not known.
    clock_ns: what turns the records' times into Unix times.
    A segment left single is a view of `data`; joined bytes are a copy.
    """
    # Sorting 16 bits is much faster than sorting ids. Where two flows share them their runs are
    # cut shorter, for a run is told by the whole key.
    keys = (records["flow_id"] << np.uint64(1)) | records["direction"]
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    keys, payloads = keys[order], payloads[order]
    records = records.view(_ROW)[order].view(SEGMENT_RECORD)
    sequences, lengths = records["sequence"], records["length"]
    captured, lost, acks = records["captured"], records["lost"], records["acknowledgment"]
    times = records["time_ns"].astype(np.int64) + clock_ns
    # A record begins a run unless it is of the same flow and kind as the one before it, follows
    # it in sequence, and is small; what was cut (length over captured) ends its run.
    breaks = np.ones(len(order), bool)
    small = captured <= JOIN
    breaks[1:] = (
        (keys[1:] != keys[:-1])
        | (sequences[1:] != sequences[:-1] + lengths[:-1])
        | (lost[1:] != lost[:-1])
        | ((captured[1:] == 0) != (captured[:-1] == 0))
        | (captured[:-1] < lengths[:-1]) & (captured[:-1] != 0)
        | ~small[1:]
        | ~small[:-1]
    )
    starts = np.flatnonzero(breaks)
    stops = np.append(starts[1:], len(order))
    key_of, sequence_of = keys[starts].tolist(), sequences[starts].tolist()
    ack_of, lost_of = acks[stops - 1].tolist(), lost[starts].tolist()
    # Where each record ends in its run: the sum of the lengths so far, less that before the run.
    sums = np.cumsum(lengths, dtype=np.int64)
    before = sums[starts] - lengths[starts]
    end_of = (sums - np.repeat(before, stops - starts)).tolist()
    size_of, time_of = captured.tolist(), times.tolist()
    # Pieces of bytes are cut twice as fast as pieces of a view; large ones stay where they are.
    source: bytes | memoryview = data
    if len(starts) < len(order) and small.all():
        low = int(payloads.min())
        source = bytes(data[low : int(payloads.max()) + JOIN])
        payloads = payloads - low
    pieces = [
        source[at:end]
        for at, end in zip(payloads.tolist(), (payloads + captured).tolist(), strict=True)
    ]
    segments: list[Segment] = []
    add = segments.append
    for run, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        key, sequence, ack, lost_before = key_of[run], sequence_of[run], ack_of[run], lost_of[run]
        flow_id = key >> 1
        direction = sent.get(flow_id, _TO_SERVER)
        if key & 1:
            direction = _TO_SERVER if direction else _TO_CLIENT
        time_ns = time_of[stop - 1]
        length = end_of[stop - 1]
        ends: list[int] | tuple[()] = ()
        times_ns: list[int] | tuple[()] = ()
        if stop - start == 1:
            piece, size = pieces[start], size_of[start]
        else:
            ends, times_ns = end_of[start:stop], time_of[start:stop]
            if not size_of[start]:  # counted, all of them
                add(Segment(flow_id, direction, sequence, b"", time_ns, ends, times_ns, length,
                            ack, lost_before))  # fmt: skip
                continue
            piece = b"".join(pieces[start:stop])
            size = len(piece)
        if size:
            if ends and size < length:  # only the last record of a run may be cut
                ends[-1] = size
            add(Segment(flow_id, direction, sequence, piece, time_ns, ends, times_ns, 0, ack,
                        lost_before))  # fmt: skip
        if size < length:
            add(Segment(flow_id, direction, (sequence + size) & 0xFFFFFFFF, b"", time_ns, (), (),
                        length - size, ack, lost_before))  # fmt: skip
    return segments
