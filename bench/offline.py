"""Captures: whole processes beside the tools that people use, in the same rounds.

Peers are used where they are installed: tcpflow and tshark. Output goes to a file in memory that
nobody reads, or to /dev/null.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.rounds import Plan, interleave, line, ratios, spread

MEMORY = Path("/dev/shm")
BYTES = 1_000_000_000
SWITCHBOARDS = 100_000_000  # tshark takes a tenth of a minute for that
QUICK = 20_000_000
_STREAMS = (
    "import streamtap, sys\n"
    "ports = [int(port) for port in sys.argv[2:]]\n"
    "print(sum(len(part.item.data) for part in streamtap.streams(sys.argv[1], ports=ports)"
    " if type(part.item) is streamtap.Chunk))"
)


def offline(plan: Plan) -> None:
    """Ordered streams, files, patterns: seconds of each, and the ratio of the peer's to ours."""
    size = QUICK if plan.rounds < 3 else BYTES
    for kind in ("chat", "bulk"):
        with _capture(kind, size) as path:
            streams = _python(_STREAMS, path)
            _beside(f"{kind}: ordered streams", plan, streams, _tcpflow("-FX", "-r", path))
            _beside(f"{kind}: ordered streams", plan, streams, _tcpflow("-c", "-B", "-r", path))
            ours = _streamtap("read", path, "--extract", "FOLDER/ours")
            _beside(f"{kind}: files", plan, ours, _tcpflow("-r", path, "-o", "FOLDER"))
    with _capture("mix", size) as path:
        streams = _python(_STREAMS, path, "1863")
        peer = _tcpflow("-c", "-B", "-r", path, "port", "1863")
        _beside("mix: ordered streams of a port", plan, streams, peer)
    with _capture("switchboards", min(size, SWITCHBOARDS)) as path:
        fields = ("-T", "fields", "-e", "frame.time_epoch", "-e", "ip.src", "-e", "msnms")
        peer = ["tshark", "-r", path, "-Y", "msnms", *fields]
        _beside("switchboards: patterns", plan, _streamtap("read", path, "--json"), peer)


def _beside(name: str, plan: Plan, ours: list[str], peer: list[str]) -> None:
    if shutil.which(peer[0]) is None:
        line(name, f"skipped: {peer[0]} is not installed")
        return
    taken = interleave(plan, {"ours": _timed(ours), "peer": _timed(peer)})
    seconds = {whose: spread(each) for whose, each in taken.items()}
    times = spread(ratios(taken["peer"], taken["ours"]))
    what = " ".join(word for word in peer[:3] if "/" not in word)
    line(name, f"{seconds['ours']} s; {what} {seconds['peer']} s: {times} times as fast")


def _timed(command: list[str]) -> Callable[[], float]:
    """Runs the command in a folder of its own, which is removed; its seconds."""

    def run() -> float:
        with _folder() as folder:
            words = [word.replace("FOLDER", str(folder)) for word in command]
            began = time.perf_counter()
            subprocess.run(
                words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
            )
            return time.perf_counter() - began

    return run


@contextmanager
def _capture(kind: str, size: int) -> Iterator[str]:
    with _folder() as folder:
        path = folder / f"{kind}.pcap"
        words = [sys.executable, "-m", "bench.captures", kind, str(path), "--bytes", str(size)]
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
        yield str(path)


@contextmanager
def _folder() -> Iterator[Path]:
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def _python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def _streamtap(*words: str) -> list[str]:
    return [sys.executable, "-m", "streamtap", *words]


def _tcpflow(*words: str) -> list[str]:
    return ["tcpflow", *words]
