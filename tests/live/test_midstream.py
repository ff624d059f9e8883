"""Connections that are older than the watch, or come to a program by another way than its own."""

import socket
from collections.abc import Callable

import pytest

from helpers.live import Puppet, Watcher, by_pid, join, leave, say, whole
from streamtap.events import FlowClosed, FlowOpened, StreamGap
from streamtap.model import Content
from streamtap.patterns.model import Data

RANGES = 16  # that a closing lists
pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_an_open_connection_is_joined_at_its_exact_offset(
    role: str, host: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    join(client, server, host)
    mine, other = (client, server) if role == "client" else (server, client)
    say(mine, other, b"x" * 1111)
    say(other, mine, b"y" * 70_002)
    watch = watching(*by_pid(mine), content=Content.FULL)
    say(mine, other, b"from now on")
    say(other, mine, b"we listen")
    leave(client, server)
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.app
    assert (opened.flow.role, opened.flow.app.pid) == (role, mine.pid)
    assert opened.body == FlowOpened(midstream=True)
    gaps = {record.direction: record.body for record in watch.of(StreamGap)}
    assert gaps == {
        "sent": StreamGap(offset=0, length=1111, cause="midstream"),
        "received": StreamGap(offset=0, length=70_002, cause="midstream"),
    }
    assert [(data.offset, data.bytes, data.content) for data in watch.all(Data, "sent")] == [
        (1111, 11, "from now on")
    ]
    assert [(data.offset, data.bytes, data.content) for data in watch.all(Data, "received")] == [
        (70_002, 9, "we listen")
    ]
    assert (closed.sent, closed.received) == (11, 9)
    assert (closed.sent_total, closed.received_total) == (1122, 70_011)
    assert closed.missing == 71_113
    assert closed.complete is False
    assert set(closed.missing_ranges) == {("sent", 0, 1111), ("received", 0, 70_002)}
    assert closed.reason == "fin"


@pytest.mark.parametrize("role", ["client", "server"])
def test_the_role_is_right_also_where_nothing_was_said_yet(
    role: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    join(client, server)
    mine = client if role == "client" else server
    watch = watching(*by_pid(mine))
    say(client, server, b"hello")
    leave(client, server)
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.role == role
    expected = (5, 0) if role == "client" else (0, 5)
    whole(closed, *expected)


def test_a_half_closed_connection_is_joined_at_its_exact_offset(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    join(client, server)
    say(client, server, b"x" * 333)
    client.do("s.shutdown(socket.SHUT_WR)")
    assert server.do("s.recv(1)") == b""
    watch = watching(*by_pid(client, server), both_ends=True)
    say(server, client, b"the rest")
    server.do("s.close()")
    client.do("s.close()")
    watch.until_closed(2)
    closings = {
        record.flow.role: record.body
        for record in watch.records
        if record.flow and isinstance(record.body, FlowClosed)
    }
    mine, theirs = closings["client"], closings["server"]
    assert (mine.sent_total, mine.received_total, mine.missing) == (333, 8, 333)
    assert (theirs.sent_total, theirs.received_total, theirs.missing) == (8, 333, 333)
    assert mine.reason == theirs.reason == "fin"


def test_new_only_leaves_out_what_is_open_and_takes_what_comes(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    join(client, server, name="old")
    watch = watching(*by_pid(client), new_only=True)
    say(client, server, b"unheard", name="old")
    join(client, server)
    say(client, server, b"heard")
    leave(client, server)
    leave(client, server, name="old")
    _, closed = watch.one()
    whole(closed, sent=5, received=0)
    watch.finish()
    assert len(watch.all(FlowOpened)) == 1


def test_new_only_takes_the_connections_of_an_old_listener(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    address = server.do("(listener := listen()).getsockname()")
    watch = watching(*by_pid(server), new_only=True)
    client.do("s = connect(address)", address=address)
    server.do("s = listener.accept()[0]")
    say(client, server, b"after")
    leave(client, server)
    opened, closed = watch.one()
    assert opened.body == FlowOpened(midstream=False)
    whole(closed, sent=0, received=5)


@pytest.mark.parametrize("size", [1, 3000, 100_000])
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_transfer_in_full_swing_is_joined_without_a_hole_from_then_on(
    role: str, size: int, client: Puppet, server: Puppet, watching: Watching
) -> None:
    """What is on its way down at that moment is neither counted twice nor forgotten."""
    join(client, server)
    server.begin("discard(s)")
    client.begin(
        "import time\n"
        "sent, end = 0, time.monotonic() + 0.3\n"
        "while time.monotonic() < end: sent += s.send(b'm' * size)\n"
        "s.shutdown(socket.SHUT_WR)",
        size=size,
    )
    watch = watching(*by_pid(client if role == "client" else server))
    watch.until(lambda: server.is_done, "the transfer has ended")
    total = server.result()
    client.result()
    server.do("s.close()")
    client.do("s.close()")
    opened, closed = watch.one()
    assert opened.body == FlowOpened(midstream=True)
    assert opened.flow
    assert opened.flow.role == role
    totals, direction = (total, 0), "sent"
    seen = closed.sent + closed.sent_counted
    if role == "server":
        totals, direction = (0, total), "received"
        seen = closed.received + closed.received_counted
    assert (closed.sent_total, closed.received_total) == totals
    gap, *more = watch.all(StreamGap)
    assert gap.cause == "midstream"
    # A fast sender outruns the ring: what it had no room for is told as lost.
    found = [hole for hole in more if hole.cause != "lost"]
    # What waits in the backlog of the socket at that moment is a hole of its own behind it.
    assert len(found) <= (role == "server"), (gap, more)
    assert all(hole.offset == gap.length for hole in found), (gap, more)
    holes = [(hole.offset, hole.length) for hole in (gap, *more)]
    assert closed.missing_ranges == tuple((direction, *hole) for hole in holes)[:RANGES]
    missing = sum(length for _, length in holes)
    assert (closed.missing, seen) == (missing, total - missing)


def test_a_socket_handed_over_by_a_foreign_program_is_seen_from_its_first_use(
    server: Puppet, puppet: Start, watching: Watching
) -> None:
    """SCM_RIGHTS: neither made nor accepted by the program in scope."""
    ends = socket.socketpair()
    giver, heir = (puppet(pass_fds=[end.fileno()]) for end in ends)
    giver.do("channel = socket.socket(fileno=fd)", fd=ends[0].fileno())
    heir.do("channel = socket.socket(fileno=fd)", fd=ends[1].fileno())
    for end in ends:
        end.close()
    watch = watching(*by_pid(heir), content=Content.FULL)
    if watch.holder.callouts.missing:
        pytest.skip(f"the kernel lacks {', '.join(watch.holder.callouts.missing)}")
    join(giver, server)
    say(giver, server, b"given away")
    giver.do("socket.send_fds(channel, [b'x'], [s.fileno()]); s.close()")
    heir.do("s = socket.socket(fileno=socket.recv_fds(channel, 1, 1)[1][0])")
    say(heir, server, b"first use")
    say(server, heir, b"welcome")
    say(heir, server, b"and more")
    leave(heir, server)
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.app
    assert (opened.flow.app.pid, opened.flow.role) == (heir.pid, "client")
    assert opened.body == FlowOpened(midstream=True)
    assert (closed.sent_total, closed.received_total) == (27, 7)
    # The mark is made by the first use itself: what it sent had passed.
    assert closed.missing_ranges == (("sent", 0, 19),)
    assert (watch.said("sent"), watch.said("received")) == ("and more", "welcome")


def test_a_socket_handed_over_before_the_watch_began_is_found(
    server: Puppet, puppet: Start, watching: Watching
) -> None:
    ends = socket.socketpair()
    giver, heir = (puppet(pass_fds=[end.fileno()]) for end in ends)
    giver.do("channel = socket.socket(fileno=fd)", fd=ends[0].fileno())
    heir.do("channel = socket.socket(fileno=fd)", fd=ends[1].fileno())
    for end in ends:
        end.close()
    join(giver, server)
    giver.do("socket.send_fds(channel, [b'x'], [s.fileno()]); s.close()")
    heir.do("s = socket.socket(fileno=socket.recv_fds(channel, 1, 1)[1][0])")
    watch = watching(*by_pid(heir))
    say(heir, server, b"first use")
    leave(heir, server)
    _, closed = watch.one()
    whole(closed, sent=9, received=0)


def test_a_server_with_no_backlog_is_told_from_a_client_too(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    address = server.do("(listener := listen(backlog=0)).getsockname()")
    client.do("s = connect(address)", address=address)
    server.do("s = listener.accept()[0]; listener.close()")
    say(server, client, b"welcome")
    watch = watching(*by_pid(server))
    leave(client, server)
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.role == "server"
    assert (closed.sent_total, closed.received_total) == (7, 0)
