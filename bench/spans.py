"""A ring in memory, filled as the callouts fill theirs, and the batches that come of it."""

import mmap
import os
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.columns import headers_at, join
from streamtap.capture.layout import SEGMENT_RECORD, RecordKind
from streamtap.capture.ring import Ring
from streamtap.model import App, Direction, Endpoint, Flow, Opened, Role, Segment

TIME_NS = 1_700_000_000_000_000_000
STEP_NS = 5_000  # between two messages of the whole machine
Words = tuple[bytes, bytes]  # what a client says, and what it is answered


class Span:
    """A ring that holds a conversation of many clients at once: each speaks and is answered.

    turns: what is said on every connection, in order. Reading it again begins anew.
    """

    def __init__(self, connections: int, turns: Sequence[Words]) -> None:
        records = b"".join(_records(connections, turns))
        self.messages = 2 * connections * len(turns)
        self.flows = range(1, connections + 1)
        size = 1 << max(16, (len(records) - 1).bit_length())
        self._fd = os.memfd_create("bench-span")
        page = mmap.PAGESIZE
        os.ftruncate(self._fd, 2 * page + 2 * size)
        os.pwrite(self._fd, struct.pack("<Q", len(records)), page)
        os.pwrite(self._fd, records, 2 * page)
        self.ring = Ring(self._fd, size)

    def find(self) -> NDArray[np.int64]:
        """What `Ring.find` gives of all of it."""
        self.ring.position = 0
        return self.ring.find(self.ring.produced, self.ring.size)

    def segments(self, offsets: NDArray[np.int64]) -> list[Segment]:
        """What `columns.join` makes of records."""
        records = headers_at(self.ring.words, offsets)
        payloads = offsets + SEGMENT_RECORD.itemsize
        sent = dict.fromkeys(self.flows, Direction.TO_SERVER)
        return join(records, payloads, self.ring.data, sent, 0)

    def batches(self, records: int) -> Iterator[list[Segment]]:
        """The segments, so many records at a time, as they come when the source is polled."""
        found = self.find()
        for at in range(0, len(found), records):
            yield self.segments(found[at : at + records])

    def openings(self) -> list[Opened]:
        return [opening(flow_id) for flow_id in self.flows]

    def close(self) -> None:
        self.ring.close()
        os.close(self._fd)


def opening(flow_id: int) -> Opened:
    """A client's connection whose first byte in each direction has the number 0."""
    app = App("/usr/bin/chat", 4000, "chat", 1000, "", "chat")
    local, remote = Endpoint("127.0.0.1", 10_000 + flow_id), Endpoint("127.0.0.1", 1863)
    flow = Flow(flow_id, app, local, remote, Role.CLIENT, TIME_NS)
    return Opened(flow, (0, 0))


def _records(connections: int, turns: Sequence[Words]) -> Iterator[bytes]:
    time_ns = TIME_NS
    sequences = [0, 0]
    record = np.zeros(1, SEGMENT_RECORD)
    for words in turns:
        for direction, data in enumerate(words):
            for flow_id in range(1, connections + 1):
                time_ns += STEP_NS
                record["flow_id"], record["time_ns"] = flow_id, time_ns
                record["sequence"] = sequences[direction]
                record["acknowledgment"] = sequences[1 - direction]
                record["length"] = record["captured"] = len(data)
                record["tcp_flags"] = 0x18
                record["kind"], record["direction"] = RecordKind.SEGMENT, direction
                whole = record.tobytes() + data
                yield struct.pack("<II", len(whole), 0) + whole + bytes(-len(whole) % 8)
            sequences[direction] += len(data)
