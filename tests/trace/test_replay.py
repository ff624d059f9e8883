"""Recordings read back."""

import sqlite3
from pathlib import Path

import msgspec
import pytest

from helpers.records import ABSTRACT, KINDS, PAIRED, Kept, every_kind, message, opened, record
from streamtap.errors import NotFound, StreamtapError
from streamtap.events import Record
from streamtap.trace import Session, open_sink, parse
from streamtap.trace.replay import read

BODIES = [kind for kind in KINDS.values() if kind not in ABSTRACT]
RECORDS = [*(each for each, _ in every_kind()), record(opened(), flow=PAIRED)]


def no_damage(place: int, error: ValueError) -> None:
    raise AssertionError((place, error))


def write(path: Path, records: list[Record]) -> None:
    session = Session(parse(["all@all"]), [open_sink(str(path), stdout=Kept())])
    for each in records:
        session.offer([each])
    session.close()


@pytest.mark.parametrize("name", ["run.jsonl", "run.sqlite"])
def test_a_recording_gives_back_the_records_it_was_made_of(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, RECORDS)
    assert list(read(tmp_path / name, BODIES, no_damage)) == [
        msgspec.structs.replace(each, number=number) for number, each in enumerate(RECORDS, 1)
    ]


def test_a_line_cut_by_a_crash_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, RECORDS[:3])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"flow.opened", b"flow.unheard_of", 1)[:-20])
    damage: list[int] = []
    left = list(read(path, BODIES, lambda place, _: damage.append(place)))
    assert ([each.number for each in left], damage) == ([2], [1, 3])


def test_an_event_that_a_database_holds_and_nobody_knows_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    write(path, [record(opened()), record(message(), "sent")])
    types = [kind for kind in BODIES if kind is not KINDS["im.message"]]
    damage: list[int] = []
    left = list(read(path, types, lambda number, _: damage.append(number)))
    assert ([each.number for each in left], damage) == ([1], [2])


def test_a_file_that_is_no_recording_is_told(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE precious (x)")
    database.close()
    with pytest.raises(StreamtapError, match="no recording"):
        list(read(other, BODIES, no_damage))
    with pytest.raises(StreamtapError, match="cannot be read"):
        list(read(tmp_path, BODIES, no_damage))
    with pytest.raises(NotFound):
        list(read(tmp_path / "missing.jsonl", BODIES, no_damage))


def test_a_recording_that_is_cut_short_is_told_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    write(path, RECORDS)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StreamtapError, match="cannot be read"):
        list(read(path, BODIES, no_damage))
