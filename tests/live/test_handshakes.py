"""How connections begin: data that comes early, options, Fast Open, MPTCP, io_uring, namespaces."""

import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from helpers.live import PROGRAMS, Puppet, Watcher, by_pid, join, leave, say, whole
from streamtap.capture.layout import FlowFlag
from streamtap.capture.openflow import flow_of
from streamtap.events import FlowClosed, FlowOpened
from streamtap.model import Content, Flow
from streamtap.patterns.model import Data

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]
both_variants = pytest.mark.parametrize("variant", ["dynptr", "scratch"])
QUICKACK_OFF = (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
NO_OPERATION = (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1\1\1\1")
# An options header of eight bytes: a padding option of six (RFC 8200 §4.6).
DESTINATION = (socket.IPPROTO_IPV6, 59, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
IPPROTO_MPTCP = 262


@pytest.mark.parametrize(
    ("listening", "host", "variant"),
    [
        ("127.0.0.1", "127.0.0.1", "dynptr"),
        ("::1", "::1", "dynptr"),
        ("::", "127.0.0.1", "dynptr"),
        ("::", "127.0.0.1", "scratch"),
    ],
    ids=["IPv4", "IPv6", "IPv4 to IPv6 listener", "scratch"],
)
def test_data_in_the_packet_that_completes_the_handshake_belongs_to_the_connection(
    listening: str, host: str, variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    """A client that delays its acknowledgement: the payload comes in with the listener."""
    watch = watching(*by_pid(server), content=Content.FULL, variant=variant)
    port = server.do("(listener := listen(host, dual=True)).getsockname()[1]", host=listening)
    for number in range(20):
        first = f"request {number}".encode()
        client.do(
            "s = connect(address, options=(quickack,)); s.sendall(first)",
            address=(host, port),
            quickack=QUICKACK_OFF,
            first=first,
        )
        server.do("s = listener.accept()[0]")
        assert server.do("receive(s, length)", length=len(first)) == first
        say(server, client, b"reply")
        say(client, server, b"more")
        leave(client, server)
        watch.until_closed(number + 1)
    for number, closed in enumerate(watch.all(FlowClosed)):
        whole(closed, sent=5, received=len(f"request {number}more"))
    assert watch.said("received") == "".join(f"request {number}more" for number in range(20))
    assert watch.watch.drops == 0


@both_variants
def test_tcp_fast_open_is_whole_at_both_ends(
    variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    """Data in the SYN: before the connection is established, at either end."""
    client.do("own_network()")
    server.do("network_of(pid)", pid=client.pid)
    # Both ends, data without a cookie, and no cookie asked for.
    client.do("open('/proc/sys/net/ipv4/tcp_fastopen', 'w').write(str(1 | 2 | 4 | 0x200))")
    watch = watching(*by_pid(client, server), both_ends=True, content=Content.FULL, variant=variant)
    address = server.do("(listener := listen(fastopen=True)).getsockname()")
    for number in range(3):
        client.do(
            "s = socket.socket(); s.sendto(b'in the SYN', MSG_FASTOPEN, address)", address=address
        )
        server.do("s = listener.accept()[0]")
        assert server.do("receive(s, 10)") == b"in the SYN"
        used = server.do("s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)")
        assert used[5] & 32, "the SYN carried no data"  # TCPI_OPT_SYN_DATA
        say(server, client, b"reply")
        say(client, server, b"and more")
        leave(client, server)
        watch.until_closed(2 * (number + 1))
    closings = watch.all(FlowClosed)
    assert len(watch.all(FlowOpened)) == len(closings) == 6
    for closed in closings:
        whole(closed, sent=closed.sent, received=23 - closed.sent)
    assert sorted(closed.sent for closed in closings) == [5, 5, 5, 18, 18, 18]
    assert watch.watch.drops == 0


@pytest.mark.parametrize("plain_client", [False, True], ids=["both ends", "server only"])
def test_a_connection_over_mptcp_is_seen_as_its_subflow(
    plain_client: bool,
    client: Puppet,
    server: Puppet,
    watching: Watching,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError as error:
        pytest.skip(f"no MPTCP: {error}")
    watch = watching(*by_pid(client, server), both_ends=True, content=Content.FULL)
    flags: list[int] = []

    def note(record: dict[str, Any], *rest: Any, **options: Any) -> Flow:
        flags.append(record["flags"])
        return flow_of(record, *rest, **options)

    monkeypatch.setattr("streamtap.capture.live.flow_of", note)
    address = server.do("(listener := listen(protocol=IPPROTO_MPTCP)).getsockname()")
    client.do(
        "s = connect(address, protocol=protocol)",
        address=address,
        protocol=0 if plain_client else IPPROTO_MPTCP,
    )
    server.do("s = listener.accept()[0]")
    say(client, server, b"many paths")
    say(server, client, b"one so far")
    leave(client, server)
    server.do("listener.close()")
    closings = watch.until_closed(2)
    assert len(watch.all(FlowOpened)) == 2
    assert all(bool(flag & FlowFlag.MULTIPATH) is not plain_client for flag in flags)
    for closed in closings:
        assert (closed.sent, closed.received) == (10, 10)
        if plain_client:
            whole(closed, sent=10, received=10)
        else:
            assert closed.complete is True
            assert closed.missing == 0
    assert sorted((watch.said("sent"), watch.said("received"))) == sorted(
        (watch.said("received"), watch.said("sent"))
    )


def test_a_program_that_uses_io_uring_alone_is_seen(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    host, port = server.do("(listener := listen()).getsockname()")
    watch = watching(*by_pid(client, follow_forks=True), content=Content.FULL)
    server.begin("s = listener.accept()[0]; s.sendall(receive(s, 9)[::-1])")
    code, text = client.do(
        "__import__('subprocess').getstatusoutput(command)",
        command=f"{sys.executable} -s -S -P {PROGRAMS / 'uring.py'} {host} {port} roundtrip",
    )
    if code == 3:
        connection = socket.create_connection((host, port))
        connection.close()
        pytest.skip(f"no io_uring: {text}")
    assert (code, text) == (0, "pirtdnuor"), text
    server.result()
    server.do("s.close()")
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.role == "client"
    whole(closed, sent=9, received=9)
    assert (watch.said("sent"), watch.said("received")) == ("roundtrip", "pirtdnuor")


def test_traffic_in_another_network_namespace_is_seen(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), content=Content.FULL)
    client.do("own_network()")
    server.do("network_of(pid)", pid=client.pid)
    join(client, server)
    say(client, server, b"elsewhere")
    leave(client, server)
    _, closed = watch.one()
    whole(closed, sent=9, received=0)
    assert watch.said("sent") == "elsewhere"


def test_the_same_addresses_in_two_namespaces_are_two_connections(
    puppet: Start, watching: Watching
) -> None:
    """First data with the handshake, at the same port of both: each gets its own."""
    pairs = [(puppet(), puppet()) for _ in range(2)]
    for client, server in pairs:
        server.do("own_network()")
        client.do("network_of(pid)", pid=server.pid)
    watch = watching(*by_pid(*(server for _, server in pairs)), content=Content.FULL)
    for number, (client, server) in enumerate(pairs):
        server.do(
            "listener = socket.socket(); listener.bind(('127.0.0.1', 7777)); listener.listen()"
        )
        client.do(
            "s = socket.socket(); s.setsockopt(*quickack); s.bind(('127.0.0.1', 8888))\n"
            "s.connect(('127.0.0.1', 7777)); s.sendall(b'from %d' % number)",
            quickack=QUICKACK_OFF,
            number=number,
        )
    for client, server in pairs:
        server.do("s = listener.accept()[0]; receive(s, 6)")
        leave(client, server)
    for closed in watch.until_closed(2):
        whole(closed, sent=0, received=6)
    said = {
        record.flow.app.pid: record.body.content
        for record in watch.records
        if isinstance(record.body, Data) and record.flow and record.flow.app
    }
    assert said == {pair[1].pid: f"from {number}" for number, pair in enumerate(pairs)}
