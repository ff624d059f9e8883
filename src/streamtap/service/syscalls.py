"""The few calls into the C library that Python itself does not offer."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """What the kernel answers; OSError where it refuses. bytes are passed by their address."""
    words = (
        ctypes.c_char_p(word) if isinstance(word, bytes) else ctypes.c_ulong(word or 0)
        for word in arguments
    )
    return _checked(_libc.syscall(ctypes.c_long(number), *words))


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """As `syscall`; the arguments that are not used must be 0."""
    return _checked(_libc.prctl(option, first, second, 0, 0))


def capset(header: bytes, sets: bytes) -> None:
    _checked(_libc.capset(header, sets))


def _checked(answer: int) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer
