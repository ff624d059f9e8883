"""Rings and tables that are full: nothing is lost silently."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.live import Puppet, Watcher, by_pid, join, leave, say, whole
from streamtap.events import FlowClosed, FlowOpened, StreamGap
from streamtap.flows.scope import resolve
from streamtap.model import Content

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]
MIB = 1 << 20


def accounted(closed: FlowClosed) -> int:
    """Missing bytes of a certificate; its ranges name them all, as far as there is room."""
    assert closed.missing is not None
    assert closed.sent_total is not None
    assert closed.received_total is not None
    total = closed.sent_total + closed.received_total
    assert closed.sent + closed.received + closed.missing == total
    named = sum(length for _, _, length in closed.missing_ranges)
    assert named == closed.missing or len(closed.missing_ranges) == 16
    assert named <= closed.missing
    assert closed.complete is (closed.missing == 0)
    return closed.missing


def counted_right(counters: dict[str, int]) -> None:
    counted = counters["captured_bytes"] + counters["lost_bytes"] + counters["counted_bytes"]
    assert counted == counters["seen_bytes"]


@pytest.mark.parametrize(
    ("chunk", "variant"),
    [(100, "dynptr"), (1400, "dynptr"), (100_000, "dynptr"), (100_000, "scratch")],
)
def test_a_small_ring_with_a_stopped_reader_accounts_for_every_byte(
    chunk: int, variant: str, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(
        *by_pid(client), ring_bytes=MIB, keep_bytes=True, content=Content.FULL, variant=variant
    )
    join(client, server)
    size = 8 * MIB if chunk > 1000 else 3 * MIB
    server.begin("discard(s)")
    client.do(
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "piece = b'l' * chunk\n"
        "for at in range(0, size, chunk): s.sendall(piece[: size - at])\n"
        "s.shutdown(socket.SHUT_WR)",
        chunk=chunk,
        size=size,
    )
    assert server.result() == size
    say(server, client, b"last words")
    server.do("s.close()")
    client.do("s.close()")
    assert not len(watch.holder.callouts.list_flows())
    counters = watch.holder.callouts.counters()
    counted_right(counters)
    assert counters["lost_bytes"] > 0
    assert counters["lost_segments"] > 0
    assert counters["captured_bytes"] <= MIB
    _, closed = watch.one()
    assert (closed.sent_total, closed.received_total) == (size, 10)
    missing, told = accounted(closed), closed.sent + closed.received
    assert closed.complete is False
    assert sum(watch.bytes.popitem()[1].lengths) == told
    # What TCP sent again was seen again: it may fill a hole, or be lost twice.
    again = counters["seen_bytes"] - size - 10
    assert 0 <= counters["lost_bytes"] - missing <= again
    assert 0 <= counters["captured_bytes"] - told <= again
    gaps = watch.of(StreamGap)
    assert sum(record.body.length for record in gaps if isinstance(record.body, StreamGap)) == (
        closed.missing
    )
    assert {gap.cause for gap in watch.all(StreamGap)} == {"lost"}
    assert watch.watch.drops == counters["lost_segments"]


def test_loss_of_programs_that_were_not_judged_yet_is_counted_apart(
    program: Path, puppet: Start, server: Puppet, watching: Watching
) -> None:
    watch = watching(resolve("cmdline", re.escape(str(program))), ring_bytes=MIB)
    client = puppet(program)  # nobody has judged it while nobody looks
    join(client, server)
    server.begin("discard(s)")
    client.do("s.sendall(bytes(8 << 20)); s.shutdown(socket.SHUT_WR)")
    assert server.result() == 8 * MIB
    counters = watch.holder.callouts.counters()
    assert (counters["lost_segments"], counters["candidates_lost"] > 0) == (0, True)


def test_loss_is_known_per_flow_while_it_lives(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), ring_bytes=MIB, content=Content.FULL)
    join(client, server)
    server.begin("discard(s, 4 << 20)")
    client.do("s.sendall(b'l' * (4 << 20))")
    assert server.result() == 4 * MIB
    (flow,) = watch.holder.callouts.list_flows()
    seen, captured, lost = (flow[name].tolist() for name in ("seen", "captured", "lost"))
    assert seen[0] >= 4 * MIB
    assert [a + b for a, b in zip(captured, lost, strict=True)] == seen
    assert lost[0] > 0
    watch.finish()
    (closed,) = watch.all(FlowClosed)
    assert closed.reason == "end"
    assert 0 <= lost[0] - accounted(closed) <= seen[0] - 4 * MIB


def test_after_a_loss_the_stream_goes_on_where_it_is(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), ring_bytes=MIB, content=Content.FULL)
    join(client, server)
    server.begin("discard(s, 4 << 20)")
    client.do("s.sendall(b'l' * (4 << 20))")
    server.result()
    watch.until_opened()
    watch.until(lambda: watch.watch.source.is_drained, "everything is read")
    watch.poll()  # gives the space back
    say(client, server, b"after")
    say(server, client, b"answer")
    leave(client, server)
    _, closed = watch.one()
    accounted(closed)
    assert watch.said("sent").endswith("after")
    assert watch.said("received") == "answer"
    assert closed.received == 6
    # Not always to the end: after a pause even a flow that fills the ring is let in again.
    gap_end = max(start + length for _, start, length in closed.missing_ranges)
    assert 0 < gap_end <= 4 * MIB


def test_a_flood_of_small_records_leaves_a_quiet_flow_whole(
    puppet: Start, watching: Watching
) -> None:
    client, server, chatterbox, sink = (puppet() for _ in range(4))
    watch = watching(
        *by_pid(client, chatterbox), ring_bytes=MIB, content=Content.FULL, keep_bytes=True
    )
    join(client, server)
    join(chatterbox, sink)
    sink.begin("discard(s)")
    chatterbox.begin(
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "import select\n"
        "sent = 0\n"
        "while not select.select([0], [], [], 0)[0]:\n"
        "    for i in range(100): sent += s.send(b'flood')\n"
        "s.close()"
    )
    for number in range(200):
        say(client, server, b"message %4d" % number)
        say(server, client, b"answer %4d" % number)
        if number % 10 == 9:
            watch.poll()
    chatterbox.begin("sent")
    chatterbox.result()
    sent = chatterbox.result()
    sink.result()
    leave(client, server)
    watch.until_closed(2)
    closings: dict[Any, FlowClosed] = {
        record.flow.app.pid: record.body
        for record in watch.records
        if record.flow and record.flow.app and isinstance(record.body, FlowClosed)
    }
    whole(closings[client.pid], sent=200 * 12, received=200 * 11)
    assert closings[chatterbox.pid].sent_total == sent
    accounted(closings[chatterbox.pid])
    counted_right(watch.holder.callouts.counters())


def test_flows_beyond_the_limit_are_refused_and_counted(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), max_flows=2, content=Content.FULL)
    address = server.do("(listener := listen()).getsockname()")
    client.do("all = [connect(address) for i in range(5)]", address=address)
    server.do("all = [listener.accept()[0] for i in range(5)]")
    client.do("for s in all: s.sendall(b'hello')")
    assert server.do("[receive(s, 5) for s in all]") == [b"hello"] * 5
    client.do("for s in all: s.close()")
    server.do("for s in all: s.close()")
    for closed in watch.until_closed(2):
        whole(closed, sent=5, received=0)
    watch.finish()
    assert len(watch.all(FlowOpened)) == len(watch.all(FlowClosed)) == 2
    assert watch.watch.pipeline.table.refused == 3
    assert watch.watch.drops >= 3


def test_room_that_a_closed_flow_leaves_is_used_again(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), max_flows=1)
    for number in range(5):
        join(client, server)
        say(client, server, b"hello")
        leave(client, server)
        watch.until_closed(number + 1)
    assert watch.watch.drops == 0
