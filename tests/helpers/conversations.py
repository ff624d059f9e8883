"""Traffic that goes on by itself, as two processes: `conversations.py` as a program to be watched,
and its server."""

import contextlib
import json
import select
import subprocess
from pathlib import Path
from typing import Any, Self

from helpers.live import DEADLINE_S, PROGRAMS, environment, interpreter

CONVERSATIONS = PROGRAMS / "conversations.py"


class Conversations:
    """Talking when it is made, until `finish`."""

    def __init__(
        self, program: Path, *, seed: int = 0, lasting: int = 5, pause_s: float = 0.003
    ) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        try:
            port = self._start(Path(interpreter()), "serve")
            words = (port, str(seed), str(lasting), str(pause_s))
            assert self._start(program, "talk", *words) == "talking"
        except BaseException:
            self.close()
            raise

    def _start(self, program: Path, *words: str) -> str:
        process = subprocess.Popen(
            [str(program), "-s", "-S", "-P", str(CONVERSATIONS), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        self._processes.append(process)
        return self._line(process)

    def _line(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], DEADLINE_S * 2)
        assert ready, "no answer"
        return process.stdout.readline().strip()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    @property
    def talking(self) -> bool:
        """It has failed if it is not, before `finish`."""
        return all(process.poll() is None for process in self._processes)

    def finish(self) -> dict[str, Any]:
        """Closes all connections; what was said, as `conversations.py` describes it."""
        _, talk = self._processes
        assert talk.stdin is not None
        talk.stdin.close()
        told: dict[str, Any] = json.loads(self._line(talk) or "{}")
        assert talk.wait(DEADLINE_S) == 0
        return told

    def close(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(DEADLINE_S)
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
