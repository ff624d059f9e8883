"""`trace fmt`: recordings printed anew."""

import json
import os
import random
import signal
import sqlite3
import subprocess
from pathlib import Path

import msgspec
import pytest

from helpers.commands import DEADLINE_S, STREAMTAP, Command, run
from helpers.records import BOB, FLOW, PAIRED, TIME, Kept, body, closed, message, opened, record
from streamtap.capture.identity import host_key
from streamtap.cli.recordings import body_types
from streamtap.events import Record
from streamtap.trace import Recording, Session, open_sink, parse

UTC = {**os.environ, "TZ": "UTC"}
SAID = record(message(content="hello"), "received")
RECORDS = [
    record(opened()),
    SAID,
    record(body("stream.gap", cause="lost"), "sent", PAIRED),
    record(closed()),
    record(body("init.stopped", flows=1, bytes=2, records=3, gaps=4, drops=5), flow=None),
]
each_form = pytest.mark.parametrize("name", ["run.jsonl", "run.sqlite"])


def recorded(path: Path, *records: Record, count: int = 1) -> str:
    session = Session(parse(["all@all"]), [open_sink(str(path), stdout=Kept())])
    for _ in range(count):
        for each in records:
            session.offer([each])
    session.close()
    return str(path)


def printed(records: list[Record], form: str) -> str:
    """What a live run prints of them, on standard output."""
    kept = Kept()
    sink = open_sink(form, stdout=kept)
    for number, each in enumerate(records, 1):
        sink.write(number, [each])
    sink.close()
    return kept.getvalue().decode()


def numbers(stdout: str) -> list[int]:
    return [json.loads(line)["number"] for line in stdout.splitlines()]


@each_form
@pytest.mark.parametrize("form", ["line", "json", "wpp"])
def test_a_recording_is_printed_as_a_live_run_would_have(
    name: str, form: str, tmp_path: Path
) -> None:
    path = recorded(tmp_path / name, *RECORDS)
    result = run("trace", "fmt", path, "-o", form, "--content", "full", env=UTC)
    assert (result.returncode, result.stderr) == (0, "streamtap: 5 records\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        assert result.stdout == printed(RECORDS, form)


@each_form
def test_what_was_said_is_shown_if_it_was_recorded_and_is_asked_for(
    name: str, tmp_path: Path
) -> None:
    path = recorded(tmp_path / name, SAID)
    assert "hello" not in run("trace", "fmt", path).stdout
    assert "hello" in run("trace", "fmt", path, "--content", "full", "-A").stdout
    hidden = run("trace", "fmt", path, "--content", "none").stdout
    assert "hello" not in hidden
    assert BOB not in hidden
    if host_key() is not None:
        assert run("trace", "fmt", path, "--content", "none").stdout == hidden, "on one host"
    poorer = recorded(tmp_path / f"2.{name}", record(message(), "received"))
    assert "hello" not in run("trace", "fmt", poorer, "--content", "full").stdout


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["notify"], [2]),
        (["monitor:flow_established@info", "stream"], [1, 3, 4]),
        (["all@error"], []),
        (["--provider", "stream"], [3]),
        (["--flag", "gap,peer_to_peer"], [2, 3]),
        (["--level", "warn"], [3]),
        (["--port", "80"], [3]),
        (["--host", "1.2.3.4"], [1, 2, 4]),
        (["-c", "2"], [1, 2]),
        ([], [1, 2, 3, 4, 5]),
    ],
)
def test_records_are_chosen_and_keep_their_numbers(
    words: list[str], wanted: list[int], tmp_path: Path
) -> None:
    path = recorded(tmp_path / "run.sqlite", *RECORDS)
    result = run("trace", "fmt", path, "--json", *words)
    assert result.returncode == 0, result.stderr
    assert numbers(result.stdout) == wanted


def test_requests_to_the_service_count_like_other_records(tmp_path: Path) -> None:
    asked = body("control.request", request="list", user="root", uid=0, pid=1, result="granted")
    path = recorded(tmp_path / "run.jsonl", record(asked, flow=None), count=5)
    for words in ((), ("control",), ("--provider", "control")):
        result = run("trace", "fmt", path, "--json", "-c", "2", *words)
        assert numbers(result.stdout) == [1, 2], result.stderr


def test_all_that_was_recorded_is_printed(tmp_path: Path) -> None:
    command = {
        **{"number": 1, "time_ns": TIME, "event": "msnp.command", "direction": "sent"},
        **{"offset": 0, "length": 9, "verb": "PNG", "transaction": None, "args": []},
        **{"payload_length": 0},
    }
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(command) + "\n")
    assert "msnp.command" in run("trace", "fmt", str(path)).stdout
    assert run("trace", "fmt", str(path), "notify").stdout == ""


@each_form
def test_the_files_of_a_rotation_are_put_in_order(name: str, tmp_path: Path) -> None:
    made = Recording(tmp_path / name, body_types(), limit_bytes=1 << 20, keep=20)
    made.open()
    for number in range(1, 7001):
        at = msgspec.structs.replace(SAID, time_ns=TIME + number * 1000)
        made.write(number, [at])
    made.close()
    files = [str(path) for path in tmp_path.iterdir()]
    random.Random(3).shuffle(files)
    assert len(files) > 2
    result = run("trace", "fmt", *files, *files[:1], "--json")
    assert result.returncode == 0, result.stderr
    assert numbers(result.stdout) == list(range(1, 7001))


def test_several_recordings_are_merged_by_time_and_numbered_anew(tmp_path: Path) -> None:
    def at(*times: int) -> list[Record]:
        return [msgspec.structs.replace(SAID, time_ns=time) for time in times]

    first = recorded(tmp_path / "a.jsonl", *at(10, 30, 50))
    second = recorded(tmp_path / "b.sqlite", *at(20, 40))
    result = run("trace", "fmt", first, second, "--json")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["time_ns"] for each in told] == [10, 20, 30, 40, 50]
    assert [each["number"] for each in told] == [1, 2, 3, 4, 5]


def test_a_recording_becomes_one_of_another_form_and_back(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.jsonl", *RECORDS)
    other, back = tmp_path / "b.sqlite", tmp_path / "c.jsonl"
    for source, target in ((path, other), (str(other), back)):
        words = ["--content", "full", "-o", str(target)]
        assert run("trace", "fmt", source, *words).returncode == 0
    assert back.read_bytes() == Path(path).read_bytes()


def test_damaged_lines_are_left_out_counted_and_told(tmp_path: Path) -> None:
    path = Path(recorded(tmp_path / "run.jsonl", *RECORDS))
    path.write_bytes(b"nonsense\n" + path.read_bytes()[:-9] + b"\n{}\n")
    result = run("trace", "fmt", str(path), "--json")
    assert (result.returncode, numbers(result.stdout)) == (1, [1, 2, 3, 4])
    error, total = result.stderr.splitlines()
    assert error.startswith(f"streamtap: error: {path}: record 1 cannot be read: ")
    assert error.endswith(" (and 2 more)")
    assert total == "streamtap: 4 records"


def test_a_missing_file_is_told_and_nothing_is_printed(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run.jsonl", *RECORDS)
    result = run("trace", "fmt", path, str(tmp_path / "none.jsonl"))
    assert (result.returncode, result.stdout) == (6, "")
    assert "none.jsonl" in result.stderr


def test_a_recording_is_not_written_over_by_its_own_print(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run.sqlite", *RECORDS)
    before = Path(path).read_bytes()
    result = run("trace", "fmt", path, "-o", path)
    assert (result.returncode, Path(path).read_bytes()) == (2, before)
    assert "would overwrite" in result.stderr


@each_form
def test_a_reader_that_has_seen_enough_ends_it_quietly(name: str, tmp_path: Path) -> None:
    path = recorded(tmp_path / name, SAID, count=20_000)
    with subprocess.Popen(
        [*STREAMTAP, "trace", "fmt", path, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"number":1,')
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(DEADLINE_S) == 0
    assert b"error" not in told
    assert b"20000 records" not in told


def test_an_interrupt_ends_it_in_good_order(tmp_path: Path) -> None:
    whole = recorded(tmp_path / "whole.jsonl", SAID, count=20_000)
    with Command(tmp_path, "trace", "fmt", whole, "-o", str(tmp_path / "out.jsonl")) as command:
        while not (tmp_path / "out.jsonl").exists():
            assert command.process.poll() is None
        command.send(signal.SIGINT)
        assert command.wait() == 0
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert f"streamtap: {len(lines)} records" in command.stderr


def test_the_words_of_trace_are_listed() -> None:
    assert "trace fmt" in run("trace", "--help").stdout
    assert run("trace", "format").stderr.startswith(
        "streamtap: error: no verb 'trace format': there are trace start, "
    )


@pytest.mark.parametrize("mode", ["delete", "wal"])  # as it is finished, and after a crash
def test_who_may_not_write_the_folder_can_read_a_recording(mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "read only"
    folder.mkdir()
    path = recorded(folder / "run.sqlite", SAID)
    database = sqlite3.connect(path)
    assert database.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
    database.close()
    folder.chmod(0o555)
    try:
        result = run("trace", "fmt", path, "--json", rights=False)
    finally:
        folder.chmod(0o755)
    assert (result.returncode, numbers(result.stdout)) == (0, [1]), result.stderr
    assert [each.name for each in folder.iterdir()] == ["run.sqlite"]


def test_flows_are_told_with_their_applications(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run.jsonl", SAID, record(opened(), flow=PAIRED))
    told = [json.loads(line) for line in run("trace", "fmt", path, "--json").stdout.splitlines()]
    assert FLOW.app is not None
    assert [each["app"]["comm"] for each in told] == [FLOW.app.comm] * 2
    assert [each.get("peer", {}).get("comm") for each in told] == [None, "server"]
