"""A live watch on one application: scopes -> callouts -> source -> pipeline.

The synchronous heart of `streamtap monitor` and of the Python API: start, poll for records, stop.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from streamtap.capture.identity import host_key
from streamtap.capture.live import IDLE_S, LiveSource
from streamtap.demux import Tap
from streamtap.events import Body, Record
from streamtap.holding import Holder, Hooks
from streamtap.model import Content, Flow
from streamtap.pipeline import Pipeline, Places

TICK_S = 0.01  # while bursts are open
TICK_AT_LEAST_NS = 1_000_000_000  # else: what waits for a flow that is never opened has to go
LAST_DRAINS = 10_000  # a bound on the last look at the rings: traffic has stopped by then
LINGER_S = 0.25  # for the last segments of connections whose process has ended
_LOSSES = {  # counters of the driver
    "lost_segments": "segments for which the ring had no room",
    "control_lost": "openings and closings for which the ring had no room",
    "marks_lost": "sockets that could not be marked",
    "undecided": "command lines on which a pattern took too long",
}


class Watch:
    """Callouts that somebody holds, and a pipeline behind them.

    holder: closed with this, also where this cannot be made. hooks: none before `start`.
    """

    def __init__(
        self,
        holder: Holder,
        *,
        content: Content = Content.META,
        places: Places | None = None,
        protocol: str | None = None,
        both_ends: bool = False,
        wanted: Callable[[Flow], bool] | None = None,
        taps: Sequence[Tap] = (),
        max_flows: int = 65_536,
    ) -> None:
        self.holder = holder
        self.hooks = Hooks()
        self._closed = False
        self._tick_due_ns = 0
        names = {bit: scope.name or str(scope) for bit, scope in enumerate(holder.scopes)}
        try:
            self.source = LiveSource(holder, names)
        except BaseException:
            holder.close()
            raise
        self.pipeline = Pipeline(
            content=content,
            places=places,
            protocol=protocol,
            both_ends=both_ends,
            set_policy=holder.set_flow_policy,
            key=host_key(),
            wanted=wanted,
            taps=taps,
            max_flows=max_flows,
        )

    def start(self) -> None:
        """Attach; then let the command run, if there is one."""
        try:
            self.hooks = self.holder.attach(self.source.drain_control)
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_s: float = IDLE_S) -> list[Record]:
        """Waits for traffic, at most so long; the records it gave, in order of time."""
        if self.pipeline.pending:
            timeout_s = min(timeout_s, TICK_S)
        items = self.source.poll(timeout_s)
        records = self.pipeline.feed(items) if items else []
        self.source.release()
        given_ns = self.source.given_ns
        if self.pipeline.pending or given_ns >= self._tick_due_ns:
            self._tick_due_ns = given_ns + TICK_AT_LEAST_NS
            records += self.pipeline.tick(given_ns)
        self.holder.flush()
        return records

    def note(self, body: Body) -> list[Record]:
        return self.pipeline.note(time.time_ns(), body)

    def finish(self) -> Iterable[list[Record]]:
        """Detach, read what is left, and close the flows that are open still."""
        standing = self.source.standing()
        self.holder.detach()
        for _ in range(LAST_DRAINS):
            yield self.poll(0)
            if self.source.is_drained:
                break
        yield self.pipeline.feed(self.source.finish(standing))

    @property
    def drops(self) -> int:
        """Segments that were seen and could not be kept, and anything else that was lost."""
        return sum(self.losses.values())

    @property
    def losses(self) -> dict[str, int]:
        """The same by what was lost, in words; what was not lost is there with 0."""
        counters = self.holder.counters()
        table = self.pipeline.table
        return {text: counters[name] for name, text in _LOSSES.items()} | {
            "first segments whose connection was never seen": self.source.orphans_lost,
            "flows beyond the most that are followed": table.refused,
            "segments of flows that were not known": table.early_refused,
        }

    def close(self) -> None:
        """May be called again, as after a `start` that failed."""
        if not self._closed:
            self._closed = True
            self.holder.close()
            self.source.close()
