"""The two processes of `streamtap monitor`: one has the rights, the other reads the traffic."""

import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import DEADLINE_S, STREAMTAP, Command, conversation
from helpers.live import SRC, eventually, is_in_kernel
from helpers.parsers import descriptors_of, status_of
from streamtap.capture.rights import CAPABILITIES
from streamtap.service import landlock, seccomp

pytestmark = pytest.mark.root
Monitor = Callable[..., Command]
ENV = {**os.environ, "PYTHONPATH": str(SRC)}
NEEDED = sum(1 << number for number in CAPABILITIES)
DAC_OVERRIDE = 1 << 1


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    """Starts `streamtap monitor` on a command that speaks and stays, attached when this returns."""
    made: list[Command] = []

    def start(*words: str, command: list[str] | None = None, **options: Any) -> Command:
        argv = command or conversation(stay=True)
        made.append(Command(tmp_path, "monitor", *words, "--", *argv, env=ENV, **options))
        eventually(lambda: made[-1].is_attached, "the monitor is attached")
        return made[-1]

    yield start
    for command in made:
        command.__exit__()


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


def rights(pid: int) -> set[int]:
    """Of the three sets of capabilities."""
    status = status_of(pid)
    return {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")}


def of_bpf(pid: int) -> list[str]:
    """What a process has of the kernel's."""
    return sorted(what for what, _ in descriptors_of(pid) if "bpf" in what)


class Held:
    """The processes of a monitor, and what they have in the kernel; to be gone later."""

    def __init__(self, command: Command) -> None:
        self.reader = command.pid
        self.holder = child_of(command.pid)
        self.command = child_of(self.holder)
        self._kernels = [
            (kind, int(number))
            for path in Path(f"/proc/{self.holder}/fdinfo").iterdir()
            for kind, number in re.findall(
                r"^(prog|map|link)_id:\s*(\d+)$", path.read_text(), re.MULTILINE
            )
        ]
        assert len(self._kernels) > 20

    def gone(self) -> None:
        for pid in (self.reader, self.holder, self.command):
            eventually(lambda one=pid: is_gone(one), "the process is gone")  # type: ignore[misc]
        eventually(
            lambda: not any(is_in_kernel(kind, number) for kind, number in self._kernels),
            "programs, maps and links are gone",
        )


def test_what_reads_the_traffic_has_no_rights_and_what_has_rights_reads_none(
    monitor: Monitor,
) -> None:
    command = monitor("--json")
    eventually(lambda: '"flow.opened"' in command.stdout, "it reads")
    held = Held(command)
    status = status_of(held.reader)
    assert rights(held.reader) == {0}
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == ("2" if seccomp.program(False, os.uname().machine) else "0")
    assert of_bpf(held.reader) == ["anon_inode:bpf-map"] * 2
    assert all(mask & NEEDED == NEEDED for mask in rights(held.holder))
    assert rights(held.command) == rights(os.getpid())
    mapped = Path(f"/proc/{held.holder}/maps").read_text().count("bpf-map")
    assert mapped == 1  # the settings: no ring
    state = next(line for line in map(json.loads, command.stdout.splitlines()) if "hooks" in line)
    assert state["confined"][:2] == ["no privileged user", "no capability"]
    landlocked = f"Landlock ABI {landlock.version()}" if landlock.version() else "no Landlock"
    assert landlocked in state["confined"]
    command.send(signal.SIGINT)
    assert command.wait() == 0
    held.gone()


OUTPUTS = {
    "line": [],
    "json": ["--json"],
    "wpp": ["-o", "wpp"],
    "jsonl": ["-o", "records.jsonl"],
    "sqlite": ["-o", "records.sqlite"],
    "-w": ["-w", "packets.pcapng"],
    "-w -": ["-w", "-"],
    "extract": ["--content", "full", "--extract", "said"],
    "all": [
        *("--json", "-o", "records.jsonl", "-o", "records.sqlite", "-w", "packets.pcapng"),
        *("--content", "full", "--extract", "said"),
    ],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_output_is_written_by_a_process_without_rights(kind: str, tmp_path: Path) -> None:
    words, folder = OUTPUTS[kind], tmp_path / "made"
    folder.mkdir()
    with Command(tmp_path, "monitor", *words, "--", *conversation(3), env=ENV, cwd=folder) as one:
        assert one.wait() == 3
        assert "error" not in one.stderr
        assert "2 flows, 20 bytes" in one.stderr
    made = {path.name: path for path in folder.rglob("*")}
    assert all((path.stat().st_uid, path.stat().st_gid) == (0, 0) for path in made.values())
    if "records.jsonl" in words:
        events = [
            json.loads(line)["event"] for line in made["records.jsonl"].read_text().splitlines()
        ]
        assert events.count("flow.closed") == 2
    if "records.sqlite" in words:
        with sqlite3.connect(made["records.sqlite"]) as database:
            found = database.execute("SELECT count(*) FROM records WHERE event = 'flow.closed'")
            assert found.fetchone() == (2,)
        database.close()
    if "packets.pcapng" in words:
        assert made["packets.pcapng"].read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
    if "said" in words:
        index = [json.loads(line) for line in made["index.jsonl"].read_text().splitlines()]
        assert 10 in {entry["length"] for entry in index}
        assert all(made[entry["file"]].stat().st_size == entry["length"] for entry in index)
    if kind in ("line", "json", "wpp", "-w -", "all"):
        assert (tmp_path / "0.stdout").stat().st_size > 100
    expected = {word for word in words if "." in word} | ({"said"} if "said" in words else set())
    assert {path.name for path in folder.iterdir()} == expected  # no log is left


def test_files_may_be_made_only_where_the_outputs_are(monitor: Monitor, tmp_path: Path) -> None:
    command = monitor("-o", str(tmp_path / "records.sqlite"))
    held = Held(command)
    status = status_of(held.reader)
    assert rights(held.reader) == {0}
    assert set(status["Uid"].split()) == {"0"}
    assert of_bpf(held.reader) == ["anon_inode:bpf-map"] * 2
    command.send(signal.SIGINT)
    assert command.wait() == 0
    held.gone()


def test_in_a_folder_of_another_user_one_right_stays(monitor: Monitor, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    os.chown(home, 65534, 65534)
    command = monitor("-o", str(home / "records.sqlite"), "-o", "json")
    held = Held(command)
    status = status_of(held.reader)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == DAC_OVERRIDE
    assert "no capability but CAP_DAC_OVERRIDE" in command.stdout
    command.send(signal.SIGINT)
    assert command.wait() == 0
    assert os.listdir(home) == ["records.sqlite"]
    held.gone()


def test_who_is_not_root_drops_the_three_rights_too(tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv here")
    caps = "-all,+bpf,+net_admin,+perfmon"
    words = [
        *(setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups"),
        *("--inh-caps", caps, "--ambient-caps", caps),
    ]
    if subprocess.run([*words, *STREAMTAP, "--version"], env=ENV, check=False).returncode:
        pytest.skip("another user cannot run this Python")
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [*words, *STREAMTAP, "monitor", "--json", "--", "sleep", "1000"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=ENV,
        )  # fmt: skip
    try:
        errors = tmp_path / "err"
        eventually(lambda: "streamtap: watching" in errors.read_text(), "it is attached")
        status = status_of(process.pid)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        holder = child_of(process.pid)
        assert int(status_of(holder)["CapEff"], 16) == NEEDED
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_of_a_monitor_that_is_ended_nothing_stays(monitor: Monitor, number: signal.Signals) -> None:
    command = monitor("--json")
    held = Held(command)
    command.send(number)
    code = command.wait()
    assert code == {signal.SIGINT: 0, signal.SIGKILL: -9}.get(number, 128 + number)
    held.gone()


def test_a_holder_that_is_killed_is_one_line_and_nothing_stays(monitor: Monitor) -> None:
    command = monitor("--json")
    held = Held(command)
    os.kill(held.holder, signal.SIGKILL)
    assert command.wait() == 1
    assert command.stderr.splitlines()[1:] == [
        "streamtap: error: the process that holds the callouts has ended"
    ]
    held.gone()


def test_signals_are_for_the_reader_alone(monitor: Monitor) -> None:
    """And for the command, which is in the same group of processes."""
    command = monitor("--json", command=["sleep", "1000"], start_new_session=True)
    held = Held(command)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(held.holder, number)
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait() == 0
    assert "Traceback" not in command.stderr
    assert command.stderr.splitlines()[-1].startswith("streamtap: 0 flows")
    held.gone()


def test_a_terminal_that_is_closed_ends_everything(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    errors = tmp_path / "errors"
    argv = [*STREAMTAP, "monitor", "--json", "-o", str(tmp_path / "r.jsonl")]
    take = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    take += "os.execv(sys.argv[1], sys.argv[1:])"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [STREAMTAP[0], "-c", take, *argv, "--", *conversation(stay=True)],
            stdin=theirs, stdout=theirs, stderr=stderr, env=ENV,
        )  # fmt: skip
    os.close(theirs)
    try:
        eventually(lambda: b"streamtap: watching" in errors.read_bytes(), "it is attached")
        command = Command.__new__(Command)
        command.pid = process.pid
        held = Held(command)
        os.close(ours)
        assert process.wait(DEADLINE_S) in (1, 128 + signal.SIGHUP)
        held.gone()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--", "/not/there"], 127, "cannot run /not/there"),
        (["--", "/etc"], 126, "cannot run /etc"),
        ([f"--comm=x{number}" for number in range(65)], 2, "65 scopes"),
    ],
)
def test_what_fails_in_the_holder_is_told_as_ever(
    words: list[str], code: int, error: str, tmp_path: Path
) -> None:
    with Command(tmp_path, "monitor", *words, env=ENV) as command:
        assert command.wait() == code
        assert command.stderr.splitlines()[0].startswith(f"streamtap: error: {error}")


def test_callouts_that_the_kernel_refuses_are_told_with_its_reason(tmp_path: Path) -> None:
    env = {**ENV, "STREAMTAP_CALLOUTS": "unheard-of"}
    with Command(tmp_path, "monitor", "--", "true", env=env) as command:
        assert command.wait() == 2
        (line,) = command.stderr.splitlines()
        assert line.startswith("streamtap: error: no callouts 'unheard-of'")
