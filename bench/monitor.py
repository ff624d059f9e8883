"""The monitor under measure, a process of its own: `python -m bench.monitor SCOPE …`. As the
command does, it forks a holder and gives up its rights; what is told of CPU and memory is its own.

Prints a line of JSON when it is attached, one for each line that it reads, and a last one when
its input ends: what it used (CPU, memory) and what the kernel and the pipeline counted.
"""

import argparse
import json
import os
import resource
import select
import sys
import time
from array import array
from typing import Any

import numpy as np

from streamtap.capture.callouts import RING_BYTES
from streamtap.events import FlowClosed, FlowIdentified, Record
from streamtap.flows.scope import resolve
from streamtap.holding import Local
from streamtap.model import Content
from streamtap.pipeline.speech import OPAQUE
from streamtap.protocols import by_name
from streamtap.service.confine import give_up
from streamtap.service.holder import Forked, Remote
from streamtap.trace import Session, choose, open_sink
from streamtap.watch import Watch

# Openings and closings only: everything is understood, and next to nothing is made of it.
CERTIFICATES = frozenset({("monitor", "flow_established", "info")})
PATIENCE_S = 0.1
PAGE = os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Takes the records, and tells what it all cost.

    delays: nanoseconds from the time of a record to when it came, if asked for.
    """

    def __init__(self, watch: Watch, session: Session | None, with_delays: bool) -> None:
        self._watch = watch
        self._memory = os.open("/proc/self/statm", os.O_RDONLY)  # while files can be opened
        self._session = session
        self._delays = array("q") if with_delays else None
        self._protocols: set[str] = set()
        self._certificates = {"complete": 0, "incomplete": 0, "missing": 0}

    def take(self, records: list[Record]) -> None:
        now_ns = time.time_ns()
        for record in records:
            if self._delays is not None and not isinstance(record.body, FlowClosed):
                self._delays.append(now_ns - record.time_ns)
            if isinstance(record.body, FlowClosed):
                self._certify(record.body)
            elif isinstance(record.body, FlowIdentified):
                self._protocols.add(record.body.protocol)
        if self._session is not None:
            self._session.offer(records)
            self._session.flush()

    def _certify(self, closed: FlowClosed) -> None:
        self._certificates["complete" if closed.complete else "incomplete"] += 1
        self._certificates["missing"] += closed.missing or 0

    def report(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        report: dict[str, Any] = {
            "at_s": time.monotonic(),
            "cpu_s": used.ru_utime + used.ru_stime,
            "user_s": used.ru_utime,
            "rss_mb": int(os.pread(self._memory, 99, 0).split()[1]) * PAGE / 1e6,
            "records": self._watch.pipeline.records,
            "delivered": self._watch.pipeline.bytes,
            "read": self._watch.source.records,
            "drops": self._watch.drops,
            "gaps": self._watch.pipeline.gaps,
            "protocols": sorted(self._protocols),
            **self._certificates,
            **self._watch.holder.counters(),
        }
        if self._delays:
            points = np.percentile(np.array(self._delays), [50, 99, 100]) / 1e6
            report |= dict(zip(("p50_ms", "p99_ms", "max_ms"), points.tolist(), strict=True))
            del self._delays[:]
        print(json.dumps(report), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.monitor")
    parser.add_argument("scope", nargs="+")
    parser.add_argument("--content", default="meta", choices=("none", "meta", "full"))
    parser.add_argument("--json", action="store_true", help="records as JSON to /dev/null")
    parser.add_argument("--delays", action="store_true")
    parser.add_argument("--ring", type=int, default=RING_BYTES >> 20, help="MiB, a power of two")
    given = parser.parse_args()
    places = choose().places if given.json or given.delays else CERTIFICATES
    scopes = [resolve("exe", path) for path in given.scope]
    by_name(OPAQUE)  # finds the parsers, which are files
    forked = Forked(lambda: Local(scopes, ring_bytes=given.ring << 20))
    watch = Watch(Remote(forked, scopes), content=Content[given.content.upper()], places=places)
    session = None
    if given.json:
        null = open(os.devnull, "wb", buffering=0)  # noqa: SIM115 - lives as long as we do
        session = Session(choose(), [open_sink("json", stdout=null)])
    meter = Meter(watch, session, given.delays)
    give_up()
    try:
        watch.start()
        meter.report()
        while True:
            records = watch.poll(PATIENCE_S)
            if records:
                meter.take(records)
            if select.select([sys.stdin], [], [], 0)[0]:
                if not os.read(0, 1):
                    break
                while not watch.source.is_drained:
                    meter.take(watch.poll(0))
                meter.report()
        for records in watch.finish():
            meter.take(records)
        meter.report()
    finally:
        watch.close()


if __name__ == "__main__":
    main()
