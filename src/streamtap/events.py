"""What streamtap tells: the bodies of records, and `Record`, their envelope.

A body's tag is its `event` name in JSON; tags are forever. Fields without a default are always
written; fields at their default are left out. Protocol parsers and patterns define their own
bodies; those that any part of the pipeline may give are here. As the nouns of `model`, they hold no
cycles, and the collector need not know them.
"""

from typing import ClassVar, Literal

import msgspec

from streamtap.model import App, Content

Place = tuple[str, str, str]  # provider, flag, level
LEVELS = ("error", "warn", "info", "verbose")
PROVIDERS: dict[str, tuple[str, ...]] = {
    "monitor": ("flow_established", "state_change", "layer_notify"),
    "notify": ("client_server", "peer_to_peer", "unknown", "all_traffic"),
    "control": ("init", "device_control", "state"),
    "init": ("init", "shutdown"),
    "stream": ("gap", "limit", "parser"),
}


class Body(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True, gc=False
):
    """What a record says. `provider`, `flag` and `level` place it for trace sessions."""

    provider: ClassVar[str] = "notify"
    flag: ClassVar[str] = "all_traffic"
    level: ClassVar[str] = "verbose"
    home: ClassVar[Place]  # these three together, made once: each record is asked for them

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.home = (cls.provider, cls.flag, cls.level)

    def place(self) -> Place:
        """The provider, flag and level by which trace sessions choose: the class's, unless what
        the body says decides (a pattern between people is `peer_to_peer`, one with a service
        `client_server`). One of a few tuples that a class has of its own."""
        return self.home


def tag_of(body: Body) -> str:
    """The `event` name."""
    return str(body.__struct_config__.tag)


class Event(Body, frozen=True, kw_only=True):
    """A body that stands for bytes `offset` … `offset + length` of one direction's stream.

    mergeable: one is given for each arrival, so adjacent ones say the same as one over both.
    """

    mergeable: ClassVar[bool] = False
    offset: int
    length: int


class Malformed(Event, frozen=True, kw_only=True, tag="stream.malformed"):
    """Bytes that break the rules of the protocol; `reason` never quotes them."""

    provider: ClassVar[str] = "stream"
    flag: ClassVar[str] = "parser"
    level: ClassVar[str] = "warn"
    reason: str


class Skipped(Event, frozen=True, kw_only=True, tag="stream.skipped"):
    """Bytes passed over while looking for the next boundary of the protocol, or past a limit."""

    provider: ClassVar[str] = "stream"
    flag: ClassVar[str] = "parser"
    level: ClassVar[str] = "info"
    reason: str


class StreamGap(Event, frozen=True, kw_only=True, tag="stream.gap"):
    """Bytes that were not seen, or not kept.

    cause: lost (they were seen and could not be kept), unseen (the peer acknowledged them, or the
        flow ended, without our seeing them), limit (too much was waiting behind the hole),
        midstream (they passed before streamtap looked).
    """

    provider: ClassVar[str] = "stream"
    flag: ClassVar[str] = "gap"
    level: ClassVar[str] = "warn"
    cause: str


class StreamLimit(Body, frozen=True, kw_only=True, tag="stream.limit"):
    """A bound was reached; `count` is how often since it was last reported."""

    provider: ClassVar[str] = "stream"
    flag: ClassVar[str] = "limit"
    level: ClassVar[str] = "warn"
    limit: str
    value: int
    count: int


class StreamOverlap(Event, frozen=True, kw_only=True, tag="stream.overlap"):
    """Bytes came again with other content; the first copy was kept."""

    provider: ClassVar[str] = "stream"
    flag: ClassVar[str] = "gap"
    level: ClassVar[str] = "warn"


class ParserFailed(Body, frozen=True, kw_only=True, tag="stream.parser_failed"):
    """A parser broke (a defect of streamtap); its flow went on as plain send and receive."""

    provider: ClassVar[str] = "stream"
    flag: ClassVar[str] = "parser"
    level: ClassVar[str] = "error"
    protocol: str
    error: str


class FlowOpened(Body, frozen=True, kw_only=True, tag="flow.opened"):
    """A flow of the application began, or was found open (`midstream`)."""

    provider: ClassVar[str] = "monitor"
    flag: ClassVar[str] = "flow_established"
    level: ClassVar[str] = "info"
    midstream: bool


class FlowIdentified(Body, frozen=True, kw_only=True, tag="flow.identified"):
    """The protocol of a flow was decided; confidence: content, forced, or none (plain)."""

    provider: ClassVar[str] = "monitor"
    flag: ClassVar[str] = "flow_established"
    level: ClassVar[str] = "info"
    protocol: str
    confidence: str


class FlowClosed(Body, frozen=True, kw_only=True, tag="flow.closed"):
    """A flow ended: the completeness certificate.

    reason: fin, rst, idle, removed (it left the scope) or end (watching ended first).
    sent, received: bytes delivered in order; sent_total, received_total: the kernel's count.
    missing: bytes by the kernel's count that were neither delivered nor counted by policy.
    missing_ranges: direction, offset and length of each missing range, at most 16 of them.
    sent_counted, received_counted: bytes that the policy let be counted, not copied.
    """

    provider: ClassVar[str] = "monitor"
    flag: ClassVar[str] = "flow_established"
    level: ClassVar[str] = "info"
    reason: str
    sent: int
    received: int
    sent_total: int | None
    received_total: int | None
    missing: int | None
    complete: bool | None
    duration_ns: int
    sent_counted: int = 0
    received_counted: int = 0
    missing_ranges: tuple[tuple[str, int, int], ...] = ()


class StateChanged(Body, frozen=True, kw_only=True, tag="state.changed"):
    """Monitoring was enabled or disabled, as a whole or for one filter."""

    provider: ClassVar[str] = "monitor"
    flag: ClassVar[str] = "state_change"
    level: ClassVar[str] = "info"
    enabled: bool
    filter: str | None = None


class FilterChanged(Body, frozen=True, kw_only=True, tag="filter.changed"):
    """A filter was added to, or deleted from, a layer."""

    provider: ClassVar[str] = "monitor"
    flag: ClassVar[str] = "layer_notify"
    level: ClassVar[str] = "info"
    action: Literal["added", "deleted"]
    layer: str
    filter: str
    scope: str


class ControlOpened(Body, frozen=True, kw_only=True, tag="control.opened"):
    """The control socket can be asked now, where `path` is."""

    provider: ClassVar[str] = "control"
    flag: ClassVar[str] = "init"
    level: ClassVar[str] = "info"
    path: str


class ControlRequest(Body, frozen=True, kw_only=True, tag="control.request"):
    """Somebody asked for something: who, what, and what came of it."""

    provider: ClassVar[str] = "control"
    flag: ClassVar[str] = "device_control"
    level: ClassVar[str] = "info"
    request: str
    user: str
    uid: int
    pid: int
    result: str


class ControlState(Body, frozen=True, kw_only=True, tag="control.state"):
    """State of the callouts: which hooks are attached, what could not be used and why.

    confined: what the process that reads the traffic has given up, in words; nothing where that is
    a program in Python that asked for it.
    """

    provider: ClassVar[str] = "control"
    flag: ClassVar[str] = "state"
    level: ClassVar[str] = "info"
    state: str
    hooks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    confined: tuple[str, ...] = ()


class Started(Body, frozen=True, kw_only=True, tag="init.started"):
    """streamtap began to watch."""

    provider: ClassVar[str] = "init"
    flag: ClassVar[str] = "init"
    level: ClassVar[str] = "info"
    version: str
    source: str


class Stopped(Body, frozen=True, kw_only=True, tag="init.stopped"):
    """streamtap stopped watching, with the totals of the run."""

    provider: ClassVar[str] = "init"
    flag: ClassVar[str] = "shutdown"
    level: ClassVar[str] = "info"
    flows: int
    bytes: int
    records: int
    gaps: int
    drops: int


class FlowInfo(msgspec.Struct, frozen=True, gc=False):
    """What every record of a flow says of it; `peer` is the other end where it is in scope too.

    filters: mask of the filters that the flow is in, by their bits; never written.
    """

    app: App | None
    flow: str
    local: str
    remote: str
    role: str
    peer: App | None = None
    filters: int = 0


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The envelope: one body, when, and on which flow.

    number counts the records of one session from 1, so that a reader sees what it missed.
    direction: "sent" or "received", from the application's view (in captures the client's).
    content: what the body was cleaned for; never written. Who tells it to somebody that may know
        less cleans it again, whatever has been asked for since it was made.
    """

    number: int = 0
    time_ns: int
    body: Body
    flow: FlowInfo | None = None
    direction: str | None = None
    content: Content = Content.FULL
