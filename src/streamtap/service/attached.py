"""The trace sessions as the parser has them: who is told, and what each has come to.

Each has a place on the board. What the keeper orders of one that is not there concerns one whose
reader has gone, which the keeper is about to hear of.
"""

import logging
import socket
import time

from streamtap.events import Record
from streamtap.model import Content
from streamtap.pipeline import Pipeline
from streamtap.service import messages
from streamtap.service.board import SLOTS, Board
from streamtap.service.link import RemoteKernel
from streamtap.trace.hub import EVERY, Hub
from streamtap.trace.selection import parse

LEAVE_S = 0.2  # for a session that is detached to take what it was told

_log = logging.getLogger(__name__)


class AttachedSessions:
    """Joins a hub with the pipeline, which makes what is wanted of it and no more."""

    def __init__(self, hub: Hub, pipeline: Pipeline, board: Board, kernel: RemoteKernel) -> None:
        self._hub = hub
        self._pipeline = pipeline
        self._board = board
        self._kernel = kernel
        self._slots: dict[str, int] = {}

    def attach(self, order: messages.Attach, out: socket.socket) -> None:
        """One that cannot be is as if its reader had gone at once."""
        try:
            if order.slot >= SLOTS:
                raise ValueError(f"no slot {order.slot}")
            self._listen(order, out)
        except (ValueError, OSError) as error:
            _log.error("session %s: %s", order.session, error)
            out.close()
            if order.session not in self._slots:
                self._kernel.tell(messages.Gone(order.session))
            return
        self._slots[order.session] = order.slot
        self._follow()

    def _listen(self, order: messages.Attach, out: socket.socket) -> None:
        """Raises ValueError for what cannot be meant."""
        selection, content = parse(order.selection), Content.named(order.content)
        asked_ns = order.asked_ns or time.time_ns()
        since_ns = asked_ns if order.last_s is None else asked_ns - round(order.last_s * 1e9)
        opening: list[Record] = []
        if order.opening:
            opening = [
                record
                for record in self._pipeline.standing(since_ns)
                if record.body.place() in selection.places and _concerns(record, order.filters)
            ]
        self._hub.attach(
            order.session,
            out,
            selection,
            content=content,
            filters=order.filters,
            after=order.after,
            dropped=order.dropped,
            since_ns=since_ns if order.opening or order.last_s is not None else None,
            last=order.last_s is not None,
            resumed=order.resumed,
            opening=opening,
        )

    def narrow(self, order: messages.Narrow) -> None:
        if order.session in self._slots:
            self._hub.set_filters(order.session, order.filters)

    def detach(self, order: messages.Detach) -> None:
        if order.session in self._slots:
            self._part(order.session, LEAVE_S)

    def count(self) -> None:
        """What each was given is on the board."""
        for name, session in self._hub.sessions.items():
            self._board.set_session(self._slots[name], session.number, session.dropped)

    def part_gone(self) -> None:
        """Those whose readers have gone are no more, of which the keeper is told."""
        gone = [name for name, session in self._hub.sessions.items() if session.gone]
        for name in gone:
            self._part(name)
            self._kernel.tell(messages.Gone(name))

    def _part(self, name: str, wait_s: float = 0.0) -> None:
        session = self._hub.sessions[name]
        self._hub.detach(name, wait_s=wait_s)
        self._board.set_session(self._slots.pop(name), session.number, session.dropped)
        self._follow()

    def _follow(self) -> None:
        """What is wanted is what the sessions want together."""
        self._pipeline.set_places(self._hub.places)
        self._pipeline.set_content(self._hub.content)

    def close(self) -> None:
        """Ends the sessions; what of them could not be sent is counted as dropped."""
        for name in list(self._slots):
            self._part(name)
        self._hub.close()


def _concerns(record: Record, filters: int) -> bool:
    return filters == EVERY or (record.flow is not None and bool(record.flow.filters & filters))
