"""How much is copied, and how often a thing is told: policies of flows, and flows in pairs."""

from collections.abc import Callable
from typing import Any

import pytest

from helpers.live import Puppet, Watcher, by_pid, join, leave, say, whole
from streamtap.events import FlowClosed, FlowIdentified, FlowOpened
from streamtap.model import Content, Policy
from streamtap.patterns.model import Data

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]
both_variants = pytest.mark.parametrize("variant", ["dynptr", "scratch"])


def identified(watch: Watcher) -> None:
    watch.until(lambda: watch.all(FlowIdentified), "the protocol is known")


def by_role(watch: Watcher) -> dict[str, FlowClosed]:
    return {
        record.flow.role: record.body
        for record in watch.records
        if record.flow and isinstance(record.body, FlowClosed)
    }


# --- copied or counted ---------------------------------------------------------------------------


@both_variants
def test_what_nobody_will_look_at_is_counted_once_that_is_known(
    variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), variant=variant)
    join(client, server)
    say(client, server, b"no protocol at all")
    identified(watch)
    size = 20 << 20
    server.begin("discard(s)")
    client.begin("s.sendall(b'b' * size); s.shutdown(socket.SHUT_WR)", size=size)
    watch.until(lambda: server.is_done, "the bulk has arrived")
    assert server.result() == size
    client.result()
    server.do("s.sendall(b'done'); s.close()")
    client.do("discard(s); s.close()")
    _, closed = watch.one()
    whole(closed, sent=size + 18, received=4)
    assert (closed.sent, closed.received) == (18, 0)
    assert closed.sent_counted == size
    counters = watch.holder.callouts.counters()
    assert counters["captured_bytes"] == 18
    assert counters["counted_bytes"] >= size + 4  # more where TCP sent something again
    assert sum(data.bytes for data in watch.all(Data, "sent")) == size + 18
    assert watch.watch.drops == 0


def test_with_full_content_everything_is_copied(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), content=Content.FULL)
    join(client, server)
    say(client, server, b"no protocol at all")
    identified(watch)
    say(client, server, b"b" * 500_000)
    leave(client, server)
    _, closed = watch.one()
    whole(closed, sent=500_018, received=0)
    assert closed.sent == 500_018
    assert closed.sent_counted == 0


@both_variants
def test_a_counted_chat_is_still_told_message_by_message(
    variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), variant=variant)
    join(client, server)
    say(client, server, b"hello")
    say(server, client, b"hi")
    identified(watch)
    for number in range(1, 31):
        say(client, server, b"m" * number)
        say(server, client, b"a" * (2 * number))
    leave(client, server)
    _, closed = watch.one()
    total = sum(range(1, 31))
    whole(closed, sent=5 + total, received=2 + 2 * total)
    assert (closed.sent, closed.received) == (5, 2)
    assert [data.bytes for data in watch.all(Data, "sent")] == [5, *range(1, 31)]
    assert [data.bytes for data in watch.all(Data, "received")] == [2, *range(2, 61, 2)]


def test_the_head_of_a_flow_is_cut_to_the_byte(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), content=Content.FULL)
    watch.holder.callouts.set_policy(Policy.HEAD, 1000)
    join(client, server)
    for _ in range(3):
        say(client, server, b"h" * 700)
    say(server, client, b"r" * 999)
    say(server, client, b"rrr")
    leave(client, server)
    _, closed = watch.one()
    whole(closed, sent=2100, received=1002)
    assert (closed.sent, closed.sent_counted) == (1000, 1100)
    assert (closed.received, closed.received_counted) == (1000, 2)


def test_connections_of_a_counted_listener_are_copied_at_first(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    """Each connection is judged by itself, also when those before it were found opaque."""
    watch = watching(*by_pid(server))
    address = server.do("(listener := listen()).getsockname()")
    for number in range(3):
        client.do("s = connect(address)", address=address)
        server.do("s = listener.accept()[0]")
        say(client, server, b"first words")
        watch.until(lambda n=number: len(watch.all(FlowIdentified)) > n, "it is known")  # type: ignore[misc]
        say(client, server, b"second words")
        leave(client, server)
        watch.until_closed(number + 1)
    for closed in watch.all(FlowClosed):
        whole(closed, sent=0, received=23)
        assert (closed.received, closed.received_counted) == (11, 12)


def test_a_counted_flow_that_lives_on_is_whole_when_the_watch_ends(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    """What was counted and not told yet belongs to it."""
    watch = watching(*by_pid(client))
    join(client, server)
    say(client, server, b"opaque")
    identified(watch)
    server.begin("discard(s, 3 << 20)")
    client.do("s.sendall(b'b' * (3 << 20))")
    server.result()
    watch.finish()
    (closed,) = watch.all(FlowClosed)
    assert closed.reason == "end"
    whole(closed, sent=(3 << 20) + 6, received=0)


# --- both ends -----------------------------------------------------------------------------------


def test_with_both_ends_in_scope_a_message_is_told_once_and_names_both(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client, server))
    join(client, server)
    watch.until_opened(2)
    for text in (b"one", b"two!", b"three"):
        say(client, server, text)
        say(server, client, b"ok")
    leave(client, server)
    watch.until_closed(2)
    first, second = watch.of(FlowOpened)
    assert first.flow
    assert second.flow
    assert {first.flow.role, second.flow.role} == {"client", "server"}
    told = watch.of(Data)
    sizes = [record.body.bytes for record in told if isinstance(record.body, Data)]
    assert sizes == [3, 2, 4, 2, 5, 2]
    for record in told:
        assert record.flow
        assert record.flow.app
        assert record.flow.peer
        assert record.flow.flow == first.flow.flow
        assert {record.flow.app.pid, record.flow.peer.pid} == {client.pid, server.pid}
    ends = by_role(watch)
    whole(ends["client"], sent=12, received=6)
    whole(ends["server"], sent=6, received=12)


def test_both_ends_tells_each_of_them(client: Puppet, server: Puppet, watching: Watching) -> None:
    watch = watching(*by_pid(client, server), both_ends=True)
    join(client, server)
    watch.until_opened(2)
    say(client, server, b"twice")
    leave(client, server)
    watch.until_closed(2)
    told: list[tuple[Any, ...]] = [
        (record.flow.role, record.direction, record.body.bytes)
        for record in watch.records
        if record.flow and isinstance(record.body, Data)
    ]
    assert sorted(told) == [("client", "sent", 5), ("server", "received", 5)]


def test_ipv4_client_and_dual_stack_server_are_one_pair(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client, server))
    port = server.do("(listener := listen('::', dual=True)).getsockname()[1]")
    client.do("s = connect(('127.0.0.1', port))", port=port)
    server.do("s = listener.accept()[0]")
    watch.until_opened(2)
    say(client, server, b"once")
    leave(client, server)
    watch.until_closed(2)
    assert [data.bytes for data in watch.all(Data)] == [4]


def test_a_pair_in_which_one_end_is_joined_midstream_is_told_once(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    join(client, server)
    watch = watching(*by_pid(client, server))
    watch.until_opened(2)
    say(client, server, b"once")
    leave(client, server)
    watch.until_closed(2)
    assert [data.bytes for data in watch.all(Data)] == [4]
