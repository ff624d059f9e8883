"""A socket made, connected and used through io_uring alone, by its system calls.

`uring.py ADDRESS PORT TEXT` sends the text, receives as much, and prints it. Exit code 3: the
kernel has no io_uring for us.
"""

import ctypes
import mmap
import os
import socket
import struct
import sys

_SETUP, _ENTER = 425, 426  # the same number on every architecture
_ENTER_GETEVENTS = 1
_OFF_SQES = 0x10000000
_OP_CONNECT, _OP_SEND, _OP_RECV, _OP_SOCKET = 16, 26, 27, 45
_IOSQE_ASYNC = 1 << 4
_SQE = struct.Struct("<BBHiQQIIQ24x")  # op, flags, priority, fd, offset, address, length, flags
_libc = ctypes.CDLL(None, use_errno=True)


class Uring:
    """One request at a time, each waited for."""

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(120)
        self.fd = _libc.syscall(_SETUP, 4, parameters)
        if self.fd < 0:
            print(os.strerror(ctypes.get_errno()))
            sys.exit(3)
        entries, completions = struct.unpack_from("<II", parameters, 0)
        self.sq = struct.unpack_from("<7I", parameters, 40)  # head tail mask entries … array
        self.cq = struct.unpack_from("<7I", parameters, 80)  # head tail mask entries … cqes
        size = max(self.sq[6] + entries * 4, self.cq[5] + completions * 16)
        self.ring = mmap.mmap(self.fd, size, mmap.MAP_SHARED | 0x8000)
        self.sqes = mmap.mmap(self.fd, entries * 64, mmap.MAP_SHARED | 0x8000, offset=_OFF_SQES)

    def _get(self, at: int) -> int:
        (value,) = struct.unpack_from("<I", self.ring, at)
        assert isinstance(value, int)
        return value

    def call(self, op: int, fd: int, offset: int, address: int, length: int, flags: int) -> int:
        """What the request gave; raises OSError."""
        tail = self._get(self.sq[1])
        slot = tail & self._get(self.sq[2])
        sqe = _SQE.pack(op, _IOSQE_ASYNC, 0, fd, offset, address, length, flags, 0)
        self.sqes[slot * 64 : slot * 64 + 64] = sqe
        struct.pack_into("<I", self.ring, self.sq[6] + slot * 4, slot)
        struct.pack_into("<I", self.ring, self.sq[1], tail + 1)
        if _libc.syscall(_ENTER, self.fd, 1, 1, _ENTER_GETEVENTS, None, 0) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        head = self._get(self.cq[0])
        at = self.cq[5] + (head & self._get(self.cq[2])) * 16
        _, result = struct.unpack_from("<Qi", self.ring, at)
        struct.pack_into("<I", self.ring, self.cq[0], head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        assert isinstance(result, int)
        return result


def main(host: str, port: int, text: bytes) -> None:
    uring = Uring()
    made = uring.call(_OP_SOCKET, socket.AF_INET, socket.SOCK_STREAM, 0, 0, 0)
    address = ctypes.create_string_buffer(
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host), 16
    )
    uring.call(_OP_CONNECT, made, len(address), ctypes.addressof(address), 0, 0)
    data = ctypes.create_string_buffer(text, len(text))
    assert uring.call(_OP_SEND, made, 0, ctypes.addressof(data), len(text), 0) == len(text)
    room = ctypes.create_string_buffer(len(text))
    got = uring.call(_OP_RECV, made, 0, ctypes.addressof(room), len(text), socket.MSG_WAITALL)
    print(room.raw[:got].decode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3].encode())
