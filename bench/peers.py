"""Other programs that show traffic, attached to loopback while a load runs."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

READY_S = 10.0
SETTLE_S = 1.0  # most peers do not say when they are attached
BACKLOG_S = 5.0  # given to a peer to come to the end of what it has taken


class Seen(Struct):
    """Payload bytes that a peer delivered; known when it has ended."""

    bytes: int = 0


class Peer:
    """One program: its command for a port and the process to trace, and how its output counts."""

    def __init__(
        self,
        name: str,
        command: Callable[[int, int], Sequence[str]],
        count: Callable[[Path, Path], int],
    ) -> None:
        self.name = name
        self._command = command
        self._count = count

    @contextlib.contextmanager
    def watch(self, port: int, pid: int) -> Iterator[Seen]:
        """Attached meanwhile; then it gets a while for its backlog, and is counted."""
        seen = Seen()
        with tempfile.TemporaryDirectory(prefix="streamtap-peer-") as name:
            out, err = Path(name, "out"), Path(name, "err")
            with out.open("wb") as stdout, err.open("wb") as stderr:
                process = subprocess.Popen(
                    self._command(port, pid), stdout=stdout, stderr=stderr, start_new_session=True
                )
            try:
                time.sleep(SETTLE_S)
                yield seen
            finally:
                _wait_until_still(out)
                _end(process)
            seen.bytes = self._count(out, err)


def _wait_until_still(path: Path) -> None:
    deadline = time.monotonic() + BACKLOG_S
    size = -1
    while time.monotonic() < deadline and path.stat().st_size != size:
        size = path.stat().st_size
        time.sleep(0.5)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a peer and the helpers that it started: they share its session."""
    for number, patience in ((signal.SIGINT, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break


def _tcpdump(out: Path, err: Path) -> int:
    """It writes a capture: the payload of the packets in it, by their IP headers."""
    done = subprocess.run(
        ["tcpdump", "-nn", "-q", "-r", str(out)], capture_output=True, text=True, check=False
    )
    return sum(map(int, re.findall(r" tcp (\d+)$", done.stdout, re.MULTILINE)))


def _numbers(out: Path, err: Path) -> int:
    """One number a line."""
    return sum(int(line) for line in out.read_bytes().split() if line.isdigit())


def _strace(out: Path, err: Path) -> int:
    """What the calls returned."""
    pattern = re.compile(rb"^[^=]*(?:send|recv|read|write)\w*\(.* = (\d+)$", re.MULTILINE)
    return sum(map(int, pattern.findall(err.read_bytes())))


# A blocking call would not end by a signal: it is asked again twice a second.
_PYDIVERT = """
import signal, pydivert
total, ended = 0, []
signal.signal(signal.SIGINT, lambda *_: ended.append(True))
ports = "tcp and (tcp.DstPort == PORT or tcp.SrcPort == PORT)"
with pydivert.Divert(ports, flags=pydivert.Flag.SNIFF) as divert:
    while not ended:
        try:
            total += len(divert.recv(timeout=0.5).payload or b"")
        except TimeoutError:
            pass
print(total, flush=True)
"""


def _pydivert_command(port: int, pid: int) -> Sequence[str]:
    # Its pins outlive it: they go to a bpffs that ends with its mount namespace.
    inside = 'mount -t bpf bpf /sys/fs/bpf && exec "$0" -c "$1"'
    script = _PYDIVERT.replace("PORT", str(port))
    return ("unshare", "--mount", "sh", "-c", inside, _python_of_pydivert(), script)


def _python_of_pydivert() -> str:
    return os.environ.get("BENCH_PYDIVERT", "")


_ALL = (
    Peer(
        "tcpdump",
        lambda port, pid: ("tcpdump", "-i", "lo", "-U", "-w", "-", f"tcp port {port}"),
        _tcpdump,
    ),
    Peer(
        "tshark",
        lambda port, pid: (
            *("tshark", "-i", "lo", "-f", f"tcp port {port}", "-l"),
            *("-T", "fields", "-e", "tcp.len"),
        ),
        _numbers,
    ),
    Peer(
        "strace",
        lambda port, pid: (
            "strace",
            "-f",
            "-e",
            "trace=network,read,write",
            "-s",
            "65535",
            "-p",
            str(pid),
        ),
        _strace,
    ),
    Peer("pydivert", _pydivert_command, _numbers),
)


def absent() -> dict[str, str]:
    """Peers that cannot be measured here, and why."""
    missing = {
        name: "not installed" for name in ("tcpdump", "tshark", "strace") if not shutil.which(name)
    }
    if not _python_of_pydivert():
        missing["pydivert"] = "BENCH_PYDIVERT names no Python that has it"
    return missing


def present() -> list[Peer]:
    missing = absent()
    return [peer for peer in _ALL if peer.name not in missing]
