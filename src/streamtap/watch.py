"""A live watch on one application: scopes -> callouts -> source -> pipeline.

The synchronous heart of `streamtap monitor` and of the Python API: start, poll for records, stop.
"""

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from streamtap.capture.callouts import RING_BYTES, Callouts
from streamtap.capture.identity import host_key, in_host_pid_namespace
from streamtap.capture.live import IDLE_S, LiveSource
from streamtap.demux import Tap
from streamtap.driver import Driver
from streamtap.errors import KernelUnsupported, StreamtapError
from streamtap.events import Body, Record
from streamtap.flows.scope import Scope
from streamtap.model import Content, Flow
from streamtap.pipeline import Pipeline, Places

MAX_FILTERS = 64
TICK_S = 0.01  # while bursts are open
TICK_AT_LEAST_NS = 1_000_000_000  # else: what waits for a flow that is never opened has to go
LAST_DRAINS = 10_000  # a bound on the last look at the rings: traffic has stopped by then
LINGER_S = 0.25  # for the last segments of connections whose process has ended
_LOSSES = {  # counters of the callouts
    "lost_segments": "segments for which the ring had no room",
    "control_lost": "openings and closings for which the ring had no room",
    "marks_lost": "sockets that could not be marked",
}


class Child:
    """A command that waits, stopped, until it is let go: its first instruction is seen."""

    def __init__(self, argv: Sequence[str], *, stdout: int | None = None) -> None:
        """stdout: descriptor that the command writes to instead of ours."""
        self.argv = tuple(argv)
        self.status: int | None = None
        gate_read, self._gate = os.pipe()
        self._report, report_write = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it was closed when we were started
                stream.flush()
        self.pid = os.fork()
        if self.pid:
            os.close(gate_read)
            os.close(report_write)
            return
        try:
            os.close(self._gate)
            if not os.read(gate_read, 1):
                os._exit(0)  # the monitor is gone
            if stdout is not None:
                os.dup2(stdout, 1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(self.argv[0], self.argv)
        except OSError as error:
            os.write(report_write, str(error.errno).encode())
        finally:
            os._exit(127)

    def release(self) -> None:
        """Let it run; raises LaunchError if it cannot be executed."""
        os.write(self._gate, b"x")
        os.close(self._gate)
        with os.fdopen(self._report, "rb") as report:
            failure = report.read()
        if failure:
            self.poll(block=True)
            raise LaunchError(self.argv[0], int(failure))

    def poll(self, *, block: bool = False) -> int | None:
        """Its exit code once it has ended: its own, or 128 + the signal that ended it."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, 0 if block else os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
        return self.status

    def end(self) -> None:
        """Ask it to end, if it has not; wait for it, but not for long."""
        with contextlib.suppress(OSError):
            os.close(self._gate)
        if self.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(self.pid, number)
            deadline = time.monotonic() + 2
            while self.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if self.status is not None:
                return


class LaunchError(StreamtapError):
    """A command could not be executed; exit codes as a shell gives them."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"cannot run {command}: {os.strerror(code)}")
        self.exit_code = 127 if code == errno.ENOENT else 126


class Watch:
    """Callouts attached for some scopes, and a pipeline behind them.

    Nothing is pinned: when this process ends, however it ends, the kernel removes everything.
    """

    def __init__(
        self,
        scopes: Sequence[Scope],
        *,
        command: Sequence[str] = (),
        command_stdout: int | None = None,
        content: Content = Content.META,
        places: Places | None = None,
        protocol: str | None = None,
        both_ends: bool = False,
        new_only: bool = False,
        wanted: Callable[[Flow], bool] | None = None,
        taps: Sequence[Tap] = (),
        ring_bytes: int = RING_BYTES,
        max_flows: int = 65_536,
        variant: str | None = None,
    ) -> None:
        if len(scopes) > MAX_FILTERS:
            raise ValueError(f"{len(scopes)} scopes; at most {MAX_FILTERS} at once")
        self.scopes = tuple(scopes)
        self.child: Child | None = None
        if not in_host_pid_namespace() and any(s.kind in ("pid", "launch") for s in scopes):
            raise KernelUnsupported(
                "a scope by process number in a pid namespace",
                "the kernel knows processes by their numbers on the host",
                "run streamtap on the host, or in its pid namespace (docker run --pid=host)",
            )
        self._command = tuple(command)
        self._command_stdout = command_stdout
        self._new_only = new_only
        self._closed = False
        self._tick_due_ns = 0
        # Before the kernel is touched, while this process has no threads: fork.
        if self._command:
            self.child = Child(self._command, stdout=command_stdout)
        try:
            self.callouts = Callouts(ring_bytes=ring_bytes, variant=variant)
        except BaseException:
            self._end_child()
            raise
        self.driver = Driver(self.callouts)
        names = {bit: scope.name or str(scope) for bit, scope in enumerate(self.scopes)}
        try:
            self.source = LiveSource(self.driver, names)
        except BaseException:
            self._end_child()
            self.callouts.close()
            raise
        self.pipeline = Pipeline(
            content=content,
            places=places,
            protocol=protocol,
            both_ends=both_ends,
            set_policy=self.driver.set_flow_policy,
            key=host_key(),
            wanted=wanted,
            taps=taps,
            max_flows=max_flows,
        )

    def start(self) -> None:
        """Attach; then let the command run, if there is one."""
        try:
            pid = self.child.pid if self.child else None
            for bit, scope in enumerate(self.scopes):
                self.driver.install(bit, scope, pid=pid)
            self.callouts.enable((1 << len(self.scopes)) - 1)
            make_room = self.source.drain_control
            self.callouts.attach(new_only=self._new_only, make_room=make_room)
            make_room()  # decide on what runs already before its sockets are marked
            self.callouts.adopt(make_room=make_room)
            if self.child:
                self.child.release()
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
        return records

    def note(self, body: Body) -> list[Record]:
        return self.pipeline.note(time.time_ns(), body)

    def finish(self) -> Iterable[list[Record]]:
        """Detach, read what is left, and close the flows that are open still."""
        standing = self.source.standing()
        self.callouts.detach()
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
        counters = self.callouts.counters()
        table = self.pipeline.table
        return {text: counters[name] for name, text in _LOSSES.items()} | {
            "first segments whose connection was never seen": self.source.orphans_lost,
            "flows beyond the most that are followed": table.refused,
            "segments of flows that were not known": table.early_refused,
            "command lines on which a pattern took too long": self.driver.undecided,
        }

    def _end_child(self) -> None:
        if self.child:
            self.child.end()

    def close(self) -> None:
        """May be called again, as after a `start` that failed."""
        if not self._closed:
            self._closed = True
            self._end_child()
            self.source.close()
            self.callouts.close()
