"""A bad network: loss, reordering, duplicates, and retransmissions that lie."""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from helpers.live import PROGRAMS, Puppet, Watcher, by_pid, environment, interpreter, say, whole
from streamtap.events import StreamGap, StreamLimit, StreamOverlap
from streamtap.model import Content

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]
Plug = Callable[[str], tuple[Puppet, Puppet]]


@pytest.fixture
def plug(client: Puppet, server: Puppet) -> Iterator[Plug]:
    """Two programs in network namespaces of their own, with a faulty cable between them."""
    wires: list[subprocess.Popen[bytes]] = []

    def connected(fault: str) -> tuple[Puppet, Puppet]:
        if not os.path.exists("/dev/net/tun"):
            pytest.skip("no /dev/net/tun: no cable to cut")
        for end in (client, server):
            end.do("own_network()")
        ends = (str(client.pid), str(server.pid))
        wire = subprocess.Popen(
            [interpreter(), "-s", "-S", "-P", str(PROGRAMS / "wire.py"), *ends, fault],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        wires.append(wire)
        assert wire.stdout
        assert wire.stdout.readline() == b"ready\n"
        address = server.do("(listener := listen('10.77.0.2')).getsockname()")
        client.do("s = connect(address)", address=address)
        server.do("s = listener.accept()[0]")
        return client, server

    yield connected
    for wire in wires:
        wire.kill()
        wire.communicate()


def transfer(client: Puppet, server: Puppet, size: int) -> str:
    """Sends so many bytes and closes both ends; their hash."""
    data = hashlib.shake_256(b"wire").digest(size)
    server.begin("got = receive(s, 1 << 30); s.close()")
    client.do("s.sendall(data); s.shutdown(socket.SHUT_WR)", data=data)
    server.result()
    assert server.do("got") == data
    client.do("discard(s); s.close()")
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("fault", "variant"),
    [*((fault, "dynptr") for fault in ("none", "lose", "swap", "double")), ("lose", "scratch")],
)
def test_both_ends_are_whole_over_a_bad_cable(
    fault: str, variant: str, plug: Plug, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(
        *by_pid(client, server),
        both_ends=True,
        keep_bytes=True,
        content=Content.FULL,
        variant=variant,
    )
    plug(fault)
    size = 300_000
    digest = transfer(client, server, size)
    for closed in watch.until_closed(2):
        whole(closed, sent=closed.sent, received=size - closed.sent)
        assert closed.sent in (0, size)
        assert closed.reason == "fin"
    assert len(watch.bytes) == 2
    for flow in watch.bytes.values():
        assert digest in (flow.sent(), flow.received())
    assert not [*watch.all(StreamGap), *watch.all(StreamOverlap), *watch.all(StreamLimit)]
    duplicates = [sum(one.duplicates for one in flow.streams) for flow in watch.bytes.values()]
    assert any(duplicates) is (fault in ("lose", "double")) or fault == "swap"
    assert watch.watch.drops == 0


def test_a_retransmission_with_other_content_is_reported_and_the_first_copy_kept(
    plug: Plug, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(server), keep_bytes=True, content=Content.FULL)
    plug("forge")
    say(client, server, b"the truth")
    say(client, server, b"and more")
    server.do("s.close()")
    client.do("discard(s); s.close()")
    _, closed = watch.one()
    whole(closed, sent=0, received=17)
    assert watch.said("received") == "the truthand more"
    assert watch.all(StreamOverlap, "received") == [
        StreamOverlap(offset=0, length=9),
        StreamOverlap(offset=9, length=8),
    ]


def test_a_segment_that_tcp_refuses_changes_nothing(
    plug: Plug, client: Puppet, server: Puppet, watching: Watching
) -> None:
    """The hook comes before TCP's own checks: what lies outside of the window is not the stream."""
    watch = watching(*by_pid(server), keep_bytes=True, content=Content.FULL)
    plug("ahead")
    for text in (b"one ", b"two ", b"three"):
        say(client, server, text)
    server.do("s.close()")
    client.do("discard(s); s.close()")
    _, closed = watch.one()
    whole(closed, sent=0, received=13)
    assert watch.said("received") == "one two three"
    assert watch.all(StreamGap) == []
