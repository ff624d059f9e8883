"""A parser process over rings in memory, with a keeper and sessions that a test plays."""

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from helpers.kernels import SIZE, FakeKernel
from streamtap.capture.kernel import Kernel
from streamtap.service import messages
from streamtap.service.board import Board
from streamtap.service.ledger import prepare
from streamtap.service.link import LinkError
from streamtap.service.starting import start_parser

DEADLINE_S = 20.0
FILTERS = {0: messages.FilterTerms("chat"), 1: messages.FilterTerms("web")}
# Memory cannot be waited for, as rings can: the parser looks there whenever it wakes.
_WITHOUT_WAITING = """
import select, sys
from streamtap.capture import live
class Epoll:
    def __init__(self, size): self._epoll = select.epoll(size)
    def register(self, fd, events):
        try: self._epoll.register(fd, events)
        except PermissionError: pass
    def poll(self, timeout): return self._epoll.poll(min(timeout, 0.005))
    def close(self): self._epoll.close()
class Select:
    epoll, EPOLLIN, EPOLLET = Epoll, select.EPOLLIN, select.EPOLLET
live.select = Select
from streamtap.service.parser import main
sys.exit(main(sys.argv[1:]))
"""


class Session:
    """The reading end of a session."""

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._rest = b""
        self.records: list[dict[str, Any]] = []
        self.ended = False

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while not self.ended:
                data = self.socket.recv(1 << 20)
                self.ended = not data
                *lines, self._rest = (self._rest + data).split(b"\n")
                self.records += [json.loads(line) for line in lines if line]

    def events(self) -> list[str]:
        return [record["event"] for record in self.records]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]

    def close(self) -> None:
        self.socket.close()


class Keeper:
    """Starts a parser on the rings of a kernel and serves it whenever a test waits."""

    def __init__(
        self,
        kernel: Kernel,
        data_fd: int,
        control_fd: int,
        *,
        sizes: tuple[int, int],
        waits: bool = True,
        filters: dict[int, messages.FilterTerms] = FILTERS,
        enabled: int = 3,
        board: Board | None = None,
        ledger_fd: int | None = None,
        sessions: Sequence[messages.Attach] = (),
    ) -> None:
        """ledger_fd: of another keeper, for a parser that follows its one.
        waits: the rings can be waited for. sessions: that are there from the beginning."""
        self.kernel = kernel
        self.board = board or Board.create()
        self.ledger_fd = os.memfd_create("flows") if ledger_fd is None else os.dup(ledger_fd)
        prepare(self.ledger_fd)
        self.confined: messages.Ready | None = None
        self.parted: list[str] = []
        self.sessions: dict[str, Session] = {}
        setup = messages.Setup(*sizes, b"k" * 16)
        argv = (sys.executable, "-P", *(["-m", "streamtap.service.parser"] if waits else []))
        if not waits:
            argv = (*argv, "-c", _WITHOUT_WAITING)
        self.process, self.end = start_parser(
            data_fd, control_fd, self.board, self.ledger_fd, self, setup,
            messages.SetFilters(filters, enabled), argv=argv,
        )  # fmt: skip
        for one in sessions:
            self._attach(one)
        self.end.order(messages.Begin())
        self.until(lambda: self.confined, "the parser is ready")

    def ready(self, ready: messages.Ready) -> None:
        self.confined = ready

    def gone(self, session: str) -> None:
        self.parted.append(session)

    def attach(self, name: str, slot: int = 0, **options: Any) -> Session:
        return self._attach(messages.Attach(name, slot, **options))

    def _attach(self, attach: messages.Attach) -> Session:
        session = self.sessions[attach.session] = Session()
        self.end.order(attach, session.theirs.fileno())
        session.theirs.close()
        return session

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Serves the parser and reads the sessions until the condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self.end.serve(self.kernel)
            for session in self.sessions.values():
                session.read()
            if condition():
                return
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"not in time: {what}"
            sockets = [one.socket for one in self.sessions.values() if not one.ended]
            waiting: list[int | socket.socket] = [self.end.fd, *sockets]
            select.select(waiting, [], [], min(left_s, 0.05))

    def finish(self) -> int:
        """Orders the end; the exit code."""
        self.end.order(messages.Finish())
        self.until_ended()
        return int(self.process.returncode)

    def until_ended(self) -> None:
        """Serves it to its end."""

        def over() -> bool:
            return self.process.poll() is not None

        with contextlib.suppress(LinkError):
            self.until(over, "the parser ends")
        self.process.wait(DEADLINE_S)
        for session in self.sessions.values():
            session.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.end.close()
        os.close(self.ledger_fd)
        for session in self.sessions.values():
            session.close()


def keep(kernel: FakeKernel, **options: Any) -> Keeper:
    """A parser over rings in memory."""
    fds = kernel.data.fd, kernel.control.fd
    return Keeper(kernel, *fds, sizes=(SIZE, SIZE), waits=False, **options)


def status_of(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        pairs = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in pairs}


def descriptors_of(pid: int) -> set[tuple[str, str]]:
    """What the descriptors of a process are, and which: the number of the file, or of the BPF map;
    one that it has twice is here once."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        what = os.readlink(f"/proc/{pid}/fd/{name}")
        with open(f"/proc/{pid}/fdinfo/{name}") as file:
            pairs = (line.partition(":") for line in file)
            info = {field: value.strip() for field, _, value in pairs}
        which = info.get("map_id") or info.get("prog_id") or info.get("link_id") or info["ino"]
        found.add((what.removesuffix(" (deleted)"), which))
    return found
