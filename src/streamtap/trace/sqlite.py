"""Records in an SQLite file that can be read while it is written.

Tables: `records` (one row a record; `body` is the JSON object of the body) and `flows` (one row a
flow; `peer` is the JSON object of the application at its other end), and the view `conversations`.
The file is in WAL mode: readers never wait for the writer, and a crash leaves what was flushed
whole. A recording begins anew in a file that is one already; any other file is left alone.
"""

import errno
import sqlite3
from pathlib import Path

from streamtap.events import FlowClosed, FlowInfo, FlowOpened, Record, place, tag_of
from streamtap.model import App
from streamtap.trace.jsonlines import BodyEncoder, clean_text, encode_any

APPLICATION_ID = 0x53545450  # "STTP" in the header of the file tells that it is ours

_BATCH = 1000  # rows held back at most between flushes
_FLOWS = 65536  # flows remembered as written
_LATEST = 2**63 - 1  # what an INTEGER holds; damaged captures know later times
_SCHEMA = f"""
BEGIN IMMEDIATE;
DROP VIEW IF EXISTS conversations;
DROP TABLE IF EXISTS records;
DROP TABLE IF EXISTS flows;
PRAGMA application_id = {APPLICATION_ID};
CREATE TABLE records (
  number INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL,
  provider TEXT NOT NULL, flag TEXT NOT NULL, level TEXT NOT NULL, event TEXT NOT NULL,
  flow TEXT, direction TEXT, "offset" INTEGER, length INTEGER, conversation TEXT,
  body TEXT NOT NULL
);
CREATE TABLE flows (
  flow TEXT PRIMARY KEY,
  path TEXT, pid INTEGER, comm TEXT, uid INTEGER, cgroup TEXT, filter TEXT,
  local TEXT NOT NULL, remote TEXT NOT NULL, role TEXT NOT NULL, peer TEXT,
  opened_ns INTEGER, midstream INTEGER,
  closed_ns INTEGER, reason TEXT, sent INTEGER, received INTEGER, missing INTEGER, complete INTEGER
) WITHOUT ROWID;
CREATE INDEX records_time ON records (time_ns);
CREATE INDEX records_event ON records (event);
CREATE INDEX records_flow ON records (flow, direction, "offset");
CREATE INDEX records_conversation ON records (conversation) WHERE conversation IS NOT NULL;
CREATE VIEW conversations AS
  SELECT conversation, min(time_ns) AS first_ns, max(time_ns) AS last_ns,
    count(*) AS records, count(DISTINCT flow) AS flows
  FROM records WHERE conversation IS NOT NULL GROUP BY conversation;
COMMIT;
"""
_RECORD = f"INSERT INTO records VALUES ({', '.join('?' * 12)})"
_FLOW = f"""INSERT INTO flows VALUES ({", ".join("?" * 11)}{", NULL" * 8})
  ON CONFLICT (flow) DO UPDATE SET path = excluded.path, pid = excluded.pid, comm = excluded.comm,
  uid = excluded.uid, cgroup = excluded.cgroup, filter = excluded.filter, peer = excluded.peer"""
_OPENED = "UPDATE flows SET opened_ns = ?, midstream = ? WHERE flow = ?"
_CLOSED = """UPDATE flows SET closed_ns = ?, reason = ?, sent = ?, received = ?, missing = ?,
  complete = ? WHERE flow = ?"""

Row = tuple[str | int | None, ...]


class Sqlite:
    """The sink of SQLite files. Failures of the database are raised as OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._encode = BodyEncoder().encode
        self._statements: list[tuple[str, Row]] = []
        self._rows: list[Row] = []
        self._flows: dict[str, FlowInfo] = {}  # as they were last written

    @property
    def name(self) -> str:
        return str(self._path)

    def open(self) -> None:
        try:
            database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._database = database
            ours = database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
            if not ours and database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise OSError(errno.EEXIST, "a database of something else", self.name)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise _as_os_error(error, self.name) from error

    def write(self, number: int, record: Record) -> None:
        body, flow = record.body, record.flow
        if flow is not None:
            self._add_flow(record, flow)
        # Fields that only some bodies have: the place in the stream, and the conversation.
        offset, length = getattr(body, "offset", None), getattr(body, "length", None)
        conversation = clean_text(getattr(body, "conversation", None) or "") or None
        name = None if flow is None else flow.flow
        self._rows.append(
            (
                *(number, min(record.time_ns, _LATEST), *place(body), tag_of(body)),
                *(name, record.direction, offset, length, conversation),
                self._encode(body).decode(),
            )
        )
        if len(self._rows) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        database, rows, statements = self._database, self._rows, self._statements
        if database is None or not rows:
            return
        self._rows, self._statements = [], []
        try:
            database.execute("BEGIN")
            for statement, values in statements:
                database.execute(statement, values)
            database.executemany(_RECORD, rows)
            database.execute("COMMIT")
        except sqlite3.Error as error:
            raise _as_os_error(error, self.name) from error

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._release()

    def _add_flow(self, record: Record, flow: FlowInfo) -> None:
        body = record.body
        known = self._flows.get(flow.flow)
        if known is not flow and known != flow:  # new, or its peer was found meanwhile
            if len(self._flows) >= _FLOWS:
                self._flows.clear()
            self._flows[flow.flow] = flow
            peer = None if flow.peer is None else encode_any(flow.peer).decode()
            row = (flow.flow, *_columns(flow.app), flow.local, flow.remote, flow.role, peer)
            self._statements.append((_FLOW, row))
        if isinstance(body, FlowOpened):
            self._statements.append((_OPENED, (record.time_ns, body.midstream, flow.flow)))
        elif isinstance(body, FlowClosed):
            values = (body.reason, body.sent, body.received, body.missing, body.complete)
            self._statements.append((_CLOSED, (record.time_ns, *values, flow.flow)))
            self._flows.pop(flow.flow, None)

    def _release(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            database.close()


def _columns(app: App | None) -> Row:
    if app is None:
        return (None,) * 6
    path, comm, cgroup = clean_text(app.path), clean_text(app.comm), clean_text(app.cgroup)
    return (path, app.pid, comm, app.uid, cgroup, clean_text(app.filter))


def _as_os_error(error: Exception, name: str) -> OSError:
    if isinstance(error, OSError):
        return error
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return OSError(errno.ENOSPC if full else errno.EIO, str(error), name)
