"""Meaning across flows: the one place where what is known of one flow serves another."""

from collections.abc import Sequence
from typing import cast

from streamtap.events import Event
from streamtap.model import Content, Direction, Flow
from streamtap.patterns.bursts import NOTHING, Bursts
from streamtap.patterns.http import data_of
from streamtap.patterns.level import Level
from streamtap.patterns.links import Links
from streamtap.patterns.model import Meaning
from streamtap.patterns.msnp import Chunks, Gateway, Memory, MsnpFlow, Place, Tunnels, Waiting
from streamtap.protocols import Limits
from streamtap.protocols.http import HttpBody, HttpRequest, HttpResponse, HttpTunnel
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket, MsnpPrelude
from streamtap.protocols.opaque import OpaqueData, OpaqueParser

_HttpEvent = HttpRequest | HttpResponse | HttpBody | HttpTunnel
_HTTP = frozenset({HttpRequest, HttpResponse, HttpBody, HttpTunnel})
_MSNP = frozenset({MsnpCommand, MsnpPacket, MsnpDirect, MsnpPrelude})
# Protocols that may carry another: their bytes are asked for at every content level.
INSIDE = frozenset({"http"})
_TICK_NS = 1_000_000_000  # how often what waits for long is looked through


class Conversations:
    """Protocol events of all flows to patterns, in the order in which the flows gave them.

    content: at FULL messages carry their text, and bursts their bytes.
    """

    def __init__(self, content: Content = Content.META) -> None:
        self._level = Level(content)
        self._links = Links()
        self._bursts = Bursts()
        self._chunks = Chunks(self._level)
        memory = Memory(self._links, self._chunks, self._level, Limits())
        self._gateway = Gateway(memory)
        self._tunnels = Tunnels(memory)
        self._msnp: dict[int, MsnpFlow] = {}
        self._ticked_ns = 0

    @property
    def pending(self) -> bool:
        """Bursts are open that a `tick` would end soon."""
        return len(self._bursts) > 0

    def set_content(self, content: Content) -> None:
        """From now on; what is joined from several parts has the text of those that came since."""
        self._level.full = content is Content.FULL

    def interpret(
        self,
        flow: Flow,
        direction: Direction,
        time_ns: int,
        event: Event,
        data: bytes | memoryview | None = None,
    ) -> Sequence[Meaning]:
        """What an event means: no pattern, one or several.

        data: the bytes that the event stands for, with content FULL and for protocols in `INSIDE`.
        Times may not run back within a flow.
        """
        kind = type(event)
        if kind is OpaqueData:
            length = event.length
            return self._bursts.add(
                flow.flow_id,
                OpaqueParser.name,
                direction,
                time_ns,
                event.offset,
                length,
                length,
                data,
            )
        if kind in _MSNP:
            state = self._msnp.get(flow.flow_id)
            if state is None:
                state = MsnpFlow(flow, self._links, self._chunks, self._level)
                self._msnp[flow.flow_id] = state
            return state.interpret(direction, time_ns, event)
        if kind in _HTTP:
            return self._http(flow, direction, time_ns, cast(_HttpEvent, event), data)
        return NOTHING

    def _http(
        self,
        flow: Flow,
        direction: Direction,
        time_ns: int,
        event: _HttpEvent,
        data: bytes | memoryview | None,
    ) -> Sequence[Meaning]:
        """What HTTP carries if that is understood, else plain send and receive."""
        place = Place(flow.flow_id, direction, time_ns, event.offset, event.length)
        told: Sequence[Meaning] | None
        if isinstance(event, HttpTunnel):
            found = self._tunnels.receive(flow, place, data)
            if found is None:
                return self._plain(place, event.length, data)
            return [*found[0], *self._unclaimed(found[1])]
        if isinstance(event, HttpBody):
            told = self._gateway.body(flow, place, event, data)
            if told is None and event.length:
                told = self._plain(place, event.payload_length, data)
            return told or NOTHING
        if isinstance(event, HttpRequest):
            self._tunnels.asked(flow, event)
            told = self._gateway.request(flow, place, event)
        else:
            told = self._gateway.response(flow, place, event)
        if told is not None:
            return told
        head = Meaning(flow.flow_id, direction, time_ns, data_of(event))
        return (*self._bursts.end(flow.flow_id), head)

    def _plain(self, place: Place, size: int, data: bytes | memoryview | None) -> Sequence[Meaning]:
        """Bytes of HTTP that nobody understands further; `size` of them are content."""
        flow_id, direction, time_ns, offset, length = place
        shown = data if self._level.full else None
        return self._bursts.add(flow_id, "http", direction, time_ns, offset, length, size, shown)

    def _unclaimed(self, waiting: Sequence[Waiting]) -> list[Meaning]:
        """Bytes of a tunnel that were kept until it was known that they are no MSNP."""
        return [
            meaning
            for place, data in waiting
            if data is not None
            for meaning in self._plain(place, place.length, data)
        ]

    def untold(self, flow: Flow, direction: Direction) -> int | None:
        """Where the bytes of a burst begin that will be told when it ends; None where there are
        none."""
        return self._bursts.begins(flow.flow_id, direction)

    def gap(self, flow: Flow, direction: Direction, time_ns: int) -> Sequence[Meaning]:
        """Bytes of a direction are missing: what was joined before them ends."""
        ended = self._bursts.end(flow.flow_id)
        inside = self._gateway.lost(flow, direction, time_ns)
        return [*ended, *inside, *self._tunnels.lost(flow, direction, time_ns)]

    def tick(self, now_ns: int) -> Sequence[Meaning]:
        """Time has come to `now_ns`, in the time of the data: what waited long enough is given."""
        ended = [*self._bursts.tick(now_ns), *self._chunks.gone()]
        if now_ns - self._ticked_ns >= _TICK_NS:
            self._ticked_ns = now_ns
            self._links.expire(now_ns)
            if len(self._gateway):
                ended = [*ended, *self._gateway.expire(now_ns)]
            if len(self._chunks):
                return [*ended, *self._chunks.expire(now_ns)]
        return ended

    def closed(self, flow: Flow, time_ns: int, reason: str = "fin") -> Sequence[Meaning]:
        """The flow ended; `reason` as in `model.Closed`. Its state is dropped."""
        inside, waiting = self._tunnels.closed(flow, time_ns, reason)
        ended = [*inside, *self._unclaimed(waiting), *self._bursts.end(flow.flow_id)]
        ended += self._gateway.closed(flow.flow_id, time_ns, reason)
        if len(self._chunks):
            ended += self._chunks.gone()
        state = self._msnp.pop(flow.flow_id, None)
        if state is None:
            return ended
        return (*ended, *state.unfinished(), *state.closed(time_ns, reason))
