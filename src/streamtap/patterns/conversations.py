"""Meaning across flows: the one place where what is known of one flow serves another."""

from collections.abc import Sequence

from streamtap.events import Event
from streamtap.model import Content, Direction, Flow
from streamtap.patterns.bursts import NOTHING, Bursts
from streamtap.patterns.http import data_of
from streamtap.patterns.links import Links
from streamtap.patterns.model import Meaning
from streamtap.patterns.msnp import Chunks, MsnpFlow
from streamtap.protocols.http import HttpBody, HttpRequest, HttpResponse, HttpTunnel
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket
from streamtap.protocols.opaque import OpaqueData

_MSNP = frozenset({MsnpCommand, MsnpPacket, MsnpDirect})
_TICK_NS = 1_000_000_000  # how often what waits for long is looked through


class Conversations:
    """Protocol events of all flows to patterns, in the order in which the flows gave them.

    content: at FULL messages carry their text, and bursts their bytes.
    """

    def __init__(self, content: Content = Content.META) -> None:
        self._content = content
        self._links = Links()
        self._bursts = Bursts()
        self._chunks = Chunks(keep=content is Content.FULL)
        self._msnp: dict[int, MsnpFlow] = {}
        self._ends: dict[int, list[int]] = {}  # where the last event of each direction ended
        self._ticked_ns = 0

    @property
    def pending(self) -> bool:
        """Bursts are open that a `tick` would end soon."""
        return len(self._bursts) > 0

    def opened(self, flow: Flow) -> None:
        """A flow begins. Its state is made when it first has a meaning."""

    def interpret(
        self,
        flow: Flow,
        protocol: str,
        direction: Direction,
        time_ns: int,
        event: Event,
        data: bytes | memoryview | None = None,
    ) -> Sequence[Meaning]:
        """What an event means: no pattern, one or several.

        data: the bytes that the event stands for, with content FULL; used for plain data only.
        Times may not run back within a flow.
        """
        kind = type(event)
        if kind is OpaqueData or kind is HttpTunnel:
            length = event.length
            return self._bursts.add(
                flow.flow_id, protocol, direction, time_ns, event.offset, length, length, data
            )
        if kind in _MSNP:
            state = self._msnp.get(flow.flow_id)
            if state is None:
                state = MsnpFlow(flow, self._links, self._chunks, self._content)
                self._msnp[flow.flow_id] = state
                self._ends[flow.flow_id] = [0, 0]
            self._ends[flow.flow_id][direction] = event.offset + event.length
            return state.interpret(direction, time_ns, event)
        if isinstance(event, HttpBody):
            if not event.length:
                return NOTHING
            return self._bursts.add(
                flow.flow_id,
                protocol,
                direction,
                time_ns,
                event.offset,
                event.length,
                event.payload_length,
                data,
            )
        if isinstance(event, HttpRequest | HttpResponse):
            head = Meaning(flow.flow_id, direction, time_ns, data_of(event))
            return (*self._bursts.end(flow.flow_id), head)
        return NOTHING

    def gap(self, flow: Flow, direction: Direction, time_ns: int) -> Sequence[Meaning]:
        """Bytes of a direction are missing: what was joined before them ends."""
        return self._bursts.end(flow.flow_id)

    def tick(self, now_ns: int) -> Sequence[Meaning]:
        """Time has come to `now_ns`, in the time of the data: what waited long enough is given."""
        ended = self._bursts.tick(now_ns)
        if now_ns - self._ticked_ns >= _TICK_NS:
            self._ticked_ns = now_ns
            self._links.expire(now_ns)
            if len(self._chunks):
                return [*ended, *self._chunks.expire(now_ns)]
        return ended

    def closed(self, flow: Flow, time_ns: int, reason: str = "fin") -> Sequence[Meaning]:
        """The flow ended; `reason` as in `model.Closed`. Its state is dropped."""
        ended = self._bursts.end(flow.flow_id)
        state = self._msnp.pop(flow.flow_id, None)
        if state is None:
            return ended
        to_server, to_client = self._ends.pop(flow.flow_id)
        unfinished = self._chunks.end(flow.flow_id) if len(self._chunks) else NOTHING
        return (*ended, *unfinished, *state.closed((to_server, to_client), time_ns, reason))
