"""Several processes decode what one would: whatever the file, and wherever it is cut."""

import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import captures
from helpers.captures import Packet
from helpers.packets import ethernet, ipv4, ipv6, tcp
from streamtap.capture import pcapfile, pcapng
from streamtap.capture.container import Layout
from streamtap.capture.inputs import open_input
from streamtap.capture.offline import OfflineSource
from streamtap.capture.packets import Chosen
from streamtap.capture.reader import Single
from streamtap.capture.stretches import Serial, StretchSource
from streamtap.capture.workers import CHANGES, Workers
from streamtap.model import Closed, Direction, Segment

CHOSEN = Chosen(keys=(3, 5, 7))
PART = 4096
DEADLINE_S = 60
SECOND_NS = 1_700_000_000_000_000_000
CLIENT, SERVER = "10.0.0.1", "192.0.2.1"
PORTS = 40000, 1863
ACK = 16
Told = dict[tuple[int, Direction], bytes]


def talk(payloads: Iterator[bytes]) -> list[Packet]:
    """Packets of a connection whose client says these payloads."""
    packets, sequence = [], 1000
    for number, payload in enumerate(payloads):
        frame = ethernet(ipv4(CLIENT, SERVER, tcp(PORTS, sequence, 1, ACK, payload)))
        packets.append(Packet(frame, SECOND_NS + number * 1_000_000))
        sequence += len(payload)
    return packets


def words() -> Iterator[bytes]:
    for number in range(600):
        yield b"%d," % number * (1 + number % 40)


def decoys() -> Iterator[bytes]:
    """Payloads that hold what looks like records of a capture, to whoever does not know better."""
    inner = captures.pcap([Packet(bytes(60), SECOND_NS + n) for n in range(9)])[24:]
    for _ in range(80):
        yield inner


FILES = {
    "words": captures.pcap(talk(words())),
    "decoys": captures.pcap(talk(decoys())),
    "big-endian nanoseconds": captures.pcap(talk(words()), order=">", unit_ns=1),
    "pcapng": captures.pcapng(
        captures.section(), captures.interface(), *map(captures.enhanced, talk(words()))
    ),
    "interfaces all along": captures.pcapng(
        captures.section(),
        captures.interface(),
        *(
            block
            for number, packet in enumerate(talk(words()))
            for block in (
                [captures.interface()] if number % 20 == 0 and number < 20 * (CHANGES + 4) else []
            )
            + [captures.enhanced(packet)]
        ),
    ),
    "processes all along": captures.pcapng(
        captures.section(),
        captures.interface(),
        *(
            captures.process(number, [(2, b"it"), (3, b"/" + b"long/" * 400 + b"%d" % number)])
            + captures.enhanced(packet, given=[captures.pid_option(number)])
            for number, packet in enumerate(talk(words()), 1)
        ),
    ),
    "one large record": captures.pcap(
        [*talk(words())[:300], Packet(bytes(300_000), SECOND_NS), *talk(words())[300:]]
    ),
}


def read(stretches: StretchSource) -> tuple[Told, list[str], int]:
    """The bytes of each direction, what is wrong with the file, and how many packets it has."""
    source = OfflineSource(stretches, CHOSEN)
    told: dict[tuple[int, Direction], bytes] = defaultdict(bytes)
    items = [item for batch in source for item in batch] + source.finish()
    for item in items:
        if isinstance(item, Segment):
            told[item.flow_id, item.direction] += item.data
    assert isinstance(items[-1], Closed)
    problems = [str(problem) for problem in source.problems]
    source.close()
    return dict(told), problems, source.packets


def by_one(path: Path) -> tuple[Told, list[str], int]:
    return read(Serial(Single(open_input(str(path))), CHOSEN))


def by_several(path: Path, part: int = PART) -> tuple[Told, list[str], int]:
    return read(Workers(open_input(str(path)), CHOSEN, 2, part=part))


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Processes that wait for one another would wait for ever."""

    def give_up(number: int, frame: object) -> None:
        pytest.fail(f"not within {DEADLINE_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(DEADLINE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", FILES)
def test_several_processes_read_what_one_reads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(FILES[name])
    one = by_one(path)
    assert one[1] == []
    assert by_several(path) == one
    assert by_several(path, 65_537) == one


@pytest.mark.parametrize("name", FILES)
def test_walks_that_pause_make_no_difference(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "capture"
    path.write_bytes(FILES[name])
    one = by_one(path)
    for module in (pcapfile, pcapng):
        monkeypatch.setattr(module, "MOST_RECORDS", 7)
    assert by_one(path) == one
    assert by_several(path) == one


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 60, 5000])
def test_a_cut_file_is_read_to_the_same_place(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(FILES["words"][:-cut])
    one = by_one(path)
    assert len(one[1]) == 1
    assert by_several(path) == one


def test_damage_in_the_middle_is_told_at_the_same_place(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    whole = FILES["words"]
    path.write_bytes(whole[:20_000] + b"\xff" * 200 + whole[20_200:])
    one = by_one(path)
    assert len(one[1]) == 1
    assert by_several(path) == one


def test_nothing_stays_when_reading_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(FILES["words"])
    before = len(os.listdir("/proc/self/fd"))
    workers = Workers(open_input(str(path)), CHOSEN, 2, part=PART)
    next(iter(workers))
    processes = workers.pids
    assert len(processes) == 2
    workers.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in processes)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_guess_is_wrong_somewhere_among_decoys(tmp_path: Path) -> None:
    """Or the tests above would show nothing of it."""
    import numpy as np

    from streamtap.capture.pcapfile import read_header

    whole = FILES["decoys"]
    layout: Layout
    layout, start = read_header(whole[:24])
    data = np.frombuffer(whole, np.uint8)
    records, _, _ = layout.walk(data, start, len(data))
    guesses = [layout.guess(data, at, at + PART) for at in range(PART, len(data), PART)]
    assert set(guesses) - set(records.tolist()) - {-1}


def test_a_flow_has_its_number_by_when_it_began(tmp_path: Path) -> None:
    """Whatever the numbers of its ends hash to."""
    import streamtap

    path = tmp_path / "capture"
    packets = []
    for number in range(50):
        frame = ethernet(
            ipv6("fe80::1", "fe80::2", tcp((50_000 - number * 7, 1863), 1, 1, ACK, b"hello"))
        )
        packets.append(Packet(frame, SECOND_NS + number))
    path.write_bytes(captures.pcap(packets))
    flows = {part.flow.flow_id: part.flow.local.port for part in streamtap.streams(path)}
    assert flows == {number + 1: 50_000 - number * 7 for number in range(50)}
