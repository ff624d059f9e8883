"""What the service manager is told, by a socket that stands in for its own."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamtap.service import notify


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        yield listening


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_manager_is_told_on_the_socket_it_names(
    kind: str, manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "path":
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    else:
        manager.bind("")  # the kernel chooses an abstract name
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
    assert notify.ready("2 filters\nREADY=0")
    assert manager.recv(4096) == b"READY=1\nSTATUS=2 filters READY=0"
    assert notify.status("watching")
    assert manager.recv(4096) == b"STATUS=watching"
    assert notify.stopping()
    assert manager.recv(4096) == b"STOPPING=1"


def test_nobody_is_told_where_there_is_no_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.ready("up")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    assert not notify.ready("up")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify.ready("up")


def test_a_manager_that_does_not_read_holds_nothing_up(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    told = [notify.stopping() for _ in range(10_000)]
    assert told[0]
    assert not told[-1]


def test_the_watchdog_is_fed_where_it_waits_for_this_process(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert not notify.watchdog()
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert notify.watchdog()
    assert manager.recv(4096) == b"WATCHDOG=1"
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert not notify.watchdog()
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog()
