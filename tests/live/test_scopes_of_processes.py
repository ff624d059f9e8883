"""Scopes that mean processes: by command line, name, user, cgroup, pid; and nobody beside them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.live import (
    PUPPET,
    Puppet,
    Watcher,
    by_pid,
    interpreter,
    join,
    leave,
    say,
    tell,
    told,
    whole,
)
from streamtap.capture.identity import Cgroups
from streamtap.flows.scope import Scope, resolve

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]


@pytest.mark.parametrize("running", [False, True])
def test_a_command_line_is_matched_by_its_words(
    running: bool, puppet: Start, server: Puppet, watching: Watching
) -> None:
    arguments = ("-s", "-S", "-P", str(PUPPET))
    mark = f"--profile=work-{os.getpid()}"

    def both() -> list[Puppet]:
        speakers = [puppet("", (*arguments, mark)), puppet("", (*arguments, "--profile=home"))]
        assert [speaker.do("1") for speaker in speakers] == [1, 1]
        return speakers

    speakers = both() if running else []
    watch = watching(resolve("cmdline", rf"puppet\.py {mark}$"))
    speakers = speakers or both()
    for speaker in speakers:
        tell(speaker, server)
    assert [app.pid for app in told(watch)] == [speakers[0].pid]


def test_more_processes_than_the_control_ring_holds_are_all_judged(
    puppet: Start, server: Puppet, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"--profile=crowd-{os.getpid()}"
    crowd = [puppet("", ("-s", "-S", "-P", str(PUPPET), mark)) for _ in range(12)]
    for one in crowd:
        join(one, server)
    monkeypatch.setattr("streamtap.capture.callouts.CONTROL_BYTES", 32 << 10)  # 6 processes
    watch = watching(resolve("cmdline", mark))
    watch.until_opened(len(crowd))
    assert watch.holder.callouts.counters()["control_lost"] == 0


def test_comm_is_the_name_a_program_gives_itself(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    name = f"st{os.getpid()}"
    watch = watching(resolve("comm", name))
    tell(client, server)
    client.do("open('/proc/self/comm', 'w').write(name)", name=name)
    tell(client, server)
    assert [app.comm for app in told(watch)] == [name]


def test_uid_is_the_user_at_the_time_the_socket_is_made(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    uid = 64_000 + os.getpid() % 1000
    watch = watching(resolve("uid", str(uid)))
    tell(client, server)
    client.do("os.setuid(uid)", uid=uid)
    tell(client, server)
    assert [app.uid for app in told(watch)] == [uid]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup with one below it; its path in the hierarchy and below."""
    groups = Cgroups()
    made = Path(groups.root) / f"streamtap-test-{os.getpid()}"
    (made / "inner").mkdir(parents=True)
    yield made
    for path in (made / "inner", made):
        for pid in (path / "cgroup.procs").read_text().split():
            (path.parent / "cgroup.procs").write_text(pid)
        path.rmdir()
    groups.close()


def test_a_cgroup_holds_what_is_in_the_groups_below_it(
    cgroup: Path, client: Puppet, server: Puppet, watching: Watching
) -> None:
    watch = watching(resolve("cgroup", cgroup.name, cgroup_root=str(cgroup.parent)))
    tell(client, server)
    (cgroup / "inner" / "cgroup.procs").write_text(str(client.pid))
    tell(client, server)
    (cgroup.parent / "cgroup.procs").write_text(str(client.pid))
    tell(client, server)
    assert [app.cgroup for app in told(watch)] == [f"/{cgroup.name}/inner"]


@pytest.mark.parametrize("follow_forks", [False, True])
def test_a_pid_means_its_children_only_if_forks_are_followed(
    follow_forks: bool, client: Puppet, server: Puppet, watching: Watching
) -> None:
    address = server.do("(listener := listen()).getsockname()")
    source = (
        "child = os.fork()\n"
        "if not child:\n"
        "    if again:\n"
        "        os.execv(program, [program, '-s', '-S', '-P', '-c', source])\n"
        "    s = connect(address); s.sendall(b'it is me'); os._exit(0)\n"
        "os.waitpid(child, 0)"
    )
    program = interpreter()
    text = f"import socket; s = socket.create_connection({address!r}); s.send(b'it is me')"
    watch = watching(*by_pid(client, follow_forks=follow_forks))
    for again in (False, True):
        client.do(source, address=address, again=again, program=program, source=text)
        assert server.do("receive(listener.accept()[0], 100)") == b"it is me"
    tell(client, server)
    apps = told(watch, 3 if follow_forks else 1)
    assert [app.pid == client.pid for app in apps] == [*[False] * (len(apps) - 1), True]


def test_children_that_exist_already_are_followed_too(
    client: Puppet, server: Puppet, watching: Watching
) -> None:
    address = server.do("(listener := listen()).getsockname()")
    client.do(
        "ours, theirs = os.pipe()\n"
        "if not os.fork():\n"
        "    os.read(ours, 1); s = connect(address); s.sendall(b'it is me'); os._exit(0)",
        address=address,
    )
    watch = watching(*by_pid(client, follow_forks=True))
    client.do("os.write(theirs, b'x')")
    assert server.do("receive(listener.accept()[0], 100)") == b"it is me"
    assert [app.pid == client.pid for app in told(watch)] == [False]


def test_several_scopes_are_alternatives_and_each_flow_names_its_own(
    program: Path, puppet: Start, server: Puppet, watching: Watching
) -> None:
    speakers = [puppet(), puppet(program)]
    scopes: list[Scope] = [*by_pid(speakers[0]), resolve("exe", str(program))]
    watch = watching(*scopes)
    for speaker in speakers:
        tell(speaker, server)
    assert [app.filter for app in told(watch, 2)] == [scope.name for scope in scopes]


def test_an_unmatched_program_beside_a_matched_one_is_never_reported(
    puppet: Start, server: Puppet, watching: Watching
) -> None:
    mine, other = puppet(), puppet()
    watch = watching(*by_pid(mine))
    join(other, server, name="t")
    join(mine, server)
    for _ in range(50):
        say(other, server, b"private " * 100, name="t")
        say(server, other, b"private " * 100, name="t")
        say(mine, server, b"told")
    leave(other, server, name="t")
    leave(mine, server)
    opened, closed = watch.one()
    whole(closed, sent=200, received=0)
    watch.finish()
    assert {record.flow for record in watch.records} == {opened.flow}
    assert watch.holder.callouts.counters()["seen_bytes"] == 200
