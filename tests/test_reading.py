"""Captures from Python: how they are opened, ended early, and what cannot be meant."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamtap
from helpers import captures
from helpers.captures import Packet
from helpers.packets import Talk, ethernet
from streamtap.errors import CaptureFileError

Reader = Callable[..., Iterator[Any]]
READERS = pytest.mark.parametrize("reader", [streamtap.read, streamtap.streams])


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    talk = Talk()
    packets = [*talk.opening(), talk.c(0, b"hello"), talk.s(0, b"you"), *talk.closing(5, 3)]
    path = tmp_path / "talk.pcap"
    path.write_bytes(captures.pcap(Packet(ethernet(one)) for one in packets))
    return path


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@READERS
def test_what_is_ended_early_is_closed_once(capture: Path, reader: Reader) -> None:
    before = descriptors()
    given: Any = reader(capture)
    next(given)
    given.close()
    # A descriptor of somebody else's, who got the number: it stays his.
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    given.close()
    assert list(given) == []
    for descriptor in others:
        os.close(descriptor)
    assert descriptors() == before


def test_a_capture_may_be_closed_before_a_record_is_asked_for(capture: Path) -> None:
    before = descriptors()
    with streamtap.read(capture) as records:
        pass
    assert list(records) == []
    assert descriptors() == before


@READERS
def test_a_damaged_capture_is_read_as_far_as_it_goes(capture: Path, reader: Reader) -> None:
    capture.write_bytes(capture.read_bytes()[:-5])
    given = reader(capture)
    parts: list[Any] = []
    with pytest.raises(CaptureFileError, match="ends within a record"):
        parts.extend(given)
    assert parts


@READERS
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "nothing to read"),
        (("a.pcap",), {"ports": [65536]}, "65536 is no port"),
        (("a.pcap",), {"ports": ["80"]}, "'80' is no port"),
        (("a.pcap",), {"hosts": ["localhost"]}, "'localhost'"),
    ],
)
def test_what_cannot_be_meant_is_told_at_the_call(
    reader: Reader, arguments: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reader(*arguments, **options)


@READERS
def test_a_path_is_anything_that_names_a_file(capture: Path, reader: Reader) -> None:
    count = len(list(reader(capture)))
    assert len(list(reader(os.fspath(capture)))) == count
    assert len(list(reader(os.fsencode(capture)))) == count
