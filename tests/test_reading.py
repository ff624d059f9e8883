"""Captures from Python: how they are opened, ended early, and what cannot be meant."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamtap
from helpers import captures
from helpers.captures import Packet
from helpers.packets import ACK, SYN, C, S, Talk, ethernet
from streamtap import ordered
from streamtap.errors import CaptureFileError, NotFound
from streamtap.patterns import Message

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


def children() -> set[str]:
    return set(Path("/proc/thread-self/children").read_text().split())


@pytest.mark.parametrize("count", [0, 1])
def test_who_lets_go_of_a_long_capture_has_closed_it(
    capture: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "PAYS", 0)
    before = descriptors(), children()
    given = streamtap.read(capture)
    for _ in range(count):
        next(given)
    assert children() - before[1]
    del given
    assert (descriptors(), children()) == before


def test_what_was_forked_does_not_end_what_reads_for_another(
    capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "PAYS", 0)
    with streamtap.read(capture) as given:
        first = next(given)
        pid = os.fork()
        if not pid:
            given.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert [first.number, *(record.number for record in given)] == [1, 2, 3, 4, 5, 6, 7]


@READERS
def test_pipes_whose_turn_has_not_come_are_closed_too(
    capture: Path, tmp_path: Path, reader: Reader
) -> None:
    later = tmp_path / "later"
    os.mkfifo(later)
    with later.open("r+b", buffering=0) as writer:
        packet = Packet(ethernet(Talk().c(0, b"late")), 10**18)
        writer.write(captures.pcap([packet]))
        before = descriptors()
        given: Any = reader(capture, later)
        next(given)
        given.close()
        assert descriptors() == before
        writer.write(captures.pcap([packet]))
        with pytest.raises(NotFound):
            next(reader(later, tmp_path / "missing"))
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


TEXT = b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nhi"
OF_CLIENT = b"MSG 3 N %d\r\n%b" % (len(TEXT), TEXT)
OF_SERVER = b"MSG bob@example.com Bob %d\r\n%b" % (len(TEXT), TEXT)
CLIENT, SERVER = ("10.0.0.1", 22), ("192.0.2.1", 50_000)  # by its ports it is the other way round


def midstream(path: Path, said: list[tuple[Any, bytes]]) -> Path:
    """A connection whose beginning was not captured."""
    talk, places, packets = Talk(CLIENT, SERVER), [0, 0], list[bytes]()
    for way, data in said:
        packets.append(talk.packet(way, places[way], data))
        places[way] += len(data)
    path.write_bytes(captures.pcap(Packet(ethernet(one)) for one in packets))
    return path


@pytest.mark.parametrize(
    "said",
    [
        [(C, OF_CLIENT), (S, OF_SERVER)],
        [(S, OF_SERVER), (C, OF_CLIENT)],
        [(S, b"rest of something\r\nCHG 7 NLN\r\n"), (S, OF_SERVER), (C, OF_CLIENT)],
        [(C, b"CHG 7 NLN\r\n"), (S, OF_SERVER), (C, OF_CLIENT)],
    ],
)
def test_who_is_the_client_is_told_by_what_was_said_not_by_ports(
    tmp_path: Path, said: list[tuple[Any, bytes]]
) -> None:
    path = midstream(tmp_path / "talk.pcap", said)
    told = {
        (record.direction, record.body.sender, record.flow and record.flow.local)
        for record in streamtap.read(path)
        if isinstance(record.body, Message)
    }
    assert told == {
        ("sent", None, "10.0.0.1:22"),
        ("received", "bob@example.com", "10.0.0.1:22"),
    }
    assert {part.flow.local.port for part in streamtap.streams(path)} == {22}


def test_where_nothing_tells_the_ports_do(tmp_path: Path) -> None:
    path = midstream(tmp_path / "talk.pcap", [(C, b"\x16\x03\x01"), (S, b"\x16\x03\x03")])
    assert {part.flow.local.port for part in streamtap.streams(path)} == {50_000}


def test_a_handshake_tells_more_than_what_is_said(tmp_path: Path) -> None:
    talk = Talk(CLIENT, SERVER)
    packets = [
        talk.packet(S, -1, flags=SYN | ACK, ack=0),
        talk.c(0, OF_SERVER),
    ]
    path = tmp_path / "talk.pcap"
    path.write_bytes(captures.pcap(Packet(ethernet(one)) for one in packets))
    assert {part.flow.local.port for part in streamtap.streams(path)} == {22}
