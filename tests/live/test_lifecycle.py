"""Coming and going: nothing is disturbed, and nothing is left behind."""

import os
import sys
from collections.abc import Callable

import pytest

from helpers.live import (
    PUPPET,
    SRC,
    Puppet,
    Watcher,
    by_pid,
    eventually,
    held_in_kernel,
    is_in_kernel,
    join,
    leave,
    say,
    whole,
)
from streamtap.capture.callouts import Callouts
from streamtap.capture.identity import find_mount
from streamtap.events import FlowClosed, FlowOpened
from streamtap.model import Content

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]

# A watch in a process of its own: on `pid`, until told to end.
OWN_WATCH = """
from streamtap.flows.scope import resolve
from streamtap.holding import Local
from streamtap.watch import Watch
watch = Watch(Local([resolve("pid", str(pid))]))
watch.start()
"""


@pytest.fixture
def monitor(puppet: Start) -> Puppet:
    """A process that can run a watch itself."""
    return puppet(sys.executable, ("-P", str(PUPPET)), env={"PYTHONPATH": str(SRC)}, home=False)


def test_live_connections_go_on_when_the_watch_ends(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client, server), both_ends=True)
    join(client, server)
    say(client, server, b"seen")
    watch.finish()
    say(client, server, b"unseen")
    watch.close()
    say(server, client, b"and unseen")
    leave(client, server)
    for closed in watch.all(FlowClosed):
        assert closed.reason == "end"
        whole(closed, sent=closed.sent_total or 0, received=closed.received_total or 0)
    assert sorted(closed.sent_total or 0 for closed in watch.all(FlowClosed)) == [0, 4]


def test_every_flow_that_was_opened_is_closed_when_the_watch_ends(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    """Also those that nobody has read of yet."""
    watch = watching(*by_pid(client), content=Content.FULL)
    for number in range(5):
        join(client, server, name=f"s{number}")
        say(client, server, b"hello", name=f"s{number}")
    watch.finish()
    assert len(watch.all(FlowOpened)) == 5
    assert len(watch.all(FlowClosed)) == 5
    for closed in watch.all(FlowClosed):
        whole(closed, sent=5, received=0)


def test_nothing_is_left_in_the_kernel(client: Puppet, server: Puppet, watching: Watching) -> None:
    before, files = held_in_kernel(), len(os.listdir("/proc/self/fd"))
    watch = watching(*by_pid(client))
    mine = {kind: ids - before[kind] for kind, ids in held_in_kernel().items()}
    join(client, server)
    say(client, server, b"hello")
    assert len(mine["prog"]) >= 10
    assert all(is_in_kernel(kind, one) for kind, ids in mine.items() for one in ids)
    watch.finish()
    watch.close()
    assert held_in_kernel() == before
    assert len(os.listdir("/proc/self/fd")) == files
    eventually(
        lambda: not any(is_in_kernel(kind, one) for kind, ids in mine.items() for one in ids),
        "programs, maps and links are gone",
    )
    assert not os.path.exists("/sys/fs/bpf/streamtap") or not os.listdir("/sys/fs/bpf/streamtap")
    leave(client, server)


def test_nothing_is_left_of_a_monitor_that_was_killed(
    client: Puppet, server: Puppet, monitor: Puppet
) -> None:
    join(client, server)
    monitor.do(OWN_WATCH, pid=client.pid)
    monitor.do(
        "import re, pathlib\n"
        "ids = re.findall(r'^(prog|map|link)_id:\\s*(\\d+)$', ''.join(\n"
        "    path.read_text() for path in pathlib.Path('/proc/self/fdinfo').iterdir()\n"
        "    if path.exists()), re.MULTILINE)"
    )
    held = monitor.do("ids")
    assert len(held) > 20
    assert all(is_in_kernel(kind, int(one)) for kind, one in held)
    say(client, server, b"watched")
    monitor.kill()
    eventually(
        lambda: not any(is_in_kernel(kind, int(one)) for kind, one in held),
        "programs, maps and links are gone",
    )
    say(client, server, b"alone")
    leave(client, server)


def test_two_watches_at_once_see_the_same(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watches = [watching(*by_pid(one), content=Content.FULL) for one in (client, client, server)]
    join(client, server)
    say(client, server, b"to all of you")
    leave(client, server)
    for watch, expected in zip(watches, [(13, 0), (13, 0), (0, 13)], strict=True):
        _, closed = watch.one()
        whole(closed, *expected)


def test_a_watch_on_the_same_connection_after_another_starts_afresh(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    join(client, server)
    for number in range(3):
        watch = watching(*by_pid(client))
        say(client, server, b"hello")
        watch.finish()
        (closed,) = watch.all(FlowClosed)
        assert (closed.sent, closed.sent_total) == (5, 5 * (number + 1))
        watch.close()
    leave(client, server)


def test_disabling_stops_the_copying_and_enabling_resumes_it(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(*by_pid(client), content=Content.FULL)
    join(client, server)
    say(client, server, b"one ")
    watch.holder.callouts.enable(0)
    say(client, server, b"two ")
    watch.holder.callouts.enable(1)
    say(client, server, b"three")
    leave(client, server)
    _, closed = watch.one()
    assert watch.said("sent") == "one three"
    assert (closed.sent_total, closed.missing) == (13, 4)
    assert closed.missing_ranges == (("sent", 4, 4),)


def test_where_cgroup_v2_is_not_mounted_it_is_for_the_monitor_alone(
    client: Puppet, server: Puppet, monitor: Puppet
) -> None:
    if find_mount("cgroup2") is None:
        pytest.skip("this machine has not mounted it anyway")
    monitor.do("own_mounts()")
    while (place := monitor.do(
        "next((line.split()[4] for line in open('/proc/self/mountinfo')"
        " if ' - cgroup2 ' in line), '')")):  # fmt: skip
        monitor.do("unmount(place)", place=place)
    before = monitor.do("open('/proc/self/mountinfo').read()")
    join(client, server)
    monitor.do(OWN_WATCH + "private = watch.holder.callouts.cgroups.private", pid=client.pid)
    assert monitor.do("private") is True
    assert monitor.do("open('/proc/self/mountinfo').read()") == before
    say(client, server, b"still seen")
    monitor.do("records = [record for batch in watch.finish() for record in batch]")
    monitor.do("watch.close()")
    closings = monitor.do(
        "[(r.body.sent, r.body.complete, r.flow.app.cgroup) for r in records"
        " if type(r.body).__name__ == 'FlowClosed']"
    )
    assert closings == [(10, True, "/")]
    assert monitor.do("open('/proc/self/mountinfo').read()") == before


def test_callouts_that_are_loaded_and_never_attached_see_nothing(
    client: Puppet, server: Puppet
) -> None:
    callouts = Callouts()
    try:
        callouts.filters.add_pid(0, client.pid)
        callouts.enable(1)
        join(client, server)
        say(client, server, b"hello")
        leave(client, server)
        assert callouts.counters()["segments"] == 0
        assert callouts.hooks == ()
    finally:
        callouts.close()
