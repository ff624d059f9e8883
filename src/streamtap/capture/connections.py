"""Runs of a capture -> openings, segments and closings: which connection they belong to, who is
its client, when it begins and when it is over.

Python sees a connection once for each batch that it speaks in, not once for each packet. Packets
that begin or end a connection go one by one.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from streamtap.capture.batch import Batch, batches
from streamtap.capture.connection import BEHIND, Connection, Ended
from streamtap.capture.packets import ACK, CONTROL, FIN, RST, SYN
from streamtap.capture.payloads import Payload
from streamtap.capture.runs import Runs, Strands
from streamtap.model import DIRECTIONS, LONG_AGO_NS, App, Closed, Direction, Opened, Segment

Item = Opened | Segment | Closed

LINGER_NS = 2_000_000_000  # late packets of a connection that has ended may still come
FORGOTTEN_NS = 120_000_000_000  # an ended connection is known so long: twice a usual TIME_WAIT
ENDED = 32_768  # ended connections that are known
MAX_FLOWS = 65_536
LOOKS = 8  # runs that may tell which end of a connection is the client
HEAD = 2048  # bytes of each
ASIDE = 256  # runs among which the first bytes of a connection may stand, out of order
FEW = 64  # items given at a time: what is used at once is still in the processor's cache
LATE = "packets that came after their connection had ended"
UNANSWERED = "attempts to connect that came to nothing"
CROWDED = "attempts to connect beyond the connections that are followed"
FORGED = "resets from outside of the window"
STRAY = "ends of connections that were not seen"
_MASK = 0xFFFF_FFFF
_HALF = 1 << 31
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
_Key = tuple[int, int]
WayOf = Callable[[bytes], Direction | None]


class Connections:
    """The connections that are open, and those that have ended lately.

    acknowledgements: every segment has its own, for who writes packets.
    way_of: which way bytes go, by what they say; None where they do not tell. It is asked where the
        beginning was not seen, and the ports are all that there is otherwise.
    passed: packets that say nothing to any flow, by reason. missing: bytes that the capture cut.
    evicted: flows that were closed because there were too many.
    """

    def __init__(
        self,
        *,
        acknowledgements: bool = False,
        max_flows: int = MAX_FLOWS,
        way_of: WayOf = lambda data: None,
    ) -> None:
        self._way_of = way_of
        self._acknowledgements = acknowledgements
        self.passed: Counter[str] = Counter()
        self.missing = 0
        self.evicted = 0
        self._max_flows = max_flows
        self._table: dict[_Key, Connection] = {}
        self._closing: deque[tuple[int, _Key, Connection]] = deque()
        self._ended: dict[_Key, Ended] = {}  # the oldest first
        self._flows = 0
        self._now_ns = LONG_AGO_NS

    def take(
        self, strands: Strands, runs: Runs, payload: Payload, apps: Sequence[App] = ()
    ) -> Iterator[list[Item]]:
        """What a batch tells, in order per flow, a few connections at a time, each as a whole;
        `settle` comes after the last.

        apps: of the batch's processes, of which the first stands for "not known".
        """
        for batch in batches(strands, runs, payload, apps):
            yield from self._take(batch)

    def _take(self, batch: Batch) -> Iterator[list[Item]]:
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
            if len(items) >= FEW:
                # By now all have been taken that spoke before this one, so that it is known who was
                # silent longest.
                if len(table) >= self._max_flows:
                    self._evict(items)
                yield items
                items = []
        yield items
        self._now_ns = max(self._now_ns, batch.last_ns_of_all)

    def settle(self) -> list[Item]:
        """Closings of what had ended before the batch did, once all of the batch was taken."""
        items: list[Item] = []
        self._close_ended(items)
        if len(self._table) >= self._max_flows:
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

    def _say(self, connection: Connection, batch: Batch, strand: int, items: list[Item]) -> None:
        direction = _TO_SERVER if batch.from_high[strand] is connection.client_high else _TO_CLIENT
        begin, end = batch.run[strand], batch.run[strand + 1]
        ack = batch.strand_ack[strand]
        if (last_ns := batch.last_ns[strand]) > connection.last_ns:
            connection.last_ns = last_ns
        if ack >= 0:
            connection.acks[direction] = ack
        for index in range(begin, end):
            self._segment(connection, direction, batch, index, items)
        if begin == end and connection.ragged and ack >= 0:
            items.append(_acknowledgement(connection, direction, ack, last_ns))

    def _segment(
        self,
        connection: Connection,
        direction: Direction,
        batch: Batch,
        index: int,
        items: list[Item],
    ) -> None:
        low, high = batch.data[index], batch.data[index + 1]
        sequence, time_ns = batch.sequence[index], batch.run_last_ns[index]
        if sequence == connection.next[direction]:
            connection.next[direction] = batch.following[index]
        else:
            connection.jump(direction, sequence, batch.following[index])
        acknowledged = None
        if (connection.ragged or self._acknowledgements) and (ack := batch.ack[index]) >= 0:
            acknowledged = connection.heard(direction, ack)
        if batch.whole[index]:  # most are
            items.append(
                Segment(connection.flow_id, direction, sequence, batch.payload[low:high], time_ns,
                        (), (), 0, acknowledged)
            )  # fmt: skip
            return
        if high > low:
            start, stop = batch.piece[index], batch.piece[index + 1]
            ends: Sequence[int] = ()
            times_ns: Sequence[int] = ()
            if stop - start > 1:
                ends, times_ns = batch.ends[start:stop], batch.times_ns[start:stop]
            items.append(
                Segment(connection.flow_id, direction, sequence, batch.payload[low:high], time_ns,
                        ends, times_ns, 0, acknowledged)
            )  # fmt: skip
        if missing := batch.missing[index]:  # passed, and was not kept
            self.missing += missing
            sequence = sequence + high - low & _MASK
            items.append(
                Segment(connection.flow_id, direction, sequence, b"", time_ns, (), (), missing,
                        acknowledged)
            )  # fmt: skip

    def _note_acks(self, connection: Connection, batch: Batch, first: int, last: int) -> None:
        for strand in range(first, last):
            if batch.strand_ack[strand] >= 0:
                side = batch.from_high[strand] is not connection.client_high
                connection.acks[side] = batch.strand_ack[strand]
            connection.last_ns = max(connection.last_ns, batch.last_ns[strand])

    # --- a connection that begins or ends --------------------------------------------------------

    def _step(self, key: _Key, batch: Batch, first: int, last: int, items: list[Item]) -> None:
        """The runs of one connection one by one, in the order of their packets."""
        steps = sorted(range(batch.run[first], batch.run[last]), key=batch.packet.__getitem__)
        table, flags_of, lengths = self._table, batch.flags, batch.length
        strand_of, from_high_of = batch.strand, batch.from_high
        connection = table.get(key)
        for number, index in enumerate(steps):
            flags, length = flags_of[index], lengths[index]
            if connection is None or (
                (flags & SYN or connection.challenge >= 0)
                and self._begins_anew(connection, batch, index)
            ):
                if connection is not None:
                    if not connection.reason:
                        connection.reason = "end"
                        connection.ended_ns = connection.last_ns
                    self._close(key, connection, items)
                connection = self._meet(key, batch, steps[number : number + LOOKS])
                if connection is None:
                    continue
                table[key] = connection
            from_high = from_high_of[strand_of[index]]
            direction = _TO_SERVER if from_high is connection.client_high else _TO_CLIENT
            connection.last_ns = batch.run_last_ns[index]
            if flags & SYN and not self._greet(connection, direction, batch, index):
                continue
            if not connection.told and (length or flags & FIN or flags & (SYN | ACK) == SYN | ACK):
                self._tell(connection, batch, islice(steps, number, number + ASIDE), items)
            if length:
                self._segment(connection, direction, batch, index, items)
            if (ack := batch.ack[index]) >= 0:
                connection.acks[direction] = ack
            if flags & (FIN | RST):
                self._ends(key, connection, direction, batch, index)
        if connection is not None:
            self._note_acks(connection, batch, first, last)

    def _ends(
        self,
        key: _Key,
        connection: Connection,
        direction: Direction,
        batch: Batch,
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

    def _begins_anew(self, connection: Connection, batch: Batch, index: int) -> bool:
        """The ends are used for another connection.

        A SYN alone does not say so while the connection lives: anybody can send one (RFC 5961
        §4). The other end agrees by its SYN, or data follows where it said.
        """
        flags, sequence = batch.flags[index], batch.sequence[index]
        if flags & SYN:
            if connection.reason and batch.run_first_ns[index] - connection.ended_ns > LINGER_NS:
                return True  # it is open only because its stretch was taken as a whole
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

    def _meet(self, key: _Key, batch: Batch, steps: Sequence[int]) -> Connection | None:
        """The connection that the first of some runs begins; None if it tells of none."""
        index = steps[0]
        strand = batch.strand[index]
        flags, sequence = batch.flags[index], batch.sequence[index]
        length = batch.length[index]
        former = self._ended.get(key)
        if former is not None and not flags & SYN:
            _, client_high, *fins = former
            fin = fins[batch.from_high[strand] is not client_high]
            end = sequence + length & _MASK
            if not length or (fin is not None and fin - end & _MASK < 1 << 31):
                self.passed[LATE] += 1
                return None
        if not length and not flags & SYN:
            self.passed[STRAY] += 1
            return None
        if not length and flags & (CONTROL | ACK) == SYN and len(self._table) >= self._max_flows:
            self.passed[CROWDED] += 1  # if it is answered after all, the answer tells as much
            return None
        self._flows += 1
        midstream = not flags & SYN
        from_client = self._is_from_client(batch, steps) if midstream else not flags & ACK
        return Connection(
            self._flows, batch, strand, batch.run_first_ns[index], from_client, midstream
        )

    def _is_from_client(self, batch: Batch, steps: Sequence[int]) -> bool:
        """Whether the client sent the first of these runs of a connection that is open: by what
        they say, else by the ports."""
        strand = batch.strand[steps[0]]
        for index in steps:
            if batch.flags[index] & SYN:
                break
            low, high = batch.data[index], batch.data[index + 1]
            head = bytes(batch.payload[low : min(high, low + HEAD)])
            way = self._way_of(head) if head else None
            if way is not None:
                same = batch.from_high[batch.strand[index]] is batch.from_high[strand]
                return (way is _TO_SERVER) is same
        return batch.is_from_client(strand)

    def _greet(
        self, connection: Connection, direction: Direction, batch: Batch, index: int
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
        batch: Batch,
        steps: Iterable[int],
        items: list[Item],
    ) -> None:
        """The opening. Where a direction's beginning was not seen, it begins with the earliest of
        what is there: its first segments may have been captured out of order."""
        seen = None not in connection.sequences and -1 not in connection.next
        for index in () if seen else steps:
            side = batch.from_high[batch.strand[index]] is not connection.client_high
            sequence = batch.sequence[index]
            known = connection.sequences[side]
            if batch.data[index + 1] == batch.data[index]:
                continue
            if known is None or (
                connection.next[side] < 0 and 0 < known - sequence & _MASK < BEHIND
            ):
                connection.sequences[side] = sequence
        connection.told = True
        items.append(connection.opened())

    # --- the end ---------------------------------------------------------------------------------

    def _close_ended(self, items: list[Item]) -> None:
        while self._closing and self._now_ns - self._closing[0][0] > LINGER_NS:
            _, key, connection = self._closing.popleft()
            if self._table.get(key) is connection:
                self._close(key, connection, items)
        # In one walk from the oldest: to ask for the first again and again would pass, each time,
        # by the places of all that are gone.
        spare, forgotten = len(self._ended) - ENDED, list[_Key]()
        for key, (ended_ns, *_) in self._ended.items():
            if len(forgotten) >= spare and self._now_ns - ended_ns <= FORGOTTEN_NS:
                break
            forgotten.append(key)
        for key in forgotten:
            del self._ended[key]

    def _close(self, key: _Key, connection: Connection, items: list[Item]) -> None:
        """Told once: whoever gives up a connection takes it out of the table by this."""
        del self._table[key]
        self._ended.pop(key, None)
        to_server, to_client = connection.fins
        self._ended[key] = connection.ended_ns, connection.client_high, to_server, to_client
        if not connection.told:  # nobody answered
            self.passed[UNANSWERED] += 1
            return
        flow_id, time_ns = connection.flow_id, connection.ended_ns
        items += [
            _acknowledgement(connection, direction, connection.acks[direction], time_ns)
            for direction in DIRECTIONS
            if self._tells(connection, direction)
        ]
        items.append(Closed(flow_id, time_ns, connection.reason, fins=(to_server, to_client)))

    def _tells(self, connection: Connection, direction: Direction) -> bool:
        """The last acknowledgement of a direction says more than that all came that was seen: the
        other one's bytes to the last, and its FIN."""
        ack = connection.acks[direction]
        if ack < 0 or connection.ragged or self._acknowledgements:
            return ack >= 0
        expected = connection.next[direction.opposite]
        return expected < 0 or ack - expected & _MASK > 1

    def _evict(self, items: list[Item]) -> None:
        """Too many: those that were silent longest are given up."""
        oldest = sorted(self._table.items(), key=lambda entry: entry[1].last_ns)
        for key, connection in oldest[: len(self._table) - self._max_flows * 7 // 8]:
            if not connection.reason:
                connection.reason, connection.ended_ns = "idle", connection.last_ns
                self.evicted += connection.told  # of the others nobody was told
            self._close(key, connection, items)


def _acknowledgement(
    connection: Connection, direction: Direction, ack: int, time_ns: int
) -> Segment:
    acknowledged = connection.heard(direction, ack)
    return Segment(connection.flow_id, direction, 0, b"", time_ns, acknowledged=acknowledged)
