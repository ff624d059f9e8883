"""Stretches of captures: packets by column -> what each says, whoever does the work.

`decode_stretch` is what is done with the packets of a stretch; `Serial` does it for one stretch
after the other, `workers` in several processes.
"""

import mmap
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.container import Packets, Process
from streamtap.capture.packets import Chosen, Segments, decode
from streamtap.capture.payloads import Payload, Payloads
from streamtap.capture.reader import PacketSource
from streamtap.capture.runs import Runs, Strands, find_runs
from streamtap.errors import CaptureFileError


class Fragment(NamedTuple):
    """A part of an IP packet that holds TCP: its bytes from the IP header on."""

    time_ns: int
    version: int
    data: bytes


class Stretch(NamedTuple):
    """What the packets of a stretch say. packets: how many; last_ns: time of the latest. passed:
    those that hold no segment, by reason. process: of each strand, in `identities`; None without
    process data."""

    strands: Strands
    runs: Runs
    fragments: tuple[Fragment, ...]
    identities: tuple[Process, ...]
    packets: int
    last_ns: int
    passed: Counter[str]


def decode_stretch(packets: Packets, chosen: Chosen, payloads: Payloads) -> Stretch:
    """Decodes packets, whose data has `SLACK` bytes more; their payload goes to `payloads`."""
    segments, peeled = decode(packets, chosen)
    packets = packets._replace(times_ns=_apart(packets.times_ns, segments))
    strands, runs = find_runs(packets, segments, payloads, boundaries=chosen.boundaries)
    fragments = tuple(
        Fragment(
            int(packets.times_ns[cut.packet]),
            cut.version,
            packets.data[cut.ip : cut.end].tobytes(),
        )
        for cut in peeled.fragments
    )
    count = len(packets.offsets)
    last_ns = int(packets.times_ns.max()) if count else 0
    return Stretch(strands, runs, fragments, packets.identities, count, last_ns, peeled.passed)


def _apart(times_ns: NDArray[np.int64], segments: Segments) -> NDArray[np.int64]:
    """The times of packets. Where more than one end spoke at one time, as by the coarse clocks of
    old, those that are equal are a nanosecond apart, as far as there is room before the next: what
    was said in one tick has an order all the same."""
    says = np.flatnonzero(segments.length > 0)
    packet, source, destination = (
        column[says] for column in (segments.packet, segments.source, segments.destination)
    )
    times = times_ns[packet]
    mixed = times[1:] == times[:-1]
    mixed &= (source[1:] != source[:-1]) | (destination[1:] != destination[:-1])
    if not mixed.any():
        return times_ns
    fresh = np.append(True, times_ns[1:] != times_ns[:-1])
    begins = np.flatnonzero(fresh)
    row = np.cumsum(fresh) - 1  # of packets of one time
    room = np.zeros(len(begins), np.int64)
    of_mixed = row[packet[1:][mixed]]
    room[of_mixed] = np.append(np.diff(times_ns[begins]), len(times_ns))[of_mixed] - 1
    ranks = np.arange(len(times_ns)) - begins[row]
    apart: NDArray[np.int64] = times_ns + np.minimum(ranks, room.clip(0)[row])
    return apart


class StretchSource(Protocol):
    """Gives what each stretch of captures says, with its payload, valid until the next is asked
    for. problems, dropped, progress: as of a `PacketSource`."""

    @property
    def progress(self) -> float | None: ...

    @property
    def problems(self) -> list[CaptureFileError]: ...

    @property
    def dropped(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Stretch, Payload]]: ...

    def close(self) -> None: ...


class Serial:
    """Decodes packets as they are read."""

    def __init__(self, source: PacketSource, chosen: Chosen) -> None:
        self._source = source
        self._chosen = chosen
        self._payloads = Mapped()

    def __iter__(self) -> Iterator[tuple[Stretch, Payload]]:
        for packets in self._source:
            yield self.decode(packets)

    def decode(self, packets: Packets) -> tuple[Stretch, Payload]:
        found = decode_stretch(packets, self._chosen, self._payloads.payloads)
        return found, self._payloads.view(self._payloads.payloads.size)

    @property
    def problems(self) -> list[CaptureFileError]:
        return self._source.problems

    @property
    def dropped(self) -> int:
        return self._source.dropped

    @property
    def progress(self) -> float | None:
        return self._source.progress

    def close(self) -> None:
        self._source.close()
        self._payloads.close()


class Mapped:
    """Payloads, and the memory that they lie in."""

    def __init__(self) -> None:
        self.payloads = Payloads()
        self._map: mmap.mmap | None = None

    def view(self, size: int) -> Payload:
        """What was put together last, by whichever process: `size` bytes, of which a slice is
        a copy."""
        if not size:
            return b""
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self.payloads.fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        return self._map

    def close(self) -> None:
        self._map = None  # a map has a descriptor of its own
        self.payloads.close()
