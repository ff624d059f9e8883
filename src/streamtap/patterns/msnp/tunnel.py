"""MSNP through an HTTP proxy (CONNECT): told by the first bytes in the tunnel."""

from collections.abc import Sequence
from typing import NamedTuple

from streamtap.model import Direction, Flow
from streamtap.patterns.model import Meaning
from streamtap.patterns.msnp.client import Place
from streamtap.patterns.msnp.inner import Inner, Memory
from streamtap.protocols import Limits, Verdict
from streamtap.protocols.http import HttpRequest
from streamtap.protocols.msnp import MsnpParser

BOUND = Limits().probe  # bytes of each direction by which a tunnel is decided


class Waiting(NamedTuple):
    """Bytes in a tunnel of which nobody knows yet what they are; None where some were lost."""

    place: Place
    data: bytes | None


class Tunnel:
    """One connection after CONNECT. inner: what it carries, once that is MSNP."""

    def __init__(self, flow: Flow, target: str) -> None:
        self._flow = flow
        self._target = target
        self._heads = (bytearray(), bytearray())
        self._holes = [False, False]  # the other end has to tell
        self.waiting: list[Waiting] = []
        self.inner: Inner | None = None
        self.last: Place | None = None

    def receive(self, place: Place, data: bytes, memory: Memory) -> list[Meaning] | None:
        """The next bytes; None if they are no MSNP, nor those in `waiting`."""
        self.last = place
        if self.inner is not None:
            return self.inner.receive(place, data)
        self.waiting.append(Waiting(place, data))
        head = self._heads[place.direction]
        head += data[: BOUND - len(head)]
        shown = zip(self._heads, self._holes, strict=True)
        verdict = MsnpParser.probe(*(b"" if hole else bytes(head) for head, hole in shown))
        if verdict is Verdict.NO or (verdict is Verdict.MORE and len(head) >= BOUND):
            return None
        told: list[Meaning] = []
        if verdict is Verdict.YES:
            self.inner = Inner(self._flow, self._target, memory, midstream=False)
            for where, what in self.waiting:
                told += self.inner.lost(where) if what is None else self.inner.receive(where, what)
            self.waiting = []
        return told

    def lost(self, direction: Direction, time_ns: int) -> list[Meaning]:
        """Bytes of a direction were lost."""
        if self.last is None:
            return []
        place = self.last._replace(direction=direction, time_ns=time_ns)
        if self.inner is not None:
            return self.inner.lost(place)
        self._holes[direction] = True
        self.waiting.append(Waiting(place, None))
        return []


class Tunnels:
    """The tunnels of all flows that asked for one and may still carry MSNP."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._open: dict[int, Tunnel] = {}

    def asked(self, flow: Flow, event: HttpRequest) -> None:
        """A request that may begin a tunnel, or shows that none began."""
        if event.method == "CONNECT":
            self._open[flow.flow_id] = Tunnel(flow, event.target)
        else:
            self._open.pop(flow.flow_id, None)

    def receive(
        self, flow: Flow, place: Place, data: bytes | memoryview | None
    ) -> tuple[Sequence[Meaning], Sequence[Waiting]] | None:
        """What bytes of a tunnel mean; with them the bytes that proved to be no MSNP. None where
        that was known before."""
        tunnel = self._open.get(flow.flow_id)
        if tunnel is None:
            return None
        told = tunnel.receive(place, bytes(data or b""), self._memory)
        if told is None:
            del self._open[flow.flow_id]
            return (), tunnel.waiting
        return told, ()

    def lost(self, flow: Flow, direction: Direction, time_ns: int) -> Sequence[Meaning]:
        tunnel = self._open.get(flow.flow_id)
        return () if tunnel is None else tunnel.lost(direction, time_ns)

    def closed(
        self, flow: Flow, time_ns: int, reason: str
    ) -> tuple[Sequence[Meaning], Sequence[Waiting]]:
        tunnel = self._open.pop(flow.flow_id, None)
        if tunnel is None or tunnel.last is None:
            return (), ()
        if tunnel.inner is None:
            return (), tunnel.waiting
        return tunnel.inner.closed(tunnel.last._replace(time_ns=time_ns), reason), ()
