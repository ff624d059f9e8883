"""Small captures with what is to be understood of them: see tests/captures.

A capture is described by the packets that are in it, and by the streams that the two ends meant;
never by what streamtap makes of it.
"""

import gzip
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from helpers.packets import Captured, timed
from streamtap.model import Direction

ETHERNET, NULL, PPP, RAW, C_HDLC, LOOP, SLL, SLL2 = 1, 0, 9, 101, 104, 108, 113, 276


class Hole(NamedTuple):
    """Bytes that nobody can know."""

    length: int
    cause: str = "unseen"


class Counted(NamedTuple):
    """Bytes that were on the wire, and that the capture did not keep."""

    length: int


Part = bytes | Hole | Counted


class Heard(NamedTuple):
    """One flow: what each end said, in order; which bytes came again with other content, as
    (direction, offset, length); the limits that were met; how it ended."""

    to_server: Sequence[Part] = ()
    to_client: Sequence[Part] = ()
    client: str = "10.0.0.1:40000"
    server: str = "192.0.2.1:7000"
    midstream: bool = False
    reason: str = "fin"
    overlaps: Sequence[tuple[Direction, int, int]] = ()
    limits: Sequence[str] = ()


class Case(NamedTuple):
    """A capture: `name` with `.pcap`, `.pcapng` or `.pcap.gz`.

    text: what it is about. flows: in the order in which they begin. records: some of those that
    are told, in order: the event with some of its fields.
    """

    name: str
    text: str
    frames: Sequence[Captured]
    flows: Sequence[Heard]
    link: int = ETHERNET
    suffix: str = ".pcap"
    tunnels: bool = False
    records: Sequence[tuple[str, Mapping[str, Any]]] = ()

    @property
    def file_name(self) -> str:
        return self.name + self.suffix


def contents(case: Case) -> bytes:
    """The capture file; one that is compressed, before that."""
    return _pcapng(case) if case.suffix == ".pcapng" else _pcap(case)


def compressed(case: Case) -> bytes:
    """The file as it is stored."""
    data = contents(case)
    return gzip.compress(data, mtime=0) if case.suffix.endswith(".gz") else data


def _pcap(case: Case) -> bytes:
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, case.link)]
    for time_us, kept, length in timed(case.frames):
        parts += [struct.pack("<IIII", *divmod(time_us, 1_000_000), len(kept), length), kept]
    return b"".join(parts)


def _pcapng(case: Case) -> bytes:
    parts = [
        _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)),
        _block(1, struct.pack("<HHI", case.link, 0, 262_144)),
    ]
    for time_us, kept, length in timed(case.frames):
        high, low = divmod(time_us, 1 << 32)
        parts.append(_block(6, struct.pack("<IIIII", 0, high, low, len(kept), length) + kept))
    return b"".join(parts)


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size
