"""The service at its limits: many flows, full disks, damaged state, clients of every kind."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.live import PUPPET, Puppet, eventually, join, leave, say
from helpers.places import environment_of, place
from helpers.services import Service, is_alive
from streamtap.service.client import new_filter
from streamtap.service.paths import Paths
from streamtap.service.registry import Registry
from streamtap.service.state import Filters, Recorded, Sessions, load, save

pytestmark = pytest.mark.root

FLOWS = 10_000
ASK_S = 0.1  # between two requests: a user may not ask often
SMALL_DISK = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert not libc.unshare(0x20000)  # CLONE_NEWNS: nobody else sees the mount
assert not libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
assert not libc.mount(b"none", os.fsencode({folder!r}), b"tmpfs", 0, b"size=1m")
"""
# Each verb as nobody, in a child after everything is imported: the files of an interpreter may be
# readable for root alone.
AS_NOBODY = """
import importlib, io, json, os, pkgutil, sys, traceback
import streamtap
for module in pkgutil.walk_packages(streamtap.__path__, "streamtap."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from streamtap.service.confine import preload
preload()
from streamtap.cli import main
for words in json.load(sys.stdin):
    outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
    child = os.fork()
    if not child:
        code = 99
        try:
            os.dup2(outputs[0], 1)
            os.dup2(outputs[1], 2)
            os.chdir("/")
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            code = main(words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    said = [os.pread(fd, 1 << 16, 0).decode() for fd in outputs]
    print(json.dumps([os.waitstatus_to_exitcode(status), *said]), flush=True)
"""
VERBS = (
    *("addcallouts /bin/true", "delcallouts it", "delcallouts --all", "list"),
    *("enable", "disable it"),
    *("start", "stop", "restart", "status", "flows", "cleanup", "monitor /bin/true"),
    *("trace start one -o /tmp/one.jsonl", "trace stop one", "trace list", "trace rt"),
)  # fmt: skip


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    with place(tmp_path) as made:
        yield made


@pytest.fixture
def service(paths: Paths) -> Iterator[Service]:
    with Service(paths) as made:
        yield made


def streamtap(paths: Paths, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamtap", *words],
        env=environment_of(paths),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def started(paths: Paths, *words: str) -> Iterator[str]:
    """By the command, in the background; what that said."""
    done = streamtap(paths, "start", *words)
    assert done.returncode == 0, done.stderr
    try:
        yield done.stdout
    finally:
        assert streamtap(paths, "stop").returncode == 0


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# --- much ----------------------------------------------------------------------------------------


def test_ten_thousand_flows_are_listed_taken_over_and_closed(
    service: Service, program: Path, puppet: Callable[..., Puppet], tmp_path: Path
) -> None:
    wanted = FLOWS + 100
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"a process may have {hard} descriptors, {wanted} are needed")
    speaker, server = puppet(program), puppet()
    for one in (speaker, server):
        resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (wanted, hard))
    recording = tmp_path / "many.jsonl"
    with service.client() as client:
        client.add([str(program)])
        client.start_trace("many", "monitor", outputs=[recording])
        server.do("listener = listen()")
        address = server.do("listener.getsockname()")
        server.begin("accepted = [listener.accept()[0] for _ in range(flows)]", flows=FLOWS)
        speaker.do(
            "made = [connect(address) for _ in range(flows)]\n"
            "for one in made: one.sendall(b'hello')",
            address=address,
            flows=FLOWS,
        )
        server.do("sum(len(receive(one, 5)) for one in accepted)")
        listed = {one.flow for one in client.flows() if one.pid == speaker.pid}
        assert len(listed) == FLOWS
        eventually(lambda: client.status().flows == FLOWS, "all are followed", pause_s=ASK_S)
        os.kill(service.parser_pid, signal.SIGKILL)

        def taken_over() -> bool:
            status = client.status()
            return bool(status.parser_restarts and status.confined) and status.flows == FLOWS

        eventually(taken_over, "all are taken over", pause_s=ASK_S)
        speaker.do("for one in made: one.sendall(b'again')")
        server.do("sum(len(receive(one, 5)) for one in accepted)")
        # Without this they would take up the machine's ports for a minute.
        speaker.do("for one in made[:flows // 2]: reset(one)", flows=FLOWS)
        eventually(lambda: client.status().flows == FLOWS // 2, "half have ended", pause_s=ASK_S)
    assert service.stop() == 0
    speaker.do("for one in made[flows // 2:]: reset(one)", flows=FLOWS)
    lines = lines_of(recording)
    closed = [line for line in lines if line["event"] == "flow.closed"]
    # On a machine that has much else to do the recorder may have lost some, which is stated.
    holes = lines[-1]["number"] - len(lines)
    assert FLOWS - holes <= len({line["flow"] for line in closed}) <= FLOWS
    for line in closed:
        assert line["sent_total"] == 10
        assert line["sent"] + line.get("sent_counted", 0) + line["missing"] == 10, line


def test_every_session_that_may_be_stored_records_when_the_service_begins(
    paths: Paths, tmp_path: Path
) -> None:
    count = 1000
    names = [f"s{number}" for number in range(count)]
    stored = (
        Recorded(name=name, selection=(), outputs=(str(tmp_path / f"{name}.jsonl"),))
        for name in names
    )
    paths.make()
    save(paths.sessions, Sessions(sessions=tuple(stored)))
    with Service(paths) as service:
        with service.client() as client:
            assert sum(one.running for one in client.sessions()) == count
        assert service.stop() == 0
        for name in names:
            lines = lines_of(tmp_path / f"{name}.jsonl")
            assert (lines[0]["event"], lines[-1]["event"]) == ("init.started", "init.stopped")


# --- disks ---------------------------------------------------------------------------------------


def test_a_session_that_cannot_be_written_says_so_and_the_others_go_on(
    service: Service, program: Path, puppet: Callable[..., Puppet], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    speaker, server = puppet(program), puppet()
    with service.client() as client:
        client.add([str(program)])
        client.start_trace("good", outputs=[tmp_path / "good.jsonl"])
        client.start_trace("bad", outputs=[closed / "bad.jsonl"])

        def error() -> str:
            return {one.name: one.error for one in client.sessions()}["bad"]

        eventually(error, "it says so", pause_s=ASK_S)
        assert error() == f"{closed / 'bad.jsonl'}: Permission denied"
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        good = tmp_path / "good.jsonl"
        eventually(lambda: b"flow.closed" in good.read_bytes(), "the other one has it")
        states = [one for one in lines_of(good) if one["event"] == "control.state"]
        assert "Permission denied" in str(states), "and tells of it"
        dropped = {one.name: one.dropped for one in client.sessions()}
        assert dropped["good"] == 0
        eventually(
            lambda: {one.name: one.dropped for one in client.sessions()}["bad"] > 0,
            "what it did not write is counted",
            pause_s=ASK_S,
        )
        closed.chmod(0o700)

        def written() -> bool:
            client.status()  # a record
            return (closed / "bad.jsonl").exists()

        eventually(written, "it is tried again", pause_s=ASK_S)


def test_the_command_tells_at_once_that_a_session_cannot_be_written(
    service: Service, tmp_path: Path
) -> None:
    output = tmp_path / "missing" / "one.jsonl"
    done = streamtap(service.paths, "trace", "start", "one", "-o", str(output))
    assert done.returncode == 1
    assert f"{output}: No such file or directory" in done.stderr
    assert "streamtap start" not in done.stderr, "the service runs"


def test_a_session_that_begins_when_one_of_its_name_has_just_ended_records(
    service: Service, tmp_path: Path
) -> None:
    output = tmp_path / "again.jsonl"
    with service.client() as client:
        for _ in range(10):
            client.start_trace("again", "control", outputs=[output])
            client.stop_trace("again")
        client.start_trace("again", "control", outputs=[output])
        client.flows()  # a record
        eventually(lambda: output.read_bytes().count(b'"flows"') == 1, "it is recorded")
        (recorder,) = client.status().recorder_pids
        assert is_alive(recorder)


def test_a_removal_that_cannot_be_written_changes_nothing_and_says_so(
    service: Service, paths: Paths, program: Path
) -> None:
    with service.client() as client:
        client.add([new_filter("exe", str(program), name="one")])
        in_the_way = paths.state / ".filters.json.new"
        in_the_way.mkdir()
        done = streamtap(paths, "delcallouts")
        assert (done.returncode, done.stdout) == (1, "")
        assert "filters.json cannot be written" in done.stderr
        assert [one.name for one in client.filters()] == ["one"]
    in_the_way.rmdir()
    done = streamtap(paths, "delcallouts")
    assert done.returncode == 0, done.stderr
    assert service.process.wait(10) == 0
    assert not paths.bpf.exists()


def test_a_full_disk_costs_the_records_of_its_session_alone(
    paths: Paths, program: Path, puppet: Callable[..., Puppet], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    speaker, server = puppet(program), puppet()
    with (
        Service(paths, SMALL_DISK.format(folder=str(disk))) as service,
        service.client() as client,
    ):
        inside = Path(f"/proc/{service.process.pid}/root{disk}")
        filler = inside / "filler"
        filler.write_bytes(b"x" * (512 << 10))
        client.add([str(program)])
        client.start_trace("good", outputs=[tmp_path / "good.jsonl"])
        client.start_trace("full", outputs=[disk / "full.jsonl", disk / "full.sqlite"])
        join(speaker, server)

        def error() -> str:
            for _ in range(20):
                say(speaker, server, b"hello")
                say(server, speaker, b"hello yourself")
            return {one.name: one.error for one in client.sessions()}["full"]

        eventually(error, "the disk is full", pause_s=ASK_S)
        assert "No space left" in error() or "full" in error(), error()
        before = len(lines_of(inside / "full.jsonl"))
        assert before
        filler.unlink()

        def goes_on() -> bool:
            error()
            return len(lines_of(inside / "full.jsonl")) > before

        eventually(goes_on, "it goes on once there is room", pause_s=ASK_S)
        numbers = [one["number"] for one in lines_of(inside / "full.jsonl")]
        assert numbers == sorted(set(numbers))
        leave(speaker, server)
        good = tmp_path / "good.jsonl"
        eventually(lambda: b"flow.closed" in good.read_bytes(), "the other one has it all")
        assert service.stop() == 0
    numbers = [one["number"] for one in lines_of(tmp_path / "good.jsonl")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_recorder_that_hangs_holds_up_nobody(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        client.start_trace("one", outputs=[tmp_path / "one.jsonl"])
        eventually((tmp_path / "one.jsonl").exists, "it records")
        (recorder,) = client.status().recorder_pids
        os.kill(recorder, signal.SIGSTOP)
        client.stop_trace("one")
        client.start_trace("two", outputs=[tmp_path / "two.jsonl"])
        client.stop_trace("two")
        began = time.monotonic()
        assert client.status().pid == service.process.pid
        assert time.monotonic() - began < 1
        os.kill(recorder, signal.SIGCONT)
        eventually(lambda: not is_alive(recorder), "with no session left it ends")
    assert (tmp_path / "one.jsonl").read_bytes().endswith(b"}\n")
    assert service.stop() == 0


def test_a_second_service_on_the_same_callouts_is_refused(
    service: Service, paths: Paths, tmp_path: Path
) -> None:
    other = paths._replace(state=tmp_path / "other", run=tmp_path / "elsewhere")
    for words in (("start",), ("addcallouts", "--comm", "x"), ("delcallouts", "--all")):
        done = streamtap(other, *words)
        assert done.returncode == 1, (words, done.stdout)
        assert "held by another service" in done.stderr
    with service.client() as client:
        assert client.status().pid == service.process.pid


def test_a_command_line_that_takes_a_pattern_for_ever_costs_a_moment(
    service: Service, puppet: Callable[..., Puppet]
) -> None:
    slow = puppet(arguments=("-s", "-S", "-P", str(PUPPET), "b" * 60 + "!"))
    assert slow.do("1 + 1") == 2
    with service.client() as client:
        client.add([new_filter("cmdline", "(b+)+$")])
        for _ in range(3):
            assert client.status().pid == service.process.pid
    assert service.process.poll() is None, service.log


# --- what is found at the start ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["filters.json", "sessions.json"])
@pytest.mark.parametrize(
    "text", [b"{", b'{"version": 99}', b"\xff\0", b'{"filters": [1], "sessions": [1]}']
)
def test_damaged_state_is_refused_and_kept(paths: Paths, name: str, text: bytes) -> None:
    paths.make()
    file = paths.state / name
    file.write_bytes(text)
    done = streamtap(paths, "start")
    if done.returncode == 0:
        streamtap(paths, "stop")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"streamtap: error: {file} is damaged")
    assert "--force" in hint
    assert file.read_bytes() == text
    assert not paths.bpf.exists()


def test_damaged_state_is_put_aside_where_that_is_wanted(paths: Paths) -> None:
    paths.make()
    paths.filters.write_bytes(b"not JSON")
    with started(paths, "--force") as said:
        (kept,) = paths.state.glob("filters.json.damaged-*")
        assert kept.read_bytes() == b"not JSON"
        assert f"watching for 0 filters; damaged state is kept in {kept}" in said


def test_a_restart_that_would_find_damaged_state_leaves_the_service_alone(
    service: Service, paths: Paths
) -> None:
    paths.filters.write_bytes(b"not JSON")
    done = streamtap(paths, "restart")
    assert (done.returncode, "is damaged" in done.stderr) == (1, True)
    with service.client() as client:
        assert client.status().pid == service.process.pid


def test_in_the_foreground_the_first_line_says_what_is_up(paths: Paths) -> None:
    paths.make()
    paths.filters.write_bytes(b"not JSON")
    with subprocess.Popen(
        [sys.executable, "-m", "streamtap", "start", "--foreground", "--force"],
        env=environment_of(paths),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    (kept,) = paths.state.glob("filters.json.damaged-*")
    assert line == f"streamtap: watching for 0 filters; damaged state is kept in {kept}\n"


def test_what_a_dead_service_left_in_its_folder_is_in_nobodys_way(paths: Paths) -> None:
    paths.make()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(paths.control))
    paths.lock.write_text("12345\n")
    (paths.state / ".filters.json.new").write_text("half of a fi")
    with started(paths):
        second = streamtap(paths, "start")
        assert second.returncode == 7
        assert second.stderr.splitlines() == [
            "streamtap: error: the service runs already",
            "hint: see: streamtap status",
        ]
        assert streamtap(paths, "addcallouts", "/bin/true").returncode == 0
    assert not paths.control.exists()
    assert [one.name for one in load(paths.filters, Filters).filters] == ["true"]
    assert [one.name for one in paths.state.iterdir() if "new" in one.name] == []


# --- clients -------------------------------------------------------------------------------------


def test_clients_that_send_garbage_much_or_nothing_disturb_nothing(
    service: Service, program: Path, puppet: Callable[..., Puppet]
) -> None:
    speaker, server = puppet(program), puppet()
    with service.client() as client:
        client.add([str(program)])
        held = len(os.listdir(f"/proc/{service.process.pid}/fd"))
        join(speaker, server)
        clients = []
        for sent in (b"garbage\n", b"x" * (1 << 20), b"", b'{"verb": "flows"', b"\0" * 70_000):
            one = socket.socket(socket.AF_UNIX)
            one.settimeout(20)
            one.connect(str(service.paths.control))
            clients.append(one)
            try:
                one.sendall(sent)
            except ConnectionError:
                continue  # ended before it had said all
            if sent.endswith(b"\n"):
                assert b'"error"' in one.recv(1 << 16)
        with client.records() as records:
            say(speaker, server, b"hello")
            leave(speaker, server)
            found: list[str] = []

            def closed() -> bool:
                found.extend(type(one.body).__name__ for one in records.wait(0.1))
                return "FlowClosed" in found

            eventually(closed, "the connection is told of")
        for one in clients:
            one.close()

        def as_before() -> bool:
            return len(os.listdir(f"/proc/{service.process.pid}/fd")) <= held

        eventually(as_before, "nothing is held for them")
        assert client.status().parser_restarts == 0


@pytest.mark.parametrize("running", [True, False])
def test_who_may_nothing_is_told_what_is_missing_whatever_it_tries(
    paths: Paths, running: bool
) -> None:
    with Registry(paths) as registry:
        registry.add([new_filter("exe", "/bin/true", name="it")])
    if running:
        with Service(paths) as service:
            told = as_nobody(paths)
            assert service.stop() == 0
    else:
        told = as_nobody(paths)
    assert [one.name for one in load(paths.filters, Filters).filters] == ["it"]
    wrong = []
    for words, (code, stdout, stderr) in zip(VERBS, told, strict=True):
        lines = stderr.splitlines()
        right = (
            code == 4
            and not stdout
            and len(lines) == 2
            and lines[0].startswith("streamtap: error: ")
            and lines[1].startswith("hint: ")
        )
        if not right:
            wrong.append((words, code, stdout, stderr))
    assert not wrong


def as_nobody(paths: Paths) -> list[tuple[int, str, str]]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", AS_NOBODY],
        input=json.dumps([words.split() for words in VERBS]),
        env=environment_of(paths),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
