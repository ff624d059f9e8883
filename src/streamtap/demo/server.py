"""A small MSN server on loopback: dispatch and notification on one port, switchboards on another.

    python -m streamtap.demo.server [--port N] [--switchboard-port N]

It speaks MSNP12 and knows three accounts. When it listens it prints its ports as one JSON line,
`{"notification": N, "switchboard": N}`; SIGTERM or SIGINT ends it with exit 0.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from streamtap.demo.accounts import NAMES
from streamtap.demo.notification import NotificationSession
from streamtap.demo.processes import take_name
from streamtap.demo.switchboard import Room, SwitchboardSession
from streamtap.demo.wire import FROM_CLIENT, LINE_LIMIT, Connection, ProtocolError, Transcript

HOST = "127.0.0.1"
CONNECTION_LIMIT = 64
COOKIE_LIMIT = 256
COOKIE_LIFE_S = 60.0
FAREWELL_S = 2.0
IDLE_S = 300.0  # about what the real switchboards allowed


class Session(Protocol):
    """One connection's side of the server."""

    async def serve(self) -> None: ...
    def leave(self, *, idle: bool) -> None: ...
    def shut_down(self) -> None: ...


class Directory:
    """What the sessions share: who is signed in, which switchboards are open, what was promised.

    Satisfies the `Directory` protocols of both kinds of session.
    """

    def __init__(self) -> None:
        self.users: dict[str, NotificationSession] = {}
        self.redirected: set[str] = set()
        self.notification_address = ""
        self.switchboard_address = ""
        self._cookies: dict[str, tuple[str, Room, float]] = {}

    def new_room(self) -> Room:
        return Room(str(secrets.randbelow(90_000_000) + 10_000_000))

    def new_cookie(self, account: str, room: Room) -> str:
        """A cookie that lets `account` into `room` once, within a minute."""
        if len(self._cookies) >= COOKIE_LIMIT:
            del self._cookies[next(iter(self._cookies))]
        numbers = (secrets.randbelow(10**9), secrets.randbelow(10**6))
        cookie = ".".join([room.session_id, *map(str, numbers)])
        self._cookies[cookie] = account, room, asyncio.get_running_loop().time() + COOKIE_LIFE_S
        return cookie

    def redeem_cookie(self, account: str, cookie: str) -> Room | None:
        owner, room, end_s = self._cookies.pop(cookie, ("", Room(""), 0.0))
        if owner != account or asyncio.get_running_loop().time() > end_s:
            return None
        return room

    def ring(self, account: str, room: Room, caller: str) -> bool:
        """Invite a contact to a switchboard; False when nobody would hear it."""
        user = self.users.get(account)
        if user is None or not user.reachable:
            return False
        cookie = self.new_cookie(account, room)
        address = self.switchboard_address
        user.tell("RNG", room.session_id, address, "CKI", cookie, caller, quote(NAMES[caller]))
        return True


class Server:
    """The listening sockets and the connections made to them."""

    def __init__(self, transcript: Transcript, idle_s: float = IDLE_S) -> None:
        self._directory = Directory()
        self._transcript = transcript
        self._idle_s = idle_s
        self._live: dict[asyncio.Task[None], Session] = {}

    async def listen(self, port: int, switchboard_port: int) -> tuple[asyncio.Server, ...]:
        """Open both ports (0 chooses one); they are served as long as the loop runs."""
        directory = self._directory
        servers = [
            await asyncio.start_server(
                partial(self._serve, service), HOST, number, limit=LINE_LIMIT
            )
            for service, number in (("notification", port), ("switchboard", switchboard_port))
        ]
        addresses = [f"{HOST}:{server.sockets[0].getsockname()[1]}" for server in servers]
        directory.notification_address, directory.switchboard_address = addresses
        return tuple(servers)

    async def _serve(
        self, service: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        tap = self._transcript.tap(service)
        connection = Connection(reader, writer, payloads=FROM_CLIENT, tap=tap)
        if len(self._live) >= CONNECTION_LIMIT:
            connection.abort()
            return
        session: Session
        if service == "notification":
            session = NotificationSession(connection, self._directory, self._idle_s)
        else:
            session = SwitchboardSession(connection, self._directory, self._idle_s)
        self._live[task] = session
        idle = False
        try:
            await session.serve()
        except ProtocolError:
            pass  # nothing sensible can be answered: hang up, as the real server did
        except TimeoutError:
            idle = True
        finally:
            session.leave(idle=idle)
            await connection.close()
            del self._live[task]

    async def shut_down(self) -> None:
        """Say goodbye to everybody, and give them a moment to hear it."""
        for session in self._live.values():
            session.shut_down()
        if self._live:
            await asyncio.wait(self._live, timeout=FAREWELL_S)


async def serve(arguments: argparse.Namespace, transcript: Transcript) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(transcript)
    listeners = await server.listen(arguments.port, arguments.switchboard_port)
    ports = [listener.sockets[0].getsockname()[1] for listener in listeners]
    print(json.dumps({"notification": ports[0], "switchboard": ports[1]}), flush=True)
    if arguments.attended:
        loop.add_reader(sys.stdin, _watch_stdin, stop)
    await stop.wait()
    for listener in listeners:
        listener.close()
    await server.shut_down()


def _watch_stdin(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        stop.set()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="streamtap.demo.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="of dispatch and notification")
    parser.add_argument("--switchboard-port", type=int, default=0)
    parser.add_argument("--attended", action="store_true", help="end when standard input does")
    parser.add_argument("--transcript", type=Path, help="write what passes, as JSON lines")
    arguments = parser.parse_args(argv)
    take_name("msn-server")
    try:
        transcript = Transcript(arguments.transcript)
        try:
            asyncio.run(serve(arguments, transcript))
        finally:
            transcript.close()
    except OSError as error:
        print(f"demo server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
