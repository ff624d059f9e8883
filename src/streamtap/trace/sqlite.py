"""Records in an SQLite file that can be read while it is written.

Beside `records`, the tables of flows, conversations and participants are kept up in the same
transaction: whoever reads finds them in agreement. The file is in WAL mode while it is written:
readers never wait for the writer, and a crash leaves what was flushed whole. When it is finished
it becomes a single file without a log.
"""

import errno
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from streamtap.events import FlowClosed, FlowInfo, FlowOpened, Record, tag_of
from streamtap.model import App
from streamtap.trace import tables
from streamtap.trace.jsonlines import clean_text, encode_any
from streamtap.trace.tables import LATEST, Row, Talk

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PAGES = 1000  # of the log, before they are moved into the file: SQLite's own default

BUSY_S = 2.0  # how long to wait for others

_BATCH = 1000  # rows held back at most between flushes
_FLOWS = 65536  # flows remembered as written


class NotContinued(OSError):
    """A recording of streamtap that cannot be gone on with: another version made it; it is of
    before the last boot, so that the names of its flows mean others now; or somebody reads it while
    it is finished, and would have to wait for us, or we for him."""


class Sqlite:
    """The sink of SQLite files. Failures of the database are raised as OSError.

    A recording begins anew in a file that is one already; any other file is left alone.
    append: it is continued instead, with numbers above `last`; raises NotContinued where that
        cannot be.
    pages: of the log that a reader sees beside the file, about, while nobody reads for long.
    """

    def __init__(self, path: Path, *, append: bool = False, pages: int = PAGES) -> None:
        self._path = path
        self._append = append
        self._pages = pages
        self._database: sqlite3.Connection | None = None
        self._statements: list[tuple[str, Row]] = []
        self._rows: list[Row] = []
        self._talks: dict[str, Talk] = {}
        self._flows: dict[str, FlowInfo] = {}  # as they were last written
        self._links: set[tuple[str, str]] = set()  # conversations and flows, the same
        self.last = 0  # the highest number that was in the file when it was opened

    @property
    def name(self) -> str:
        return str(self._path)

    def open(self) -> None:
        try:
            database = sqlite3.connect(
                self._path, BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._database = database
            ours = is_ours(database)
            if not ours and _has_tables(database):
                raise OSError(errno.EEXIST, "a database of something else", self.name)
            if ours and self._append:
                self._check(database)
            self._keep_log(database)
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA wal_autocheckpoint = {self._pages:d}")
            database.execute(f"PRAGMA journal_size_limit = {self._pages * 4096:d}")
            if ours and self._append:
                self.last = database.execute("SELECT max(number) FROM records").fetchone()[0] or 0
            else:
                _begin_anew(database)
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise _as_os_error(error, self.name) from error

    def _keep_log(self, database: sqlite3.Connection) -> None:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if self._append and error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise NotContinued(errno.EBUSY, "somebody reads it", self.name) from error
            raise

    def _check(self, database: sqlite3.Connection) -> None:
        if _pragma(database, "user_version") != tables.VERSION:
            raise NotContinued(errno.EINVAL, "a recording of another version", self.name)
        row = database.execute("SELECT value FROM recording WHERE name = 'boot'").fetchone()
        if row != (_boot(),):
            raise NotContinued(errno.EINVAL, "a recording of before the last boot", self.name)

    def write(self, first: int, records: Sequence[Record]) -> None:
        for number, record in enumerate(records, first):
            self._add(number, record)

    def _add(self, number: int, record: Record) -> None:
        body, flow = record.body, record.flow
        if flow is not None:
            self._add_flow(record, flow)
        # Fields that only some bodies have: the place in the stream, and the conversation.
        offset, length = getattr(body, "offset", None), getattr(body, "length", None)
        conversation = clean_text(getattr(body, "conversation", None) or "") or None
        name = None if flow is None else flow.flow
        time_ns = min(record.time_ns, LATEST)
        if conversation is not None:
            talk = self._talks.get(conversation)
            if talk is None:
                talk = self._talks[conversation] = Talk(time_ns, time_ns)
            talk.add(time_ns, body)
            if name is not None and (conversation, name) not in self._links:
                if len(self._links) >= _FLOWS:
                    self._links.clear()
                self._links.add((conversation, name))
                talk.flows.add(name)
        self._rows.append(
            (
                *(number, time_ns, *body.place(), tag_of(body)),
                *(name, record.direction, offset, length, conversation),
                encode_any(body).decode(),
            )
        )
        if len(self._rows) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Makes what was written lasting, all of it or, where that fails, nothing."""
        database, rows, statements, talks = (
            self._database,
            self._rows,
            self._statements,
            self._talks,
        )
        if database is None or not rows:
            return
        self._rows, self._statements, self._talks = [], [], {}
        try:
            try:
                _insert(database, rows, statements, talks)
            except OverflowError:  # a number that no INTEGER holds
                database.execute("ROLLBACK")
                rows = [_within(row) for row in rows]
                statements = [(statement, _within(row)) for statement, row in statements]
                _insert(database, rows, statements, talks)
        except sqlite3.Error as error:
            self._flows.clear()  # those of this batch were not written
            self._links.clear()
            with suppress(sqlite3.Error):
                if database.in_transaction:
                    database.execute("ROLLBACK")
            raise _as_os_error(error, self.name) from error

    def close(self) -> None:
        try:
            self.flush()
            if self._database is not None:
                seal(self._database)
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
            self._statements.append((tables.FLOW, row))
        time_ns = min(record.time_ns, LATEST)
        if isinstance(body, FlowOpened):
            self._statements.append((tables.OPENED, (time_ns, body.midstream, flow.flow)))
        elif isinstance(body, FlowClosed):
            values = (body.reason, body.sent, body.received, body.missing, body.complete)
            self._statements.append((tables.CLOSED, (time_ns, *values, flow.flow)))
            self._flows.pop(flow.flow, None)

    def _release(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            database.close()


def in_memory(records: Iterable[Record]) -> sqlite3.Connection:
    """The same tables in memory, open. Numbers are kept as long as they ascend: each is a key."""
    sink = Sqlite(Path(":memory:"))
    sink.open()
    number = 0
    for record in records:
        number = max(number + 1, record.number)
        sink.write(number, (record,))
    sink.flush()
    database, sink._database = sink._database, None
    assert database is not None
    return database


def open_read_only(path: Path) -> sqlite3.Connection:
    """The database for reading alone. Raises sqlite3.Error.

    Where it is finished, but its folder may not be written, SQLite could not make the log that it
    wants to see: then the file is taken as one that nobody changes.
    """
    address = path.absolute().as_uri()
    database = sqlite3.connect(f"{address}?mode=ro", uri=True)
    try:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return database
    except sqlite3.OperationalError:
        database.close()
        if _size(f"{path}-wal"):
            raise
    return sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True)


def seal(database: sqlite3.Connection) -> bool:
    """Makes it a single file that needs no log; False where somebody else has it open."""
    try:
        database.execute("PRAGMA busy_timeout = 0")
        return bool(database.execute("PRAGMA journal_mode = DELETE").fetchone()[0] == "delete")
    except sqlite3.Error:
        return False


def retire(path: Path, place: Path) -> None:
    """Moves a database that is no longer written, as a single file. Raises OSError.

    Who has it open would go on to use its log by name, though that is the log of the next one by
    then. So it is copied away from its readers, and they keep what they have.
    """
    copy = copy_of(path)
    try:
        database = sqlite3.connect(path, isolation_level=None)
        try:
            if seal(database):
                os.replace(path, place)
                return
            target = sqlite3.connect(copy, isolation_level=None)
            try:
                database.backup(target)
                seal(target)
            finally:
                target.close()
        finally:
            database.close()
    except sqlite3.Error as error:
        remove(copy)
        raise _as_os_error(error, str(copy)) from error
    os.replace(copy, place)
    remove(path)


def finish_retiring(path: Path, place: Path) -> None:
    """Ends what a crash in the middle of `retire` left: half a copy, or both."""
    remove(copy_of(path))
    if not (path.exists() and place.exists()):
        return
    with suppress(sqlite3.Error):
        if _contents(path) == _contents(place):
            remove(path)


def copy_of(path: Path) -> Path:
    """Where a copy is made."""
    return path.with_name(f"{path.name}-copy")


def remove(path: Path) -> None:
    """Removes a database, and what may be beside it. Raises OSError."""
    # The file first: SQLite ignores a log without one, but not a file without its log.
    for suffix in ("", "-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def size_of(path: Path) -> int:
    """Bytes on the disk, with those of the log."""
    return _size(str(path)) + _size(f"{path}-wal")


def _contents(path: Path) -> object:
    """What no two recordings have in common; None where there is nothing."""
    database = open_read_only(path)
    try:
        ends = "SELECT count(*), min(number), max(number), min(time_ns), max(time_ns) FROM records"
        boot = "SELECT value FROM recording"
        return [database.execute(ends).fetchone(), database.execute(boot).fetchall()]
    finally:
        database.close()


def is_ours(database: sqlite3.Connection) -> bool:
    return _pragma(database, "application_id") == tables.APPLICATION_ID


def is_blank(database: sqlite3.Connection) -> bool:
    """Whether there is nothing in it, as a crash at the very beginning of a recording leaves it."""
    return _pragma(database, "application_id") == 0 and not _has_tables(database)


def _has_tables(database: sqlite3.Connection) -> bool:
    return bool(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _begin_anew(database: sqlite3.Connection) -> None:
    kinds = dict(database.execute("SELECT name, type FROM sqlite_master"))
    dropped = "".join(f"DROP {kinds[name]} {name};" for name in tables.TABLES if name in kinds)
    database.executescript(f"BEGIN IMMEDIATE; {dropped} {tables.SCHEMA}")
    database.execute("INSERT INTO recording VALUES ('boot', ?)", (_boot(),))
    database.execute("COMMIT")


def _insert(
    database: sqlite3.Connection,
    rows: Iterable[Row],
    statements: Iterable[tuple[str, Row]],
    talks: dict[str, Talk],
) -> None:
    """One transaction."""
    database.execute("BEGIN IMMEDIATE")
    for statement, values in statements:
        database.execute(statement, values)
    database.executemany(tables.RECORD, rows)
    for name, talk in talks.items():
        new = sum(database.execute(tables.LINK, (name, flow)).rowcount for flow in talk.flows)
        database.execute(tables.CONVERSATION, _within(talk.row(name, new)))
        database.executemany(tables.PARTICIPANT, map(_within, talk.rows(name)))
    database.execute("COMMIT")


def _within(row: Row) -> Row:
    """The row with numbers that an INTEGER holds."""
    return tuple(
        max(-LATEST, min(value, LATEST)) if isinstance(value, int) else value for value in row
    )


def _boot() -> str:
    """Names this boot of the machine; empty where that is not to be known."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _columns(app: App | None) -> Row:
    if app is None:
        return (None,) * 6
    path, comm, cgroup = clean_text(app.path), clean_text(app.comm), clean_text(app.cgroup)
    return (path, app.pid, comm, app.uid, cgroup, clean_text(app.filter))


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _as_os_error(error: Exception, name: str) -> OSError:
    if isinstance(error, OSError):
        return error
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return OSError(errno.ENOSPC if full else errno.EIO, str(error), name)
