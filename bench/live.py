"""Live measurements, as root: a load beside a monitor, against the same load with nothing attached.

Each leg starts its own monitor, so attaching and detaching are exercised as well, and runs its
load for the plan's seconds. Everything happens in a network namespace of our own.
"""

import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import peers
from bench.attached import Monitor, monitor
from bench.rounds import Plan, interleave, line, ratios, spread, wait_until_quiet
from bench.traffic import MESSAGE, Loads, Words, enter_namespace

COMMAND = (str(Path(sys.executable).parent / "streamtap"),)
STRANGER = "/bin/true"  # the scope of a monitor that has nothing to do with the load
STEADY = 50_000  # round trips a second
LOW = 100
RINGS = (16, 64)  # MiB; the first is the default
SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the bare rate, tried for the highest without loss
Report = dict[str, Any]


@contextmanager
def _loads() -> Iterator[Loads]:
    enter_namespace()
    with tempfile.TemporaryDirectory(prefix="streamtap-bench-") as name:
        yield Loads(Path(name))


def _bulk_rate(loads: Loads, seconds: float, rate: float = 0) -> float:
    """Gigabits a second."""
    result = loads.bulk(seconds, rate)
    return float(result["bytes"] * 8e-9 / result["seconds"])


def _chat_rate(loads: Loads, seconds: float) -> float:
    """Round trips a second."""
    result = loads.chat(seconds)
    return float(result["trips"] / result["seconds"])


def _beside(action: Callable[[], float], *words: str) -> Callable[[], float]:
    """The action while a monitor is attached; losses are told at once."""

    def leg() -> float:
        with monitor(*words) as watcher:
            result = action()
            report = watcher.look()
        if report["drops"]:
            line("", f"lost {report['drops']} segments of {report['segments']}")
        return result

    return leg


def _compare(
    what: str, unit: str, results: dict[str, list[float]], targets: dict[str, str]
) -> None:
    bare = results.pop("bare")
    line(f"{what}: bare", spread(bare, "{:,.1f}") + f" {unit}")
    for name, values in results.items():
        line(f"{what}: {name}, ratio", spread(ratios(values, bare)), targets.get(name, ""))


def outside(plan: Plan) -> None:
    """An application that is not in scope."""
    with _loads() as loads, loads.server("bulk_sink"), loads.server("chat_server"):
        for what, unit, action in (
            ("outside, bulk", "Gbit/s", lambda: _bulk_rate(loads, plan.seconds)),
            ("outside, chat", "trips/s", lambda: _chat_rate(loads, plan.seconds)),
        ):
            legs = {"bare": action, "attached": _beside(action, STRANGER)}
            _compare(what, unit, interleave(plan, legs), {"attached": ">= 0.97"})


def bulk(plan: Plan) -> None:
    """A monitored bulk flow, as fast as it goes."""
    with _loads() as loads, loads.server("bulk_sink"):
        scope = loads.path("bulk_send")

        def action() -> float:
            return _bulk_rate(loads, plan.seconds)

        legs = {
            "bare": action,
            "default": _beside(action, scope),
            "content full": _beside(action, scope, "--content", "full"),
        }
        _compare("bulk", "Gbit/s", interleave(plan, legs), {"default": ">= 0.95"})


def full(plan: Plan) -> None:
    """Every byte of a bulk flow to user space: the highest paced rate at which none is lost."""
    with _loads() as loads, loads.server("bulk_sink"):
        best: dict[int, list[float]] = {ring: [] for ring in RINGS}
        for number in range(plan.rounds):
            wait_until_quiet()
            bare = _bulk_rate(loads, plan.seconds)
            for ring, highest in best.items():
                highest.append(_highest(loads, plan.seconds, bare, ring, f"round {number + 1}"))
        for ring, highest in best.items():
            line(f"full: {ring} MiB ring, highest ratio without loss", spread(highest), ">= 0.6")


def _highest(loads: Loads, seconds: float, bare: float, ring: int, where: str) -> float:
    """Ever faster, until something is lost; then once as fast as it goes, to see that every byte is
    accounted for. The highest rate before the first loss, as a share of `bare` (Gbit/s)."""
    highest, any_lost = 0.0, False
    for share in (*SHARES, 0.0):
        if any_lost and share:
            continue
        sent, report = _full_leg(loads, seconds, share * bare / 8e-9, ring)
        rate = sent["bytes"] * 8e-9 / sent["seconds"] / bare
        accounted = report["captured_bytes"] + report["lost_bytes"] + report["counted_bytes"]
        certified = report["delivered"] + report["missing"]
        any_lost |= report["lost_bytes"] > 0
        if share and not any_lost:
            highest = max(highest, rate)
        line(
            f"full: {where}, {ring} MiB, asked {share or 'all'}",
            f"{rate:.2f} of {bare:.1f} Gbit/s, lost "
            f"{report['lost_bytes'] / report['seen_bytes']:.2%}; unaccounted "
            f"{report['seen_bytes'] - accounted} by the kernel, "
            f"{sent['bytes'] - certified} by certificate",
        )
    return highest


def _full_leg(loads: Loads, seconds: float, rate: float, ring: int) -> tuple[Report, Report]:
    scope = loads.path("bulk_send")
    with monitor(scope, "--content", "full", "--ring", str(ring)) as watcher:
        sent = loads.bulk(seconds, rate)
        return sent, watcher.end()


def chat(plan: Plan) -> None:
    """A monitored chat that saturates both cores."""
    with _loads() as loads, loads.server("chat_server"):
        scope = loads.path("chat_client")

        def action() -> float:
            return _chat_rate(loads, plan.seconds)

        legs = {
            "bare": action,
            "default": _beside(action, scope),
            "content full": _beside(action, scope, "--content", "full"),
            "default to JSON": _beside(action, scope, "--json"),
        }
        _compare("chat", "trips/s", interleave(plan, legs), {"default": ">= 0.8"})
        for words in ((), ("--content", "full"), ("--json",)):
            lost, missing = 0, 0
            for _ in range(plan.rounds):
                with monitor(scope, *words) as watcher:
                    told = loads.chat(plan.seconds, STEADY)
                    report = watcher.end()
                lost += report["drops"]
                missing += report["missing"]
                rate = told["trips"] / told["seconds"]
            name = " ".join(words) or "default"
            result = f"lost {lost} segments; missing by certificate {missing} bytes"
            line(f"chat: {name}, at {rate:,.0f} trips/s", result, "0")


def cpu(plan: Plan) -> None:
    """CPU time of the monitor for a message, user and system together."""
    kinds: tuple[tuple[str, tuple[str, ...], bool, str], ...] = (
        ("opaque, default (counted)", (), False, "<= 1.5"),
        ("opaque, content full (copied)", ("--content", "full"), False, "<= 1.5"),
        ("opaque to JSON", ("--json",), False, "<= 10"),
        ("opaque to JSON, content full", ("--json", "--content", "full"), False, ""),
        ("MSNP, nothing wanted", (), True, ""),
        ("MSNP to JSON", ("--json",), True, "<= 10"),
    )
    with _loads() as loads:
        words = Words(loads.folder)
        results: dict[tuple[str, float], list[float]] = {}
        for _ in range(plan.rounds):
            wait_until_quiet()
            for name, options, is_msnp, _target in kinds:
                said = words.client if is_msnp else ("100",)
                heard = words.server if is_msnp else ("100",)
                with (
                    loads.server("chat_server", *heard),
                    monitor(loads.path("chat_client"), *options) as watcher,
                ):
                    for rate in (STEADY / 2, STEADY, 0):
                        used = _used(watcher, partial(loads.chat, plan.seconds, rate, said))
                        results.setdefault((name, rate), []).append(used)
        for name, _, _, target in kinds:
            for rate in (STEADY / 2, STEADY, 0):
                at = f"{rate:,.0f} trips/s" if rate else "saturated"
                shown = spread(results[name, rate])
                line(f"cpu: {name}, {at}", f"{shown} us a message", target)


def _used(watcher: Monitor, action: Callable[[], Report]) -> float:
    """Microseconds of CPU for each message that passed."""
    before = watcher.look()
    action()
    after = watcher.look()
    used = 1e6 * (after["cpu_s"] - before["cpu_s"])
    return float(used / (after["segments"] - before["segments"]))


def delay(plan: Plan) -> None:
    """From the time of the last byte to the moment at which the record is there."""
    with _loads() as loads:
        words = Words(loads.folder)
        scope = loads.path("chat_client")
        for name, said, heard in (
            ("opaque", ("100",), ("100",)),
            ("MSNP", words.client, words.server),
        ):
            with loads.server("chat_server", *heard):
                for rate in (LOW, STEADY / 5, STEADY / 2, STEADY):
                    found = []
                    for _ in range(plan.rounds):
                        wait_until_quiet()
                        with monitor(scope, "--delays") as watcher:
                            loads.chat(plan.seconds, rate, said)
                            found.append(watcher.look())
                    values = [report["p99_ms"] for report in found]
                    middle = statistics.median(report["p50_ms"] for report in found)
                    line(
                        f"delay: {name}, {rate:,.0f} trips/s, p99",
                        f"{spread(values, '{:.1f}')} ms; p50 {middle:.1f} ms",
                        "<= 50 ms",
                    )


def idle(plan: Plan) -> None:
    """The command itself, as a person starts it, with nothing to see."""
    seconds = 10 if plan.seconds >= 2 else 3
    command = [*COMMAND, "monitor", STRANGER, "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()  # it says that it watches
            time.sleep(1)
            before, begin = _cpu_s(process.pid), time.monotonic()
            time.sleep(seconds)
            share = (_cpu_s(process.pid) - before) / (time.monotonic() - begin)
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        finally:
            process.send_signal(signal.SIGINT)
    line("idle: CPU", f"{share:.2%} of a core", "< 1 %")
    line("idle: memory", f"{pages * resource.getpagesize() / 1e6:.0f} MB resident", "< 80 MB")


def _cpu_s(pid: int) -> float:
    """CPU time of a process so far; the scheduler's figure is finer than the clock ticks."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def start(plan: Plan) -> None:
    """How long `streamtap --help` takes."""
    command = [*COMMAND, "--help"]
    values = []
    for _ in range(max(plan.rounds, 5)):
        begin = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        values.append((time.perf_counter() - begin) * 1e3)
    line("start: streamtap --help", spread(values, "{:.0f}") + " ms", "< 150 ms")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line("start: CPU each", f"{(used.ru_utime + used.ru_stime) * 1e3 / len(values):.0f} ms")


class _Side:
    """One load of the comparison with peers: what each monitor makes of its rate, and its share of
    the payload bytes that passed."""

    def __init__(self, loads: Loads, what: str, seconds: float) -> None:
        self._loads = loads
        self._what = what
        self._seconds = seconds
        self._client = loads.path("chat_client" if what == "chat" else "bulk_send")
        self._server = "chat_server" if what == "chat" else "bulk_sink"
        self.shares: dict[str, list[float]] = {}

    def bare(self) -> float:
        return self._run()[0]

    def ours(self, *options: str) -> float:
        with monitor(self._client, *options) as watcher:
            rate, passed = self._run()
            report = watcher.end()
        seen = report["delivered"] + report["counted_bytes"]
        self._note(" ".join(("streamtap", *options)), seen / passed)
        return rate

    def peer(self, peer: peers.Peer) -> float:
        loads = self._loads
        with peer.watch(loads.ports[self._server], loads.pids[self._server]) as seen:
            rate, passed = self._run()
        self._note(peer.name, seen.bytes / passed)
        return rate

    def _run(self) -> tuple[float, int]:
        if self._what == "bulk":
            told = self._loads.bulk(self._seconds)
            return told["bytes"] * 8e-9 / told["seconds"], told["bytes"]
        told = self._loads.chat(self._seconds)
        return told["trips"] / told["seconds"], 2 * MESSAGE * told["trips"]

    def _note(self, name: str, share: float) -> None:
        self.shares.setdefault(name, []).append(share)


def compare(plan: Plan) -> None:
    """Other monitors in the same rounds: their cost, and how much of the traffic they saw."""
    with _loads() as loads, loads.server("bulk_sink"), loads.server("chat_server"):
        for name, why in peers.absent().items():
            line(f"peers: {name}", f"skipped: {why}")
        for what, unit in (("chat", "trips/s"), ("bulk", "Gbit/s")):
            side = _Side(loads, what, plan.seconds)
            legs: dict[str, Callable[[], float]] = {
                "bare": side.bare,
                "streamtap": side.ours,
                "streamtap --content full": partial(side.ours, "--content", "full"),
                "streamtap --json": partial(side.ours, "--json"),
                **{peer.name: partial(side.peer, peer) for peer in peers.present()},
            }
            _compare(f"peers, {what}", unit, interleave(plan, legs), {})
            for name, values in side.shares.items():
                line(f"peers, {what}: {name}, delivered", spread(values))
