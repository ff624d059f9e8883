"""Captures as bytes, built from packets: pcap and pcapng of every form.

pcap([Packet(b"…", 1_700_000_000_000_000_000)], order=">", unit_ns=1)
pcapng(section(), interface(), enhanced(Packet(b"…", …)), statistics(osdrop=3))
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

ETHERNET = 1
Options = Iterable[tuple[int, bytes]]

END, COMMENT = 0, 1
WIRESHARK = 32622  # enterprise number of custom blocks with process data


class Packet(NamedTuple):
    """length: bytes on the wire, where the capture did not keep all of them."""

    data: bytes
    time_ns: int = 0
    length: int | None = None

    @property
    def wire(self) -> int:
        return len(self.data) if self.length is None else self.length


def pcap(
    packets: Iterable[Packet],
    *,
    order: str = "<",
    unit_ns: int = 1000,
    link: int = ETHERNET,
    snaplen: int = 262_144,
) -> bytes:
    """A classic pcap file. unit_ns: 1000 for the usual microseconds, 1 for nanoseconds."""
    magic = 0xA1B2C3D4 if unit_ns == 1000 else 0xA1B23C4D
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, link)]
    for packet in packets:
        seconds, rest_ns = divmod(packet.time_ns, 1_000_000_000)
        numbers = seconds, rest_ns // unit_ns, len(packet.data), packet.wire
        parts += struct.pack(order + "4I", *numbers), packet.data
    return b"".join(parts)


def pcapng(*blocks: bytes) -> bytes:
    """A pcapng file: its blocks are built by the functions below, in the same byte order."""
    return b"".join(blocks)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """Any block; the body is padded."""
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def options(given: Options, order: str = "<") -> bytes:
    """A list of options with its end; nothing at all where none is given."""
    parts = [
        struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)
        for code, value in given
    ]
    return b"".join([*parts, bytes(4)]) if parts else b""


def section(order: str = "<", *, version: int = 1, given: Options = ()) -> bytes:
    body = struct.pack(order + "IHHq", 0x1A2B3C4D, version, 0, -1)
    return block(0x0A0D0D0A, body + options(given, order), order)


def interface(
    order: str = "<",
    *,
    link: int = ETHERNET,
    snaplen: int = 0,
    resolution: int | None = None,
    offset_s: int | None = None,
    given: Options = (),
) -> bytes:
    """resolution: if_tsresol, a negative power of ten, or of two with the top bit set."""
    more = list(given)
    if resolution is not None:
        more.append((9, bytes((resolution,))))
    if offset_s is not None:
        more.append((14, struct.pack(order + "q", offset_s)))
    return block(1, struct.pack(order + "HHI", link, 0, snaplen) + options(more, order), order)


def enhanced(
    packet: Packet,
    order: str = "<",
    *,
    interface: int = 0,
    ticks: int | None = None,
    given: Options = (),
) -> bytes:
    """ticks: the time as it stands in the block; microseconds otherwise."""
    ticks = packet.time_ns // 1000 if ticks is None else ticks
    numbers = interface, ticks >> 32, ticks & 0xFFFFFFFF, len(packet.data), packet.wire
    data = packet.data + bytes(-len(packet.data) % 4)
    return block(6, struct.pack(order + "5I", *numbers) + data + options(given, order), order)


def obsolete(packet: Packet, order: str = "<", *, interface: int = 0, drops: int = 0) -> bytes:
    ticks = packet.time_ns // 1000
    numbers = interface, drops, ticks >> 32, ticks & 0xFFFFFFFF, len(packet.data), packet.wire
    return block(2, struct.pack(order + "HHIIII", *numbers) + packet.data, order)


def simple(packet: Packet, order: str = "<") -> bytes:
    return block(3, struct.pack(order + "I", packet.wire) + packet.data, order)


def statistics(
    order: str = "<", *, interface: int = 0, ifdrop: int | None = None, osdrop: int | None = None
) -> bytes:
    given = [
        (code, struct.pack(order + "Q", count))
        for code, count in ((5, ifdrop), (7, osdrop))
        if count is not None
    ]
    return block(5, struct.pack(order + "III", interface, 0, 0) + options(given, order), order)


def process(pid: int, given: Options = (), order: str = "<") -> bytes:
    """A Process Information Block as Wireshark writes it; its inside is always little-endian."""
    entry = struct.pack("<I", pid) + options(given)
    body = struct.pack(order + "I", WIRESHARK) + struct.pack("<II", 3, len(entry)) + entry
    return block(0xBAD, body, order)


def apple_process(pid: int, name: str, order: str = "<") -> bytes:
    given = [(2, name.encode()), (4, bytes(range(16)))]
    return block(0x80000001, struct.pack(order + "I", pid) + options(given, order), order)


def pid_option(pid: int, order: str = "<") -> tuple[int, bytes]:
    """epb_processid_threadid."""
    return 8, struct.pack(order + "II", pid, 0)
