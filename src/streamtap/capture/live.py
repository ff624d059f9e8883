"""The live source: drained spans of the rings -> openings, segments and closings.

Order between the two rings. Positions of the data ring are noted around each look at the control
ring: an opening is handed on before the data that lies beyond the first mark, a closing after all
the data that lies before the second.
"""

import select
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.candidates import Candidates
from streamtap.capture.columns import headers_at, join
from streamtap.capture.foreign import Foreign
from streamtap.capture.kernel import Kernel
from streamtap.capture.layout import (
    CLOSED_RECORD,
    KIND_AT,
    OPENED_RECORD,
    ORPHAN_TUPLE,
    PROCESS_RECORD,
    SEGMENT_RECORD,
    RecordKind,
    Row,
)
from streamtap.capture.lives import Closing, Lives, Opening, Scoping
from streamtap.capture.openflow import OpenFlow, OpenFlows, flow_of
from streamtap.capture.orphans import Ends, Orphans
from streamtap.capture.resume import Before, Ledger, NoLedger, Remembered, find_flows, listed
from streamtap.model import Closed, Direction, Opened, Role, Scoped, Segment

Item = Opened | Segment | Closed | Scoped

SPAN_BYTES = 2 << 20  # read at a time: the space goes back to the kernel this often
ACTIVE_S = 0.015  # longer than the callouts' pause between wake-ups: a late record is not missed
LINGER_BYTES = 64 << 10  # fewer that came meanwhile wait for the next wake-up, or ACTIVE_S
IDLE_S = 0.5
AT_ONCE = 1024  # items that were made before the rings were read
CLOCK_S = 1.0  # how often the offset between the kernel's clock and Unix time is read again

_segment_row, _orphan_row = Row(SEGMENT_RECORD), Row(ORPHAN_TUPLE)
_opened_row, _closed_row = Row(OPENED_RECORD), Row(CLOSED_RECORD)
_process_row = Row(PROCESS_RECORD)


class LiveSource:
    """Reads the rings of attached callouts. `poll` waits and gives what came.

    Segments may be views of the ring: they are valid until `release`, or the next `poll`.
    names: the filters' names by bit; the caller may change them at any time.
    ledger: told of the flows that are open, for the reader that may follow this one.
    given_ns: everything older than this (Unix time) has been given.
    """

    def __init__(
        self, kernel: Kernel, names: Mapping[int, str], ledger: Ledger | None = None
    ) -> None:
        self._kernel = kernel
        self._ledger = ledger or NoLedger()
        self._names = names
        self._data, self._control = kernel.rings()
        self._epoll = select.epoll(2)
        for ring in (self._data, self._control):
            # Edge: a ring that still holds records must not turn the wait into a busy loop.
            self._epoll.register(ring.fd, select.EPOLLIN | select.EPOLLET)
        self._candidates = Candidates(kernel)
        self._foreign = Foreign()
        self._flows = OpenFlows()
        self._orphans = Orphans()
        self._lives = Lives()
        self._enabled = -1  # every filter
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
        if not self._lives and not self._early and unread < min(LINGER_BYTES, data.size // 16):
            # Soon after records there may be more that woke nobody. The few that came while we
            # were busy wait for company: a batch costs as much as a hundred records.
            wait_s = min(timeout_s, ACTIVE_S) if self._active or unread else timeout_s
            self._epoll.poll(wait_s)
        items = self.drain()
        self._active = bool(items)
        return items

    def wake_on(self, fd: int) -> None:
        """What can be read from this descriptor ends the wait of `poll` early."""
        self._epoll.register(fd, select.EPOLLIN)

    def release(self) -> None:
        """Views that `poll` gave are used no more: their space may be written again."""
        self._data.release()

    def skip(self) -> None:
        """What was read last is given up, for nobody can deal with it."""
        self._data.release()
        self._control.release()

    def drain(self) -> list[Item]:
        """What the rings hold now, at most a span of it."""
        due = self._read_clock()
        data = self._data
        now_ns = time.time_ns()
        before_control = data.produced
        items, self._early = self._early[:AT_ONCE], self._early[AT_ONCE:]
        if self._early:  # thousands of flows were taken over: nobody can take them all at once
            return items
        self._read_control(items)
        if due:
            self._make_up(items)
            self._foreign.forget(data.position)
        self._read_segments(before_control, items)
        if self._lives:
            self._live_on(items)
        if not self._lives and data.position >= before_control:
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
            not self._lives
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
            if length not in KIND_AT:  # not of these callouts
                continue
            record = ring.data[at : at + length]
            kind = record[KIND_AT[length]]
            if kind == RecordKind.OPENED:
                self._open(_opened_row.read(record), items)
            elif kind == RecordKind.CLOSED:
                self._end(_closed_row.read(record))
            else:
                self._candidates.meet(_process_row.read(record), kind)
            record.release()
        ring.release()

    def _make_up(self, items: list[Item]) -> None:
        """Where the control ring had no room for openings and closings: make them up from the
        kernel's list of the connections that are marked."""
        lost = self._kernel.counters()["control_lost"]
        if lost == self._control_lost:
            return
        self._control_lost = lost
        known_before = {flow.flow_id for flow in self._flows}
        open_now = set()
        for row in self._kernel.list_flows():
            record = listed(row, self._enabled)
            open_now.add(record["flow_id"])
            if record["filters"] | record["candidates"] and record["flow_id"] not in self._foreign:
                self._open(record, items)
        self._read_control(items)  # what ended meanwhile is told there; so is what is newer
        for flow_id in known_before - open_now:
            if self._lives.last(flow_id) is None:
                self._end({"flow_id": flow_id, "time_ns": time.monotonic_ns()})

    def _end(self, record: dict[str, Any]) -> None:
        """A flow has ended, once all that the ring holds now has been read."""
        flow_id = record["flow_id"]
        if self._lives.last(flow_id) is None:
            known = self._flows.get(flow_id)
            if known is None and flow_id not in self._foreign:
                return  # its data, if there was any, was passed over
            if known is not None and record["time_ns"] < known.time_ns:
                return  # of a life before this one, which nobody here saw
        if "flags" in record:
            self._ledger.ending(record)
        self._lives.add(self._data.produced, Closing(flow_id, record))

    def _open(self, record: dict[str, Any], items: list[Item]) -> None:
        """A flow is open, by an OPENED record or the kernel's list."""
        flow_id = record["flow_id"]
        waiting = self._lives.last(flow_id)
        if isinstance(waiting, Opening):
            waiting.record["filters"] |= record["filters"]
            waiting.record["candidates"] |= record["candidates"]
            return
        if waiting is not None:  # the socket connected again: first that has to end
            self._lives.add(self._data.produced, Opening(flow_id, record))
            return
        self._begin(record, items)

    def _begin(
        self,
        record: dict[str, Any],
        items: list[Item],
        before: Before | None = None,
    ) -> None:
        """before: another has read what passed."""
        flow_id, filters = record["flow_id"], record["filters"]
        if record["candidates"]:
            filters |= self._candidates.verdict_of(record)
        known = self._flows.get(flow_id)
        if known is not None:  # taken into one filter more; or made up before its record was read
            if self._lives.scopes(flow_id):
                self._lives.add(self._data.produced, Scoping(flow_id, add=filters))
            else:
                self._scope(known, known.filters | filters, items)
            return
        if not filters:
            self._foreign.add(flow_id, self._data.produced)
            return
        self._foreign.discard(flow_id)
        midstream = before is not None
        if before is None:
            before = Before(record["passed"], record["time_ns"])
        app = self._candidates.app_of(record, self._name_of(filters), before.path, before.cgroup)
        flow = flow_of(record, app, filters, before.since_ns + self._clock_ns, midstream=midstream)
        sent, passed, offsets = flow.sent, record["passed"], before.starts
        sequence = tuple(
            (first + start - base) & 0xFFFFFFFF
            for first, start, base in zip(record["sequence"], offsets, passed, strict=True)
        )
        local, remote = (0, 1) if sent is Direction.TO_SERVER else (1, 0)
        self._ledger.opened(record, flow)
        items.append(
            Opened(flow, (sequence[local], sequence[remote]), (offsets[local], offsets[remote]))
        )
        ends = Ends.of(record)
        self._flows.put(OpenFlow(flow_id, sent, passed, ends, filters, record["time_ns"]))
        if flow.role is Role.SERVER:
            items += self._orphans.claim(ends, flow_id)

    def _scope(self, flow: OpenFlow, filters: int, items: list[Item]) -> None:
        """A flow is in these filters from now on."""
        if filters != flow.filters:
            self._flows.put(flow._replace(filters=filters))
            self._ledger.scoped(flow.flow_id, filters)
            items.append(Scoped(flow.flow_id, time.time_ns(), filters, self._name_of(filters)))

    def _name_of(self, filters: int) -> str:
        return self._names.get((filters & -filters).bit_length() - 1, "")

    def _live_on(self, items: list[Item]) -> None:
        """The steps in the lives of flows that waited for what has been read by now."""
        for step in islice(self._lives.due(self._data.position), AT_ONCE):
            flow_id = step.flow_id
            if isinstance(step, Closing):
                self._close(step.record, items)
            elif isinstance(step, Scoping):
                flow = self._flows.get(flow_id)
                if flow is not None:
                    self._scope(flow, flow.filters & step.keep | step.add, items)
            else:
                self._begin(step.record, items)
                held = self._lives.begin(flow_id)
                if held is not None and flow_id in self._flows:
                    records, payloads, data = held
                    items += self._join(records, payloads, memoryview(data))

    def _close(self, record: dict[str, Any], items: list[Item]) -> None:
        flow_id = record["flow_id"]
        flow = self._flows.take(flow_id)
        if flow is None:
            self._foreign.discard(flow_id)
            return
        self._ledger.closed(flow_id)
        self._orphans.closed(flow.ends, flow_id)
        time_ns = record["time_ns"] + self._clock_ns
        if "range_length" in record:
            items += flow.ranges(record, time_ns)
        if "flags" in record:
            items.append(flow.closed(record, time_ns))
            return
        # Nobody told how it ended, or where the callouts let it go.
        reason = "end"
        if record.get("removed"):
            reason = "removed"
            # Until that was heard of there may have come more.
            self._foreign.add(flow_id, self._data.produced)
        items.append(Closed(flow_id, time_ns, reason))

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
        if self._lives.separates:
            mine = self._lives.hold(records, payloads, ring.data)
            records, payloads = records[mine], payloads[mine]
        if self._foreign:
            mine = self._foreign.others(records["flow_id"])
            records, payloads = records[mine], payloads[mine]
        if len(records):
            items += self._join(records, payloads, ring.data)

    def _join(
        self, records: NDArray[Any], payloads: NDArray[np.int64], data: memoryview
    ) -> list[Segment]:
        return join(records, payloads, data, self._flows.sent, self._clock_ns)

    def _take_orphan(self, record: memoryview, items: list[Item]) -> None:
        """Payload that came while there was only the listener: it belongs to the connection with
        the same ends, which is opened just before or just after."""
        header = _segment_row.read(record)
        at = SEGMENT_RECORD.itemsize
        ends = Ends.of(_orphan_row.read(record, at))
        segment = Segment(
            0,
            Direction.TO_SERVER,
            header["sequence"],
            bytes(record[at + ORPHAN_TUPLE.itemsize :]),
            header["time_ns"] + self._clock_ns,
            acknowledged=header["acknowledgment"],
        )
        items += self._orphans.add(ends, segment)

    # --- other filters, another reader -----------------------------------------------------------

    def retire(self, enabled: int) -> None:
        """Only the filters of the mask are in force. Flows of none of them are closed, others left
        to fewer, once all that the ring holds now has been read."""
        self._read_control(self._early)  # what was opened under those that have gone
        self._enabled = enabled
        self._lives.narrow(enabled)
        leaving = [flow for flow in self._flows if flow.filters & ~enabled]
        if not leaving:
            return
        standing = self.standing()
        for flow in leaving:
            flow_id = flow.flow_id
            if flow.filters & enabled:
                self._lives.add(self._data.produced, Scoping(flow_id, keep=enabled))
            elif self._lives.last(flow_id) is None:
                row = standing.get(flow_id, {})
                gone = {"flow_id": flow_id, "time_ns": time.monotonic_ns(), "removed": True}
                self._lives.add(self._data.produced, Closing(flow_id, row | gone))

    def resume(self, enabled: int = -1, remembered: Iterable[Remembered] = ()) -> None:
        """To be called before the first `poll` where another has read the rings before: the flows
        that are open are opened, midstream, where what it left unread begins. So are those that it
        has told of and that have ended since, and then closed.

        enabled: mask of the filters in force. remembered: what the other one's ledger holds.
        """
        self._read_clock()
        self._enabled = enabled
        self._control_lost = self._kernel.counters()["control_lost"]
        listing = self._kernel.list_flows()
        found = find_flows(listing, remembered, self._control, self._data, enabled)
        for record, before in found.begin:
            self._begin(record, self._early, before)
        for flow_id, closed in found.ended:
            if closed is not None:
                self._lives.add(self._data.produced, Closing(flow_id, closed))
        self.retire(enabled)  # and what the control ring tells
        for flow_id, _ in found.ended:
            if self._lives.last(flow_id) is None:
                self._end({"flow_id": flow_id, "time_ns": time.monotonic_ns()})
        for record in found.again:
            self._open(record, self._early)

    # --- the end ---------------------------------------------------------------------------------

    def standing(self) -> dict[int, dict[str, Any]]:
        """How the connections that are open stand, by flow; to be asked for before the last drain,
        and given to `finish` after it."""
        names = ("totals", "range_sequence", "range_length", "lost_segments")
        return {
            int(row["opened"]["flow_id"]): {name: tuple(row[name].tolist()) for name in names}
            for row in self._kernel.list_flows()
        }

    def finish(self, standing: Mapping[int, dict[str, Any]]) -> Iterator[Item]:
        """Closings for the flows that are still open, with the kernel's totals; before each, what
        was counted of it and not told yet."""
        now_ns = time.time_ns()
        for flow in self._flows:
            self._ledger.closed(flow.flow_id)
            row = standing.get(flow.flow_id)
            if row is None:
                yield Closed(flow.flow_id, now_ns, "end")
                continue
            yield from flow.ranges(row, now_ns)
            yield flow.left(row, now_ns)

    def close(self) -> None:
        self._epoll.close()
        self._data.close()
        self._control.close()
