"""`monitor` where the service runs: a trace session of it, with the records that a monitor of its
own would give.

Programs that are named become filters for as long as this runs; those that a filter is for already
are watched by that one.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence

import msgspec

from streamtap import __version__
from streamtap.cli.ending import exit_code, summary
from streamtap.cli.options import scopes_given, takes_stdout
from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import Arguments, UsageError, say
from streamtap.cli.recordings import of_wanted_flows
from streamtap.cli.signals import Stop
from streamtap.cli.watching import GARBAGE_AFTER, STDERR
from streamtap.command import Child
from streamtap.errors import ServiceError
from streamtap.events import (
    Body,
    ControlOpened,
    ControlRequest,
    ControlState,
    FilterChanged,
    FlowClosed,
    FlowOpened,
    Record,
    Started,
    Stopped,
)
from streamtap.protocols import by_name
from streamtap.service.client import Client, new_filter
from streamtap.service.protocol import NewFilter
from streamtap.service.state import Filter, Level
from streamtap.service.stream import Records
from streamtap.tally import COUNTED, Tally
from streamtap.trace import Selection
from streamtap.trace.text import printable
from streamtap.watch import LINGER_S

TURN_S = 0.2  # the longest wait: how late a stop is noticed
LAST_S = 2.0  # for the ends of connections, once their filter is taken away
LAYERS = ("flow_established", "stream")


def can_attach(arguments: Arguments) -> bool:
    """The service can give what is asked for: not segments, nor both ends of one connection."""
    forced = arguments.protocol is not None and not (scopes_given(arguments) or arguments.command)
    return not (
        arguments.write or arguments.extract or arguments.both_ends or arguments.new_only or forced
    )


def attach(arguments: Arguments, stop: Stop, client: Client) -> int:
    """Watches until something ends it; the exit code. Raises what the service says."""
    if arguments.protocol is not None:
        by_name(arguments.protocol)
    gc.set_threshold(GARBAGE_AFTER)
    outputs = Outputs(arguments)
    child: Child | None = None
    if arguments.command:
        child = Child(arguments.command, stdout=STDERR if takes_stdout(arguments) else None)
    try:
        with outputs:
            filters = _filters(arguments, client, child)
            run = AttachedRun(
                client,
                filters,
                outputs.selection,
                arguments.content,
                duration_s=arguments.duration,
                stop=lambda: bool(stop.number) or outputs.over,
                child=child,
            )
            wanted = of_wanted_flows(arguments)
            _announce(filters)
            for records in run.batches():
                if wanted is not None:
                    records = [one for one in records if one.flow is None or wanted(one.flow)]
                outputs.take(records)
                run.records = outputs.records
            status = child.status if child is not None else None
    finally:
        client.close()
        if child is not None:
            child.end()
    say(summary(run, outputs))
    code = exit_code(arguments, run, outputs, stop.number, status)
    if run.abandoned and not code:
        raise ServiceError("the service has ended the session", "see: streamtap status")
    return code


def _filters(arguments: Arguments, client: Client, child: Child | None) -> Sequence[Filter]:
    """Those to be watched, made where there are none yet. Raises UsageError for none at all."""
    registered = client.filters()
    asked = [
        new_filter(
            kind,
            text,
            follow_forks=kind == "pid" and arguments.follow_forks,
            protocol=arguments.protocol,
        )
        for kind, text in scopes_given(arguments)
    ]
    if child is not None:
        name = printable(f"{child.argv[0].rpartition('/')[2]}-{child.pid}")
        asked.append(
            new_filter(
                "pid", str(child.pid), name=name, follow_forks=True, protocol=arguments.protocol
            )
        )
    if not asked:
        if not registered:
            raise UsageError(
                "nothing to watch: no program is named, and no filters are registered",
                "streamtap monitor /usr/bin/curl    or: streamtap addcallouts /usr/bin/curl",
            )
        return registered
    found: list[Filter] = []
    fresh: list[NewFilter] = []
    for one in asked:
        scope = one.resolve()
        same = [x for x in registered if x.enabled and _is_same(x, scope, arguments.protocol)]
        if same:
            found.append(same[0])
        else:
            taken = {x.name for x in registered} | {x.name for x in fresh}
            name = one.name or scope.name
            if name in taken:
                one = msgspec.structs.replace(one, name=f"{name}-{time.monotonic_ns():x}")
            fresh.append(one)
    return [*found, *(client.add(fresh, temporary=True) if fresh else ())]


def _is_same(registered: Filter, scope: object, protocol: str | None) -> bool:
    """It watches the very processes, and understands them as is asked."""

    def bare(one: object) -> object:
        assert isinstance(one, msgspec.Struct)
        return msgspec.structs.replace(one, name="", given="")

    return bare(registered.scope) == bare(scope) and protocol in (None, registered.protocol)


class AttachedRun(Tally):
    """The life of a session as batches of records, as `api.Run` gives that of a watch.

    abandoned: the service ended first.
    """

    def __init__(
        self,
        client: Client,
        filters: Sequence[Filter],
        selection: Selection,
        content: str,
        *,
        duration_s: float | None,
        stop: Callable[[], bool],
        child: Child | None,
    ) -> None:
        super().__init__()
        self._client = client
        self._filters = filters
        self._full = content == "full"
        self._duration_s = duration_s
        self._stop = stop
        self._child = child
        self._open: set[str] = set()
        self._opened = 0
        self.abandoned = False
        status = client.status()
        self._state = ControlState(state="attached", hooks=status.hooks, missing=status.missing)
        everything = Selection(selection.places | COUNTED)
        self._stream: Records = client.records(
            *str(everything).split(),
            content=msgspec.convert(content, Level),
            filters=[one.name for one in filters],
        )

    @property
    def flows(self) -> int:
        return self._opened

    def batches(self) -> Generator[list[Record], None, None]:
        """As `api.Run.batches`; what is about the session itself is told as there."""
        with self._stream as stream:
            yield _notes(Started(version=__version__, source="the service"), self._state)
            for one in self._filters:
                yield _notes(
                    *(
                        FilterChanged(
                            action="added", layer=layer, filter=one.name, scope=str(one.scope)
                        )
                        for layer in LAYERS
                    )
                )
            if self._child is not None:
                self._child.release()
            for records in self._turns(stream):
                yield self._counted(records)
            for records in self._last(stream):
                yield self._counted(records)
        self.drops = {"records that did not come in time": stream.missed + stream.damaged}
        yield _notes(
            Stopped(
                flows=self.flows,
                bytes=self.bytes,
                records=self.records,
                gaps=self.gaps.total(),
                drops=sum(self.drops.values()),
            )
        )

    def _turns(self, stream: Records) -> Generator[list[Record], None, None]:
        began = time.monotonic()
        until = float("inf") if self._duration_s is None else began + self._duration_s
        quiet_since: float | None = None  # once the command has ended
        while not self.ended:
            now = time.monotonic()
            if self._stop():
                self.ended = "stop"
            elif now >= until:
                self.ended = "duration"
            elif stream.ended:
                self.ended, self.abandoned = "stop", True
            else:
                records = stream.wait(min(TURN_S, until - now))
                if self._child is not None and self._child.poll() is not None:
                    if records or quiet_since is None:
                        quiet_since = time.monotonic()
                    elif not self._open or time.monotonic() - quiet_since > LINGER_S:
                        self.ended = "command"
                yield records

    def _last(self, stream: Records) -> Generator[list[Record], None, None]:
        """Filters of our own go with us, and with them their connections; what is told of that."""
        own = [one.name for one in self._filters if one.name not in self._registered()]
        if self.abandoned or not own:
            return
        self._client.delete(own)
        until = time.monotonic() + LAST_S
        while self._open and not stream.ended and time.monotonic() < until:
            yield stream.wait(TURN_S)

    def _registered(self) -> set[str]:
        return set() if self.abandoned else {one.name for one in self._client.filters()}

    def _counted(self, records: list[Record]) -> list[Record]:
        records = [record for record in records if self._is_ours(record)]
        for record in records:
            if record.flow is not None and isinstance(record.body, FlowOpened):
                self._opened += 1
                self._open.add(record.flow.flow)
            elif record.flow is not None and isinstance(record.body, FlowClosed):
                self._open.discard(record.flow.flow)
        return self.counted(records)

    def _is_ours(self, record: Record) -> bool:
        """What others ask the service for, and what it says of itself, is told to its sessions,
        but not by a monitor."""
        body = record.body
        if isinstance(body, ControlRequest):
            return self._full and body.pid == os.getpid()
        return not isinstance(
            body, ControlOpened | ControlState | FilterChanged | Started | Stopped
        )


def _notes(*bodies: Body) -> list[Record]:
    now_ns = time.time_ns()
    return [Record(time_ns=now_ns, body=body) for body in bodies]


def _announce(filters: Sequence[Filter]) -> None:
    end = "; Ctrl-C ends" if sys.stderr is not None and sys.stderr.isatty() else ""
    scopes = ", ".join(printable(str(one.scope)) for one in filters)
    say(f"streamtap: watching {scopes}, by the service{end}")
