"""The nouns of streamtap: what moves along the pipeline before it becomes a record.

Every noun is a frozen value. Offsets and lengths are bytes; times are Unix nanoseconds. Values hold
no cycles, so the collector need not know them (gc=False): it took a sixth of the time to read a
capture.
"""

from collections.abc import Sequence
from enum import IntEnum, StrEnum

import msgspec

LONG_AGO_NS = -1 << 63  # before all times: a capture may tell some before 1970


class Direction(IntEnum):
    """Which way bytes travel, from the client's side of the conversation."""

    TO_SERVER = 0
    TO_CLIENT = 1

    @property
    def opposite(self) -> "Direction":
        return _OPPOSITE[self]


DIRECTIONS = (Direction.TO_SERVER, Direction.TO_CLIENT)  # to walk an enum is slow
_OPPOSITE = DIRECTIONS[::-1]


class Role(StrEnum):
    """Which end of the flow the monitored application (the local end) is."""

    CLIENT = "client"
    SERVER = "server"


class Policy(IntEnum):
    """How much of a flow the callouts copy; the values are shared with `bpf/callout.h`."""

    FULL = 0
    HEAD = 1
    COUNT = 2


class Content(IntEnum):
    """How much a record may tell of what was said (`--content`)."""

    NONE = 0
    META = 1
    FULL = 2

    @classmethod
    def named(cls, word: str) -> "Content":
        """none, meta or full; ValueError for another word."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise ValueError(f"no content level {word!r}: there are none, meta and full") from None


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One end of a flow; `address` is the text form of an IPv4 or IPv6 address."""

    address: str
    port: int

    def __str__(self) -> str:
        if ":" in self.address:
            return f"[{self.address}]:{self.port}"
        return f"{self.address}:{self.port}"


class App(msgspec.Struct, frozen=True, gc=False):
    """Identity of an application as the kernel knew it when the socket was made.

    cgroup: path below the cgroup v2 root, or "" where it is not known.
    filter: name of the filter (or scope) that matched.
    """

    path: str
    pid: int
    comm: str
    uid: int
    cgroup: str
    filter: str


class Flow(msgspec.Struct, frozen=True, gc=False):
    """One TCP connection as one of its ends sees it.

    flow_id: the socket cookie live, a running number in captures; unique while the host runs.
    local: the monitored application's end live, the client's end in captures.
    midstream: its beginning was not seen.
    namespace: network namespace cookie; 0 in captures.
    filters: mask of the filters that it is in; 0 in captures.
    """

    flow_id: int
    app: App | None
    local: Endpoint
    remote: Endpoint
    role: Role
    opened_ns: int
    midstream: bool = False
    namespace: int = 0
    filters: int = 0

    @property
    def sent(self) -> Direction:
        """The direction in which the local end sends."""
        return Direction.TO_SERVER if self.role is Role.CLIENT else Direction.TO_CLIENT


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A source saw a flow begin, or found it open.

    sequences: sequence number of the first stream byte still to come, indexed by `Direction`;
        None where the source does not know it (the first segment then decides).
    offsets: bytes of each direction that passed before the source looked, indexed by `Direction`.
    """

    flow: Flow
    sequences: tuple[int | None, int | None]
    offsets: tuple[int, int] = (0, 0)


class Segment(msgspec.Struct, frozen=True, gc=False):
    """Payload of one TCP segment, or of several that a source joined because each began where
    the one before it ended.

    sequence: sequence number of the first byte, 0 … 2**32 - 1.
    data: the payload. A memoryview is valid only until the call it was passed to returns.
    time_ns: when the last joined segment was seen.
    ends, times_ns: for joined segments, the end of each relative to the first byte, and its time;
        both empty for a single segment.
    counted: the bytes passed under a policy that copies nothing; `data` is then empty and this
        is the length of the range.
    acknowledged: the highest acknowledgement number that it carries, for the other direction;
        None where the source does not give it.
    lost: running count of segments of this direction that the source saw and could not keep
        (modulo 2**32). A hole before a segment with a new count will never be filled.
    """

    flow_id: int
    direction: Direction
    sequence: int
    data: bytes | memoryview
    time_ns: int
    ends: Sequence[int] = ()
    times_ns: Sequence[int] = ()
    counted: int = 0
    acknowledged: int | None = None
    lost: int = 0


class Closed(msgspec.Struct, frozen=True, gc=False):
    """A source saw a flow end, or stops watching it.

    reason: fin, rst, idle, removed (it left the scope) or end (the source ended).
    totals: payload bytes of each direction by the kernel's own counters, indexed by `Direction`,
        counted from the first byte of the connection; None in captures.
    lost: segments that the source could not keep, indexed by `Direction`; as in `Segment`.
    fins: sequence number behind the last byte of each direction, where a FIN told it.
    """

    flow_id: int
    time_ns: int
    reason: str
    totals: tuple[int, int] | None = None
    lost: tuple[int, int] = (0, 0)
    fins: tuple[int | None, int | None] = (None, None)


class Scoped(msgspec.Struct, frozen=True, gc=False):
    """A flow that is open was taken into a filter more, or is left to fewer.

    filters: mask of those that it is in from now on; filter: the name of the first of them.
    time_ns: not before anything that was said under the filters it had.
    """

    flow_id: int
    time_ns: int
    filters: int
    filter: str


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Ordered bytes of one direction.

    offset: of the first byte in its direction's stream.
    data: as in `Segment`: a memoryview is valid only during the call it is passed to. None where
        the bytes were counted under a policy, not copied; the last of `ends` tells how many.
    ends, times_ns: stream offsets at which the segments that make up the chunk end, ascending,
        and the time of each; never empty.
    """

    offset: int
    data: bytes | memoryview | None
    ends: Sequence[int]
    times_ns: Sequence[int]


class Gap(msgspec.Struct, frozen=True, gc=False):
    """Bytes of one direction that will not come.

    cause: lost (the source could not keep them), unseen (the peer acknowledged them, or the
        flow ended, without our seeing them), limit (too much was waiting behind the hole),
        midstream (they passed before the source looked).
    """

    offset: int
    length: int
    cause: str
    time_ns: int


class Overlap(msgspec.Struct, frozen=True, gc=False):
    """Bytes of one direction that came again with other content; the first copy was kept.

    offset, length: from the first byte that differs to the last one.
    """

    offset: int
    length: int
    time_ns: int


class Limit(msgspec.Struct, frozen=True, gc=False):
    """A bound on one direction was reached for the first time; counters tell how often since.

    limit: window (data too far from where the stream is to belong to it).
    value: the bound, in bytes.
    """

    limit: str
    value: int
    time_ns: int


StreamItem = Chunk | Gap | Overlap | Limit
