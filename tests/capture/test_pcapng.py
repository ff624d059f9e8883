import pickle
import struct
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.walking import Read, layout_of, pcapng_blocks
from helpers.captures import (
    COMMENT,
    Options,
    Packet,
    apple_process,
    block,
    enhanced,
    interface,
    obsolete,
    pcapng,
    pid_option,
    process,
    section,
    simple,
    statistics,
)
from streamtap.capture.container import UNKNOWN_LINK, Process, Stop
from streamtap.capture.drops import Dropped
from streamtap.capture.pcapng import LONGEST
from streamtap.errors import CaptureFileError

T = 1_700_000_000_123_456_000
A, B = Packet(b"alpha", T), Packet(b"beta", T + 7_000, 60)
orders = pytest.mark.parametrize("order", ["<", ">"])
REFUSED = b"\x0a\x0d\x0d\x0a"


def named(name: str) -> Options:
    return [(2, name.encode())]


# --- packets --------------------------------------------------------------------------------------


@orders
def test_all_three_packet_blocks_are_read_in_either_byte_order(order: str) -> None:
    read = Read(
        pcapng(
            section(order),
            interface(order, link=101, snaplen=64),
            enhanced(A, order),
            obsolete(B, order, drops=0xFFFF),
            simple(Packet(b"gamma"), order),
        )
    )
    assert read.packets == [b"alpha", b"beta", b"gamma"]
    assert read.lengths == [5, 60, 5]
    assert read.times_ns == [T, T + 7_000, 0]  # a simple packet block has no time
    assert read.links == [101] * 3
    assert read.stop is Stop.END
    assert read.at == len(read.data)


@orders
def test_a_simple_packet_is_cut_at_the_snapshot_length(order: str) -> None:
    cut = simple(Packet(b"12345678", 0, 1500), order)
    read = Read(pcapng(section(order), interface(order, snaplen=7), cut))
    assert (read.packets, read.lengths) == ([b"1234567"], [1500])


def test_sections_of_different_byte_order_follow_one_another() -> None:
    read = Read(
        pcapng(
            *(section(), interface(link=1), enhanced(A)),
            *(section(">"), interface(">", link=113), enhanced(B, ">")),
            *(section(), interface(link=276), enhanced(A)),
        )
    )
    assert read.packets == [b"alpha", b"beta", b"alpha"]
    assert read.links == [1, 113, 276]


@orders
def test_each_interface_has_its_link_and_its_times(order: str) -> None:
    seconds = 1_700_000_000
    read = Read(
        pcapng(
            section(order),
            interface(order, link=1, resolution=9),
            interface(order, link=12, resolution=0x80 | 10),
            interface(order, link=101, resolution=0, offset_s=-50),
            interface(order, link=113, resolution=12),
            interface(order, link=113, resolution=0x80 | 40),
            enhanced(A, order, interface=0, ticks=T + 1),
            enhanced(A, order, interface=1, ticks=(seconds << 10) + 512),
            enhanced(A, order, interface=2, ticks=seconds),
            enhanced(A, order, interface=3, ticks=1000 * 10**12 + 7_999),
            enhanced(A, order, interface=4, ticks=(1000 << 40) + (1 << 39)),
        )
    )
    assert read.links == [1, 12, 101, 113, 113]
    assert read.times_ns == [
        T + 1,
        seconds * 10**9 + 500_000_000,
        (seconds - 50) * 10**9,
        1000 * 10**9 + 7,
        1000 * 10**9 + 500_000_000,
    ]


@given(st.integers(0, 255), st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(0, 2**64 - 1)))
def test_times_are_exact_to_a_nanosecond_or_at_their_limit(
    resolution: int, offset_s: int, ticks: list[int]
) -> None:
    packets = [enhanced(A, ticks=tick) for tick in ticks]
    read = Read(pcapng(section(), interface(resolution=resolution, offset_s=offset_s), *packets))
    power = resolution & 0x7F
    units = 2**power if resolution & 0x80 else 10**power
    limit = 2**63 - 1
    # A time beyond what 64 bits hold is somewhere near the limit, which is the year 2262.
    offset_ns = max(-limit, min(limit, offset_s * 10**9))
    for tick, time_ns in zip(ticks, read.times_ns, strict=True):
        exact = tick * 10**9 // units
        if exact < limit - 10**10 and exact + offset_ns < limit - 10**10:
            assert abs(time_ns - exact - offset_ns) <= 1
        else:
            assert time_ns >= min(limit - 3 * 10**10, limit - 3 * 10**10 + offset_ns)


@orders
def test_packets_of_an_interface_that_was_never_described_have_no_known_link(order: str) -> None:
    read = Read(pcapng(section(order), interface(order), enhanced(A, order, interface=7)))
    assert (read.packets, read.links) == ([b"alpha"], [UNKNOWN_LINK])
    assert Read(pcapng(section(order), simple(A, order))).links == [UNKNOWN_LINK]


def test_a_packet_that_claims_more_than_its_block_has_is_given_as_far_as_the_block_goes() -> None:
    raw = bytearray(pcapng(section(), interface(), enhanced(A), enhanced(B)))
    struct.pack_into("<I", raw, pcapng_blocks(bytes(raw))[0][0] + 20, 4_000_000_000)
    read = Read(bytes(raw))
    assert read.packets == [b"alpha\0\0\0", b"beta"]


@orders
def test_what_is_of_no_interest_is_passed_over(order: str) -> None:
    foreign = struct.pack(order + "I", 4711) + bytes(20)
    read = Read(
        pcapng(
            section(order, given=[(COMMENT, b"of a section")]),
            block(4, bytes(40), order),  # names
            interface(order, given=[(COMMENT, b"of an interface"), (2, b"eth0")]),
            block(10, struct.pack(order + "II", 0x544C534B, 8) + b"CLIENT_R", order),
            enhanced(A, order, given=[(COMMENT, b"of a packet"), (2, bytes(4))]),
            block(0xBAD, foreign, order),
            block(0x40000BAD, foreign, order),
            block(9, b"journal", order),
            block(0x80001234, b"local", order),
            enhanced(B, order),
        )
    )
    assert read.packets == [b"alpha", b"beta"]
    assert read.stop is Stop.END
    assert set(read.processes) == {Process(0)}


@orders
def test_drops_are_the_latest_statistics_of_each_interface(order: str) -> None:
    read = Read(
        pcapng(
            *(section(order), interface(order), interface(order), enhanced(A, order)),
            statistics(order, interface=0, ifdrop=1, osdrop=2),
            statistics(order, interface=1, osdrop=10),
            statistics(order, interface=0, ifdrop=2, osdrop=5),
            statistics(order, interface=0),  # says nothing
            statistics(order, interface=9, osdrop=99),  # of no interface
            *(section(order), interface(order), statistics(order, ifdrop=100)),
        )
    )
    assert read.dropped == 117


def lost(count: int, order: str) -> Options:
    return [(4, struct.pack(order + "Q", count))]


@orders
def test_drops_that_packets_tell_of_are_added_up(order: str) -> None:
    read = Read(
        pcapng(
            *(section(order), interface(order), interface(order)),
            enhanced(A, order, given=lost(1, order)),
            enhanced(A, order, interface=1, given=[(2, bytes(4)), *lost(1 << 40, order)]),
            enhanced(A, order, given=lost(2, order)),
            enhanced(A, order, interface=9, given=lost(4, order)),
            enhanced(A, order, interface=8, given=lost(8, order)),
            enhanced(A, order, given=[(4, bytes(4))]),  # not as long as it has to be
            obsolete(A, order, drops=16),
            obsolete(A, order, drops=0xFFFF),  # not known
            *(section(order), interface(order), enhanced(A, order, given=lost(32, order))),
        )
    )
    assert read.dropped == (1 << 40) + 63


@orders
def test_of_what_packets_and_statistics_tell_of_an_interface_the_more_counts(order: str) -> None:
    read = Read(
        pcapng(
            *(section(order), interface(order), interface(order)),
            enhanced(A, order, given=lost(5, order)),
            enhanced(A, order, interface=1, given=lost(5, order)),
            statistics(order, interface=0, osdrop=7),
            statistics(order, interface=1, osdrop=3),
        )
    )
    assert read.dropped == 12


# --- sections and interfaces among packets --------------------------------------------------------


@orders
def test_packets_are_of_the_interfaces_that_stand_before_them_in_their_section(order: str) -> None:
    read = Read(
        pcapng(
            *(section(order), enhanced(A, order), interface(order, link=1, snaplen=3)),
            *(enhanced(A, order), simple(A, order), enhanced(A, order, interface=1)),
            *(interface(order, link=12, resolution=9), enhanced(A, order, interface=1, ticks=T)),
            *(section(order), enhanced(A, order), simple(A, order)),
            *(interface(order, link=101, snaplen=4), enhanced(A, order), simple(A, order)),
            enhanced(A, order, interface=1),
        )
    )
    unknown = UNKNOWN_LINK
    assert read.links == [unknown, 1, 1, unknown, 12, unknown, unknown, 101, 101, unknown]
    assert [read.packets[at] for at in (2, 6, 8)] == [b"alp", b"alpha", b"alph"]
    assert read.times_ns[4] == T


@orders
def test_what_a_section_tells_of_processes_does_not_hold_in_the_next(order: str) -> None:
    def mine() -> bytes:
        return enhanced(A, order, given=[pid_option(7, order)])

    def by_number() -> bytes:
        return enhanced(A, order, given=[(32769, struct.pack(order + "I", 0))])

    read = Read(
        pcapng(
            *(section(order), interface(order), process(7, named("one"), order)),
            *(mine(), by_number(), section(order), interface(order), mine(), by_number()),
            *(process(7, named("two"), order), mine(), by_number(), section(order), mine()),
        )
    )
    comms = [process.comm for process in read.processes]
    # Of one that is told of later in its section it is known as soon.
    assert comms == ["one", "one", "two", "two", "two", "two", ""]


def test_nothing_but_sections_is_read_a_bounded_part_at_a_time() -> None:
    raw = pcapng(*[section(), interface(), enhanced(A), statistics(osdrop=1)] * 12_000)
    layout, at, data = layout_of(raw)
    records, end, why = layout.walk(data, at, len(raw))
    assert (why, len(records) < 24_000, end < len(raw)) == (Stop.PAUSE, True, True)
    read = Read(raw)
    assert (read.stop, read.at, read.dropped) == (Stop.END, len(raw), 12_000)
    assert read.packets == [b"alpha"] * 12_000
    assert set(read.links) == {1}


def test_a_byte_order_that_changes_again_and_again_is_refused() -> None:
    swaps = [section(">"), section("<")] * 200
    with pytest.raises(CaptureFileError, match="changes the byte order once more"):
        Read(pcapng(section("<"), *swaps))


# --- processes ------------------------------------------------------------------------------------

CURL = Process(7, "curl", "/usr/bin/curl", 1000, "/user.slice", "web")


@orders
def test_a_process_block_tells_whose_the_packets_with_its_pid_are(order: str) -> None:
    said = process(
        7,
        [
            *((2, b"curl"), (3, b"/usr/bin/curl"), (4, b"curl\0-v"), (5, bytes(4))),
            (6, struct.pack("<I", 1000)),
            (COMMENT, b"cgroup: /user.slice\nfilter: web"),
        ],
        order,
    )
    mine, other = [pid_option(7, order)], [(2, bytes(4)), pid_option(8, order)]
    read = Read(
        pcapng(
            *(section(order), interface(order), said, enhanced(A, order, given=mine)),
            *(enhanced(B, order), enhanced(B, order, given=other), obsolete(A, order)),
        )
    )
    assert read.processes == [CURL, Process(0), Process(8), Process(0)]


def test_of_processes_with_the_same_pid_the_one_that_had_started_last_is_meant() -> None:
    def started(name: str, time_ns: int) -> bytes:
        return process(5, [(2, name.encode()), (9, struct.pack("<Q", time_ns))])

    packets = [
        enhanced(Packet(b"", T + later), given=[pid_option(5)]) for later in (-9000, 1000, 9000)
    ]
    read = Read(
        pcapng(section(), interface(), started("second", T + 5000), started("first", T), *packets)
    )
    assert [process.comm for process in read.processes] == ["first", "first", "second"]


def test_of_processes_that_tell_no_start_the_last_that_was_told_of_is_meant() -> None:
    def packet() -> bytes:
        return enhanced(A, given=[pid_option(5)])

    raw = pcapng(
        *(section(), interface(), process(5, named("old")), packet()),
        *(process(5, named("new")), packet(), packet()),
    )
    assert [process.comm for process in Read(raw).processes] == ["old", "new", "new"]


def test_what_was_told_of_processes_holds_for_later_batches_and_ends_with_the_section() -> None:
    raw = pcapng(section(), interface(), process(7, named("curl")), statistics(osdrop=1))
    layout, at, data = layout_of(raw)
    records, _, _ = layout.walk(data, at, len(raw))
    _, layout, dropped = layout.read(data, records)
    assert dropped == (Dropped(1, 0, 0, 1),)
    layout = pickle.loads(pickle.dumps(layout))
    raw = pcapng(enhanced(A, given=[pid_option(7)]))
    packets = layout.read(data := np.frombuffer(raw, np.uint8), np.zeros(1, np.int64)).packets
    assert packets.processes is not None
    assert packets.identities[packets.processes[0]].comm == "curl"
    changed = layout.change(np.frombuffer(section(), np.uint8), 0)
    assert changed is not None
    packets = changed[0].read(data, np.zeros(1, np.int64)).packets
    assert packets.identities == (Process(0), Process(7))


@orders
def test_blocks_of_apple_are_meant_by_their_number(order: str) -> None:
    def by(**numbers: int) -> Options:
        codes = {"process": 32769, "behalf": 32771}
        return [(codes[name], struct.pack(order + "I", n)) for name, n in numbers.items()]

    read = Read(
        pcapng(
            *(section(order), interface(order)),
            *(apple_process(501, "mDNSResponder", order), apple_process(1, "launchd", order)),
            enhanced(A, order, given=by(process=1)),
            enhanced(A, order, given=by(process=0, behalf=1)),
            enhanced(A, order, given=by(behalf=1, process=0)),
            enhanced(A, order, given=by(behalf=1)),
            enhanced(A, order, given=by(process=9)),
        )
    )
    assert [process.pid for process in read.processes] == [1, 501, 501, 1, 0]
    assert read.processes[1] == Process(501, "mDNSResponder")


@orders
def test_comments_of_ptcpdump_tell_of_processes(order: str) -> None:
    text = "PID: 9\nCmd: /usr/bin/python3.11\nArgs: python3 -m http.server"
    parent = "ParentPID: 1\nParentCmd: /sbin/init"
    mine: Options = [(COMMENT, text.encode()), (COMMENT, parent.encode())]
    others: list[Options] = [
        [(COMMENT, b"PID: 12\nCmd: \xff")],
        [(COMMENT, b"PID: -1\nCmd: x")],
        [(COMMENT, b"just a remark")],
        [(COMMENT, b"PI")],
    ]
    packets = [enhanced(A, order, given=given) for given in (mine, *others)]
    read = Read(pcapng(section(order), interface(order), *packets, enhanced(B, order)))
    assert read.processes == [
        Process(9, "python3.11", "/usr/bin/python3.11"),
        Process(12, "\\xff"),
        *[Process(0)] * 4,
    ]


def test_files_without_process_data_have_no_column_for_it() -> None:
    raw = pcapng(section(), interface(), enhanced(A, given=[(2, bytes(4))]))
    layout, at, data = layout_of(raw)
    packets = layout.read(data, layout.walk(data, at, len(raw))[0]).packets
    assert packets.processes is None


def test_of_very_many_process_blocks_the_latest_are_kept() -> None:
    blocks = [process(pid, named("it")) for pid in range(1, 20_001)]
    last = [enhanced(A, given=[pid_option(pid)]) for pid in (1, 20_000)]
    raw = pcapng(section(), interface(), *blocks)
    layout = Read(raw).layout
    assert len(pickle.dumps(layout)) < 2_000_000
    data = np.frombuffer(b"".join(last), np.uint8)
    packets = layout.read(data, np.array([0, len(last[0])])).packets
    assert packets.processes is not None
    assert [packets.identities[key].comm for key in packets.processes] == ["", "it"]


# --- damage ---------------------------------------------------------------------------------------


@orders
@pytest.mark.parametrize(
    ("damaged", "what"),
    [
        (REFUSED + bytes(24), "a section without a byte order at offset 48"),
        (b"\1\0\0\0\0\0\0\1" + bytes(20), None),
    ],
)
def test_a_damaged_section_is_told_where_it_stands(
    order: str, damaged: bytes, what: str | None
) -> None:
    raw = pcapng(section(order), interface(order)) + damaged
    if what is None:
        assert Read(raw).at == 48
        return
    with pytest.raises(CaptureFileError, match=what):
        Read(raw)


@orders
def test_a_version_that_is_not_known_is_told(order: str) -> None:
    with pytest.raises(CaptureFileError, match=r"pcapng version 2\.0"):
        Read(section(order, version=2))


def test_an_interface_that_cannot_be_is_told() -> None:
    with pytest.raises(CaptureFileError, match="an interface that can't be read at offset 28"):
        Read(pcapng(section(), block(1, b"abcd")))
    with pytest.raises(CaptureFileError, match="another length at its end"):
        Read(pcapng(section(), interface()[:-4] + bytes(4)))


def test_more_interfaces_than_can_be_meant_are_refused() -> None:
    with pytest.raises(CaptureFileError, match="an interface that can't be read"):
        Read(pcapng(section(), *[interface()] * 20_000))


def test_a_block_longer_than_any_is_bad() -> None:
    raw = pcapng(section(), interface(), enhanced(A)) + struct.pack("<II", 6, LONGEST + 4)
    read = Read(raw + bytes(100))
    assert (read.packets, read.at, read.stop) == ([b"alpha"], len(raw) - 8, Stop.BAD)


fillers = st.binary(max_size=30)
packets = st.builds(Packet, fillers, st.just(T), st.none() | st.integers(0, 2**32 - 1))
given_options = st.lists(
    st.tuples(st.sampled_from((1, 2, 8, 32769, 32771, 5000)), st.binary(max_size=20)), max_size=4
)
packet_blocks = st.one_of(
    st.builds(
        enhanced,
        packets,
        interface=st.integers(0, 2),
        given=given_options,
    ),
    st.builds(obsolete, packets, interface=st.integers(0, 2)),
    st.builds(simple, packets),
)
other_blocks = st.one_of(
    st.builds(process, st.integers(0, 9), given_options),
    st.builds(statistics, ifdrop=st.integers(0, 2**64 - 1)),
    st.builds(interface, resolution=st.integers(0, 255)),
    st.builds(block, st.sampled_from((4, 10, 0xBAD, 0x80000001, 99)), fillers),
    st.builds(section),
)
chains = st.lists(packet_blocks | other_blocks, max_size=15)


@given(chains, st.integers(0, 2000))
def test_a_file_cut_anywhere_gives_the_packets_before_the_cut(
    blocks: list[bytes], cut: int
) -> None:
    raw = pcapng(section(), *blocks)
    whole, part = Read(raw), Read(raw[: max(12, len(raw) - cut)])
    assert len(whole.packets) == len(pcapng_blocks(raw)[0])
    count = len(pcapng_blocks(bytes(part.data))[0])
    assert part.packets == whole.packets[:count]
    assert part.at == pcapng_blocks(bytes(part.data))[1]


@given(chains, st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4))
def test_no_damage_raises_anything_but_a_capture_file_error(
    blocks: list[bytes], damage: list[tuple[int, int]]
) -> None:
    raw = bytearray(pcapng(section(), *blocks))
    for at, value in damage:
        raw[at % len(raw)] = value
    with suppress(CaptureFileError):
        assert Read(bytes(raw)).at <= len(raw)


@given(st.binary(max_size=300))
def test_garbage_behind_a_file_raises_nothing_else(garbage: bytes) -> None:
    with suppress(CaptureFileError):
        read = Read(pcapng(section(), interface(), enhanced(A)) + garbage)
        assert read.packets[:1] == [b"alpha"]


@orders
def test_a_guess_finds_the_next_block_among_random_bytes(order: str) -> None:
    random = np.random.default_rng(1)
    packets = [enhanced(Packet(random.bytes(300), T), order) for _ in range(30)]
    raw = pcapng(section(order), interface(order), *packets)
    layout, start, data = layout_of(raw)
    places, _ = pcapng_blocks(raw, order)
    for at, following in pairwise(places):
        assert layout.guess(data, at + 1, len(raw)) == following
    assert layout.guess(data, start, len(raw)) == start
    assert layout.guess(data, start + 1, places[1]) == -1
