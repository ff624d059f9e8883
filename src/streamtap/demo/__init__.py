"""A small MSN server and two chat clients on loopback, as separate real processes.

Something true to watch where there is no MSN: sign-in, presence, a conversation, files over a
switchboard and over a direct connection. `run` plays it all; the commands start the parts alone.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from streamtap.demo.processes import Processes, ProcessFailed

TIMEOUT_S = 30.0
START_S = 10.0  # of an interpreter on a busy machine
PAUSES = 40  # no run has more of them one after the other
FAREWELL_S = 3.0  # the clients give up first, and say why


def seconds(text: str) -> float:
    """A duration on a command line. Raises ValueError."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("no duration")
    return value


def server_command(
    port: int = 0, *, attended: bool = False, transcript: Path | None = None
) -> list[str]:
    """Starts the server. It prints `{"notification": port, "switchboard": port}` when it listens.

    attended: it ends when its standard input does, so that it never outlives who started it.
    """
    command = [*_module("server"), "--port", str(port), *_recording(transcript)]
    return [*command, "--attended"] if attended else command


def client_command(
    who: str,
    port: int,
    *,
    pace: float = 0.0,
    timeout_s: float = TIMEOUT_S,
    transcript: Path | None = None,
) -> list[str]:
    """Starts `alice` or `bob`, who wait for each other; `port` is the notification server's."""
    times = ["--pace", str(pace), "--timeout", str(timeout_s)]
    return [*_module("client"), who, "--port", str(port), *times, *_recording(transcript)]


def environment() -> dict[str, str]:
    """For the commands: they find this package even where it is not installed."""
    package_root = str(Path(__file__).parent.parent.parent)
    search_path = [package_root, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))}


def _module(name: str) -> list[str]:
    # -P: modules of the directory that it happens to be started in are not ours
    return [sys.executable, "-P", "-m", f"streamtap.demo.{name}"]


def _recording(transcript: Path | None) -> list[str]:
    return [] if transcript is None else ["--transcript", str(transcript)]


def run(
    pace: float = 0.0,
    on_ready: Callable[[list[int]], None] | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    transcripts: Path | None = None,
) -> int:
    """Play the whole conversation: 0 when it went as written and the files arrived intact, else 1
    with the reason on stderr.

    pace: seconds between the steps.
    on_ready: called with the notification and the switchboard port after the server listens and
        before the clients start: the moment to attach. The time it takes is not counted.
    timeout_s: for the conversation, besides the pauses.
    transcripts: directory for `server.jsonl`, `alice.jsonl` and `bob.jsonl`.

    The processes are gone when this returns or raises.
    """
    patience_s = timeout_s + PAUSES * pace

    def transcript(name: str) -> Path | None:
        return transcripts / f"{name}.jsonl" if transcripts else None

    with Processes(environment()) as processes:
        try:
            command = server_command(attended=True, transcript=transcript("server"))
            processes.start("server", command)
            ports = json.loads(processes.line("server", START_S))
            if on_ready is not None:
                on_ready([ports["notification"], ports["switchboard"]])
            for who in ("alice", "bob"):
                command = client_command(
                    who,
                    ports["notification"],
                    pace=pace,
                    timeout_s=patience_s,
                    transcript=transcript(who),
                )
                processes.start(who, command)
            outputs = processes.finish(("alice", "bob"), patience_s + FAREWELL_S)
        except ProcessFailed as failure:
            print(f"demo: {failure}", file=sys.stderr)
            return 1
    alice, bob = map(json.loads, outputs)
    if (alice["sent"], bob["sent"]) != (bob["received"], alice["received"]):
        print("demo: a file changed on its way", file=sys.stderr)
        return 1
    return 0
