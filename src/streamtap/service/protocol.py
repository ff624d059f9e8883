"""What is said on the control socket: one JSON object a line, requests one way, replies the other.

A request is `{"id": N, "verb": "...", ...}`, its reply `{"id": N, "version": "...", "result": ...}`
or `{"id": N, "version": "...", "error": {"message": "...", "hint": "...", "code": 4}}`; the code is
the exit code that the command ends with. A request that says anything unknown is refused whole: a
misspelt limit must not be a missing one. After `attach` the connection carries records, and nothing
else is said on it. `wire` makes lines of these values and reads them.

`Operations` is what can be done to filters and stored sessions, by the service or without it.
"""

import os
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from streamtap.flows.scope import Scope, resolve
from streamtap.service.state import KEEP, LIMIT_BYTES, Filter, Recorded

MAX_LINE = 64 << 10  # bytes of a request, with its end
MAX_REPLY = 8 << 20  # bytes of a reply: some 25,000 flows
MAX_FILTERS = 64  # bits of a flow's mask
MAX_WORDS = 64  # of a selection
MAX_OUTPUTS = 16
MAX_KEEP = 10_000
MIN_LIMIT_BYTES = 1 << 20
MAX_LAST_S = 3600.0
MAX_NUMBER = 2**53 - 1  # of a request: what every reader of JSON keeps exactly

Kind = Literal["exe", "comm", "cmdline", "pid", "uid", "cgroup", "unit"]
Content = Literal["none", "meta", "full"]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
# It is part of a file's name.
SessionName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Text = Annotated[str, Meta(max_length=4096)]  # PATH_MAX
Word = Annotated[str, Meta(min_length=1, max_length=1024)]
Words = Annotated[tuple[Word, ...], Meta(max_length=MAX_WORDS)]
Names = Annotated[tuple[Name, ...], Meta(max_length=MAX_FILTERS)]


class NewFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A filter that is asked for.

    given: what the person wrote. path: kind exe: the same, from the root on, as the directory and
        the PATH of that person make it; "" where it is what was written.
    content: the most that any session is told of its flows; None: what the session asks for.
    """

    kind: Kind
    given: Annotated[str, Meta(min_length=1, max_length=4096)]
    path: Text = ""
    name: Annotated[str, Meta(max_length=255)] = ""
    follow_forks: bool = False
    protocol: Annotated[str, Meta(max_length=64)] | None = None
    content: Content | None = None

    def resolve(self, *, cgroup_root: str = "/sys/fs/cgroup") -> Scope:
        """The scope that it means here and now. Raises as `flows.scope.resolve` does."""
        scope = resolve(
            self.kind,
            self.path or self.given,
            name=self.name,
            follow_forks=self.follow_forks,
            cgroup_root=cgroup_root,
        )
        return msgspec.structs.replace(scope, given=self.given)


class Request(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", forbid_unknown_fields=True
):
    """What every request has.

    id: chosen by the client, and given back with the reply. version: of the client; a service of
        another one refuses all but `status` and `stop`. "" is taken as the same.
    """

    id: Annotated[int, Meta(ge=0, le=MAX_NUMBER)] = 0
    version: Annotated[str, Meta(max_length=64)] = ""

    def concerned(self) -> Sequence[str]:
        """Names that the request is about, for the record of it; never what was said."""
        return ()


class Status(Request, frozen=True, kw_only=True, tag="status"):
    """How the service is: `StatusReply`."""


class List(Request, frozen=True, kw_only=True, tag="list"):
    """The filters: an array of `Filter`."""


class Flows(Request, frozen=True, kw_only=True, tag="flows"):
    """The connections that are watched now: an array of `LiveFlow`."""


class Sessions(Request, frozen=True, kw_only=True, tag="sessions"):
    """Recorded and live trace sessions: an array of `SessionInfo`."""


class AddFilters(Request, frozen=True, kw_only=True, tag="add_filters"):
    """Adds filters, all or none: an array of `Filter`. Without any, the callouts are seen to.

    temporary: they go when this connection ends.
    """

    filters: Annotated[tuple[NewFilter, ...], Meta(max_length=MAX_FILTERS)]
    temporary: bool = False

    def concerned(self) -> Sequence[str]:
        return [one.name or f"{one.kind} {one.given}" for one in self.filters]


class DeleteFilters(Request, frozen=True, kw_only=True, tag="delete_filters"):
    """Removes filters by their names, all or none: an array of the removed `Filter`."""

    names: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_FILTERS)]

    def concerned(self) -> Sequence[str]:
        return self.names


class Enable(Request, frozen=True, kw_only=True, tag="enable"):
    """Enables one filter, or all of them: null."""

    name: Name | None = None

    def concerned(self) -> Sequence[str]:
        return () if self.name is None else (self.name,)


class Disable(Request, frozen=True, kw_only=True, tag="disable"):
    """Disables one filter, or all of them; live connections go on: null."""

    name: Name | None = None

    def concerned(self) -> Sequence[str]:
        return () if self.name is None else (self.name,)


class Remove(Request, frozen=True, kw_only=True, tag="remove"):
    """Removes filters, callouts and pins, and ends the service: null."""


class Stop(Request, frozen=True, kw_only=True, tag="stop"):
    """Ends the service; callouts and filters stay: null.

    hold: another service follows at once; what passes between waits for it in the rings, as far as
    there is room. Otherwise it is counted, and not kept.
    """

    hold: bool = False


def check_session(session: Recorded) -> None:
    """Raises ValueError for what no session may have, in words for whoever wrote it."""
    if not MIN_LIMIT_BYTES <= session.limit_bytes <= MAX_NUMBER:
        raise ValueError(
            f"no recording of {session.limit_bytes} bytes: a limit is 1 MiB at least, 8 PiB at most"
        )
    if not 0 <= session.keep <= MAX_KEEP:
        raise ValueError(f"{session.keep} files cannot be kept: {MAX_KEEP} are the most")
    if len(session.selection) > MAX_WORDS:
        raise ValueError(f"{len(session.selection)} words are too many: {MAX_WORDS} are the most")
    if len(session.outputs) > MAX_OUTPUTS:
        raise ValueError(f"{len(session.outputs)} outputs are too many: {MAX_OUTPUTS} are the most")
    for path in session.outputs:
        if not os.path.isabs(path) or "\0" in path:
            raise ValueError(f"{path!r} is no absolute path")
        if os.path.splitext(path)[1].lower() not in (".jsonl", ".sqlite"):
            raise ValueError(f"no output {path!r}: there are FILE.jsonl and FILE.sqlite")


class TraceStart(Request, frozen=True, kw_only=True, tag="trace_start"):
    """Starts a recorded session, as the user that asks, and stores it: `Recorded`.

    selection: words of the trace grammar; none: everything but `all_traffic`.
    outputs: absolute paths of the files, JSON lines or SQLite by their ending.
    filters: names; none: all filters. limit_bytes: after which a recording is rotated.
    keep: files that rotation keeps.
    """

    name: SessionName
    selection: Words = ()
    outputs: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=MAX_OUTPUTS)]
    content: Content = "meta"
    filters: Names = ()
    limit_bytes: Annotated[int, Meta(ge=MIN_LIMIT_BYTES, le=MAX_NUMBER)] = LIMIT_BYTES
    keep: Annotated[int, Meta(ge=0, le=MAX_KEEP)] = KEEP

    def concerned(self) -> Sequence[str]:
        return (self.name, f"content {self.content}", *self.filters)

    def recorded(self, uid: int, user: str, started_ns: int) -> Recorded:
        """The session as it is stored, of the user that asked. Raises ValueError."""
        session = Recorded(
            name=self.name,
            selection=self.selection,
            outputs=self.outputs,
            content=self.content,
            uid=uid,
            user=user,
            filters=self.filters,
            limit_bytes=self.limit_bytes,
            keep=self.keep,
            started_ns=started_ns,
        )
        check_session(session)
        return session


class TraceStop(Request, frozen=True, kw_only=True, tag="trace_stop"):
    """Ends a recorded session and forgets it; its files stay: `Recorded`."""

    name: SessionName

    def concerned(self) -> Sequence[str]:
        return (self.name,)


class Attach(Request, frozen=True, kw_only=True, tag="attach"):
    """Makes this connection a live session: `Attached`, and from the next line on records.

    name: of the session in `sessions`; "" for one of the service's own.
    last_s: begin with the records of so many seconds before.
    """

    selection: Words = ()
    content: Content = "meta"
    filters: Names = ()
    last_s: Annotated[float, Meta(ge=0, le=MAX_LAST_S)] | None = None
    name: Annotated[str, Meta(max_length=64)] = ""

    def concerned(self) -> Sequence[str]:
        return (f"content {self.content}", *self.filters)


AnyRequest = (
    Status
    | List
    | Flows
    | Sessions
    | AddFilters
    | DeleteFilters
    | Enable
    | Disable
    | Remove
    | Stop
    | TraceStart
    | TraceStop
    | Attach
)
REQUESTS: tuple[type[Request], ...] = (
    *(Status, List, Flows, Sessions, AddFilters, DeleteFilters, Enable, Disable),
    *(Remove, Stop, TraceStart, TraceStop, Attach),
)
ANY_VERSION = (Status, Stop)  # what must work between a client and a service of other versions


# --- results ---------------------------------------------------------------------------------


class StatusReply(msgspec.Struct, frozen=True, kw_only=True):
    """How the service is.

    pid: of the keeper; parser_pid: None while there is none. hooks, missing, counters: of the
        callouts. records: made since the service began. sessions: recorded and live.
    unseen_bytes: that passed while no service ran. confined: what the parser gave up, in words.
    """

    version: str
    pid: int
    parser_pid: int | None = None
    recorder_pids: tuple[int, ...] = ()
    uptime_s: float = 0.0
    enabled: bool = True
    hooks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    counters: dict[str, int] = {}
    filters: int = 0
    flows: int = 0
    records: int = 0
    sessions: int = 0
    parser_restarts: int = 0
    unseen_bytes: int = 0
    confined: tuple[str, ...] = ()


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A trace session.

    kind: recorded (stored, goes on after a restart) or live (as long as its connection).
    running: records come; a stored session does not run while the service is stopped.
    records: given since it began to run. dropped: that found no room, or could not be written, the
    latter once for each output. pid: of a live session's client.
    error: why it does not record, "" where it does.
    """

    name: str
    kind: Literal["recorded", "live"]
    running: bool
    user: str
    uid: int
    pid: int | None = None
    selection: tuple[str, ...] = ()
    content: Content = "meta"
    filters: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    records: int = 0
    dropped: int = 0
    started_ns: int = 0
    error: str = ""


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """A live session has begun; name: as in `sessions`."""

    name: str


class Failure(msgspec.Struct, frozen=True):
    """Why a request was not granted; code: the exit code of it."""

    message: str
    hint: str = ""
    code: int = 1


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """id: of the request; None where it could not be read. version: of the service."""

    id: int | None = None
    version: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Failure | None = None


# --- what can be done ------------------------------------------------------------------------


class Operations(Protocol):
    """Filters and stored sessions, by the service where it runs, or on the state itself.

    Each raises StreamtapErrors: NotFound, AlreadyExists, PermissionMissing and others.
    """

    @property
    def enabled(self) -> bool:
        """Not everything was disabled at once."""
        ...

    def filters(self) -> Sequence[Filter]: ...

    def add(self, filters: Sequence[NewFilter]) -> Sequence[Filter]:
        """All or none."""
        ...

    def delete(self, names: Sequence[str]) -> Sequence[Filter]:
        """The filters that are gone now; all or none."""
        ...

    def remove(self) -> None:
        """Filters, callouts and pins; the service ends."""
        ...

    def enable(self, name: str | None = None) -> None: ...

    def disable(self, name: str | None = None) -> None: ...

    def sessions(self) -> Sequence[SessionInfo]: ...

    def add_session(self, session: Recorded) -> Recorded:
        """What is stored, which is what runs. The service puts in who asks, and when."""
        ...

    def remove_session(self, name: str) -> Recorded: ...


def stored(session: Recorded, *, running: bool = False, error: str = "") -> SessionInfo:
    """A recorded session as `sessions` shows it, without counters."""
    return SessionInfo(
        name=session.name,
        kind="recorded",
        running=running,
        user=session.user,
        uid=session.uid,
        selection=session.selection,
        content=msgspec.convert(session.content, Content),
        filters=session.filters,
        outputs=session.outputs,
        started_ns=session.started_ns,
        error=error,
    )
