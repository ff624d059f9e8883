"""What `-o` may say, and outputs that end badly."""

import errno
import io
import json
import os
import threading
from pathlib import Path

import pytest

from helpers.records import Kept, message, opened, record
from streamtap.trace import Console, JsonLines, Session, Sink, Sqlite, Wpp, open_sink, parse
from streamtap.trace.sink import BATCH, Output

MESSAGE = record(message(), "sent")


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("line", Console),
        ("json", JsonLines),
        ("wpp", Wpp),
        ("a.jsonl", JsonLines),
        ("A.JSONL", JsonLines),
        ("./line.sqlite", Sqlite),
    ],
)
def test_the_word_or_the_ending_of_the_file_says_the_form(
    spec: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sink = open_sink(spec, stdout=Kept())
    assert type(sink) is kind
    sink.close()
    assert Path(spec).exists() == ("." in spec)


@pytest.mark.parametrize("spec", ["", "xml", "file", "run.txt", "jsonl", "sqlite"])
def test_another_word_is_told_with_the_known_ones(spec: str) -> None:
    with pytest.raises(ValueError, match=r"line, json, wpp, FILE\.jsonl, FILE\.sqlite"):
        open_sink(spec, stdout=Kept())


def test_a_file_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_sink(str(tmp_path / "no" / "run.jsonl"), stdout=Kept())


def test_settings_of_lines_reach_them() -> None:
    kept = Kept()
    sink = open_sink("line", stdout=kept, color=True, verbose=True)
    sink.write(1, [MESSAGE])
    sink.close()
    assert "\x1b[" in kept.lines[0]
    assert "[flow 12" in kept.lines[0]


def test_lines_are_written_in_batches_and_whole_at_a_flush() -> None:
    kept = Kept()
    sink = JsonLines(Output(kept))
    sink.write(1, [MESSAGE])
    assert kept.getvalue() == b""
    sink.flush()
    assert [json.loads(line)["number"] for line in kept.lines] == [1]
    numbers = range(2, 2 + BATCH // 100)
    for number in numbers:
        sink.write(number, [MESSAGE])
    assert len(kept.getvalue()) > BATCH
    sink.close()
    assert [json.loads(line)["number"] for line in kept.lines] == [1, *numbers]


def test_a_borrowed_stream_stays_open() -> None:
    kept = Kept()
    open_sink("json", stdout=kept).close()
    assert not kept.closed


def test_a_stream_that_takes_little_at_a_time_gets_everything() -> None:
    class Slow(Kept):
        def write(self, data: object, /) -> int:
            assert isinstance(data, memoryview)
            return super().write(data[:7])

    slow = Slow()
    sink = open_sink("json", stdout=slow)
    sink.write(1, [MESSAGE])
    sink.close()
    assert json.loads(slow.getvalue())["number"] == 1


def test_a_full_disk_is_reported_and_the_other_output_is_complete() -> None:
    reports: list[tuple[str, int | None]] = []

    def report(sink: Sink, error: OSError) -> None:
        reports.append((sink.name, error.errno))

    kept = Kept()
    full = Output(Path("/dev/full"))
    full.open()
    sinks = [JsonLines(full), open_sink("json", stdout=kept)]
    session = Session(parse([]), sinks, report=report)
    for _ in range(1000):
        session.offer([MESSAGE])
    session.close()
    assert reports == [("/dev/full", errno.ENOSPC)]
    assert len(kept.lines) == 1000
    assert session.counters.dropped > 0


def test_a_closed_pipe_ends_the_session_without_a_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    reports: list[OSError] = []
    with open(writing, "wb", buffering=0) as stdout:
        session = Session(
            parse([]),
            [open_sink("line", stdout=stdout)],
            report=lambda _, error: reports.append(error),
        )
        session.offer([MESSAGE])
        assert not session.over
        session.flush()
        assert session.over
        session.close()
    assert reports == []


def test_a_full_pipe_is_waited_for_not_lost() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    written = os.write(writing, b"x" * (1 << 20))  # the pipe is full now
    raw = io.FileIO(writing, "wb")
    sink = open_sink("json", stdout=raw)
    sink.write(1, [record(opened())])
    drained = bytearray()

    def drain() -> None:
        while len(drained) < written + 10:
            drained.extend(os.read(reading, 1 << 20))

    reader = threading.Thread(target=drain)
    reader.start()
    sink.flush()
    reader.join(10)
    raw.close()
    os.close(reading)
    assert drained[written:].startswith(b'{"number":1,')
