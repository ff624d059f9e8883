"""Packets of a capture by column -> their TCP segments, by column.

Nearly all packets of a capture are Ethernet, IPv4 without options, TCP: their headers are gathered
in one go, and each field is one NumPy operation for all of them. The others are peeled layer by
layer, all packets that are at the same kind of header at a time: see `peel`.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.container import Packets
from streamtap.capture.peel import MALFORMED, Peeled, address_words, gather, peel

SLACK = 2048  # bytes behind the packets that may be looked at: what is gathered is in whole rows
ETHERNET = 1
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
CONTROL = FIN | SYN | RST

_TCP = np.dtype(
    [
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("sequence", ">u4"),
        ("acknowledgment", ">u4"),
        ("header", "u1"),
        ("flags", "u1"),
        ("rest", "V6"),  # window, checksum, urgent pointer
    ]
)
# Ethernet, IPv4 and TCP without options, from the sixth byte on as words of 64 bits: the end of an
# address, EtherType; version, header length, type of service, total length, identification,
# fragment; time to live, protocol, checksum, source; destination, ports; sequence and
# acknowledgment number; header length, flags, window, checksum, urgent pointer.
_PLAIN = np.dtype((np.void, 48))
_PLAIN_AT, _PLAIN_END = 6, 54
_ETHERNET_IP, _IP_TCP = 14, 20
_V6 = np.uint64(1 << 63)


class Chosen(NamedTuple):
    """Which connections are wanted: with one of the ports, and one of the addresses, at either
    end; an empty set is any. hosts: (family 4 or 6, address bytes).

    keys: what turns an IPv6 end into a number that nobody can find another end for: odd, 64 bits.
    tunnels: look into GRE, VXLAN and IP in IP.
    boundaries: tell where each segment of a run ends, and when it came.
    """

    keys: tuple[int, int, int]
    ports: frozenset[int] = frozenset()
    hosts: frozenset[bytes] = frozenset()
    tunnels: bool = False
    boundaries: bool = True


class Segments(NamedTuple):
    """TCP segments by column, each (n,), in the order of their packets.

    source, destination: the ends, as numbers: an address and a port have one number, and no two
        ends of one capture have the same. uint64.
    sequence, acknowledgment: uint32; of a SYN the number of the byte behind it.
    flags: uint8. payload: offset of the payload in the batch's data. length: of the payload on the
        wire, captured: as far as it is there; int64.
    ip, tcp: offsets of the headers.
    """

    packet: NDArray[np.int64]
    source: NDArray[np.uint64]
    destination: NDArray[np.uint64]
    sequence: NDArray[np.uint32]
    acknowledgment: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    payload: NDArray[np.int64]
    length: NDArray[np.int64]
    captured: NDArray[np.int64]
    ip: NDArray[np.int64]
    tcp: NDArray[np.int64]

    def take(self, which: NDArray[Any]) -> "Segments":
        """Those of the numbers, or of the mask, `which`."""
        return Segments(*(column[which] for column in self))


def decode(packets: Packets, chosen: Chosen) -> tuple[Segments, Peeled]:
    """The TCP segments of a batch, and what else was found: fragments, and what was passed over.

    `packets.data` has `SLACK` bytes behind the last packet.
    """
    if isinstance(packets.links, int) and packets.links == ETHERNET:
        words = _words(packets)
        ethernet, ip, ttl = words[:3]
        plain = (
            ((ethernet & 0xFFFF) == 0x0800)
            & ((ip & 0xFF00_0000_0000_3FFF) == 0x4500_0000_0000_0000)  # no options, no fragment
            & ((ttl & 0x00FF_0000_0000_0000) == 0x0006_0000_0000_0000)
            & (packets.captured >= _PLAIN_END)
            & ((ip & 0xFFFF_0000_0000) >= 40 << 32)
        )
        if plain.all():
            every = np.arange(len(plain))
            return _sound(_plain(packets, words, every, chosen), Peeled.empty())
        others = np.flatnonzero(~plain)
        at = np.flatnonzero(plain)
        parts = [_plain(packets, words[:, at], at, chosen)]
    else:
        others, parts = np.arange(len(packets.offsets)), []
    peeled = peel(packets, others, tunnels=chosen.tunnels)
    parts.append(_peeled(packets, peeled, chosen))
    joined = Segments(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if len(parts) > 1 and len(parts[1].packet):
        joined = joined.take(np.argsort(joined.packet, kind="stable"))
    return _sound(joined, peeled)


def _sound(segments: Segments, peeled: Peeled) -> tuple[Segments, Peeled]:
    """Without those whose headers are longer than the packet, which are counted."""
    sound = segments.length >= 0
    if sound.all():
        return segments, peeled
    passed = peeled.passed + Counter({MALFORMED: int(np.count_nonzero(~sound))})
    return segments.take(sound), peeled._replace(passed=passed)


def _words(packets: Packets) -> NDArray[np.uint64]:
    """(6, n), the words of packets as if they were plain."""
    rows = gather(packets.data, packets.offsets + _PLAIN_AT, _PLAIN)
    return np.ascontiguousarray(rows.view(">u8").reshape(-1, 6).T, dtype=np.uint64)


def _plain(
    packets: Packets, words: NDArray[np.uint64], at: NDArray[np.int64], chosen: Chosen
) -> Segments:
    """Segments of Ethernet and IPv4 without options, of the packets `at`."""
    if chosen.ports or chosen.hosts:
        source_port, destination_port = words[3] >> 16 & 0xFFFF, words[3] & 0xFFFF
        wanted = _wanted_ports(source_port, destination_port, chosen)
        if chosen.hosts:
            hosts = np.array(
                [int.from_bytes(host, "big") for host in chosen.hosts if len(host) == 4], np.uint64
            )
            wanted &= np.isin(words[2] & 0xFFFF_FFFF, hosts) | np.isin(words[3] >> 32, hosts)
        words, at = words[:, wanted], at[wanted]
    _, header, source, destination, numbers, tcp = words
    offsets = packets.offsets[at]
    ip = offsets + _ETHERNET_IP
    total = (header >> 32 & 0xFFFF).astype(np.int64)
    return _segments(
        at,
        source=(source & 0xFFFF_FFFF) << 16 | (destination >> 16 & 0xFFFF),
        destination=destination >> 32 << 16 | (destination & 0xFFFF),
        sequence=(numbers >> 32).astype(np.uint32),
        acknowledgment=numbers.astype(np.uint32),
        header=(tcp >> 56).astype(np.int64),
        flags=(tcp >> 48).astype(np.uint8),
        # A header may claim more than was on the wire.
        stop=np.minimum(ip + total, offsets + packets.lengths[at]),
        end=offsets + packets.captured[at],
        ip=ip,
        tcp=ip + _IP_TCP,
    )


def _peeled(packets: Packets, peeled: Peeled, chosen: Chosen) -> Segments:
    """Segments of packets whose headers were taken off one by one."""
    at, tcp, ip = peeled.packet, peeled.tcp, peeled.ip
    rows = gather(packets.data, tcp, _TCP)
    source_port = rows["source_port"].astype(np.uint16)
    destination_port = rows["destination_port"].astype(np.uint16)
    words = address_words(packets.data, ip, peeled.version)
    wanted = _wanted_ports(source_port, destination_port, chosen)
    if chosen.hosts:
        hosts = np.zeros(len(at), bool)
        for host in chosen.hosts:
            high, low = divmod(int.from_bytes(host, "big"), 1 << 64)
            family = peeled.version == (4 if len(host) == 4 else 6)
            for first in (0, 2):
                same = (words[first] == np.uint64(high)) & (words[first + 1] == np.uint64(low))
                hosts |= family & same
        wanted &= hosts
    source = _end(words[0], words[1], source_port, peeled.version, chosen)
    destination = _end(words[2], words[3], destination_port, peeled.version, chosen)
    segments = _segments(
        at,
        source=source,
        destination=destination,
        sequence=rows["sequence"].astype(np.uint32),
        acknowledgment=rows["acknowledgment"].astype(np.uint32),
        header=rows["header"].astype(np.int64),
        flags=rows["flags"].copy(),
        stop=peeled.stop,
        end=packets.offsets[at] + packets.captured[at],
        ip=ip,
        tcp=tcp,
    )
    if wanted.all():
        return segments
    return segments.take(wanted)


def _wanted_ports(source: NDArray[Any], destination: NDArray[Any], chosen: Chosen) -> NDArray[Any]:
    if not chosen.ports:
        return np.ones(len(source), bool)
    wanted = np.zeros(len(source), bool)
    for port in chosen.ports:
        wanted |= (source == port) | (destination == port)
    return wanted


def _end(
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
    port: NDArray[np.uint16],
    version: NDArray[np.uint8],
    chosen: Chosen,
) -> NDArray[np.uint64]:
    """Ends as numbers: IPv4 as it is, IPv6 through a hash whose keys nobody knows."""
    first, second, third = (np.uint64(key) for key in chosen.keys)
    ports = port.astype(np.uint64)
    mixed = high * first + low * second + ports * third
    mixed ^= mixed >> np.uint64(29)
    mixed *= first
    mixed = (mixed ^ (mixed >> np.uint64(32))) | _V6
    return np.where(version == 4, (low << np.uint64(16)) | ports, mixed)


def _segments(
    at: NDArray[np.int64],
    *,
    source: NDArray[np.uint64],
    destination: NDArray[np.uint64],
    sequence: NDArray[np.uint32],
    acknowledgment: NDArray[np.uint32],
    header: NDArray[np.int64],
    flags: NDArray[np.uint8],
    stop: NDArray[np.int64],
    end: NDArray[np.int64],
    ip: NDArray[np.int64],
    tcp: NDArray[np.int64],
) -> Segments:
    """header: the byte that tells the length of the TCP header. stop: where the segment ends on the
    wire; end: where the bytes end that are there."""
    size = header >> 2 & 0x3C
    payload = tcp + size
    length = stop - payload
    length[size < _TCP.itemsize] = -1
    resets = flags & RST != 0
    if resets.any():  # what a reset carries is no part of the stream
        length[resets & (length > 0)] = 0
    captured = np.minimum(end - payload, length)
    return Segments(
        packet=at,
        source=source,
        destination=destination,
        sequence=sequence + (flags >> 1 & 1),  # a SYN takes a number
        acknowledgment=acknowledgment,
        flags=flags,
        payload=payload,
        length=length,
        captured=np.maximum(captured, 0, out=captured),
        ip=ip,
        tcp=tcp,
    )
