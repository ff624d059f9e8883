"""The trace sessions that run now, and their places on the board."""

import socket
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Literal

from streamtap.errors import StreamtapError
from streamtap.service.board import SLOTS, Board
from streamtap.service.connection import Connection
from streamtap.service.peers import Peer
from streamtap.service.protocol import Attach, Content, SessionInfo
from streamtap.service.state import Recorded


@dataclass(eq=False)
class Session:
    """A session that runs.

    slot: on the board. mask: bits of its filters. stream: where its records are written to, kept
    so that a parser that takes over can go on with it.
    """

    name: str
    slot: int
    stream: socket.socket
    selection: tuple[str, ...]
    content: Content
    filters: tuple[str, ...]
    user: str
    uid: int
    mask: int = 0
    pid: int | None = None
    outputs: tuple[str, ...] = ()
    started_ns: int = field(default_factory=time.time_ns)
    client: Connection | None = None
    error: str = ""

    @property
    def kind(self) -> Literal["recorded", "live"]:
        return "live" if self.client is not None else "recorded"


class SessionTable:
    """Sessions by their names."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._sessions: dict[str, Session] = {}
        self._free = list(range(SLOTS - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._sessions

    def get(self, name: str) -> Session | None:
        return self._sessions.get(name)

    def free_name(self, wanted: str, stored: Container[str]) -> str:
        """stored: the names of sessions that record, whether or not they run now."""
        name, number = wanted, 1
        while name in self._sessions or name in stored:
            number += 1
            name = f"{wanted}-{number}"
        return name

    def add_recorded(self, stored: Recorded, stream: socket.socket) -> Session:
        return self._add(
            Session(
                name=stored.name,
                slot=self._slot(),
                stream=stream,
                selection=stored.selection,
                content=stored.content,
                filters=stored.filters,
                user=stored.user,
                uid=stored.uid,
                outputs=stored.outputs,
                started_ns=stored.started_ns,
            )
        )

    def add_live(
        self, name: str, request: Attach, peer: Peer, stream: socket.socket, client: Connection
    ) -> Session:
        return self._add(
            Session(
                name=name,
                slot=self._slot(),
                stream=stream,
                selection=request.selection,
                content=request.content,
                filters=request.filters,
                user=peer.user,
                uid=peer.uid,
                pid=peer.pid,
                client=client,
            )
        )

    def _slot(self) -> int:
        if not self._free:
            raise StreamtapError(f"{SLOTS} sessions run already, the most at once")
        slot = self._free.pop()
        self._board.clear(slot)
        return slot

    def _add(self, session: Session) -> Session:
        session.stream.setblocking(False)
        self._sessions[session.name] = session
        return session

    def remove(self, session: Session) -> None:
        if self._sessions.get(session.name) is session:
            del self._sessions[session.name]
            self._free.append(session.slot)
            session.stream.close()

    def info(self, session: Session, unwritten: int = 0) -> SessionInfo:
        """unwritten: records that were given, and that its recorder could not write."""
        number, dropped = self._board.session(session.slot)
        return SessionInfo(
            name=session.name,
            kind=session.kind,
            running=not session.error,
            user=session.user,
            uid=session.uid,
            pid=session.pid,
            selection=session.selection,
            content=session.content,
            filters=session.filters,
            outputs=session.outputs,
            records=number - dropped,
            dropped=dropped + unwritten,
            started_ns=session.started_ns,
            error=session.error,
        )
