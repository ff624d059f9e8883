"""A ring buffer in a memfd, written as the kernel would: for tests without the kernel."""

import mmap
import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.layout import (
    CLOSED_RECORD,
    FLOW_LISTING,
    OPENED_RECORD,
    SEGMENT_RECORD,
    RecordKind,
)

BUSY = 1 << 31
DISCARDED = 1 << 30


class FakeRing:
    """The writing end; `fd` is what a `Ring` of the same size maps."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * size)
        self._memory = mmap.mmap(self.fd, 2 * mmap.PAGESIZE + 2 * size)
        self.produced = 0

    def write(self, data: bytes, flags: int = 0) -> int:
        """Adds a record; gives its position, for `finish`."""
        at = self.produced
        self._put(at, struct.pack("<II", len(data) | flags, 0) + data)
        self.produced += (len(data) + 15) & ~7
        self._memory[mmap.PAGESIZE : mmap.PAGESIZE + 8] = struct.pack("<Q", self.produced)
        return at

    def finish(self, position: int) -> None:
        """Takes the mark of a record still being written away."""
        base = 2 * mmap.PAGESIZE + position % self.size
        (header,) = struct.unpack_from("<I", self._memory, base)
        self._put(position, struct.pack("<I", header & ~BUSY))

    def _put(self, position: int, data: bytes) -> None:
        for copy in (0, self.size):  # the data lies there twice; what passes the end wraps
            for index in range(0, len(data), 8):
                at = (position + index) % self.size + copy
                piece = data[index : index + 8]
                base = 2 * mmap.PAGESIZE + at
                self._memory[base : base + len(piece)] = piece

    @property
    def consumed(self) -> int:
        return int(struct.unpack_from("<Q", self._memory, 0)[0])

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


def segment_record(
    flow_id: int = 1, direction: int = 0, sequence: int = 0, data: bytes = b"", *,
    time_ns: int = 0, length: int | None = None, lost: int = 0, acknowledgment: int = 0,
) -> bytes:  # fmt: skip
    record = np.zeros(1, SEGMENT_RECORD)
    values = {
        "flow_id": flow_id, "direction": direction, "sequence": sequence, "time_ns": time_ns,
        "length": len(data) if length is None else length, "captured": len(data), "lost": lost,
        "acknowledgment": acknowledgment, "kind": RecordKind.SEGMENT,
    }  # fmt: skip
    for name, value in values.items():
        record[name] = value
    return record.tobytes() + data


def opened_record(
    flow_id: int = 1, *, active: bool = True, filters: int = 1, candidates: int = 0, pid: int = 42,
    time_ns: int = 0,
) -> bytes:  # fmt: skip
    record = np.zeros(1, OPENED_RECORD)
    record["flow_id"], record["flags"], record["filters"] = flow_id, int(active), filters
    record["candidates"], record["process_id"] = candidates, 1000 + pid
    record["family"], record["kind"], record["pid"] = 4, RecordKind.OPENED, pid
    record["time_ns"] = time_ns
    record["local_port"], record["remote_port"] = 5000 + flow_id, 80
    record["local"] = record["remote"] = b"\x7f\0\0\x01" + bytes(12)
    record["comm"] = b"program" + bytes(9)
    return record.tobytes()


def closed_record(flow_id: int = 1, *, sent: int = 0, time_ns: int = 0) -> bytes:
    record = np.zeros(1, CLOSED_RECORD)
    record["flow_id"], record["kind"] = flow_id, RecordKind.CLOSED
    record["time_ns"] = time_ns
    record["bytes_acked"] = sent
    record["snd_nxt"] = record["snd_una"] = sent & 0xFFFFFFFF
    return record.tobytes()


def listing(
    flow_id: int = 1, *, totals: tuple[int, int] = (0, 0), sequence: tuple[int, int] = (0, 0),
    passed: tuple[int, int] = (0, 0), filters: int = 1, counted: tuple[int, int] = (0, 0),
) -> NDArray[Any]:  # fmt: skip
    """(1,) FLOW_LISTING; sequence: of the byte at `passed`; counted: sequence and length of what
    grows in the context of what was sent."""
    row = np.zeros(1, FLOW_LISTING)
    row["opened"] = np.frombuffer(opened_record(flow_id, filters=filters), OPENED_RECORD)
    row["opened"]["sequence"], row["opened"]["passed"] = sequence, passed
    row["totals"] = totals
    row["range_sequence"][0, 0], row["range_length"][0, 0] = counted
    return row
