"""Fuzz targets of what reads captures: any bytes are a file, or packets in a sound file.

Whatever it holds, it is read to an end or to a problem that is told; the bytes of each direction
tile it; how much is read at a time makes no difference to the packets; and what `-w` writes of it
is a sound capture.
"""

import gzip
import io
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from helpers.captures import Packet, enhanced, interface, obsolete, pcap, pcapng, section, simple
from streamtap.capture.inputs import Input, open_input
from streamtap.capture.offline import OfflineSource
from streamtap.capture.packets import Chosen
from streamtap.capture.peel import LINKS
from streamtap.capture.reader import Reader, Single
from streamtap.capture.stretches import Serial
from streamtap.events import ParserFailed, Record
from streamtap.model import (
    Chunk,
    Closed,
    Content,
    Direction,
    Flow,
    Gap,
    Opened,
    Segment,
    StreamItem,
)
from streamtap.pipeline import Pipeline
from streamtap.trace import Output
from streamtap.trace.pcapng import Pcapng

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CAPTURES = Path(__file__).parent.parent / "captures"
PACK, PIPED, TUNNELS, HEADERS = 3, 4, 8, 16  # bits of the first byte of an input
STRETCHES = (64, 500, 1 << 16)  # bytes of the file that are read at a time
LINK_TYPES = sorted(LINKS)
NEXT = 0x8000  # of the length of a packet: its link is of another kind than that of the file
KEYS = (3, 5, 7)
GREEDY = 96 << 20  # bytes of memory that no input may take: a stretch of 10 MB is unpacked of some
START_NS = 1_700_000_000_000_000_000


def files(data: bytes) -> None:
    """A capture file as it is, or compressed; the first byte tells that, and how it is read."""
    if data:
        with _modest():
            _read(data[0], data[1:])


def _read(flags: int, text: bytes) -> None:
    pack = flags & PACK
    if pack == 1:
        text = gzip.compress(text, 1, mtime=0)
    elif pack == 2:
        text = zstd.compress(text, 1)
    _agree(text)
    written = _understand(text, flags)
    if written:
        reader = Reader(_opened(written, piped=False))
        assert sum(len(packets.offsets) for packets in reader) or reader.problem is None
        assert reader.problem is None, reader.problem
        reader.source.close()


def frames(data: bytes) -> None:
    """Packets of one link type, which the second byte chooses, each behind its length."""
    if len(data) > 2:
        text = pcap(list(_packets(data[2:])), link=LINK_TYPES[data[1] % len(LINK_TYPES)], unit_ns=1)
        files(bytes([data[0] & ~PACK]) + text)


def _packets(data: bytes) -> Iterator[Packet]:
    """From two bytes of length each, of which the highest bit says that the packet was cut."""
    at = number = 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        at += 2
        kept = data[at : at + (length & ~NEXT)]
        wire = len(kept) + 100 if length & NEXT else None
        yield Packet(kept, START_NS + number * 1_000_000, wire)
        at += len(kept)
        number += 1


@contextmanager
def _modest() -> Iterator[None]:
    """Within it the memory of this process grows by less than `GREEDY`, also for a moment."""
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # forget the most there was: proc_pid_clear_refs(5)
    before = _peak_kib()
    yield
    grown = (_peak_kib() - before) << 10
    assert grown < GREEDY, f"{grown >> 20} MiB of memory"


def _peak_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def _opened(text: bytes, *, piped: bool) -> Input:
    """The bytes as a file in memory, or as what comes out of a pipe."""
    if piped:
        reading, writing = os.pipe()
        os.write(writing, text)
        os.close(writing)
    else:
        reading = os.memfd_create("capture", os.MFD_CLOEXEC)
        os.write(reading, text)
    try:
        return open_input(f"/proc/self/fd/{reading}")
    finally:
        os.close(reading)


def _agree(text: bytes) -> None:
    """How much of the file is read at a time makes no difference."""
    seen = set()
    for stretch in STRETCHES:
        reader = Reader(_opened(text, piped=False), stretch=stretch)
        told: list[tuple[bytes, int, int, int]] = []
        with reader.source:
            for packets in reader:
                links = packets.links
                count = len(packets.offsets)
                told += zip(
                    (
                        packets.data[at : at + size].tobytes()
                        for at, size in zip(packets.offsets, packets.captured, strict=True)
                    ),
                    packets.lengths.tolist(),
                    packets.times_ns.tolist(),
                    [links] * count if isinstance(links, int) else links.tolist(),
                    strict=True,
                )
        problem = reader.problem
        seen.add((tuple(told), reader.dropped, problem and (str(problem), problem.offset)))
    assert len(seen) == 1, seen


class Tiling:
    """A tap that holds what is said of each flow to the rules of the model."""

    def __init__(self) -> None:
        self.open: dict[int, list[int]] = {}

    def opened(self, opened: Opened, first: Flow | None) -> None:
        assert opened.flow.flow_id not in self.open
        self.open[opened.flow.flow_id] = [0, 0]

    def segment(self, flow: Flow, segment: Segment) -> None:
        assert flow.flow_id in self.open
        assert len(segment.ends) == len(segment.times_ns)
        assert not segment.ends or segment.ends[-1] == len(segment.data)

    def item(self, flow: Flow, direction: Direction, item: StreamItem) -> None:
        places = self.open[flow.flow_id]
        if isinstance(item, Chunk):
            assert item.offset == places[direction]
            assert item.data is None or len(item.data) == item.ends[-1] - item.offset
            places[direction] = item.ends[-1]
        elif isinstance(item, Gap):
            assert item.offset == places[direction]
            assert item.length > 0
            places[direction] += item.length

    def closed(self, flow: Flow, closed: Closed) -> None:
        del self.open[flow.flow_id]


def _understand(text: bytes, flags: int) -> bytes:
    """Records of the capture; the same capture as `-w` writes it."""
    chosen = Chosen(KEYS, tunnels=bool(flags & TUNNELS))
    source = OfflineSource(
        Serial(Single(_opened(text, piped=bool(flags & PIPED))), chosen),
        chosen,
        acknowledgements=True,
    )
    stream, tiling = io.BytesIO(), Tiling()
    packets = Pcapng(Output(stream), payload=not flags & HEADERS, application="fuzz")
    packets.open()
    pipeline = Pipeline(content=Content.FULL, key=b"k" * 16, taps=[tiling, packets])
    records: list[Record] = []
    with closing(source), closing(packets):
        for items in source:
            records += pipeline.feed(items)
            records += pipeline.tick(source.now_ns)
            packets.flush()
        records += pipeline.feed(source.finish())
    assert not tiling.open
    for record in records:
        assert not isinstance(record.body, ParserFailed), record.body
        msgspec.json.encode(record.body)
    return stream.getvalue() if records else b""


def seeds(name: str) -> Iterator[bytes]:
    """The captures of tests/captures, and one of each kind of block and byte order."""
    for number, path in enumerate(sorted(CAPTURES.glob("*.pcap*"))):
        text = path.read_bytes()
        if name == "frames":
            if path.suffix == ".pcap":
                yield bytes([TUNNELS, _link_of(text)]) + _framed(text)
            continue
        yield bytes([0]) + text
        yield bytes([(1 + number % 2) | (number & 1) * PIPED]) + text
    if name == "files":
        packets = [Packet(path.read_bytes()[40:][:60]) for path in CAPTURES.glob("raw.pcap")]
        for order in "<>":
            yield bytes([0]) + pcapng(
                section(order),
                interface(order, link=101, resolution=0x8A, offset_s=5),
                *(make(packet, order) for packet in packets for make in (enhanced, obsolete)),
                *(simple(packet, order) for packet in packets),
            )
            yield bytes([0]) + pcap(packets, order=order, unit_ns=1, link=101)


def _link_of(text: bytes) -> int:
    return LINK_TYPES.index(int.from_bytes(text[20:24], "little"))


def _framed(text: bytes) -> bytes:
    """The packets of a pcap file as `_packets` reads them."""
    at, out = 24, bytearray()
    while at + 16 <= len(text):
        captured, length = (int.from_bytes(text[at + n : at + n + 4], "little") for n in (8, 12))
        kept = text[at + 16 : at + 16 + min(captured, NEXT - 1)]
        out += (len(kept) | NEXT * (captured < length)).to_bytes(2, "big") + kept
        at += 16 + captured
    return bytes(out)


def words() -> Iterator[bytes]:
    """What captures are made of: a dictionary for mutations."""
    return map(bytes.fromhex, WORDS.split())


# Of files, blocks, options, links and what they carry, compressed data; and numbers at the edge.
WORDS = """
d4c3b2a1 a1b2c3d4 4d3cb2a1 a1b23c4d 0a0d0d0a 4d3c2b1a 1a2b3c4d
01000000 02000000 03000000 05000000 06000000 ad0b0000 01000080 00000006
6e7f0000 09000100 0e000800 02000400 08000800 05000800
0800 86dd 8100 88a8 8847 8864 6558 aaaa030000000800 4500 6000 ff030021 0021 12b5 2000 2f04
1f8b0800 28b52ffd 502a4d18 ffffffff 00000001 7fffffff 80000000
"""
