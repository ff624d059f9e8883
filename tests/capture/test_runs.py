"""What stretches of a capture become: a run for each that speaks without a hole, and nothing that
depends on which other connection stands beside it."""

from pathlib import Path

from helpers import captures
from helpers.captures import Packet
from helpers.packets import ethernet, ipv4, tcp
from streamtap import ordered
from streamtap.model import Chunk, Gap

SECOND_NS = 1_700_000_000_000_000_000
CLIENT, SERVER = "10.0.0.1", "192.0.2.1"
ACK = 16
SIZE = 50  # bytes of a segment


def said(port: int, begin: int, *numbers: int) -> list[bytes]:
    """Segments of a stream by their number in it, which begins at sequence number `begin`."""
    return [
        ethernet(
            ipv4(CLIENT, SERVER, tcp((port, 1863), begin + number * SIZE, 1, ACK, b"x" * SIZE))
        )
        for number in numbers
    ]


def chunks(path: Path, *streams: list[bytes]) -> list[list[tuple[int, int]]]:
    """Offset and length of the chunks of each flow, and of its gaps; all say one after another."""
    frames = [frame for together in zip(*streams, strict=True) for frame in together]
    packets = [Packet(frame, SECOND_NS + number) for number, frame in enumerate(frames)]
    path.write_bytes(captures.pcap(packets))
    flows: dict[int, list[tuple[int, int]]] = {}
    for part in ordered.streams(path):
        item = part.item
        if isinstance(item, Chunk):
            assert item.data is not None
            flows.setdefault(part.flow.flow_id, []).append((item.offset, len(item.data)))
        elif isinstance(item, Gap):
            flows.setdefault(part.flow.flow_id, []).append((item.offset, -item.length))
    return list(flows.values())


def test_what_is_in_order_is_one_chunk_whatever_stands_beside_it(tmp_path: Path) -> None:
    begins = (5_000_000, 1000, 3_000_000_000, 70_000)
    streams = [said(40000 + n, begin, *range(6)) for n, begin in enumerate(begins)]
    assert chunks(tmp_path / "a.pcap", *streams) == [[(0, 6 * SIZE)]] * 4


def test_what_came_again_leaves_no_gap_and_what_is_missing_does(tmp_path: Path) -> None:
    again = said(40000, 1000, 0, 1, 2, 1, 2, 3, 4, 5)
    missing = said(40001, 1000, 0, 1, 2, 4, 5, 6, 7, 8)
    told = chunks(tmp_path / "a.pcap", again, missing)
    assert told[0] == [(0, 6 * SIZE)]
    assert told[1] == [(0, 3 * SIZE), (3 * SIZE, -SIZE), (4 * SIZE, 5 * SIZE)]
