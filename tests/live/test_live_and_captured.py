"""The same conversation gives the same, live, from the packets that streamtap wrote of it, and from
what another program captured."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Command, run
from helpers.live import Puppet, eventually, join, leave, say

pytestmark = pytest.mark.root

Told = dict[str, Any]


def records_of(lines: str) -> list[Told]:
    return [json.loads(line) for line in lines.splitlines()]


def patterns(records: list[Told]) -> list[str]:
    """What people said and did, without what a capture can't know: names of flows and of
    conversations, and whose they are."""
    left_out = {"number", "time_ns", "flow", "app", "peer", "conversation"}
    left_out |= {"local", "remote", "role", "direction"}
    told = [record for record in records if record["event"].startswith("im.")]
    for record in told:
        if record["event"] == "im.direct":
            # Both clients of the demo have one address: live, the process tells whose flow it is.
            record.pop("account", None)
    return sorted(
        json.dumps({key: value for key, value in record.items() if key not in left_out})
        for record in told
    )


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="tcpdump is not installed")
def test_a_chat_is_told_alike_live_and_from_what_tcpdump_captured(tmp_path: Path) -> None:
    captured, live = tmp_path / "all.pcap", tmp_path / "live.jsonl"
    # As root: by itself it becomes a user who may not write to our folder.
    words = ["tcpdump", "-Z", "root", "-i", "lo", "-B", "65536", "-U", "-w", str(captured)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as tcpdump:
        try:
            assert tcpdump.stderr is not None
            assert any("listening" in line for line in tcpdump.stderr)
            chat = [sys.executable, "-m", "streamtap.demo", "--pace", "0"]
            assert run("monitor", "-o", str(live), "--", *chat).returncode == 0
            told = records_of(live.read_text())
            assert len(patterns(told)) > 30
            # Others may use loopback now: only what the chat's own ports say.
            ends = {record["local"] for record in told if record.get("local")}
            ports = sorted({end.rpartition(":")[2] for end in ends})
            chosen = [word for port in ports for word in ("--port", port)]

            def read() -> list[str]:
                """What is in the capture so far, which may end within a packet."""
                return patterns(records_of(run("read", str(captured), "--json", *chosen).stdout))

            eventually(lambda: len(read()) >= len(patterns(told)), "all is captured")
            assert read() == patterns(told)
        finally:
            tcpdump.send_signal(signal.SIGINT)
            tcpdump.wait(timeout=30)


@pytest.mark.parametrize("role", ["client", "server"])
def test_our_own_packets_are_told_as_they_were_live(
    client: Puppet, server: Puppet, tmp_path: Path, role: str
) -> None:
    """With the application, at its end, and with the times to the nanosecond."""
    packets, live = tmp_path / "talk.pcapng", tmp_path / "live.jsonl"
    pid = str((client if role == "client" else server).pid)
    words = ["--pid", pid, "--content", "full", "-w", str(packets), "-o", str(live)]
    with Command(tmp_path, "monitor", *words) as command:
        eventually(lambda: command.is_attached, "the monitor is attached")
        join(client, server)
        say(client, server, b"how do you do")
        say(server, client, b"very well")
        leave(client, server)
        command.send(signal.SIGINT)
        assert command.wait() == 0

    def comparable(lines: str) -> list[Told]:
        kernels = ("number", "flow", "sent_total", "received_total", "missing", "complete")
        return [
            {key: value for key, value in record.items() if key not in kernels}
            for record in records_of(lines)
            if "flow" in record
        ]

    read = run("read", str(packets), "--content", "full", "--json")
    assert read.returncode == 0
    before = comparable(live.read_text())
    assert {record["role"] for record in before} == {role}
    assert comparable(read.stdout) == before


def test_files_of_a_live_run_hold_what_was_said(
    client: Puppet, server: Puppet, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    question = os.urandom(300_000)
    words = ["--pid", str(client.pid), "--content", "full", "--extract", str(folder)]
    with Command(tmp_path, "monitor", *words) as command:
        eventually(lambda: command.is_attached, "the monitor is attached")
        join(client, server)
        server.begin("receive(s, length)", length=len(question))
        client.do("s.sendall(data)", data=question)
        assert server.result() == question
        say(server, client, b"very well")
        leave(client, server)
        command.send(signal.SIGINT)
        assert command.wait() == 0
        assert command.stdout == ""
    lines = records_of((folder / "index.jsonl").read_text())
    said = {line["role"]: (folder / line["file"]).read_bytes() for line in lines}
    assert said == {"client": question, "server": b"very well"}
    assert [line["gaps"] for line in lines] == [[], []]
