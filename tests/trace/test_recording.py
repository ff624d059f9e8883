"""Recordings that are bounded, go on, and outlive a full disk."""

import errno
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from helpers.records import ABSTRACT, KINDS, Kept, message, record
from streamtap.events import Record
from streamtap.trace.jsonlines import JsonLines
from streamtap.trace.recording import LEAST_LIMIT, Recording
from streamtap.trace.replay import read
from streamtap.trace.rotation import numbered
from streamtap.trace.sink import Output

BODIES = [kind for kind in KINDS.values() if kind not in ABSTRACT]
FORMS = ["run.jsonl", "run.sqlite"]
MIB = 1 << 20
each_form = pytest.mark.parametrize("name", FORMS)


def said(number: int, text: str = "") -> Record:
    body = message(conversation=f"c{number // 100}", content=text or None)
    return msgspec.structs.replace(record(body, "sent"), number=number)


def lines(*numbers: int, text: str = "") -> bytes:
    kept = Kept()
    sink = JsonLines(Output(kept))
    for number in numbers:
        sink.write(number, [said(number, text)])
    sink.close()
    return kept.getvalue()


def recording(path: Path, **settings: object) -> Recording:
    made = Recording(path, BODIES, **{"retry_s": 0.0, **settings})  # type: ignore[arg-type]
    made.open()
    return made


def numbers(path: Path) -> list[int]:
    def damaged(place: int, error: ValueError) -> None:
        raise AssertionError((path, place, error))

    return [each.number for each in read(path, BODIES, damaged)]


def of_all(path: Path, keep: int) -> list[int]:
    """The numbers in all files, the oldest first."""
    files = [numbered(path, number) for number in range(keep, -1, -1)]
    return [number for each in files if each.exists() for number in numbers(each)]


def used(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.iterdir())


@each_form
def test_lines_that_are_taken_are_there_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made = recording(path)
    made.take(lines(1, 2))
    assert numbers(path) == [1, 2]
    made.take(b"")
    made.take(lines(3))
    assert (numbers(path), made.dropped, made.damaged) == ([1, 2, 3], 0, 0)
    assert made.size > 0
    made.close()


def test_lines_are_kept_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    made = recording(path)
    made.take(lines(1, 2) + b'{"of": "a later version"}\n')
    made.close()
    assert path.read_bytes() == lines(1, 2) + b'{"of": "a later version"}\n'


@each_form
def test_records_are_written_as_lines_of_them_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made = recording(path)
    for number in range(1, 1203):
        made.write(number, [said(number)])
    made.flush()
    assert numbers(path) == list(range(1, 1203))
    made.close()


def test_half_a_line_is_refused(tmp_path: Path) -> None:
    made = recording(tmp_path / "run.jsonl")
    with pytest.raises(ValueError, match="half a line"):
        made.take(lines(1)[:-1])
    made.close()


def test_lines_that_are_no_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    made = recording(path)
    made.take(lines(1) + b"nonsense\n\n" + b"[" * 5000 + b"\n" + lines(2))
    assert (numbers(path), made.damaged, made.dropped) == ([1, 2], 3, 0)
    made.close()


@each_form
def test_a_recording_goes_on_where_it_was_left(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for number in (1, 2, 3):
        made = recording(path)
        made.take(lines(number))
        made.close()
    assert numbers(path) == [1, 2, 3]


def test_a_line_that_a_crash_cut_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(lines(1, 2)[:-20])
    made = recording(path)
    made.take(lines(3))
    made.close()
    damage: list[int] = []
    left = read(path, BODIES, lambda place, _: damage.append(place))
    assert ([each.number for each in left], damage) == ([1, 3], [2])


def test_numbers_that_begin_anew_take_a_file_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    made = recording(path)
    made.take(lines(1, 2))
    made.take(lines(1))
    made.close()
    assert (numbers(numbered(path, 1)), numbers(path)) == ([1, 2], [1])


def test_a_service_that_starts_again_and_again_costs_no_record(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    for turn in range(8):
        made = recording(path, limit_bytes=MIB, keep=2)
        made.take(lines(*range(1, turn + 2)))
        made.close()
    assert of_all(path, 7) == [number for turn in range(8) for number in range(1, turn + 2)]
    assert used(tmp_path) < 3 * MIB


def test_a_recording_of_before_the_last_boot_takes_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    made = recording(path)
    made.take(lines(1))
    made.close()
    database = sqlite3.connect(path)
    database.execute("UPDATE recording SET value = 'another'")
    database.commit()
    database.close()
    made = recording(path)
    made.take(lines(2))
    made.close()
    assert (numbers(numbered(path, 1)), numbers(path)) == ([1], [2])


@each_form
def test_the_files_are_bounded_and_hold_the_newest(name: str, tmp_path: Path) -> None:
    path, keep = tmp_path / name, 2
    made = recording(path, limit_bytes=MIB, keep=keep)
    for first in range(1, 16_001, 100):
        made.take(lines(*range(first, first + 100)))
        assert used(tmp_path) < (keep + 1) * MIB + MIB // 4
    made.close()
    found = of_all(path, keep)
    assert found == list(range(found[0], 16_001))
    assert used(tmp_path) > (keep + 1) * MIB // 2
    assert {each.name for each in tmp_path.iterdir()} == {
        path.name,
        *(numbered(path, number).name for number in (1, 2)),
    }


@each_form
def test_a_take_that_is_longer_than_a_file_is_divided(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made = recording(path, limit_bytes=MIB, keep=9)
    made.take(lines(*range(1, 6001)) + lines(6001, text="x" * 2 * MIB) + lines(6002))
    made.close()
    assert of_all(path, 9) == list(range(1, 6003))
    assert len(list(tmp_path.iterdir())) > 2


@each_form
def test_without_a_file_to_keep_it_begins_anew(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made = recording(path, limit_bytes=MIB, keep=0)
    for first in range(1, 8001, 100):
        made.take(lines(*range(first, first + 100)))
    made.close()
    assert numbers(path)[-1] == 8000
    assert numbers(path)[0] > 1
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_who_reads_while_files_are_rotated_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    made = recording(path, limit_bytes=MIB, keep=9)
    made.take(lines(1))
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM records").fetchone() == (1,)
    for first in range(2, 10_002, 100):
        made.take(lines(*range(first, first + 100)))
    assert reader.execute("SELECT count(*) FROM records").fetchone() == (1,)
    reader.close()  # it must not take the log of the file that has the name now
    made.take(lines(10_002))
    assert of_all(path, 9) == list(range(1, 10_003))
    assert made.dropped == 0
    made.close()
    assert not [each for each in tmp_path.iterdir() if not each.name.endswith(".sqlite")]


def test_who_reads_a_finished_recording_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    made = recording(path)
    made.take(lines(1))
    made.close()
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM records").fetchone() == (1,)
    made = recording(path)
    made.take(lines(2))
    assert reader.execute("SELECT count(*) FROM records").fetchone() == (1,)
    reader.close()
    made.close()
    assert (numbers(numbered(path, 1)), numbers(path)) == ([1], [2])


def test_a_crash_between_a_copy_and_its_original_leaves_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    made = recording(path)
    made.take(lines(1, 2))
    made.close()
    numbered(path, 1).write_bytes(path.read_bytes())
    path.with_name("run.sqlite-copy").write_bytes(b"half of it")
    made = recording(path)
    made.take(lines(3))
    made.close()
    assert of_all(path, 4) == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 2


@each_form
def test_a_file_that_somebody_takes_away_is_made_anew(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made = recording(path)
    made.take(lines(1))
    for each in list(tmp_path.iterdir()):
        each.unlink()
    made.take(lines(2))
    assert numbers(path) == [2]
    made.close()


@contextmanager
def file_sizes_below(limit: int) -> Iterator[None]:
    """No file of this process grows beyond it: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@each_form
def test_what_finds_no_room_is_counted_and_told_once_and_then_it_goes_on(
    name: str, tmp_path: Path
) -> None:
    path, number = tmp_path / name, 0
    told: list[OSError | None] = []
    made = recording(path, report=told.append, settle_s=0.5)
    with file_sizes_below(200_000):
        for number in range(10, 2001, 10):
            made.take(lines(*range(number - 9, number + 1)))
    assert len(told) == 1
    assert isinstance(told[0], OSError)
    assert made.dropped > 0
    dropped, until = made.dropped, time.monotonic() + 30
    while len(told) == 1 and time.monotonic() < until:
        number += 1
        made.take(lines(number))
    assert (told[1:], made.dropped) == ([None], dropped)
    made.close()
    found = numbers(path)
    assert found == sorted(set(found))
    assert len(found) + dropped == number
    # What was recorded before is there, and what came after.
    assert (found[:10], found[-1]) == ([*range(1, 11)], number)


def test_a_full_disk_is_not_asked_again_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    told: list[OSError | None] = []
    made = recording(path, report=told.append, retry_s=3600.0)
    with file_sizes_below(10):
        made.take(lines(1))
    made.take(lines(2, 3))
    assert (made.dropped, len(told), path.read_bytes()) == (3, 1, b"")
    made.close()


ON_A_FULL_DISK = """
import sys
from pathlib import Path
from test_recording import lines, numbers, recording

folder, name = Path(sys.argv[1]), sys.argv[2]
ballast = folder / "ballast"
ballast.write_bytes(bytes(2 << 20))
told = []
made = recording(folder / name, report=told.append, settle_s=0.0)
first = 1
while not told:
    made.take(lines(*range(first, first + 100)))
    first += 100
ballast.unlink()
made.take(lines(first))
made.close()
held = numbers(folder / name)
assert held == [*range(1, len(held)), first], held[-3:]
print(told[0].errno, told[1], made.dropped + len(held) - first)
"""


@pytest.mark.root
@each_form
def test_a_disk_that_is_full_for_a_while_costs_what_came_meanwhile(
    name: str, tmp_path: Path
) -> None:
    script = 'mount -t tmpfs -o size=4m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    words = ["unshare", "-m", "sh", "-ec", script, "sh", str(tmp_path), sys.executable]
    folders = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    result = subprocess.run(
        [*words, ON_A_FULL_DISK, name],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": folders},
    )
    assert (result.stdout, result.stderr) == (f"{errno.ENOSPC} None 0\n", "")


WRITER = """
import sys
from pathlib import Path
from test_recording import lines, recording

made = recording(Path(sys.argv[1]), limit_bytes=1 << 20, keep=1000)
number = int(sys.argv[2])
while True:
    made.take(lines(*range(number + 1, number + 301), text="x" * 800))
    number += 300
    print(number, flush=True)
"""


@each_form
def test_a_recorder_that_is_killed_while_it_rotates_loses_nothing(
    name: str, tmp_path: Path
) -> None:
    path, last = tmp_path / name, 0
    folders = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    chance = random.Random(7)
    for _ in range(5):
        command = [sys.executable, "-c", WRITER, str(path), str(last)]
        environment = {**os.environ, "PYTHONPATH": folders}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None
            try:
                told = b"".join(writer.stdout.readline() for _ in range(chance.randrange(5, 20)))
            finally:
                writer.kill()
            told += writer.stdout.read()
        flushed = int(told.rpartition(b"\n")[0].split()[-1])
        found = of_all(path, 1000)
        assert found == list(range(1, found[-1] + 1))
        assert found[-1] >= flushed > last
        last = found[-1]
    assert numbered(path, 8).exists()


@pytest.mark.parametrize("settings", [{"limit_bytes": LEAST_LIMIT - 1}, {"keep": -1}])
def test_a_limit_that_nothing_fits_in_is_refused(settings: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least"):
        recording(tmp_path / "run.jsonl", **settings)


def test_other_endings_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"FILE\.jsonl and FILE\.sqlite"):
        recording(tmp_path / "run.pcapng")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(OSError, match="not a file"):
        recording(tmp_path / "pipe.jsonl")
    (tmp_path / "text.sqlite").write_text("no database, and longer than nothing at all")
    with pytest.raises(OSError, match="database"):
        recording(tmp_path / "text.sqlite")
