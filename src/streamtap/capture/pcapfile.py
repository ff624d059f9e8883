"""Classic pcap files, and what a file is by its first bytes.

Format: draft-ietf-opsawg-pcap. A file header, then records of 16 bytes and a packet each.
"""

import re
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from struct import Struct
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.chain import Form, follow
from streamtap.capture.container import (
    LARGEST_PACKET,
    MOST_RECORDS,
    Layout,
    Packets,
    Process,
    Stop,
    Taken,
)
from streamtap.capture.pcapng import PcapngLayout
from streamtap.errors import CaptureFileError

__all__ = ["HEADER", "Layout", "Packets", "PcapLayout", "Process", "Stop", "read_header"]

HEADER = 24  # bytes that tell what a file is
_RECORD = 16  # bytes of a record before its packet
_ROW = np.dtype((np.void, _RECORD))
_HEADER_OF = {order: Struct(order + "4I").unpack_from for order in "<>"}
_CANDIDATES = 64  # places looked at for a guess: more, and it costs more than it saves
# A snapshot length up to this is believed; what is above stands for "no limit" at best.
_LARGEST_SNAPLEN = 16 << 20

# magic -> byte order, nanoseconds in a unit of the time's second half
_PCAP = {
    bytes.fromhex("d4c3b2a1"): ("<", 1000),
    bytes.fromhex("a1b2c3d4"): (">", 1000),
    bytes.fromhex("4d3cb2a1"): ("<", 1),
    bytes.fromhex("a1b23c4d"): (">", 1),
}


@dataclass(frozen=True)
class PcapLayout:
    """A classic pcap file: one byte order, one link type.

    unit_ns: nanoseconds in a unit of the time's second half: 1000 or 1.
    longest: of a record, in bytes.
    """

    order: str
    unit_ns: int
    link: int
    longest: int

    def walk(
        self, data: NDArray[np.uint8], start: int, stop: int
    ) -> tuple[NDArray[np.int64], int, Stop]:
        form = self._form
        offsets, at = follow(data, start, stop, form, partial(self._guess, data))
        if (blank := self._first_blank(data, offsets, at)) < len(offsets):
            return offsets[:blank], int(offsets[blank]), Stop.BAD
        if len(offsets) > MOST_RECORDS:
            return offsets[:MOST_RECORDS], int(offsets[MOST_RECORDS]), Stop.PAUSE
        if at >= stop or at + _RECORD > len(data):
            return offsets, at, Stop.END
        (captured,) = Struct(self.order + "I").unpack_from(data.data, at + form.field)
        return offsets, at, Stop.BAD if captured + _RECORD > self.longest else Stop.END

    def _first_blank(self, data: NDArray[np.uint8], offsets: NDArray[np.int64], end: int) -> int:
        """The first record of zeros alone, among those up to `end`: no packet has no byte on the
        wire, and where a file was not written there are zeros."""
        empty = np.flatnonzero(np.diff(offsets, append=end) == _RECORD)
        blank = ~_rows(data)[offsets[empty]].view(np.uint64).reshape(-1, 2).any(axis=1)
        return int(empty[blank.argmax()]) if blank.any() else len(offsets)

    def read(self, data: NDArray[np.uint8], records: NDArray[np.int64]) -> Taken:
        headers = _rows(data)[records].view(self.order + "u4").reshape(len(records), 4)
        seconds, fraction, captured, lengths = headers.T.astype(np.int64)
        packets = Packets(
            data,
            records + _RECORD,
            captured,
            np.maximum(captured, lengths),
            seconds * 1_000_000_000 + fraction * self.unit_ns,
            self.link,
        )
        return Taken(packets, self)  # records of a pcap file tell of nothing but packets

    def change(self, data: NDArray[np.uint8], at: int, base: int = 0) -> None:
        return None  # nothing in a pcap file changes its layout

    def guess(self, data: NDArray[np.uint8], start: int, stop: int) -> int:
        return self._find(data.data, start, stop, None)

    def _guess(self, data: NDArray[np.uint8], start: int, stop: int, near: int) -> int:
        """The same, knowing that a record begins at `near`: the times of two records that are
        near one another differ only in their lower halves, and by a literal is quickly found."""
        view = data.data
        seconds = _HEADER_OF[self.order](view, near)[0]
        for high in (seconds >> 16, (seconds >> 16) + 1):
            found = self._find(view, start, stop, high & 0xFFFF)
            if found >= 0:
                return found
        return -1

    def _find(self, view: memoryview, start: int, stop: int, high: int | None) -> int:
        pattern, lead = _header_pattern(self.order, self.unit_ns, high)
        matches = pattern.finditer(view, start + lead, min(len(view), stop + _RECORD))
        for match in islice(matches, _CANDIDATES):
            at = match.start() - lead
            if at >= stop:
                break
            if self._looks_right(view, at):
                return at
        return -1

    def _looks_right(self, view: memoryview, at: int) -> bool:
        """Four headers, each where the one before it says, with times of one day."""
        read = _HEADER_OF[self.order]
        day = 0
        for seen in range(4):
            if at + _RECORD > len(view):
                return seen > 1
            seconds, fraction, captured, length = read(view, at)
            if fraction * self.unit_ns >= 1_000_000_000 or not 0 < captured <= length:
                return False
            if captured > LARGEST_PACKET or abs(seconds - (day or seconds)) > 86_400:
                return False
            day = seconds
            at += _RECORD + captured
        return True

    @property
    def _form(self) -> Form:
        return Form(self.order, 8, _RECORD, _RECORD, _RECORD, self.longest)


def _rows(data: NDArray[np.uint8]) -> NDArray[np.void]:
    """A row at each byte, overlapping: those wanted are then gathered in one go."""
    return np.ndarray((max(0, len(data) - _RECORD + 1),), _ROW, data, 0, (1,))


@lru_cache(maxsize=32)
def _header_pattern(order: str, unit_ns: int, high: int | None) -> tuple[re.Pattern[bytes], int]:
    """Finds what may be a record's header; and how far into the header the pattern begins.

    high: the upper half of the seconds, where it is known.
    """
    # Most significant byte first; what has more bytes than are told may be anything below.
    fields = (
        (rb"\0", rb"[\0-\x0f]") if unit_ns == 1000 else (rb"[\0-\x3b]",),  # below a second
        (rb"\0", rb"[\0-\x10]"),  # bytes captured, up to LARGEST_PACKET
        (rb"\0",),  # bytes on the wire
    )
    little = order == "<"
    rest = b"" if little else b".."  # the lower half of the seconds
    for field in fields:
        padded = [*field, *[b"."] * (4 - len(field))]
        rest += b"".join(reversed(padded) if little else padded)
    known = b"" if high is None else re.escape(high.to_bytes(2, "little" if little else "big"))
    pattern = known + b"(?=" + (b"" if known else b"..") + rest + b")"
    return re.compile(pattern, re.DOTALL), 2 if little else 0


def read_header(head: bytes, name: str = "capture") -> tuple[Layout, int]:
    """The layout of a file by its first HEADER bytes, and where its first record begins.

    Raises CaptureFileError, naming what the file is instead.
    """
    magic = bytes(head[:4])
    if magic in _PCAP:
        return _read_pcap_header(head, name)
    if magic == _PCAPNG:
        return PcapngLayout(name), 0  # its first block changes what is known of it
    _refuse(head, name)


def _read_pcap_header(head: bytes, name: str) -> tuple[PcapLayout, int]:
    if len(head) < HEADER:
        raise CaptureFileError(name, len(head), "the file ends within its header")
    order, unit_ns = _PCAP[bytes(head[:4])]
    major, minor, _, _, snaplen, link = Struct(order + "HHiIII").unpack_from(head, 4)
    if major != 2:
        raise CaptureFileError(name, 4, f"pcap version {major}.{minor} is not known")
    largest = max(LARGEST_PACKET, snaplen if snaplen <= _LARGEST_SNAPLEN else 0)
    # The upper half of the link type tells of a frame check sequence; packets.py needs none.
    return PcapLayout(order, unit_ns, link & 0xFFFF, _RECORD + largest), HEADER


_PCAPNG = bytes.fromhex("0a0d0d0a")

# What else a file may be, by its first bytes.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (bytes.fromhex("34cdb2a1"), "a pcap file as modified by Kuznetzov, which streamtap can't read"),
    (bytes.fromhex("a1b2cd34"), "a pcap file as modified by Kuznetzov, which streamtap can't read"),
    (b"snoop\0\0\0", "a snoop file of Solaris, not pcap or pcapng"),
    (b"\x7fELF", "a program, not a capture"),
    (b"\x1f\x8b", "compressed twice"),
    (b"\x28\xb5\x2f\xfd", "compressed twice"),
    (b"BZh", "compressed by bzip2, which streamtap can't read"),
    (b"\xfd7zXZ\0", "compressed by xz, which streamtap can't read"),
    (b"\x04\x22\x4d\x18", "compressed by lz4, which streamtap can't read"),
    (b"PK\x03\x04", "a zip archive, not a capture"),
    (b"SQLite format 3\0", "an SQLite file, not a capture"),
    (b"GMBU", "a Microsoft Network Monitor file, not pcap or pcapng"),
    (b"RTSS", "a Microsoft Network Monitor file, not pcap or pcapng"),
    (b"{", "JSON text, not a capture"),
)


def _refuse(head: bytes, name: str) -> NoReturn:
    what = "not a pcap or pcapng file"
    if not head:
        what = "an empty file"
    elif all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        what = "text, not a capture"
    for magic, other in _OTHERS:
        if head.startswith(magic):
            what = other
            break
    raise CaptureFileError(name, None, f"is {what}")
