import pickle
import struct
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.walking import Read, layout_of, pcap_records
from helpers.captures import Packet, pcap, pcapng
from streamtap.capture.container import LARGEST_PACKET, MOST_RECORDS, Stop
from streamtap.capture.pcapfile import HEADER, PcapLayout, read_header
from streamtap.errors import CaptureFileError

T = 1_700_000_000_123_456_789
FEW = [Packet(b"first", T), Packet(b"", T + 5_000), Packet(b"third, cut", T + 9_000, 1500)]

packets = st.lists(
    st.builds(
        Packet,
        st.binary(max_size=40),
        st.integers(0, 2**32 - 1).map(lambda us: T + us * 1000),
        st.none() | st.integers(40, 2**32 - 1),
    ),
    max_size=20,
)
orders = st.sampled_from("<>")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("unit_ns", [1000, 1])
def test_a_file_of_either_byte_order_and_resolution_is_read(order: str, unit_ns: int) -> None:
    read = Read(pcap(FEW, order=order, unit_ns=unit_ns))
    assert read.packets == [packet.data for packet in FEW]
    assert read.lengths == [5, 0, 1500]
    assert read.times_ns == [packet.time_ns // unit_ns * unit_ns for packet in FEW]
    assert read.links == [1, 1, 1]
    assert read.stop is Stop.END
    assert read.dropped == 0


def test_the_frame_check_sequence_is_no_part_of_the_link_type() -> None:
    assert Read(pcap(FEW, link=0x24000000 | 276)).links == [276] * 3


@pytest.mark.parametrize("snaplen", [0, 0xFFFFFFFF, 1])
def test_a_snapshot_length_that_cannot_be_does_not_matter(snaplen: int) -> None:
    assert len(Read(pcap(FEW, snaplen=snaplen)).packets) == 3


def test_a_large_snapshot_length_allows_larger_packets() -> None:
    large = [Packet(bytes(LARGEST_PACKET + 1))]
    assert Read(pcap(large)).stop is Stop.BAD
    assert len(Read(pcap(large, snaplen=2 * LARGEST_PACKET)).packets) == 1


def test_a_packet_that_was_shorter_on_the_wire_than_captured_has_its_captured_length() -> None:
    assert Read(pcap([Packet(b"twelve bytes", T, 4)])).lengths == [12]


def test_a_record_that_claims_gigabytes_is_bad_where_it_stands() -> None:
    raw = pcap(FEW)
    damaged = raw + struct.pack("<4I", 1_700_000_000, 0, 0xFFFFFFF0, 60) + bytes(100)
    read = Read(damaged)
    assert len(read.packets) == 3
    assert (read.at, read.stop) == (len(raw), Stop.BAD)


@pytest.mark.parametrize("order", ["<", ">"])
def test_zeros_where_a_file_was_never_written_are_no_packets(order: str) -> None:
    raw = pcap([*FEW, Packet(b"")], order=order)  # a header of zeros alone
    for zeros in (0, 5, 100, 100_000):
        read = Read(raw + bytes(zeros))
        assert (len(read.packets), read.at, read.stop) == (3, len(raw) - 16, Stop.BAD)


def test_very_many_records_are_read_a_bounded_part_at_a_time() -> None:
    raw = pcap([Packet(b"", T)] * (MOST_RECORDS + 10))
    layout, at, data = layout_of(raw)
    records, end, why = layout.walk(data, at, len(raw))
    assert (len(records), end, why) == (MOST_RECORDS, len(raw) - 160, Stop.PAUSE)
    assert len(Read(raw).packets) == MOST_RECORDS + 10


def test_a_layout_can_be_sent_to_another_process() -> None:
    layout, _ = read_header(pcap(FEW)[:HEADER])
    assert pickle.loads(pickle.dumps(layout)) == layout


@given(packets, orders, st.integers(0, 10_000))
def test_a_file_cut_anywhere_gives_the_packets_before_the_cut(
    given: list[Packet], order: str, cut: int
) -> None:
    raw = pcap(given, order=order)[: HEADER + cut]
    read = Read(raw)
    records, end = pcap_records(raw, order)
    assert read.packets == [packet.data for packet in given[: len(records)]]
    assert (read.at, read.stop) == (end, Stop.END)


@given(st.binary(max_size=400), orders)
def test_garbage_ends_a_walk_and_raises_nothing(garbage: bytes, order: str) -> None:
    read = Read(pcap(FEW, order=order) + garbage)
    assert read.packets[:3] == [packet.data for packet in FEW]
    assert read.at <= len(read.data)


@given(packets, orders, st.integers(0, 400))
def test_a_walk_stops_before_its_stop(given: list[Packet], order: str, stop: int) -> None:
    layout, start, data = layout_of(raw := pcap(given, order=order))
    records, end, why = layout.walk(data, start, stop)
    assert why is Stop.END
    wanted = [at for at in pcap_records(raw, order)[0] if at < stop]
    assert records.tolist() == wanted
    assert end == max(start, min([at for at in pcap_records(raw, order)[0] if at >= stop] or [end]))


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"", "an empty file"),
        (b"\x7fELF\x02\x01", "a program"),
        (b"name,address\nalice,1", "text"),
        (b'{"event":"flow.opened"}', "JSON"),
        (b"snoop\0\0\0\0\0\0\2", "snoop"),
        (bytes.fromhex("34cdb2a1") + bytes(20), "Kuznetzov"),
        (bytes.fromhex("a1b2cd34") + bytes(20), "Kuznetzov"),
        (b"\x1f\x8b\x08" + bytes(20), "compressed twice"),
        (b"\xfd7zXZ\0" + bytes(20), "xz"),
        (bytes(range(100, 124)), "text"),
        (bytes(24), "not a pcap or pcapng file"),
    ],
)
def test_what_is_no_capture_is_named(head: bytes, what: str) -> None:
    with pytest.raises(CaptureFileError, match=what) as error:
        read_header(head, "some.file")
    assert str(error.value).startswith("some.file: ")
    assert error.value.exit_code == 1


def test_a_header_that_ends_early_and_a_version_that_is_not_known_are_told() -> None:
    raw = pcap([])
    with pytest.raises(CaptureFileError, match="within its header at offset 10"):
        read_header(raw[:10])
    with pytest.raises(CaptureFileError, match=r"pcap version 3\.4"):
        read_header(raw[:4] + struct.pack("<H", 3) + raw[6:])


@given(st.binary(max_size=HEADER))
def test_no_first_bytes_raise_anything_but_a_capture_file_error(head: bytes) -> None:
    for begin in (b"", pcap([])[:4], pcapng(b"\x0a\x0d\x0d\x0a")):
        with suppress(CaptureFileError):
            read_header(begin + head)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("unit_ns", [1000, 1])
def test_a_guess_finds_the_next_record_among_random_bytes(order: str, unit_ns: int) -> None:
    random = np.random.default_rng(1)
    given = [Packet(random.bytes(300), T + i * 1_000_000) for i in range(50)]
    raw = pcap(given, order=order, unit_ns=unit_ns)
    layout, start, data = layout_of(raw)
    assert isinstance(layout, PcapLayout)
    records, _ = pcap_records(raw, order)
    for at, following in pairwise(records[:-4]):
        assert layout.guess(data, at + 1, len(raw)) == following
        assert layout.guess(data, at + 1, following) == -1
    assert layout.guess(data, start, len(raw)) == start


def test_zeros_and_text_are_no_guess() -> None:
    layout, _, _ = layout_of(pcap([]))
    for filler in (bytes(4000), b"MSG alice@example.com " * 200):
        data = np.frombuffer(filler, np.uint8)
        assert layout.guess(data, 0, len(data)) == -1
