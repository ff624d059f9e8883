"""The live source: drained spans of the rings -> openings, segments and closings.

Order between the two rings. Positions of the data ring are noted around each look at the control
ring: an opening is handed on before the data that lies beyond the first mark, a closing after all
the data that lies before the second.
"""

import os
import select
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from streamtap.capture.columns import headers_at, join
from streamtap.capture.kernel import Candidate, Kernel
from streamtap.capture.layout import (
    CLOSED_RECORD,
    COMM_LENGTH,
    OPENED_RECORD,
    ORPHAN_TUPLE,
    PROCESS_RECORD,
    SEGMENT_RECORD,
    FlowFlag,
    ProcessFlag,
    RecordKind,
    Row,
)
from streamtap.capture.orphans import Ends, Orphans
from streamtap.capture.totals import kernel_totals
from streamtap.model import App, Closed, Direction, Endpoint, Flow, Opened, Role, Segment

Item = Opened | Segment | Closed

SPAN_BYTES = 2 << 20  # read at a time: the space goes back to the kernel this often
ACTIVE_S = 0.015  # longer than the callouts' pause between wake-ups: a late record is not missed
LINGER_BYTES = 64 << 10  # fewer that came meanwhile wait for the next wake-up, or ACTIVE_S
IDLE_S = 0.5
REMEMBERED = 16_384  # processes: what they are called, and whether they match
FOREIGN = 4096  # flows found to be out of scope, which the ring may hold segments of
CLOCK_S = 1.0  # how often the offset between the kernel's clock and Unix time is read again

_segment_row, _orphan_row = Row(SEGMENT_RECORD), Row(ORPHAN_TUPLE)
_opened_row, _closed_row = Row(OPENED_RECORD), Row(CLOSED_RECORD)
_process_row = Row(PROCESS_RECORD)
_KIND_AT = {  # offset of `kind`, by length of the record
    OPENED_RECORD.itemsize: OPENED_RECORD.fields["kind"][1],  # type: ignore[index]
    CLOSED_RECORD.itemsize: CLOSED_RECORD.fields["kind"][1],  # type: ignore[index]
    PROCESS_RECORD.itemsize: PROCESS_RECORD.fields["kind"][1],  # type: ignore[index]
}
_MAPPED = b"\0" * 10 + b"\xff\xff"


class _Known(NamedTuple):
    """What the source keeps of an open flow."""

    sent: Direction
    passed: tuple[int, int]
    ends: Ends


class LiveSource:
    """Reads the rings of attached callouts. `poll` waits and gives what came.

    Segments may be views of the ring: they are valid until `release`, or the next `poll`.
    names: the filters' names by bit.
    given_ns: everything older than this (Unix time) has been given.
    """

    def __init__(self, kernel: Kernel, names: Mapping[int, str]) -> None:
        self._kernel = kernel
        self._names = names
        self._data, self._control = kernel.rings()
        self._epoll = select.epoll(2)
        for ring in (self._data, self._control):
            # Edge: a ring that still holds records must not turn the wait into a busy loop.
            self._epoll.register(ring.fd, select.EPOLLIN | select.EPOLLET)
        self._paths: OrderedDict[int, str] = OrderedDict()
        self._verdicts: OrderedDict[int, int] = OrderedDict()
        # Flow -> up to where the ring may hold segments of it: the callouts drop what comes later.
        self._foreign: OrderedDict[int, int] = OrderedDict()
        self._passed = 0  # position in the data ring when the clock was last read
        self._known: dict[int, _Known] = {}
        self._sent: dict[int, Direction] = {}
        self._passive: dict[Ends, int] = {}
        self._orphans = Orphans()
        self._closing: deque[tuple[int, dict[str, Any]]] = deque()
        self._early: list[Item] = []
        self._clock_ns = 0
        self._clock_due = 0.0
        self._active = True
        self._control_lost = 0
        self.records = 0
        self.given_ns = 0

    def poll(self, timeout_s: float = IDLE_S) -> list[Item]:
        """Waits at most `timeout_s` for records; then everything that came, in order per flow:
        openings first, closings last."""
        self.release()
        data = self._data
        unread = data.produced - data.position
        if not self._closing and unread < min(LINGER_BYTES, data.size // 16):
            # Soon after records there may be more that woke nobody. The few that came while we
            # were busy wait for company: a batch costs as much as a hundred records.
            wait_s = min(timeout_s, ACTIVE_S) if self._active or unread else timeout_s
            self._epoll.poll(wait_s)
        items = self.drain()
        self._active = bool(items)
        return items

    def release(self) -> None:
        """Views that `poll` gave are used no more: their space may be written again."""
        self._data.release()

    def drain(self) -> list[Item]:
        """What the rings hold now, at most a span of it."""
        due = self._read_clock()
        data = self._data
        now_ns = time.time_ns()
        before_control = data.produced
        items, self._early = self._early, []
        self._read_control(items)
        if due:
            self._make_up(items)
            self._forget_foreign()
        self._read_segments(before_control, items)
        while self._closing and data.position >= self._closing[0][0]:
            self._close(self._closing.popleft()[1], items)
        if not self._closing and data.position >= before_control:
            self.given_ns = now_ns
        return items

    def drain_control(self) -> None:
        """Decide on the candidates that wait; what else the control ring holds stays for `poll`."""
        self._read_clock()
        self._read_control(self._early)

    @property
    def orphans_lost(self) -> int:
        """Payloads that came with a listener and could not be kept for their connection."""
        return self._orphans.lost

    @property
    def is_drained(self) -> bool:
        return (
            not self._closing
            and not self._early
            and self._data.position >= self._data.produced
            and self._control.position >= self._control.produced
        )

    def _read_clock(self) -> bool:
        """True at most once in `CLOCK_S`: the time to look after other things too."""
        now = time.monotonic()
        if now < self._clock_due:
            return False
        self._clock_due = now + CLOCK_S
        self._clock_ns = time.time_ns() - time.monotonic_ns()
        return True

    # --- the control ring ------------------------------------------------------------------------

    def _read_control(self, items: list[Item]) -> None:
        ring = self._control
        for at, length in ring.read(ring.produced, ring.size):
            record = ring.data[at : at + length]
            kind = record[_KIND_AT[length]]
            if kind == RecordKind.OPENED:
                self._open(_opened_row.read(record), items)
            elif kind == RecordKind.CLOSED:
                self._closing.append((self._data.produced, _closed_row.read(record)))
            else:
                self._meet(_process_row.read(record), kind)
            record.release()
        ring.release()

    def _make_up(self, items: list[Item]) -> None:
        """Where the control ring had no room for openings and closings: make them up from the
        kernel's list of the connections that are marked."""
        lost = self._kernel.counters()["control_lost"]
        if lost == self._control_lost:
            return
        self._control_lost = lost
        known_before = set(self._known)
        open_now = set()
        for row in self._kernel.list_flows():
            record = _opened_row.read(row["opened"].tobytes())
            open_now.add(record["flow_id"])
            if record["flow_id"] not in self._foreign:
                self._open(record, items)
        self._read_control(items)  # what ended meanwhile is told there; so is what is newer
        closing = {record["flow_id"] for _, record in self._closing}
        for flow_id in known_before - open_now - closing:
            self._closing.append((self._data.produced, {"flow_id": flow_id}))

    def _forget_foreign(self) -> None:
        """Once all that the ring held of them has long been passed."""
        for flow_id, until in list(self._foreign.items()):
            if until <= self._passed:
                del self._foreign[flow_id]
        self._passed = self._data.position

    def _meet(self, record: dict[str, Any], kind: int) -> None:
        process_id = record["process_id"]
        path = _path(record["path"][: record["path_length"]])
        _remember(self._paths, process_id, path)
        if kind != RecordKind.EXEC:
            return
        self._decide(
            Candidate(
                process_id,
                record["candidates"],
                record["pid"],
                path,
                os.fsdecode(record["filename"][: record["filename_length"]].rstrip(b"\0")),
                record["arguments"][: record["arguments_length"]],
                bool(record["flags"] & ProcessFlag.EXISTING),
            )
        )

    def _decide(self, candidate: Candidate) -> int:
        verdict = self._kernel.decide(candidate)
        _remember(self._verdicts, candidate.process_id, verdict)
        return verdict

    def _verdict_of(self, record: dict[str, Any]) -> int:
        """The filters that the process of an OPENED record does match. Where its own record was
        lost, or so many came since that it is forgotten, /proc is asked."""
        known = self._verdicts.get(record["process_id"])
        if known is not None:
            return known & int(record["candidates"])
        path = self._path_of(record)
        return self._decide(
            Candidate(
                record["process_id"], record["candidates"], record["pid"], path, "", b"", True
            )
        )

    def _path_of(self, record: dict[str, Any]) -> str:
        """The program of an OPENED record."""
        path = self._paths.get(record["process_id"])
        if path is None:  # its record was lost with the control ring full
            path = self._kernel.program_of(record["pid"])
        return path

    def _open(self, record: dict[str, Any], items: list[Item]) -> None:
        flow_id = record["flow_id"]
        if flow_id in self._known:  # made up before its record was read
            return
        filters = record["filters"]
        if record["candidates"]:
            filters |= self._verdict_of(record)
        if not filters:
            _remember(self._foreign, flow_id, self._data.produced, FOREIGN)
            return
        flags = record["flags"]
        role = Role.CLIENT if flags & FlowFlag.ACTIVE else Role.SERVER
        flow = self._flow(record, filters, role)
        sent = flow.sent
        local, remote = (0, 1) if sent is Direction.TO_SERVER else (1, 0)
        sequence, passed = record["sequence"], record["passed"]
        items.append(
            Opened(flow, (sequence[local], sequence[remote]), (passed[local], passed[remote]))
        )
        ends = Ends.of(record)
        self._known[flow_id] = _Known(sent, passed, ends)
        self._sent[flow_id] = sent
        if role is Role.SERVER:
            self._passive[ends] = flow_id
            items += self._orphans.claim(ends, flow_id)

    def _flow(self, record: dict[str, Any], filters: int, role: Role) -> Flow:
        app = App(
            self._path_of(record),
            record["pid"],
            record["comm"][:COMM_LENGTH].split(b"\0")[0].decode("utf-8", "backslashreplace"),
            record["uid"],
            self._kernel.cgroup_path(record["cgroup_id"]),
            self._names.get((filters & -filters).bit_length() - 1, ""),
        )
        return Flow(
            record["flow_id"],
            app,
            Endpoint(_address(record["local"], record["family"]), record["local_port"]),
            Endpoint(_address(record["remote"], record["family"]), record["remote_port"]),
            role,
            record["time_ns"] + self._clock_ns,
            bool(record["flags"] & FlowFlag.MIDSTREAM),
            record["space"],
        )

    def _close(self, record: dict[str, Any], items: list[Item]) -> None:
        flow_id = record["flow_id"]
        known = self._known.pop(flow_id, None)
        self._sent.pop(flow_id, None)
        if known is None:
            self._foreign.pop(flow_id, None)
            return
        if self._passive.get(known.ends) == flow_id:
            del self._passive[known.ends]
        if "flags" not in record:  # made up: nobody told how it ended
            items.append(Closed(flow_id, time.time_ns(), "end"))
            return
        time_ns = record["time_ns"] + self._clock_ns
        items += _ranges(flow_id, known, record, time_ns)
        flags = record["flags"]
        finished = flags & FlowFlag.FIN_SENT and flags & FlowFlag.FIN_RECEIVED
        items.append(
            Closed(
                flow_id,
                time_ns,
                "fin" if finished else "rst",
                _by_direction(known, kernel_totals(record, known.passed)),
                _by_direction(known, record["lost_segments"]),
            )
        )

    # --- the data ring ---------------------------------------------------------------------------

    def _read_segments(self, until: int, items: list[Item]) -> None:
        ring = self._data
        offsets = ring.find(until, SPAN_BYTES)
        if not len(offsets):
            return
        self.records += len(offsets)
        records = headers_at(ring.words, offsets)
        payloads = offsets + SEGMENT_RECORD.itemsize
        orphans = records["kind"] != RecordKind.SEGMENT
        if orphans.any():
            for at in offsets[orphans].tolist():
                self._take_orphan(ring.data[at : at + ring.length_at(at)], items)
            records, payloads = records[~orphans], payloads[~orphans]
        if self._foreign:
            mine = ~np.isin(records["flow_id"], list(self._foreign))
            records, payloads = records[mine], payloads[mine]
        if len(records):
            items += join(records, payloads, ring.data, self._sent, self._clock_ns)

    def _take_orphan(self, record: memoryview, items: list[Item]) -> None:
        """Payload that came while there was only the listener: it belongs to the connection with
        the same ends, which is opened just before or just after."""
        header = _segment_row.read(record)
        at = SEGMENT_RECORD.itemsize
        ends = Ends.of(_orphan_row.read(record, at))
        flow_id = self._passive.get(ends)
        segment = Segment(
            flow_id or 0,
            Direction.TO_SERVER,
            header["sequence"],
            bytes(record[at + ORPHAN_TUPLE.itemsize :]),
            header["time_ns"] + self._clock_ns,
            acknowledged=header["acknowledgment"],
        )
        if flow_id is None:
            self._orphans.add(ends, segment)
        else:
            items.append(segment)

    # --- the end ---------------------------------------------------------------------------------

    def standing(self) -> dict[int, dict[str, Any]]:
        """How the connections that are open stand, by flow; to be asked for before the last drain,
        and given to `finish` after it."""
        names = ("totals", "range_sequence", "range_length", "lost_segments")
        return {
            int(row["opened"]["flow_id"]): {name: tuple(row[name].tolist()) for name in names}
            for row in self._kernel.list_flows()
        }

    def finish(self, standing: Mapping[int, dict[str, Any]]) -> list[Item]:
        """Closings for the flows that are still open, with the kernel's totals; before each, what
        was counted of it and not told yet."""
        now_ns = time.time_ns()
        items: list[Item] = []
        for flow_id, known in self._known.items():
            row = standing.get(flow_id)
            if row is None:
                items.append(Closed(flow_id, now_ns, "end"))
                continue
            items += _ranges(flow_id, known, row, now_ns)
            totals, lost = (_by_direction(known, row[name]) for name in ("totals", "lost_segments"))
            items.append(Closed(flow_id, now_ns, "end", totals, lost))
        return items

    def close(self) -> None:
        self._epoll.close()
        self._data.close()
        self._control.close()


def _by_direction(known: _Known, sent_received: tuple[int, int]) -> tuple[int, int]:
    sent, received = sent_received
    return (sent, received) if known.sent is Direction.TO_SERVER else (received, sent)


def _ranges(flow_id: int, known: _Known, record: dict[str, Any], time_ns: int) -> list[Segment]:
    """The counted ranges that grow in the flow's context still."""
    return [
        Segment(
            flow_id,
            known.sent if side == 0 else known.sent.opposite,
            record["range_sequence"][side],
            b"",
            time_ns,
            counted=record["range_length"][side],
            lost=record["lost_segments"][side],
        )
        for side in (0, 1)
        if record["range_length"][side]
    ]


def _path(components: bytes) -> str:
    """A path from its components, leaf first, each ended by a zero byte."""
    parts = components.rstrip(b"\0").split(b"\0")
    return os.fsdecode(b"/" + b"/".join(reversed(parts)))


def _remember(table: OrderedDict[int, Any], key: int, value: Any, most: int = REMEMBERED) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)


def _address(raw: bytes, family: int) -> str:
    """As text; the mapped address of an IPv4 peer as IPv4, which is what went over the wire."""
    if family == 6 and not raw.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET6, raw)
    return socket.inet_ntop(socket.AF_INET, raw[:4] if family == 4 else raw[-4:])
