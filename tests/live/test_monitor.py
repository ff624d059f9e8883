"""The command `streamtap monitor` on real traffic: what a person runs."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Command
from helpers.live import (
    SRC,
    Puppet,
    eventually,
    interpreter,
    is_in_kernel,
    join,
    leave,
    say,
)

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Monitor = Callable[..., Command]
ENV = {**os.environ, "PYTHONPATH": str(SRC)}


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    """Starts `streamtap monitor`, attached when this returns."""
    made: list[Command] = []

    def start(*words: str, env: dict[str, str] | None = None, **options: Any) -> Command:
        command = Command(tmp_path, "monitor", *words, env={**ENV, **(env or {})}, **options)
        made.append(command)
        eventually(lambda: command.is_attached, "the monitor is attached")
        return command

    yield start
    for command in made:
        command.__exit__()


def records(command: Command) -> list[dict[str, Any]]:
    """What it has written so far as JSON lines; a line that is not whole yet is left out."""
    return [
        json.loads(line) for line in command.stdout.splitlines(keepends=True) if line[-1] == "\n"
    ]


def of(command: Command, event: str) -> list[dict[str, Any]]:
    return [record for record in records(command) if record["event"] == event]


def held_by(*pids: int) -> list[tuple[str, int]]:
    """The programs, maps and links that processes hold in the kernel."""
    found = []
    for pid in pids:
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            lines = re.findall(r"^(prog|map|link)_id:\s*(\d+)$", path.read_text(), re.MULTILINE)
            found += [(kind, int(number)) for kind, number in lines]
    return found


def holder_of(command: Command) -> int:
    (pid,) = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    return int(pid)


def gone(held: list[tuple[str, int]]) -> None:
    assert len(held) > 20
    eventually(
        lambda: not any(is_in_kernel(kind, number) for kind, number in held),
        "programs, maps and links are gone",
    )


def talk(client: Puppet, server: Puppet) -> None:
    join(client, server)
    say(client, server, b"question")
    say(server, client, b"the answer")
    leave(client, server)


@pytest.mark.parametrize("variant", ["dynptr", "scratch"])
def test_a_program_is_told_from_its_first_byte_to_its_certificate(
    variant: str, program: Path, puppet: Start, server: Puppet, monitor: Monitor
) -> None:
    command = monitor(str(program), "--json", env={"STREAMTAP_CALLOUTS": variant})
    client = puppet(program)
    talk(client, server)
    eventually(lambda: of(command, "flow.closed"), "the flow is closed")
    command.send(signal.SIGINT)
    assert command.wait() == 0
    (opened,), (closed,) = of(command, "flow.opened"), of(command, "flow.closed")
    assert opened["app"]["path"] == str(program)
    assert opened["app"]["pid"] == client.pid
    assert opened["app"]["filter"] == program.name
    assert (opened["role"], opened["midstream"]) == ("client", False)
    assert [(one["direction"], one["bytes"]) for one in of(command, "data")] == [
        ("sent", 8),
        ("received", 10),
    ]
    assert (closed["sent_total"], closed["received_total"]) == (8, 10)
    assert (closed["missing"], closed["complete"], closed["reason"]) == (0, True, "fin")
    numbers = [record["number"] for record in records(command)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "1 flow" in command.stderr


@pytest.mark.parametrize("option", ["--pid", "--comm", "--uid", "--cmdline", "--exe"])
def test_every_scope_can_be_written_down(
    option: str, program: Path, puppet: Start, server: Puppet, monitor: Monitor
) -> None:
    client, uid = puppet(program), 63_000 + os.getpid() % 1000
    client.do("os.setuid(uid)", uid=uid)
    value = {
        "--pid": str(client.pid),
        "--comm": program.name,
        "--uid": str(uid),
        "--cmdline": f"^{re.escape(str(program))} ",
        "--exe": str(program),
    }[option]
    command = monitor(option, value, "--json", "--content", "full")
    other = puppet()
    talk(other, server)
    talk(client, server)
    eventually(lambda: of(command, "flow.closed"), "the flow is closed")
    command.send(signal.SIGINT)
    assert command.wait() == 0
    assert {one["app"]["pid"] for one in records(command) if "flow" in one} == {client.pid}
    assert [one.get("content") for one in of(command, "data")] == ["question", "the answer"]
    assert [one["complete"] for one in of(command, "flow.closed")] == [True]


def test_a_monitor_killed_in_the_middle_leaves_nothing_attached(
    client: Puppet, server: Puppet, monitor: Monitor
) -> None:
    command = monitor("--pid", str(client.pid), "--json")
    join(client, server)
    say(client, server, b"watched")
    held = held_by(command.pid, holder_of(command))
    command.send(signal.SIGKILL)
    command.wait()
    gone(held)
    say(client, server, b"alone")
    leave(client, server)


def test_a_monitor_whose_reader_goes_away_leaves_nothing_attached(
    client: Puppet, server: Puppet, monitor: Monitor
) -> None:
    command = monitor("--pid", str(client.pid), "--json", stdout=subprocess.PIPE)
    held = held_by(command.pid, holder_of(command))
    assert command.process.stdout
    command.process.stdout.close()
    talk(client, server)
    command.wait()
    gone(held)
    assert "Traceback" not in command.stderr


def test_a_monitor_that_lost_data_says_so_and_strict_makes_it_an_error(
    client: Puppet, server: Puppet, monitor: Monitor
) -> None:
    """Stopped by a signal while 64 MiB pass: more than the ring can hold."""
    command = monitor("--pid", str(client.pid), "--json", "--content", "full", "--strict")
    join(client, server)
    command.send(signal.SIGSTOP)
    server.begin("discard(s)")
    client.do("for i in range(64): s.sendall(b'l' * (1 << 20))\ns.shutdown(socket.SHUT_WR)")
    assert server.result() == 64 << 20
    server.do("s.close()")
    client.do("s.close()")
    command.send(signal.SIGCONT)
    eventually(lambda: of(command, "flow.closed"), "the flow is closed")
    command.send(signal.SIGINT)
    assert command.wait() == 8
    (closed,) = of(command, "flow.closed")
    assert closed["sent_total"] == 64 << 20
    assert closed["sent"] + closed["missing"] == 64 << 20
    assert closed["complete"] is False
    assert sum(gap["length"] for gap in of(command, "stream.gap")) == closed["missing"]


def test_a_command_passes_its_code_on_and_its_output_stays_out_of_the_records(
    server: Puppet, tmp_path: Path
) -> None:
    host, port = server.do("(listener := listen()).getsockname()")
    source = (
        "import socket, sys; print('not a record'); "
        f"s = socket.create_connection(({host!r}, {port})); s.sendall(b'hello'); sys.exit(42)"
    )
    words = ("monitor", "--json", "--", interpreter(), "-s", "-S", "-P", "-c", source)
    with Command(tmp_path, *words, env=ENV) as command:
        assert server.do("receive(listener.accept()[0], 100)") == b"hello"
        assert command.wait() == 42
        (closed,) = of(command, "flow.closed")
        assert (closed["sent_total"], closed["complete"]) == (5, True)
        assert "not a record" in command.stderr


def test_two_monitors_at_once_tell_the_same(
    client: Puppet, server: Puppet, monitor: Monitor
) -> None:
    commands = [monitor("--pid", str(client.pid), "--json") for _ in range(2)]
    talk(client, server)
    for command in commands:
        eventually(lambda one=command: of(one, "flow.closed"), "the flow is closed")  # type: ignore[misc]
        command.send(signal.SIGINT)
        assert command.wait() == 0
        (closed,) = of(command, "flow.closed")
        assert (closed["sent_total"], closed["received_total"]) == (8, 10)
        assert closed["complete"] is True
