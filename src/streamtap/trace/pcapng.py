"""Flows as a pcapng file, for Wireshark and what else reads packets.

What streamtap sees are segments at the socket, so their packets are made here: addresses, ports,
sequence numbers and times are true, acknowledgements the last that are known; window, hop limit and
the rest of the headers are not. A flow whose beginning was seen begins with a handshake, one that
ended ends with FIN or RST; these are made too, and so is the one empty packet with which a flow
that was joined midstream begins. Payload that was counted and not kept has a packet that is cut
behind its headers.

Whose flow it is stands in three places:
- the process blocks: a custom block of the Wireshark Foundation, entry type 3, written before the
  first packet of a process (Wireshark, wiretap/pcapng-wireshark-custom.c). What it has no option
  for, cgroup and filter, are its comments `cgroup: …` and `filter: …`;
- at each packet `epb_processid_threadid`: the process that sent it or, where that is not watched,
  the one that it is for; and `epb_flags`, inbound or outbound as the first of both sees it
  (draft-ietf-opsawg-pcapng §4.3);
- a comment at the first packet of a flow, for versions of Wireshark that know neither.
"""

from collections.abc import Iterable, Sequence
from struct import Struct

from streamtap.events import Record
from streamtap.model import App, Closed, Direction, Flow, Opened, Segment, StreamItem
from streamtap.trace.packets import EARLY_S, FIN, PADDING, PSH, RST, SYN, Packets, Way
from streamtap.trace.sink import Output
from streamtap.trace.text import app_name, printable

SECTION, INTERFACE, STATISTICS, CUSTOM = 0x0A0D0D0A, 1, 5, 0xBAD  # types of blocks
BYTE_ORDER = 0x1A2B3C4D
LINKTYPE_RAW = 101  # IPv4 or IPv6 by the first half-byte: there was no link
NANOSECONDS = 9  # if_tsresol: a power of ten
WIRESHARK = 32622  # private enterprise number
PROCESS_INFORMATION = 3  # type of an entry in a Wireshark custom block

# Options of all blocks, of sections, of interfaces, of packets, of statistics, of processes.
END, COMMENT = 0, 1
SHB_USERAPPL = 4
IF_NAME, IF_TSRESOL, IF_TSOFFSET = 2, 9, 14
EPB_FLAGS, EPB_DROPCOUNT, EPB_PROCESSID_THREADID = 2, 4, 8
ISB_STARTTIME, ISB_ENDTIME, ISB_FILTERACCEPT, ISB_OSDROP, ISB_USRDELIV = 2, 3, 6, 7, 8
PIB_NAME, PIB_PATH, PIB_UID = 2, 3, 6

ABOUT = (
    "Segments as applications sent and received them. Addresses, ports, sequence numbers, times and"
    " payload are true; the rest of the headers, the handshakes and the endings are made."
)
PROCESSES = 4096  # remembered as written: one that comes again is written again

_OUTBOUND, _INBOUND = 2, 1  # epb_flags
_MASK = 0xFFFFFFFF
_option_header = Struct("<HH").pack
_u32 = Struct("<I").pack
_u64 = Struct("<Q").pack
_END = _option_header(END, 0)


class Pcapng:
    """A tap that keeps the packets of a batch, and the sink that writes them in order of time.

    payload: False cuts every packet behind its headers. application: what made the file.
    The two ends of a connection inside the host are two flows, but each packet is written once,
    as the flow that was opened first has it.
    """

    def __init__(self, output: Output, *, payload: bool, application: str) -> None:
        self._output = output
        self._payload = payload
        self._application = application
        self._open = False
        self._connections: dict[int, _Connection] = {}
        self._begun: list[_Connection] = []  # in this batch
        self._processes: dict[int, App] = {}
        self._blocks: list[bytes] = []  # of processes, to be written before the packets
        self._packets = Packets()
        self._first_ns: int | None = None
        self._last_ns: int | None = None
        self._early = False  # the interface of times before 1970 is described
        self._delivered = 0
        self._lost = 0

    # --- the sink --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._output.name

    def open(self) -> None:
        """The beginning is written with the first flush: who reads along knows what this is."""
        self._output.open()
        self._open = True
        about = ((SHB_USERAPPL, self._application.encode()), (COMMENT, ABOUT.encode()))
        fixed = Struct("<IHHq").pack(BYTE_ORDER, 1, 0, -1)  # version 1.0, of unknown length
        self._output.put(_block(SECTION, fixed + _options(about)))
        self._output.put(_interface())

    def write(self, first: int, records: Sequence[Record]) -> None:
        """Packets are all that is written."""

    def flush(self) -> None:
        # What opens a connection goes first, also where its data has the same time.
        opening = Packets()
        for connection in self._begun:
            connection.add_opening(opening)
        packets, self._packets = self._packets, Packets()
        packets.put_first(opening)
        blocks, self._blocks, self._begun = self._blocks, [], []
        for block in blocks:
            self._output.put(block)
        if packets:
            made, first_ns, last_ns = packets.blocks()
            if first_ns < 0 and not self._early:
                self._early = True
                self._output.put(_interface((IF_TSOFFSET, Struct("<q").pack(EARLY_S))))
            self._output.put(made)
            self._first_ns = first_ns if self._first_ns is None else self._first_ns
            self._last_ns = last_ns if self._last_ns is None else max(self._last_ns, last_ns)
        self._output.flush()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False  # the tap is not taken out: from now on nothing is kept
        try:
            self.flush()
            self._output.put(self._statistics())
        finally:
            self._connections.clear()
            self._output.close()

    def _statistics(self) -> bytes:
        lost = self._lost + sum(one.lost for one in self._connections.values())
        options = [
            (ISB_FILTERACCEPT, _u64(self._delivered + lost)),
            (ISB_OSDROP, _u64(lost)),
            (ISB_USRDELIV, _u64(self._delivered)),
        ]
        first_ns, last_ns = self._first_ns or 0, self._last_ns or 0
        interface = int(last_ns < 0)
        if self._last_ns is not None:
            if (first_ns < 0) == interface:  # else it has no such time
                options.append((ISB_STARTTIME, _timestamp(first_ns)))
            options.append((ISB_ENDTIME, _timestamp(last_ns)))
        fixed = _u32(interface) + _timestamp(last_ns)
        return _block(STATISTICS, fixed + _options(options))

    # --- the tap ---------------------------------------------------------------------------------

    def opened(self, opened: Opened, first: Flow | None) -> None:
        if not self._open:
            return
        flow = opened.flow
        if flow.app is not None:
            self._tell_of(flow.app)
        other = None if first is None else self._connections.get(first.flow_id)
        if other is not None:
            other.pair(flow.app)
            return
        connection = _Connection(opened)
        self._connections[flow.flow_id] = connection
        self._begun.append(connection)

    def segment(self, flow: Flow, segment: Segment) -> None:
        connection = self._connections.get(flow.flow_id)
        if connection is not None:
            self._delivered += connection.add(segment, self._packets, payload=self._payload)

    def item(self, flow: Flow, direction: Direction, item: StreamItem) -> None:
        """Segments say all that there is to say."""

    def closed(self, flow: Flow, closed: Closed) -> None:
        connection = self._connections.pop(flow.flow_id, None)
        if connection is None:
            return
        connection.add_ending(closed, self._packets)
        self._lost += connection.lost

    def _tell_of(self, app: App) -> None:
        known = self._processes
        if known.get(app.pid) == app:
            return
        if len(known) >= PROCESSES:
            known.clear()
        known[app.pid] = app
        self._blocks.append(_process(app))


class _Side:
    """What one end sends. next: the sequence number behind all that is known of it, None where
    nothing is; acknowledged: what it acknowledged last; lost: segments that were not kept."""

    __slots__ = ("acknowledged", "lost", "next", "way")

    def __init__(self, way: Way, sequence: int | None, other: int | None) -> None:
        self.way = way
        self.next = sequence
        self.acknowledged = other
        self.lost = 0

    def drops(self, lost: int) -> bytes:
        """The option that tells how many segments were lost since the last time, by a running
        count modulo 2**32."""
        more = (lost - self.lost) & _MASK
        if not more or more > _MASK >> 1:
            return b""
        self.lost += more
        return _option(EPB_DROPCOUNT, _u64(more))


class _Connection:
    """One connection, and what of it becomes packets. lost: segments that were not kept."""

    __slots__ = ("_first_ns", "_flow", "_last_ns", "_opened", "_peer", "_sides")

    def __init__(self, opened: Opened) -> None:
        flow = opened.flow
        self._flow = flow
        self._peer: App | None = None
        self._opened = opened
        self._first_ns = self._last_ns = flow.opened_ns
        ways = (Way(flow.local, flow.remote), Way(flow.remote, flow.local))
        to_server, to_client = ways if flow.sent is Direction.TO_SERVER else ways[::-1]
        first, second = opened.sequences
        self._sides = (_Side(to_server, first, second), _Side(to_client, second, first))
        self._set_options()

    @property
    def lost(self) -> int:
        return sum(side.lost for side in self._sides)

    def pair(self, peer: App | None) -> None:
        """The other end is watched too, and this is who has it."""
        self._peer = peer
        self._set_options()

    def _set_options(self) -> None:
        app, sent = self._flow.app, self._flow.sent
        if app is None:
            return
        senders = ((sent, app, _OUTBOUND), (sent.opposite, self._peer or app, _INBOUND))
        for direction, sender, flags in senders:
            process = _u32(sender.pid & _MASK) + _u32(0)
            options = ((EPB_FLAGS, _u32(flags)), (EPB_PROCESSID_THREADID, process))
            self._sides[direction].way.set_options(_options(options))

    def add_opening(self, packets: Packets) -> None:
        """The handshake, or what stands for it midstream; as far as the numbers are known."""
        (client, server), (first, second) = self._sides, self._opened.sequences
        comment = self._comment()
        time_ns = self._first_ns
        if self._flow.midstream:
            if first is not None and second is not None:
                side = self._sides[self._flow.sent]
                number, other = (first, second) if side is client else (second, first)
                packets.add(side.way, time_ns, number, other, 0, options=comment)
        elif first is not None:
            packets.add(client.way, time_ns, first - 1, None, SYN, options=comment)
            if second is not None:
                packets.add(server.way, time_ns, second - 1, first, SYN)
                packets.add(client.way, time_ns, first, second, 0)

    def _comment(self) -> bytes:
        flow = self._flow
        if flow.app is None:
            return b""
        text = f"flow {flow.flow_id:x}: {_named(flow.app)}, {flow.role.value}"
        if self._peer is not None:
            text += f"; other end: {_named(self._peer)}"
        if flow.midstream:
            text += "; joined midstream"
        return _option(COMMENT, text.encode())

    def add(self, segment: Segment, packets: Packets, *, payload: bool) -> int:
        """The segments that it was joined of; those larger than a packet can be are divided. How
        many packets that makes."""
        side = self._sides[segment.direction]
        way, sequence = side.way, segment.sequence
        # A view does not outlive the call.
        data = bytes(segment.data) if payload else b""
        length = segment.counted or len(segment.data)
        ends, times_ns = segment.ends, segment.times_ns
        first_ns = times_ns[0] if times_ns else segment.time_ns
        if first_ns < self._first_ns:
            self._first_ns = first_ns
        if segment.time_ns > self._last_ns:
            self._last_ns = segment.time_ns
        before = side.acknowledged
        side.acknowledged = acknowledgment = _later(before, segment.acknowledged)
        if not length:  # it only acknowledges: captures give one for many, without its number
            return 0
        side.next = _later(side.next, (sequence + length) & _MASK)
        options = b"" if segment.lost == side.lost else side.drops(segment.lost)
        if length > way.most:
            ends, times_ns = _divide(ends or (length,), times_ns or (segment.time_ns,), way.most)
        if len(ends) < 2:
            packets.add(way, segment.time_ns, sequence, acknowledgment, PSH, data, length, options)
            return 1
        # The last one carried the acknowledgement: it may be younger than those before. The first
        # one tells what was lost.
        first, last = ends[0], ends[-2]
        packets.add(way, times_ns[0], sequence, before, PSH, data[:first], first, options)
        if first < last:
            packets.add_run(way, times_ns[1:-1], sequence, before, PSH, data, ends[:-1])
        packets.add(
            *(way, times_ns[-1], sequence + last, acknowledgment, PSH, data[last:], length - last)
        )
        return len(ends)

    def add_ending(self, closed: Closed, packets: Packets) -> None:
        """FIN of both ends, or RST of the local one; where there was neither, what was acknowledged
        and never came. They stand behind the last byte by the kernel's totals, or by the FIN that
        was captured, where these are known: what is missing there is seen to be missing."""
        drops = [side.drops(lost) for side, lost in zip(self._sides, closed.lost, strict=True)]
        if closed.totals is not None:
            opened = zip(self._opened.sequences, self._opened.offsets, closed.totals, strict=True)
            for side, (sequence, passed, total) in zip(self._sides, opened, strict=True):
                if sequence is not None and total > passed:
                    side.next = _later(side.next, (sequence + total - passed) & _MASK)
        for side, fin in zip(self._sides, closed.fins, strict=True):
            side.next = side.next if fin is None else fin
        time_ns = max(self._last_ns, closed.time_ns)
        client, server = self._sides
        if client.next is None or server.next is None:
            return
        if closed.reason == "rst":
            sent = self._flow.sent
            side = self._sides[sent]
            assert side.next is not None
            acknowledged = side.acknowledged
            packets.add(side.way, time_ns, side.next, acknowledged, RST, options=drops[sent])
        elif closed.reason == "fin":
            first, second = client.next, server.next
            packets.add(client.way, time_ns, first, second, FIN, options=drops[0])
            packets.add(server.way, time_ns, second, first + 1, FIN, options=drops[1])
            packets.add(client.way, time_ns, first + 1, second + 1, 0)
        else:
            for side, other in (self._sides, self._sides[::-1]):
                assert side.next is not None
                if _later(other.next, side.acknowledged) != other.next:
                    packets.add(side.way, time_ns, side.next, side.acknowledged, 0)


def _divide(
    ends: Sequence[int], times_ns: Sequence[int], most: int
) -> tuple[Sequence[int], Sequence[int]]:
    """The same with further ends, so that none is farther than `most` from the one before."""
    begin = 0
    parts: list[int] = []
    times: list[int] = []
    for end, time_ns in zip(ends, times_ns, strict=True):
        own = [*range(begin + most, end, most), end]
        parts += own
        times += [time_ns] * len(own)
        begin = end
    return parts, times


def _process(app: App) -> bytes:
    """A Wireshark custom block about a process."""
    options = (
        (PIB_NAME, _text(app.comm)),
        (PIB_PATH, _text(app.path)),
        (PIB_UID, _u32(app.uid & _MASK)),
        (COMMENT, b"cgroup: " + _text(app.cgroup)),
        (COMMENT, b"filter: " + _text(app.filter)),
    )
    entry = _u32(app.pid & _MASK) + _options(options)
    return _block(CUSTOM, Struct("<III").pack(WIRESHARK, PROCESS_INFORMATION, len(entry)) + entry)


def _named(app: App) -> str:
    return f"{app_name(app)} {printable(app.path)}, uid {app.uid}"


def _later(one: int | None, other: int | None) -> int | None:
    """The later of two sequence numbers."""
    if one is None or other is None:
        return other if one is None else one
    return other if (other - one) & _MASK <= _MASK >> 1 else one


def _interface(*more: tuple[int, bytes]) -> bytes:
    options = ((IF_NAME, b"streamtap"), (IF_TSRESOL, bytes((NANOSECONDS,))), *more)
    fixed = Struct("<HHI").pack(LINKTYPE_RAW, 0, 0)  # no limit on the size of packets
    return _block(INTERFACE, fixed + _options(options))


def _timestamp(time_ns: int) -> bytes:
    """As its interface has it."""
    if time_ns < 0:
        time_ns = max(0, time_ns - EARLY_S * 1_000_000_000)
    return _u32(time_ns >> 32 & _MASK) + _u32(time_ns & _MASK)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _block(kind: int, body: bytes) -> bytes:
    total = _u32(12 + len(body))
    return b"".join((_u32(kind), total, body, total))


def _options(options: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(_option(code, value) for code, value in options) + _END


def _option(code: int, value: bytes) -> bytes:
    value = value[:0xFFFF]
    return _option_header(code, len(value)) + value + PADDING[len(value) & 3]
