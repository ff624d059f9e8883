"""SQL over a recording, which can do nothing but read it."""

import base64
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path

from streamtap.cli.ending import FAILED, SIGNALLED
from streamtap.cli.parsing import Arguments, UsageError, say
from streamtap.cli.recordings import records_of
from streamtap.cli.signals import Stop
from streamtap.cli.tables import table_line, widths_of
from streamtap.errors import NotFound, StreamtapError
from streamtap.trace.jsonlines import encode_any
from streamtap.trace.replay import is_database
from streamtap.trace.sqlite import in_memory, is_blank, is_ours, open_read_only
from streamtap.trace.text import printable

STEPS = 10_000  # of SQLite's machine between two looks at the clock: some 100 microseconds
SAMPLE = 1000  # rows that decide how wide a column is
WIDEST = 60  # characters of a column; what is longer moves the rest of its row
TEXT = 1 << 30  # characters of a value: all of them

Cell = str | int | float | bytes | None

_ALLOWED = frozenset(
    (
        *(sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE),
        sqlite3.SQLITE_FUNCTION,
    )
)
# They tell of the database, with or without an argument, and change nothing.
_PRAGMAS = frozenset(
    (
        *("table_list", "table_info", "table_xinfo", "index_list", "index_info", "index_xinfo"),
        *("database_list", "function_list", "collation_list", "compile_options"),
        *("integrity_check", "quick_check"),
    )
)
# They are settings, and may be looked at.
_SETTINGS = frozenset(
    ("user_version", "application_id", "journal_mode", "page_count", "page_size", "encoding")
)
_UNREADABLE = frozenset(
    (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
)


def ask(arguments: Arguments, stop: Stop) -> int:
    """Prints the rows of one statement, or the tables; the exit code.

    Raises UsageError for what SQLite does not understand or is not allowed to do, StreamtapError
    for a file that is no recording and for time that ran out.
    """
    problems: list[str] = []
    path = Path(arguments.file)
    try:
        with closing(_open(path, problems)) as database:
            if arguments.schema:
                for (text,) in database.execute(
                    "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
                ):
                    print(f"{text};")
            else:
                _run(database, arguments, stop)
    except sqlite3.DatabaseError as error:
        if stop.number:
            return SIGNALLED + stop.number
        raise StreamtapError(f"{path} cannot be read: {error}") from error
    for problem in problems:
        say(f"streamtap: error: {printable(problem, 1000)}")
    return FAILED if problems else 0


def _open(path: Path, problems: list[str]) -> sqlite3.Connection:
    if not path.exists():
        raise NotFound(f"no file {path}")
    if not is_database(path):
        return in_memory(records_of(path, problems))
    database = open_read_only(path)
    if is_blank(database):
        database.close()
        return in_memory(())
    if not is_ours(database):
        database.close()
        raise StreamtapError(f"{path} is a database, but no recording of streamtap")
    return database


def _run(database: sqlite3.Connection, arguments: Arguments, stop: Stop) -> None:
    deadline = None if arguments.timeout is None else time.monotonic() + arguments.timeout

    def is_over() -> bool:
        return bool(stop.number) or (deadline is not None and time.monotonic() > deadline)

    database.text_factory = _text
    database.execute("PRAGMA query_only = ON")
    database.set_authorizer(_authorize)
    database.set_progress_handler(is_over, STEPS)
    try:
        found = database.execute(arguments.sql)
        names = [column[0] for column in found.description or ()]
        if arguments.json:
            _print_json(names, found)
        else:
            _print_table(names, found)
    except (sqlite3.Error, sqlite3.Warning) as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in _UNREADABLE:
            raise
        if code == sqlite3.SQLITE_AUTH:
            raise UsageError(f"a query may only read: {error}") from error
        if code == sqlite3.SQLITE_INTERRUPT:
            if stop.number:
                raise
            raise StreamtapError(
                f"no end after {arguments.timeout:g} s", "--timeout gives more time"
            ) from error
        what = "a recording can only be read: " if code == sqlite3.SQLITE_AUTH else ""
        raise UsageError(
            what + printable(str(error), 1000), f"streamtap query {arguments.file} --schema"
        ) from error


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
) -> int:
    """Whether a statement may do this: read, and nothing else."""
    if action in _ALLOWED:
        # The name of a function comes second.
        return sqlite3.SQLITE_DENY if second == "load_extension" else sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_PRAGMA and first is not None:
        name = first.lower()
        if name in _PRAGMAS or (name in _SETTINGS and second is None):
            return sqlite3.SQLITE_OK
    # So SQLite declares what `json_each` gives. Really to write there takes a pragma more.
    if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _print_json(names: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """An object for each row; of columns with one name the second is `name:2`."""
    unique: list[str] = []
    for name in names:
        number = 1
        while (key := name if number == 1 else f"{name}:{number}") in unique:
            number += 1
        unique.append(key)
    for row in rows:
        sys.stdout.write(encode_any(dict(zip(unique, row, strict=True))).decode() + "\n")


def _print_table(names: Sequence[str], rows: Iterator[Sequence[Cell]]) -> None:
    """Columns as wide as what is in the first rows; the others are not waited for."""
    if not names:
        return
    sample = list(islice(rows, SAMPLE))
    numbers = [
        index
        for index in range(len(names))
        if all(isinstance(row[index], int | float | None) for row in sample)
    ]
    head = [printable(name, WIDEST) for name in names]
    widths = [
        min(width, WIDEST)
        for width in widths_of([head, *(list(map(_cell, row)) for row in sample)])
    ]
    print(table_line(head, widths, numbers))
    for row in chain(sample, rows):
        print(table_line([_cell(cell) for cell in row], widths, numbers))


def _cell(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bytes):
        return base64.b64encode(cell).decode()
    return printable(str(cell), TEXT)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
