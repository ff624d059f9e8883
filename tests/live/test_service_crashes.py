"""The service's processes killed at any moment, while connections speak and filters and sessions
come and go. STREAMTAP_CRASHES says how often, all in all."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from helpers.conversations import Conversations
from helpers.live import DEADLINE_S, eventually, is_in_kernel
from helpers.orphans import held_by, lock_is_free, masks_of, pins_of, processes_of
from helpers.places import place
from helpers.services import Service, open_bpf
from streamtap.errors import ServiceError
from streamtap.service.client import Client, new_filter
from streamtap.service.paths import Paths
from streamtap.service.state import Filters, Sessions, load

pytestmark = pytest.mark.root

CRASHES = int(os.environ.get("STREAMTAP_CRASHES") or 12)
OF_ONE = 4  # that one service and its connections live through
ASK_S = 0.1  # between two requests of ours: a user may not ask often
WITHIN_S = 0.2  # from the moment when all was well to the crash
VICTIMS = (
    ("keeper",),
    ("parser",),
    ("recorder",),
    ("keeper", "parser"),
)  # fmt: skip
MAIN = "main"  # the filter and the session that stay
MOST = 6  # filters and sessions that come and go, at once
Change = Callable[["State"], None]


class State:
    """What filters and sessions there are to be. filters: name and whether it is enabled."""

    def __init__(self) -> None:
        self.filters: dict[str, bool] = {}
        self.sessions: set[str] = set()

    def copy(self) -> "State":
        other = State()
        other.filters, other.sessions = dict(self.filters), set(self.sessions)
        return other

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)

    def __repr__(self) -> str:
        return str(vars(self))

    @classmethod
    def on_disk(cls, paths: Paths) -> "State":
        """Raises StreamtapError for a file that is not whole."""
        state = cls()
        filters = load(paths.filters, Filters)
        assert filters.enabled
        state.filters = {one.name: one.enabled for one in filters.filters}
        state.sessions = {one.name for one in load(paths.sessions, Sessions).sessions}
        return state


class Changes:
    """Adds and deletes filters, starts and stops sessions, one after the other, in a thread.

    state: what the service said yes to. asked: with what it was asked when it went.
    """

    def __init__(self, service: Service, program: Path, folder: Path, state: State) -> None:
        self._service = service
        self._program = program
        self._folder = folder
        self.state = state
        self.asked: State | None = None
        self.failure: BaseException | None = None
        self.count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, seed: int) -> Self:
        self._random = random.Random(seed)
        self.asked, self.failure = None, None
        self._over.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S * 2)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with self._service.client() as client:
                while not self._over.is_set():
                    after, change = self._choose(client)
                    self.asked = after
                    change()
                    self.state, self.asked = after, None
                    self.count += 1
        except (ServiceError, OSError) as error:
            self.failure = error
        except BaseException as error:
            self.failure = error
            raise

    def _choose(self, client: Client) -> tuple[State, Callable[[], object]]:
        after = self.state.copy()
        filters = [name for name in after.filters if name != MAIN]
        sessions = sorted(after.sessions - {MAIN})
        number = self._random.randrange(1 << 30)
        kind = self._random.randrange(5)
        if kind == 0 and len(filters) < MOST:
            scope = self._random.choice([("exe", str(self._program)), ("comm", "nobody")])
            after.filters[f"f{number}"] = True
            return after, lambda: client.add([new_filter(*scope, name=f"f{number}")])
        if kind == 1 and filters:
            name = self._random.choice(filters)
            after.filters[name] = not after.filters[name]
            switch = client.enable if after.filters[name] else client.disable
            return after, lambda: switch(name)
        if kind == 2 and filters:
            name = self._random.choice(filters)
            del after.filters[name]
            return after, lambda: client.delete([name])
        if kind == 3 and len(sessions) < MOST:
            ending = self._random.choice(["jsonl", "sqlite"])
            after.sessions.add(f"s{number}")
            output = self._folder / f"s{number}.{ending}"
            return after, lambda: client.start_trace(f"s{number}", outputs=[output])
        if kind == 4 and sessions:
            name = self._random.choice(sessions)
            after.sessions.remove(name)
            return after, lambda: client.stop_trace(name)
        return after, client.status


class World:
    """A service, what it watches, and what is to be true of it."""

    def __init__(self, paths: Paths, program: Path, folder: Path) -> None:
        self.paths = paths
        self.folder = folder
        self.service = Service(paths)
        self.kills: dict[str, int] = dict.fromkeys(("keeper", "parser", "recorder"), 0)
        with self.service.client() as client:
            client.add([new_filter("exe", str(program), name=MAIN)])
            outputs = [folder / f"{MAIN}.jsonl", folder / f"{MAIN}.sqlite"]
            client.start_trace(MAIN, outputs=outputs, keep=CRASHES + 1)
        state = State()
        state.filters[MAIN] = True
        state.sessions.add(MAIN)
        self.changes = Changes(self.service, program, folder, state)
        self.pins = pins_of(paths)
        self.until_calm()
        # By whether its callouts were adopted: those that were attached hold their links too.
        self.held = {False: self._held()}

    def until_calm(self) -> None:
        """Each process is there, and every session records."""
        with self.service.client() as client:

            def calm() -> bool:
                status = client.status()
                infos = client.sessions()
                return bool(
                    status.confined
                    and status.parser_pid
                    and status.recorder_pids
                    and all(one.running for one in infos)
                    and {one.name for one in infos} == self.changes.state.sessions
                    and len(self.lives(growing=True)) == 1 + self.kills["keeper"]
                )

            eventually(calm, "all is well again", pause_s=ASK_S)

    def crash(self, victims: tuple[str, ...], moment: random.Random) -> None:
        """Kills them at some moment of the changes, and waits until all is well again."""
        with self.service.client() as client:
            status = client.status()
            (recorder,) = status.recorder_pids
            assert status.parser_pid is not None
            pids = {"keeper": status.pid, "parser": status.parser_pid, "recorder": recorder}
        self.changes.start(moment.randrange(1 << 30))
        time.sleep(moment.uniform(0, WITHIN_S))  # the moment, not a wait for anything
        for victim in moment.sample(victims, len(victims)):
            self.kills[victim] += 1
            with contextlib.suppress(ProcessLookupError):  # it dies with its keeper
                os.kill(pids[victim], signal.SIGKILL)
        if "keeper" in victims:
            self._begin_again()
            return
        with self.service.client() as client:

            def replaced() -> bool:
                now = client.status()
                others = (now.parser_pid, *now.recorder_pids)
                return not {pids[victim] for victim in victims} & set(others) and None not in others

            eventually(replaced, f"{victims} are there again", pause_s=ASK_S)
        self.changes.stop()
        assert self.changes.failure is None
        assert self.changes.asked is None

    def _begin_again(self) -> None:
        self.service.kill()
        self.changes.stop()
        found = State.on_disk(self.paths)
        assert found in (self.changes.state, self.changes.asked)
        eventually(lambda: not processes_of(self.paths), "the others end with it")
        assert lock_is_free(self.paths)
        self.changes.state = found
        self.service.again()

    def check(self) -> None:
        """All that is to be true at any time when nothing happens."""
        self.until_calm()
        state = self.changes.state
        assert State.on_disk(self.paths) == state
        with self.service.client() as client:
            filters = client.filters()
            assert {one.name: one.enabled for one in filters} == state.filters
            assert {one.name for one in client.sessions()} == state.sessions
            status = client.status()
        wanted = sum(1 << one.bit for one in filters if one.enabled)
        enabled, named = masks_of(self.paths)
        assert enabled == wanted
        assert named == sum(1 << one.bit for one in filters)
        assert pins_of(self.paths) == self.pins
        keeper = self.service.process.pid
        processes = {keeper, status.parser_pid, *status.recorder_pids}
        eventually(lambda: set(processes_of(self.paths)) == processes, "no other process")
        held = self.held.setdefault(self.kills["keeper"] > 0, self._held())
        what = f"{self._held()} descriptors are not {held}"
        eventually(lambda: self._held() == held, what, pause_s=ASK_S)

    def _held(self) -> int:
        """Descriptors of the keeper that belong to no session."""
        with self.service.client() as client:
            return held_by(self.service.process.pid) - len(client.sessions())

    def end(self) -> None:
        """Filters, callouts and pins are removed, and nothing is left of any process."""
        bpf = set(open_bpf(self.service.process.pid))
        assert bpf
        with self.service.client() as client:
            client.remove()
            client.wait_until_ended()
        assert self.service.process.wait(DEADLINE_S) == 0
        assert processes_of(self.paths) == []
        assert lock_is_free(self.paths)
        assert not self.paths.control.exists()
        assert not self.paths.bpf.exists()
        for one in bpf:
            kind, number = one.split()
            gone = (kind.removesuffix("_id"), int(number))
            eventually(lambda gone=gone: not is_in_kernel(*gone), f"{gone} is gone")  # type: ignore[misc]

    # --- what was recorded -----------------------------------------------------------------------

    def lives(self, *, growing: bool = False) -> list[list[dict[str, Any]]]:
        """The records of the session that stayed, by the life of a keeper. growing: the last line
        may be half written yet."""
        path = self.folder / f"{MAIN}.jsonl"
        *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
        assert growing or rest == b""
        lives: list[list[dict[str, Any]]] = []
        cut = 0
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                cut += 1
                continue
            if record["number"] == 1:
                lives.append([])
            lives[-1].append(record)
        # A recorder leaves out what its parser cut, but where it looks as if it were whole.
        assert cut <= self.kills["recorder"] + min(1, self.kills["parser"]), f"{cut} lines are cut"
        return lives


@pytest.fixture
def world(program: Path, tmp_path: Path) -> Iterator[World]:
    with place(tmp_path) as paths:
        made = World(paths, program, tmp_path)
        try:
            yield made
        finally:
            print(made.service.log)  # shown where the test failed
            made.changes.stop()
            made.service.__exit__()


@pytest.mark.parametrize("turn", range((CRASHES + OF_ONE - 1) // OF_ONE))
def test_whatever_dies_at_any_moment_nothing_is_lost_that_is_not_stated(
    world: World, program: Path, turn: int
) -> None:
    moment = random.Random(turn)
    victims = moment.sample(VICTIMS, OF_ONE)
    with Conversations(program, seed=turn, pause_s=0.01) as conversations:
        for each in victims:
            world.crash(each, moment)
            world.check()
            assert conversations.talking, f"a connection was disturbed by the end of {each}"
        told = conversations.finish()
        said: dict[int, int] = dict(told["lasting"])
    eventually(
        lambda: said.keys() <= _closed(world.lives(growing=True)[-1]).keys(),
        "they are told of, and recorded",
        pause_s=ASK_S,
    )
    world.end()
    lives = world.lives()
    assert len(lives) == 1 + world.kills["keeper"]
    for life in lives:
        numbers = [record["number"] for record in life]
        assert numbers == sorted(set(numbers)), "no number is given twice"
    closed = [one for life in lives for one in life if one["event"] == "flow.closed"]
    for one in closed:
        assert None not in (one["missing"], one["sent_total"], one["received_total"]), one
        known = one["sent"] + one["received"] + one["missing"]
        known += one.get("sent_counted", 0) + one.get("received_counted", 0)
        assert known == one["sent_total"] + one["received_total"], one
    last = _closed(lives[-1])
    for port, length in said.items():
        (one,) = last[port]
        assert (one["sent_total"], one["received_total"]) == (length, length)
        of_flow = [record for record in lives[-1] if record.get("flow") == one["flow"]]
        gaps = [record for record in of_flow if record["event"] == "stream.gap"]
        assert one["missing"] <= _length(gaps), "what is missing was told as it was missed"
    _check_databases(world.folder)
    assert world.changes.count > len(victims), "there were changes"


def _closed(life: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """By the local port."""
    found: dict[int, list[dict[str, Any]]] = {}
    for record in life:
        if record["event"] == "flow.closed":
            found.setdefault(int(record["local"].rpartition(":")[2]), []).append(record)
    return found


def _length(gaps: list[dict[str, Any]]) -> int:
    """Bytes in any of them: each parser tells what passed before it."""
    total = 0
    for direction in ("sent", "received"):
        end = 0
        for gap in sorted(
            (gap["offset"], gap["length"]) for gap in gaps if gap["direction"] == direction
        ):
            total += max(0, sum(gap) - max(end, gap[0]))
            end = max(end, sum(gap))
    return total


def _check_databases(folder: Path) -> None:
    """Those of all sessions, and what rotation made of them."""
    paths = list(folder.glob("*.sqlite"))
    assert folder / f"{MAIN}.sqlite" in paths
    for path in paths:
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            made = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if path.stem != MAIN and not made:
                continue  # its recorder died when it had begun it
            count, highest = database.execute(
                "SELECT count(*), max(number) FROM records"
            ).fetchone()
            assert count <= (highest or 0)
