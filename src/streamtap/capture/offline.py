"""The offline source: captures -> openings, segments and closings, as the live source gives."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from streamtap.capture.connections import MAX_FLOWS, Connections, Item, WayOf
from streamtap.capture.container import Packets
from streamtap.capture.fragments import GIVEN_UP, Fragments
from streamtap.capture.packets import SLACK, Chosen
from streamtap.capture.payloads import Payload
from streamtap.capture.stretches import Mapped, Stretch, StretchSource, decode_stretch
from streamtap.capture.workers import Workers
from streamtap.errors import CaptureFileError
from streamtap.model import LONG_AGO_NS, App

_RAW = 101  # LINKTYPE_RAW


class OfflineSource:
    """Reads captures. Iterating gives what each stretch tells, in order per flow; `finish` closes
    what is open at the end. Where there are too many flows, a stretch is told in parts, so that
    those that were given up are gone before others come.

    acknowledgements, way_of: as of `Connections`. packets: how many were read.
    """

    def __init__(
        self,
        stretches: StretchSource,
        chosen: Chosen,
        *,
        acknowledgements: bool = False,
        max_flows: int = MAX_FLOWS,
        way_of: WayOf = lambda data: None,
    ) -> None:
        self._stretches = stretches
        self._chosen = chosen
        self._connections = Connections(
            acknowledgements=acknowledgements, max_flows=max_flows, way_of=way_of
        )
        self._fragments = Fragments()
        self._whole: Mapped | None = None  # payloads of packets that came in fragments
        self._passed: Counter[str] = Counter()
        self._last_ns = LONG_AGO_NS
        self.packets = 0

    def __iter__(self) -> Iterator[list[Item]]:
        for found, payload in self._stretches:
            told, evicted = list[Item](), self.evicted
            for items in self._tell(found, payload):
                told += items
                if self.evicted != evicted:
                    evicted = self.evicted
                    yield told
                    told = []
            yield told

    def pieces(self) -> Iterator[list[Item]]:
        """The same in small pieces, which is faster for who looks at one flow at a time: what one
        stretch tells of a connection is in one piece."""
        for found, payload in self._stretches:
            yield from self._tell(found, payload)

    def _tell(self, found: Stretch, payload: Payload) -> Iterator[list[Item]]:
        self.packets += found.packets
        if found.packets:
            self._last_ns = max(self._last_ns, found.last_ns)
        pieces = self._take(found, payload)
        if found.fragments:
            # With the rest of the stretch: what an acknowledgement in it covers is no gap yet.
            yield [item for items in (*pieces, *self._mended(found)) for item in items]
        else:
            yield from pieces
        yield self._connections.settle()

    def _mended(self, found: Stretch) -> Iterator[list[Item]]:
        for fragment in found.fragments:
            whole = self._fragments.add(*fragment)
            if whole is not None:
                yield from self._take(*self._decode(fragment.time_ns, whole))

    def finish(self) -> list[Item]:
        """Closings of the flows that are open still."""
        self._fragments.finish()
        return self._connections.finish()

    def _take(self, found: Stretch, payload: Payload) -> Iterator[list[Item]]:
        self._passed += found.passed
        apps = [
            App(one.path, one.pid, one.comm, one.uid or 0, one.cgroup, one.filter)
            for one in found.identities
        ]
        return self._connections.take(found.strands, found.runs, payload, apps)

    def _decode(self, time_ns: int, packet: bytes) -> tuple[Stretch, Payload]:
        """What an IP packet says that came in fragments."""
        self._whole = self._whole or Mapped()
        data = np.frombuffer(packet + bytes(SLACK), np.uint8)
        size = np.array([len(packet)])
        packets = Packets(data, np.zeros(1, np.int64), size, size, np.array([time_ns]), _RAW)
        found = decode_stretch(packets, self._chosen, self._whole.payloads)
        return found, self._whole.view(self._whole.payloads.size)

    @property
    def is_long(self) -> bool:
        """Several processes decode it: it is long enough for that, and there are processors."""
        return isinstance(self._stretches, Workers)

    @property
    def passed(self) -> Counter[str]:
        """Packets that told nothing, by reason."""
        given_up = Counter({GIVEN_UP: self._fragments.given_up})
        return +(self._passed + self._connections.passed + given_up)

    @property
    def missing(self) -> int:
        """Bytes of payload that the capture did not keep."""
        return self._connections.missing

    @property
    def evicted(self) -> int:
        """Flows that were given up because there were too many."""
        return self._connections.evicted

    @property
    def now_ns(self) -> int:
        """Time of the latest packet of a connection; while there is none, of any packet."""
        for now_ns in (self._connections.now_ns, self._last_ns):
            if now_ns != LONG_AGO_NS:
                return now_ns
        return 0

    @property
    def dropped(self) -> int:
        """Packets that the captures themselves say they lost."""
        return self._stretches.dropped

    @property
    def progress(self) -> float | None:
        """The share of the captures that was read; None where that can't be known."""
        return self._stretches.progress

    @property
    def problems(self) -> list[CaptureFileError]:
        """What is wrong with the captures; whole when they have been read."""
        return self._stretches.problems

    def close(self) -> None:
        self._stretches.close()
        if self._whole is not None:
            self._whole.close()
