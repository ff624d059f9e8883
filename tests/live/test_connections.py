"""Connections of every kind: who made them, how they begin and end, and every byte counted."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.live import Puppet, Watcher, by_pid, join, leave, say, whole
from streamtap.events import FlowClosed, FlowOpened
from streamtap.flows.scope import resolve
from streamtap.model import Content

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]


@pytest.mark.parametrize(
    ("host", "variant"), [("127.0.0.1", "dynptr"), ("::1", "dynptr"), ("::1", "scratch")]
)
def test_an_active_open_is_told_with_its_program_and_every_byte(
    host: str, variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), content=Content.FULL, variant=variant)
    join(client, server, host)
    say(client, server, b"hello")
    say(server, client, b"good morning")
    ends = client.do("s.getsockname()[:2], s.getpeername()[:2]")
    leave(client, server)
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.app
    assert opened.flow.app.pid == client.pid
    assert opened.flow.role == "client"
    bracket = "[{}]:{}" if ":" in host else "{}:{}"
    assert (opened.flow.local, opened.flow.remote) == tuple(bracket.format(*end) for end in ends)
    assert opened.body == FlowOpened(midstream=False)
    assert closed.reason == "fin"
    whole(closed, sent=5, received=12)
    assert (watch.said("sent"), watch.said("received")) == ("hello", "good morning")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_passive_open_is_told_as_the_servers(
    host: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(server), content=Content.FULL)
    join(client, server, host)
    say(client, server, b"question")
    say(server, client, b"an answer")
    leave(client, server)
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.app
    assert (opened.flow.app.pid, opened.flow.role) == (server.pid, "server")
    whole(closed, sent=9, received=8)
    assert (watch.said("sent"), watch.said("received")) == ("an answer", "question")


def test_a_program_that_lives_a_few_milliseconds_is_not_missed(
    server: Puppet, puppet: Start, watching: Watching, tmp_path: Path
) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash: a shell that connects by itself")
    brief = Path(shutil.copy(shell, tmp_path / "brief"))
    watch = watching(resolve("exe", str(brief)))
    server.do("listener = listen()")
    host, port = server.do("listener.getsockname()")
    starter = puppet()
    starter.do(
        "import subprocess; subprocess.run([brief, '-c', command], check=True)",
        brief=str(brief),
        command=f"echo brief life >/dev/tcp/{host}/{port}",
    )
    assert server.do("receive(listener.accept()[0], 100)") == b"brief life\n"
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.app
    assert (opened.flow.app.path, opened.flow.app.comm) == (str(brief), "brief")
    whole(closed, sent=11, received=0)


@pytest.mark.parametrize("variant", ["dynptr", "scratch"])
def test_of_500_short_connections_in_a_row_none_is_missed(
    variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), variant=variant)
    address = server.do("(listener := listen()).getsockname()")
    server.begin(
        "for i in range(500):\n"
        "    with listener.accept()[0] as s:\n"
        "        s.sendall(receive(s, 7) * 3)"
    )
    client.begin(
        "for i in range(500):\n"
        "    with connect(address) as s:\n"
        "        s.sendall(b'%7d' % i)\n"
        "        assert receive(s, 22) == b'%7d' % i * 3",
        address=address,
    )
    closings = watch.until_closed(500)
    client.result()
    server.result()
    watch.finish()
    assert len(watch.all(FlowOpened)) == len(watch.all(FlowClosed)) == 500
    for closed in closings:
        whole(closed, sent=7, received=21)
        assert closed.reason == "fin"
    assert watch.watch.drops == 0


def test_a_listener_inherited_by_forked_workers_counts_for_each_of_them(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(server, follow_forks=True))
    address = server.do("(listener := listen()).getsockname()")
    server.do(
        "workers = []\n"
        "for i in range(4):\n"
        "    worker = os.fork()\n"
        "    if not worker:\n"
        "        with listener.accept()[0] as s:\n"
        "            s.sendall(receive(s, 10)[::-1])\n"
        "        os._exit(0)\n"
        "    workers.append(worker)\n"
    )
    for i in range(4):
        client.do("s = connect(address); s.sendall(data)", address=address, data=b"worker no%d" % i)
        assert client.do("receive(s, 100)") == (b"worker no%d" % i)[::-1]
        client.do("s.close()")
    server.do("for worker in workers: os.waitpid(worker, 0)")
    closings = watch.until_closed(4)
    assert len(watch.all(FlowOpened)) == len(closings) == 4
    for closed in closings:
        whole(closed, sent=10, received=10)


def test_a_listener_older_than_the_monitor_gives_whole_flows(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    address = server.do("(listener := listen()).getsockname()")
    watch = watching(*by_pid(server))
    client.do("s = connect(address); s.sendall(b'first')", address=address)
    server.do("s = listener.accept()[0]")
    assert server.do("receive(s, 5)") == b"first"
    leave(client, server)
    opened, closed = watch.one()
    assert opened.body == FlowOpened(midstream=False)
    whole(closed, sent=0, received=5)


def test_a_socket_made_before_a_fork_is_the_applications_in_the_child(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client))
    address = server.do("(listener := listen()).getsockname()")
    client.do(
        "s = socket.socket()\n"
        "if not os.fork():\n"
        "    s.connect(address); s.sendall(b'from the child'); os._exit(0)\n"
        "s.close()",
        address=address,
    )
    assert server.do("receive(listener.accept()[0], 100)") == b"from the child"
    _, closed = watch.one()
    whole(closed, sent=14, received=0)


def test_connections_over_ipv6_to_an_ipv4_mapped_peer_are_whole(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    """An IPv4 client of a server that listens on IPv6 for both."""
    watch = watching(*by_pid(server), content=Content.FULL)
    port = server.do("(listener := listen('::', dual=True)).getsockname()")[1]
    client.do("s = connect(('127.0.0.1', port))", port=port)
    server.do("s = listener.accept()[0]")
    assert server.do("int(s.family)") == socket.AF_INET6
    say(client, server, b"by IPv4")
    leave(client, server)
    _, closed = watch.one()
    whole(closed, sent=0, received=7)
    assert watch.said("received") == "by IPv4"
