"""Packets from a description: layers are functions that put a header before bytes, and a `Talk` is
one connection, which knows its addresses and counts in stream offsets.

    talk = Talk()
    packets = [*talk.opening(), talk.c(0, b"hello "), talk.c(6, b"world"), *talk.closing(11, 0)]
    frames = [ethernet(packet) for packet in packets]
"""

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from streamtap.model import Direction

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
IPV4, IPV6, VLAN, QINQ, MPLS, PPPOE = 0x0800, 0x86DD, 0x8100, 0x88A8, 0x8847, 0x8864
TCP = 6
MSS = bytes.fromhex("020405b4")
TIMESTAMPS = bytes.fromhex("0101080a 00000001 00000000")
C, S = Direction.TO_SERVER, Direction.TO_CLIENT


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# --- what is in a frame ---------------------------------------------------------------------------


def tcp(
    ports: tuple[int, int],
    sequence: int,
    acknowledgment: int,
    flags: int,
    data: bytes = b"",
    *,
    options: bytes = b"",
    window: int = 65535,
    urgent: int = 0,
    words: int | None = None,
) -> bytes:
    """A segment without its checksum, which the IP layer puts in. words: a header length that is
    not true."""
    size = (20 + len(options)) // 4 if words is None else words
    header = struct.pack(
        ">HHIIBBHHH",
        *ports,
        sequence & 0xFFFFFFFF,
        acknowledgment & 0xFFFFFFFF,
        size << 4,
        flags,
        window,
        0,
        urgent,
    )
    return header + options + data


def udp(ports: tuple[int, int], data: bytes) -> bytes:
    """Without a checksum, as IPv4 allows."""
    return struct.pack(">HHHH", *ports, 8 + len(data), 0) + data


def _summed(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    """The payload, with the checksum of a whole TCP segment."""
    if protocol != TCP or len(payload) < 20:
        return payload
    pseudo = source + destination + struct.pack(">II", len(payload), protocol)
    return payload[:16] + struct.pack(">H", internet_checksum(pseudo + payload)) + payload[18:]


def ipv4(
    source: str,
    destination: str,
    payload: bytes,
    *,
    protocol: int = TCP,
    options: bytes = b"",
    identification: int = 0,
    total: int | None = None,
) -> bytes:
    """total: a length that is not true, as 0 where the network card was to fill it in."""
    ends = socket.inet_aton(source), socket.inet_aton(destination)
    size = 20 + len(options)
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | size // 4,
        0,
        size + len(payload) if total is None else total,
        identification,
        0,
        64,
        protocol,
        0,
        *ends,
    )
    header += options
    header = header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:]
    return header + _summed(*ends, protocol, payload)


def ipv6(
    source: str,
    destination: str,
    payload: bytes,
    *,
    protocol: int = TCP,
    extensions: Sequence[tuple[int, bytes]] = (),
    length: int | None = None,
) -> bytes:
    """extensions: (protocol number, content without its next-header byte), outermost first."""
    ends = socket.inet_pton(socket.AF_INET6, source), socket.inet_pton(socket.AF_INET6, destination)
    payload = _summed(*ends, protocol, payload)
    following = protocol
    for number, content in reversed(extensions):
        payload = bytes([following]) + content + payload
        following = number
    size = len(payload) if length is None else length
    return struct.pack(">IHBB16s16s", 6 << 28, size, following, 64, *ends) + payload


def padded_options(size: int = 8) -> bytes:
    """Content of a hop-by-hop or destination header that only pads it to `size` bytes."""
    return bytes([size // 8 - 1, 1, size - 4]) + bytes(size - 4)


def fragments_of_ipv4(packet: bytes, *cuts: int, identification: int = 7) -> list[bytes]:
    """The packet cut at offsets of its payload, multiples of eight."""
    size = (packet[0] & 15) * 4
    header, payload = packet[:size], packet[size:]
    edges = [0, *cuts, len(payload)]
    pieces = []
    for start, end in pairwise(edges):
        more = 0x2000 if end < len(payload) else 0
        changed = struct.pack(">HHH", size + end - start, identification, more | start // 8)
        head = header[:2] + changed + header[8:10] + b"\0\0" + header[12:]
        head = head[:10] + struct.pack(">H", internet_checksum(head)) + head[12:]
        pieces.append(head + payload[start:end])
    return pieces


def fragments_of_ipv6(
    packet: bytes, *cuts: int, before: int = 0, identification: int = 7
) -> list[bytes]:
    """before: bytes of extension headers that each fragment repeats."""
    fixed = packet[: 40 + before]
    payload = packet[40 + before :]
    at = 40 if before else 6  # the next-header byte that leads to the fragment header
    following = fixed[at]
    edges = [0, *cuts, len(payload)]
    pieces = []
    for start, end in pairwise(edges):
        more = int(end < len(payload))
        fragment = struct.pack(">BBHI", following, 0, start | more, identification)
        head = fixed[:at] + bytes([44]) + fixed[at + 1 :]
        head = head[:4] + struct.pack(">H", before + 8 + end - start) + head[6:]
        pieces.append(head + fragment + payload[start:end])
    return pieces


# --- links ----------------------------------------------------------------------------------------


def kind_of(packet: bytes) -> int:
    """The EtherType of an IP packet."""
    return IPV6 if packet[0] >> 4 == 6 else IPV4


def ethernet(
    packet: bytes, *, kind: int | None = None, vlans: Sequence[int] = (), padded: bool = False
) -> bytes:
    """vlans: outermost first. padded: to the 60 bytes that Ethernet carries at least, not with
    zeros."""
    kind = kind_of(packet) if kind is None else kind
    tags = b""
    for depth, vlan in enumerate(vlans):
        outer = depth + 1 < len(vlans)
        tags += struct.pack(">HH", QINQ if outer else VLAN, vlan)
    frame = b"\x02\0\0\0\0\2\x02\0\0\0\0\1" + tags + struct.pack(">H", kind) + packet
    return frame.ljust(60, b"\xee") if padded else frame


def snap(packet: bytes) -> bytes:
    """Ethernet with a length, then IEEE 802.2 and SNAP."""
    carried = bytes.fromhex("aaaa03000000") + struct.pack(">H", kind_of(packet)) + packet
    return ethernet(carried, kind=len(carried))


def cooked(packet: bytes) -> bytes:
    """LINKTYPE_LINUX_SLL."""
    return struct.pack(">HHH8sH", 0, 1, 6, b"\x02\0\0\0\0\1\0\0", kind_of(packet)) + packet


def cooked_2(packet: bytes) -> bytes:
    """LINKTYPE_LINUX_SLL2."""
    head = struct.pack(">HHIHBB8s", kind_of(packet), 0, 2, 1, 0, 6, b"\x02\0\0\0\0\1\0\0")
    return head + packet


def loopback(packet: bytes, order: str = "<") -> bytes:
    """LINKTYPE_NULL in either byte order; LINKTYPE_LOOP is the big one."""
    return struct.pack(f"{order}I", 2 if packet[0] >> 4 == 4 else 30) + packet


def pppoe(packet: bytes) -> bytes:
    protocol = 0x57 if packet[0] >> 4 == 6 else 0x21
    return ethernet(
        struct.pack(">BBHHH", 0x11, 0, 1, len(packet) + 2, protocol) + packet, kind=PPPOE
    )


def mpls(packet: bytes, *labels: int) -> bytes:
    stack = b""
    for depth, label in enumerate(labels, 1):
        stack += struct.pack(">I", label << 12 | (depth == len(labels)) << 8 | 64)
    return ethernet(stack + packet, kind=MPLS)


def gre(source: str, destination: str, packet: bytes, *, key: int | None = None) -> bytes:
    """An IPv4 packet with GRE around the packet."""
    head = struct.pack(">HH", 0 if key is None else 0x2000, kind_of(packet))
    if key is not None:
        head += struct.pack(">I", key)
    return ipv4(source, destination, head + packet, protocol=47)


def vxlan(source: str, destination: str, frame: bytes, *, network: int = 42) -> bytes:
    """An IPv4 packet with VXLAN around the Ethernet frame."""
    head = struct.pack(">II", 0x0800_0000, network << 8)
    return ipv4(source, destination, udp((50000, 4789), head + frame), protocol=17)


# --- a connection ---------------------------------------------------------------------------------


class Talk:
    """One connection: its packets, by direction and stream offset.

    isn: the initial sequence numbers, of the client and of the server. Offset 0 is the first byte
    of data. Acknowledgments are stream offsets too; what is not given is what the other end has
    said so far.
    """

    def __init__(
        self,
        client: tuple[str, int] = ("10.0.0.1", 40000),
        server: tuple[str, int] = ("192.0.2.1", 7000),
        isn: tuple[int, int] = (1000, 500_000),
    ) -> None:
        self.ends = client, server
        self.isn = isn
        self.said = [0, 0]
        self.synchronized = [False, False]

    def segment(
        self,
        direction: Direction,
        offset: int,
        data: bytes = b"",
        *,
        flags: int = PSH | ACK,
        ack: int | None = None,
        options: bytes = b"",
        window: int = 65535,
        urgent: int = 0,
    ) -> bytes:
        """A TCP segment. A SYN stands at offset -1."""
        source, destination = self.ends if direction is C else self.ends[::-1]
        acknowledged = self.said[direction.opposite] if ack is None else ack
        end = offset + len(data) + (1 if flags & FIN else 0)
        self.said[direction] = max(self.said[direction], end)
        return tcp(
            (source[1], destination[1]),
            self.isn[direction] + 1 + offset,
            self.isn[direction.opposite] + 1 + acknowledged if flags & ACK else 0,
            flags,
            data,
            options=options,
            window=window,
            urgent=urgent,
        )

    def carried(self, direction: Direction, segment: bytes) -> bytes:
        """An IP packet with the segment."""
        source, destination = self.ends if direction is C else self.ends[::-1]
        layer = ipv6 if ":" in source[0] else ipv4
        return layer(source[0], destination[0], segment)

    def packet(
        self,
        direction: Direction,
        offset: int,
        data: bytes = b"",
        *,
        flags: int = PSH | ACK,
        ack: int | None = None,
        options: bytes = b"",
        window: int = 65535,
        urgent: int = 0,
    ) -> bytes:
        """An IP packet with `segment`."""
        made = self.segment(
            direction,
            offset,
            data,
            flags=flags,
            ack=ack,
            options=options,
            window=window,
            urgent=urgent,
        )
        return self.carried(direction, made)

    def c(self, offset: int, data: bytes = b"", ack: int | None = None) -> bytes:
        """The client says `data` at `offset`."""
        return self.packet(C, offset, data, ack=ack)

    def s(self, offset: int, data: bytes = b"", ack: int | None = None) -> bytes:
        """The server says `data` at `offset`."""
        return self.packet(S, offset, data, ack=ack)

    def acks(self, direction: Direction, offset: int) -> bytes:
        """One end acknowledges what the other said before `offset`."""
        return self.packet(direction, self.said[direction], flags=ACK, ack=offset)

    def syn(self, data: bytes = b"") -> bytes:
        return self.open(C, SYN, data)

    def syn_ack(self, ack: int = 0) -> bytes:
        return self.open(S, SYN | ACK, ack=ack)

    def open(self, direction: Direction, flags: int, data: bytes = b"", ack: int = 0) -> bytes:
        """A SYN, or one that acknowledges."""
        source, destination = self.ends if direction is C else self.ends[::-1]
        made = tcp(
            (source[1], destination[1]),
            self.isn[direction],
            self.isn[direction.opposite] + 1 + ack if flags & ACK else 0,
            flags,
            data,
            options=MSS,
        )
        return self.carried(direction, made)

    def opening(self) -> list[bytes]:
        """The three of the handshake."""
        return [self.syn(), self.syn_ack(), self.packet(C, 0, flags=ACK, ack=0)]

    def fin(
        self, direction: Direction, offset: int, data: bytes = b"", ack: int | None = None
    ) -> bytes:
        return self.packet(direction, offset, data, flags=FIN | ACK, ack=ack)

    def rst(self, direction: Direction, offset: int, data: bytes = b"") -> bytes:
        return self.packet(direction, offset, data, flags=RST | ACK)

    def closing(self, sent: int, received: int) -> list[bytes]:
        """Both ends finish, the client first; how much each has said."""
        return [
            self.fin(C, sent, ack=received),
            self.fin(S, received, ack=sent + 1),
            self.packet(C, sent + 1, flags=ACK, ack=received + 1),
        ]


# --- a capture ------------------------------------------------------------------------------------

BEGAN_US = 1_227_567_676_000_000
STEP_US = 1000


class Cut(NamedTuple):
    """A frame of which the capture kept the first bytes only."""

    frame: bytes
    kept: int


Captured = bytes | Cut | float  # a frame, or seconds that pass without one


def timed(frames: Iterable[Captured]) -> Iterator[tuple[int, bytes, int]]:
    """Time in microseconds, the bytes kept, the length on the wire; frames follow each other in a
    millisecond."""
    time_us = BEGAN_US
    for frame in frames:
        if isinstance(frame, float):
            time_us += round(frame * 1_000_000)
            continue
        time_us += STEP_US
        whole, kept = frame if isinstance(frame, Cut) else (frame, len(frame))
        yield time_us, whole[:kept], len(whole)
