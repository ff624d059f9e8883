"""Things that look at the traffic while a load runs: our monitor, driven as a process."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Monitor:
    """A running `bench.monitor`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.pid = process.pid
        self.started = self._read()

    def look(self) -> dict[str, Any]:
        """Its report, once it has read everything that the kernel gave it."""
        assert self._process.stdin is not None
        self._process.stdin.write("?")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> dict[str, Any]:
        """Detaches it; its last report."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise RuntimeError("the monitor ended")
        report: dict[str, Any] = json.loads(text)
        return report


@contextlib.contextmanager
def monitor(*words: str) -> Iterator[Monitor]:
    """Attached meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.monitor", *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Monitor(process)
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()
            process.wait(timeout=20)
        finally:
            process.kill()
