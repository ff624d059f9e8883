"""Commands that are launched to be watched, the demo among them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.live import (
    PUPPET,
    SRC,
    Puppet,
    Watcher,
    by_pid,
    eventually,
    held_in_kernel,
    interpreter,
    whole,
)
from streamtap.command import LaunchError
from streamtap.events import FlowClosed, FlowOpened
from streamtap.flows.scope import launch
from streamtap.model import Content
from streamtap.patterns.model import (
    Connect,
    Direct,
    File,
    Invite,
    Join,
    Leave,
    Message,
    Presence,
    SignIn,
    SignOut,
)

pytestmark = pytest.mark.root
Watching = Callable[..., Watcher]
SPEAK = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"


def speaking(server: Puppet, source: str) -> list[str]:
    """A command that connects to the server, and then does what the source says."""
    host, port = server.do("(listener := listen()).getsockname()")
    return [interpreter(), "-s", "-S", "-P", "-c", SPEAK + source, host, str(port)]


def running(argv: list[str], watching: Watching, **options: object) -> Watcher:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SRC))
        return watching(launch(argv), command=argv, **options)


def ended(watch: Watcher) -> int:
    """Watches until the command has ended; its exit code."""
    child = watch.holder.child
    assert child
    watch.until(lambda: child.poll() is not None, "the command has ended")
    assert child.status is not None
    return child.status


def test_a_command_is_watched_from_its_first_instruction(
    server: Puppet, watching: Watching
) -> None:
    argv = speaking(server, "s.sendall(b'first of all'); sys.exit(7)")
    watch = running(argv, watching, content=Content.FULL)
    assert server.do("receive(listener.accept()[0], 100)") == b"first of all"
    assert ended(watch) == 7
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.app
    assert watch.holder.child
    assert opened.flow.app.pid == watch.holder.child.pid
    assert opened.flow.app.path == interpreter()
    whole(closed, sent=12, received=0)
    assert watch.said("sent") == "first of all"


def test_descendants_of_a_command_are_watched_and_its_parent_is_not(
    server: Puppet, client: Puppet, watching: Watching
) -> None:
    host, port = server.do("(listener := listen()).getsockname()")
    command = f"echo from below >/dev/tcp/{host}/{port}"
    argv = ["sh", "-c", f"sh -c 'bash -c \"{command}\"; true'; true"]
    watch = running(argv, watching)
    assert server.do("receive(listener.accept()[0], 100)") == b"from below\n"
    client.do("s = connect(address); s.sendall(b'a stranger'); s.close()", address=(host, port))
    assert server.do("receive(listener.accept()[0], 100)") == b"a stranger"
    assert ended(watch) == 0
    opened, closed = watch.one()
    assert opened.flow
    assert opened.flow.app
    assert watch.holder.child
    assert opened.flow.app.comm == "bash"
    assert opened.flow.app.pid not in (os.getpid(), watch.holder.child.pid)
    whole(closed, sent=11, received=0)


def test_a_command_killed_by_a_signal_gives_128_and_its_number(
    server: Puppet, watching: Watching
) -> None:
    argv = speaking(server, "s.sendall(b'now'); import os; os.kill(os.getpid(), 9)")
    watch = running(argv, watching)
    assert server.do("receive(listener.accept()[0], 100)") == b"now"
    assert ended(watch) == 128 + 9
    _, closed = watch.one()
    whole(closed, sent=3, received=0)


@pytest.mark.parametrize(
    ("name", "mode", "code"),
    [("missing", None, 127), ("not-executable", 0o644, 126), ("directory", 0, 126)],
)
def test_a_command_that_cannot_be_executed_says_so_and_leaves_nothing(
    name: str, mode: int | None, code: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    if mode:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    elif mode == 0:
        path.mkdir()
    before, files = held_in_kernel(), len(os.listdir("/proc/self/fd"))
    watch = Watcher(launch([str(path)]), command=[str(path)])
    assert watch.holder.child
    pid = watch.holder.child.pid
    with pytest.raises(LaunchError, match=name) as failure:
        watch.start()
    assert failure.value.exit_code == code
    watch.close()
    assert held_in_kernel() == before
    assert len(os.listdir("/proc/self/fd")) == files
    assert not os.path.exists(f"/proc/{pid}")


def test_a_command_ends_with_the_watch(server: Puppet, watching: Watching) -> None:
    argv = speaking(server, "s.sendall(b'x'); s.recv(1)")
    watch = running(argv, watching)
    assert server.do("receive((s := listener.accept()[0]), 1)") == b"x"
    assert watch.holder.child
    pid = watch.holder.child.pid
    assert os.path.exists(f"/proc/{pid}")
    watch.finish()
    watch.close()
    assert not os.path.exists(f"/proc/{pid}")
    (closed,) = watch.all(FlowClosed)
    whole(closed, sent=1, received=0)


def test_a_command_whose_watch_is_killed_before_it_may_run_never_runs(
    puppet: Callable[..., Puppet], tmp_path: Path
) -> None:
    mark = tmp_path / "it ran"
    monitor = puppet(sys.executable, ("-P", str(PUPPET)), env={"PYTHONPATH": str(SRC)}, home=False)
    monitor.do(
        "from streamtap.command import Child\nchild = Child(['touch', mark])\npid = child.pid",
        mark=str(mark),
    )
    pid = monitor.do("pid")
    monitor.kill()
    eventually(lambda: not os.path.exists(f"/proc/{pid}/exe") or _is_gone(pid), "the child ends")
    assert not mark.exists()


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize("variant", ["dynptr", "scratch"])
def test_the_demo_conversation_is_understood_from_sign_in_to_sign_out(
    variant: str, watching: Watching
) -> None:
    argv = [sys.executable, "-P", "-m", "streamtap.demo"]
    watch = running(argv, watching, variant=variant)
    assert ended(watch) == 0
    watch.until_closed(len(watch.all(FlowOpened)))
    watch.finish()
    alice, bob = "alice@example.com", "bob@example.com"
    assert {one.account for one in watch.all(SignIn)} == {alice, bob}
    assert {one.account for one in watch.all(SignOut)} == {alice, bob}
    assert {one.service for one in watch.all(Connect)} == {
        "dispatch",
        "notification",
        "switchboard",
    }
    seen = {(one.account, one.status) for one in watch.all(Presence)}
    assert {(alice, "busy"), (bob, "away"), (alice, "offline")} <= seen
    assert {(one.account, one.by) for one in watch.all(Invite)} >= {(bob, alice)}
    assert {one.account for one in watch.all(Join)} == {alice, bob}
    assert {one.account for one in watch.all(Leave)} == {alice, bob}
    messages = {(one.kind, one.sender, one.recipients) for one in watch.all(Message)}
    for sender, recipient in ((alice, bob), (bob, alice)):
        assert ("text", sender, (recipient,)) in messages
        assert ("typing", sender, (recipient,)) in messages
    assert all(one.content is None for one in watch.all(Message))
    files = {(one.name, one.action) for one in watch.all(File)}
    assert ("party.exe", "decline") in files
    assert {("Kölner Dom.jpg", "complete"), ("notes.txt", "complete")} <= files
    assert watch.all(Direct)
    talks = [one.conversation for one in watch.all(Message) if one.kind == "text"]
    assert len(set(talks)) == 1
    assert talks[0]
    closings = watch.all(FlowClosed)
    assert len(closings) == len(watch.all(FlowOpened)) == 14
    for closed in closings:
        assert closed.complete is True
        assert closed.reason == "fin"
        whole(closed, sent=closed.sent_total or 0, received=closed.received_total or 0)
    assert watch.watch.drops == 0


def test_a_scope_by_pid_beside_a_command_is_an_alternative(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    argv = speaking(server, "s.sendall(b'command')")
    watch = watching(launch(argv), *by_pid(client), command=argv)
    assert server.do("receive(listener.accept()[0], 100)") == b"command"
    client.do("s = connect(address)", address=server.do("listener.getsockname()"))
    client.do("s.sendall(b'and client'); s.close()")
    assert server.do("receive(listener.accept()[0], 100)") == b"and client"
    sent = [closed.sent + closed.sent_counted for closed in watch.until_closed(2)]
    assert sorted(sent) == [7, 10]
