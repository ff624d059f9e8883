"""Segments of every form: large, with options, before the connection stands, by odd calls."""

import hashlib
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.live import Puppet, Watcher, by_pid, join, kernel_version, leave, say, whole
from streamtap.model import Content, Segment

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]
both_variants = pytest.mark.parametrize("variant", ["dynptr", "scratch"])
BIG_IPV4 = (6, 3)  # the first kernel whose packets of IPv4 may be longer than 64 KiB
QUICKACK_OFF = (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
NO_OPERATION = (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1\1\1\1")
# An options header of eight bytes: a padding option of six (RFC 8200 §4.6).
DESTINATION = (socket.IPPROTO_IPV6, 59, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
IPPROTO_MPTCP = 262


def widest(watch: Watcher) -> list[int]:
    """Fills up with the length of each segment that the source gives, joined ones apart."""
    lengths: list[int] = []
    poll = watch.watch.source.poll

    def poll_and_measure(timeout_s: float = 0.5) -> list[object]:
        items = poll(timeout_s)
        lengths.extend(
            len(item.data) for item in items if isinstance(item, Segment) and not item.ends
        )
        return items  # type: ignore[return-value]

    watch.watch.source.poll = poll_and_measure  # type: ignore[assignment, method-assign]
    return lengths


@both_variants
def test_segments_over_64_kib_on_loopback_are_taken_whole(
    variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), keep_bytes=True, content=Content.FULL, variant=variant)
    lengths = widest(watch)
    join(client, server)
    size = 6 << 20  # below half of the ring, which is all that a flow may fill: nobody reads now
    server.begin("discard(s)")
    client.do(
        "data = bytes(range(251)) * (size // 251 + 1)\n"
        "for at in range(0, size, 1 << 20): s.sendall(data[at : min(size, at + (1 << 20))])\n"
        "s.shutdown(socket.SHUT_WR)",
        size=size,
    )
    assert server.result() == size
    server.do("s.close()")
    client.do("s.close()")
    _, closed = watch.one()
    whole(closed, sent=size, received=0)
    data = bytes(range(251)) * (size // 251 + 1)
    assert watch.bytes.popitem()[1].sent() == hashlib.sha256(data[:size]).hexdigest()
    if variant == "dynptr" and kernel_version() >= BIG_IPV4:
        assert max(lengths) > 1 << 16


@both_variants
def test_ipv6_packets_larger_than_their_length_field_can_say_are_taken_whole(
    variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    """BIG TCP: a jumbo header before the TCP header, and 200 KiB at once."""
    ip = shutil.which("ip")
    if ip is None:
        pytest.skip("no ip: cannot set the size of packets")
    client.do("own_network()")
    server.do("network_of(pid)", pid=client.pid)
    wanted = f"{ip} link set dev lo gso_max_size 200000 gro_max_size 200000"
    code = client.do("os.system(wanted + ' 2>/dev/null')", wanted=wanted)
    if code:
        pytest.skip("ip or the kernel cannot make packets over 64 KiB")
    watch = watching(*by_pid(client, server), both_ends=True, content=Content.FULL, variant=variant)
    lengths = widest(watch)
    join(client, server, "::1")
    size = 3 << 20  # both ends of it below half of the ring: nobody reads meanwhile
    server.begin("discard(s)")
    client.do("s.sendall(b'J' * size); s.shutdown(socket.SHUT_WR)", size=size)
    assert server.result() == size
    server.do("s.close()")
    client.do("s.close()")
    for closed in watch.until_closed(2):
        whole(closed, sent=closed.sent, received=size - closed.sent)
    if variant == "dynptr":
        assert max(lengths) > 65_535


@both_variants
def test_a_file_sent_by_the_kernel_is_seen_byte_by_byte(
    variant: str, client: Puppet, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    """sendfile of 64 MiB: whole, or what was lost is accounted for to the byte."""
    block = hashlib.shake_256(b"sendfile").digest(1 << 20)
    file = tmp_path / "file"
    with file.open("wb") as out:
        for number in range(64):
            out.write(bytes([number]) + block[1:])
    size = file.stat().st_size
    assert size == 64 << 20
    watch = watching(*by_pid(client), keep_bytes=True, content=Content.FULL, variant=variant)
    join(client, server)
    server.begin("discard(s)")
    client.begin(
        "with open(path, 'rb') as file: s.sendfile(file)\ns.shutdown(socket.SHUT_WR)",
        path=str(file),
    )
    watch.until(lambda: server.is_done, "the file has arrived")
    assert server.result() == size
    client.result()
    server.do("s.close()")
    client.do("s.close()")
    _, closed = watch.one()
    assert (closed.sent_total, closed.received_total) == (size, 0)
    assert closed.missing is not None
    assert closed.sent + closed.missing == size
    assert closed.complete is (closed.missing == 0)
    lost = watch.holder.callouts.counters()["lost_bytes"]
    assert bool(lost) is bool(closed.missing)
    if not closed.missing:
        with file.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        assert watch.bytes.popitem()[1].sent() == digest


@pytest.mark.parametrize(
    ("host", "option"),
    [("127.0.0.1", NO_OPERATION), ("::1", DESTINATION)],
    ids=["IPv4 options", "IPv6 destination options"],
)
def test_options_before_the_tcp_header_are_stepped_over(
    host: str,
    option: tuple[int, int, bytes],
    client: Puppet,
    server: Puppet,
    watching: Watching,
) -> None:
    watch = watching(*by_pid(client, server), both_ends=True, content=Content.FULL)
    address = server.do("(listener := listen(host)).getsockname()", host=host)
    client.do("s = connect(address, options=(option,))", address=address, option=option)
    server.do("s = listener.accept()[0]")
    say(client, server, b"with options")
    say(server, client, b"without")
    leave(client, server)
    first, second = watch.until_closed(2)
    for closed in (first, second):
        whole(closed, sent=closed.sent, received=19 - closed.sent)
    assert {first.sent, second.sent} == {12, 7}
    assert watch.said("sent") in ("with optionswithout", "withoutwith options")


def test_urgent_data_is_part_of_the_stream(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), content=Content.FULL)
    join(client, server)
    server.do("s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)")
    client.do("s.sendall(b'be'); s.send(b'!', socket.MSG_OOB); s.sendall(b'fore')")
    assert server.do("receive(s, 7)") == b"be!fore"
    leave(client, server)
    _, closed = watch.one()
    whole(closed, sent=7, received=0)
    assert watch.said("sent") == "be!fore"
