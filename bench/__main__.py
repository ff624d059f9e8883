"""`python -m bench [NAME …] [--rounds N] [--quick]`: one line a measurement.

Those of `live`, which `service` is one of, need root; the others run in memory, `captures` with
files in memory.
"""

import argparse
import os
from collections.abc import Callable
from multiprocessing import get_context

from bench import hub, live, memory, msnp, offline, service
from bench.rounds import Plan, line

MEMORY: dict[str, Callable[[Plan], None]] = {
    "ring": memory.ring,
    "reassembler": memory.reassembler,
    "opaque": memory.opaque,
    "msnp": msnp.msnp,
    "sinks": memory.sinks,
    "hub": hub.hub,
    "captures": offline.offline,
}
LIVE: dict[str, Callable[[Plan], None]] = {
    "outside": live.outside,
    "bulk": live.bulk,
    "full": live.full,
    "chat": live.chat,
    "cpu": live.cpu,
    "delay": live.delay,
    "idle": live.idle,
    "start": live.start,
    "service": service.service,
    "peers": live.compare,
}


def main() -> None:
    names = (*MEMORY, *LIVE)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each leg of a round")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 second: does it work?")
    given = parser.parse_args()
    if unknown := set(given.names) - {*names, "memory", "live"}:
        parser.error(f"no measurement {', '.join(unknown)}: there are {', '.join(names)}")
    plan = Plan(2, 1.0) if given.quick else Plan(given.rounds, given.seconds)
    for name in names:
        group = "memory" if name in MEMORY else "live"
        if given.names and not {name, group} & set(given.names):
            continue
        if name in LIVE and os.geteuid():
            line(name, "skipped: root is needed")
            continue
        # Each in a process of its own: a live one changes its network namespace.
        process = get_context("spawn").Process(target=(MEMORY | LIVE)[name], args=(plan,))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
