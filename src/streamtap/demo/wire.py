"""MSNP on the wire: commands with counted payloads, the messages inside, and a transcript of both.

Used by the server and the clients alike; what differs is which commands carry a payload.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

LINE_LIMIT = 16 * 1024  # real lines stay below 4 KiB
PAYLOAD_LIMIT = 64 * 1024  # real payloads on a switchboard stay below 1664 bytes
UNSENT_LIMIT = 1024 * 1024  # a peer that does not read is dropped, not waited for

# command -> arguments of the form that carries a payload, its length (the last one) included
FROM_CLIENT: Mapping[str, int] = MappingProxyType({"MSG": 3, "QRY": 3, "UUX": 2})
FROM_SERVER: Mapping[str, int] = MappingProxyType({"MSG": 3, "UBX": 2, "UUX": 2})

Tap = Callable[[Literal["sent", "received"], bytes], None]


class ProtocolError(Exception):
    """The other end broke the framing; nothing after it can be trusted."""


class Refusal(Exception):
    """A request that the server answers with an error number; a final one ends the connection."""

    def __init__(self, code: int, *, final: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.final = final


class Command(NamedTuple):
    """One command line. `args` leave out the payload's length, which `encode` counts."""

    verb: str
    args: tuple[str, ...] = ()
    payload: bytes | None = None

    def encode(self) -> bytes:
        words = [self.verb, *self.args]
        if self.payload is not None:
            words.append(str(len(self.payload)))
        return " ".join(words).encode() + b"\r\n" + (self.payload or b"")


def transaction_of(command: Command) -> tuple[str, ...]:
    """The arguments of a client's command, whose first must be a transaction number."""
    number = command.args[0] if command.args else ""
    if not (number.isascii() and number.isdecimal() and len(number) <= 10):
        raise ProtocolError("a command without a transaction number")
    return command.args


class Message(NamedTuple):
    """The payload of a MSG: header fields, an empty line, the body."""

    headers: dict[str, str]
    body: bytes = b""

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0]

    def encode(self) -> bytes:
        fields = {"MIME-Version": "1.0", **self.headers}
        return encode_fields(fields) + b"\r\n" + self.body

    @classmethod
    def parse(cls, payload: bytes) -> "Message":
        """Headers of a damaged payload are what can be read of them; nothing raises."""
        head, _, body = payload.partition(b"\r\n\r\n")
        return cls(parse_fields(head), body)


def encode_fields(fields: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()


def parse_fields(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").split("\r\n")
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


class Connection:
    """One end of a TCP connection that carries MSNP commands."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        payloads: Mapping[str, int],
        tap: Tap,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._payloads = payloads  # of the commands that are received
        self._tap = tap

    async def receive(self) -> Command | None:
        """The next command, or None when the other end is gone.

        Raises ProtocolError for anything that is not a command; no more than a line or a payload
        at their limits is ever held.
        """
        try:
            line = await self._reader.readuntil(b"\r\n")
            verb, args = self._words(line)
            payload = b""
            if carries := self._payloads.get(verb) == len(args):
                payload = await self._reader.readexactly(_length(args[-1]))
        except asyncio.LimitOverrunError as error:
            raise ProtocolError("a line without end") from error
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self._tap("received", line + payload)
        return Command(verb, args[:-1], payload) if carries else Command(verb, args)

    def _words(self, line: bytes) -> tuple[str, tuple[str, ...]]:
        try:
            text = line[:-2].decode()
        except UnicodeDecodeError as error:
            raise ProtocolError("a line that is not text") from error
        # control characters would pass through to other clients and split their lines
        if not text.isprintable():
            raise ProtocolError("control characters in a line")
        verb, *args = text.split(" ")
        if len(verb) != 3 or not verb.isascii() or not (verb.isupper() or verb.isdecimal()):
            raise ProtocolError("a line that is no command")
        if verb == "MSG" and len(args) != self._payloads["MSG"]:
            raise ProtocolError("a MSG without its length")
        return verb, tuple(args)

    def send(self, verb: str, *args: str, payload: bytes | None = None) -> None:
        """Queue a command. An end that is gone, or does not read, is dropped without an error:
        its own `receive` tells."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNSENT_LIMIT:
            transport.abort()
            return
        data = Command(verb, args, payload).encode()
        self._tap("sent", data)
        self._writer.write(data)

    def finish(self) -> None:
        """Close once what is queued was sent; `receive` then gives None."""
        self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def close(self) -> None:
        await close_writer(self._writer)


async def close_writer(writer: asyncio.StreamWriter, patience_s: float = 2.0) -> None:
    """Close after what is queued was sent, or without it when nobody takes it in time."""
    writer.close()
    try:
        async with asyncio.timeout(patience_s):
            await writer.wait_closed()
    except (TimeoutError, ConnectionError):
        writer.transport.abort()


def _length(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 7):
        raise ProtocolError("a length that is no number")
    if (length := int(text)) > PAYLOAD_LIMIT:
        raise ProtocolError("a payload past the limit")
    return length


class Transcript:
    """What passed one process, as JSON lines in the order of the process.

    Each line: `connection` (numbered from 1), `service`, `direction` (`sent`, `received`) and
    `data` (base64). Without a path it keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("w", encoding="ascii", buffering=1) if path else None
        self._connections = 0

    def tap(self, service: str) -> Tap:
        """A new connection's place in the transcript."""
        self._connections += 1
        connection = self._connections

        def write(direction: Literal["sent", "received"], data: bytes) -> None:
            if self._file is None:
                return
            text = base64.b64encode(data).decode()
            line = {"connection": connection, "service": service, "direction": direction}
            self._file.write(json.dumps({**line, "data": text}) + "\n")

        return write

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
