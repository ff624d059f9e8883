"""Segments to a pcapng file: what is in it, and what Wireshark makes of it."""

import errno
import io
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import pcapng
from helpers.pcapng import ACK, FIN, PSH, RST, SYN, Packet
from streamtap.model import (
    App,
    Closed,
    Content,
    Direction,
    Endpoint,
    Flow,
    Opened,
    Role,
    Segment,
)
from streamtap.pipeline import Pipeline
from streamtap.trace import Output, Selection, Session
from streamtap.trace.pcapng import Pcapng

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
BEGIN = 1_795_000_000_000_000_000
MS = 1_000_000
ENDS = {
    4: (Endpoint("10.1.2.3", 40000), Endpoint("192.0.2.1", 1863)),
    6: (Endpoint("2001:db8::1", 40000), Endpoint("2001:db8::2", 1863)),
}
CHAT = App("/opt/chat/chat", 4121, "chat", 1000, "/user.slice", "exe /opt/chat/chat")
SERVER = App("/usr/bin/msnd", 77, "msnd", 0, "/system.slice", "pid 77")
NUMBERS = (1000, 2**32 - 20)  # the second direction wraps

needs_tshark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
Item = Opened | Segment | Closed


def opened(
    flow_id: int = 0x817,
    *,
    ends: tuple[Endpoint, Endpoint] | None = None,
    version: int = 4,
    role: Role = Role.CLIENT,
    app: App | None = CHAT,
    midstream: bool = False,
    sequences: tuple[int | None, int | None] = NUMBERS,
    at_ns: int = BEGIN,
) -> Opened:
    client, server = ends or ENDS[version]
    ends = (client, server) if role is Role.CLIENT else (server, client)
    return Opened(Flow(flow_id, app, *ends, role, at_ns, midstream, 7), sequences)


class Talk:
    """Makes the segments of a flow, each with the next sequence number of its direction."""

    def __init__(self, flow_id: int = 0x817) -> None:
        self.flow_id = flow_id
        self.next = list(NUMBERS)
        self.time_ns = BEGIN

    def say(
        self,
        direction: Direction,
        data: bytes = b"",
        *,
        counted: int = 0,
        cuts: Sequence[int] = (),
        lost: int = 0,
        skip: int = 0,
    ) -> Segment:
        """cuts: ends of the segments that it was joined of, each a millisecond later."""
        self.next[direction] += skip
        sequence = self.next[direction] & 0xFFFFFFFF
        length = counted or len(data)
        self.next[direction] += length
        times = [self.time_ns + MS * (index + 1) for index in range(len(cuts) or 1)]
        self.time_ns = times[-1]
        acknowledged = self.next[direction.opposite] & 0xFFFFFFFF
        return Segment(
            *(self.flow_id, direction, sequence, memoryview(data), times[-1]),
            *(cuts, times if cuts else (), counted, acknowledged, lost),
        )

    def end(self, reason: str = "fin", totals: tuple[int, int] | None = None) -> Closed:
        return Closed(self.flow_id, self.time_ns + MS, reason, totals)


def written(*batches: Sequence[Item], payload: bool = True) -> bytes:
    """The file that these batches make."""
    stream = io.BytesIO()
    tap = Pcapng(Output(stream), payload=payload, application="streamtap 1")
    tap.open()
    pipeline = Pipeline(content=Content.FULL, taps=[tap], key=b"k")
    for batch in batches:
        pipeline.feed(batch)
        tap.flush()
    tap.close()
    return stream.getvalue()


def said(packets: Sequence[Packet]) -> list[tuple[str, bytes]]:
    """Source port and payload of what carries any."""
    return [(one.source.split("|")[1], one.payload) for one in packets if one.length]


# --- blocks --------------------------------------------------------------------------------------


def test_the_file_begins_with_section_and_interface_and_ends_with_statistics() -> None:
    talk = Talk()
    data = written([opened(), talk.say(UP, b"hello"), talk.end()])
    kinds = [kind for kind, _ in pcapng.blocks(data)]
    assert kinds[:3] == [pcapng.SECTION, pcapng.INTERFACE, pcapng.CUSTOM]
    assert set(kinds[3:-1]) == {pcapng.PACKET}
    assert kinds[-1] == pcapng.STATISTICS
    bodies = [body for _, body in pcapng.blocks(data)]
    assert struct.unpack_from("<IHHq", bodies[0]) == (0x1A2B3C4D, 1, 0, -1)
    assert dict(pcapng.options(bodies[0][16:]))[4] == b"streamtap 1"
    assert struct.unpack_from("<HHI", bodies[1]) == (101, 0, 0)  # raw IP, no limit
    assert dict(pcapng.options(bodies[1][8:]))[9] == b"\x09"  # nanoseconds


def test_the_process_is_told_before_its_first_packet_and_once() -> None:
    first, second = Talk(1), Talk(2)
    data = written([opened(1), first.say(UP, b"a")], [opened(2, version=6), second.say(UP, b"b")])
    bodies = [body for kind, body in pcapng.blocks(data) if kind == pcapng.CUSTOM]
    assert len(bodies) == 1
    enterprise, entry, length, pid = struct.unpack_from("<4I", bodies[0])
    assert (enterprise, entry, length, pid) == (32622, 3, len(bodies[0]) - 12, CHAT.pid)
    assert pcapng.options(bodies[0][16:]) == [
        (2, b"chat"),
        (3, b"/opt/chat/chat"),
        (6, (1000).to_bytes(4, "little")),
        (1, b"cgroup: /user.slice"),
        (1, b"filter: exe /opt/chat/chat"),
    ]


def test_every_packet_tells_process_and_way_and_the_first_one_has_a_comment() -> None:
    talk = Talk()
    packets = pcapng.packets(written([opened(), talk.say(UP, b"a"), talk.say(DOWN, b"b")]))
    outbound, inbound = b"\x02\0\0\0", b"\x01\0\0\0"
    for one in packets:
        assert one.option(8) == struct.pack("<II", CHAT.pid, 0)
        assert one.option(2) == (outbound if one.source == "10.1.2.3|40000" else inbound)
    comments = [one.option(1) for one in packets]
    assert comments[0] == b"flow 817: chat[4121] /opt/chat/chat, uid 1000, client"
    assert not any(comments[1:])


def test_a_name_with_strange_characters_breaks_nothing() -> None:
    app = App("/tmp/\udcff\n", 5, "a\x1b[2J\u202e", 1, "/", "x" * 100_000)
    data = written([opened(app=app), Talk().say(UP, b"a")])
    assert b"a\\x1b[2J\\u202e[5] " in (pcapng.packets(data)[0].option(1) or b"")


def test_without_a_process_nothing_is_said_of_one() -> None:
    packets = pcapng.packets(written([opened(app=None), Talk().say(UP, b"a")]))
    assert len(packets) == 4
    assert all(one.options == [] for one in packets)


# --- packets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("role", list(Role))
def test_a_conversation_is_written_with_true_ends_numbers_and_times(
    version: int, role: Role
) -> None:
    talk = Talk()
    batch = [opened(version=version, role=role)]
    segments = [talk.say(UP, b"question"), talk.say(DOWN, b"a long answer" * 9), talk.say(UP, b"!")]
    packets = pcapng.packets(written([*batch, *segments, talk.end(totals=(9, 117))]))
    client, server = (f"{end.address}|{end.port}" for end in ENDS[version])
    first, second = NUMBERS
    shape = [(one.source, one.sequence, one.acknowledgment, one.flags) for one in packets]
    assert shape == [
        (client, first - 1, 0, SYN),
        (server, second - 1, first, SYN | ACK),
        (client, first, second, ACK),
        (client, first, second, PSH | ACK),
        (server, second, first + 8, PSH | ACK),
        (client, first + 8, 97, PSH | ACK),
        (client, first + 9, 97, FIN | ACK),
        (server, 97, first + 10, FIN | ACK),
        (client, first + 10, 98, ACK),
    ]
    assert [one.time_ns for one in packets[3:6]] == [one.time_ns for one in segments]
    assert {one.time_ns for one in packets[:3]} == {BEGIN}
    assert [one.payload for one in packets[3:6]] == [bytes(one.data) for one in segments]


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (("::ffff:10.0.0.1", "10.0.0.2"), ("10.0.0.1", "10.0.0.2")),
        (("::ffff:0:1", "::ffff:10.0.0.2"), ("0.0.0.1", "10.0.0.2")),
        (("fe80::1%lo", "2001:db8::2"), ("fe80::1", "2001:db8::2")),
        (("10.0.0.1", "2001:db8::2"), ("::ffff:10.0.0.1", "2001:db8::2")),
    ],
)
def test_an_address_is_what_went_over_the_wire(
    texts: tuple[str, str], shown: tuple[str, str]
) -> None:
    local, remote = (Endpoint(text, 5) for text in texts)
    flow = Flow(1, None, local, remote, Role.CLIENT, BEGIN)
    first = pcapng.packets(written([Opened(flow, NUMBERS)]))[0]
    ends = (first.source, first.destination)
    assert [ip_address(end.split("|")[0]) for end in ends] == [ip_address(end) for end in shown]


def test_joined_segments_are_parted_where_and_when_they_were() -> None:
    talk = Talk()
    segment = talk.say(UP, b"oneseventwo", cuts=(3, 8, 11))
    packets = pcapng.packets(written([opened(), segment]))[3:]
    assert [one.payload for one in packets] == [b"one", b"seven", b"two"]
    assert [one.sequence for one in packets] == [1000, 1003, 1008]
    assert [one.time_ns for one in packets] == [BEGIN + MS, BEGIN + 2 * MS, BEGIN + 3 * MS]


def test_only_the_last_of_joined_segments_acknowledges_what_came_meanwhile() -> None:
    talk = Talk()
    question = talk.say(DOWN, b"q")
    segment = talk.say(UP, b"abc", cuts=(1, 2, 3))
    packets = pcapng.packets(written([opened(), question, segment]))
    assert [one.acknowledgment for one in packets[4:]] == [NUMBERS[1]] * 2 + [NUMBERS[1] + 1]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("cuts", [(), (70_000, 300_000)])
def test_no_packet_is_larger_than_ip_allows(version: int, cuts: Sequence[int]) -> None:
    data = bytes(range(250)) * 1200
    segment = Talk().say(UP, data, cuts=cuts)
    file = written([opened(version=version), segment])
    packets = pcapng.packets(file)[3:]
    assert b"".join(one.payload for one in packets) == data
    assert max(one.length for one in packets) == 65535 - (40 if version == 4 else 60)
    assert all(one.sequence == 1000 + at for one, at in zip(packets, starts(packets), strict=True))


def starts(packets: Sequence[Packet]) -> list[int]:
    return [sum(one.length for one in packets[:at]) for at in range(len(packets))]


def test_both_ways_stand_in_order_of_time_whatever_order_they_came_in() -> None:
    talk = Talk()
    ups, downs = [], []
    for number in range(3):
        ups.append(talk.say(UP, b"u%d" % number))
        downs.append(talk.say(DOWN, b"d%d" % number))
    packets = pcapng.packets(written([opened(), *ups, *downs]))
    assert [text for _, text in said(packets)] == [b"u0", b"d0", b"u1", b"d1", b"u2", b"d2"]


def test_the_handshake_stands_before_data_that_is_older_than_the_opening() -> None:
    talk = Talk()
    packets = pcapng.packets(written([opened(at_ns=BEGIN + 10 * MS), talk.say(UP, b"early")]))
    assert [one.flags for one in packets] == [SYN, SYN | ACK, ACK, PSH | ACK]
    assert {one.time_ns for one in packets} == {BEGIN + MS}


def test_what_came_again_is_written_again() -> None:
    talk = Talk()
    segment = talk.say(UP, b"same")
    assert len(said(pcapng.packets(written([opened(), segment, segment])))) == 2


def test_counted_bytes_are_packets_cut_behind_their_headers() -> None:
    talk = Talk()
    items = [talk.say(UP, b"a"), talk.say(UP, counted=150_000), talk.say(UP, b"z")]
    packets = pcapng.packets(written([opened(), *items]))[3:]
    assert [(one.length, len(one.payload)) for one in packets] == [
        *((1, 1), (65495, 0), (65495, 0), (19010, 0), (1, 1))
    ]
    assert packets[-1].sequence == 1000 + 150_001


def test_headers_alone_hold_nothing_of_what_was_said() -> None:
    talk = Talk()
    secret = b"zq#7 quick brown ox"
    items = [talk.say(UP, secret), talk.say(DOWN, secret * 2, cuts=(19, 38)), talk.say(UP, b"x")]
    data = written([opened(), *items, talk.end()], payload=False)
    assert secret[:4] not in data
    packets = [one for one in pcapng.packets(data) if one.length]
    assert [one.length for one in packets] == [19, 19, 19, 1]
    # That of one byte would tell which it was.
    assert {one.checksum for one in packets} == {0}


def test_a_segment_without_a_known_acknowledgement_carries_none() -> None:
    segment = Segment(0x817, UP, 5, b"a", BEGIN)
    (one,) = pcapng.packets(written([opened(midstream=True, sequences=(None, None)), segment]))
    assert (one.flags, one.acknowledgment, one.payload) == (PSH, 0, b"a")


def test_what_only_acknowledges_is_no_packet_but_what_it_acknowledges_is_known() -> None:
    talk = Talk()
    alone = Segment(0x817, UP, 0, b"", BEGIN + MS, acknowledged=(NUMBERS[1] + 3) & 0xFFFFFFFF)
    packets = pcapng.packets(written([opened(), talk.say(DOWN, b"abc"), alone, talk.say(UP, b"x")]))
    assert [one.payload for one in packets[3:]] == [b"abc", b"x"]
    assert packets[-1].acknowledgment == NUMBERS[1] + 3


# --- beginnings and endings ----------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role))
def test_midstream_one_empty_packet_of_the_local_end_says_where_the_flow_stands(role: Role) -> None:
    packets = pcapng.packets(written([opened(midstream=True, role=role)]))
    numbers = NUMBERS if role is Role.CLIENT else NUMBERS[::-1]
    (one,) = packets
    assert (one.flags, one.sequence, one.acknowledgment, one.length) == (ACK, *numbers, 0)
    assert (one.option(1) or b"").endswith(b"; joined midstream")


@pytest.mark.parametrize(
    ("sequences", "flags"), [((5, None), [SYN]), ((None, 5), []), ((None, None), [])]
)
def test_of_a_handshake_only_what_is_known_is_written(
    sequences: tuple[int | None, int | None], flags: list[int]
) -> None:
    packets = pcapng.packets(written([opened(sequences=sequences)]))
    assert [one.flags for one in packets] == flags


@pytest.mark.parametrize(
    ("reason", "flags"),
    [("fin", [FIN | ACK, FIN | ACK, ACK]), ("rst", [RST | ACK]), ("end", []), ("idle", [])],
)
def test_the_end_is_written_by_its_reason(reason: str, flags: list[int]) -> None:
    talk = Talk()
    packets = pcapng.packets(written([opened(), talk.say(UP, b"a"), talk.end(reason)]))
    assert [one.flags for one in packets[4:]] == flags


def test_the_end_stands_behind_bytes_that_are_missing_by_the_kernels_count() -> None:
    talk = Talk()
    packets = pcapng.packets(written([opened(), talk.say(UP, b"abc"), talk.end(totals=(10, 7))]))
    fin, answer = packets[-3:-1]
    assert (fin.sequence, fin.acknowledgment) == (1010, (NUMBERS[1] + 7) & 0xFFFFFFFF)
    assert answer.sequence == fin.acknowledgment


def test_the_fin_that_was_captured_stands_where_it_was() -> None:
    """Whatever somebody sent as if it came behind it."""
    talk = Talk()
    first, forged = talk.say(UP, b"abc"), talk.say(UP, b"forged", skip=1 << 29)
    closed = msgspec.structs.replace(talk.end(), fins=(1003, NUMBERS[1]))
    packets = pcapng.packets(written([opened(), first, forged, closed]))
    assert [one.sequence for one in packets[-3:]] == [1003, NUMBERS[1], 1004]


def test_what_was_acknowledged_and_never_came_is_told_by_an_empty_packet() -> None:
    talk = Talk()
    only = Segment(0x817, DOWN, 0, b"", BEGIN, acknowledged=1010)
    packets = pcapng.packets(written([opened(), talk.say(UP, b"abc"), only, talk.end("end")]))
    last = packets[-1]
    assert (last.sequence, last.acknowledgment, last.payload) == (NUMBERS[1], 1010, b"")


# --- both ends, and losses -----------------------------------------------------------------------


def test_a_connection_with_both_ends_watched_is_written_once_with_both_processes() -> None:
    here, there = Talk(1), Talk(2)
    file = written(
        [opened(1), opened(2, role=Role.SERVER, app=SERVER)],
        [here.say(UP, b"q"), there.say(UP, b"q"), here.say(DOWN, b"a"), there.say(DOWN, b"a")],
        [here.end(), there.end()],
    )
    packets = pcapng.packets(file)
    assert [text for _, text in said(packets)] == [b"q", b"a"]
    pids = [struct.unpack("<II", one.option(8) or b"")[0] for one in packets if one.length]
    assert pids == [CHAT.pid, SERVER.pid]
    comment = packets[0].option(1) or b""
    assert comment.endswith(b"client; other end: msnd[77] /usr/bin/msnd, uid 0")
    assert len([kind for kind, _ in pcapng.blocks(file) if kind == pcapng.CUSTOM]) == 2


def test_ends_that_write_an_address_in_two_ways_are_one_connection() -> None:
    """A server on an IPv6 socket has its IPv4 client by an address that is mapped into IPv6."""
    mapped = Endpoint("::ffff:10.1.2.3", 40000), Endpoint("::ffff:192.0.2.1", 1863)
    here, there = Talk(1), Talk(2)
    file = written(
        [opened(1), opened(2, role=Role.SERVER, app=SERVER, ends=mapped)],
        [here.say(UP, b"q"), there.say(UP, b"q"), here.end(), there.end()],
    )
    packets = pcapng.packets(file)
    assert [text for _, text in said(packets)] == [b"q"]
    assert b"; other end: msnd[77]" in (packets[0].option(1) or b"")


def test_lost_segments_are_told_at_the_next_packet_and_in_the_statistics() -> None:
    talk = Talk()
    items = [talk.say(UP, b"a"), talk.say(UP, b"b", lost=3, skip=50), talk.say(UP, b"c", lost=3)]
    end = Closed(0x817, talk.time_ns, "fin", (53, 0), (4, 0))
    data = written([opened(), *items, end])
    drops = [one.option(4) for one in pcapng.packets(data)]
    told = [struct.unpack("<Q", one)[0] for one in drops if one is not None]
    assert told == [3, 1]
    (statistics,) = [body for kind, body in pcapng.blocks(data) if kind == pcapng.STATISTICS]
    counters = {code: int.from_bytes(value, "little") for code, value in
                pcapng.options(statistics[12:])}  # fmt: skip
    assert (counters[6], counters[7], counters[8]) == (7, 4, 3)


# --- any input -----------------------------------------------------------------------------------

_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6)
_speech = st.tuples(st.sampled_from(Direction), st.binary(min_size=1, max_size=9), _sizes)


@given(
    st.lists(_speech, max_size=12),
    st.sampled_from([4, 6]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_every_byte_stands_where_its_sequence_number_says(
    speeches: list[tuple[Direction, bytes, list[int]]], version: int, copied: bool, start: int
) -> None:
    talk = Talk()
    talk.next = [start, start + 7]
    streams = [b"", b""]
    batches: list[list[Item]] = [[opened(version=version, sequences=(start, (start + 7) % 2**32))]]
    for direction, seed, sizes in speeches:
        cuts = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        data = (seed * cuts[-1])[: cuts[-1]]
        streams[direction] += data
        batches.append([talk.say(direction, data, cuts=cuts if len(cuts) > 1 else ())])
    packets = pcapng.packets(written(*batches, payload=copied))
    for direction, origin in ((UP, start), (DOWN, start + 7)):
        port = str(ENDS[version][direction].port)
        own = [one for one in packets if one.source.endswith(f"|{port}") and one.length]
        place = 0
        for one in own:
            assert one.sequence == (origin + place) % 2**32
            assert one.payload == (
                streams[direction][place : place + one.length] if copied else b""
            )
            place += one.length
        assert place == len(streams[direction])


# --- the output ----------------------------------------------------------------------------------


class Full(io.RawIOBase):
    """Has room for so many bytes only."""

    def __init__(self, room: int, code: int) -> None:
        self._code = code
        self._room = room

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        size = len(bytes(data))  # type: ignore[call-overload]
        if size > self._room:
            raise OSError(self._code, os.strerror(self._code))
        self._room -= size
        return size


@pytest.mark.parametrize("room", [0, 600])
@pytest.mark.parametrize(("code", "reported"), [(errno.ENOSPC, 1), (errno.EPIPE, 0)])
def test_an_output_that_fails_is_told_once_and_keeps_nothing_more(
    code: int, reported: int, room: int
) -> None:
    reports: list[OSError] = []
    tap = Pcapng(Output(Full(room, code)), payload=True, application="s")  # type: ignore[arg-type]
    tap.open()
    session = Session(Selection(frozenset()), [tap], report=lambda _, error: reports.append(error))
    talk = Talk()
    pipeline = Pipeline(taps=[tap])
    for _ in range(3):
        pipeline.feed([opened(), talk.say(UP, b"x" * 1000)])
        session.flush()
    assert session.over
    session.close()
    assert len(reports) == reported


# --- what Wireshark makes of it ------------------------------------------------------------------


def tshark(path: Path, *words: str) -> str:
    done = subprocess.run(
        ["tshark", "-r", str(path), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    complaints = [
        line for line in done.stderr.splitlines() if not line.startswith("Running as user")
    ]
    assert not complaints
    return done.stdout


def followed(path: Path, stream: int) -> tuple[bytes, bytes]:
    """What the client said and what the server said, gaps as Wireshark words them."""
    text = tshark(path, "-q", "-z", f"follow,tcp,raw,{stream}").split("\n")
    lines = text[text.index(f"Filter: tcp.stream eq {stream}") + 3 : -2]
    client = b"".join(bytes.fromhex(line) for line in lines if not line.startswith("\t"))
    server = b"".join(bytes.fromhex(line) for line in lines if line.startswith("\t"))
    return client, server


@needs_tshark
def test_wireshark_follows_what_was_said_and_finds_no_fault(tmp_path: Path) -> None:
    batches: list[list[Item]] = []
    said_by = {}
    for number, version in enumerate((4, 6)):
        talk = Talk(number + 1)
        question, answer = os.urandom(200_000), os.urandom(99_999)
        said_by[number] = (question + b"more", answer)
        batches.append([
            opened(number + 1, version=version),
            talk.say(UP, question, cuts=(1, 1449, 90_000, 200_000)),
            talk.say(DOWN, answer),
            talk.say(UP, b"more"),
            talk.end(totals=(200_004, 99_999)),
        ])  # fmt: skip
    path = tmp_path / "talk.pcapng"
    path.write_bytes(written(*batches))
    for number in (0, 1):
        assert followed(path, number) == said_by[number]
    checks = ("-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE")
    fields = ("tcp.analysis.flags", "tcp.checksum.status", "ip.checksum.status")
    shown = tshark(path, *checks, "-Y", "tcp", "-T", "fields", *(f"-e{name}" for name in fields))
    assert {line.strip() for line in shown.splitlines()} == {"1\t1", "1"}  # good; IPv6 has one
    states = tshark(path, "-Y", "tcp.flags.fin == 1", "-T", "fields", "-e", "tcp.completeness")
    assert states.split()[-1] == "31"  # from the handshake, over data, to the end
    comments = tshark(path, "-T", "fields", "-e", "frame.comment").split("\n")
    assert sum("chat[4121] /opt/chat/chat, uid 1000, client" in line for line in comments) == 2


@needs_tshark
@pytest.mark.parametrize("counted", [True, False], ids=["counted", "lost"])
def test_wireshark_shows_bytes_that_were_not_kept_as_missing(tmp_path: Path, counted: bool) -> None:
    talk = Talk()
    head = talk.say(DOWN, b"head")
    hole = [talk.say(DOWN, counted=70_000)] if counted else []
    items = [head, *hole, talk.say(DOWN, b"tail", skip=0 if counted else 70_000)]
    path = tmp_path / "hole.pcapng"
    path.write_bytes(written([opened(), *items, talk.say(UP, b"x"), talk.end()]))
    shown = followed(path, 0)[1].replace(b"\0", b"")  # behind the words, in some versions
    assert shown == b"head[70000 bytes missing in capture file]tail"


@needs_tshark
@pytest.mark.skipif(not shutil.which("capinfos"), reason="capinfos is not installed")
def test_capinfos_reads_the_file_to_its_end(tmp_path: Path) -> None:
    talk = Talk()
    path = tmp_path / "a.pcapng"
    path.write_bytes(written([opened(), talk.say(UP, b"a"), talk.end()]))
    done = subprocess.run(
        ["capinfos", "-M", str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Number of stat entries = 1" in done.stdout
    assert "Raw IP" in done.stdout
    assert "cut short" not in done.stdout + done.stderr
