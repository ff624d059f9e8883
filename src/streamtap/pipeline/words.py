"""What flows say, word by word: heard of each flow by itself, to be told of all in order of time.

Words may cross to another process: they hold no more than can be written down.
"""

from typing import Literal

import msgspec
from msgspec.structs import replace

from streamtap.events import (
    Event,
    FlowIdentified,
    FlowInfo,
    ParserFailed,
    StreamGap,
    StreamLimit,
    StreamOverlap,
)
from streamtap.flows import Certificate
from streamtap.model import App, Closed, Content, Direction, Flow, Role, Scoped

SIDES: dict[Role, tuple[Literal["sent", "received"], Literal["sent", "received"]]] = {
    Role.CLIENT: ("sent", "received"),
    Role.SERVER: ("received", "sent"),
}


class Voice:
    """A flow as it is told.

    flow, info: the flow, and what records have of it; peer: the application at the other end.
    sides: what they call each direction. content: the most that they tell.
    protocol: "" until it was told. other: the voice of the connection's other end, if that is
    followed too.
    broken: what its parser gave could not be told; it is told as plain bytes.
    """

    __slots__ = ("broken", "content", "flow", "info", "other", "protocol", "sides")

    def __init__(self, flow: Flow, content: Content, peer: App | None = None) -> None:
        self.flow = flow
        self.info = FlowInfo(
            app=flow.app,
            flow=f"{flow.flow_id:x}",
            local=str(flow.local),
            remote=str(flow.remote),
            role=flow.role.value,
            peer=peer,
            filters=flow.filters,
        )
        self.sides = SIDES[flow.role]
        self.content = content
        self.protocol = ""
        self.other: Voice | None = None
        self.broken = False

    def meet(self, other: "Voice") -> None:
        """The other end of the connection is open too."""
        self.other, other.other = other, self
        other.info = replace(other.info, peer=self.flow.app)

    def rescope(self, scoped: Scoped) -> None:
        """It is in other filters from now on."""
        flow = self.flow
        app = replace(flow.app, filter=scoped.filter) if flow.app else None
        self.flow = replace(flow, app=app, filters=scoped.filters)
        self.info = replace(self.info, app=app, filters=scoped.filters)
        if self.other is not None:
            self.other.info = replace(self.other.info, peer=app)


class Told(msgspec.Struct, frozen=True, tag_field="event", gc=False):
    """Base of what is told and is no event of a parser."""


class Begun(Told, frozen=True, tag="begun"):
    """A flow begins."""

    flow: Flow


class Note(Told, frozen=True, tag="note"):
    """What is put down as it is. sided: it is about one direction."""

    body: FlowIdentified | ParserFailed | StreamGap | StreamLimit | StreamOverlap
    sided: bool = False


class Shown(Told, frozen=True, tag="shown"):
    """An event with the bytes that it stands for."""

    told: Event
    data: memoryview


class Turned(Told, frozen=True, tag="turned"):
    """Arrivals of a flow of which only bursts are told: time, direction, begin and end of each, in
    order of time."""

    arrivals: list[tuple[int, Direction, int, int]]


class Break(Told, frozen=True, tag="break"):
    """Bytes of a direction are missing here: what was joined before them ends."""


class Ended(Told, frozen=True, tag="ended"):
    """A flow has ended: after all that it said."""

    closed: Closed
    certificate: Certificate


# Its time first; then whose it is, None where it is about no flow.
Word = tuple[int, Voice | None, Direction, Event | Told | Scoped]
