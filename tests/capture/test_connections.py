"""Connections of a capture: when they begin and end, and what it costs to know so many."""

import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest

from helpers import captures
from helpers.captures import Packet
from helpers.packets import ACK, FIN, RST, SYN, C, S, Talk, ethernet
from streamtap import ordered
from streamtap.capture import batch
from streamtap.capture.connections import CROWDED, FEW, LINGER_NS, UNANSWERED
from streamtap.model import Chunk, Closed, Direction, Gap, Opened
from streamtap.ordered import choose, open_source
from streamtap.reading import Keeping

MOST_S = 10  # of processor time: a tenth of it is plenty, and what it replaced took minutes


def written(path: Path, packets: Iterable[bytes], step_ns: int = 1_000_000) -> Path:
    frames = (Packet(ethernet(one), at * step_ns) for at, one in enumerate(packets, 1))
    path.write_bytes(captures.pcap(frames))
    return path


def heard(path: Path) -> list[tuple[int, Direction, int, bytes | None]]:
    """Flow, direction, offset and bytes of all chunks and gaps."""
    return [
        (part.flow.flow_id, part.direction, part.item.offset, data)
        for part in ordered.streams(path)
        if isinstance(part.item, Chunk | Gap)
        for data in [None if isinstance(part.item, Gap) else bytes(part.item.data or b"")]
    ]


@pytest.mark.parametrize("answered", [True, False])
def test_what_is_sent_behind_a_fin_is_no_part_of_the_stream(tmp_path: Path, answered: bool) -> None:
    """Nor is the FIN, which has a number as bytes have, a byte that is missing."""
    talk = Talk()
    packets = [*talk.opening(), talk.c(0, b"hello"), talk.packet(C, 5, flags=FIN | ACK)]
    if answered:
        packets.append(talk.s(0, b"welcome", ack=6))
    packets += [talk.packet(C, 6, b"more", ack=0), talk.packet(S, 7 * answered, flags=ACK, ack=6)]
    said = [(1, C, 0, b"hello"), (1, S, 0, b"welcome")]
    assert heard(written(tmp_path / "half.pcap", packets)) == said[: 1 + answered]


@pytest.mark.parametrize(("after_ns", "flows"), [(LINGER_NS // 10, 1), (LINGER_NS, 2)])
def test_the_same_numbers_again_begin_a_connection_once_the_one_before_is_over(
    tmp_path: Path, after_ns: int, flows: int
) -> None:
    first, second = Talk(), Talk()
    packets = [*first.opening(), first.c(0, b"one"), *first.closing(3, 0)]
    packets += [*second.opening(), second.c(0, b"one"), *second.closing(3, 0)]
    path = written(tmp_path / "again.pcap", packets, after_ns)
    source = open_source([path], choose())
    items = [item for items in source for item in items]
    assert sum(isinstance(item, Opened) for item in items) == flows
    source.close()


def test_attempts_to_connect_push_out_no_connection(tmp_path: Path) -> None:
    """However many there are; and one that is answered after all is a connection."""
    attempts = [Talk(("10.0.0.2", 1024 + number)) for number in range(100)]
    talk = Talk()
    packets = [*talk.opening(), talk.c(0, b"before")]
    packets += [attempt.packet(C, -1, flags=SYN) for attempt in attempts]
    packets += [talk.c(6, b"behind"), attempts[-1].packet(S, -1, flags=SYN | ACK)]
    packets += [attempts[-1].packet(C, 0, flags=ACK), attempts[-1].c(0, b"answered")]
    source = open_source([written(tmp_path / "scan.pcap", packets)], choose(), max_flows=8)
    items = [item for items in source for item in items] + source.finish()
    opened = [item.flow for item in items if isinstance(item, Opened)]
    assert [(flow.local.port, flow.midstream) for flow in opened] == [
        (40000, False),
        (1024 + 99, False),
    ]
    assert source.evicted == 0
    assert source.passed[CROWDED] + source.passed[UNANSWERED] == 100
    source.close()


def test_who_was_silent_longest_is_given_up(tmp_path: Path) -> None:
    """Whichever end of the others spoke last."""
    talks = [Talk(("10.0.0.2", 1024 + number)) for number in range(8)]
    packets = [packet for talk in talks for packet in (*talk.opening(), talk.s(0, b"hello"))]
    packets.append(talks[0].c(0, b"still here"))
    source = open_source([written(tmp_path / "many.pcap", packets)], choose(), max_flows=8)
    closed = [item.flow_id for items in source for item in items if isinstance(item, Closed)]
    assert (closed, source.evicted) == ([2], 1)
    source.close()


def test_no_more_are_open_than_may_be_also_where_a_stretch_has_many(tmp_path: Path) -> None:
    """And none of them is refused."""
    talks = [Talk(("10.0.0.2", 1024 + number)) for number in range(1000)]
    packets = [packet for talk in talks for packet in (*talk.opening(), talk.c(0, b"hello"))]
    path = written(tmp_path / "many.pcap", packets + [talk.c(5, b"again") for talk in talks])
    reading = Keeping([path], chosen=choose(), taps=[], max_flows=200)
    for _ in reading.batches():
        pass
    assert (reading.flows, reading.limits, reading.bytes) == (1000, 0, 10_000)
    reading.close()
    source = open_source([path], choose(), max_flows=200)
    still: set[int] = set()
    most = 0
    for item in chain.from_iterable(source):
        if isinstance(item, Opened):
            still.add(item.flow.flow_id)
        elif isinstance(item, Closed):
            still.remove(item.flow_id)
        most = max(most, len(still))
    assert most <= 200 + FEW
    source.close()


def test_many_connections_are_taken_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets: list[bytes] = []
    for number in range(20):
        talk = Talk(("10.0.0.2", 1024 + number))
        packets += [*talk.opening(), talk.c(0, b"hello"), talk.s(0, b"you"), talk.c(5, b"!")]
    packets += [packet for at in range(6) for packet in packets[at::6]]  # and all of it again
    path = written(tmp_path / "many.pcap", packets)
    at_once = list(ordered.streams(path, segments=True))
    monkeypatch.setattr(batch, "STRANDS", 3)
    assert list(ordered.streams(path, segments=True)) == at_once
    assert len(at_once) == 20 * 3


def cheap(path: Path) -> None:
    begin = time.process_time()
    for _ in ordered.streams(path):
        pass
    assert time.process_time() - begin < MOST_S


def test_ends_that_are_used_again_and_again_cost_no_more_each_time(tmp_path: Path) -> None:
    packets = []
    for number in range(40_000):
        talk = Talk(isn=(number * 100, number * 77))
        packets += [*talk.opening()[:2], talk.packet(C, 0, flags=RST | ACK)]
    cheap(written(tmp_path / "again.pcap", packets, 1000))


def test_connections_without_number_that_end_cost_no_more_each_time(tmp_path: Path) -> None:
    packets = []
    for number in range(100_000):
        talk = Talk((f"10.1.{number >> 16}.1", number & 0xFFFF))
        packets += [talk.packet(C, -1, flags=SYN), talk.packet(S, -1, flags=RST | ACK, ack=0)]
    cheap(written(tmp_path / "refused.pcap", packets, 1000))
