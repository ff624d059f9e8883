"""The filter as a program, run by hand: also for the machine that the tests do not run on."""

import errno
import struct

import pytest

from streamtap.service.seccomp import program

ALLOW, ERROR = 0x7FFF0000, 0x00050000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# read, mmap, openat, socket, execve
NUMBERS = {"x86_64": (0, 9, 257, 41, 59), "aarch64": (63, 222, 56, 198, 221)}


def verdict(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would do: 0 to let the call through, else the error it gives."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, architecture, 0, *words)
    loaded = at = 0
    while True:
        operation, yes, no, value = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        match operation:
            case 0x20:
                (loaded,) = struct.unpack_from("=I", data, value)
            case 0x15:
                at += yes if loaded == value else no
            case 0x25:
                at += yes if loaded > value else no
            case 0x35:
                at += yes if loaded >= value else no
            case 0x45:
                at += yes if loaded & value else no
            case 0x06:
                assert value & 0xFFFF0000 in (ALLOW, ERROR)
                return int(value & 0xFFFF)
            case _:
                pytest.fail(f"no such instruction {operation:#x}")


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_is_right_on_each_machine(machine: str) -> None:
    here = ARCHITECTURES[machine]
    read, mmap, openat, socket, execve = NUMBERS[machine]
    for files in (False, True):
        code = program(files, machine)
        assert len(code) // 8 <= 4096  # BPF_MAXINSNS
        assert verdict(code, here, read) == 0
        assert verdict(code, here, mmap, 0, 4096, 3) == 0
        assert verdict(code, here, mmap, 0, 4096, 5) == errno.EPERM
        assert verdict(code, here, socket) == errno.EPERM
        assert verdict(code, here, execve) == errno.EPERM
        assert verdict(code, here, openat, 0, 0, 0, 0o644) == (0 if files else errno.EPERM)
        assert verdict(code, here, openat, 0, 0, 0, 0o4755) == errno.EPERM
        assert verdict(code, here, read | 1 << 30) == errno.EPERM
        assert verdict(code, here, 1 << 20) == errno.ENOSYS
        for other in {*ARCHITECTURES.values(), 0x40000003, 0x40000028} - {here}:
            assert verdict(code, other, read) == errno.EPERM


def test_an_unknown_machine_has_no_filter() -> None:
    assert program(False, "riscv64") == b""
