import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtap.flows import Certificate, FlowState, FlowTable
from streamtap.flows.table import EARLY_FLOW, EARLY_NS, EARLY_TOTAL, RANGES
from streamtap.model import (
    App,
    Chunk,
    Closed,
    Direction,
    Endpoint,
    Flow,
    Gap,
    Opened,
    Role,
    Segment,
)
from streamtap.streams import Reassembler

CURL = App("/usr/bin/curl", 10, "curl", 1000, "", "chat")
SERVER = App("/usr/bin/server", 20, "server", 1000, "", "chat")
SENT, RECEIVED = Direction.TO_SERVER, Direction.TO_CLIENT

Table = FlowTable[Reassembler, object]
State = FlowState[Reassembler, object]


def make_table(max_flows: int = 100, idle_ns: int | None = None) -> Table:
    return FlowTable(Reassembler, max_flows=max_flows, idle_ns=idle_ns)


def opened(
    flow_id: int = 1,
    *,
    app: App | None = CURL,
    local: str = "127.0.0.1:40000",
    remote: str = "127.0.0.1:1863",
    role: Role = Role.CLIENT,
    namespace: int = 1,
    sequences: tuple[int | None, int | None] = (100, 200),
    offsets: tuple[int, int] = (0, 0),
    opened_ns: int = 1000,
) -> Opened:
    ends = [
        Endpoint(address, int(port))
        for address, _, port in (local.rpartition(":"), remote.rpartition(":"))
    ]
    flow = Flow(flow_id, app, ends[0], ends[1], role, opened_ns, any(offsets), namespace)
    return Opened(flow, sequences, offsets)


def accepted(flow_id: int, app: App | None = SERVER, namespace: int = 1) -> Opened:
    """The server's end of the flow that `opened` gives."""
    return opened(
        flow_id,
        app=app,
        local="127.0.0.1:1863",
        remote="127.0.0.1:40000",
        role=Role.SERVER,
        namespace=namespace,
    )


def open_in(table: Table, item: Opened) -> State:
    result = table.open(item)
    assert result is not None
    return result[0]


def segment(
    flow_id: int,
    data: bytes | memoryview,
    *,
    sequence: int = 100,
    direction: Direction = SENT,
    time_ns: int = 1000,
) -> Segment:
    return Segment(flow_id, direction, sequence, data, time_ns)


def close(
    table: Table,
    flow_id: int = 1,
    totals: tuple[int, int] | None = None,
    time_ns: int = 5000,
) -> Certificate:
    ending = table.close(Closed(flow_id, time_ns, "fin", totals))
    assert ending is not None
    return ending.certificate


# --- open and close ------------------------------------------------------------------------


def test_a_flow_is_found_from_its_opening_to_its_closing() -> None:
    table = make_table()
    state = open_in(table, opened())
    assert table.find(1) is state
    assert (state.primary, state.paired, state.parser) == (True, None, None)
    close(table)
    assert table.find(1) is None
    assert (table.opened, table.closed, len(table)) == (1, 1, 0)


def test_streams_begin_at_the_numbers_and_offsets_of_the_opening() -> None:
    state = open_in(make_table(), opened(sequences=(100, None), offsets=(5000, 7)))
    (chunk,) = state.streams[SENT].push(segment(1, b"abc", sequence=100))
    assert isinstance(chunk, Chunk)
    assert chunk.offset == 5000
    (chunk,) = state.streams[RECEIVED].push(segment(1, b"abc", sequence=9, direction=RECEIVED))
    assert isinstance(chunk, Chunk)
    assert chunk.offset == 7


def test_a_second_opening_of_an_open_flow_changes_nothing() -> None:
    table = make_table()
    state = open_in(table, opened())
    assert table.open(opened()) is None
    assert table.find(1) is state
    assert (table.opened, table.repeated) == (1, 1)


def test_flows_beyond_the_bound_are_refused_and_counted() -> None:
    table = make_table(max_flows=2)
    open_in(table, opened(1))
    open_in(table, opened(2))
    assert table.open(opened(3)) is None
    assert table.refused == 1
    close(table, 1)
    assert table.open(opened(3)) is not None


def test_closing_a_flow_that_is_not_open_gives_nothing() -> None:
    assert make_table().close(Closed(9, 1, "fin")) is None


def test_closing_gives_what_the_streams_still_held() -> None:
    table = make_table()
    state = open_in(table, opened())
    state.streams[SENT].push(segment(1, b"world", sequence=105))
    ending = table.close(Closed(1, 5000, "fin", (10, 3)))
    assert ending is not None
    gap, chunk = ending.items[SENT]
    assert gap == Gap(0, 5, "unseen", 5000)
    assert isinstance(chunk, Chunk)
    assert ending.items[RECEIVED] == [Gap(0, 3, "unseen", 5000)]
    assert ending.state is state


# --- the certificate -----------------------------------------------------------------------


def test_a_flow_seen_as_a_whole_is_complete() -> None:
    table = make_table()
    state = open_in(table, opened())
    state.streams[SENT].push(segment(1, b"hello"))
    state.streams[RECEIVED].push(segment(1, b"hi", sequence=200, direction=RECEIVED))
    assert close(table, totals=(5, 2)) == Certificate(
        sent=5,
        received=2,
        sent_total=5,
        received_total=2,
        sent_counted=0,
        received_counted=0,
        missing=0,
        complete=True,
        missing_ranges=(),
        duration_ns=4000,
    )


def test_sent_and_received_are_from_the_view_of_the_local_end() -> None:
    table = make_table()
    state = open_in(table, accepted(1))
    state.streams[Direction.TO_SERVER].push(segment(1, b"hello"))
    certificate = close(table, totals=(5, 2))
    assert (certificate.received, certificate.received_total) == (5, 5)
    assert (certificate.sent, certificate.sent_total, certificate.missing) == (0, 2, 2)
    assert certificate.missing_ranges == (("sent", 0, 2),)


def test_what_is_missing_is_told_with_its_ranges() -> None:
    table = make_table()
    state = open_in(table, opened())
    state.streams[SENT].push(segment(1, b"hello"))
    state.streams[SENT].push(segment(1, b"late", sequence=110))
    certificate = close(table, totals=(20, 0))
    assert certificate.missing == 11
    assert certificate.complete is False
    assert certificate.missing_ranges == (("sent", 5, 5), ("sent", 14, 6))


def test_bytes_counted_by_policy_are_not_missing() -> None:
    table = make_table()
    state = open_in(table, opened())
    state.streams[SENT].push(segment(1, b"hello"))
    state.streams[SENT].push(Segment(1, SENT, 105, b"", 1, counted=1_000_000))
    certificate = close(table, totals=(1_000_005, 0))
    assert (certificate.sent, certificate.sent_counted) == (5, 1_000_000)
    assert certificate.complete is True


def test_bytes_before_a_midstream_flow_was_joined_are_missing() -> None:
    table = make_table()
    state = open_in(table, opened(offsets=(300, 0)))
    state.streams[SENT].push(segment(1, b"hello"))
    certificate = close(table, totals=(305, 0))
    assert (certificate.missing, certificate.complete) == (300, False)
    assert certificate.missing_ranges == (("sent", 0, 300),)


def test_without_the_kernels_totals_nothing_is_certified() -> None:
    table = make_table()
    state = open_in(table, opened(app=None, namespace=0))
    state.streams[SENT].push(segment(1, b"late", sequence=110))
    certificate = close(table)
    assert (certificate.missing, certificate.complete, certificate.sent_total) == (None, None, None)
    assert certificate.missing_ranges == (("sent", 0, 10),), "holes are known all the same"


def test_many_missing_ranges_are_listed_in_part_and_counted_all() -> None:
    table = make_table()
    state = open_in(table, opened())
    for index in range(50):
        state.streams[SENT].push(Segment(1, SENT, 105 + 10 * index, b"01234", 1, lost=index + 1))
    certificate = close(table, totals=(500, 0))
    assert certificate.missing == 250
    assert len(certificate.missing_ranges) == RANGES


@settings(max_examples=200, deadline=None)
@given(
    before=st.integers(0, 50),
    pieces=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 20), st.booleans()), max_size=12),
    tail=st.integers(0, 40),
)
def test_what_was_delivered_counted_and_missing_makes_the_total(
    before: int, pieces: list[tuple[int, int, bool]], tail: int
) -> None:
    table = make_table()
    state = open_in(table, opened(sequences=(2**32 - 20, 200), offsets=(before, 0)))
    highest = 0
    for start, length, counted in pieces:
        highest = max(highest, start + length)
        state.streams[SENT].push(
            Segment(
                1,
                SENT,
                (2**32 - 20 + start) % 2**32,
                b"" if counted else bytes(length),
                1,
                counted=length if counted else 0,
            )
        )
    total = before + highest + tail
    certificate = close(table, totals=(total, 0))
    assert certificate.missing is not None
    assert certificate.sent + certificate.sent_counted + certificate.missing == total
    covered = {at for start, length, _ in pieces for at in range(start, start + length)}
    assert certificate.missing == total - len(covered)
    assert certificate.complete is (certificate.missing == 0)
    assert sum(length for _, _, length in certificate.missing_ranges) == certificate.missing


def test_bytes_that_tcp_refused_make_nothing_missing() -> None:
    table = make_table()
    state = open_in(table, opened())
    state.streams[SENT].push(segment(1, b"hello"))
    state.streams[SENT].push(Segment(1, SENT, 205, b"bogus", 1, lost=1))
    certificate = close(table, totals=(7, 0))
    assert certificate.missing == 2
    assert certificate.missing_ranges == (("sent", 5, 2),)


# --- pairing -------------------------------------------------------------------------------


def test_two_ends_of_a_loopback_connection_are_paired_and_the_second_is_secondary() -> None:
    table = make_table()
    client = open_in(table, opened(1))
    server = open_in(table, accepted(2))
    assert client.paired is server
    assert server.paired is client
    assert (client.primary, server.primary) == (True, False)
    assert (client.peer, server.peer) == (SERVER, CURL)


def test_a_pair_is_dissolved_when_one_closes_and_the_second_stays_secondary() -> None:
    table = make_table()
    open_in(table, opened(1))
    server = open_in(table, accepted(2))
    close(table, 1)
    assert server.paired is None
    assert server.primary is False
    assert server.peer == CURL


@pytest.mark.parametrize(
    "other",
    [
        accepted(2, namespace=5),
        accepted(2, app=None),
        opened(2, local="127.0.0.1:40001"),
        opened(2),
    ],
    ids=["another namespace", "not in scope", "another port", "the same end"],
)
def test_flows_that_are_not_two_ends_of_one_connection_stay_single(other: Opened) -> None:
    table = make_table()
    first = open_in(table, opened(1))
    second = open_in(table, other)
    assert first.paired is second.paired is None
    assert second.primary


def test_a_socket_connected_to_itself_is_not_its_own_pair() -> None:
    table = make_table()
    itself = {"local": "127.0.0.1:40000", "remote": "127.0.0.1:40000"}
    states = [open_in(table, opened(flow_id, **itself)) for flow_id in (1, 2)]  # type: ignore[arg-type]
    assert [state.paired for state in states] == [None, None]


def test_a_port_used_again_pairs_with_the_new_flow() -> None:
    table = make_table()
    old = open_in(table, opened(1))
    new = open_in(table, opened(2))
    server = open_in(table, accepted(3))
    assert server.paired is new
    assert old.paired is None


def test_a_port_used_again_does_not_pair_with_an_end_that_lost_its_own() -> None:
    table = make_table()
    old_client = open_in(table, opened(1))
    open_in(table, accepted(2))
    close(table, 2)
    server = open_in(table, accepted(3))
    assert server.primary
    client = open_in(table, opened(4))
    assert client.paired is server
    assert old_client.paired is None


def test_a_closed_flow_is_nobodys_pair() -> None:
    table = make_table()
    open_in(table, opened(1))
    close(table, 1)
    assert open_in(table, accepted(2)).primary


def test_an_ipv4_client_of_an_ipv6_socket_is_its_pair() -> None:
    table = make_table()
    client = open_in(table, opened(1))
    server = open_in(
        table,
        opened(
            2,
            local="::ffff:127.0.0.1:1863",
            remote="::ffff:127.0.0.1:40000",
            role=Role.SERVER,
        ),
    )
    assert server.paired is client


def test_in_a_capture_a_mirror_image_is_a_port_used_again() -> None:
    table = make_table()
    open_in(table, opened(1, namespace=0))
    swapped = opened(2, local="127.0.0.1:1863", remote="127.0.0.1:40000", namespace=0)
    assert open_in(table, swapped).paired is None


# --- early segments ------------------------------------------------------------------------


def test_segments_before_the_opening_are_copied_and_given_back_at_it() -> None:
    table = make_table()
    buffer = bytearray(b"early")
    assert table.early(segment(1, memoryview(buffer)))
    assert table.early(segment(1, b"bird", sequence=105))
    buffer[:] = b"XXXXX"
    result = table.open(opened(1))
    assert result is not None
    assert [bytes(one.data) for one in result[1]] == [b"early", b"bird"]
    again = table.open(opened(2))
    assert again is not None
    assert not again[1]


def test_early_segments_that_nobody_claims_expire_and_are_counted() -> None:
    table = make_table()
    table.early(segment(1, b"a", time_ns=0))
    table.early(segment(1, b"b", time_ns=EARLY_NS))
    table.early(segment(2, b"c", time_ns=EARLY_NS))
    table.expire(EARLY_NS)
    assert table.early_expired == 0
    table.expire(EARLY_NS + 1)
    assert table.early_expired == 2
    result = table.open(opened(2))
    assert result is not None
    assert len(result[1]) == 1


def test_early_segments_are_bounded_for_a_flow_and_in_total() -> None:
    table = make_table()
    block = bytes(1000)
    kept = sum(table.early(segment(1, block)) for _ in range(1000))
    assert 0 < kept * len(block) <= EARLY_FLOW
    for flow_id in range(2, 1000):
        for _ in range(100):
            kept += table.early(segment(flow_id, block))
    assert 0 < kept * len(block) <= EARLY_TOTAL
    assert table.early_refused == 1000 + 998 * 100 - kept
    table.expire(10 * EARLY_NS)
    assert table.early_expired == kept
    assert table.early(segment(1, block)), "there is room again"


def test_the_largest_segment_fits_before_the_opening() -> None:
    assert make_table().early(segment(1, bytes(131_071)))


def test_segments_of_a_closed_or_refused_flow_are_counted() -> None:
    table = make_table(max_flows=1)
    table.early(segment(2, b"a"))
    open_in(table, opened(1))
    assert table.open(opened(2)) is None
    assert not table.early(segment(2, b"b"))
    assert table.early_refused == 2


# --- idle flows ----------------------------------------------------------------------------


def test_silent_flows_of_a_capture_end_as_idle() -> None:
    table = make_table(idle_ns=1000)
    open_in(table, opened(1, opened_ns=0))
    busy = open_in(table, opened(2, opened_ns=0))
    busy.last_ns = 900
    assert not table.expire(1000)
    assert table.expire(1250) == [Closed(1, 1250, "idle")]
    close(table, 1)
    assert table.find(2) is busy


def test_silent_flows_that_are_live_stay_open() -> None:
    table = make_table()
    open_in(table, opened(1, opened_ns=0))
    assert not table.expire(10**18)
