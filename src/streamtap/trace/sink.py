"""What a sink is, and the batched output that the sinks of lines share."""

import select
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from streamtap.events import Record

BATCH = 64 * 1024  # bytes collected before a write: few system calls, little to lose


class Sink(Protocol):
    """Writes the records of one session somewhere.

    Each method may raise OSError, which ends this sink and no other. Records given to `write` may
    be held back until `flush`.
    """

    @property
    def name(self) -> str:
        """Where the records go, for messages."""
        ...

    def open(self) -> None: ...

    def write(self, first: int, records: Sequence[Record]) -> None:
        """first: the number of the first record; the others follow one by one."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None:
        """Writes what is held back and frees the place. A second call does nothing."""
        ...


class Output:
    """Bytes on their way to a stream or a new file, written in batches.

    A stream is borrowed: it is written to, never closed. Best it is unbuffered, so that nothing
    is left inside it when its reader goes away; short and blocked writes are carried on.
    """

    def __init__(self, target: BinaryIO | Path) -> None:
        self._path = target if isinstance(target, Path) else None
        self._stream = None if isinstance(target, Path) else target
        self._pending = bytearray()
        self.name = str(target) if isinstance(target, Path) else str(getattr(target, "name", "-"))

    def open(self) -> None:
        if self._path is not None and self._stream is None:
            self._stream = self._path.open("wb", buffering=0)

    def put(self, data: bytes | bytearray) -> None:
        if len(data) >= BATCH:  # as it is, without one more copy
            self.flush()
            self._write(data)
            return
        self._pending += data
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Writes what was put. What a failure stops is dropped, so it is never written twice."""
        if self._pending and self._stream is not None:
            data, self._pending = self._pending, bytearray()
            self._write(data)

    def _write(self, data: bytes | bytearray) -> None:
        if self._stream is not None:
            _write_all(self._stream, data)
            self._stream.flush()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            if self._path is not None and self._stream is not None:
                stream, self._stream = self._stream, None
                stream.close()


def _write_all(stream: BinaryIO, data: bytes | bytearray) -> None:
    rest = memoryview(data)
    while rest:
        written: int | None = stream.write(rest)
        if written is None:  # a non-blocking stream that is full for now
            select.select([], [stream], [])
            written = 0
        rest = rest[written:]
