"""`monitor` through the real kernel, as a process of its own: what it shows, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import DEADLINE_S, STREAMTAP, Command, conversation, is_running, run
from helpers.live import eventually

pytestmark = pytest.mark.root
SUMMARY = re.compile(
    r"^streamtap: (\d+) flows?, (\d+) bytes?, (\d+) records?, (\d+) gaps?, (\d+) drops?$", re.M
)
NOBODY = ("--comm", "no-such-comm")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts `streamtap monitor WORDS` and waits until it is attached."""
    made: list[Command] = []

    def start_one(*words: str, **options: Any) -> Command:
        command = Command(tmp_path, "monitor", *words, **options)
        made.append(command)
        eventually(lambda: command.is_attached, "attached")
        return command

    yield start_one
    for command in made:
        command.__exit__()


def holders() -> list[int]:
    """The processes that hold callouts, by `status`."""
    result = run("status", "--json")
    assert result.stdout, result.stderr
    assert result.returncode == 3  # no service
    return [pid for one in json.loads(result.stdout)["attached"] for pid in one["pids"]]


def is_gone(pid: int) -> bool:
    """Neither the process nor anything that it attached is there."""
    return not is_running(pid) and pid not in holders()


# --- what it shows -------------------------------------------------------------------------------


def test_a_command_is_shown_from_opening_to_certificate_and_passes_its_code_on() -> None:
    result = run("monitor", "--", *conversation(7))
    assert result.returncode == 7
    lines = result.stdout.splitlines()
    assert sum(" opened " in line for line in lines) == 2
    assert sum("complete" in line for line in lines) == 2
    assert any("10 bytes" in line for line in lines)
    flows, volume, records, gaps, drops = map(int, SUMMARY.findall(result.stderr)[0])
    assert (flows, volume, records, gaps, drops) == (2, 20, len(lines), 0, 0)


def test_output_of_the_command_never_mixes_with_the_records() -> None:
    result = run("monitor", "--json", "--", *conversation())
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["number"] for record in records] == list(range(1, len(records) + 1))
    assert "spoken" in result.stderr


def test_standard_input_and_error_may_be_closed_as_supervisors_do() -> None:
    words = [*STREAMTAP, "monitor", "--json", "--", *conversation(7)]
    closing = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *words]
    result = subprocess.run(closing, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S)
    assert result.returncode == 7
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events.count("flow.closed") == 2


def test_the_records_tell_the_whole_run() -> None:
    result = run("monitor", "--json", "--", *conversation())
    records = [json.loads(line) for line in result.stdout.splitlines()]
    events = [record["event"] for record in records]
    assert events[0] == "init.started"
    state = records[events.index("control.state")]
    assert state["state"] == "attached"
    assert "flow_established" in state["hooks"]
    added = [record for record in records if record["event"] == "filter.changed"]
    assert {record["layer"] for record in added} == {"flow_established", "stream"}
    assert events.count("flow.opened") == events.count("flow.closed") == 2
    last = records[-1]
    assert last["event"] == "init.stopped"
    assert (last["flows"], last["bytes"], last["drops"]) == (2, 20, 0)
    assert last["records"] == len(records) - 1


def test_content_is_shown_with_a_record_of_who_asked() -> None:
    environment = {**os.environ, "SUDO_USER": "ann", "SUDO_UID": "1234"}
    words = ("monitor", "--json", "--content", "full", "--", *conversation())
    records = [json.loads(line) for line in run(*words, env=environment).stdout.splitlines()]
    (request,) = (record for record in records if record["event"] == "control.request")
    assert (request["user"], request["uid"], request["result"]) == ("ann", 1234, "granted")
    assert any("0123456789" in str(record.get("content")) for record in records)


def test_content_can_be_read_as_text_and_as_hex() -> None:
    text = run("monitor", "--content", "full", "-A", "--", *conversation()).stdout
    assert "\n    0123456789\n" in text
    dump = run("monitor", "--content", "full", "-X", "--", *conversation()).stdout
    assert "3031 3233 3435 3637 3839" in dump


def test_without_being_asked_content_is_nowhere() -> None:
    result = run("monitor", "--json", "--flag", "all", "--", *conversation())
    assert "0123456789" not in result.stdout + result.stderr


def test_files_alone_leave_standard_output_to_the_command(tmp_path: Path) -> None:
    lines, database = tmp_path / "a.jsonl", tmp_path / "a.sqlite"
    result = run("monitor", "-o", str(lines), "-o", str(database), "--", *conversation())
    assert (result.returncode, result.stdout) == (0, "spoken\n")
    assert "flow.closed" in lines.read_text()
    assert database.stat().st_size


def test_a_pipe_gets_no_colour() -> None:
    assert "\x1b" not in run("monitor", "--", *conversation()).stdout


def test_a_port_that_nobody_uses_hides_everything() -> None:
    result = run("monitor", "--port", "1", "--", *conversation())
    assert result.stdout == ""
    assert "streamtap: 0 flows, 0 bytes, 0 records" in result.stderr


@pytest.mark.parametrize(("host", "flows"), [("127.0.0.1", 2), ("::ffff:127.0.0.1", 2), ("::1", 0)])
def test_a_host_selects_connections(host: str, flows: int) -> None:
    result = run("monitor", "--host", host, "--", *conversation())
    assert result.stdout.count(" opened ") == flows


# --- how it ends ---------------------------------------------------------------------------------


def test_interrupted_it_ends_cleanly_with_a_summary(start: Callable[..., Command]) -> None:
    command = start(*NOBODY)
    command.send(signal.SIGINT)
    assert command.wait() == 0
    assert SUMMARY.search(command.stderr)
    assert is_gone(command.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_it_does_so_cleanly_and_tells_by_which_signal(
    start: Callable[..., Command], number: signal.Signals
) -> None:
    command = start(*NOBODY)
    command.send(number)
    assert command.wait() == 128 + number
    assert SUMMARY.search(command.stderr)
    assert is_gone(command.pid)


def test_killed_it_leaves_nothing_attached(start: Callable[..., Command]) -> None:
    command = start(*NOBODY)
    assert command.pid in holders()
    command.process.kill()
    command.wait()
    eventually(lambda: is_gone(command.pid), "nothing is attached")


def test_interrupted_while_it_starts_it_is_silent_and_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        with Command(tmp_path, "monitor", *NOBODY) as command:
            caught = Path(f"/proc/{command.pid}/status")

            def handles_signals(status: Path = caught) -> bool:
                found = re.search(r"^SigCgt:\s*(\w+)", status.read_text(), re.M)
                return bool(found and int(found[1], 16) >> (signal.SIGTERM - 1) & 1)

            eventually(handles_signals, "it notes signals")
            command.send(signal.SIGINT)
            assert command.wait() == 0
            assert "Traceback" not in command.stderr
            assert is_gone(command.pid)


def test_with_the_monitor_its_command_ends_too(start: Callable[..., Command]) -> None:
    command = start("--json", "-l", "--", *conversation(stay=True))
    eventually(lambda: "flow.opened" in command.stdout, "the connection is seen")
    pid = next(
        record["app"]["pid"]
        for record in map(json.loads, command.stdout.splitlines())
        if record["event"] == "flow.opened"
    )
    command.send(signal.SIGINT)
    assert command.wait() == 0
    assert not is_running(pid)


def test_after_so_many_records_it_ends() -> None:
    result = run("monitor", "--json", "-c", "2", "--", *conversation(stay=True))
    assert result.returncode == 0
    assert [json.loads(line)["event"] for line in result.stdout.splitlines()] == ["flow.opened"] * 2


def test_a_time_in_which_nothing_is_seen_ends_with_124() -> None:
    assert run("monitor", *NOBODY, "--duration", "0.1").returncode == 124


def test_a_time_in_which_something_is_seen_ends_with_0() -> None:
    words = ("monitor", "--duration", "1", "--", *conversation(stay=True))
    assert run(*words).returncode == 0


def test_a_command_that_a_signal_ended_gives_128_and_its_number() -> None:
    source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run("monitor", "--", sys.executable, "-c", source).returncode == 137


def test_a_command_that_does_not_exist_gives_127_and_one_that_cannot_run_126(
    tmp_path: Path,
) -> None:
    missing = run("monitor", "--", "/not/there")
    assert missing.returncode == 127
    assert missing.stderr.endswith(
        "streamtap: error: cannot run /not/there: No such file or directory\n"
    )
    plain = tmp_path / "plain"
    plain.touch()
    assert run("monitor", "--", str(plain)).returncode == 126


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["/not/there"], 6),
        (["no-such-command-anywhere"], 6),
        (["--pid", "4194303"], 6),
        (["--uid", "no-such-user"], 6),
        (["--cgroup", "no/such/cgroup"], 6),
        (["--unit", "no-such-unit"], 6),
        (["/usr"], 2),
        (["--cmdline", "("], 2),
        (["--pid", "zero"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_scope_that_is_not_there_or_cannot_be_is_told_in_one_line(
    words: list[str], code: int
) -> None:
    result = run("monitor", *words)
    assert result.returncode == code
    assert result.stderr.startswith("streamtap: error: ")
    assert len(result.stderr.splitlines()) <= 2


# --- outputs that fail ---------------------------------------------------------------------------


def test_a_full_disk_and_no_other_output_ends_it_with_1() -> None:
    with open("/dev/full", "w") as full:
        result = run("monitor", "--json", "--", *conversation(stay=True), stdout=full)
    assert result.returncode == 1
    assert result.stderr.count("No space left on device") == 1


def test_a_full_disk_beside_another_output_is_told_once_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    full, good = tmp_path / "full.jsonl", tmp_path / "good.jsonl"
    full.symlink_to("/dev/full")
    result = run("monitor", "-o", str(full), "-o", str(good), "--", *conversation())
    assert result.returncode == 1
    assert result.stderr.count("No space left on device; the rest goes on") == 1
    assert "init.stopped" in good.read_text()


def test_an_output_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.jsonl"
    result = run("monitor", "-o", str(path), *NOBODY)
    assert result.returncode == 1
    assert result.stderr == f"streamtap: error: {path}: No such file or directory\n"


def test_a_closed_standard_output_is_told_in_one_line() -> None:
    command = " ".join(STREAMTAP)
    result = subprocess.run(
        ["sh", "-c", f"exec {command} monitor {' '.join(NOBODY)} >&-"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert result.returncode == 1
    assert result.stderr == "streamtap: error: standard output: Bad file descriptor\n"


def test_a_reader_that_goes_away_ends_it_quietly_even_if_there_is_nothing_to_write(
    start: Callable[..., Command],
) -> None:
    read, write = os.pipe()
    command = start(*NOBODY, stdout=write)
    os.close(write)
    os.close(read)
    assert command.wait() == 0
    assert "error" not in command.stderr.lower()
    assert is_gone(command.pid)


def test_a_reader_that_goes_away_does_not_end_a_recording(
    start: Callable[..., Command], tmp_path: Path
) -> None:
    read, write = os.pipe()
    path = tmp_path / "kept.jsonl"
    words = ("--json", "-o", str(path), "--", *conversation(3))
    command = start(*words, stdout=write)
    os.close(write)
    os.close(read)
    assert command.wait() == 3
    assert "init.stopped" in path.read_text()


# --- beside others -------------------------------------------------------------------------------


def test_two_monitors_at_once_both_see_everything(
    start: Callable[..., Command], tmp_path: Path
) -> None:
    speaker = subprocess.Popen(
        conversation(stay=True), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert speaker.stdout
        assert speaker.stdout.readline() == b"spoken\n"
        both = [start("--json", "-l", "--pid", str(speaker.pid)) for _ in range(2)]
        eventually(lambda: all(one.stdout.count("flow.opened") == 2 for one in both), "both flows")
        assert {command.pid for command in both} <= set(holders())
        flows = json.loads(run("flows", "--json").stdout)
        mine = [flow for flow in flows if flow["pid"] == speaker.pid]
        assert {flow["monitor"] for flow in mine} == {command.pid for command in both}
        assert len({flow["flow"] for flow in mine}) == 2
        for flow in mine:
            expected = (10, 0) if flow["role"] == "client" else (0, 10)
            assert (flow["sent"], flow["received"]) == expected
            assert flow["state"] == "established"
            assert flow["midstream"]
        table = run("flows").stdout
        assert f"[{speaker.pid}]" in table
        both[0].send(signal.SIGINT)
        assert both[0].wait() == 0
        assert both[1].pid in holders()
    finally:
        speaker.kill()
        speaker.wait(DEADLINE_S)
        speaker.stdout.close()  # type: ignore[union-attr]
    eventually(lambda: both[1].stdout.count("flow.closed") == 2, "the other one goes on")


def test_status_tells_what_a_monitor_has_attached(start: Callable[..., Command]) -> None:
    command = start(*NOBODY)
    attached = json.loads(run("status", "--json").stdout)["attached"]
    (mine,) = (one for one in attached if command.pid in one["pids"])
    assert {"flow_established", "stream_sent", "stream_received"} <= set(mine["hooks"])
    assert mine["counters"]["lost_segments"] == 0
    assert "no-such-comm" in mine["command"][0]
    text = run("status").stdout
    assert f"monitor {command.pid} " in text


def test_nothing_lost_is_no_fault_for_strict() -> None:
    assert run("monitor", "--strict", "--", *conversation()).returncode == 0


def test_the_demo_is_watched_to_its_end() -> None:
    result = run("demo", "--pace", "0")
    assert result.returncode == 0, result.stderr
    for word in ("sign-in", "presence", "invite", "message", "typing", "direct", "sign-out"):
        assert word in result.stdout
    assert "complete" in result.stdout
    summary = SUMMARY.search(result.stderr)
    assert summary
    assert summary[5] == "0"
