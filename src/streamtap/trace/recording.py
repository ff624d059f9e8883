"""A recording that is bounded, goes on where it was left, and outlives a full disk.

What comes are lines of JSON, whole ones; what becomes of them depends on the ending of the name:
they are kept as they are, or their records go to a database. What was taken is written when `take`
returns, so that a crash of the process loses nothing that was taken before.

When the disk is full, or the file cannot be written for another reason, that is told once, and the
records that come meanwhile are dropped and counted: nothing old is given up for them, and their
numbers are missing, so that a reader sees the hole. Every second it is tried again.
"""

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from streamtap.events import Body, Record
from streamtap.trace import sqlite
from streamtap.trace.jsonlines import HEAD, JsonLines, RecordDecoder
from streamtap.trace.linefile import LineFile
from streamtap.trace.rotation import make_room, numbered
from streamtap.trace.sink import Output
from streamtap.trace.sqlite import NotContinued, Sqlite

LIMIT = 64 << 20  # bytes of a file
LEAST_LIMIT = 1 << 20  # an empty database has 64 KiB
KEEP = 4  # files beside the one that grows
PIECE = 256 << 10  # bytes of lines that are written at once: what is lost together when it fails
RECORDS = 500  # the same in records
RETRY_S = 1.0
SETTLE_S = 10.0  # without a failure, before it is told that there is none any more

_PAGE = 4096  # bytes of a page of SQLite

Report = Callable[[OSError | None], None]
Numbered = tuple[int, Record]


class Piece(NamedTuple):
    """What is written at once, in either form. size: bytes that it takes on the disk, about."""

    lines: bytes
    records: list[Numbered]
    number: int  # of records
    size: int


class Form(Protocol):
    """How a recording is kept in its file."""

    @property
    def size(self) -> int:
        """Bytes on the disk; 0 as long as nothing was recorded."""
        ...

    def open(self) -> None: ...

    def close(self) -> None: ...

    def of_lines(self, lines: bytes) -> Piece: ...

    def of_records(self, first: int, records: Sequence[Record]) -> Piece: ...

    def goes_on(self, piece: Piece) -> bool:
        """Whether it may follow what the file holds already."""
        ...

    def write(self, piece: Piece) -> None:
        """Writes all of it or, raising OSError, nothing."""
        ...

    def retire(self, place: Path | None) -> None:
        """Moves the closed file, or removes it."""
        ...


class Recording:
    """The files of a recording, as the sink of a session or of lines that come from one.

    limit_bytes: of each file; it is passed by little, or by a record that alone is longer.
    keep: files beside the one that grows. Their names, as `rotation` makes them, are ours.
    report: told the error when something could not be written, and None when all was for a while;
        on a disk that is nearly full, it does not change with each record.
    dropped: records that could not be written. damaged: lines that were no records.
    """

    def __init__(
        self,
        path: Path,
        body_types: Iterable[type[Body]],
        *,
        limit_bytes: int = LIMIT,
        keep: int = KEEP,
        report: Report | None = None,
        retry_s: float = RETRY_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        """Raises ValueError for a limit that is too low, or a name of another ending."""
        if limit_bytes < LEAST_LIMIT or keep < 0:
            raise ValueError(f"a recording needs {LEAST_LIMIT} bytes at least")
        self._path = path
        self._limit = limit_bytes
        self._piece = min(PIECE, limit_bytes // 8)
        self._keep = keep
        self._report = report
        self._retry_s = retry_s
        self._settle_s = settle_s
        self._failed_at: float | None = None  # the last time, until it is told that it goes on
        self._identity: tuple[int, int] | None = None  # of the open file
        self._form = _form(path, body_types, limit_bytes)
        self.dropped = 0

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def size(self) -> int:
        """Bytes of the file that grows."""
        return self._form.size

    @property
    def damaged(self) -> int:
        return self._form.damaged if isinstance(self._form, Rows) else 0

    def open(self) -> None:
        """Goes on in what is there. Raises OSError, also for a file of something else; who is told
        so by that is not told again by `report`."""
        try:
            self._open()
        except OSError:
            self._failed_at = time.monotonic()
            raise

    def _open(self) -> None:
        if isinstance(self._form, Rows) and self._keep:
            sqlite.finish_retiring(self._path, numbered(self._path, 1))
        try:
            self._form.open()
        except NotContinued:
            self._begin_anew()
        self._identity = _identity(self._path)

    def take(self, lines: bytes) -> None:
        """Writes whole lines. Raises ValueError where the last one has no end."""
        if lines and not lines.endswith(b"\n"):
            raise ValueError("half a line")
        for piece in _cut(lines, self._piece):
            self._put(self._form.of_lines(piece))

    def write(self, first: int, records: Sequence[Record]) -> None:
        for at in range(0, len(records), RECORDS):
            self._put(self._form.of_records(first + at, records[at : at + RECORDS]))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._leave()

    def _put(self, piece: Piece) -> None:
        if not piece.number:
            return
        now = time.monotonic()
        failed_at = self._failed_at
        if failed_at is not None and self._identity is None and now < failed_at + self._retry_s:
            self.dropped += piece.number
            return
        try:
            self._write(piece)
        except OSError as error:
            self.dropped += piece.number
            with suppress(OSError):
                self._leave()
            self._failed_at = now
            if failed_at is None:
                self._tell(error)
            return
        if failed_at is not None and now >= failed_at + self._settle_s:
            self._failed_at = None
            self._tell(None)

    def _write(self, piece: Piece) -> None:
        if self._identity is None or self._identity != _identity(self._path):
            self._leave()  # somebody took the file away: what follows is a new one
            self._open()
        size = self._form.size
        if size and (size + piece.size > self._limit or not self._form.goes_on(piece)):
            self._leave()
            self._begin_anew()
            self._identity = _identity(self._path)
        self._form.write(piece)

    def _begin_anew(self) -> None:
        self._form.retire(make_room(self._path, self._keep, self._limit))
        self._form.open()

    def _leave(self) -> None:
        self._identity = None
        self._form.close()

    def _tell(self, error: OSError | None) -> None:
        if self._report is not None:
            self._report(error)


class Lines:
    """Lines as they came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = LineFile(path, HEAD)
        self._buffer = io.BytesIO()
        self._encoder = JsonLines(Output(self._buffer))

    @property
    def size(self) -> int:
        return self._file.size

    def open(self) -> None:
        self._file.open()

    def close(self) -> None:
        self._file.close()

    def of_lines(self, lines: bytes) -> Piece:
        return Piece(lines, [], lines.count(b"\n"), len(lines))

    def of_records(self, first: int, records: Sequence[Record]) -> Piece:
        self._encoder.write(first, records)
        self._encoder.flush()
        lines = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return self.of_lines(lines)

    def goes_on(self, piece: Piece) -> bool:
        return True

    def write(self, piece: Piece) -> None:
        self._file.append(piece.lines)

    def retire(self, place: Path | None) -> None:
        if place is None:
            os.unlink(self._path)
        else:
            os.replace(self._path, place)


class Rows:
    """Records in a database. damaged: lines that held none."""

    def __init__(self, path: Path, body_types: Iterable[type[Body]], pages: int) -> None:
        self._path = path
        self._pages = pages
        self._decoder = RecordDecoder(body_types)
        self._sink: Sqlite | None = None
        self._last = 0
        self.damaged = 0

    @property
    def size(self) -> int:
        return sqlite.size_of(self._path) if self._last else 0

    def open(self) -> None:
        sink = Sqlite(self._path, append=True, pages=self._pages)
        sink.open()
        self._sink, self._last = sink, sink.last

    def close(self) -> None:
        if self._sink is not None:
            sink, self._sink = self._sink, None
            sink.close()

    def of_lines(self, lines: bytes) -> Piece:
        records: list[Numbered] = []
        decode = self._decoder.decode
        for line in lines[:-1].split(b"\n"):
            try:
                record = decode(line)
            except ValueError:
                self.damaged += 1
            else:
                records.append((record.number, record))
        return Piece(b"", records, len(records), len(lines))

    def of_records(self, first: int, records: Sequence[Record]) -> Piece:
        rows = list(enumerate(records, first))
        return Piece(b"", rows, len(rows), _ROW * len(rows))

    def goes_on(self, piece: Piece) -> bool:
        return piece.records[0][0] > self._last  # else its numbers begin anew, and each is a key

    def write(self, piece: Piece) -> None:
        assert self._sink is not None
        for number, record in piece.records:
            self._sink.write(number, (record,))
        self._sink.flush()
        self._last = piece.records[-1][0]

    def retire(self, place: Path | None) -> None:
        if place is None:
            sqlite.remove(self._path)
        else:
            sqlite.retire(self._path, place)


_ROW = 400  # bytes of a record in a database, about


def _form(path: Path, body_types: Iterable[type[Body]], limit_bytes: int) -> Form:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return Lines(path)
    if suffix == ".sqlite":
        pages = max(16, min(sqlite.PAGES, limit_bytes // 16 // _PAGE))
        return Rows(path, body_types, pages)
    raise ValueError(f"no recording {path.name!r}: there are FILE.jsonl and FILE.sqlite")


def _cut(lines: bytes, most: int) -> Iterator[bytes]:
    """Pieces of whole lines, of `most` bytes or one line."""
    at, end = 0, len(lines)
    while end - at > most:
        cut = lines.rfind(b"\n", at, at + most) + 1 or lines.index(b"\n", at + most) + 1
        yield lines[at:cut]
        at = cut
    if at < end:
        yield lines[at:end] if at else lines


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
