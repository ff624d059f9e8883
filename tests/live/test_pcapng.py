"""`monitor -w` on real traffic: what the programs said is what Wireshark, or anybody, reads."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from helpers import pcapng
from helpers.commands import Command
from helpers.live import Puppet, eventually, join, leave, say

pytestmark = pytest.mark.root


def write_packets(folder: Path, path: Path, *words: str) -> Command:
    command = Command(folder, "monitor", "-w", str(path), *words)
    eventually(lambda: command.is_attached, "the monitor is attached")
    return command


def followed(path: Path) -> tuple[bytes, bytes]:
    """What client and server said, by Wireshark."""
    words = ["tshark", "-r", str(path), "-q", "-z", "follow,tcp,raw,0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.split("\n")
    lines = lines[lines.index("Filter: tcp.stream eq 0") + 3 : -2]
    sides = (
        [line for line in lines if line[0] != "\t"],
        [line for line in lines if line[0] == "\t"],
    )
    client, server = (bytes.fromhex("".join(side)) for side in sides)
    return client, server


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("both", [False, True], ids=["one end", "both ends"])
def test_wireshark_reads_what_was_said(
    client: Puppet, server: Puppet, tmp_path: Path, host: str, both: bool
) -> None:
    path = tmp_path / "talk.pcapng"
    scopes = [str(puppet.pid) for puppet in (client, server)[: 2 if both else 1]]
    words = [word for pid in scopes for word in ("--pid", pid)]
    question, answer = os.urandom(300_000), os.urandom(1234)
    with write_packets(tmp_path, path, *words, "--content", "full") as command:
        join(client, server, host)
        server.begin("receive(s, length)", length=len(question))
        client.do("s.sendall(data)", data=question)
        assert server.result() == question
        say(server, client, answer)
        say(client, server, b"thanks")
        leave(client, server)
        command.send(signal.SIGINT)
        assert command.wait() == 0
        assert ", 0 gaps, 0 drops" in command.stderr
        assert command.stdout == ""
    assert followed(path) == (question + b"thanks", answer)
    fields = ("-T", "fields", "-e", "tcp.analysis.flags", "-e", "frame.comment")
    shown = subprocess.run(
        ["tshark", "-r", str(path), *fields], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert f"[{client.pid}]" in shown
    assert [line for line in shown.splitlines() if line.split("\t")[0]] == []
    pids = {one.option(8) for one in pcapng.packets(path.read_bytes())}
    assert {int.from_bytes((pid or b"")[:4], "little") for pid in pids} == {int(p) for p in scopes}


def test_without_content_the_packets_hold_headers_alone(
    client: Puppet, server: Puppet, tmp_path: Path
) -> None:
    path = tmp_path / "talk.pcapng"
    with write_packets(tmp_path, path, "--pid", str(client.pid)) as command:
        join(client, server)
        say(client, server, b"a secret of the client")
        leave(client, server)
        command.send(signal.SIGINT)
        assert command.wait() == 0
        assert f"{path}: headers only; --content full writes what was said too" in command.stderr
    data = path.read_bytes()
    assert b"secret" not in data
    assert [one.length for one in pcapng.packets(data) if one.length] == [22]


def test_a_reader_of_packets_that_goes_away_ends_the_monitor_quietly(
    client: Puppet, server: Puppet, tmp_path: Path
) -> None:
    words = ("-w", "-", "--content", "full", "--pid", str(client.pid))
    with Command(tmp_path, "monitor", *words, stdout=subprocess.PIPE) as command:
        assert command.process.stdout
        assert command.process.stdout.read(4) == b"\n\r\r\n"  # before anything is said
        command.process.stdout.close()
        assert command.wait() == 0
        assert "error" not in command.stderr
