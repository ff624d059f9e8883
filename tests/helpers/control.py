"""A control server in the hands of a test: a service that only notes, and the loop of a keeper."""

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamtap import __version__
from streamtap.errors import NotFound
from streamtap.events import ControlRequest, Record
from streamtap.service.connection import LATER, Connection
from streamtap.service.control import ControlServer
from streamtap.service.peers import Peer
from streamtap.service.protocol import (
    AddFilters,
    AnyRequest,
    Attach,
    Attached,
    Enable,
    Flows,
    Status,
    StatusReply,
)
from streamtap.trace.jsonlines import JsonLines
from streamtap.trace.sink import Output

DEADLINE_S = 20.0


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeService:
    """Notes what it is asked; answers some of it."""

    def __init__(self) -> None:
        self.handled: list[AnyRequest] = []
        self.told: list[ControlRequest] = []
        self.clients: list[Connection] = []
        self.streams: list[socket.socket] = []
        self.ended: list[Connection] = []
        self.owners: dict[str, int] = {}
        self.flows: object = ["x" * 1000] * 4000
        self.answers: dict[str, object] = {}

    def handle(self, peer: Peer, request: AnyRequest, client: Connection) -> object:
        self.handled.append(request)
        self.clients.append(client)
        answer = self.answers.get(str(request.__struct_config__.tag))
        if isinstance(answer, Exception):
            raise answer
        match request:
            case Status():
                return StatusReply(version=__version__, pid=os.getpid())
            case Flows():
                return self.flows
            case Enable(name="later"):
                return LATER
            case Enable(name="broken"):
                raise RuntimeError("secret")
            case Enable(name=str()):
                raise NotFound(f"no filter {request.name}", "see: streamtap list")
            case AddFilters():
                client.hold()
                client.when_closed(lambda: self.ended.append(client))
            case Attach():
                client.when_closed(lambda: self.ended.append(client))
                self.streams.append(client.attach(request.id, Attached(name="one")))
        return answer

    def session_owner(self, name: str) -> int | None:
        return self.owners.get(name)

    def on_request(self, asked: ControlRequest) -> None:
        self.told.append(asked)


class Served:
    """A server and the loop that a keeper would run."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.service = FakeService()
        self.selector = selectors.DefaultSelector()
        self.clock = Clock()
        self.server = ControlServer(self.service, self.selector, path, clock=self.clock, **options)
        self.server.open()
        self._clients = contextlib.ExitStack()

    def turn(self) -> float | None:
        due = self.server.expire()
        for key, events in self.selector.select(0.01):
            key.data(events)
        return due

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline
            self.turn()

    def settle(self) -> None:
        """Until nothing is to be done, but for what waits for time."""
        for _ in range(3):
            self.turn()

    def connect(self) -> socket.socket:
        client = self._clients.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(self.path))
        client.setblocking(False)
        return client

    def ask(self, client: socket.socket, **fields: object) -> Any:
        client.sendall(json.dumps({"id": 1, **fields}).encode() + b"\n")
        return self.reply(client)

    def reply(self, client: socket.socket) -> Any:
        line = b""
        while not line.endswith(b"\n"):
            line += self.read(client, 1) or pytest.fail("it was ended")
        return json.loads(line)

    def read(self, client: socket.socket, most: int = 1 << 16) -> bytes:
        """Some bytes; b"" at the end."""
        got: list[bytes] = []

        def is_there() -> bool:
            try:
                got.append(client.recv(most))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                got.append(b"")
            return True

        self.until(is_there)
        return got[0]

    def close(self) -> None:
        self._clients.close()
        self.server.close()
        for stream in self.service.streams:
            stream.close()
        self.selector.close()


class Running:
    """A served socket whose loop runs beside the test."""

    def __init__(self, path: Path) -> None:
        self.served = Served(path)
        self.service = self.served.service
        self._turns = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline
            self._over.wait(0.001)

    def settle(self) -> None:
        """Until what was asked has been answered."""
        turns = self._turns
        self.until(lambda: self._turns > turns + 1)

    @property
    def stream(self) -> socket.socket:
        """That of the first live session, once it is there."""
        self.until(lambda: self.service.streams)
        return self.service.streams[0]

    def _run(self) -> None:
        while not self._over.is_set():
            self.served.turn()
            self._turns += 1

    def close(self) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)
        self.served.close()


def lines_of(*records: tuple[int, Record]) -> bytes:
    reader, writer = socket.socketpair()
    with reader, writer, writer.makefile("wb", buffering=0) as stream:
        sink = JsonLines(Output(stream))  # type: ignore[arg-type]
        sink.open()
        for number, one in records:
            sink.write(number, (one,))
        sink.close()
        return reader.recv(1 << 20)
