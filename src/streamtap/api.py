"""streamtap from Python: watch an application and get its records, one by one.

`Run` is what the command and `monitor` share: the whole life of a watch, as batches of records.
"""

import os
import pwd
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Literal, Self

import msgspec

from streamtap import __version__
from streamtap.capture.callouts import RING_BYTES
from streamtap.errors import StreamtapError
from streamtap.events import (
    Body,
    ControlRequest,
    ControlState,
    FilterChanged,
    FlowClosed,
    FlowIdentified,
    FlowInfo,
    FlowOpened,
    ParserFailed,
    Record,
    Started,
    Stopped,
    StreamGap,
    StreamLimit,
    place,
)
from streamtap.flows.scope import Scope, launch, resolve
from streamtap.model import App, Content, Flow
from streamtap.pipeline import Places
from streamtap.protocols import by_name
from streamtap.trace import Selection, choose
from streamtap.watch import LINGER_S, Watch

__all__ = [
    "App",
    "Body",
    "Content",
    "FlowClosed",
    "FlowIdentified",
    "FlowInfo",
    "FlowOpened",
    "Monitor",
    "Record",
    "Run",
    "Scope",
    "StreamGap",
    "StreamtapError",
    "launch",
    "monitor",
    "read",
    "resolve",
]

TURN_S = 0.2  # the longest wait in one turn: how late a stop is noticed
LINGER_TURN_S = 0.02
# Where every byte is copied, a burst has to wait for us: see docs/performance.md.
FULL_RING_BYTES = 64 << 20
LAYERS = ("flow_established", "stream")
# Gaps that are nobody's fault but ours; what passed before we came is no loss.
LOSSES = ("lost", "unseen", "limit")
# Needed for the totals, whether or not anybody wants to see them.
_COUNTED = frozenset(
    (body.provider, body.flag, body.level)
    for body in (FlowClosed, StreamGap, StreamLimit, ParserFailed)
)


class Run:
    """One watch, from its first record to its last. Making one loads the callouts (and forks the
    command, which waits); `batches` attaches them; `close` removes everything.

    stop: asked at every turn, at least each `TURN_S`.
    records: kept by the owner: those it took, for the last record.
    ended: why it ended: "stop", "duration", "command", or "" while it has not.
    bytes: sent and received by the flows that are closed. gaps: by cause. limits, failures:
    bounds that were reached, parsers that broke. drops: by what was lost, known at the end.
    """

    def __init__(
        self,
        scopes: Sequence[Scope],
        *,
        selection: Selection,
        content: Content = Content.META,
        duration_s: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        command: Sequence[str] = (),
        command_stdout: int | None = None,
        protocol: str | None = None,
        both_ends: bool = False,
        new_only: bool = False,
        wanted: Callable[[Flow], bool] | None = None,
    ) -> None:
        self._content = content
        self._duration_s = duration_s
        self._stop = stop
        self.watch = Watch(
            scopes,
            command=command,
            command_stdout=command_stdout,
            content=content,
            places=selection.places | _COUNTED,
            protocol=protocol,
            both_ends=both_ends,
            new_only=new_only,
            wanted=wanted,
            ring_bytes=FULL_RING_BYTES if content is Content.FULL else RING_BYTES,
        )
        self.records = 0
        self.ended = ""
        self.bytes = 0
        self.gaps: Counter[str] = Counter()
        self.limits = 0
        self.failures = 0
        self.drops: dict[str, int] = {}

    @property
    def flows(self) -> int:
        return self.watch.pipeline.table.opened

    @property
    def lost(self) -> bool:
        """Something was lost that should have been seen or understood."""
        return bool(
            any(self.drops.values())
            or any(self.gaps[cause] for cause in LOSSES)
            or self.limits
            or self.failures
        )

    def batches(self) -> Generator[list[Record], None, None]:
        """All records, some of them of places that were not selected; an empty batch at a turn
        without any. The owner may do its part, and change its mind, after each."""
        watch = self.watch
        yield watch.note(Started(version=__version__, source="live callouts"))
        if self._content is Content.FULL:
            yield watch.note(_request("content full"))
        if not self._stop():
            watch.start()
            yield watch.note(
                ControlState(
                    state="attached", hooks=watch.callouts.hooks, missing=watch.callouts.missing
                )
            )
            for scope in watch.scopes:
                for layer in LAYERS:
                    name = scope.name or str(scope)
                    yield watch.note(
                        FilterChanged(action="added", layer=layer, filter=name, scope=str(scope))
                    )
        for records in self._turns():
            yield self._counted(records)
        for records in watch.finish():
            yield self._counted(records)
        self.drops = watch.losses
        stopped = Stopped(
            flows=self.flows,
            bytes=self.bytes,
            records=self.records,
            gaps=self.gaps.total(),
            drops=sum(self.drops.values()),
        )
        yield watch.note(stopped)

    def _turns(self) -> Iterator[list[Record]]:
        watch = self.watch
        began = time.monotonic()
        until = float("inf") if self._duration_s is None else began + self._duration_s
        quiet_since: float | None = None  # once the command has ended
        while not self.ended:
            now = time.monotonic()
            if self._stop():
                self.ended = "stop"
            elif now >= until:
                self.ended = "duration"
            else:
                turn_s = TURN_S if quiet_since is None else LINGER_TURN_S
                records = watch.poll(min(turn_s, until - now))
                if watch.child is not None and watch.child.poll() is not None:
                    if records or quiet_since is None:
                        quiet_since = time.monotonic()
                    elif (
                        watch.source.is_drained and not watch.pipeline.table
                    ) or time.monotonic() - quiet_since > LINGER_S:
                        self.ended = "command"
                yield records

    def _counted(self, records: list[Record]) -> list[Record]:
        for record in records:
            body = record.body
            kind = type(body)
            if kind is FlowClosed:
                assert isinstance(body, FlowClosed)
                self.bytes += body.sent + body.sent_counted
                self.bytes += body.received + body.received_counted
            elif kind is StreamGap:
                assert isinstance(body, StreamGap)
                self.gaps[body.cause] += 1
            elif kind is StreamLimit:
                self.limits += 1
            elif kind is ParserFailed:
                self.failures += 1
        return records

    def close(self) -> None:
        """Ends the command if it still runs, and detaches all; a second call does nothing."""
        self.watch.close()


def _request(what: str) -> ControlRequest:
    """Who asks: the person behind sudo, if it says so."""
    behind = os.environ.get("SUDO_UID", "")
    uid = int(behind) if behind.isascii() and behind.isdigit() else os.getuid()
    try:
        user = os.environ.get("SUDO_USER") or pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return ControlRequest(request=what, user=user, uid=uid, pid=os.getpid(), result="granted")


class Monitor(Iterator[Record]):
    """Records of a watch as they come, numbered from 1. What is in scope is seen from the moment
    this is made; `close`, or leaving the `with` block, detaches everything."""

    def __init__(self, run: Run, selection: Selection) -> None:
        self._run = run
        self._batches = run.batches()
        self._places: Places = selection.places
        self._ready: deque[Record] = deque()
        self._closed = False
        try:
            while not run.watch.callouts.hooks:  # attached before we return
                self._take(next(self._batches))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        while not self._ready:
            if self._closed:
                raise StopIteration
            try:
                self._take(next(self._batches))
            except BaseException:  # StopIteration among them
                self.close()
                raise
        return self._ready.popleft()

    def _take(self, records: list[Record]) -> None:
        for record in records:
            if place(record.body) in self._places:
                self._run.records += 1
                self._ready.append(msgspec.structs.replace(record, number=self._run.records))

    def close(self) -> None:
        """Detaches; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._ready.clear()
            self._batches.close()
            self._run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # As a generator does. Not made to its end, it has nothing to close.
        if hasattr(self, "_closed"):
            self.close()


def monitor(
    *scopes: Scope | str,
    command: Sequence[str] = (),
    content: Content | Literal["none", "meta", "full"] = "meta",
    providers: Sequence[str] = (),
    flags: Sequence[str] = (),
    level: str | None = None,
    duration: float | None = None,
    new_only: bool = False,
    both_ends: bool = False,
    protocol: str | None = None,
) -> Monitor:
    """Watches applications, and gives their records until the command or the duration ends.

    scopes: alternatives; a text is the path of an executable, or a glob; others are made by
        `resolve`, as `resolve("pid", "4121")`.
    command: is launched, and watched with its descendants from its first instruction. It is ended
        when the monitor is closed before.
    providers, flags, level: which records; everything but `all_traffic` if none is given.
    duration: seconds. new_only: leaves out connections that are open already. both_ends: shows
        what two monitored applications say to each other at each of them. protocol: the parser.

    Raises PermissionMissing, KernelUnsupported, NotFound and other StreamtapErrors; ValueError
    for what cannot be meant.
    """
    level_of_content = content if isinstance(content, Content) else content_level(content)
    chosen = [resolve("exe", scope) if isinstance(scope, str) else scope for scope in scopes]
    if command:
        chosen.append(launch(command))
    if not chosen:
        raise ValueError("nothing to watch: no scope and no command")
    if protocol is not None:
        by_name(protocol)  # before anything is loaded
    selection = choose(providers, flags, level)
    run = Run(
        chosen,
        selection=selection,
        content=level_of_content,
        duration_s=duration,
        command=command,
        protocol=protocol,
        both_ends=both_ends,
        new_only=new_only,
    )
    return Monitor(run, selection)


def content_level(word: str) -> Content:
    """none, meta or full."""
    try:
        return Content[word.upper()]
    except KeyError:
        raise ValueError(f"no content level {word!r}: there are none, meta and full") from None


def read(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Reserved: the records of a capture file."""
    raise NotImplementedError("captures are not read yet")
