"""Runs of a capture -> openings, segments and closings: which connection they belong to, who is
its client, when it begins and when it is over.

Python sees a connection once for each batch that it speaks in, not once for each packet. Packets
that begin or end a connection go one by one.
"""

import socket
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamtap.capture.packets import ACK, FIN, RST, SYN
from streamtap.capture.runs import Payload, Runs, Strands
from streamtap.model import App, Closed, Direction, Endpoint, Flow, Opened, Role, Segment

Item = Opened | Segment | Closed

LINGER_NS = 2_000_000_000  # late packets of a connection that has ended may still come
FORGOTTEN_NS = 120_000_000_000  # an ended connection is known so long: twice a usual TIME_WAIT
ENDED = 32_768  # ended connections that are known
BEHIND = 1 << 20  # how far before its first segment a stream joined midstream may begin
MAX_FLOWS = 65_536
# Servers' ports above 1023. Of two ends whose beginning was not seen, the one with such a port, or
# one below 1024, is taken for the server; where both have one, or neither, the lower one.
SERVER_PORTS = frozenset(
    (
        *(1863, 5050, 5190, 5222, 5223, 5269, *range(6660, 6670), 6697, 6891, 6901),
        *(1080, 3128, 5060, 5061, 8000, 8008, 8080, 8081, 8443, 8888, 9050),
        *(1433, 1521, 3306, 3389, 5432, 5900, 6379, 9092, 9200, 11211, 27017),
    )
)
LATE = "packets that came after their connection had ended"
UNANSWERED = "attempts to connect that came to nothing"
FORGED = "resets from outside of the window"
STRAY = "ends of connections that were not seen"
_MASK = 0xFFFF_FFFF
_HALF = 1 << 31
_RECEIVED, _SENT = 1, 2  # `Strands.way`
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
_Key = tuple[int, int]


class Connection:
    """A connection as the capture shows it. Lists are indexed by `Direction`.

    client_high: its client is the higher of the two ends.
    sequences: of the first byte, None where it is not known; next: of the byte expected next.
    fins: of the byte behind the last one. acks: the last acknowledgement that each gave, or -1.
    ragged: segments came out of order, so that acknowledgements alone may tell of a gap.
    challenge: the number of a SYN that begins it anew, if the other end agrees; or -1.
    told: its opening was. reason: how it ended, "" if it has not.
    """

    __slots__ = (
        "acks",
        "challenge",
        "client_high",
        "ended_ns",
        "fins",
        "flow_id",
        "last_ns",
        "midstream",
        "next",
        "opened_ns",
        "ragged",
        "reason",
        "sequences",
        "strand",
        "told",
    )

    def __init__(self, flow_id: int, strand: "_Strand", *, client_high: bool, midstream: bool):
        self.flow_id = flow_id
        self.strand = strand  # whose first packet it was
        self.client_high = client_high
        self.midstream = midstream
        self.opened_ns = self.last_ns = strand.time_ns
        self.ended_ns = 0
        self.sequences: list[int | None] = [None, None]
        self.next = [-1, -1]
        self.fins: list[int | None] = [None, None]
        self.acks = [-1, -1]
        self.challenge = -1
        self.ragged = False
        self.told = False
        self.reason = ""


class _Strand:
    """What is needed of a strand to open a flow."""

    __slots__ = ("app", "from_high", "header", "ports", "time_ns", "version", "way")

    def __init__(self, batch: "_Batch", index: int, time_ns: int) -> None:
        strands = batch.strands
        self.from_high = bool(strands.from_high[index])
        self.header = strands.header[index].tobytes()
        self.version = int(strands.version[index])
        self.ports = int(strands.source_port[index]), int(strands.destination_port[index])
        process = int(strands.process[index])
        self.app = batch.apps[process] if process else None
        self.way = int(strands.way[index])
        self.time_ns = time_ns

    def ends(self) -> tuple[Endpoint, Endpoint]:
        """Source and destination."""
        if self.version == 4:
            addresses = [
                socket.inet_ntop(socket.AF_INET, self.header[at : at + 4]) for at in (12, 16)
            ]
        else:
            addresses = [
                socket.inet_ntop(socket.AF_INET6, self.header[at : at + 16]) for at in (8, 24)
            ]
        return Endpoint(addresses[0], self.ports[0]), Endpoint(addresses[1], self.ports[1])


class Connections:
    """The connections that are open, and those that have ended lately.

    acknowledgements: every segment has its own, for who writes packets.
    passed: packets that say nothing to any flow, by reason. missing: bytes that the capture cut.
    evicted: flows that were closed because there were too many.
    """

    def __init__(self, *, acknowledgements: bool = False, max_flows: int = MAX_FLOWS) -> None:
        self._acknowledgements = acknowledgements
        self.passed: Counter[str] = Counter()
        self.missing = 0
        self.evicted = 0
        self._max_flows = max_flows
        self._table: dict[_Key, Connection] = {}
        self._closing: deque[tuple[int, _Key, Connection]] = deque()
        self._ended: dict[_Key, Connection] = {}  # the oldest first
        self._flows = 0
        self._now_ns = 0

    def take(
        self, strands: Strands, runs: Runs, payload: Payload, apps: Sequence[App] = ()
    ) -> list[Item]:
        """What a batch tells, in order per flow; `settle` comes after it.

        apps: of the batch's processes, of which the first stands for "not known".
        """
        batch = _Batch(strands, runs, payload, apps)
        table = self._table
        items: list[Item] = []
        low, high, run = batch.low, batch.high, batch.run
        controls = batch.controls
        for first, last in batch.connections:
            key = low[first], high[first]
            connection = table.get(key)
            if connection is not None and connection.told and controls[last] == controls[first]:
                for strand in range(first, last):
                    self._say(connection, batch, strand, items)
            elif run[last] > run[first]:
                self._step(key, batch, first, last, items)
            elif connection is not None:
                self._note_acks(connection, batch, first, last)
        if low:
            self._now_ns = max(self._now_ns, batch.last_ns_of_all)
        return items

    def settle(self) -> list[Item]:
        """Closings of what had ended before the batch did, once all of the batch was taken."""
        items: list[Item] = []
        self._close_ended(items)
        if len(self._table) > self._max_flows:
            self._evict(items)
        return items

    def finish(self) -> list[Item]:
        """Closings of all that is open: the capture has ended."""
        items: list[Item] = []
        for key, connection in list(self._table.items()):
            if not connection.reason:
                connection.reason, connection.ended_ns = "end", self._now_ns
            self._close(key, connection, items)
        self._closing.clear()
        return items

    @property
    def now_ns(self) -> int:
        """The time of the latest packet."""
        return self._now_ns

    # --- a connection that is simply talking -----------------------------------------------------

    def _say(self, connection: Connection, batch: "_Batch", strand: int, items: list[Item]) -> None:
        direction = _TO_SERVER if batch.from_high[strand] is connection.client_high else _TO_CLIENT
        begin, end = batch.run[strand], batch.run[strand + 1]
        ack = batch.strand_ack[strand]
        connection.last_ns = batch.last_ns[strand]
        if begin == end:
            if connection.ragged and ack >= 0:
                items.append(
                    _acknowledgement(connection.flow_id, direction, ack, connection.last_ns)
                )
        elif end - begin > 1 or batch.sequence[begin] != connection.next[direction]:
            connection.ragged = True
        for index in range(begin, end):
            self._segment(connection, direction, batch, index, items)
        if ack >= 0:
            connection.acks[direction] = ack

    def _segment(
        self,
        connection: Connection,
        direction: Direction,
        batch: "_Batch",
        index: int,
        items: list[Item],
    ) -> None:
        start, stop = batch.piece[index], batch.piece[index + 1]
        low, high = batch.data[index], batch.data[index + 1]
        sequence = batch.sequence[index]
        time_ns = batch.run_last_ns[index]
        ack = batch.ack[index]
        # Where all has come in order, they tell the streams nothing until the end.
        telling = self._acknowledgements or connection.ragged
        acknowledged = ack if telling and ack >= 0 else None
        if high > low:
            if stop - start < 2:
                items.append(
                    Segment(connection.flow_id, direction, sequence, batch.payload[low:high],
                            time_ns, (), (), 0, acknowledged)
                )  # fmt: skip
            else:
                items.append(
                    Segment(connection.flow_id, direction, sequence, batch.payload[low:high],
                            time_ns, batch.ends[start:stop], batch.times_ns[start:stop], 0,
                            acknowledged)
                )  # fmt: skip
            sequence = sequence + high - low & _MASK
        missing = batch.missing[index]
        if missing:  # passed, and was not kept
            self.missing += missing
            items.append(
                Segment(connection.flow_id, direction, sequence, b"", time_ns, (), (), missing,
                        acknowledged)
            )  # fmt: skip
            sequence = sequence + missing & _MASK
        connection.next[direction] = sequence

    def _note_acks(self, connection: Connection, batch: "_Batch", first: int, last: int) -> None:
        for strand in range(first, last):
            if batch.strand_ack[strand] >= 0:
                side = batch.from_high[strand] is not connection.client_high
                connection.acks[side] = batch.strand_ack[strand]
            connection.last_ns = batch.last_ns[strand]

    # --- a connection that begins or ends --------------------------------------------------------

    def _step(self, key: _Key, batch: "_Batch", first: int, last: int, items: list[Item]) -> None:
        """The runs of one connection one by one, in the order of their packets."""
        steps = [
            (batch.packet[index], index, strand)
            for strand in range(first, last)
            for index in range(batch.run[strand], batch.run[strand + 1])
        ]
        steps.sort()
        table, lengths, sequences = self._table, batch.length, batch.sequence
        connection = table.get(key)
        for number, (_, index, strand) in enumerate(steps):
            flags, length = batch.flags[index], lengths[index]
            if connection is None or (
                (flags & SYN or connection.challenge >= 0)
                and self._begins_anew(connection, batch, index)
            ):
                if connection is not None:
                    if not connection.reason:
                        connection.reason = "end"
                        connection.ended_ns = connection.last_ns
                    self._close(key, connection, items)
                connection = self._meet(key, batch, index, strand)
                if connection is None:
                    continue
                table[key] = connection
            direction = (
                _TO_SERVER if batch.from_high[strand] is connection.client_high else _TO_CLIENT
            )
            connection.last_ns = batch.run_last_ns[index]
            if flags & SYN and not self._greet(connection, direction, batch, index):
                continue
            if not connection.told and (length or flags & FIN or flags & (SYN | ACK) == SYN | ACK):
                self._tell(connection, batch, steps[number:], items)
            if length:
                if sequences[index] != connection.next[direction] >= 0:
                    connection.ragged = True
                self._segment(connection, direction, batch, index, items)
            if batch.ack[index] >= 0:
                connection.acks[direction] = batch.ack[index]
            if flags & (FIN | RST):
                self._ends(key, connection, direction, batch, index)
        if connection is not None:
            self._note_acks(connection, batch, first, last)

    def _ends(
        self,
        key: _Key,
        connection: Connection,
        direction: Direction,
        batch: "_Batch",
        index: int,
    ) -> None:
        """A FIN or RST: whether it ends the connection."""
        flags = batch.flags[index]
        if flags & RST and not self._is_obeyed(connection, direction, batch.sequence[index]):
            self.passed[FORGED] += 1
            return
        if flags & FIN and connection.fins[direction] is None:  # it can't be taken back
            connection.fins[direction] = batch.sequence[index] + batch.length[index] & _MASK
        finished = None not in connection.fins
        if not connection.reason and (finished or flags & RST):
            connection.reason = "fin" if finished else "rst"
            connection.ended_ns = connection.last_ns
            self._closing.append((connection.last_ns, key, connection))

    def _is_obeyed(self, connection: Connection, direction: Direction, sequence: int) -> bool:
        """Whether a reset is in the window, as far as that can be known (RFC 9293 §3.10.7.4)."""
        expected = connection.next[direction]
        ack = connection.acks[direction.opposite]
        if ack >= 0 and (ack - sequence) & _MASK in (0, _MASK):
            return True
        return expected < 0 or abs((sequence - expected + _HALF & _MASK) - _HALF) < BEHIND

    def _begins_anew(self, connection: Connection, batch: "_Batch", index: int) -> bool:
        """The ends are used for another connection.

        A SYN alone does not say so while the connection lives: anybody can send one (RFC 5961
        §4). The other end agrees by its SYN, or data follows where it said.
        """
        flags, sequence = batch.flags[index], batch.sequence[index]
        if flags & SYN:
            known = sequence in connection.sequences
            if known or not (connection.told or connection.reason):
                return False
            if connection.reason:
                return True
            if not flags & ACK:
                connection.challenge = sequence
                return False
            return batch.ack[index] == connection.challenge
        return connection.challenge == sequence and batch.length[index] > 0

    def _meet(self, key: _Key, batch: "_Batch", index: int, strand: int) -> Connection | None:
        """The connection that a run begins; None if it tells of none."""
        flags, sequence = batch.flags[index], batch.sequence[index]
        length = batch.length[index]
        former = self._ended.get(key)
        if former is not None and not flags & SYN:
            side = batch.from_high[strand] is not former.client_high
            fin = former.fins[side]
            end = sequence + length & _MASK
            if not length or (fin is not None and fin - end & _MASK < 1 << 31):
                self.passed[LATE] += 1
                return None
        if not length and not flags & SYN:
            self.passed[STRAY] += 1
            return None
        first = _Strand(batch, strand, batch.run_first_ns[index])
        self._flows += 1
        if flags & SYN:
            from_client = not flags & ACK
            client_high = first.from_high is from_client
            return Connection(self._flows, first, client_high=client_high, midstream=False)
        source, destination = first.ports
        from_client = (not _serves(destination), destination) <= (not _serves(source), source)
        client_high = first.from_high is from_client
        return Connection(self._flows, first, client_high=client_high, midstream=True)

    def _greet(
        self, connection: Connection, direction: Direction, batch: "_Batch", index: int
    ) -> bool:
        """A SYN: where a direction begins. False if it says nothing new."""
        flags, sequence = batch.flags[index], batch.sequence[index]
        known = connection.sequences[direction]
        if connection.told:
            return batch.length[index] > 0 and known == sequence
        connection.sequences[direction] = connection.next[direction] = sequence
        other = direction.opposite
        if flags & ACK and connection.sequences[other] is None:  # the SYN before it was not seen
            connection.sequences[other] = connection.next[other] = batch.ack[index]
        return True

    def _tell(
        self,
        connection: Connection,
        batch: "_Batch",
        steps: Sequence[tuple[int, int, int]],
        items: list[Item],
    ) -> None:
        """The opening. Where a direction's beginning was not seen, it begins with the earliest of
        what is there: its first segments may have been captured out of order."""
        for _, index, strand in steps:
            side = batch.from_high[strand] is not connection.client_high
            sequence = batch.sequence[index]
            known = connection.sequences[side]
            if batch.data[index + 1] == batch.data[index]:
                continue
            if known is None or (
                connection.next[side] < 0 and 0 < known - sequence & _MASK < BEHIND
            ):
                connection.sequences[side] = sequence
        connection.told = True
        items.append(self._opened(connection))

    def _opened(self, connection: Connection) -> Opened:
        first = connection.strand
        source, destination = first.ends()
        by_client = first.from_high is connection.client_high
        client, server = (source, destination) if by_client else (destination, source)
        # Where it is known whose the packet is, and which way it went, his end is the local one.
        of_server = first.app is not None and first.way == (_RECEIVED if by_client else _SENT)
        to_server, to_client = connection.sequences
        flow = Flow(
            connection.flow_id,
            first.app,
            server if of_server else client,
            client if of_server else server,
            Role.SERVER if of_server else Role.CLIENT,
            connection.opened_ns,
            connection.midstream,
        )
        return Opened(flow, (to_server, to_client))

    # --- the end ---------------------------------------------------------------------------------

    def _close_ended(self, items: list[Item]) -> None:
        while self._closing and self._now_ns - self._closing[0][0] > LINGER_NS:
            _, key, connection = self._closing.popleft()
            if self._table.get(key) is connection:
                self._close(key, connection, items)
        while self._ended:
            key = next(iter(self._ended))
            if (
                len(self._ended) <= ENDED
                and self._now_ns - self._ended[key].ended_ns <= FORGOTTEN_NS
            ):
                break
            del self._ended[key]

    def _close(self, key: _Key, connection: Connection, items: list[Item]) -> None:
        """Told once: whoever gives up a connection takes it out of the table by this."""
        del self._table[key]
        self._ended.pop(key, None)
        self._ended[key] = connection
        if not connection.told:  # nobody answered
            self.passed[UNANSWERED] += 1
            return
        flow_id, time_ns = connection.flow_id, connection.ended_ns
        items += [
            _acknowledgement(flow_id, direction, connection.acks[direction], time_ns)
            for direction in Direction
            if connection.acks[direction] >= 0
        ]
        to_server, to_client = connection.fins
        items.append(Closed(flow_id, time_ns, connection.reason, fins=(to_server, to_client)))

    def _evict(self, items: list[Item]) -> None:
        """Too many: those that were silent longest are given up."""
        oldest = sorted(self._table.items(), key=lambda entry: entry[1].last_ns)
        for key, connection in oldest[: len(self._table) - self._max_flows * 7 // 8]:
            if not connection.reason:
                connection.reason, connection.ended_ns = "idle", connection.last_ns
                self.evicted += 1
            self._close(key, connection, items)


class _Batch:
    """The columns of a batch as lists, for Python to walk."""

    def __init__(self, strands: Strands, runs: Runs, payload: Payload, apps: Sequence[App]) -> None:
        self.strands = strands
        self.apps = apps
        self.payload = payload
        self.low: list[int] = strands.low.tolist()
        self.high: list[int] = strands.high.tolist()
        self.from_high: list[bool] = strands.from_high.tolist()
        self.run: list[int] = strands.run.tolist()
        self.connections = _by_connection(strands)
        self.strand_ack: list[int] = strands.acknowledgment.tolist()
        self.last_ns: list[int] = strands.last_ns.tolist()
        self.last_ns_of_all = int(strands.last_ns.max(initial=0))
        # Beginnings and ends of connections before each strand.
        controls: Any = np.concatenate(([0], np.cumsum(runs.flags != 0)))
        self.controls: list[int] = controls[strands.run].tolist()
        self.packet: list[int] = runs.packet.tolist()
        self.sequence: list[int] = runs.sequence.tolist()
        self.flags: list[int] = runs.flags.tolist()
        self.ack: list[int] = runs.acknowledgment.tolist()
        self.data: list[int] = runs.data.tolist()
        self.missing: list[int] = runs.missing.tolist()
        self.length: list[int] = (np.diff(runs.data) + runs.missing).tolist()
        self.run_first_ns: list[int] = runs.first_ns.tolist()
        self.run_last_ns: list[int] = runs.last_ns.tolist()
        self.piece: list[int] = runs.piece.tolist()
        self.ends: list[int] = runs.ends.tolist()
        self.times_ns: list[int] = runs.times_ns.tolist()


def _by_connection(strands: Strands) -> list[tuple[int, int]]:
    """The first strand of each connection, and that behind its last, in the order in which they
    first spoke: so that a flow has the same number whenever a capture is read."""
    low, high = strands.low, strands.high
    if not len(low):
        return []
    changes = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    first = np.flatnonzero(np.append(True, changes))
    last = np.append(first[1:], len(low))
    order = np.argsort(np.minimum.reduceat(strands.packet, first), kind="stable")
    return list(zip(first[order].tolist(), last[order].tolist(), strict=True))


def _acknowledgement(flow_id: int, direction: Direction, ack: int, time_ns: int) -> Segment:
    return Segment(flow_id, direction, 0, b"", time_ns, acknowledged=ack)


def _serves(port: int) -> bool:
    return port < 1024 or port in SERVER_PORTS
