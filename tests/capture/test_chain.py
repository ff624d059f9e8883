"""Records followed in lanes are the records followed one by one."""

import struct
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.walking import Read, layout_of, pcap_records, pcapng_blocks
from helpers.captures import Packet, enhanced, interface, obsolete, pcap, pcapng, section, simple
from streamtap.capture import chain
from streamtap.capture.chain import Form, follow
from streamtap.capture.container import Stop

FORM = Form("<", 8, 16, 16, 16, 1 << 20)
T = 1_700_000_000_000_000_000


@cache
def mixed() -> bytes:
    """A file of 8,000 records."""
    return file_of(sizes_of(1, 8000))


@cache
def blocks() -> bytes:
    """As many, in a pcapng file."""
    packets = [enhanced(Packet(bytes(size % 97), T)) for size in range(8000)]
    return pcapng(section(), interface(), *packets)


def file_of(sizes: list[int], order: str = "<", seed: int = 0) -> bytes:
    random = np.random.default_rng(seed)
    return pcap(
        [Packet(random.bytes(size), T + i * 1_000_000) for i, size in enumerate(sizes)],
        order=order,
    )


def sizes_of(seed: int, count: int) -> list[int]:
    """Stretches of small packets and of large ones: lanes of very different numbers of records."""
    random = np.random.default_rng(seed)
    parts = [random.integers(0, top, count // 4) for top in (40, 1514, 60, 3000)]
    return [int(size) for part in parts for size in part]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("seed", range(4))
def test_a_pcap_file_in_lanes_is_the_file_one_by_one(order: str, seed: int) -> None:
    raw = file_of(sizes_of(seed, 12_000), order, seed)
    layout, start, data = layout_of(raw)
    records, end, why = layout.walk(data, start, len(raw))
    assert (records.tolist(), end) == pcap_records(raw, order)
    assert why is Stop.END


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_pcapng_file_in_lanes_is_the_file_one_by_one(order: str) -> None:
    random = np.random.default_rng(2)
    kinds = (enhanced, enhanced, enhanced, obsolete, simple)
    packets = [
        kinds[int(random.integers(0, 5))](Packet(random.bytes(size), T + size), order)
        for size in sizes_of(3, 12_000)
    ]
    raw = pcapng(section(order), interface(order), *packets)
    layout, start, data = layout_of(raw)
    records, end, why = layout.walk(data, start, len(raw))
    assert (records.tolist(), end) == pcapng_blocks(raw, order)
    assert why is Stop.END


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 100))
def test_wrong_guesses_are_found_out(seed: int, percent: int) -> None:
    raw = mixed()
    data = np.frombuffer(raw, np.uint8)
    true, end = pcap_records(raw)
    random = np.random.default_rng(seed)
    starts = np.array(true)

    def guess(start: int, stop: int, near: int) -> int:
        if random.integers(0, 100) < percent:
            return int(random.integers(start, stop))
        found = int(starts[min(len(starts) - 1, int(np.searchsorted(starts, start)))])
        return found if start <= found < stop else -1

    records, at = follow(data, 24, len(raw), FORM, guess)
    assert (records.tolist(), at) == (true, end)


@settings(max_examples=40)
@given(st.integers(0, 7999), st.integers(0, 2**32 - 1), st.integers(0, 2_000_000))
def test_a_damaged_length_ends_the_walk_where_it_would_end_one_by_one(
    record: int, length: int, cut: int
) -> None:
    raw = bytearray(mixed())
    struct.pack_into("<I", raw, pcap_records(bytes(raw))[0][record] + 8, length)
    raw = raw[: max(24, len(raw) - cut)]
    layout, start, data = layout_of(bytes(raw))
    records, end, why = layout.walk(data, start, len(raw))
    wanted, at = [], 24
    while at + 16 <= len(raw):
        (captured,) = struct.unpack_from("<I", raw, at + 8)
        if captured > 1 << 20 or at + 16 + captured > len(raw):
            break
        wanted.append(at)
        at += 16 + captured
    assert records.tolist() == wanted
    assert end == at
    bad = at + 16 <= len(raw) and struct.unpack_from("<I", raw, at + 8)[0] > 1 << 20
    assert why is (Stop.BAD if bad else Stop.END)


@settings(max_examples=40)
@given(st.integers(0, 7999), st.sampled_from((0, 4, 8, 12, 13, 28, 400, 1 << 20, 2**32 - 4)))
def test_a_damaged_block_is_bad_where_it_stands(block: int, size: int) -> None:
    raw = bytearray(blocks())
    places, _ = pcapng_blocks(bytes(raw))
    struct.pack_into("<I", raw, places[block] + 4, size)
    read = Read(bytes(raw))
    whole = places[block] + size <= len(raw)
    assert len(read.packets) == block
    assert read.at == places[block]
    assert read.stop is (Stop.BAD if whole or size > 1 << 24 else Stop.END)


@pytest.mark.parametrize("block", range(3000, 3010))
def test_zeros_among_the_blocks_are_bad_where_they_begin(block: int) -> None:
    raw = bytearray(blocks())
    places, _ = pcapng_blocks(bytes(raw))
    raw[places[block] : places[block + 12]] = bytes(places[block + 12] - places[block])
    read = Read(bytes(raw))
    assert (len(read.packets), read.at, read.stop) == (block, places[block], Stop.BAD)


def test_a_long_range_is_cut_into_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = file_of(sizes_of(0, 12_000))
    layout, start, data = layout_of(raw)
    alone = 0
    plainly = chain._follow_plainly

    def counted(*given: object) -> tuple[list[int], int]:
        nonlocal alone
        found = plainly(*given)  # type: ignore[arg-type]
        alone += len(found[0])
        return found

    monkeypatch.setattr(chain, "_follow_plainly", counted)
    records, _, _ = layout.walk(data, start, len(raw))
    assert len(records) == 12_000
    assert alone < 3000


def test_a_capture_inside_a_capture_does_not_mislead_it() -> None:
    inner = file_of(sizes_of(4, 400))
    random = np.random.default_rng(5)
    pieces = [
        inner[at : at + 1448] if random.integers(0, 2) else random.bytes(300)
        for at in range(0, len(inner), 100)
    ]
    outer = pcap([Packet(piece, T + i * 1000) for i, piece in enumerate(pieces)])
    read = Read(outer)
    assert read.packets == pieces
