"""What `scripts/soak` runs; its head tells what it is for."""

import argparse
import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.conversations import Conversations  # noqa: E402
from helpers.live import copy_interpreter, environment, eventually  # noqa: E402
from helpers.places import place  # noqa: E402
from helpers.services import Service, is_alive  # noqa: E402
from streamtap.events import FlowClosed, StreamLimit  # noqa: E402
from streamtap.service.client import Client  # noqa: E402
from streamtap.service.stream import Records  # noqa: E402

SAMPLE_S = 10.0
TURN_S = 0.1
SESSIONS = 8  # that come and go, at once
LASTING = 10  # connections
CHANGE_S = 1.0  # between two changes of sessions or filters
DEMO_S = 20.0  # from the beginning of one chat to the next
LIMIT_BYTES = 8 << 20  # of the recordings
GROWTH = 3 << 20  # bytes by which a process may have grown in the second half
FEW = 12  # samples of a process: from fewer no line is drawn
ROLES = ("keeper", "parser", "recorder")


class Sample(NamedTuple):
    at_s: float
    role: str
    pid: int
    resident: int
    descriptors: int


class Traffic:
    """Conversations without end, and one chat after the other."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.talker = copy_interpreter(folder / "talker")
        self.chatter = copy_interpreter(folder / "chatter")
        self._seed = seed
        self.chats = self.failed = 0
        self._conversations: Conversations | None = None
        self._chat: subprocess.Popen[bytes] | None = None
        self._due = 0.0

    def begin(self) -> None:
        self._conversations = Conversations(
            self.talker, seed=self._seed, lasting=LASTING, pause_s=0.03
        )

    def turn(self) -> None:
        assert self._conversations is not None
        assert self._conversations.talking, "a connection was disturbed"
        if self._chat is not None and self._chat.poll() is not None:
            self.chats += 1
            self.failed += self._chat.returncode != 0
            self._chat = None
        if self._chat is None and time.monotonic() >= self._due:
            self._due = time.monotonic() + DEMO_S
            spec = importlib.util.find_spec("streamtap")
            assert spec is not None
            assert spec.origin is not None
            packages = [str(Path(spec.origin).parent.parent), *filter(None, sys.path)]
            self._chat = subprocess.Popen(
                [str(self.chatter), "-m", "streamtap.demo", "--pace", "0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment() | {"PYTHONPATH": os.pathsep.join(packages)},
            )

    def finish(self) -> dict[str, Any]:
        assert self._conversations is not None
        return self._conversations.finish()

    def close(self) -> None:
        if self._chat is not None:
            self._chat.terminate()
            self._chat.wait(20)
        if self._conversations is not None:
            self._conversations.close()


class Witness:
    """A live session from beginning to end: what it is told is checked, and what it misses is to
    be stated."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.count = self.closed = self.missing = self.wrong = self.stated = 0
        self.totals: dict[int, tuple[int, int]] = {}  # by local port, of the last that ended

    def read(self, timeout_s: float = 0.0) -> bool:
        came = self._records.wait(timeout_s)
        for record in came:
            self.count += 1
            if isinstance(record.body, StreamLimit) and record.body.limit == "session":
                self.stated += record.body.count
            if isinstance(record.body, FlowClosed):
                self._certify(record.flow.local if record.flow else "", record.body)
        return bool(came)

    def _certify(self, local: str, closed: FlowClosed) -> None:
        self.closed += 1
        known = closed.sent + closed.sent_counted + closed.received + closed.received_counted
        if closed.sent_total is None or closed.received_total is None or closed.missing is None:
            self.wrong += 1
            return
        self.missing += closed.missing
        self.wrong += known + closed.missing != closed.sent_total + closed.received_total
        port = int(local.rpartition(":")[2] or 0)
        self.totals[port] = closed.sent_total, closed.received_total

    @property
    def missed(self) -> int:
        return self._records.missed


class Coming:
    """Sessions and filters that come and go."""

    def __init__(self, client: Client, service: Service, folder: Path, seed: int) -> None:
        self._client = client
        self._service = service
        self._folder = folder
        self._random = random.Random(seed)
        self._recorded: list[str] = []
        self._live: list[Records] = []
        self._number = 0
        self._due = 0.0
        self.changes = 0

    def turn(self, talker: Path) -> None:
        for records in self._live:
            records.wait(0)
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + CHANGE_S
        self.changes += 1
        match self._random.randrange(4):
            case 0:
                self._record()
            case 1:
                self._follow()
            case 2:
                self._switch(talker)
            case 3:
                self._end()

    def _record(self) -> None:
        if len(self._recorded) >= SESSIONS // 2:
            return
        self._number += 1
        name = f"s{self._number}"
        kind = self._random.choice(["jsonl", "sqlite"])
        content = self._random.choice(["none", "meta", "full"])
        self._client.start_trace(
            name,
            *self._random.choice([(), ("notify",), ("all",)]),
            outputs=[self._folder / f"{name}.{kind}"],
            content=content,  # type: ignore[arg-type]
            limit_bytes=LIMIT_BYTES,
            keep=1,
        )
        self._recorded.append(name)

    def _follow(self) -> None:
        if len(self._live) < SESSIONS // 2:
            last = self._random.choice([None, 5.0, 60.0])
            self._live.append(self._service.client().records("all", last=last))

    def _switch(self, talker: Path) -> None:
        names = [one.name for one in self._client.filters()]
        if "again" not in names:
            from streamtap.service.client import new_filter

            self._client.add([new_filter("exe", str(talker), name="again")])
        elif self._random.random() < 0.5:
            self._client.disable("again")
            self._client.enable("again")
        else:
            self._client.delete(["again"])

    def _end(self) -> None:
        if self._recorded and self._random.random() < 0.5:
            name = self._recorded.pop(0)
            self._client.stop_trace(name)
            for path in self._folder.glob(f"{name}.*"):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        elif self._live:
            self._live.pop(0).close()

    def close(self) -> None:
        for records in self._live:
            records.close()


class Samples:
    """Memory and descriptors over time."""

    def __init__(self) -> None:
        self.taken: list[Sample] = []

    def take(self, at_s: float, client: Client) -> None:
        status = client.status()
        pids = [("keeper", status.pid), ("parser", status.parser_pid)]
        pids += [("recorder", pid) for pid in status.recorder_pids]
        shown = []
        for role, pid in pids:
            if pid is None:
                continue
            try:
                sample = Sample(at_s, role, pid, _resident(pid), len(os.listdir(f"/proc/{pid}/fd")))
            except OSError:  # it has just ended
                continue
            self.taken.append(sample)
            shown.append(f"{role} {sample.resident / 1e6:6.1f} MB {sample.descriptors:3d} fd")
        lost = status.counters.get("lost_segments", 0)
        print(
            f"{at_s:6.0f} s  {'  '.join(shown)}  sessions {status.sessions:2d}  "
            f"flows {status.flows:3d}  records {status.records}  lost {lost}",
            flush=True,
        )

    def judge(self, role: str) -> Iterator[tuple[str, bool]]:
        """Of the process that was seen longest in the second half."""
        half = self.taken[-1].at_s / 2
        of_role = [one for one in self.taken if one.role == role and one.at_s >= half]
        counts = {pid: sum(one.pid == pid for one in of_role) for pid in {o.pid for o in of_role}}
        if not counts:
            return
        pid = max(counts, key=lambda one: counts[one])
        seen = [one for one in of_role if one.pid == pid]
        if len(seen) < FEW:
            yield f"{role}: only {len(seen)} samples of one process, no line is drawn", True
            return
        times = np.array([one.at_s for one in seen])
        span_s = times[-1] - times[0]
        sizes = np.array([one.resident for one in seen])
        slope = float(np.polyfit(times, sizes, 1)[0])
        yield (
            f"{role}: memory {np.median(sizes) / 1e6:.1f} MB, by the line "
            f"{slope * span_s / 1e6:+.2f} MB in {span_s:.0f} s",
            slope * span_s < GROWTH,
        )
        numbers = np.array([one.descriptors for one in seen])
        slope = float(np.polyfit(times, numbers, 1)[0])
        yield (
            f"{role}: descriptors {numbers.min()} to {numbers.max()}, by the line "
            f"{slope * span_s:+.1f}",
            slope * span_s < SESSIONS,
        )


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(seconds: float, kill_every_s: float, seed: int, folder: Path) -> list[tuple[str, bool]]:
    """What was found, and whether it is good."""
    with contextlib.ExitStack() as stack:
        paths = stack.enter_context(place(folder))
        service = stack.enter_context(Service(paths))
        client = stack.enter_context(service.client())
        traffic = Traffic(folder, seed)
        client.add([str(traffic.chatter), str(traffic.talker)])
        for kind in ("jsonl", "sqlite"):
            client.start_trace(
                f"standing-{kind}", outputs=[folder / f"all.{kind}"], limit_bytes=LIMIT_BYTES
            )
        stack.callback(traffic.close)
        traffic.begin()
        witness = Witness(stack.enter_context(client.records(name="witness")))
        coming = Coming(client, service, folder, seed)
        stack.callback(coming.close)
        samples = Samples()
        began = time.monotonic()
        sample_at, kill_at, kills = SAMPLE_S, kill_every_s or seconds + 1, 0
        while (at_s := time.monotonic() - began) < seconds:
            traffic.turn()
            coming.turn(traffic.talker)
            witness.read()
            time.sleep(TURN_S)
            if at_s >= sample_at:
                sample_at += SAMPLE_S
                samples.take(at_s, client)
            if at_s >= kill_at:
                kill_at += kill_every_s
                kills += 1
                if (pid := client.status().parser_pid) is not None:
                    os.kill(pid, signal.SIGKILL)
        return [
            *_ended(traffic, witness, client, kills),
            *(found for role in ROLES for found in samples.judge(role)),
            (f"{coming.changes} changes of sessions and filters", True),
            *_stopped(service, kills),
        ]


def _ended(
    traffic: Traffic, witness: Witness, client: Client, kills: int
) -> Iterator[tuple[str, bool]]:
    told: dict[str, Any] = traffic.finish()
    expected = {port: (length, length) for port, length in told["lasting"]}

    def all_told() -> bool:
        witness.read(0.1)
        return all(witness.totals.get(port) == pair for port, pair in expected.items())

    with contextlib.suppress(AssertionError):
        eventually(all_told, "the connections that lasted are told of")
    good = all_told()
    yield f"{LASTING} connections that lasted, each told with the bytes that were said", good
    yield f"{told['short']} short, {told['idle']} idle connections, {told['bytes']} bytes", True
    yield f"{traffic.chats} chats, {traffic.failed} failed", traffic.failed == 0
    yield (
        f"{witness.closed} flows certified, {witness.wrong} with a sum that is wrong, "
        f"{witness.missing} bytes missing and stated",
        witness.wrong == 0 and (witness.missing == 0 or kills > 0),
    )
    dropped = sum(one.dropped for one in client.sessions() if one.name == "witness")
    yield (
        f"{witness.count} records, {witness.missed} missed, {dropped} dropped by the service's "
        f"count",
        witness.missed == dropped or kills > 0,
    )
    restarts = client.status().parser_restarts
    yield f"{kills} parsers killed, {restarts} started again", restarts == kills


def _stopped(service: Service, kills: int) -> Iterator[tuple[str, bool]]:
    children = service.children
    code = service.stop()
    left = [pid for pid in children if is_alive(pid)]
    yield f"stopped with exit code {code}, {len(left)} processes left", code == 0 and not left
    said = service.log.splitlines()
    shown = "".join(f"\n    {line}" for line in said[:20])
    yield f"{len(said)} lines in its log, {kills} for what was killed{shown}", len(said) <= kills


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak")
    parser.add_argument("seconds", type=float, metavar="SECONDS")
    parser.add_argument("--kill-parser", type=float, default=0.0, metavar="EVERY_S")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if os.geteuid():
        parser.error("root is needed")

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)  # unwinds, so that everything is cleaned up

    signal.signal(signal.SIGTERM, leave)
    with tempfile.TemporaryDirectory(prefix="streamtap-soak-") as name:
        found = soak(given.seconds, given.kill_parser, given.seed, Path(name))
    for text, good in found:
        print(f"{'good' if good else 'BAD '}  {text}")
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    sys.exit(main())
