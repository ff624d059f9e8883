"""The load: small C programs, built when they are needed, running in a network namespace of ours.

Client and server are executables of their own, so that a scope by path covers one of them.
"""

import contextlib
import ctypes
import fcntl
import json
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "loads"
PROGRAMS = ("bulk_send", "bulk_sink", "chat_client", "chat_server")
CONNECTIONS = 100
MESSAGE = 100
BLOCK = 128 << 10
PATIENCE_S = 20.0  # beyond the seconds of a load: then something hangs
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def enter_namespace() -> None:
    """Move this process, and what it will start, to a new network namespace with loopback up.

    Nobody else's traffic is there, and nothing needs to be cleaned up.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no new network namespace (root is needed)")
    with socket.socket() as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("16sh", answer)[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def compiler() -> list[str]:
    """cc if there is one, else the compiler that pip brings for the build."""
    found = shutil.which("cc")
    if found:
        return [found]
    if find_spec("ziglang") is None:
        raise SystemExit("bench: no C compiler: install gcc or clang, or: pip install ziglang")
    return [sys.executable, "-m", "ziglang", "cc"]


def build(folder: Path) -> None:
    """Compile the loads into `folder`."""
    command = [*compiler(), "-O2", "-Wall", "-Wextra", "-o"]
    for name in PROGRAMS:
        source = SOURCES / f"{name}.c"
        subprocess.run([*command, str(folder / name), str(source)], check=True)


class Loads:
    """The built programs, the servers that run, and the words that they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        build(folder)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @contextlib.contextmanager
    def server(self, name: str, *words: str) -> Iterator[None]:
        """Runs the server `name` meanwhile."""
        command = [self.path(name), *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                self.ports[name] = json.loads(process.stdout.readline())["port"]
                self.pids[name] = process.pid
                yield
            finally:
                process.kill()

    def bulk(self, seconds: float, rate: float = 0) -> dict[str, Any]:
        """One flow of BLOCK-sized writes: `bytes`, `seconds`. rate: bytes a second, 0 for all."""
        port = self.ports["bulk_sink"]
        return self._run("bulk_send", seconds, port, seconds, BLOCK, rate)

    def chat(
        self,
        seconds: float,
        rate: float = 0,
        words: Sequence[str] = (str(MESSAGE),),
        connections: int = CONNECTIONS,
    ) -> dict[str, Any]:
        """Round trips: `trips`, `seconds`, `p50_us`, `p99_us`, …; rate: trips a second."""
        port = self.ports["chat_server"]
        return self._run("chat_client", seconds, port, connections, seconds, rate, *words)

    def _run(self, name: str, seconds: float, *words: object) -> dict[str, Any]:
        command = [self.path(name), *map(str, words)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, timeout=seconds + PATIENCE_S, check=True
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result


class Words:
    """What an MSN switchboard conversation says, as arguments of the chat programs.

    client, server: HEAR SAY FIRST_HEAR FIRST_SAY of each.
    """

    def __init__(self, folder: Path) -> None:
        text = b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nsee you at nine"
        says = {
            "client_first": b"USR 1 alice@example.com 1234.5678\r\n",
            "client": b"MSG 2 N %d\r\n%b" % (len(text), text),
            "server_first": b"USR 1 OK alice@example.com Alice\r\n",
            "server": b"MSG bob@example.com Bob %d\r\n%b" % (len(text), text),
        }
        for name, words in says.items():
            (folder / name).write_bytes(words)
        self.client = self._words(folder, says, hear="server", say="client")
        self.server = self._words(folder, says, hear="client", say="server")

    @staticmethod
    def _words(folder: Path, says: dict[str, bytes], *, hear: str, say: str) -> tuple[str, ...]:
        return (
            str(len(says[hear])),
            str(folder / say),
            str(len(says[f"{hear}_first"])),
            str(folder / f"{say}_first"),
        )
