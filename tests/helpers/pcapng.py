"""A second opinion on pcapng: the blocks of a file, and the packets in them, field by field.

It takes only what the writer gives: little-endian, one section, raw IP, nanoseconds.
"""

import ipaddress
import struct
from collections.abc import Iterator
from typing import NamedTuple

SECTION, INTERFACE, STATISTICS, PACKET, CUSTOM = 0x0A0D0D0A, 1, 5, 6, 0xBAD
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

Options = list[tuple[int, bytes]]


class Packet(NamedTuple):
    """A packet with its block. length: of the payload as the headers say it."""

    time_ns: int
    source: str
    destination: str
    sequence: int
    acknowledgment: int
    flags: int
    payload: bytes
    length: int
    checksum: int
    options: Options

    def option(self, code: int) -> bytes | None:
        return dict(self.options).get(code)


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each block; fails where they do not tile the file."""
    at = 0
    while at < len(data):
        kind, total = struct.unpack_from("<II", data, at)
        assert total % 4 == 0
        assert total >= 12
        assert struct.unpack_from("<I", data, at + total - 4) == (total,)
        yield kind, data[at + 8 : at + total - 4]
        at += total


def options(data: bytes) -> Options:
    """Fails where they do not fill the data, up to the one that ends them."""
    found: Options = []
    while data:
        code, length = struct.unpack_from("<HH", data)
        if code == 0:
            assert data == b"\0\0\0\0"
            return found
        value = data[4 : 4 + length]
        assert len(value) == length
        found.append((code, value))
        data = data[4 + length + (-length & 3) :]
    return found


def packets(data: bytes) -> list[Packet]:
    return [packet(body) for kind, body in blocks(data) if kind == PACKET]


def packet(body: bytes) -> Packet:
    interface, high, low, captured, original = struct.unpack_from("<5I", body)
    assert interface == 0
    frame, rest = body[20 : 20 + captured], body[20 + captured + (-captured & 3) :]
    version = frame[0] >> 4
    if version == 4:
        size = struct.unpack_from(">H", frame, 2)[0]
        assert size == original
        assert frame[0] == 0x45
        assert frame[9] == 6
        assert ones(frame[:20]) == 0xFFFF
        addresses, tcp = (frame[12:16], frame[16:20]), frame[20:]
        length = size - 20
    else:
        assert version == 6
        length = struct.unpack_from(">H", frame, 4)[0]
        assert length + 40 == original
        assert frame[6] == 6
        addresses, tcp = (frame[8:24], frame[24:40]), frame[40:]
    ports = struct.unpack_from(">HH", tcp)
    sequence, acknowledgment, word = struct.unpack_from(">IIH", tcp, 4)
    checksum = struct.unpack_from(">H", tcp, 16)[0]
    if captured == original:
        pseudo = b"".join(addresses) + struct.pack(">II", 6, length)
        assert ones(pseudo + tcp) == 0xFFFF
    ends = [
        f"{ipaddress.ip_address(address)}|{port}"
        for address, port in zip(addresses, ports, strict=True)
    ]
    offset = word >> 12 << 2
    return Packet(
        time_ns=high << 32 | low,
        source=ends[0],
        destination=ends[1],
        sequence=sequence,
        acknowledgment=acknowledgment,
        flags=word & 0x3F,
        payload=tcp[offset:],
        length=length - offset,
        checksum=checksum,
        options=options(rest),
    )


def ones(data: bytes) -> int:
    """The sum of 16-bit words by which checksums are checked (RFC 1071), word by word."""
    data += b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
