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

SLACK = 128  # bytes behind the packets that may be looked at: headers are gathered in whole rows
ETHERNET = 1
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
CONTROL = FIN | SYN | RST

_PLAIN = np.dtype(
    [
        ("ethernet", "V12"),
        ("kind", ">u4"),  # EtherType, version and header length, type of service
        ("total", ">u2"),
        ("identification", ">u2"),
        ("fragment", ">u2"),
        ("ttl", "u1"),
        ("protocol", "u1"),
        ("checksum", ">u2"),
        ("source", ">u4"),
        ("destination", ">u4"),
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("sequence", ">u4"),
        ("acknowledgment", ">u4"),
        ("header", "u1"),
        ("flags", "u1"),
        ("rest", "V8"),
    ]
)
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
_PLAIN_KIND, _PLAIN_MASK = 0x0800_4500, 0xFFFF_FF00
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
    ip: offset of the IP header; version: 4 or 6, uint8. ports: source and destination, uint16.
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
    version: NDArray[np.uint8]
    source_port: NDArray[np.uint16]
    destination_port: NDArray[np.uint16]

    def take(self, which: NDArray[Any]) -> "Segments":
        """Those of the numbers, or of the mask, `which`."""
        return Segments(*(column[which] for column in self))


def decode(packets: Packets, chosen: Chosen) -> tuple[Segments, Peeled]:
    """The TCP segments of a batch, and what else was found: fragments, and what was passed over.

    `packets.data` has `SLACK` bytes behind the last packet.
    """
    if isinstance(packets.links, int) and packets.links == ETHERNET:
        rows = gather(packets.data, packets.offsets, _PLAIN)
        plain = (
            ((rows["kind"] & _PLAIN_MASK) == _PLAIN_KIND)
            & ((rows["fragment"] & 0x3FFF) == 0)
            & (rows["protocol"] == 6)
            & (packets.captured >= _PLAIN.itemsize - 8)
            & (rows["total"] >= 40)
        )
        if plain.all():
            every = np.arange(len(plain))
            return _sound(_plain(packets, rows, every, chosen), Peeled.empty())
        others = np.flatnonzero(~plain)
        at = np.flatnonzero(plain)
        parts = [_plain(packets, rows[at], at, chosen)]
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


def _plain(packets: Packets, rows: NDArray[Any], at: NDArray[np.int64], chosen: Chosen) -> Segments:
    """Segments of Ethernet and IPv4 without options; rows: their headers."""
    if chosen.ports or chosen.hosts:
        wanted = _wanted_ports(rows["source_port"], rows["destination_port"], chosen)
        if chosen.hosts:
            words = [int.from_bytes(host, "big") for host in chosen.hosts if len(host) == 4]
            hosts = np.array(words, np.uint32)
            wanted &= np.isin(rows["source"], hosts) | np.isin(rows["destination"], hosts)
        rows, at = rows[wanted], at[wanted]
    offsets = packets.offsets[at]
    ip = offsets + _ETHERNET_IP
    source_port = rows["source_port"].astype(np.uint16)
    destination_port = rows["destination_port"].astype(np.uint16)
    source = (rows["source"].astype(np.uint64) << np.uint64(16)) | source_port
    destination = (rows["destination"].astype(np.uint64) << np.uint64(16)) | destination_port
    # A header may claim more than was on the wire.
    stop = np.minimum(ip + rows["total"], offsets + packets.lengths[at])
    return _segments(
        rows,
        at,
        source=source,
        destination=destination,
        tcp=ip + _IP_TCP,
        stop=stop,
        end=offsets + packets.captured[at],
        ip=ip,
        version=np.full(len(at), 4, np.uint8),
        source_port=source_port,
        destination_port=destination_port,
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
        rows,
        at,
        source=source,
        destination=destination,
        tcp=tcp,
        stop=peeled.stop,
        end=packets.offsets[at] + packets.captured[at],
        ip=ip,
        version=peeled.version,
        source_port=source_port,
        destination_port=destination_port,
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
    rows: NDArray[Any],
    at: NDArray[np.int64],
    *,
    source: NDArray[np.uint64],
    destination: NDArray[np.uint64],
    tcp: NDArray[np.int64],
    stop: NDArray[np.int64],
    end: NDArray[np.int64],
    ip: NDArray[np.int64],
    version: NDArray[np.uint8],
    source_port: NDArray[np.uint16],
    destination_port: NDArray[np.uint16],
) -> Segments:
    size = (rows["header"] >> 2) & 0x3C
    payload = tcp + size
    length = stop - payload
    length[size < _TCP.itemsize] = -1
    flags = rows["flags"].copy()
    length[(flags & RST != 0) & (length > 0)] = 0  # what a reset carries is no part of the stream
    sequence = rows["sequence"].astype(np.uint32)
    captured = np.clip(end - payload, 0, np.maximum(length, 0))
    return Segments(
        packet=at,
        source=source,
        destination=destination,
        sequence=sequence + ((flags >> 1) & 1),  # a SYN takes a number
        acknowledgment=rows["acknowledgment"].astype(np.uint32),
        flags=flags,
        payload=payload,
        length=length,
        captured=captured,
        ip=ip,
        version=version,
        source_port=source_port,
        destination_port=destination_port,
    )
