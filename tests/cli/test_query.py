"""`query`: SQL over recordings, which changes nothing."""

import json
import os
import re
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from helpers.commands import Command, run
from helpers.records import ALICE, BOB, TIME, Kept, message, opened, record
from streamtap.trace import Session, Sqlite, open_sink, parse

FOREVER = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT sum(x) FROM n"


def recorded(path: Path) -> Path:
    session = Session(parse(["all@all"]), [open_sink(str(path), stdout=Kept())])
    for each in (record(opened()), record(message(), "sent"), record(message(), "sent")):
        session.offer([each])
    session.close()
    return path


@pytest.fixture(params=["run.jsonl", "run.sqlite"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return recorded(tmp_path / request.param)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return recorded(tmp_path / "run.sqlite")


def test_a_table_is_printed(path: Path) -> None:
    result = run("query", str(path), "SELECT account, messages, NULL AS x FROM participants")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "account            messages  x",
        f"{ALICE}         0",
        f"{BOB}           2",
    ]


def test_rows_are_objects_too(path: Path) -> None:
    sql = "SELECT number, time_ns, x'00ff' AS data, number FROM records WHERE number > 2"
    result = run("query", str(path), sql, "--json")
    assert result.stdout == f'{{"number":3,"time_ns":{TIME},"data":"AP8=","number:2":3}}\n'


def test_damage_is_told_as_such_and_not_as_wrong_usage(database: Path) -> None:
    data = bytearray(database.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    database.write_bytes(data)
    result = run("query", str(database), "SELECT * FROM records")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"streamtap: error: {database} cannot be read: ")


def test_who_tries_to_change_something_is_told_what_a_query_may_do(database: Path) -> None:
    result = run("query", str(database), "DELETE FROM records")
    assert (result.returncode, "a query may only read" in result.stderr) == (2, True)


@pytest.mark.parametrize("words", [("query", "SELECT * FROM records"), ("trace", "fmt")])
def test_a_recording_that_ended_at_its_beginning_is_an_empty_one(
    words: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "run.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")  # so far a recorder came
    database.close()
    assert path.stat().st_size > 0
    before = [str(path)] if words[0] == "query" else []
    after = [str(path)] if words[0] == "trace" else []
    result = run(words[0], *before, words[1], *after, "--json")
    assert (result.returncode, result.stdout) == (0, "")
    assert "error" not in result.stderr


def test_the_tables_are_told_and_can_be_asked_for(path: Path) -> None:
    told = run("query", str(path), "--schema").stdout
    empty = sqlite3.connect(":memory:")
    empty.executescript(told)
    names = {name for (name,) in empty.execute("SELECT name FROM sqlite_master")}
    empty.close()
    assert {"records", "flows", "conversations", "participants", "records_time"} <= names
    columns = run("query", str(path), "PRAGMA table_info(participants)", "--json").stdout
    assert json.loads(columns.splitlines()[1])["name"] == "account"


def test_what_a_terminal_would_obey_is_not_printed(database: Path) -> None:
    result = run("query", str(database), "SELECT char(27) || '[2J' AS \"a\nb\"")
    assert result.stdout.splitlines() == ["a\\nb", "\\x1b[2J"]


def test_rows_are_printed_as_they_come_and_many_cost_no_memory(database: Path) -> None:
    sql = FOREVER.replace("FROM n)", "FROM n LIMIT 50000)").replace("sum(x)", "x")
    lines = run("query", str(database), sql).stdout.splitlines()
    assert (len(lines), lines[0], lines[1000], lines[-1]) == (50_001, "   x", "1000", "50000")


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM records",
        "INSERT INTO recording VALUES ('a', 'b')",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "DROP TABLE records",
        "UPDATE sqlite_master SET sql = ''",
        "SELECT * FROM pragma_user_version(9)",
        "SELECT * FROM pragma_wal_checkpoint('TRUNCATE')",
        "PRAGMA user_version = 9",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA temp_store_directory = '.'",
        "ATTACH 'other.sqlite' AS other",
        "VACUUM",
        "VACUUM INTO 'other.sqlite'",
        "REINDEX",
        "ANALYZE",
        "BEGIN EXCLUSIVE",
        "SELECT load_extension('x')",
        "SELECT writefile('other.sqlite', 'x')",
    ],
)
def test_nothing_can_be_changed_nor_reached(sql: str, path: Path) -> None:
    before = path.read_bytes()
    result = run("query", str(path), sql, cwd=path.parent)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.startswith("streamtap: error: ")
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT topic FROM records", "no such column: topic"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("SELECT abs(-9223372036854775808)", "overflow"),
    ],
)
def test_a_mistake_is_told_in_one_line(sql: str, told: str, database: Path) -> None:
    result = run("query", str(database), sql)
    assert (result.returncode, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert told in error
    assert hint.endswith("--schema")


def test_an_empty_statement_prints_nothing(database: Path) -> None:
    result = run("query", str(database), "")
    assert (result.returncode, result.stdout) == (0, "")


def test_a_query_that_does_not_end_runs_out_of_time(database: Path) -> None:
    result = run("query", str(database), FOREVER, "--timeout", "0.2")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("streamtap: error: no end after 0.2 s")


def test_an_interrupt_ends_a_query(database: Path, tmp_path: Path) -> None:
    with Command(tmp_path, "query", str(database), FOREVER) as command:
        until = time.monotonic() + 20
        while cpu_s(command.pid) < 1.0:  # it started long ago, and is at work
            assert time.monotonic() < until
            assert command.process.poll() is None
        command.send(signal.SIGINT)
        assert command.wait() == 130
    assert (command.stdout, command.stderr) == ("", "")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_recording_is_asked_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    sink = Sqlite(path)
    sink.open()
    sink.write(1, [record(opened())])
    sink.flush()
    assert run("query", str(path), "SELECT number FROM records").stdout == "number\n     1\n"
    sink.write(2, [record(opened())])
    sink.close()
    assert run("query", str(path), "SELECT count(*) FROM records").stdout.endswith("\n       2\n")


def test_lines_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run.jsonl")
    path.write_bytes(path.read_bytes() + b"{}\n" + path.read_bytes().splitlines()[0] + b"\n")
    result = run("query", str(path), "SELECT count(*), max(number) FROM records", "--json")
    assert (result.returncode, json.loads(result.stdout)) == (
        1,
        {"count(*)": 4, "max(number)": 4},
    )
    assert "record 4 cannot be read" in result.stderr


def test_a_damaged_database_is_no_mistake_of_the_question(database: Path) -> None:
    data = bytearray(database.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)  # behind the page of the schema
    database.write_bytes(data)
    result = run("query", str(database), "SELECT count(*) FROM records")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{database} cannot be read" in result.stderr


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    other, text = tmp_path / "other.sqlite", tmp_path / "text"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE precious (x)")
    database.close()
    result = run("query", str(other), "SELECT 1")
    assert (result.returncode, "no recording" in result.stderr) == (1, True)
    assert run("query", str(tmp_path / "none"), "SELECT 1").returncode == 6
    text.write_text("some\ntext\n")
    assert run("query", str(text), "SELECT 1").returncode == 1


def test_queries_that_the_reference_shows_can_be_asked(path: Path) -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "reference" / "outputs.md"
    [block] = re.findall(r"^```sql\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    queries = [query for query in block.split(";") if query.strip()]
    assert len(queries) > 4
    shown = [run("query", str(path), query, "--json") for query in queries]
    assert [each.stderr for each in shown] == [""] * len(queries)
    assert all(each.stdout for each in shown[:4])
    assert json.loads(shown[0].stdout)["messages"] == 2


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT value FROM records, json_each(body, '$.recipients') WHERE event = 'im.message'",
        "SELECT name FROM pragma_table_info('records')",
        "EXPLAIN QUERY PLAN SELECT * FROM records WHERE conversation = 'c1'",
        "PRAGMA user_version",
        "PRAGMA integrity_check",
        "VALUES (1), (2)",
    ],
)
def test_whatever_reads_is_allowed(sql: str, path: Path) -> None:
    result = run("query", str(path), sql)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) > 1
