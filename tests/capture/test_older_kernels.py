"""What kernels older than the one at hand ask of the callouts, read off the compiled objects."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from streamtap.capture.compiled import FOLDER, VARIANTS

INSTRUCTION = struct.Struct("<BBhi")
JUMPS = (0x05, 0x06)  # classes, with 64 and with 32 bits
ALWAYS, CALL, EXIT = 0x0, 0x8, 0x9
WIDE = 0x18  # two slots
FUNCTION, EXECUTABLE, SYMBOLS = 2, 4, 2


class Function(NamedTuple):
    name: str
    code: bytes


def functions_of(path: Path) -> Iterator[Function]:
    """The functions in an ELF object of 64 bits, low bytes first."""
    data = path.read_bytes()
    at, size, count = *struct.unpack_from("<Q", data, 40), *struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + size * n) for n in range(count)]
    for _, kind, _, _, start, length, link, _, _, entry in sections:
        if kind != SYMBOLS:
            continue
        names = sections[link][4]
        for symbol in range(start, start + length, entry):
            name, info, _, section, value, bytes_ = struct.unpack_from("<IBBHQQ", data, symbol)
            if info & 15 == FUNCTION and sections[section][2] & EXECUTABLE:
                begin = sections[section][4] + value
                text = data[names + name : data.index(b"\0", names + name)].decode()
                yield Function(text, data[begin : begin + bytes_])


def steps(code: bytes, at: int) -> list[tuple[int, bool]]:
    """Where it may go on behind an instruction, and whether a loop may go back there."""
    operation, _, offset, _ = INSTRUCTION.unpack_from(code, 8 * at)
    if operation & 7 not in JUMPS or operation >> 4 == CALL:
        return [(at + 2 if operation == WIDE else at + 1, False)]
    if operation >> 4 == EXIT:
        return []
    if operation >> 4 == ALWAYS:
        return [(at + 1 + offset, True)]
    return [(at + 1, True), (at + 1 + offset, True)]


def falls_back(code: bytes) -> list[tuple[int, int]]:
    """Edges to an instruction on the way here that are no jumps: a walk as older verifiers do it,
    depth first (check_cfg in kernel/bpf/verifier.c)."""
    refused = []
    way, left = [0], [iter(steps(code, 0))]
    begun, done = {0}, set[int]()
    while way:
        for target, may_loop in left[-1]:
            if target in begun and target not in done and not may_loop:
                refused.append((way[-1], target))
            elif target not in begun:
                begun.add(target)
                way.append(target)
                left.append(iter(steps(code, target)))
                break
        else:
            done.add(way.pop())
            left.pop()
    return refused


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_loop_runs_into_its_own_head(variant: str) -> None:
    functions = list(functions_of(FOLDER / VARIANTS[variant]))
    assert {"stream_sent", "stream_received", "adopt_sockets"} <= {one.name for one in functions}
    assert {one.name: falls_back(one.code) for one in functions if falls_back(one.code)} == {}


def test_a_loop_that_does_is_found() -> None:
    again = INSTRUCTION.pack(0x05, 0, 1, 0)  # goto +1: into the loop
    tail = INSTRUCTION.pack(0xB7, 0, 0, 0)  # r0 = 0, and on into the head
    head = INSTRUCTION.pack(0x15, 0, -2, 0)  # if r0 == 0 goto the tail
    assert falls_back(again + tail + head + INSTRUCTION.pack(0x95, 0, 0, 0)) == [(1, 2)]
