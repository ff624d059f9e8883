"""The SQLite sink."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from helpers.records import (
    ALICE,
    BOB,
    FLOW,
    PAIRED,
    PIDGIN,
    TIME,
    body,
    closed,
    every_kind,
    message,
    opened,
    record,
)
from streamtap.trace.sqlite import NotContinued, Sqlite, open_read_only, seal
from streamtap.trace.tables import APPLICATION_ID, TABLES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@pytest.fixture
def sink(path: Path) -> Iterator[Sqlite]:
    sink = Sqlite(path)
    sink.open()
    yield sink
    sink.close()


def rows(path: Path, query: str) -> list[dict[str, object]]:
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in database.execute(query)]
    finally:
        database.close()


def test_every_kind_of_record_is_a_row(sink: Sqlite, path: Path) -> None:
    records = [each for each, _ in every_kind()]
    for number, each in enumerate(records, 1):
        sink.write(number, [each])
    sink.close()
    found = rows(path, "SELECT * FROM records ORDER BY number")
    assert [row["number"] for row in found] == list(range(1, len(records) + 1))
    for row, each in zip(found, records, strict=True):
        told = json.loads(str(row["body"]))
        assert (row["event"], row["time_ns"]) == (told["event"], TIME)
        assert (row["offset"], row["length"]) == (told.get("offset"), told.get("length"))
        assert row["direction"] == each.direction


def test_a_flow_is_one_row_with_its_beginning_and_its_end(sink: Sqlite, path: Path) -> None:
    sink.write(1, [record(opened(), flow=PAIRED)])
    sink.write(2, [record(message(), "sent", PAIRED)])
    sink.write(3, [record(closed(), flow=PAIRED)])
    sink.flush()
    [flow] = rows(path, "SELECT * FROM flows")
    assert flow["path"] == "/usr/bin/pidgin"
    assert json.loads(str(flow["peer"]))["comm"] == "server"
    assert (flow["local"], flow["remote"], flow["role"]) == ("[::1]:50000", "[::1]:80", "client")
    assert (flow["opened_ns"], flow["closed_ns"], flow["midstream"]) == (TIME, TIME, 0)
    assert (flow["sent"], flow["received"], flow["complete"]) == (812, 25_300, 1)


def test_a_flow_whose_opening_was_not_selected_is_a_row_too(sink: Sqlite, path: Path) -> None:
    sink.write(1, [record(message(), "sent")])
    sink.flush()
    [flow] = rows(path, "SELECT * FROM flows")
    assert (flow["flow"], flow["opened_ns"]) == ("12", None)


def test_a_peer_that_is_found_later_is_added(sink: Sqlite, path: Path) -> None:
    sink.write(1, [record(opened(), flow=msgspec.structs.replace(PAIRED, peer=None))])
    sink.write(2, [record(message(), "sent", PAIRED)])
    sink.flush()
    [flow] = rows(path, "SELECT peer, opened_ns FROM flows")
    assert (flow["peer"] is not None, flow["opened_ns"]) == (True, TIME)


def test_the_file_can_be_read_while_it_is_written(sink: Sqlite, path: Path) -> None:
    reader = sqlite3.connect(path, isolation_level=None)
    count = "SELECT count(*) FROM records"
    sink.write(1, [record(message(), "sent")])
    assert reader.execute(count).fetchone() == (0,)
    sink.flush()
    reader.execute("BEGIN")
    assert reader.execute(count).fetchone() == (1,)
    sink.write(2, [record(message(), "sent")])
    sink.flush()  # while the reader is inside its transaction
    assert reader.execute(count).fetchone() == (1,)
    reader.execute("COMMIT")
    assert reader.execute(count).fetchone() == (2,)
    reader.close()


def test_conversations_and_who_took_part_are_counted_over_flows_and_flushes(
    sink: Sqlite, path: Path
) -> None:
    other = msgspec.structs.replace(FLOW, flow="99")
    chat: dict[str, object] = {"pattern": "client-to-client", "conversation": "c1"}
    said = [
        body("im.connect", service="switchboard", **chat),
        body("im.invite", account="carol@example.com", by=ALICE, **chat),
        body("im.join", account=BOB, participants=(BOB, ALICE), **chat),
        message(),
        message(kind="typing", size=0),
        body("im.file", action="offer", sender=ALICE, recipients=(BOB,), **chat),
    ]
    for number, each in enumerate(said, 1):
        sink.write(number, [msgspec.structs.replace(record(each, "sent"), time_ns=TIME + number)])
        sink.flush()
    sink.write(7, [msgspec.structs.replace(record(message(), "sent", other), time_ns=TIME)])
    sink.write(8, [record(message(conversation=None), "sent", other)])
    sink.flush()
    assert rows(path, "SELECT * FROM conversations") == [
        {
            **{"conversation": "c1", "protocol": "msnp", "service": "switchboard"},
            **{"first_ns": TIME, "last_ns": TIME + 6, "records": 7, "flows": 2},
            **{"messages": 2, "bytes": 22, "files": 1},
        }
    ]
    assert [tuple(row.values()) for row in rows(path, "SELECT * FROM participants")] == [
        ("c1", ALICE, TIME, TIME + 6, 0, 0, 2),
        ("c1", BOB, TIME, TIME + 6, 2, 22, 0),
    ]
    flows = rows(path, "SELECT flow FROM conversation_flows WHERE conversation = 'c1'")
    assert [row["flow"] for row in flows] == ["12", "99"]


def test_a_new_recording_replaces_an_old_one(sink: Sqlite, path: Path) -> None:
    sink.write(1, [record(opened())])
    sink.close()
    again = Sqlite(path)
    again.open()
    again.close()
    assert rows(path, "SELECT * FROM records") == rows(path, "SELECT * FROM flows") == []


def test_a_recording_of_the_first_version_is_replaced_too(path: Path) -> None:
    first = sqlite3.connect(path)
    first.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; CREATE TABLE records (number);"
        "CREATE VIEW conversations AS SELECT number FROM records; CREATE TABLE mine (x);"
    )
    first.close()
    with pytest.raises(NotContinued, match="another version"):
        Sqlite(path, append=True).open()
    sink = Sqlite(path)
    sink.open()
    sink.close()
    kinds = rows(path, "SELECT name, type FROM sqlite_master WHERE type != 'index'")
    assert {row["name"] for row in kinds} == {*TABLES, "mine"}
    assert {row["type"] for row in kinds} == {"table"}


def test_a_recording_goes_on_behind_what_it_holds(path: Path) -> None:
    for number in (1, 2):
        sink = Sqlite(path, append=True)
        sink.open()
        assert sink.last == number - 1
        sink.write(number, [record(message(), "sent")])
        sink.close()
    assert rows(path, "SELECT number FROM records") == [{"number": 1}, {"number": 2}]
    assert rows(path, "SELECT records, messages, flows FROM conversations") == [
        {"records": 2, "messages": 2, "flows": 1}
    ]


def test_a_recording_of_before_the_last_boot_is_not_continued(path: Path) -> None:
    sink = Sqlite(path)
    sink.open()
    sink.close()
    database = sqlite3.connect(path)
    database.execute("UPDATE recording SET value = 'another' WHERE name = 'boot'")
    database.commit()
    database.close()
    with pytest.raises(NotContinued, match="last boot"):
        Sqlite(path, append=True).open()


def test_what_could_not_be_written_leaves_no_trace_and_the_next_is_written(path: Path) -> None:
    sink = Sqlite(path, append=True)
    sink.open()
    sink.write(1, [record(opened())])
    sink.flush()
    sink.write(2, [record(message(), "sent", PAIRED)])
    sink.write(1, [record(message(), "sent", PAIRED)])
    with pytest.raises(OSError, match="UNIQUE"):
        sink.flush()
    assert rows(path, "SELECT flow FROM flows") == [{"flow": "12"}]
    assert rows(path, "SELECT * FROM participants") == []
    sink.write(3, [record(message(), "sent", PAIRED)])
    sink.close()
    assert rows(path, "SELECT flow FROM flows") == [{"flow": "12"}, {"flow": "13"}]
    assert rows(path, "SELECT number FROM records") == [{"number": 1}, {"number": 3}]


def test_numbers_that_no_database_holds_are_cut(sink: Sqlite, path: Path) -> None:
    sink.write(1, [record(closed(sent=2**64 - 1))])
    sink.write(2, [record(message(size=2**70, offset=2**66), "sent")])
    sink.flush()
    assert rows(path, "SELECT sent FROM flows") == [{"sent": 2**63 - 1}]
    assert rows(path, 'SELECT "offset" FROM records WHERE number = 2') == [{"offset": 2**63 - 1}]
    assert rows(path, "SELECT bytes FROM conversations") == [{"bytes": 2**63 - 1}]


def test_a_finished_recording_is_one_file_unless_somebody_reads_it(
    sink: Sqlite, path: Path
) -> None:
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT count(*) FROM records").fetchone() == (0,)
    assert sink._database is not None
    assert not seal(sink._database)
    reader.close()
    sink.write(1, [record(opened())])
    sink.close()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert rows(path, "PRAGMA journal_mode") == [{"journal_mode": "delete"}]


@pytest.mark.parametrize("round", range(10))
def test_a_writer_that_is_killed_leaves_all_that_it_had_flushed(round: int, path: Path) -> None:
    # Each time a little later in what it does, and behind what the rounds before left.
    for delay in range(5):
        told = killed_writer(path, (round * 5 + delay) * 0.4e-3)
        database = sqlite3.connect(path)
        try:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert_in_agreement(database, told)
        finally:
            database.close()


WRITER = """
import sys
from pathlib import Path
from helpers.records import message, opened, record
from streamtap.trace.sqlite import NotContinued, Sqlite, open_read_only, seal
from streamtap.trace.tables import APPLICATION_ID, TABLES

sink = Sqlite(Path(sys.argv[1]), append=True, pages=16)
sink.open()
number = sink.last
while True:
    for _ in range(7):
        number += 1
        name = f"c{number // 10}"
        body = message(conversation=name) if number % 10 else opened()
        sink.write(number, [record(body, "sent")])
    sink.flush()
    print(number, flush=True)
"""


def killed_writer(path: Path, delay_s: float) -> int:
    """Kills a writer so long after its first words; the last number that it told as flushed."""
    command = [sys.executable, "-c", WRITER, str(path)]
    folders = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **folders}) as writer:
        assert writer.stdout is not None
        try:
            first = writer.stdout.readline()
            until = time.perf_counter() + delay_s
            while time.perf_counter() < until:
                pass  # a sleep is not as short
        finally:
            writer.kill()
        rest = writer.stdout.read()
    # The last line may be cut by the kill.
    return int((first + rest).rpartition(b"\n")[0].split()[-1])


def assert_in_agreement(database: sqlite3.Connection, told: int) -> None:
    """All numbers up to the last that was told are there, and the tables say what records say."""
    count, last = database.execute("SELECT count(*), max(number) FROM records").fetchone()
    assert count == last >= told
    by_records = """SELECT conversation, count(*), min(time_ns), max(time_ns), count(DISTINCT flow),
      sum(event = 'im.message') FROM records WHERE conversation IS NOT NULL GROUP BY 1"""
    by_table = """SELECT conversation, records, first_ns, last_ns, flows, messages
      FROM conversations ORDER BY 1"""
    assert database.execute(by_table).fetchall() == database.execute(by_records).fetchall()
    by_records = """SELECT conversation, json_extract(body, '$.sender'), count(*) FROM records
      WHERE event = 'im.message' GROUP BY 1, 2"""
    by_table = "SELECT conversation, account, messages FROM participants WHERE messages ORDER BY 1"
    assert database.execute(by_table).fetchall() == database.execute(by_records).fetchall()
    missing = "SELECT count(*) FROM records WHERE flow NOT IN (SELECT flow FROM flows)"
    assert database.execute(missing).fetchone() == (0,)


def test_what_is_opened_for_reading_is_not_written(sink: Sqlite, path: Path) -> None:
    sink.write(1, [record(opened())])
    sink.flush()
    database = open_read_only(path)
    try:
        assert database.execute("SELECT number FROM records").fetchall() == [(1,)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            database.execute("DELETE FROM records")
    finally:
        database.close()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    foreign, text = tmp_path / "foreign.sqlite", tmp_path / "text.sqlite"
    database = sqlite3.connect(foreign)
    database.execute("CREATE TABLE records (precious)")
    database.close()
    text.write_text("no database, and longer than nothing at all")
    for path in (foreign, text):
        before = path.read_bytes()
        with pytest.raises(OSError, match="database"):
            Sqlite(path).open()
        assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="open"):
        Sqlite(tmp_path / "no" / "such" / "run.sqlite").open()


def test_a_full_disk_is_an_os_error(sink: Sqlite) -> None:
    assert sink._database is not None
    sink._database.execute("PRAGMA max_page_count = 10")
    for number in range(500):
        sink.write(number, [record(message(sender="x" * 500), "sent")])
    with pytest.raises(OSError, match="full") as caught:
        sink.flush()
    assert caught.value.errno == errno.ENOSPC


def test_odd_text_and_times_are_stored_all_the_same(sink: Sqlite, path: Path) -> None:
    app = msgspec.structs.replace(PIDGIN, path="/opt/\udce9", comm="\ud800")
    odd = record(message(sender="\ud800", conversation="\ud800"), "sent")
    odd = msgspec.structs.replace(odd, time_ns=2**80, flow=msgspec.structs.replace(FLOW, app=app))
    sink.write(1, [odd])
    sink.write(2, [record(body("state.changed", enabled=True), flow=None)])
    sink.flush()
    assert rows(path, "SELECT time_ns, conversation FROM records WHERE number = 1") == [
        {"time_ns": 2**63 - 1, "conversation": "\\ud800"}
    ]
    assert rows(path, "SELECT path FROM flows") == [{"path": "/opt/\\udce9"}]
