"""A program to be watched: does what it is told on standard input, and ends with it.

Each request is a length and a marshalled (source, values): an expression, whose value is the
answer, or statements. They share one namespace, which begins with the functions below. No import
here that takes long: tests start hundreds of these.
"""

import ctypes
import marshal
import os
import socket
import struct
import sys
from typing import Any

TIMEOUT_S = 20.0  # no call on a socket takes longer: a test fails, it does not hang
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
IPPROTO_MPTCP = 262
IPV6_DSTOPTS = 59
TCP_FASTOPEN_CONNECT = 30
MSG_FASTOPEN = 0x20000000
_SIOCSIFFLAGS = 0x8914
_libc = ctypes.CDLL(None, use_errno=True)


def listen(
    host: str = "127.0.0.1", protocol: int = 0, backlog: int = 1024, **options: bool
) -> socket.socket:
    """A listener on a free port of `host`; an IPv6 one takes IPv4 too with dual=True."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not options.get("dual"))
    listener.bind((host, 0))
    if options.get("fastopen"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    listener.listen(backlog)
    return listener


def connect(
    address: tuple[Any, ...],
    protocol: int = 0,
    options: tuple[tuple[int, int, int | bytes], ...] = (),
) -> socket.socket:
    """A connection to `address`; the options are set before."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, protocol)
    for level, name, value in options:
        made.setsockopt(level, name, value)
    made.connect(address)
    return made


def receive(connection: socket.socket, length: int) -> bytes:
    """Exactly so many bytes, or what came before the end."""
    data = bytearray()
    while len(data) < length and (more := connection.recv(min(1 << 20, length - len(data)))):
        data += more
    return bytes(data)


def discard(connection: socket.socket, length: int = 1 << 62) -> int:
    """Receives so many bytes, or all until the end; how many they were."""
    room, got = bytearray(1 << 20), 0
    while got < length and (more := connection.recv_into(room, min(len(room), length - got))):
        got += more
    return got


def reset(connection: socket.socket) -> None:
    """Closes with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def own_network() -> None:
    """Moves to a network namespace of its own, whose loopback is up."""
    import fcntl

    _call("unshare", CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", 0x41))


def network_of(pid: int) -> None:
    """Moves to the network namespace of another process."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    _call("setns", fd, CLONE_NEWNET)
    os.close(fd)


def own_mounts() -> None:
    """Moves to a mount namespace of its own; nothing that is mounted there shows elsewhere."""
    _call("unshare", CLONE_NEWNS)
    if _libc.mount(b"none", b"/", None, 0x44000, None):  # MS_REC | MS_PRIVATE
        raise OSError(ctypes.get_errno(), "mount")


def unmount(path: str) -> None:
    if _libc.umount2(os.fsencode(path), 2):  # MNT_DETACH
        raise OSError(ctypes.get_errno(), f"umount {path}")


def _serve() -> None:
    names: dict[str, Any] = dict(globals())
    requests, answers = os.fdopen(0, "rb"), os.dup(1)
    os.dup2(2, 1)
    while len(head := requests.read(4)) == 4:
        source, values = marshal.loads(requests.read(int.from_bytes(head, "little")))
        names.update(values)
        try:
            try:
                code = compile(source, "<test>", "eval")
            except SyntaxError:
                code = compile(source, "<test>", "exec")
            answer = marshal.dumps((True, eval(code, names)))
        except BaseException as error:
            line = error.__traceback__.tb_next.tb_lineno if error.__traceback__.tb_next else 0  # type: ignore[union-attr]
            answer = marshal.dumps((False, f"{type(error).__name__}: {error} (line {line})"))
        os.write(answers, len(answer).to_bytes(4, "little") + answer)


if __name__ == "__main__":
    socket.setdefaulttimeout(TIMEOUT_S)
    _serve()
    sys.stdout.flush()
    os._exit(0)
