"""Filters and callouts that outlive every process of ours."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.commands import STREAMTAP
from helpers.live import Puppet, eventually, join, leave, say, whole
from helpers.places import environment_of, place
from streamtap.capture.identity import Cgroups
from streamtap.capture.live import LiveSource
from streamtap.capture.pins import Pins
from streamtap.errors import AlreadyExists, Busy, NotFound, StreamtapError
from streamtap.events import FlowClosed, FlowOpened, Record
from streamtap.flows.scope import Scope
from streamtap.model import Content
from streamtap.pipeline import Pipeline
from streamtap.service.paths import Paths
from streamtap.service.protocol import NewFilter
from streamtap.service.registry import Registry
from streamtap.service.state import Filter, Filters, load, save

pytestmark = pytest.mark.root

ADD = """
from streamtap.service.paths import Paths
from streamtap.service.protocol import NewFilter
from streamtap.service.registry import Registry
import os, sys
registry = Registry(Paths.of_environment())
registry.add([NewFilter(kind="exe", given=sys.argv[1], name=name) for name in sys.argv[2:]])
print("added", flush=True)
os.kill(os.getpid(), 9)
"""
CUT = """
import os, sys
from streamtap.capture.{module} import {owner}
before, left = {owner}.{method}, [int(sys.argv[2])]
def cut(*arguments, **values):
    if not left[0]:
        os.kill(os.getpid(), 9)
    left[0] -= 1
    return before(*arguments, **values)
{owner}.{method} = cut
sys.argv[2:] = ["chat"]
"""
SWITCH = """
from streamtap.service.paths import Paths
from streamtap.service.protocol import NewFilter
from streamtap.service.registry import Registry
import sys
with Registry(Paths.of_environment()) as registry:
    print("ready", flush=True)
    while True:
        registry.add([NewFilter(kind="exe", given=sys.argv[1], name=name) for name in "ab"])
        registry.disable("a")
        registry.delete(["b", "a"])
"""


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    with place(tmp_path) as made:
        yield made


class Reader:
    """What a service would see of the pinned callouts."""

    def __init__(self, registry: Registry) -> None:
        self.driver = registry.driver
        names = {one.bit: one.name for one in registry.all_filters()}
        self.source = LiveSource(self.driver, names)
        self.pipeline = Pipeline(content=Content.META)
        self.records: list[Record] = []

    def poll(self) -> None:
        self.records += self.pipeline.feed(self.source.poll(0.02))

    def until_opened(self) -> None:
        def opened() -> bool:
            self.poll()
            return bool(self.opened)

        eventually(opened, "a flow opened")

    def until_closed(self, flows: int = 1) -> list[FlowClosed]:
        def closed() -> bool:
            self.poll()
            return len(self.all_closed) >= flows

        eventually(closed, f"{flows} flows closed")
        return self.all_closed

    @property
    def all_closed(self) -> list[FlowClosed]:
        return [one.body for one in self.records if isinstance(one.body, FlowClosed)]

    @property
    def opened(self) -> list[FlowOpened]:
        return [one.body for one in self.records if isinstance(one.body, FlowOpened)]

    def close(self) -> None:
        self.source.close()


def exe(program: Path, name: str = "") -> NewFilter:
    return NewFilter(kind="exe", given=str(program), name=name)


def run(paths: Paths, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env=environment_of(paths),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_a_program_says_while_no_process_of_ours_lives_is_there_for_the_next(
    paths: Paths, program: Path, puppet: Callable[..., Puppet]
) -> None:
    assert run(paths, ADD, str(program), "chat").stdout == "added\n"
    speaker, server = puppet(program), puppet()
    join(speaker, server)
    say(speaker, server, b"nobody is there")
    leave(speaker, server)
    with Registry(paths) as registry:
        reader = Reader(registry)
        (closed,) = reader.until_closed()
        whole(closed, sent=15, received=0)
        assert registry.adopted
        (name,) = {one.flow.app.filter for one in reader.records if one.flow and one.flow.app}
        assert name == "chat"
        reader.close()


def test_another_build_takes_over_without_losing_a_byte(
    paths: Paths, program: Path, puppet: Callable[..., Puppet]
) -> None:
    speaker, server = puppet(program), puppet()
    with Registry(paths) as registry:
        registry.add([exe(program)])
    join(speaker, server)
    total = 0
    for turn in range(3):
        length = 1 << 20
        server.begin("receive(s, length)", length=length)
        speaker.do("s.sendall(b'x' * length)", length=length)
        with Registry(paths) as registry:
            registry.driver.callouts.settings.set(build=turn + 1)  # as if another one had attached
        with Registry(paths) as registry:
            assert len(registry.driver.callouts.hooks) >= 8
        server.result()
        total += length
    leave(speaker, server)
    with Registry(paths) as registry:
        reader = Reader(registry)
        (closed,) = reader.until_closed()
        whole(closed, sent=total, received=0)
        reader.close()


def test_a_filter_that_is_added_later_takes_what_is_open_and_leaves_it_when_it_goes(
    paths: Paths, program: Path, puppet: Callable[..., Puppet]
) -> None:
    speaker, server = puppet(program), puppet()
    with Registry(paths) as registry:
        registry.add([NewFilter(kind="comm", given="nobody-is-it")])
        reader = Reader(registry)
        join(speaker, server)
        say(speaker, server, b"before")
        registry.add([exe(program, "later")])
        say(speaker, server, b"with it")
        reader.until_opened()
        assert [one.midstream for one in reader.opened] == [True]
        counted = registry.driver.counters()["seen_bytes"]
        assert counted == len(b"with it")
        registry.delete(["later"])
        say(speaker, server, b"after")
        assert registry.driver.counters()["seen_bytes"] == counted
        # Its bit is another's now, and means nothing for the process that had it.
        registry.add([NewFilter(kind="comm", given="nobody-else")])
        say(speaker, server, b"after")
        assert registry.driver.counters()["seen_bytes"] == counted
        leave(speaker, server)
        reader.close()


def test_disabling_stops_what_runs_and_enabling_takes_it_up_again(
    paths: Paths, program: Path, puppet: Callable[..., Puppet]
) -> None:
    speaker, server = puppet(program), puppet()
    with Registry(paths) as registry:
        registry.add([exe(program, "chat")])
        join(speaker, server)
        for name in (None, "chat"):
            say(speaker, server, b"seen")
            seen = registry.driver.counters()["seen_bytes"]
            registry.disable(name)
            say(speaker, server, b"not seen")
            assert registry.driver.counters()["seen_bytes"] == seen
            registry.enable()
            registry.enable("chat")
            say(speaker, server, b"seen")
            assert registry.driver.counters()["seen_bytes"] == seen + 4
        leave(speaker, server)


def test_removal_disturbs_no_connection_and_leaves_nothing(
    paths: Paths, program: Path, puppet: Callable[..., Puppet]
) -> None:
    speaker, server = puppet(program), puppet()
    with Registry(paths) as registry:
        registry.add([exe(program)])
        join(speaker, server)
        say(speaker, server, b"one")
        registry.remove()
        say(speaker, server, b"two")
        assert not registry.filters()
    leave(speaker, server)
    assert not paths.bpf.exists()
    assert load(paths.filters, Filters).filters == ()


def test_pins_of_another_layout_are_replaced(
    paths: Paths, program: Path, puppet: Callable[..., Puppet]
) -> None:
    with Registry(paths) as registry:
        registry.add([exe(program)])
    os.rename(paths.pins, paths.bpf / "v1")  # as an older version left them
    with Registry(paths) as registry:
        assert len(registry.driver.callouts.hooks) >= 8
        assert not registry.adopted
        speaker, server = puppet(program), puppet()
        reader = Reader(registry)
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        whole(reader.until_closed()[0], sent=5, received=0)
        reader.close()
    assert os.listdir(paths.bpf) == [paths.pins.name]


def test_a_failure_changes_nothing(paths: Paths, program: Path) -> None:
    with Registry(paths) as registry:
        registry.add([exe(program, "one")])
        before = paths.filters.read_bytes(), registry.driver.callouts.enabled
        with pytest.raises(AlreadyExists):
            registry.add([exe(program, "two"), exe(program, "one")])
        with pytest.raises(NotFound):
            registry.add([exe(program, "two"), exe(program.parent / "missing")])
        with pytest.raises(NotFound):
            registry.delete(["one", "none"])
        with pytest.raises(NotFound):
            registry.disable("none")
        assert (paths.filters.read_bytes(), registry.driver.callouts.enabled) == before
        with pytest.raises(Busy):
            Registry(paths)


@pytest.mark.parametrize("temporary", [False, True])
def test_a_filter_that_cannot_be_put_in_force_is_not_there(
    paths: Paths, program: Path, monkeypatch: pytest.MonkeyPatch, temporary: bool
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with Registry(paths) as registry:
        registry.add([exe(program, "one")])
        with monkeypatch.context() as patch:
            patch.setattr(registry.driver.callouts, "adopt", full)
            with pytest.raises(OSError, match="allocate"):
                registry.add([exe(program, "two")], temporary=temporary)
        assert [one.name for one in registry.all_filters()] == ["one"]
        assert registry.driver.callouts.enabled == registry.mask
        assert load(paths.filters, Filters).known == registry.mask
        registry.add([exe(program, "two")], temporary=temporary)


def test_the_first_filters_fail_and_nothing_is_installed(paths: Paths, program: Path) -> None:
    with Registry(paths) as registry:
        with pytest.raises(NotFound):
            registry.add([exe(program), exe(Path("/no/such/program"))])
        assert not paths.bpf.exists()
        registry.add([exe(program)])  # it can go on
        assert paths.pins.is_dir()


def test_switching_where_nothing_is_installed_installs_nothing(paths: Paths) -> None:
    with Registry(paths) as registry:
        registry.disable()
        assert not paths.bpf.exists()
        assert not registry.driver.callouts.enabled


def test_a_disk_that_takes_nothing_changes_nothing(
    paths: Paths, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry(paths) as registry:
        registry.add([exe(program, "one")])

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StreamtapError, match="No space left"):
            registry.add([exe(program, "two")])
        monkeypatch.undo()
        assert [one.name for one in registry.filters()] == ["one"]
        assert registry.driver.callouts.enabled == 1
        assert [one.name for one in load(paths.filters, Filters).filters] == ["one"]
    assert sorted(os.listdir(paths.state)) == ["filters.json", "recordings"]


def test_who_adds_or_enables_a_filter_is_told_where_everything_is_disabled(
    paths: Paths, program: Path
) -> None:
    def said(*words: str) -> str:
        done = subprocess.run(
            [*STREAMTAP, *words],
            env=environment_of(paths),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert said("disable") == ""
    for words in (["addcallouts", str(program), "--name", "a"], ["enable", "a"]):
        assert said(*words) == "streamtap: everything is disabled; streamtap enable\n"
    assert said("disable", "a") == said("enable") == said("enable", "a") == ""


def test_state_that_was_removed_is_written_anew(paths: Paths, program: Path) -> None:
    with Registry(paths) as registry:
        registry.add([exe(program, "one")])
        shutil.rmtree(paths.state)
        registry.add([exe(program, "two")])
        assert [one.name for one in load(paths.filters, Filters).filters] == ["one", "two"]


def test_a_stored_filter_that_cannot_be_meant_is_told(paths: Paths) -> None:
    paths.make()
    scope = Scope("uid", "no number")
    save(paths.filters, Filters(filters=(Filter(name="one", scope=scope, bit=0),)))
    with Registry(paths) as registry, pytest.raises(StreamtapError, match=r"damaged: filter one"):
        registry.add([])
    assert not paths.pins.exists()


def test_killed_at_any_moment_the_state_is_whole_and_the_next_adopts_it(
    paths: Paths, program: Path
) -> None:
    chance = random.Random(4)
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", SWITCH, str(program)],
            env=environment_of(paths),
            stdout=subprocess.PIPE,
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            # The moment is what is tested: anywhere in some turns of the loop.
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(chance.uniform(0, 0.4))
        finally:
            child.kill()
            child.communicate()
        stored = load(paths.filters, Filters)
        with Registry(paths) as registry:
            callouts = registry.driver.callouts
            assert callouts.enabled == stored.mask
            assert callouts.settings.get("known") == stored.known
            assert set(Pins(paths.pins).links) == set(callouts.hooks)
            registry.delete([one.name for one in registry.filters()])


@pytest.mark.parametrize(
    ("where", "times"),
    [(("pins", "Pins", "pin_map"), 0), (("pins", "Pins", "pin_map"), 9)]
    + [(("settings", "Settings", "set"), times) for times in range(3)]
    + [(("pins", "Pins", "pin_link"), 2)],
)
def test_callouts_whose_making_was_cut_short_are_made_by_the_next(
    paths: Paths, program: Path, puppet: Callable[..., Puppet], where: tuple[str, ...], times: int
) -> None:
    module, owner, method = where
    cut = CUT.format(module=module, owner=owner, method=method)
    assert run(paths, cut + ADD, str(program), str(times)).returncode == -signal.SIGKILL
    with Registry(paths) as registry:
        registry.add([exe(program, "chat")])
        reader = Reader(registry)
        speaker, server = puppet(program), puppet()
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        (closed,) = reader.until_closed()
        whole(closed, sent=5, received=0)
        reader.close()


def test_several_terminals_at_once_take_turns(paths: Paths) -> None:
    words = [("addcallouts", "--comm", f"program-{number}") for number in range(5)]
    started = [
        subprocess.Popen(
            [*STREAMTAP, *one],
            env=environment_of(paths),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for one in words
    ]
    ended = [one.communicate(timeout=60)[1] for one in started]
    assert [one.returncode for one in started] == [0] * 5, ended
    assert len({one.bit for one in load(paths.filters, Filters).filters}) == 5


def test_a_cgroup_that_is_made_again_and_again_stays_in_its_filter(
    paths: Paths, puppet: Callable[..., Puppet]
) -> None:
    """As that of a unit is with each start: more often than the callouts' table has room for."""
    groups = Cgroups()
    made = Path(groups.root) / f"streamtap-test-{os.getpid()}"
    made.mkdir()
    try:
        with Registry(paths) as registry:
            registry.add([NewFilter(kind="cgroup", given=made.name, name="unit")])
            for _ in range(300):
                made.rmdir()
                made.mkdir()
                registry.refresh()
            speaker, server = puppet(), puppet()
            (made / "cgroup.procs").write_text(str(speaker.pid))
            reader = Reader(registry)
            join(speaker, server)
            say(speaker, server, b"hello")
            leave(speaker, server)
            (closed,) = reader.until_closed()
            whole(closed, sent=5, received=0)
            reader.close()
    finally:
        for pid in (made / "cgroup.procs").read_text().split():
            (made.parent / "cgroup.procs").write_text(pid)
        made.rmdir()
        groups.close()
