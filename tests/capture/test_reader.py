"""What is read of a file that is not whole, and what is said of it."""

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import captures
from helpers.captures import Packet
from streamtap.capture.inputs import open_input
from streamtap.capture.reader import Reader

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}
PACKETS = [Packet(number.to_bytes(4, "big") * 50, number * 1_000_000) for number in range(1000)]
PCAP = captures.pcap(PACKETS)


def read(path: Path, data: bytes, stretch: int = 1 << 16) -> tuple[int, str]:
    """How many packets there are, and what is wrong with the file."""
    path.write_bytes(data)
    with open_input(str(path)) as source:
        reader = Reader(source, stretch=stretch)
        count = sum(len(packets.offsets) for packets in reader)
    return count, str(reader.problem or "").removeprefix(f"{path}: ")


@pytest.mark.parametrize("stretch", [64, 1 << 16, 1 << 20])
@pytest.mark.parametrize("kind", PACK)
def test_why_compressed_data_ends_goes_before_that_a_record_is_cut_by_it(
    kind: str, stretch: int, tmp_path: Path
) -> None:
    cut = PACK[kind](PCAP)[:-20]
    count, problem = read(tmp_path / "file", cut, stretch)
    assert 0 < count < len(PACKETS)
    assert problem == f"the {kind} data ends too early at offset {len(cut)}"


@pytest.mark.parametrize("kind", PACK)
def test_a_record_that_is_cut_in_whole_compressed_data_is_told_as_such(
    kind: str, tmp_path: Path
) -> None:
    count, problem = read(tmp_path / "file", PACK[kind](PCAP[:-1]))
    assert count == len(PACKETS) - 1
    assert problem == f"the file ends within a record at offset {len(PCAP) - 216}"


def test_what_is_no_record_is_told_though_the_data_behind_it_is_damaged(tmp_path: Path) -> None:
    packed = PACK["gzip"](PCAP[:-216] + b"\xff" * 5000)
    for stretch in (64, 1 << 20):
        count, problem = read(tmp_path / "file", packed[:-8] + bytes(8), stretch)
        assert count == len(PACKETS) - 1
        assert problem == f"what stands here is no record at offset {len(PCAP) - 216}"
