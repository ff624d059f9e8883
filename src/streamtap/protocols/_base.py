"""What a parser is. Parsers are sans-IO: bytes of both directions in, events out."""

from collections.abc import Iterator
from enum import Enum
from typing import ClassVar, Protocol

import msgspec

from streamtap.events import Event
from streamtap.model import Direction
from streamtap.room import Room


class Verdict(Enum):
    """What a probe says of the first bytes of both directions."""

    YES = "yes"
    NO = "no"
    MORE = "more"  # the bytes so far fit, but do not decide


HELD_ALL = 64 << 20  # bytes that the parsers of all flows may hold together
# And one direction of one flow whatever the others do: where there are few, as much as the longest
# line; where there are many, an equal part of all, but not less than a message of MSNP has.
OWN_MOST = 16 << 10
OWN_LEAST = 2 << 10
OWN_ALL = 32 << 20
FULL = "too much is held for others"  # why what finds no room is passed over


class Pool(Room):
    """The room for what parsers have not understood yet, shared by directions."""

    __slots__ = ()

    def __init__(self, limit: int = HELD_ALL) -> None:
        super().__init__(limit, most=OWN_MOST, together=OWN_ALL, least=OWN_LEAST)


class Limits(msgspec.Struct, frozen=True):
    """Bounds on what a parser holds, in bytes. They are judged by stream position, not by how much
    has arrived, so that the way a stream is cut never changes the verdict.

    pool: the bound that it shares with all who have these limits. What finds no room is told as if
    it had been lost.
    """

    line: int = 16 * 1024  # MSNP lines stay below 4 KiB; HTTP servers commonly stop at 8 KiB
    headers: int = 64 * 1024  # one HTTP header block
    payload: int = 1024 * 1024  # one counted payload that is kept to be understood
    probe: int = 4 * 1024  # bytes of each direction that detection may look at
    pool: Pool = msgspec.field(default_factory=Pool)


class Parser(Protocol):
    """One flow's parser.

    `receive` takes the next bytes of a direction and returns the events they complete. The bytes
    are stored at the call, so an iterator that is not used up loses nothing. No input raises.
    Every event belongs to the direction of the call that gave it. Every byte received belongs to
    exactly one event (`offset`, `length`) or `Skipped`, and no event covers bytes of a gap: when
    both directions have ended, events and gaps together tile both streams. An event of length 0
    stands for no bytes: it remarks on what is at its offset (`Malformed`), or says that something
    ended there.

    However a stream is cut, the events are the same; those of a type marked `mergeable` are the
    same once adjacent ones are joined.
    """

    name: ClassVar[str]
    events: ClassVar[tuple[type[Event], ...]]

    @classmethod
    def probe(cls, to_server: bytes, to_client: bytes) -> Verdict:
        """Does a flow that begins with these bytes speak this protocol?

        A direction without bytes has no say: where the other can't be this protocol the verdict
        is no at once, so that a binary flow is known as such by its first byte. Once it is yes
        or no, more bytes do not change it.
        """
        ...

    @classmethod
    def speaks(cls, data: bytes) -> Direction | None:
        """Which way a flow goes that says this, where that is certain: for flows whose beginning
        was not seen, so that nobody knows which end is the client."""
        ...

    def __init__(self, *, limits: Limits, midstream: bool) -> None: ...

    def receive(self, direction: Direction, data: bytes | memoryview) -> Iterator[Event]: ...

    def gap(self, direction: Direction, length: int) -> Iterator[Event]:
        """`length` bytes, next in this direction, will never come.

        The pipeline tells of the gap itself (`stream.gap`). The parser counts it in its offsets
        and gives only the consequences, before the gap and outside of it: what was held is told
        as truncated or `Skipped` with `offset + length` at most the gap's offset, what stands
        behind it follows from `receive`, once it is resynchronised.
        """
        ...

    def end(self, direction: Direction) -> Iterator[Event]:
        """The direction has ended; what is still held is given or skipped."""
        ...

    @property
    def sides_apart(self) -> bool:
        """From now on the events of a direction are the same however the two interleave: one may
        be given far ahead of the other."""
        ...

    @property
    def held(self) -> int:
        """Bytes that are stored now, both directions together; bounded by `Limits`."""
        ...
