"""What keeper and parser say to each other, one message a packet; descriptors go beside it.

The keeper trusts no parser: what it is told is decoded strictly and bounded, and asks for nothing
but what is here. Paths are bytes, for not all of them are text. The last part is what a monitor's
reader and its holder say, beside what is asked of the kernel; a parser may say none of it.
"""

from typing import Annotated

import msgspec

from streamtap.capture.kernel import Candidate

MOST_BYTES = 128 << 10  # of a message; sockets take so much whatever their buffer is
MOST_POLICIES = 4096  # in a message

Natural = Annotated[int, msgspec.Meta(ge=0)]  # of 64 bits at most: MessagePack has no larger ones
_Pid = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_Path = Annotated[bytes, msgspec.Meta(max_length=4096)]
_Name = Annotated[str, msgspec.Meta(max_length=255)]
_Mode = Annotated[int, msgspec.Meta(ge=0, le=2)]
Policies = Annotated[list[tuple[Natural, _Mode]], msgspec.Meta(max_length=MOST_POLICIES)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is"):
    """Anything that is said; its class is its tag."""


# --- from the parser, answered -------------------------------------------------------------------


class Call(Message, frozen=True):
    """call: given back with the answer."""

    call: Natural


class Decide(Call, frozen=True, tag="decide"):
    """Answered by `Verdict`; fields as in `kernel.Candidate`."""

    process_id: Natural
    filters: Natural
    pid: _Pid
    path: _Path
    filename: _Path
    arguments: _Path
    existing: bool


class Counters(Call, frozen=True, tag="counters"):
    """Answered by `Numbers`."""


class ListFlows(Call, frozen=True, tag="list_flows"):
    """Answered by `Rows`."""


class CgroupPath(Call, frozen=True, tag="cgroup_path"):
    """Answered by `Text`."""

    cgroup_id: Natural


class ProgramOf(Call, frozen=True, tag="program_of"):
    """Answered by `Text`."""

    pid: _Pid


# --- from the parser, one way --------------------------------------------------------------------


class SetPolicies(Message, frozen=True, tag="policies"):
    """policies: flow ids and how much of each is copied (`model.Policy`)."""

    policies: Policies


class Gone(Message, frozen=True, tag="gone"):
    """The reader of a session went away."""

    session: _Name


class Ready(Message, frozen=True, tag="ready"):
    """The parser reads the rings, confined so far; landlock_abi: 0 for none."""

    seccomp: bool
    landlock_abi: Natural


OfKernel = Decide | Counters | ListFlows | CgroupPath | ProgramOf | SetPolicies
FromParser = OfKernel | Gone | Ready


# --- from the keeper: answers --------------------------------------------------------------------


class Answer(Message, frozen=True):
    """call: as in the question."""

    call: Natural


class Verdict(Answer, frozen=True, tag="verdict"):
    filters: Natural


class Numbers(Answer, frozen=True, tag="numbers"):
    numbers: dict[str, int]


class Rows(Answer, frozen=True, tag="rows"):
    """count: of FLOW_LISTINGs in the memory that comes beside it."""

    count: Natural


class Text(Answer, frozen=True, tag="text"):
    text: bytes


# --- from the keeper: orders ---------------------------------------------------------------------


class Setup(Message, frozen=True, tag="setup"):
    """Comes first. data_bytes, control_bytes: sizes of the rings. key: of the hashes that stand
    for names."""

    data_bytes: Natural
    control_bytes: Natural
    key: bytes | None = None


class FilterTerms(msgspec.Struct, frozen=True):
    """protocol: forced on the flows of the filter. content: none, meta or full, the most that is
    told of them."""

    name: str
    protocol: str | None = None
    content: str | None = None


class SetFilters(Message, frozen=True, tag="filters"):
    """All filters by their bits, and the mask of those in force. A filter is told of before the
    callouts know it, and taken out of here after they have forgotten it."""

    filters: dict[int, FilterTerms]
    enabled: Natural


class Attach(Message, frozen=True, tag="attach"):
    """A session begins, on the stream socket that comes beside it.

    slot: its place on the board. selection: words of the trace grammar. filters: mask of those
    whose flows it is told of; -1 for every flow. last_s: seconds that are told again first.
    after, dropped: where its numbers go on. resumed: the line before may be cut.
    opening: the flows that are open are told of, as if they had been found just now.
    asked_ns: when it was asked for: what was told since then belongs to it too. 0: not known.
    """

    session: _Name
    slot: Natural
    selection: tuple[str, ...] = ()
    content: str = "meta"
    filters: int = -1
    last_s: float | None = None
    after: Natural = 0
    dropped: Natural = 0
    resumed: bool = False
    opening: bool = False
    asked_ns: Natural = 0


class Begin(Message, frozen=True, tag="begin"):
    """The sessions that there are have been told of: what the rings hold may be read."""


class Detach(Message, frozen=True, tag="detach"):
    """A session is given nothing more, and ends when it has taken what it was given, or soon."""

    session: _Name


class Narrow(Message, frozen=True, tag="narrow"):
    """The session is told of flows in these filters alone from now on; a mask."""

    session: _Name
    filters: int


class Note(Message, frozen=True, tag="note"):
    """A record that is about no flow; body: JSON of it."""

    time_ns: int
    body: bytes


class Finish(Message, frozen=True, tag="finish"):
    """Read what is left, close all flows, say so (`init.stopped`), and exit.

    undecided: command lines on which a pattern took too long, for the sum of what was lost.
    """

    undecided: Natural = 0


Order = Setup | SetFilters | Attach | Begin | Narrow | Detach | Note | Finish
FromKeeper = Verdict | Numbers | Rows | Text | Order

# --- a monitor: from its reader ------------------------------------------------------------------


class Hook(Call, frozen=True, tag="hook"):
    """Put the scopes in force, and let the command run. Answered by `Hooked`, or `Failed`."""


class Unhook(Call, frozen=True, tag="unhook"):
    """Detach all hooks. Answered by `Unhooked`."""


class RoomMade(Message, frozen=True, tag="room_made"):
    """The control ring was read, as `MakeRoom` asked."""


FromReader = OfKernel | Hook | Unhook | RoomMade
Told = SetPolicies | Gone | Ready | RoomMade


# --- a monitor: from its holder ------------------------------------------------------------------


class Hooked(Answer, frozen=True, tag="hooked"):
    """As `holding.Hooks`."""

    attached: tuple[str, ...]
    missing: tuple[str, ...]


class Unhooked(Answer, frozen=True, tag="unhooked"):
    pass


class Loaded(Message, frozen=True, tag="loaded"):
    """Comes first, with the two rings beside it; then `Setup`."""


class MakeRoom(Message, frozen=True, tag="make_room"):
    """Read the control ring, and say so: it is waited for."""


class CommandEnded(Message, frozen=True, tag="command_ended"):
    """status: its exit code, or 128 and the signal."""

    status: Natural


class Failed(Message, frozen=True, tag="failed"):
    """What a person is told, as of `StreamtapError`; the last thing that is said."""

    message: str
    hint: str
    exit_code: Natural


FromHolder = (
    Verdict | Numbers | Rows | Text | Setup | Hooked | Unhooked
    | Loaded | MakeRoom | CommandEnded | Failed
)  # fmt: skip

encode = msgspec.msgpack.Encoder().encode
decode_from_parser = msgspec.msgpack.Decoder(FromParser).decode
decode_from_keeper = msgspec.msgpack.Decoder(FromKeeper).decode
decode_from_reader = msgspec.msgpack.Decoder(FromReader).decode
decode_from_holder = msgspec.msgpack.Decoder(FromHolder).decode


def candidate_of(asked: Decide, filters: int) -> Candidate:
    """What is asked about, for those of `filters`."""
    return Candidate(
        asked.process_id,
        asked.filters & filters,
        asked.pid,
        asked.path.decode("utf-8", "surrogateescape"),
        asked.filename.decode("utf-8", "surrogateescape"),
        asked.arguments,
        asked.existing,
    )
