"""The service under load, as root: what it gives to sessions, what it costs, how late it is.

The load is the chat of the other live measurements, in the same network namespace of our own. The
service is one of its own too: its state, its socket and its pins are in folders of this run.
"""

import contextlib
import os
import selectors
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bench.attached import monitor
from bench.rounds import Plan, interleave, line, ratios, spread
from bench.traffic import Loads, enter_namespace
from streamtap.errors import NotRunning
from streamtap.service.client import Client
from streamtap.service.stream import Records

MANY = 10
STEADY = 5_000  # round trips a second, each of them two records
MODERATE = 500
PATIENCE_S = 30.0
LOOK_S = 0.05


class Service:
    """Runs from the beginning of the block to its end, with a filter on one program."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self._program = program
        self._socket = folder / "run" / "control.sock"
        self._environment = os.environ | {
            "STREAMTAP_STATE_DIR": str(folder / "state"),
            "STREAMTAP_RUN_DIR": str(folder / "run"),
            "STREAMTAP_BPF_DIR": f"/sys/fs/bpf/streamtap-bench-{os.getpid()}",
        }

    def __enter__(self) -> "Service":
        command = [sys.executable, "-m", "streamtap", "start", "--foreground"]
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.client: Client = _until(self._connect)
        _until(lambda: self.client.status().confined)
        self.client.add([self._program])
        return self

    def _connect(self) -> Client | None:
        with contextlib.suppress(NotRunning):
            return Client(self._socket)
        return None

    def __exit__(self, *exception: object) -> None:
        try:
            self.client.remove()
            self.client.wait_until_ended()
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self.client.close()

    def cpu_s(self) -> float:
        """Of all its processes so far."""
        status = self.client.status()
        pids = (status.pid, status.parser_pid, *status.recorder_pids)
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9 for pid in pids)


def _until(condition: Any) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError("the service does not do what it should")
        time.sleep(LOOK_S)
    return found


@contextlib.contextmanager
def _service(loads: Loads) -> Iterator[Service]:
    with (
        tempfile.TemporaryDirectory(prefix="streamtap-bench-") as name,
        Service(Path(name), loads.path("chat_client")) as made,
    ):
        yield made


def service(plan: Plan) -> None:
    """Records to one session and to ten, to files; the cost; the delay."""
    enter_namespace()
    with tempfile.TemporaryDirectory(prefix="streamtap-bench-") as name:
        loads = Loads(Path(name))
        with loads.server("chat_server"):
            _rates(loads, plan)
            _cost(loads, plan)
            _delay(loads, plan)


# --- how much ------------------------------------------------------------------------------------


def _rates(loads: Loads, plan: Plan) -> None:
    kinds = ("1", str(MANY), "jsonl", "sqlite")
    for rate in (STEADY, 0):
        shares: dict[str, list[float]] = {what: [] for what in kinds}

        def leg(what: str, rate: float = rate, shares: dict[str, list[float]] = shares) -> float:
            with _service(loads) as made:
                given, dropped = _rate(made, loads, plan.seconds, rate, what)
            shares[what].append(dropped)
            return given

        taken = interleave(plan, {what: partial(leg, what) for what in kinds})
        for what in kinds:
            to = f"{what} live" if what.isdigit() else what
            at = f"{rate:,} trips/s" if rate else "saturated"
            given = spread(taken[what], "{:,.0f}")
            lost = spread(shares[what], "{:.1%}")
            line(f"service: {at}, to {to}", f"{given} records/s a session; dropped {lost}")


def _rate(
    made: Service, loads: Loads, seconds: float, rate: float, what: str
) -> tuple[float, float]:
    """Records a second that arrived at each session, and the share that was dropped for it."""
    output = made.folder / f"all.{what}"
    with contextlib.ExitStack() as stack:
        if what.isdigit():
            live = [stack.enter_context(made.client.records()) for _ in range(int(what))]
            stack.enter_context(_counted(live))
        else:
            made.client.start_trace("all", outputs=[output], limit_bytes=1 << 40)
        began = time.monotonic()
        loads.chat(seconds, rate)
        given, dropped = _settled(made)
        if not what.isdigit():
            _until(lambda: _written(output) >= given - 1)
    took = time.monotonic() - began
    return given / took, dropped / (given + dropped)


def _settled(made: Service) -> tuple[float, float]:
    """Records given and dropped for each session, once no more come."""
    before: tuple[float, float] | None = None
    while True:
        infos = made.client.sessions()
        found = (
            sum(one.records for one in infos) / len(infos),
            sum(one.dropped for one in infos) / len(infos),
        )
        # Each question makes a record of its own.
        if before is not None and found[0] - before[0] < 10 and found[1] == before[1]:
            return found
        before = found
        time.sleep(LOOK_S)


def _written(path: Path) -> int:
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))
    with contextlib.closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM records").fetchone()[0])


@contextlib.contextmanager
def _counted(live: Sequence[Records]) -> Iterator[None]:
    """A process reads what comes on all of them, until they end."""
    process = get_context("fork").Process(target=_read, args=([one.fileno() for one in live],))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _read(descriptors: Sequence[int]) -> None:
    with selectors.DefaultSelector() as selector:
        for one in descriptors:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                if not os.read(key.fd, 1 << 20):
                    selector.unregister(key.fd)


# --- what it costs -------------------------------------------------------------------------------


def _cost(loads: Loads, plan: Plan) -> None:
    """CPU time of all processes for each record, at the same rate; both write JSON to a file."""

    def in_process() -> float:
        with monitor(loads.path("chat_client"), "--json") as watcher:
            before = watcher.look()
            loads.chat(plan.seconds, STEADY)
            after = watcher.look()
        used = after["cpu_s"] - before["cpu_s"]
        return float(1e6 * used / (after["records"] - before["records"]))

    def by_service() -> float:
        with _service(loads) as made:
            made.client.start_trace("all", outputs=[made.folder / "all.jsonl"])
            _until(lambda: made.client.status().recorder_pids)
            _until((made.folder / "all.jsonl").exists)
            cpu_s, records = made.cpu_s(), made.client.status().records
            loads.chat(plan.seconds, STEADY)
            _settled(made)
            used, more = made.cpu_s() - cpu_s, made.client.status().records - records
        return 1e6 * used / more

    taken = interleave(plan, {"in process": in_process, "service": by_service})
    for name, values in taken.items():
        line(f"service: {name}, at {STEADY:,} trips/s", spread(values) + " us of CPU a record")
    line("service: cost, of that in process", spread(ratios(taken["service"], taken["in process"])))


# --- how late ------------------------------------------------------------------------------------


def _delay(loads: Loads, plan: Plan) -> None:
    """From the time of the last byte to the moment at which a client has the record."""
    middles, highest = [], []
    for _ in range(plan.rounds):
        with _service(loads) as made, made.client.records("notify") as records:
            load = threading.Thread(target=loads.chat, args=(plan.seconds, MODERATE))
            load.start()
            delays: list[int] = []
            while load.is_alive():
                came = records.wait(LOOK_S)
                now_ns = time.time_ns()
                delays += (now_ns - one.time_ns for one in came)
            load.join()
        p50, p99 = np.percentile(np.array(delays), [50, 99]) / 1e6
        middles.append(float(p50))
        highest.append(float(p99))
    line(
        f"service: delay at {MODERATE:,} trips/s, p99",
        f"{spread(highest, '{:.1f}')} ms; p50 {spread(middles, '{:.1f}')} ms",
    )
