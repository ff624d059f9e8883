"""Segment records by column -> `Segment`s, with what is in order joined per flow.

The same for a drained span of the ring as for a batch of a capture: headers are decoded as
columns, records are grouped by flow and direction, and each run of records that follow one
another in sequence becomes one `Segment`. Python objects are made per run, not per record.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.layout import SEGMENT_RECORD
from streamtap.model import Direction, Segment

JOIN = 8192  # payloads up to this many bytes are joined; larger ones are cheaper left in place
_HEADER_WORDS = SEGMENT_RECORD.itemsize // 8
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def headers_at(words: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """The records at byte offsets (multiples of 8) of `words`: (n,) SEGMENT_RECORD."""
    rows = words[(offsets >> 3)[:, None] + np.arange(_HEADER_WORDS)]
    records: NDArray[Any] = rows.view(SEGMENT_RECORD)[:, 0]
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
    lengths = records["length"]
    captured = records["captured"]
    keys = (records["flow_id"] << np.uint64(1)) | records["direction"]
    order = np.argsort(keys, kind="stable")
    keys, sequences, lengths = keys[order], records["sequence"][order], lengths[order]
    captured, lost = captured[order], records["lost"][order]
    acks, payloads = records["acknowledgment"][order], payloads[order]
    times = records["time_ns"][order].astype(np.int64) + clock_ns
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
    starts = np.flatnonzero(breaks).tolist()
    stops = [*starts[1:], len(order)]
    key_of, sequence_of = keys.tolist(), sequences.tolist()
    length_of, captured_of, lost_of = lengths.tolist(), captured.tolist(), lost.tolist()
    ack_of, time_of, payload_of = acks.tolist(), times.tolist(), payloads.tolist()
    segments: list[Segment] = []
    add = segments.append
    for start, stop in zip(starts, stops, strict=True):
        key = key_of[start]
        flow_id = key >> 1
        direction = sent.get(flow_id, _TO_SERVER)
        if key & 1:
            direction = direction.opposite
        last = stop - 1
        at, size = payload_of[start], captured_of[start]
        if last == start:
            if size:
                piece: bytes | memoryview = data[at : at + size]
                add(Segment(flow_id, direction, sequence_of[start], piece, time_of[start],
                            (), (), 0, ack_of[start], lost_of[start]))  # fmt: skip
            if size < length_of[start]:
                add(Segment(flow_id, direction, (sequence_of[start] + size) & 0xFFFFFFFF, b"",
                            time_of[start], (), (), length_of[start] - size, ack_of[start],
                            lost_of[start]))  # fmt: skip
            continue
        ends = list(accumulate(length_of[start:stop]))
        if size:
            joined = b"".join(
                [
                    data[at : at + size]
                    for at, size in zip(
                        payload_of[start:stop], captured_of[start:stop], strict=True
                    )
                ]
            )
            left = ends[-1] - len(joined)  # only the last record of a run may be cut
            if left:
                ends[-1] = len(joined)
            add(Segment(flow_id, direction, sequence_of[start], joined, time_of[last], ends,
                        time_of[start:stop], 0, ack_of[last], lost_of[last]))  # fmt: skip
            if left:
                add(Segment(flow_id, direction, (sequence_of[start] + len(joined)) & 0xFFFFFFFF,
                            b"", time_of[last], (), (), left, ack_of[last],
                            lost_of[last]))  # fmt: skip
        else:
            add(Segment(flow_id, direction, sequence_of[start], b"", time_of[last], ends,
                        time_of[start:stop], ends[-1], ack_of[last], lost_of[last]))  # fmt: skip
    return segments
