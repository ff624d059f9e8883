"""streamtap from Python: watch an application and get its records, one by one.

`Run` is what the command and `monitor` share: the whole life of a watch, as batches of records.
"""

import os
import pwd
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Literal, Self

import msgspec

from streamtap import __version__
from streamtap.capture.callouts import RING_BYTES
from streamtap.demux import Tap
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
    Record,
    Started,
    Stopped,
    StreamGap,
)
from streamtap.flows.scope import Scope, launch, resolve
from streamtap.holding import Holder, Local
from streamtap.model import App, Chunk, Closed, Content, Direction, Flow, Gap
from streamtap.ordered import StreamPart, streams
from streamtap.ordered import choose as choose_connections
from streamtap.pipeline import Places
from streamtap.protocols import by_name
from streamtap.reading import Capture, Reading
from streamtap.service.client import Client, connect, new_filter
from streamtap.service.stream import Records
from streamtap.tally import COUNTED, Tally
from streamtap.trace import Selection, choose
from streamtap.watch import LINGER_S, Watch

__all__ = [
    "App",
    "Body",
    "Capture",
    "Chunk",
    "Client",
    "Closed",
    "Content",
    "Direction",
    "Flow",
    "FlowClosed",
    "FlowIdentified",
    "FlowInfo",
    "FlowOpened",
    "Gap",
    "Monitor",
    "Record",
    "Records",
    "Run",
    "Scope",
    "StreamGap",
    "StreamPart",
    "StreamtapError",
    "connect",
    "launch",
    "monitor",
    "new_filter",
    "read",
    "resolve",
    "streams",
]

TURN_S = 0.2  # the longest wait in one turn: how late a stop is noticed
LINGER_TURN_S = 0.02
# Where every byte is copied, a burst has to wait for us: see docs/performance.md.
FULL_RING_BYTES = 64 << 20
LAYERS = ("flow_established", "stream")


class Run(Tally):
    """One watch, from its first record to its last. `batches` attaches the callouts that the holder
    has loaded; `close` removes everything.

    stop: asked at every turn, at least each `TURN_S`. confine: called when all is ready to read the
    traffic, and before it; gives what is told of that in `ControlState.confined`.
    """

    def __init__(
        self,
        holder: Holder,
        *,
        selection: Selection,
        content: Content = Content.META,
        duration_s: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        protocol: str | None = None,
        both_ends: bool = False,
        wanted: Callable[[Flow], bool] | None = None,
        taps: Sequence[Tap] = (),
        confine: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        super().__init__()
        self._content = content
        self._duration_s = duration_s
        self._stop = stop
        self._confine = confine
        self.watch = Watch(
            holder,
            content=content,
            places=selection.places | COUNTED,
            protocol=protocol,
            both_ends=both_ends,
            wanted=wanted,
            taps=taps,
        )

    @property
    def flows(self) -> int:
        return self.watch.pipeline.table.opened

    def batches(self) -> Generator[list[Record], None, None]:
        """All records, some of them of places that were not selected; an empty batch at a turn
        without any. The owner may do its part, and change its mind, after each."""
        watch = self.watch
        yield watch.note(Started(version=__version__, source="live callouts"))
        if self._content is Content.FULL:
            yield watch.note(request_of("content full"))
        if not self._stop():
            confined = self._confine()
            watch.start()
            hooks, missing = watch.hooks
            yield watch.note(
                ControlState(state="attached", hooks=hooks, missing=missing, confined=confined)
            )
            for scope in watch.holder.scopes:
                for layer in LAYERS:
                    name = scope.name or str(scope)
                    yield watch.note(
                        FilterChanged(action="added", layer=layer, filter=name, scope=str(scope))
                    )
        for records in self._turns():
            yield self.counted(records)
        for records in watch.finish():
            yield self.counted(records)
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
                if watch.holder.status() is not None:
                    if records or quiet_since is None:
                        quiet_since = time.monotonic()
                    elif (
                        watch.source.is_drained and not watch.pipeline.table
                    ) or time.monotonic() - quiet_since > LINGER_S:
                        self.ended = "command"
                yield records

    def close(self) -> None:
        """Ends the command if it still runs, and detaches all; a second call does nothing."""
        self.watch.close()


def request_of(what: str) -> ControlRequest:
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
            while not run.watch.hooks.attached:  # attached before we return
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
            if record.body.place() in self._places:
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
    level_of_content = content if isinstance(content, Content) else Content.named(content)
    chosen = [resolve("exe", scope) if isinstance(scope, str) else scope for scope in scopes]
    if command:
        chosen.append(launch(command))
    if not chosen:
        raise ValueError("nothing to watch: no scope and no command")
    if protocol is not None:
        by_name(protocol)  # before anything is loaded
    selection = choose(providers, flags, level)
    run = Run(
        Local(chosen, command=command, new_only=new_only, ring_bytes=ring_bytes(level_of_content)),
        selection=selection,
        content=level_of_content,
        duration_s=duration,
        protocol=protocol,
        both_ends=both_ends,
    )
    return Monitor(run, selection)


def ring_bytes(content: Content) -> int:
    """Of the data ring, for what is copied at this level."""
    return FULL_RING_BYTES if content is Content.FULL else RING_BYTES


def read(
    *paths: str | os.PathLike[str],
    content: Content | Literal["none", "meta", "full"] = "meta",
    providers: Sequence[str] = (),
    flags: Sequence[str] = (),
    level: str | None = None,
    protocol: str | None = None,
    ports: Iterable[int] = (),
    hosts: Iterable[str] = (),
    tunnels: bool = False,
) -> Capture:
    """The records of captures, several as one in the order of time, as `monitor` gives them live.

    ports, hosts: only connections with one of the ports, and one of the addresses, at either end.
    tunnels: looks into GRE, VXLAN and IP in IP too. The rest as in `monitor`.

    Raises NotFound and PermissionMissing; CaptureFileError after what can be read of a file.
    """
    if not paths:
        raise ValueError("nothing to read: no capture is named")
    if protocol is not None:
        by_name(protocol)
    selection = choose(providers, flags, level)
    reading = Reading(
        paths,
        selection=selection,
        chosen=choose_connections(ports, hosts, tunnels=tunnels),
        content=content if isinstance(content, Content) else Content.named(content),
        protocol=protocol,
    )
    return Capture(reading, selection)
