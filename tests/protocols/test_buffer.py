"""The buffer keeps places in the stream and looks at each byte once."""

import random
import re

import pytest

from streamtap.protocols._buffer import ByteBuffer


def filled(data: bytes, offset: int = 0) -> ByteBuffer:
    buffer = ByteBuffer(offset)
    buffer.append(data)
    return buffer


def test_taking_moves_the_place_in_the_stream() -> None:
    buffer = filled(b"hello world", 100)
    assert buffer.take(20) is None
    assert buffer.take(6) == b"hello "
    assert (buffer.offset, buffer.end, len(buffer)) == (106, 111, 5)
    buffer.skip(5)
    buffer.pass_over(1000)
    assert (buffer.offset, len(buffer)) == (1111, 0)


def test_what_was_appended_is_a_copy() -> None:
    source = bytearray(b"abc")
    buffer = ByteBuffer()
    buffer.append(memoryview(source))
    source[:] = b"xyz"
    assert buffer.take(3) == b"abc"


def test_lines_come_with_their_end_and_only_when_it_is_there() -> None:
    buffer = filled(b"one\r\ntwo")
    assert buffer.line(100) == 5
    assert buffer.take(5) == b"one\r\n"
    assert buffer.line(100) == 0
    buffer.append(b"\n")
    assert buffer.line(100) == 4


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_above_the_limit_is_cut_at_the_same_place_however_it_came(cut: int) -> None:
    buffer = ByteBuffer()
    data = b"0123456789\nrest\n"
    taken = []
    for start in range(0, len(data), cut):
        buffer.append(data[start : start + cut])
        while length := buffer.line(8):
            taken.append(buffer.take(8 if length < 0 else length))
    assert taken == [b"01234567", b"89\n", b"rest\n"]


def test_a_line_of_exactly_the_limit_is_whole() -> None:
    assert filled(b"1234567\n").line(8) == 8
    assert filled(b"12345678\n").line(8) == -1
    assert filled(b"1234567").line(8) == 0


def test_indices_are_relative_to_what_is_held() -> None:
    buffer = filled(b"xxaXbXc")
    buffer.skip(2)
    assert buffer.find(b"X") == 1
    assert buffer.find(b"X", 2) == 3
    assert buffer.find(b"X", 2, 3) == -1
    assert buffer.rfind(b"X", 0, len(buffer)) == 3
    assert buffer.match(re.compile(rb"aX")) == 2
    assert buffer.match(re.compile(rb"aX"), 0, 1) == -1
    assert buffer.search(re.compile(rb"bX"), 0, len(buffer)) == (2, 4)
    assert buffer.peek(1, 2) == b"Xb"
    assert buffer.peek(4, 100) == b"c"


def test_any_mix_of_operations_agrees_with_plain_bytes() -> None:
    draw = random.Random(3)
    for _ in range(200):
        buffer, plain, offset = ByteBuffer(), b"", 0
        for _ in range(60):
            match draw.randrange(3):
                case 0:
                    data = bytes(draw.choices(b"ab\n", [5, 5, 1], k=draw.randrange(3000)))
                    buffer.append(data)
                    plain += data
                case 1:
                    count = draw.randint(0, len(plain))
                    assert buffer.take(count) == plain[:count]
                    plain, offset = plain[count:], offset + count
                case _:
                    start = draw.randint(0, len(plain))
                    end = plain.find(b"\n", start) + 1
                    assert buffer.line(10**9, start) == (end - start if end else 0)
            assert (buffer.offset, len(buffer)) == (offset, len(plain))


class Counting(bytearray):
    """Counts the bytes that searches look at and that trimming moves."""

    work = 0

    def find(self, needle, start=0, stop=None, /):  # type: ignore[no-untyped-def]
        found = super().find(needle, start, stop)
        end = len(self) if stop is None else stop
        self.work += (end if found < 0 else found + 1) - start
        return found

    def __delitem__(self, key, /):  # type: ignore[no-untyped-def]
        super().__delitem__(key)
        self.work += len(self)


def test_a_long_line_that_comes_byte_by_byte_is_searched_once() -> None:
    buffer = ByteBuffer()
    data = buffer._data = Counting()
    for _ in range(20_000):
        buffer.append(b"x")
        assert buffer.line(10**9) == 0
    assert data.work <= 2 * 20_000


def test_many_small_lines_move_each_byte_a_few_times_at_most() -> None:
    buffer = ByteBuffer()
    data = buffer._data = Counting()
    total = 0
    for _ in range(50):
        buffer.append(b"line\n" * 4000)
        total += 5 * 4000
        for _ in range(3900):
            assert buffer.line(100) == 5
            buffer.skip(5)
    assert data.work <= 4 * total
    assert len(data) <= 2 * len(buffer) + 5 * 4000


def test_an_emptied_buffer_holds_no_memory() -> None:
    buffer = filled(bytes(1_000_000))
    buffer.skip(1_000_000)
    assert len(buffer._data) == 0
