"""The demo's server as a process, plain sockets to talk to it, and a second reading of MSNP."""

import base64
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from streamtap.demo import environment, server_command
from streamtap.demo.credentials import PASSWORD, PRODUCT_ID, challenge_answer, ticket

PATIENCE_S = 10.0  # only a failing test ever waits as long
PAYLOAD = re.compile(
    rb"(?:MSG \d+ [UNAD]|MSG \S+ \S+|QRY \d+ \S+|UUX \d+|UBX \S+@\S+) (\d+)", re.ASCII
)


class Item(NamedTuple):
    words: list[str]
    payload: bytes


def items(stream: bytes) -> Iterator[Item]:
    """The commands that make up exactly these bytes; anything left over fails."""
    at = 0
    while at < len(stream):
        end = stream.index(b"\r\n", at)
        line = stream[at:end]
        assert re.match(rb"[A-Z]{3}( |$)|\d{3} \d+$", line), line
        counted = PAYLOAD.fullmatch(line)
        at = end + 2 + (int(counted[1]) if counted else 0)
        assert at <= len(stream), "a payload runs past the end"
        yield Item(line.decode().split(" "), stream[end + 2 : at])


class Stream(NamedTuple):
    """Both directions of one connection, from the side that recorded it."""

    service: str
    sent: bytes
    received: bytes


def streams(transcript: Path) -> list[Stream]:
    found: dict[int, tuple[str, dict[str, bytes]]] = {}
    for line in transcript.read_text().splitlines():
        entry = json.loads(line)
        empty = entry["service"], {"sent": b"", "received": b""}
        _, both = found.setdefault(entry["connection"], empty)
        both[entry["direction"]] += base64.b64decode(entry["data"])
    return [Stream(service, both["sent"], both["received"]) for service, both in found.values()]


class ServerProcess:
    """The server, told to end when the block ends; it must not have complained about anything."""

    def __init__(self, transcript: Path | None = None) -> None:
        self.process = subprocess.Popen(
            server_command(attended=True, transcript=transcript),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        ports = json.loads(self.process.stdout.readline())
        self.notification: int = ports["notification"]
        self.switchboard: int = ports["switchboard"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            _, complaints = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
        if kind is None:
            assert (self.process.returncode, complaints) == (0, b"")


class RawClient:
    """A socket that says what a test says."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._socket.close()

    def send(self, line: str, payload: bytes = b"") -> None:
        self.send_bytes(f"{line}\r\n".encode() + payload)

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def next(self) -> Item:
        line = self._file.readline()
        assert line.endswith(b"\r\n"), line or "the server hung up"
        counted = PAYLOAD.fullmatch(line[:-2])
        payload = self._file.read(int(counted[1])) if counted else b""
        return Item(line.decode().split(), payload)

    def until(self, *words: str) -> Item:
        """The next command that begins with these words."""
        while (item := self.next()).words[: len(words)] != list(words):
            pass
        return item

    def ask(self, line: str, payload: bytes = b"") -> str:
        """The first line of the answer."""
        self.send(line, payload)
        return " ".join(self.next().words)

    def is_hung_up(self) -> bool:
        """Waits for the end of the connection, whatever else comes before it."""
        try:
            while self._file.read(65536):
                pass
        except ConnectionError:
            pass
        return True

    def reset(self) -> None:
        """What a killed process with unread bytes leaves: RST, no goodbye."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._file.close()
        self._socket.close()


def policy(port: int, account: str) -> tuple[RawClient, str]:
    """A connection that has asked to sign in, and the policy it got; the redirect is followed."""
    client = RawClient(port)
    client.send(f"USR 1 TWN I {account}")
    if (answer := client.next().words)[0] == "XFR":
        client.__exit__(None, None, None)
        client = RawClient(int(answer[3].rpartition(":")[2]))
        client.send(f"USR 1 TWN I {account}")
        answer = client.next().words
    assert answer[:4] == ["USR", "1", "TWN", "S"]
    return client, answer[4]


def signed_in(port: int, account: str) -> RawClient:
    """Online, with the challenge answered."""
    client, text = policy(port, account)
    client.send(f"USR 2 TWN S {ticket(account, PASSWORD, text)}")
    client.until("USR", "2", "OK", account)
    client.send("CHG 3 NLN 0 0")
    challenge = client.until("CHL", "0").words[2]
    client.send(f"QRY 4 {PRODUCT_ID} 32", challenge_answer(challenge))
    client.until("QRY", "4")
    return client


def switchboard(client: RawClient, account: str) -> tuple[RawClient, str]:
    """A switchboard of one's own, and the cookie that opened it."""
    client.send("XFR 5 SB")
    *_, address, _, cookie = client.until("XFR", "5").words
    room = RawClient(int(address.rpartition(":")[2]))
    assert room.ask(f"USR 1 {account} {cookie}").startswith(f"USR 1 OK {account}")
    return room, cookie


def joined(room: RawClient, client: RawClient, account: str) -> RawClient:
    """`client` is called into the room and answers; its end of the switchboard."""
    room.send(f"CAL 2 {account}")
    room.until("CAL", "2", "RINGING")
    _, session_id, address, _, cookie, *_ = client.until("RNG").words
    guest = RawClient(int(address.rpartition(":")[2]))
    guest.send(f"ANS 1 {account} {cookie} {session_id}")
    guest.until("ANS", "1", "OK")
    room.until("JOI", account)
    return guest
