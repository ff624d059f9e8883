"""A command that is launched to be watched, from its first instruction."""

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Sequence

from streamtap.errors import StreamtapError

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)


class Child:
    """A command that waits, stopped, until it is let go: its first instruction is seen."""

    def __init__(
        self, argv: Sequence[str], *, stdout: int | None = None, dies: bool = False
    ) -> None:
        """stdout: descriptor that the command writes to instead of ours. dies: it is killed when
        the thread that makes it ends, unless it changes its user."""
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
            if dies:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
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
        self._close_gate()
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
        self._close_gate()
        if self.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(self.pid, number)
            deadline = time.monotonic() + 2
            while self.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if self.status is not None:
                return

    def _close_gate(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1


class LaunchError(StreamtapError):
    """A command could not be executed; exit codes as a shell gives them."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"cannot run {command}: {os.strerror(code)}")
        self.exit_code = 127 if code == errno.ENOENT else 126
