"""What the sinks of the command are given."""

import json
import re
import time
from pathlib import Path

import pytest

from helpers import pcapng
from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import find, parser_of
from streamtap.events import (
    ControlRequest,
    ControlState,
    FilterChanged,
    FlowOpened,
    Record,
    Started,
)
from streamtap.model import Direction, Endpoint, Flow, Opened, Role, Segment


def outputs(*words: str, live: bool = True) -> Outputs:
    verb = find("monitor")
    assert verb is not None
    return Outputs(parser_of(verb).parse([*words, "/bin/true"]), live=live)


def records(*bodies: object) -> list[Record]:
    return [Record(time_ns=time.time_ns(), body=body) for body in bodies]  # type: ignore[arg-type]


STARTED = Started(version="1", source="live callouts")
ATTACHED = ControlState(state="attached", hooks=("a",))
LESS = ControlState(state="attached", hooks=("a",), missing=("b",))
FILTER = FilterChanged(action="added", layer="stream", filter="f", scope="exe f")
ASKED = ControlRequest(request="content full", user="ann", uid=7, pid=8, result="granted")
OPENED = FlowOpened(midstream=False)


def test_lines_leave_out_what_is_routine_and_do_not_count_it(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with outputs() as out:
        out.take(records(STARTED, ASKED, ATTACHED, FILTER, OPENED))
        assert out.records == 2
    shown = capfdbinary.readouterr().out.decode()
    assert len(shown.splitlines()) == 2
    assert "content full by ann" in shown


def test_a_hook_that_is_missing_is_shown(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with outputs() as out:
        out.take(records(LESS))
    assert b"missing: b" in capfdbinary.readouterr().out


@pytest.mark.parametrize("words", [["-v"], ["--provider", "init"], ["-o", "wpp"], ["--json"]])
def test_who_asks_for_more_is_told_what_is_routine(
    words: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with outputs(*words) as out:
        out.take(records(STARTED))
    assert capfdbinary.readouterr().out


def test_a_file_beside_the_lines_holds_everything(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "all.jsonl"
    with outputs("-o", "line", "-o", str(path)) as out:
        out.take(records(STARTED, OPENED))
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["init.started", "flow.opened"]
    assert len(capfdbinary.readouterr().out.splitlines()) == 1


def test_with_a_count_only_records_of_connections_are_told(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with outputs("--json", "-c", "2") as out:
        out.take(records(STARTED, ATTACHED, OPENED))
        assert not out.over
        out.take(records(OPENED, OPENED))
        assert out.over
    events = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [(event["number"], event["event"]) for event in events] == [
        (1, "flow.opened"),
        (2, "flow.opened"),
    ]


def test_a_count_never_hides_who_asked_for_content(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with outputs("--json", "-c", "1", "--content", "full") as out:
        out.take(records(ASKED, OPENED, OPENED))
        assert out.over
    events = [json.loads(line)["event"] for line in capfdbinary.readouterr().out.splitlines()]
    assert events == ["control.request", "flow.opened"]


@pytest.mark.parametrize("words", [["--provider", "monitor"], ["--flag", "0"], ["--level", "warn"]])
def test_no_choice_of_records_hides_who_asked_for_content(
    words: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with outputs("--json", "--content", "full", *words) as out:
        assert out.selection.wants(ASKED.provider, ASKED.flag, ASKED.level)
        out.take(records(ASKED))
    assert b"control.request" in capfdbinary.readouterr().out


def test_files_alone_leave_standard_output_alone(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with outputs("-o", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "a.sqlite")) as out:
        out.take(records(OPENED))
    assert capfdbinary.readouterr().out == b""


def test_packets_take_the_place_of_lines_unless_lines_are_asked_for(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "a.pcapng"
    with outputs("-w", str(path)) as out:
        out.take(records(OPENED))
        assert not out.over
    assert capfdbinary.readouterr().out == b""
    with outputs("-w", str(path), "-o", "line") as out:
        out.take(records(OPENED))
    assert b"opened" in capfdbinary.readouterr().out
    assert path.read_bytes().startswith(b"\n\r\r\n")


def test_packets_on_standard_output_come_alone_and_at_once(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with outputs("-w", "-", "--content", "full") as out:
        out.take([])
        shown = capfdbinary.readouterr().out
    assert [kind for kind, _ in pcapng.blocks(shown)] == [pcapng.SECTION, pcapng.INTERFACE]


@pytest.mark.parametrize(
    ("live", "words", "whole"),
    [(True, [], False), (True, ["--content", "full"], True), (False, [], True)],
)
def test_packets_hold_what_was_said_where_it_was_asked_for_or_comes_from_a_file(
    live: bool, words: list[str], whole: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pcapng"
    flow = Flow(1, None, Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 2), Role.CLIENT, 0)
    with outputs("-w", str(path), *words, live=live) as out:
        (tap,) = out.taps
        tap.opened(Opened(flow, (1, 1)), None)
        tap.segment(flow, Segment(1, Direction.TO_SERVER, 1, b"secret words", 5))
        out.take([])
    assert (b"secret words" in path.read_bytes()) is whole
    told = f"streamtap: {path}: headers only; --content full writes what was said too\n"
    assert capfd.readouterr().err == ("" if whole else told)


def test_a_count_ends_a_run_that_writes_packets_alone(tmp_path: Path) -> None:
    with outputs("-w", str(tmp_path / "a.pcapng"), "-c", "2") as out:
        out.take(records(OPENED))
        assert not out.over
        out.take(records(OPENED))
        assert out.over


@pytest.mark.parametrize("words", [["-w", "a.pcapng"], ["--extract", "a"]])
def test_records_that_nobody_writes_are_not_counted(words: list[str], tmp_path: Path) -> None:
    option, name = words
    with outputs(option, str(tmp_path / name), "--content", "full") as out:
        assert not out.selection.places
        out.take(records(ASKED, OPENED))
        assert out.records == 0


def test_a_full_disk_is_told_once_for_packets_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.jsonl"
    with outputs("-w", "/dev/full", "-o", str(good), "--content", "full") as out:
        out.take(records(OPENED))
        out.take(records(OPENED))
        assert out.failed == ["/dev/full"]
        assert not out.over
    assert capfd.readouterr().err.count("No space left on device; the rest goes on") == 1
    assert len(good.read_text().splitlines()) == 2


def test_a_full_disk_is_told_once_and_the_rest_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    full, good = tmp_path / "full.jsonl", tmp_path / "good.jsonl"
    full.symlink_to("/dev/full")
    with outputs("-o", str(full), "-o", str(good)) as out:
        out.take(records(OPENED))
        out.take(records(OPENED))
        assert out.failed == [str(full)]
        assert not out.over
        assert out.dropped == 1
    told = capfd.readouterr().err.splitlines()
    assert told == [
        f"streamtap: error: {full}: No space left on device; the rest goes on",
    ]
    assert len(good.read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["missing/a.jsonl", "missing/a.sqlite"])
def test_an_output_that_cannot_be_made_is_named(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    with pytest.raises(OSError, match=re.escape(path)), outputs("-o", path):
        pass
