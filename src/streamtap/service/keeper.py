"""The keeper: the process of the service that has rights, and no other work than to use them.

It holds the pinned callouts, the filters and the state; decides on candidates; answers on the
control socket; and starts the processes that read what came: the parser, without any right, and
the recorders, with those of the users who asked. One of them may end at any moment: it is started
again and goes on. The keeper itself may: what is pinned goes on, and the next one adopts it.
"""

import logging
import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Iterable, Sequence

from streamtap import __version__
from streamtap.capture.identity import host_key
from streamtap.capture.inspect import live_flows
from streamtap.errors import AlreadyRunning, Busy, StreamtapError
from streamtap.events import (
    Body,
    ControlOpened,
    ControlRequest,
    ControlState,
    FilterChanged,
    Started,
    StateChanged,
)
from streamtap.service.board import Board
from streamtap.service.connection import Connection
from streamtap.service.control import ControlServer
from streamtap.service.ledger import open_ledger
from streamtap.service.listening import is_served
from streamtap.service.notify import Ready, stopping, watchdog
from streamtap.service.parsing import ParserProcess
from streamtap.service.paths import Paths
from streamtap.service.peers import Peer
from streamtap.service.protocol import (
    AddFilters,
    AnyRequest,
    Attach,
    DeleteFilters,
    Disable,
    Enable,
    Flows,
    List,
    Remove,
    Sessions,
    Status,
    StatusReply,
    Stop,
    TraceStart,
    TraceStop,
)
from streamtap.service.registry import Registry
from streamtap.service.state import Filter
from streamtap.service.tracing import Tracing
from streamtap.trace.text import counted

LAYERS = ("flow_established", "stream")
TICK_S = 1.0
WAIT_S = 10.0  # for a verb that holds the lock
DESCRIPTORS = 65536  # a session takes three of a recorder
_STOPS = frozenset((signal.SIGTERM, signal.SIGINT))
FINISH_S = 10.0  # for what the rings hold at the end
_log = logging.getLogger(__name__)


class Keeper:
    """The service, from the moment its control socket can be used until `run` returns."""

    def __init__(self, paths: Paths, *, force: bool = False) -> None:
        """Loads or adopts the callouts, and opens the control socket.

        Raises AlreadyRunning where there is a service, and what `Registry` and its driver do.
        """
        self._paths = paths
        self._began = time.monotonic()
        self._stop = ""
        self._selector = selectors.DefaultSelector()
        self._signals, self._signal_end = socket.socketpair()
        for end in (self._signals, self._signal_end):
            end.setblocking(False)
        self._registry = _open_registry(paths, force)
        self._registry.make_room = self._make_room
        self._server = ControlServer(self, self._selector, paths.control)
        try:
            callouts = self._registry.driver.callouts
            self._server.open()
            self._unseen = callouts.unseen_bytes
            callouts.told()
            callouts.pause(False)
            self._ledger_fd = open_ledger(paths.flows)
            self._board = Board.create()
            self._parser = ParserProcess(
                self._registry.driver,
                self._board,
                self._ledger_fd,
                self._selector,
                host_key(),
                began=self._on_parser,
                left=lambda name: self._tracing.on_gone(name),
            )
            self._tracing = Tracing(
                self._registry, self._parser, self._board, self._selector, self._note
            )
        except BaseException:
            self._server.close()
            self._registry.close()
            raise

    # --- the life of the service -----------------------------------------------------------------

    def run(self, ready: Ready) -> int:
        """Serves until it is told to stop; the exit code."""
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signal)
        before = signal.set_wakeup_fd(self._signal_end.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the descriptor tells
        try:
            self._tell_filters()
            self._parser.start()
            self._begin()
            self._parser.begin()
            aside = "".join(f"; damaged state is kept in {at}" for at in self._registry.put_aside)
            ready(f"watching for {counted(len(self._registry.filters()), 'filter')}{aside}")
            due = 0.0
            while not self._stop:
                now = time.monotonic()
                if now >= due:
                    due = now + TICK_S
                    self._tick()
                wait_s = min(due - now, self._server.expire() or TICK_S)
                for key, events in self._selector.select(max(0.0, wait_s)):
                    key.data(events)
            self._end()
            return 0
        finally:
            signal.set_wakeup_fd(before)
            self.close()

    def _begin(self) -> None:
        callouts = self._registry.driver.callouts
        self._tracing.begin()
        self._note(Started(version=__version__, source="live callouts"))
        self._note(ControlOpened(path=str(self._paths.control)))
        state = "adopted" if self._registry.adopted else "attached"
        self._note(ControlState(state=state, hooks=callouts.hooks, missing=callouts.missing))
        if self._unseen:
            self._note(ControlState(state=f"{self._unseen} bytes passed unseen"))
            _log.warning("%d bytes passed unseen since a service ran", self._unseen)
        self._tracing.note_full()

    def _on_parser(self, restarted: bool) -> None:
        if restarted:
            self._note(ControlState(state="parser restarted"))
        self._tracing.tell_parser(restarted)

    def _tick(self) -> None:
        watchdog()
        self._stay()
        try:
            self._registry.refresh()
        except OSError as error:
            _log.error("cgroups cannot be followed now: %s", error)
        self._registry.driver.callouts.told()
        self._parser.look_after()
        self._tracing.look_after()

    def _stay(self) -> None:
        """Where somebody removed the folder of the socket and the lock: nobody could reach this
        service any more, and another one could begin beside it. If one did, this one gives way."""
        registry, server = self._registry, self._server
        if registry.is_locked and server.is_locked and server.is_found:
            return
        path = self._paths.control
        try:
            ours = registry.is_locked or registry.lock_again()
            if ours and not (server.is_locked and server.is_found):
                server.open_again()
                _log.warning("%s was removed, and was made again", path)
                self._note(ControlOpened(path=str(path)))
        except Busy:  # a verb, for a moment, or another service
            ours = server.is_found or not is_served(path)
        except (StreamtapError, OSError) as error:
            ours = True
            _log.debug("%s cannot be made again now: %s", path, error)
        if not ours:
            _log.error("%s was removed, and another process has taken our place: ended", path)
            self._stop = "hold"

    def _end(self) -> None:
        """What the rings hold is read to its end; then nobody reads, and what passes is counted,
        unless the next one is about to begin."""
        stopping()
        registry = self._registry
        removing = self._stop == "remove"
        callouts = registry.driver.callouts
        callouts.pause(self._stop != "hold")
        callouts.told()
        self._parser.finish(FINISH_S)
        self._tracing.finish(FINISH_S)
        if removing:
            registry.remove()

    def close(self) -> None:
        self._server.close()
        self._parser.kill()
        self._tracing.kill()
        self._registry.close()
        os.close(self._board.fd)
        os.close(self._ledger_fd)
        self._selector.close()
        self._signals.close()
        self._signal_end.close()

    def _on_signal(self, events: int) -> None:
        # Others come too: SIGHUP, SIGCHLD, and SIGALRM, which bounds what a pattern may cost.
        if not _STOPS.isdisjoint(self._signals.recv(64)):
            self._stop = "signal"

    def _make_room(self) -> None:
        """While processes are judged, which may be more than the control ring has room for: the
        parser reads it, and asks."""
        self._parser.serve()

    # --- records of our own ----------------------------------------------------------------------

    def _note(self, body: Body) -> None:
        self._parser.note(time.time_ns(), body)

    def on_request(self, asked: ControlRequest) -> None:
        self._note(asked)

    # --- requests --------------------------------------------------------------------------------

    def handle(self, peer: Peer, request: AnyRequest, client: Connection) -> object:
        match request:
            case Status():
                return self._status()
            case List():
                return self._registry.filters()
            case Flows():
                return live_flows(self._registry.driver.list_flows())
            case Sessions():
                return self._tracing.infos()
            case AddFilters():
                return self._add(request, client)
            case DeleteFilters():
                return self._delete(request.names)
            case Enable() | Disable():
                self._switch(request)
                return None
            case Remove():
                self._registry.forget()  # or who asks is told why not
                self._stop = "remove"
                return None
            case Stop():
                self._stop = "hold" if request.hold else "stop"
                return None
            case TraceStart():
                return self._tracing.start(peer, request, client)
            case TraceStop():
                return self._tracing.stop(request.name)
            case Attach():
                self._tracing.attach(peer, request, client)
                return None

    def session_owner(self, name: str) -> int | None:
        return next((one.uid for one in self._registry.recorded if one.name == name), None)

    def _status(self) -> StatusReply:
        registry, board = self._registry, self._board
        callouts = registry.driver.callouts
        return StatusReply(
            version=__version__,
            pid=os.getpid(),
            parser_pid=self._parser.pid,
            recorder_pids=self._tracing.recorder_pids,
            uptime_s=round(time.monotonic() - self._began, 3),
            enabled=registry.enabled,
            hooks=callouts.hooks,
            missing=callouts.missing,
            counters=callouts.counters(),
            filters=len(registry.filters()),
            flows=board.total("flows_open"),
            records=board.total("records"),
            sessions=len(self._tracing),
            parser_restarts=self._parser.restarts,
            unseen_bytes=self._unseen,
            confined=self._parser.confined,
        )

    # --- filters ---------------------------------------------------------------------------------

    def _add(self, request: AddFilters, client: Connection) -> Iterable[Filter]:
        try:
            added = self._registry.add(
                request.filters, temporary=request.temporary, prepared=self._tell_more
            )
        except BaseException:  # parser and sessions may have been told of them
            self._tracing.follow(())
            self._tell_filters()
            raise
        self._tell_filters()
        self._note_filters("added", added)
        if request.temporary:
            names = [one.name for one in added]
            client.hold()
            client.when_closed(lambda: self._forget(names))
        return added

    def _delete(self, names: Iterable[str]) -> Iterable[Filter]:
        gone = self._registry.delete(list(names))
        self._tell_filters()
        self._note_filters("deleted", gone)
        return gone

    def _forget(self, names: Iterable[str]) -> None:
        """Temporary filters whose client has gone."""
        if not self._stop:
            self._delete(name for name in names if name in self._registry.temporary)

    def _note_filters(self, action: str, filters: Iterable[Filter]) -> None:
        for one in filters:
            for layer in LAYERS:
                self._note(
                    FilterChanged(
                        action="added" if action == "added" else "deleted",
                        layer=layer,
                        filter=one.name,
                        scope=str(one.scope),
                    )
                )

    def _switch(self, request: Enable | Disable) -> None:
        enabled = isinstance(request, Enable)
        (self._registry.enable if enabled else self._registry.disable)(request.name)
        self._tell_filters()
        self._note(StateChanged(enabled=enabled, filter=request.name))

    def _tell_filters(self) -> None:
        self._parser.set_filters(self._registry.all_filters(), self._registry.mask)

    def _tell_more(self, filters: Sequence[Filter]) -> None:
        """The parser knows a filter before the callouts do."""
        self._tracing.follow(filters)
        mask = self._registry.mask | sum(1 << one.bit for one in filters)
        self._parser.set_filters([*self._registry.all_filters(), *filters], mask)


def run(paths: Paths, ready: Ready, *, force: bool = False) -> int:
    """The whole life of a service; the exit code. Raises what `Keeper` does before it is ready.

    force: state that is damaged is put aside, and begun anew.
    """
    logging.basicConfig(format="streamtap: %(message)s", level=logging.INFO)
    _more_descriptors()
    return Keeper(paths, force=force).run(ready)


def _more_descriptors() -> None:
    """For as many sessions as there may be; the other processes inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open_registry(paths: Paths, force: bool) -> Registry:
    """Waits for a verb that holds the lock. Raises AlreadyRunning where a service does."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            return Registry(paths, force=force)
        except Busy:
            if is_served(paths.control):
                raise AlreadyRunning("the service runs already", "see: streamtap status") from None
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
