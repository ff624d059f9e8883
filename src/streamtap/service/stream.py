"""What comes over a connection to the service: lines, and the records of a live session."""

import select
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from streamtap.events import Record
from streamtap.service.recorder import body_types
from streamtap.trace.jsonlines import RecordDecoder

SEND_S = 60.0
MAX_RECORD = 64 << 20  # bytes of a record's line
_CHUNK = 1 << 18


class Lines:
    """A stream socket, read by lines."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._looked = 0  # bytes of the buffer that hold no end of a line
        self.ended = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, line: bytes) -> None:
        self._socket.settimeout(SEND_S)
        self._socket.sendall(line)

    def read(self, timeout_s: float | None, limit: int = MAX_RECORD) -> bytes | None:
        """The next line without its end; b"" where none is whole in time, None at the end.

        Raises OSError, and ValueError for a line longer than `limit`.
        """
        while not self.ended:
            if line := self.held():
                return line
            if len(self._buffer) > limit:
                raise ValueError(f"a line of more than {limit} bytes")
            self._socket.settimeout(timeout_s or (0 if timeout_s is not None else None))
            try:
                data = self._socket.recv(_CHUNK)
            except (TimeoutError, BlockingIOError):
                return b""
            except ConnectionResetError:  # it ended it before it had read all that we said
                data = b""
            self._buffer += data
            self.ended = not data
        return self.held()

    def held(self) -> bytes | None:
        """The next line, if it is here already; empty ones are passed over."""
        while (at := self._buffer.find(b"\n", self._looked)) >= 0:
            line = bytes(self._buffer[:at])
            del self._buffer[: at + 1]
            self._looked = 0
            if line:
                return line
        self._looked = len(self._buffer)
        return None

    def is_at_end(self) -> bool:
        """The other side has ended it; nothing is read."""
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        return any(event & (select.POLLHUP | select.POLLRDHUP) for _, event in poll.poll(0))

    def close(self) -> None:
        self._socket.close()


class Records(Iterator[Record]):
    """The records of a live session, until the service ends or this is closed.

    name: of the session. missed: records that the service could not bring in time, by the holes
    in their numbers. damaged: lines that could not be read.
    """

    def __init__(self, lines: Lines, name: str) -> None:
        self.name = name
        self.missed = 0
        self.damaged = 0
        self._lines = lines
        self._last = 0
        self._decoder = RecordDecoder(body_types())

    def fileno(self) -> int:
        return self._lines.fileno()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        while (line := self._lines.read(None)) is not None:
            record = self._read(line)
            if record is not None:
                return record
        raise StopIteration

    @property
    def ended(self) -> bool:
        """All has been given that came before the end."""
        return self._lines.ended

    def wait(self, timeout_s: float) -> list[Record]:
        """The records that are there after at most so many seconds; none at the end."""
        found = []
        line = self._lines.read(timeout_s)
        while line:
            record = self._read(line)
            if record is not None:
                found.append(record)
            line = self._lines.held()
        return found

    def _read(self, line: bytes) -> Record | None:
        try:
            record = self._decoder.decode(line)
        except ValueError:
            self.damaged += 1
            self._last += 1  # it had a number
            return None
        self.missed += max(0, record.number - self._last - 1)
        self._last = max(self._last, record.number)
        return record

    def close(self) -> None:
        """Ends the session; a second call does nothing."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
