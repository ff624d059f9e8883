"""Python mirror of `bpf/callout.h`: one NumPy dtype a struct, one enum an enum.

The header is the truth; `tests/capture/test_layout.py` compares the two through the BTF of the
built object. A dtype reads whole columns; `Row` reads a single record without NumPy's overhead.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

ABI = 2
COMM_LENGTH = 16
NAME_LENGTH = 64


class RecordKind(IntEnum):
    SEGMENT = 1
    ORPHAN = 2
    OPENED = 3
    CLOSED = 4
    OWNER = 5
    EXEC = 6


class ScopeUse(IntFlag):
    COMM = 1
    UID = 2
    CGROUP = 4


class FlowFlag(IntFlag):
    ACTIVE = 1
    MIDSTREAM = 2
    OPENED = 4
    MULTIPATH = 8
    SYN_SENT = 16
    FIN_SENT = 32
    FIN_RECEIVED = 64
    RESET = 128
    CLOSED = 256


class ProcessFlag(IntFlag):
    ANNOUNCED = 1
    EXISTING = 2
    SCRIPT = 4


SEGMENT_RECORD = np.dtype(
    [
        ("flow_id", "<u8"),
        ("time_ns", "<u8"),
        ("sequence", "<u4"),
        ("acknowledgment", "<u4"),
        ("length", "<u4"),
        ("captured", "<u4"),
        ("lost", "<u4"),
        ("tcp_flags", "<u2"),
        ("kind", "u1"),
        ("direction", "u1"),
    ]
)
ORPHAN_TUPLE = np.dtype(
    [
        ("space", "<u8"),
        ("local", "V16"),
        ("remote", "V16"),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("family", "u1"),
        ("reserved", "V3"),
    ]
)
OPENED_RECORD = np.dtype(
    [
        ("flow_id", "<u8"),
        ("time_ns", "<u8"),
        ("space", "<u8"),
        ("process_id", "<u8"),
        ("filters", "<u8"),
        ("candidates", "<u8"),
        ("cgroup_id", "<u8"),
        ("passed", "<u8", (2,)),
        ("sequence", "<u4", (2,)),
        ("pid", "<u4"),
        ("uid", "<u4"),
        ("flags", "<u4"),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("local", "V16"),
        ("remote", "V16"),
        ("comm", "V16"),
        ("family", "u1"),
        ("kind", "u1"),
        ("reserved", "V6"),
    ]
)
CLOSED_RECORD = np.dtype(
    [
        ("flow_id", "<u8"),
        ("time_ns", "<u8"),
        ("bytes_acked", "<u8"),
        ("bytes_received", "<u8"),
        ("seen", "<u8", (2,)),
        ("captured", "<u8", (2,)),
        ("lost", "<u8", (2,)),
        ("counted", "<u8", (2,)),
        ("range_sequence", "<u4", (2,)),
        ("range_length", "<u4", (2,)),
        ("origin", "<u4", (2,)),
        ("fin", "<u4", (2,)),
        ("lost_segments", "<u4", (2,)),
        ("snd_una", "<u4"),
        ("snd_nxt", "<u4"),
        ("rcv_nxt", "<u4"),
        ("flags", "<u4"),
        ("kind", "u1"),
        ("old_state", "u1"),
        ("reserved", "V6"),
    ]
)
PROCESS_RECORD = np.dtype(
    [
        ("process_id", "<u8"),
        ("time_ns", "<u8"),
        ("inode", "<u8"),
        ("candidates", "<u8"),
        ("device", "<u4"),
        ("pid", "<u4"),
        ("uid", "<u4"),
        ("flags", "<u4"),
        ("path_length", "<u4"),
        ("filename_length", "<u4"),
        ("arguments_length", "<u4"),
        ("reserved_word", "<u4"),
        ("comm", "V16"),
        ("kind", "u1"),
        ("reserved", "V7"),
        ("path", "V2304"),
        ("filename", "V512"),
        ("arguments", "V2048"),
    ]
)
APP_KEY = np.dtype([("inode", "<u8"), ("device", "<u4"), ("reserved", "<u4")])
PROCESS = np.dtype(
    [
        ("process_id", "<u8"),
        ("executable", "<u8"),
        ("inherited", "<u8"),
        ("own", "<u8"),
        ("candidates", "<u8"),
        ("scripts", "<u8"),
        ("flags", "<u4"),
        ("reserved", "<u4"),
    ]
)
POLICY = np.dtype([("mode", "<u4"), ("head", "<u4")])
SETTINGS = np.dtype(
    [
        ("enabled", "<u8"),
        ("ask", "<u8"),
        ("wake_ns", "<u8"),
        ("woken_ns", "<u8"),
        ("known", "<u8"),
        ("seeding", "<u8"),
        ("build", "<u8"),
        ("missed", "<u8"),
        ("use", "<u4"),
        ("policy_epoch", "<u4"),
        ("ring_bytes", "<u4"),
        ("wake_bytes", "<u4"),
        ("mode", "<u4"),
        ("head", "<u4"),
        ("new_only", "<u4"),
        ("abi", "<u4"),
        ("tracked", "<u4"),
        ("marked", "<u4"),
        ("paused", "<u4"),
        ("reserved", "<u4"),
    ]
)
COUNTERS = np.dtype(
    [
        ("segments", "<u8"),
        ("seen_bytes", "<u8"),
        ("captured_bytes", "<u8"),
        ("counted_bytes", "<u8"),
        ("lost_segments", "<u8"),
        ("lost_bytes", "<u8"),
        ("control_lost", "<u8"),
        ("marks_lost", "<u8"),
    ]
)
FLOW_LISTING = np.dtype(
    [
        ("opened", OPENED_RECORD),
        ("seen", "<u8", (2,)),
        ("captured", "<u8", (2,)),
        ("lost", "<u8", (2,)),
        ("totals", "<u8", (2,)),
        ("range_sequence", "<u4", (2,)),
        ("range_length", "<u4", (2,)),
        ("lost_segments", "<u4", (2,)),
        ("state", "<u4"),
        ("mode", "<u4"),
    ]
)

KIND_AT = {  # offset of `kind` in records of the control ring, by their length
    dtype.itemsize: int(dtype.fields["kind"][1])  # type: ignore[index]
    for dtype in (OPENED_RECORD, CLOSED_RECORD, PROCESS_RECORD)
}


class Row:
    """Single records of a dtype as named values, read and written; arrays of two are tuples."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        codes, counts = ["<"], []
        assert dtype.names is not None
        for name in dtype.names:
            field = dtype[name]
            base, count = field.base, int(np.prod(field.shape, dtype=int))
            if base.kind == "V":
                codes.append(f"{base.itemsize}s")
            else:
                codes.append({1: "B", 2: "H", 4: "I", 8: "Q"}[base.itemsize] * count)
            counts.append(1 if base.kind == "V" else count)
        self._struct = struct.Struct("".join(codes))
        self._names = dtype.names
        self._values = itemgetter(*dtype.names)
        # Runs of fields of one value, and arrays: whether it is one, where it is in the values of
        # the struct, and in those by name.
        self._runs: list[tuple[bool, int, int, int, int]] = []
        at = 0
        for is_array, group in groupby(enumerate(counts), lambda field: field[1] > 1):
            fields = list(group)
            for part in [[field] for field in fields] if is_array else [fields]:
                first, length = part[0][0], sum(count for _, count in part)
                self._runs.append((is_array, at, at + length, first, first + len(part)))
                at += length
        self.size = self._struct.size
        assert self.size == dtype.itemsize

    def read(self, data: bytes | memoryview, at: int = 0) -> dict[str, Any]:
        values = self._struct.unpack_from(data, at)
        given: list[Any] = []
        for is_array, start, stop, _, _ in self._runs:
            if is_array:
                given.append(values[start:stop])
            else:
                given += values[start:stop]
        return dict(zip(self._names, given, strict=True))

    def write(self, values: Mapping[str, Any]) -> bytes:
        """The record that `read` gives these of."""
        named = self._values(values)
        given: list[Any] = []
        for is_array, _, _, start, stop in self._runs:
            given += named[start] if is_array else named[start:stop]
        return self._struct.pack(*given)
