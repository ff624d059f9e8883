"""A service of a test's own, beside whatever this machine has."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from helpers.live import DEADLINE_S, eventually
from helpers.places import environment_of
from streamtap.service.client import Client
from streamtap.service.paths import Paths

RUN = """
import sys
from streamtap.service.keeper import run
from streamtap.service.paths import Paths
sys.exit(run(Paths.of_environment(), lambda text: print("ready", flush=True)))
"""


class Service:
    """Started when it is made, and ready when that returns. first: what its process does before."""

    def __init__(self, paths: Paths, first: str = "") -> None:
        self.paths = paths
        self._source = first + RUN
        paths.run.mkdir(parents=True, exist_ok=True)
        self._log = paths.run / "service.log"
        self._start()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", self._source],
                env=environment_of(self.paths),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S * 2)
        assert ready, f"the service is not ready: {self.log}"
        assert self.process.stdout.readline() == b"ready\n", self.log
        with self.client() as client:
            eventually(lambda: client.status().confined, f"the parser is there: {self.log}")
            status = client.status()
            assert status.parser_pid is not None
            self.parser_pid = status.parser_pid

    def client(self) -> Client:
        return Client(self.paths.control)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def children(self) -> list[int]:
        """The processes that it started and that live."""
        pid = self.process.pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in text.split()]

    def stop(self) -> int:
        """As a service manager does; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S * 2)

    def kill(self) -> None:
        """With no chance to clean up; its children are gone when this returns."""
        children = self.children if self.process.poll() is None else []
        self.process.kill()
        self.process.wait(DEADLINE_S)
        eventually(lambda: not any(map(is_alive, children)), "its children end")

    def again(self) -> None:
        """The next one, after this one has ended."""
        assert self.process.poll() is not None
        self._close()
        self._start()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self.process.poll() is None:
                self.kill()
        finally:
            self._close()


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] != b"Z"
    except OSError:
        return False


def open_bpf(pid: int) -> list[str]:
    """What a process holds of BPF: prog, map or link and its number, by each descriptor."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            kind, _, number = line.partition(":")
            if kind in ("prog_id", "map_id", "link_id"):
                found.append(f"{kind} {number.strip()}")
    return found
