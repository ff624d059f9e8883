"""How connections end: in order, by a reset, or with the program in the middle of it."""

from collections.abc import Callable

import pytest

from helpers.live import Puppet, Watcher, by_pid, join, say, whole
from streamtap.events import FlowClosed
from streamtap.model import Content

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]


def test_a_reset_is_told_as_one(client: Puppet, server: Puppet, watching: Watching) -> None:
    watch = watching(*by_pid(client))
    join(client, server)
    say(client, server, b"x" * 1000)
    server.do("reset(s)")
    with pytest.raises(AssertionError, match="ConnectionResetError"):
        client.do("s.recv(1)")
    client.do("s.close()")
    _, closed = watch.one()
    assert closed.reason == "rst"
    whole(closed, sent=1000, received=0)


def test_one_direction_may_close_long_before_the_other(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client))
    join(client, server)
    client.do("s.sendall(b'all I have'); s.shutdown(socket.SHUT_WR)")
    assert server.do("receive(s, 100)") == b"all I have"
    server.do("s.sendall(b'y' * 100_000)", timeout=1)
    assert client.do("len(receive(s, 100_000))") == 100_000
    watch.until_opened()
    assert not watch.all(FlowClosed)
    server.do("s.close()")
    assert client.do("s.recv(1)") == b""
    client.do("s.close()")
    _, closed = watch.one()
    assert closed.reason == "fin"
    whole(closed, sent=10, received=100_000)


def test_a_refused_connection_is_no_flow(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client))
    address = server.do("(listener := listen()).getsockname()")
    server.do("listener.close()")
    with pytest.raises(AssertionError, match="ConnectionRefusedError"):
        client.do("connect(address)", address=address)
    assert watch.finish() == []
    assert watch.watch.drops == 0


def test_a_program_killed_in_the_middle_has_the_right_totals(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client))
    join(client, server)
    say(client, server, b"z" * 70_000)
    say(server, client, b"half a")
    client.kill()
    assert server.do("s.recv(1)") == b""
    server.do("s.close()")
    _, closed = watch.one()
    whole(closed, sent=70_000, received=6)


def test_bytes_queued_when_the_program_is_killed_are_still_seen(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    """Its socket goes on sending after it, to a peer that reads late."""
    watch = watching(*by_pid(client), keep_bytes=True, content=Content.FULL)
    join(client, server)
    queued = client.do(
        "s.setblocking(False)\n"
        "sent = 0\n"
        "try:\n"
        "    while True: sent += s.send(b'q' * 4096)\n"
        "except BlockingIOError: pass"
    )
    queued = client.do("sent")
    client.kill()
    assert server.do("discard(s)") == queued
    server.do("s.close()")
    _, closed = watch.one()
    whole(closed, sent=queued, received=0)
    assert watch.bytes.popitem()[1].lengths[0] == queued
