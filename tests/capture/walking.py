"""Reads a whole capture from memory, as the product does; and the plainest reference."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.container import Layout, Packets, Process, Stop
from streamtap.capture.drops import Drops
from streamtap.capture.pcapfile import HEADER, read_header


class Read:
    """What a capture holds. stop: why and where the reading ended."""

    def __init__(self, raw: bytes) -> None:
        self.data: NDArray[np.uint8] = np.frombuffer(raw, np.uint8)
        self.packets: list[bytes] = []
        self.lengths: list[int] = []
        self.times_ns: list[int] = []
        self.links: list[int] = []
        self.processes: list[Process] = []
        self._drops = Drops()
        self.layout, self.at = read_header(raw[:HEADER], "x.pcap")
        self.stop = Stop.CHANGE
        while self.stop in (Stop.CHANGE, Stop.PAUSE):
            records, self.at, self.stop = self.layout.walk(self.data, self.at, len(raw))
            if len(records):
                packets, self.layout, dropped = self.layout.read(self.data, records)
                self._add(packets)
                self._drops.add(dropped)
            if self.stop is Stop.CHANGE:
                if (changed := self.layout.change(self.data, self.at)) is None:
                    break
                self.layout, self.at = changed

    @property
    def dropped(self) -> int:
        return self._drops.total

    def _add(self, packets: Packets) -> None:
        ends = packets.offsets + packets.captured
        for at, end in zip(packets.offsets.tolist(), ends.tolist(), strict=True):
            assert end <= len(self.data)
            self.packets.append(self.data[at:end].tobytes())
        self.lengths += packets.lengths.tolist()
        self.times_ns += packets.times_ns.tolist()
        count = len(packets.offsets)
        links: Any = packets.links
        self.links += [links] * count if isinstance(links, int) else links.tolist()
        keys = np.zeros(count, np.int64) if packets.processes is None else packets.processes
        self.processes += [
            packets.identities[key] if packets.identities else Process(0) for key in keys.tolist()
        ]


def layout_of(raw: bytes) -> tuple[Layout, int, NDArray[np.uint8]]:
    """The layout behind a capture's headers, and where its records begin."""
    data: NDArray[np.uint8] = np.frombuffer(raw, np.uint8)
    layout, at = read_header(raw[:HEADER], "x.pcap")
    if (changed := layout.change(data, at)) is not None:
        layout, at = changed
    return layout, at, data


def pcap_records(raw: bytes, order: str = "<") -> tuple[list[int], int]:
    """Where the records of a pcap file begin, and where the first that is not whole would."""
    at, found = HEADER, []
    while at + 16 <= len(raw):
        (captured,) = struct.unpack_from(order + "I", raw, at + 8)
        if at + 16 + captured > len(raw):
            break
        found.append(at)
        at += 16 + captured
    return found, at


def pcapng_blocks(raw: bytes, order: str = "<") -> tuple[list[int], int]:
    """The same of a pcapng file's packet blocks, in one section."""
    at, found = 0, []
    while at + 12 <= len(raw):
        kind, size = struct.unpack_from(order + "II", raw, at)
        if at + size > len(raw):
            break
        if kind in (2, 3, 6):
            found.append(at)
        at += size
    return found, at
