"""The command `streamtap` as a process of its own, with time limits, gone after the test."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

DEADLINE_S = 20.0
STREAMTAP = (sys.executable, "-m", "streamtap")
_DROP_FROM_BOUNDING_SET = 24  # prctl PR_CAPBSET_DROP
_CAPABILITIES = 41


def run(*words: str, rights: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `streamtap WORDS` to its end; without `rights` with no capabilities."""
    return subprocess.run(
        [*STREAMTAP, *words],
        stdin=subprocess.DEVNULL,
        capture_output="stdout" not in options,
        stderr=subprocess.PIPE if "stdout" in options else None,
        text=True,
        timeout=DEADLINE_S,
        preexec_fn=None if rights else _drop_capabilities,
        **options,
    )


def _drop_capabilities() -> None:
    """What is executed next has no capability, even as root."""
    libc = ctypes.CDLL(None)
    for number in range(_CAPABILITIES):
        libc.prctl(_DROP_FROM_BOUNDING_SET, number, 0, 0, 0)


class Command:
    """`streamtap WORDS` in the background. What it writes goes to files: no pipe can fill up."""

    def __init__(self, folder: Path, *words: str, **options: Any) -> None:
        number = len(list(folder.glob("*.stderr")))
        self._stdout = folder / f"{number}.stdout"
        self._stderr = folder / f"{number}.stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            files: dict[str, Any] = {"stdout": stdout, "stderr": stderr}
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [*STREAMTAP, *words], stdin=subprocess.DEVNULL, **(files | options)
            )
        self.pid = self.process.pid

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def is_attached(self) -> bool:
        """It said so; fails if it has ended instead."""
        if "streamtap: watching" in self.stderr:
            return True
        assert self.process.poll() is None, self.stderr
        return False

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        code: int = self.process.wait(DEADLINE_S)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)


# A connection to itself over loopback, and ten bytes; it then waits for a signal, or ends.
CONVERSATION = """
import signal, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(b"01234" + b"56789")  # in two pieces: it is not found in command lines
assert len(server.recv(10)) == 10
print("spoken", flush=True)
if "stay" in sys.argv:
    signal.pause()
client.close()
server.close()
sys.exit(int(sys.argv[1]))
"""


def conversation(code: int = 0, *, stay: bool = False) -> list[str]:
    """A command that talks to itself, and then ends with this code or stays."""
    return [sys.executable, "-I", "-S", "-c", CONVERSATION, str(code), *(["stay"] if stay else [])]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
