"""The trace sessions that run: who asked for them, the parser that writes their streams, and the
recorders that write those of the stored ones to disk.

What is stored is the registry's. A session runs from the moment it has a stream: a recorded one
until it is stopped, a live one as long as its client is there. Parser and recorders may end at any
moment, and the session goes on with the next.
"""

import logging
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from streamtap.errors import AlreadyExists, StreamtapError
from streamtap.events import Body, ControlRequest, ControlState
from streamtap.service.board import Board
from streamtap.service.connection import LATER, Connection, Later
from streamtap.service.parsing import ParserProcess
from streamtap.service.peers import Peer
from streamtap.service.protocol import Attach, Attached, SessionInfo, TraceStart
from streamtap.service.recording import Recorders
from streamtap.service.registry import Registry
from streamtap.service.sessions import Session, SessionTable
from streamtap.service.state import Filter, Recorded
from streamtap.trace import parse

STREAM_BYTES = 1 << 20  # on the way to a recorder, of one session
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
OPEN_S = 5.0  # for a recorder to open its files; a disk may hang
_log = logging.getLogger(__name__)


class Tracing:
    """note: called with what is to be a record of the service's own."""

    def __init__(
        self,
        registry: Registry,
        parser: ParserProcess,
        board: Board,
        selector: selectors.BaseSelector,
        note: Callable[[Body], None],
    ) -> None:
        self._registry = registry
        self._parser = parser
        self._note = note
        self._sessions = SessionTable(board)
        self._recorders = Recorders(
            selector, report=self._on_recorder, begun=self._on_begun, lost=self._on_lost
        )
        # Who waits for the files of a session to be opened: until when, and the reply.
        self._starting: dict[str, tuple[float, Connection, Recorded]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def recorder_pids(self) -> tuple[int, ...]:
        return self._recorders.pids

    def infos(self) -> list[SessionInfo]:
        """Those that run, and those that are stored alone."""
        unwritten = self._recorders.dropped
        running = {
            one.name: self._sessions.info(one, unwritten.get(one.name, 0)) for one in self._sessions
        }
        stopped = [info for info in self._registry.sessions() if info.name not in running]
        return [*running.values(), *stopped]

    # --- stored sessions -------------------------------------------------------------------------

    def begin(self) -> None:
        """Those that are stored run; what one lacks is logged. A filter may come later."""
        for stored in self._registry.recorded:
            try:
                self._record(stored)
                self._registry.require(stored.filters)
            except (StreamtapError, OSError) as error:
                _log.error("session %s: %s", stored.name, error)

    def note_full(self) -> None:
        """Of stored sessions, that content in full was asked for: nobody could record that then,
        or it was told in another life."""
        for session in self._sessions:
            if session.content == "full":
                asked = f"trace_start {session.name}, content full"
                self._note(
                    ControlRequest(
                        request=asked, user=session.user, uid=session.uid, pid=0, result="stored"
                    )
                )

    def start(self, peer: Peer, request: TraceStart, client: Connection) -> Later:
        """Stores a session and runs it; the client is answered once its files were tried."""
        stored = request.recorded(peer.uid, peer.user, time.time_ns())
        if stored.name in self._sessions:
            raise AlreadyExists(f"there is a session {stored.name} already")
        self._registry.require(stored.filters)
        parse(stored.selection)
        stored = self._registry.add_session(stored)
        try:
            self._record(stored)
        except BaseException:
            self._registry.remove_session(stored.name)
            raise
        self._starting[stored.name] = time.monotonic() + OPEN_S, client, stored
        return LATER

    def _record(self, stored: Recorded) -> None:
        ours, theirs = _stream()
        session = self._sessions.add_recorded(stored, ours)
        session.mask = self._registry.mask_of(stored.filters)
        try:
            self._recorders.record(stored, theirs)
            self._parser.attach(session)
        except BaseException:
            self._sessions.remove(session)
            raise
        finally:
            theirs.close()

    def stop(self, name: str) -> Recorded:
        """It is stored no more, and does not run. Raises NotFound."""
        gone = self._registry.remove_session(name)
        self._on_begun(name)
        session = self._sessions.get(name)
        if session is not None:
            self._leave(session)
        self._recorders.forget(name)
        return gone

    # --- live sessions ---------------------------------------------------------------------------

    def attach(self, peer: Peer, request: Attach, client: Connection) -> None:
        """Answers the client, whose connection carries records from there on."""
        asked_ns = time.time_ns()
        self._registry.require(request.filters)
        parse(request.selection)
        stored = {one.name for one in self._registry.recorded}
        name = self._sessions.free_name(request.name or f"{peer.user}-{peer.pid}", stored)
        stream = client.attach(request.id, Attached(name=name))
        session = self._sessions.add_live(name, request, peer, stream, client)
        session.mask = self._registry.mask_of(request.filters)
        client.when_closed(lambda: self._leave(session))
        # The reply is on its way, and the parser may be behind it.
        self._parser.attach(session, last_s=request.last_s, opening=True, asked_ns=asked_ns)

    def _leave(self, session: Session) -> None:
        self._parser.detach(session)
        self._sessions.remove(session)

    # --- the parser ------------------------------------------------------------------------------

    def tell_parser(self, restarted: bool) -> None:
        """A parser began, which knows of no session yet."""
        for session in self._sessions:
            self._parser.attach(session, resumed=restarted)

    def on_gone(self, name: str) -> None:
        """Nobody reads a session any more, as the parser says."""
        session = self._sessions.get(name)
        if session is not None and session.client is not None:
            session.client.close()

    def follow(self, coming: Sequence[Filter]) -> None:
        """These filters are about to be added: sessions are told of those that they name. A bit
        that becomes another filter's is taken from the sessions of the one that is gone, which
        until then were told how its connections ended."""
        for session in self._sessions:
            mask = self._registry.mask_of(session.filters, coming)
            if mask != session.mask:
                session.mask = mask
                self._parser.narrow(session)

    # --- the recorders ---------------------------------------------------------------------------

    def look_after(self) -> None:
        """To be called now and then: recorders that ended begin again, and who has waited long
        enough for one is answered."""
        self._recorders.look_after()
        now = time.monotonic()
        for name in [name for name, (until, *_) in self._starting.items() if until <= now]:
            self._on_begun(name)

    def _on_lost(self, name: str) -> None:
        """The recorder of a session ended: another one goes on with it."""
        session = self._sessions.get(name)
        if session is None or session.client is not None:
            return
        stored = next(one for one in self._registry.recorded if one.name == name)
        try:
            ours, theirs = _stream()
            with theirs:
                self._parser.detach(session)
                session.stream.close()
                session.stream = ours
                ours.setblocking(False)
                self._recorders.record(stored, theirs)
                self._parser.attach(session)
        except OSError as error:
            self._recorders.later(name)
            self._on_recorder(name, str(error))
        else:
            self._on_recorder(name, "")

    def _on_begun(self, name: str) -> None:
        """Whether a session records is known: who started it is answered."""
        if name in self._starting:
            _, client, stored = self._starting.pop(name)
            client.finish(stored)

    def _on_recorder(self, name: str, error: str) -> None:
        """What a recorder says of a session that it cannot go on with."""
        session = self._sessions.get(name)
        if session is not None:
            session.error = error
            self._note(ControlState(state=f"session {name}: {error or 'records again'}"))

    # --- the end ---------------------------------------------------------------------------------

    def finish(self, wait_s: float) -> None:
        """Once the parser has ended: what it wrote is recorded, and nothing runs any more."""
        for session in self._sessions:
            self._sessions.remove(session)
        self._recorders.finish(wait_s)

    def kill(self) -> None:
        self._recorders.kill()


def _stream() -> tuple[socket.socket, socket.socket]:
    """For the lines of a recorded session. What is on the way outlives the parser, and a thousand
    flows may end at once."""
    ours, theirs = socket.socketpair()
    with suppress(OSError):
        ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, STREAM_BYTES)
    return ours, theirs
