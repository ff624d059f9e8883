"""What flows say, word by word: heard of each flow by itself, to be told of all in order of time.

Words may cross to another process: they hold no more than can be written down.
"""

import msgspec

from streamtap.events import (
    Event,
    FlowIdentified,
    ParserFailed,
    StreamGap,
    StreamLimit,
    StreamOverlap,
)
from streamtap.flows import Certificate
from streamtap.model import App, Closed, Direction, Flow, Scoped

NOBODY = -1  # instead of a flow's id, where it is about none


class Told(msgspec.Struct, frozen=True, tag_field="event", gc=False):
    """Base of what is told and is no event of a parser."""


class Begun(Told, frozen=True, tag="begun"):
    """A flow begins. peer: the application at the other end; pair: the other end's flow, where that
    is open too."""

    flow: Flow
    peer: App | None = None
    pair: int = NOBODY


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


# Its time first; then the id of the flow that says it.
Word = tuple[int, int, Direction, Event | Told | Scoped]
