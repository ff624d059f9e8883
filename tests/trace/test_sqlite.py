"""The SQLite sink."""

import errno
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from helpers.records import (
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
from streamtap.trace.sqlite import Sqlite


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
        sink.write(number, each)
    sink.close()
    found = rows(path, "SELECT * FROM records ORDER BY number")
    assert [row["number"] for row in found] == list(range(1, len(records) + 1))
    for row, each in zip(found, records, strict=True):
        told = json.loads(str(row["body"]))
        assert (row["event"], row["time_ns"]) == (told["event"], TIME)
        assert (row["offset"], row["length"]) == (told.get("offset"), told.get("length"))
        assert row["direction"] == each.direction


def test_a_flow_is_one_row_with_its_beginning_and_its_end(sink: Sqlite, path: Path) -> None:
    sink.write(1, record(opened(), flow=PAIRED))
    sink.write(2, record(message(), "sent", PAIRED))
    sink.write(3, record(closed(), flow=PAIRED))
    sink.flush()
    [flow] = rows(path, "SELECT * FROM flows")
    assert flow["path"] == "/usr/bin/pidgin"
    assert json.loads(str(flow["peer"]))["comm"] == "server"
    assert (flow["local"], flow["remote"], flow["role"]) == ("[::1]:50000", "[::1]:80", "client")
    assert (flow["opened_ns"], flow["closed_ns"], flow["midstream"]) == (TIME, TIME, 0)
    assert (flow["sent"], flow["received"], flow["complete"]) == (812, 25_300, 1)


def test_a_flow_whose_opening_was_not_selected_is_a_row_too(sink: Sqlite, path: Path) -> None:
    sink.write(1, record(message(), "sent"))
    sink.flush()
    [flow] = rows(path, "SELECT * FROM flows")
    assert (flow["flow"], flow["opened_ns"]) == ("12", None)


def test_a_peer_that_is_found_later_is_added(sink: Sqlite, path: Path) -> None:
    sink.write(1, record(opened(), flow=msgspec.structs.replace(PAIRED, peer=None)))
    sink.write(2, record(message(), "sent", PAIRED))
    sink.flush()
    [flow] = rows(path, "SELECT peer, opened_ns FROM flows")
    assert (flow["peer"] is not None, flow["opened_ns"]) == (True, TIME)


def test_the_file_can_be_read_while_it_is_written(sink: Sqlite, path: Path) -> None:
    reader = sqlite3.connect(path, isolation_level=None)
    count = "SELECT count(*) FROM records"
    sink.write(1, record(message(), "sent"))
    assert reader.execute(count).fetchone() == (0,)
    sink.flush()
    reader.execute("BEGIN")
    assert reader.execute(count).fetchone() == (1,)
    sink.write(2, record(message(), "sent"))
    sink.flush()  # while the reader is inside its transaction
    assert reader.execute(count).fetchone() == (1,)
    reader.execute("COMMIT")
    assert reader.execute(count).fetchone() == (2,)
    reader.close()


def test_conversations_are_counted_over_their_flows(sink: Sqlite, path: Path) -> None:
    other = msgspec.structs.replace(FLOW, flow="99")
    sink.write(1, record(message(), "sent"))
    sink.write(2, record(message(), "sent", other))
    sink.write(3, record(message(conversation=None), "sent", other))
    sink.flush()
    assert rows(path, "SELECT conversation, records, flows FROM conversations") == [
        {"conversation": "c1", "records": 2, "flows": 2}
    ]


def test_a_new_recording_replaces_an_old_one(sink: Sqlite, path: Path) -> None:
    sink.write(1, record(opened()))
    sink.close()
    again = Sqlite(path)
    again.open()
    again.close()
    assert rows(path, "SELECT * FROM records") == rows(path, "SELECT * FROM flows") == []


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
        sink.write(number, record(message(sender="x" * 500), "sent"))
    with pytest.raises(OSError, match="full") as caught:
        sink.flush()
    assert caught.value.errno == errno.ENOSPC


def test_odd_text_and_times_are_stored_all_the_same(sink: Sqlite, path: Path) -> None:
    app = msgspec.structs.replace(PIDGIN, path="/opt/\udce9", comm="\ud800")
    odd = record(message(sender="\ud800", conversation="\ud800"), "sent")
    odd = msgspec.structs.replace(odd, time_ns=2**80, flow=msgspec.structs.replace(FLOW, app=app))
    sink.write(1, odd)
    sink.write(2, record(body("state.changed", enabled=True), flow=None))
    sink.flush()
    assert rows(path, "SELECT time_ns, conversation FROM records WHERE number = 1") == [
        {"time_ns": 2**63 - 1, "conversation": "\\ud800"}
    ]
    assert rows(path, "SELECT path FROM flows") == [{"path": "/opt/\\udce9"}]
