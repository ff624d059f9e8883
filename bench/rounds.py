"""How things are measured: in interleaved rounds (A B A B …), judged by medians.

A machine's speed drifts by a factor of two within an hour. So what is compared is measured in the
same round, a ratio is made within each round, and the median of the ratios is the result; the
lowest and highest show the noise.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

PATIENCE_S = 30.0
LOOK_S = 0.5
QUIET = 0.9  # of the CPUs' time without work


class Plan(Struct, frozen=True):
    """How long to measure: rounds, and the seconds of each leg of a round."""

    rounds: int
    seconds: float


def interleave(plan: Plan, legs: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each leg once a round, in turn; what each gave, by round.

    Every other round goes backwards, so that no leg always follows the same one.
    """
    results: dict[str, list[float]] = {name: [] for name in legs}
    for number in range(plan.rounds):
        wait_until_quiet()
        names = list(legs)
        for name in names if number % 2 == 0 else names[::-1]:
            results[name].append(legs[name]())
    return results


def wait_until_quiet() -> bool:
    """Waits, at most `PATIENCE_S`, for a moment in which the machine does nothing else: what others
    do in the middle of a round spoils its ratio. False if there was none."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        before = _idle_share()
        time.sleep(LOOK_S)
        after = _idle_share()
        idle, total = after[0] - before[0], after[1] - before[1]
        if total and idle / total >= QUIET:
            return True
    return False


def _idle_share() -> tuple[int, int]:
    """Clock ticks of all CPUs so far: those without work, and all."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """The ratio within each round."""
    return [a / b for a, b in zip(of, to, strict=True) if b]


def spread(values: Sequence[float], pattern: str = "{:.2f}") -> str:
    """The median, and the lowest and highest value."""
    if not values:
        return "nothing measured"
    shown = [pattern.format(value) for value in (statistics.median(values), *_ends(values))]
    return f"{shown[0]} ({shown[1]} … {shown[2]})"


def line(name: str, result: str, target: str = "") -> None:
    """One line of output."""
    print(f"{name:<44} {result}" + (f"   target {target}" if target else ""), flush=True)


def per_item(action: Callable[[], int], plan: Plan) -> list[float]:
    """Nanoseconds per item of an action that tells how many items it handled; one per round."""
    action()  # the first run fills caches
    values = []
    for _ in range(plan.rounds):
        gc.collect()
        begin = time.perf_counter_ns()
        count = action()
        values.append((time.perf_counter_ns() - begin) / count)
    return values


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
