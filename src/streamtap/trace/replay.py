"""A recording read back, whatever its form: the records that `trace fmt` prints anew."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from streamtap.errors import NotFound, StreamtapError
from streamtap.events import Body, FlowInfo, Record
from streamtap.model import App
from streamtap.trace.jsonlines import RecordDecoder
from streamtap.trace.sqlite import is_blank, is_ours, open_read_only

Damaged = Callable[[int, ValueError], None]

_SQLITE = b"SQLite format 3\0"  # what such a file begins with
_QUERY = """
SELECT number, time_ns, body, direction, records.flow, path, pid, comm, uid, cgroup, filter,
  local, remote, role, peer
FROM records LEFT JOIN flows ON flows.flow = records.flow ORDER BY number
"""


def is_recording(path: Path) -> bool:
    """Whether a file looks like JSON lines or a database, by how it begins. What cannot be read
    again after a look, a pipe, does not."""
    head = _head(path)
    return head == _SQLITE or head.lstrip().startswith(b"{")


def is_database(path: Path) -> bool:
    """Whether a file begins as those of SQLite do."""
    return _head(path) == _SQLITE


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(len(_SQLITE))
    except OSError:
        return b""


def read(path: Path, body_types: Iterable[type[Body]], damaged: Damaged) -> Iterator[Record]:
    """The records of a file of JSON lines or of SQLite, told apart by its first bytes.

    damaged: called for each record that cannot be read (a last line cut by a crash, an event
    that this version does not know) with its line or number, and why; the others follow.
    Raises NotFound, or StreamtapError where the file is no recording or cannot be read.
    """
    decoder = RecordDecoder(body_types)
    try:
        with path.open("rb") as file:
            is_sqlite = file.read(len(_SQLITE)) == _SQLITE
        yield from (_read_sqlite if is_sqlite else _read_lines)(path, decoder, damaged)
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StreamtapError(f"{path} cannot be read: {reason}") from error


def _read_lines(path: Path, decoder: RecordDecoder, damaged: Damaged) -> Iterator[Record]:
    with path.open("rb") as file:
        for place, line in enumerate(file, 1):
            try:
                record = decoder.decode(line)
            except ValueError as error:
                damaged(place, error)
                continue
            yield record


def _read_sqlite(path: Path, decoder: RecordDecoder, damaged: Damaged) -> Iterator[Record]:
    database = open_read_only(path)
    try:
        if is_blank(database):
            return
        if not is_ours(database):
            raise StreamtapError(f"{path} is a database, but no recording of streamtap")
        flows: dict[str, FlowInfo] = {}
        for number, time_ns, body, direction, *row in database.execute(_QUERY):
            try:
                record = Record(
                    number=number,
                    time_ns=time_ns,
                    body=decoder.decode_body(body),
                    flow=_flow(row, flows),
                    direction=direction,
                )
            except ValueError as error:
                damaged(number, error)
                continue
            yield record
    finally:
        database.close()


def _flow(row: list[object], known: dict[str, FlowInfo]) -> FlowInfo | None:
    """The same value for all records of a flow, as a live run has it."""
    name, *app, local, remote, role, peer = row
    if name is None:
        return None
    found = known.get(str(name))
    if found is None:
        of_app = None if app[0] is None else dict(zip(App.__struct_fields__, app, strict=True))
        other = None if peer is None else msgspec.json.decode(str(peer))
        ends = {"flow": name, "local": local, "remote": remote, "role": role}
        found = msgspec.convert(ends | {"app": of_app, "peer": other}, FlowInfo)
        known[found.flow] = found
    return found
