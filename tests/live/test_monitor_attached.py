"""`monitor` where a service runs: the same records, by its callouts."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Command, run
from helpers.live import Puppet, eventually, join, leave, say
from helpers.places import environment_of, place
from helpers.services import Service
from streamtap.service.paths import Paths

pytestmark = pytest.mark.root

# A server and a client of it in one process: a request, an answer, and the end.
TALK = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
def serve():
    peer, _ = listener.accept()
    while peer.recv(100):
        peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
    peer.close()
thread = threading.Thread(target=serve)
thread.start()
client = socket.create_connection(listener.getsockname())
client.sendall(b"GET / HTTP/1.1\\r\\nHost: here\\r\\n\\r\\n")
client.recv(100)
client.close()
thread.join()
"""


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    with place(tmp_path) as made:
        yield made


@pytest.fixture
def service(paths: Paths) -> Iterator[Service]:
    with Service(paths) as made:
        yield made


def told(text: str) -> list[tuple[object, ...]]:
    """What records say, but for what differs from run to run: which of the two ends closes first,
    and how much of the end that is told of once was copied before it was only counted."""
    found = []
    for line in text.splitlines():
        record: dict[str, Any] = json.loads(line)
        if record["provider"] in ("init", "control") or record["event"] == "filter.changed":
            continue
        for way in ("sent", "received"):
            record[way] = record.get(way, 0) + record.get(f"{way}_counted", 0)
        fields = ("event", "direction", "offset", "length", "sent", "received", "reason", "bytes")
        found.append(tuple(record.get(name) for name in fields))
    return sorted(found, key=str)


def test_the_records_are_those_of_a_monitor_without_a_service(paths: Paths) -> None:
    words = ("monitor", "--json", "--", sys.executable, "-c", TALK)
    alone = run(*words, env=environment_of(paths))
    with Service(paths) as service:
        attached = run(*words, env=environment_of(paths))
        assert "by the service" in attached.stderr
        with service.client() as client:
            assert client.filters() == ()
            assert client.status().sessions == 0
    assert (alone.returncode, attached.returncode) == (0, 0), attached.stderr
    assert "by the service" not in alone.stderr
    assert told(attached.stdout) == told(alone.stdout)
    assert len(told(alone.stdout)) > 5
    kinds = [json.loads(line)["event"] for line in attached.stdout.splitlines()]
    assert kinds[:2] == ["init.started", "control.state"]
    assert kinds[-1] == "init.stopped"


def test_a_bare_monitor_watches_what_is_registered(
    service: Service, program: Path, puppet: Callable[..., Puppet], tmp_path: Path
) -> None:
    env = environment_of(service.paths)
    none = run("monitor", env=env)
    assert none.returncode == 2
    assert "addcallouts" in none.stderr
    assert run("addcallouts", str(program), env=env).returncode == 0
    speaker, server = puppet(program), puppet()
    with Command(tmp_path, "monitor", "--json", env=env) as monitor:
        eventually(lambda: monitor.is_attached, "it watches")
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        eventually(lambda: "flow.closed" in monitor.stdout, "it is told")
        monitor.send(signal.SIGINT)
        assert monitor.wait() == 0
    assert service.stop() == 0
    with Command(tmp_path, "monitor", "--json", env=env) as monitor:
        eventually(lambda: monitor.is_attached, "it watches by itself")
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        eventually(lambda: "flow.closed" in monitor.stdout, "it is told")
        monitor.send(signal.SIGINT)
        assert monitor.wait() == 0
    assert "by the service" not in monitor.stderr


def test_a_program_that_is_named_is_watched_for_as_long_as_the_monitor_runs(
    service: Service, program: Path, puppet: Callable[..., Puppet], tmp_path: Path
) -> None:
    """Others are not shown; the connection that is open at the end is told to have left."""
    speaker, other, server = puppet(program), puppet(), puppet()
    with service.client() as client:
        client.add([sys.executable])
    with Command(
        tmp_path, "monitor", str(program), "--json", env=environment_of(service.paths)
    ) as monitor:
        eventually(lambda: monitor.is_attached, "it watches")
        join(other, server, name="o")
        say(other, server, b"not its business", name="o")
        join(speaker, server)
        say(speaker, server, b"hello")
        eventually(lambda: '"event":"data"' in monitor.stdout, "it is told")
        monitor.send(signal.SIGINT)
        assert monitor.wait() == 0
    records = [json.loads(line) for line in monitor.stdout.splitlines()]
    assert {one["app"]["path"] for one in records if one.get("app")} == {str(program)}
    assert [one["reason"] for one in records if one["event"] == "flow.closed"] == ["removed"]
    leave(speaker, server)
    leave(other, server, name="o")
    with service.client() as client:
        assert len(client.filters()) == 1


def test_a_service_that_ends_first_is_told_of(
    service: Service, program: Path, tmp_path: Path
) -> None:
    with Command(tmp_path, "monitor", str(program), env=environment_of(service.paths)) as monitor:
        eventually(lambda: monitor.is_attached, "it watches")
        assert service.stop() == 0
        assert monitor.wait() == 3
    assert "the service has ended the session" in monitor.stderr
    assert "Traceback" not in monitor.stderr


def test_a_monitor_that_is_killed_takes_its_filter_along(
    service: Service, program: Path, tmp_path: Path
) -> None:
    with Command(tmp_path, "monitor", str(program), env=environment_of(service.paths)) as monitor:
        eventually(lambda: monitor.is_attached, "it watches")
        monitor.send(signal.SIGKILL)
        monitor.wait()
    with service.client() as client:
        eventually(lambda: client.status().sessions == 0, "its session is gone")
        # Its name is free again, and its bit.
        assert [one.bit for one in client.add([str(program)], temporary=True)] == [48]
