"""Trace sessions as the keeper has them."""

import selectors
import socket
from types import SimpleNamespace
from typing import Any

from streamtap.service.board import Board
from streamtap.service.peers import Peer
from streamtap.service.protocol import Attach, Attached
from streamtap.service.state import Recorded
from streamtap.service.tracing import Tracing


def test_a_live_session_takes_no_name_of_a_stored_one_that_could_not_start() -> None:
    stored = Recorded(name="chat", selection=(), outputs=("/nowhere/chat.jsonl",))
    registry: Any = SimpleNamespace(
        recorded=(stored,), require=lambda names: None, mask_of=lambda names: 1
    )
    parser: Any = SimpleNamespace(attach=lambda session, **_: None)
    named: list[str] = []
    ours, theirs = socket.socketpair()

    def attach(number: int, reply: Attached) -> socket.socket:
        named.append(reply.name)
        return ours

    client: Any = SimpleNamespace(attach=attach, when_closed=lambda call: None)
    with ours, theirs, selectors.DefaultSelector() as selector:
        tracing = Tracing(registry, parser, Board.create(), selector, lambda body: None)
        tracing.attach(Peer(pid=1, uid=0, gid=0), Attach(id=1, name="chat"), client)
    assert named == ["chat-2"]
