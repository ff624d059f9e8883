"""Payloads that came with a listener, kept until the connection that they open is known."""

from collections import OrderedDict
from typing import Any, NamedTuple

from msgspec.structs import replace

from streamtap.model import Segment

ORPHANS = 1024  # payloads kept
ORPHAN_BYTES = 4 << 20  # the same in bytes
ORPHANS_OF_ONE = 64  # of one connection: more than an initial window of segments (RFC 6928)
# The opening comes within milliseconds. Where the listener had no room for the connection it comes
# seconds later, but the peer has then sent the payload again.
ORPHAN_NS = 5_000_000_000

MAPPED = b"\0" * 10 + b"\xff\xff"


class Ends(NamedTuple):
    """What both a packet and a socket say of a connection: network namespace, address and port of
    the local end, and of the remote end. An IPv6 socket knows its IPv4 peer by a mapped address
    (RFC 4291 §2.5.5.2), so every IPv4 address is written that way."""

    space: int
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Ends":
        """Those in an `orphan_tuple` or an `opened_record`."""
        local, remote = record["local"], record["remote"]
        if record["family"] == 4:
            local, remote = MAPPED + local[:4], MAPPED + remote[:4]
        return cls(record["space"], local, record["local_port"], remote, record["remote_port"])


class Orphans:
    """Payloads without a connection. Anybody may send to a listener, also what opens nothing: so
    they are bounded, and forgotten after a while.

    lost: those that could not be kept long enough.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._accepted: dict[Ends, int] = {}  # connections that are open, and their flows
        self._waiting: OrderedDict[Ends, list[Segment]] = OrderedDict()  # the oldest first
        self._count = 0
        self._bytes = 0

    def add(self, ends: Ends, segment: Segment) -> list[Segment]:
        """A segment, whose data is bytes of its own: that of its connection, if it is open; else it
        is kept for `claim`."""
        flow_id = self._accepted.get(ends)
        if flow_id is not None:
            return [replace(segment, flow_id=flow_id)]
        while self._waiting:
            first, waiting = next(iter(self._waiting.items()))
            if segment.time_ns - waiting[0].time_ns <= ORPHAN_NS:
                break
            self._take(first)  # it opened nothing: no connection misses it
        if len(self._waiting.get(ends, ())) >= ORPHANS_OF_ONE:
            self.lost += 1
            return []
        self._waiting.setdefault(ends, []).append(segment)
        self._count += 1
        self._bytes += len(segment.data)
        while self._count > ORPHANS or self._bytes > ORPHAN_BYTES:
            self.lost += len(self._take(next(iter(self._waiting))))
        return []

    def claim(self, ends: Ends, flow_id: int) -> list[Segment]:
        """A connection is open: the payloads that came for it before, in their order."""
        self._accepted[ends] = flow_id
        if ends not in self._waiting:
            return []
        return [replace(segment, flow_id=flow_id) for segment in self._take(ends)]

    def closed(self, ends: Ends, flow_id: int) -> None:
        """A flow has ended; another may have the same ends already."""
        if self._accepted.get(ends) == flow_id:
            del self._accepted[ends]

    def _take(self, ends: Ends) -> list[Segment]:
        taken = self._waiting.pop(ends)
        self._count -= len(taken)
        self._bytes -= sum(len(segment.data) for segment in taken)
        return taken
