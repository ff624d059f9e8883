"""`monitor --extract` on real traffic, where both ends of the connections are watched."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Command
from helpers.live import Puppet, eventually, leave, say

pytestmark = pytest.mark.root


def extracted(folder: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The index, and the files in its order."""
    index = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert len(list(folder.iterdir())) == len(index) + 1
    return index, [(folder / line["file"]).read_bytes() for line in index]


@pytest.mark.parametrize("words", [[], ["--both-ends"]], ids=["once", "both ends"])
@pytest.mark.parametrize("dual", [False, True], ids=["IPv4", "IPv4 to IPv6 socket"])
def test_a_connection_inside_the_host_is_extracted_once_unless_both_ends_are_asked_for(
    client: Puppet, server: Puppet, tmp_path: Path, words: list[str], dual: bool
) -> None:
    folder = tmp_path / "out"
    scopes = [word for puppet in (client, server) for word in ("--pid", str(puppet.pid))]
    question, answer = os.urandom(200_000), os.urandom(1234)
    extract = ("--extract", str(folder), "--content", "full", *scopes, *words)
    with Command(tmp_path, "monitor", *extract) as command:
        eventually(lambda: command.is_attached, "the monitor is attached")
        server.do(
            "listener = listen(host, dual=dual)", host="::" if dual else "127.0.0.1", dual=dual
        )
        port = server.do("listener.getsockname()[1]")
        client.do("s = connect(address)", address=("127.0.0.1", port))
        server.do("s = listener.accept()[0]; listener.close()")
        say(client, server, b"begin")
        server.begin("receive(s, length)", length=len(question))
        client.do("s.sendall(data)", data=question)
        assert server.result() == question
        say(server, client, answer)
        leave(client, server)
        command.send(signal.SIGINT)
        assert command.wait() == 0
        assert ", 0 records, 0 gaps, 0 drops" in command.stderr
    index, files = extracted(folder)
    ends = 2 if words else 1
    assert sorted(files) == sorted([b"begin" + question, answer] * ends)
    assert len({line["flow"] for line in index}) == ends
    assert not any(line["gaps"] for line in index)


def test_the_demo_is_extracted_whole_and_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    extract = ("--content", "full", "--extract", str(folder))
    with Command(tmp_path, "demo", "--pace", "0", *extract) as command:
        assert command.wait() == 0
        flows = int(re.findall(r"(\d+) flows, ", command.stderr)[0])
        assert ", 0 records, 0 gaps, 0 drops" in command.stderr
    index, files = extracted(folder)
    # Of each connection both ends are watched, and each is a flow.
    assert len({line["flow"] for line in index}) == flows // 2
    assert not any(line["gaps"] for line in index)
    assert any(b"MSNP" in text for text in files)
