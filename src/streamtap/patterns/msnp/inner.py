"""MSNP that HTTP carries: a client's bytes, wherever they stood, to patterns."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from streamtap.events import Event
from streamtap.model import Direction, Flow
from streamtap.patterns.level import Level
from streamtap.patterns.links import Links
from streamtap.patterns.model import Meaning
from streamtap.patterns.msnp.chunks import Chunks
from streamtap.patterns.msnp.client import Place
from streamtap.patterns.msnp.flow import MsnpFlow
from streamtap.protocols import Limits
from streamtap.protocols.msnp import MsnpParser

LOST = 1 << 30  # bytes, more than any payload: nobody knows how many were lost


class Memory(NamedTuple):
    """What flows share. limits: of the parsers of what HTTP carries."""

    links: Links
    chunks: Chunks
    level: Level
    limits: Limits


class Inner:
    """One MSNP connection inside of one or several HTTP connections.

    flow: the first of them. server: host:port that the bytes are for, or "".
    """

    def __init__(self, flow: Flow, server: str, memory: Memory, *, midstream: bool) -> None:
        if midstream != flow.midstream:
            flow = replace(flow, midstream=midstream)
        self._parser = MsnpParser(limits=memory.limits, midstream=midstream)
        self._flow = MsnpFlow(flow, memory.links, memory.chunks, memory.level)
        if server:
            self._flow.reached(server)

    @property
    def held(self) -> int:
        """Bytes stored now."""
        return self._parser.held

    def receive(self, place: Place, data: bytes) -> list[Meaning]:
        """The next bytes of a direction. Patterns stand where the bytes are that complete them."""
        return self._told(place, self._parser.receive(place.direction, data))

    def lost(self, place: Place) -> list[Meaning]:
        """Bytes of a direction were lost here."""
        return self._told(place, self._parser.gap(place.direction, LOST))

    def closed(self, place: Place, reason: str) -> list[Meaning]:
        """It ended; `reason` as in `model.Closed`."""
        told: list[Meaning] = []
        for direction in Direction:
            side = place._replace(direction=direction)
            told += self._told(side, self._parser.end(direction))
        told += self._flow.unfinished()
        return told + _moved(place, self._flow.closed(place.time_ns, reason))

    def _told(self, place: Place, events: Iterable[Event]) -> list[Meaning]:
        told: list[Meaning] = []
        self._flow.stands(place)
        for event in events:
            meanings = self._flow.interpret(place.direction, place.time_ns, event)
            told += _moved(place, meanings)
        return told


def _moved(place: Place, meanings: Sequence[Meaning]) -> list[Meaning]:
    flow_id, direction, time_ns, offset, length = place
    return [
        Meaning(flow_id, direction, time_ns, replace(item.pattern, offset=offset, length=length))
        for item in meanings
    ]
