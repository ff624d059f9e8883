"""The verbs on filters, sessions and the service: with a service, and without one."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helpers.commands import Command, run
from helpers.control import Running, lines_of
from helpers.live import eventually
from helpers.records import message, opened, record
from streamtap import __version__
from streamtap.capture.inspect import LiveFlow
from streamtap.errors import AlreadyExists, PermissionMissing
from streamtap.flows.scope import Scope
from streamtap.service.protocol import (
    AddFilters,
    Attach,
    DeleteFilters,
    Disable,
    Enable,
    SessionInfo,
    Stop,
    TraceStart,
)
from streamtap.service.state import Filter, Recorded

FILTER = Filter(
    name="chat",
    scope=Scope("exe", "/usr/bin/env", given="env", name="chat", path="/usr/bin/env"),
    bit=0,
    content="meta",
)
SESSION = Recorded(name="chat", selection=("notify",), outputs=("/var/tmp/chat.jsonl",))
INFO = SessionInfo(
    name="chat",
    kind="recorded",
    running=True,
    user="alice",
    uid=1000,
    selection=("notify",),
    outputs=SESSION.outputs,
    records=7,
)
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may change the state")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folders of the test's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what in ("STATE", "RUN", "BPF", "UNIT"):
            monkeypatch.setenv(f"STREAMTAP_{what}_DIR", str(folder / what.lower()))
        (folder / "unit").mkdir()
        yield folder


@pytest.fixture
def running(places: Path) -> Iterator[Running]:
    one = Running(places / "run" / "control.sock")
    try:
        yield one
    finally:
        one.close()


# --- without a service ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["stop"], ["trace", "rt"], ["trace", "rt", "--json", "all"]])
def test_what_needs_a_service_says_that_there_is_none(places: Path, words: list[str]) -> None:
    result = run(*words)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr == (
        "streamtap: error: the service is not running\nhint: sudo streamtap start\n"
    )


@needs_root
def test_sessions_can_be_defined_while_no_service_runs(places: Path) -> None:
    result = run("trace", "start", "chat", "notify@info", "--limit", "64MiB", "--keep", "2")
    assert result.returncode == 0, result.stderr
    assert "as soon as the service runs" in result.stderr
    again = run("trace", "start", "chat")
    assert again.returncode == 7
    (session,) = json.loads(run("trace", "list", "--json").stdout)
    assert (session["name"], session["running"]) == ("chat", False)
    assert session["outputs"] == [str(places / "state" / "recordings" / "chat.jsonl")]
    assert "stopped" in run("trace", "list").stdout
    stopped = run("trace", "stop", "chat")
    assert (stopped.returncode, stopped.stdout.split()[:2]) == (0, ["session", "chat"])
    assert run("trace", "stop", "chat").returncode == 6
    assert json.loads(run("trace", "list", "--json").stdout) == []


BAD_SESSIONS = {
    "a limit that holds nothing": (["--limit", "1"], "1 MiB at least"),
    "a limit that no disk has": (["--limit", "99999T"], "8 PiB at most"),
    "more files than can be kept": (["--keep", "10001"], "10000 are the most"),
    "an empty word": ([""], "COMPONENT[:FLAG"),
    "too many words": (["notify"] * 65, "64 are the most"),
    "too many files": ([f"-o{n}.jsonl" for n in range(17)], "16 are the most"),
    "a file that is all ending": (["-o", ".jsonl"], "FILE.jsonl and FILE.sqlite"),
    "a file twice": (["-o", "a.jsonl", "-o", "./a.jsonl"], "named twice"),
    "a file that rotation makes": (["-o", "a.jsonl", "-o", "a.1.jsonl"], "rotation"),
}


@needs_root
@pytest.mark.parametrize("served", [False, True], ids=["alone", "served"])
def test_a_session_that_could_not_record_is_refused_in_plain_words(
    served: bool, places: Path
) -> None:
    running = Running(places / "run" / "control.sock") if served else None
    try:
        for what, (words, told) in BAD_SESSIONS.items():
            if running is not None and what in ("a file twice", "a file that rotation makes"):
                continue  # decided by the service itself
            result = run("trace", "start", "bad", *words)
            assert (result.returncode, result.stdout) == (2, ""), what
            assert told in result.stderr
            assert "`" not in result.stderr, what  # no word of how requests are made
    finally:
        if running is not None:
            running.close()
    assert not (places / "state" / "sessions.json").exists()


@needs_root
@pytest.mark.parametrize("name", ["chat.jsonl", "link/chat.jsonl", "link.jsonl", "chat.7.jsonl"])
def test_two_sessions_never_share_a_file(name: str, places: Path) -> None:
    (places / "link").symlink_to(places)
    (places / "link.jsonl").symlink_to(places / "chat.jsonl")
    assert run("trace", "start", "first", "-o", str(places / "chat.jsonl")).returncode == 0
    result = run("trace", "start", "second", "-o", str(places / name))
    assert (result.returncode, result.stdout) == (7, "")
    assert "session first" in result.stderr
    # Whichever comes first.
    assert run("trace", "start", "third", "-o", str(places / "a.1.jsonl")).returncode == 0
    assert run("trace", "start", "fourth", "-o", str(places / "a.jsonl")).returncode == 7
    assert run("trace", "start", "fifth", "-o", str(places / "a.1.sqlite")).returncode == 0


@needs_root
def test_filters_that_are_not_there_are_told_so(places: Path) -> None:
    assert json.loads(run("list", "--json").stdout) == []
    assert run("list").stderr == "streamtap: no filters\n"
    for words in (["delcallouts", "chat"], ["enable", "chat"], ["delcallouts", "--comm", "x"]):
        result = run(*words)
        assert result.returncode == 6, result.stderr
        assert "streamtap list" in result.stderr
    dashed = run("delcallouts", "--", "-x")
    assert (dashed.returncode, "no filter -x" in dashed.stderr) == (6, True)
    assert run("trace", "start", "a", "--filter", "chat").returncode == 6


DAMAGE = {
    "one name twice": ({"name": "a", "bit": 0}, {"name": "a", "bit": 1}),
    "one bit twice": ({"name": "a", "bit": 0}, {"name": "b", "bit": 0}),
    "a bit that is none": ({"name": "a", "bit": 64},),
    "a negative bit": ({"name": "a", "bit": -1},),
    "no name": ({"name": "", "bit": 0},),
}


@needs_root
@pytest.mark.parametrize("filters", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("words", [["disable", "a"], ["start"], ["start", "--foreground"]])
def test_damage_to_the_stored_filters_is_told_with_the_file(
    places: Path, words: list[str], filters: Sequence[dict[str, Any]]
) -> None:
    kept = places / "state" / "filters.json"
    kept.parent.mkdir()
    scope = {"kind": "comm", "value": "chat", "given": "chat"}
    made = [one | {"scope": scope} for one in filters]
    kept.write_text(json.dumps({"version": 1, "filters": made}))
    result = run(*words)
    assert result.returncode == 1, result.stderr
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"streamtap: error: {kept} is damaged: ")
    assert hint.startswith("hint: mend it, or ")


# --- with a service ------------------------------------------------------------------------------


def test_filters_are_added_by_the_service(running: Running, places: Path) -> None:
    running.service.answers = {"add_filters": [FILTER]}
    result = run("addcallouts", "env", "--name", "chat", "--content", "meta")
    assert (result.returncode, result.stdout) == (0, "added chat: exe /usr/bin/env\n")
    assert result.stderr == "", "nothing is disabled"
    (asked,) = (one for one in running.service.handled if isinstance(one, AddFilters))
    (new,) = asked.filters
    assert (new.kind, new.given, new.name, new.content) == ("exe", "env", "chat", "meta")
    assert os.path.isabs(new.path)
    assert not asked.temporary
    row = json.loads(run("addcallouts", "env", "--json").stdout)[0]
    assert (row["name"], row["scope"], row["enabled"]) == ("chat", "exe /usr/bin/env", True)


def test_an_error_of_the_service_is_told_with_its_code_and_hint(running: Running) -> None:
    running.service.answers = {"add_filters": AlreadyExists("there is a filter env", "see: list")}
    result = run("addcallouts", "env")
    assert result.returncode == 7
    assert result.stderr == "streamtap: error: there is a filter env\nhint: see: list\n"
    running.service.answers = {"disable": PermissionMissing("only root may ask", "run with sudo")}
    result = run("disable")
    assert (result.returncode, "hint: run with sudo" in result.stderr) == (4, True)


@pytest.mark.parametrize("words", [["chat"], ["/usr/bin/env"], ["--exe", "env"], ["chat", "env"]])
def test_a_filter_is_removed_by_its_name_or_by_its_scope(
    running: Running, words: list[str]
) -> None:
    running.service.answers = {"list": [FILTER], "delete_filters": [FILTER]}
    result = run("delcallouts", *words)
    assert (result.returncode, result.stdout) == (0, "removed chat: exe /usr/bin/env\n")
    assert running.service.handled[-1] == DeleteFilters(
        id=running.service.handled[-1].id, version=__version__, names=("chat",)
    )


def test_filters_are_listed(running: Running) -> None:
    running.service.answers = {"list": [FILTER]}
    head, row = run("list").stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "SCOPE", "PROTOCOL", "CONTENT", "ADDED"]
    assert row.split()[:4] == ["chat", "enabled", "exe", "/usr/bin/env"]
    assert json.loads(run("list", "--json").stdout)[0]["content"] == "meta"


def test_one_filter_or_all_can_be_enabled_and_disabled(running: Running) -> None:
    assert run("disable").stdout == "disabled everything\n"
    result = run("enable", "chat")
    assert (result.returncode, result.stderr.count("\n")) == (6, 2)
    first, second = running.service.handled
    assert isinstance(first, Disable)
    assert first.name is None
    assert isinstance(second, Enable)
    assert second.name == "chat"


def test_a_session_is_started_by_the_service_with_whole_paths(running: Running) -> None:
    running.service.answers = {"trace_start": SESSION, "sessions": [INFO]}
    result = run("trace", "start", "chat", "notify", "-o", "chat.jsonl", "--limit", "2G")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "session chat: /var/tmp/chat.jsonl\n"
    asked = running.service.handled[0]
    assert isinstance(asked, TraceStart)
    assert asked.outputs == (os.path.abspath("chat.jsonl"),)
    assert (asked.limit_bytes, asked.selection) == (2_000_000_000, ("notify",))


def test_a_session_that_cannot_record_says_so_when_it_is_started(running: Running) -> None:
    failed = msgspec.structs.replace(INFO, running=False, error="/a.jsonl: Is a directory")
    running.service.answers = {"trace_start": SESSION, "sessions": [failed]}
    result = run("trace", "start", "chat", "-o", "chat.jsonl")
    assert result.returncode == 1
    error, hint = result.stderr.splitlines()
    assert error == "streamtap: error: session chat does not record: /a.jsonl: Is a directory"
    assert "trace stop chat" in hint


def test_sessions_are_listed_with_what_became_of_their_records(running: Running) -> None:
    running.service.answers = {"sessions": [INFO]}
    head, row = run("trace", "list").stdout.splitlines()
    assert head.split()[:5] == ["NAME", "KIND", "STATE", "USER", "RECORDS"]
    assert row.split()[:5] == ["chat", "recorded", "running", "alice", "7"]


def test_status_is_that_of_the_service(running: Running) -> None:
    text = run("status")
    assert text.returncode == 0
    assert text.stdout.startswith(f"service {__version__}, keeper {os.getpid()}, no parser\n")
    told = json.loads(run("status", "--json").stdout)
    assert (told["running"], told["pid"]) == (True, os.getpid())


def test_flows_are_those_of_the_service(running: Running) -> None:
    flow = LiveFlow(
        *("1f", 7, "curl", 0, "127.0.0.1:1", "127.0.0.1:2", "client", "established", "full"),
        *(1, 2, 0, False, None),
    )
    running.service.flows = [flow]
    assert json.loads(run("flows", "--json").stdout)[0]["flow"] == "1f"
    assert "curl[7]" in run("flows").stdout


def test_a_service_that_runs_is_not_started_again(running: Running) -> None:
    for words in (["start"], ["start", "--foreground"]):
        result = run(*words)
        assert result.returncode == 7
        assert "runs already" in result.stderr


def test_cleanup_takes_nothing_away_from_a_service(running: Running) -> None:
    assert run("cleanup").returncode == 7
    assert running.served.path.is_socket()


def test_stop_waits_for_the_end_of_the_service(running: Running, tmp_path: Path) -> None:
    with Command(tmp_path, "stop") as command:
        running.until(lambda: running.service.handled)
        assert isinstance(running.service.handled[0], Stop)
        running.settle()
        assert command.process.poll() is None
        running.service.clients[0].close()
        assert command.wait() == 0
    assert command.stdout == "stopped; callouts and filters stay\n"


# --- following -----------------------------------------------------------------------------------


def test_records_are_followed_as_a_monitor_shows_them(running: Running, tmp_path: Path) -> None:
    first, second = record(opened()), record(message())
    words = ("trace", "rt", "all", "--json", "--last", "2m", "-c", "2", "--filter", "chat")
    with Command(tmp_path, *words) as command:
        running.stream.sendall(lines_of((1, first), (5, second), (6, first)))
        assert command.wait() == 0
    shown = [json.loads(line) for line in command.stdout.splitlines()]
    assert [one["number"] for one in shown] == [1, 5]
    assert "streamtap: 2 records" in command.stderr
    assert "lost: 3 records that did not come in time" in command.stderr
    asked = running.service.handled[0]
    assert isinstance(asked, Attach)
    assert (asked.last_s, asked.content, asked.filters) == (120, "meta", ("chat",))


def test_following_ends_by_a_signal_or_when_the_service_ends(
    running: Running, tmp_path: Path
) -> None:
    with Command(tmp_path, "trace", "rt") as command:
        assert running.stream
        command.send(signal.SIGINT)
        assert command.wait() == 0
    with Command(tmp_path, "trace", "rt") as command:
        running.until(lambda: len(running.service.streams) == 2)
        running.service.clients[-1].close()
        assert command.wait() == 3
    assert "the service has ended the session" in command.stderr


def test_a_duration_in_which_nothing_came_is_told_by_the_exit_code(running: Running) -> None:
    assert run("trace", "rt", "--duration", "0.1").returncode == 124


def test_missed_records_fail_a_strict_session(running: Running, tmp_path: Path) -> None:
    with Command(tmp_path, "trace", "rt", "-c", "1", "--strict") as command:
        running.stream.sendall(lines_of((3, record(opened()))))
        assert command.wait() == 8


def test_what_is_followed_can_be_recorded_and_narrowed(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "followed.jsonl"
    words = ("trace", "rt", "-o", str(path), "--port", "1", "--duration", "1")
    with Command(tmp_path, *words) as command:
        running.stream.sendall(lines_of((1, record(opened()))))
        eventually(lambda: command.process.poll() is not None, "ended")
    assert path.read_text() == ""
