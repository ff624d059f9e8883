"""The callouts with scopes installed in them: who holds this decides what is watched.

It has every right that watching needs, and answers what the live source asks: it judges the
processes that the kernel could not decide on, and tells the callouts.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from numpy.typing import NDArray

from streamtap.capture.callouts import Callouts
from streamtap.capture.identity import process_text
from streamtap.capture.kernel import Candidate
from streamtap.capture.ring import Ring
from streamtap.flows.scope import (
    ENDS_OPTIONS,
    Scope,
    matches_cmdline,
    matches_path,
    matches_script,
    runs_scripts,
)
from streamtap.model import Policy

PATTERN_S = 0.1  # for one command line; thousands of times what a sound pattern takes


class Driver:
    """undecided: command lines on which the pattern took too long."""

    def __init__(self, callouts: Callouts) -> None:
        self.callouts = callouts
        self.undecided = 0
        self._scopes: dict[int, Scope] = {}

    # --- scopes ----------------------------------------------------------------------------------

    def install(self, bit: int, scope: Scope, *, pid: int | None = None) -> None:
        """The scope becomes filter `bit`, which is not in force before it is enabled.

        pid: of a scope by launch, the process that was launched.
        """
        tables = self.callouts.filters
        self._scopes[bit] = scope
        match scope.kind:
            case "exe" if scope.glob:
                tables.ask(bit)
            case "exe" if scope.script:
                tables.add_script(bit, os.path.basename(scope.path))
                # Given to its interpreter, which may be a shim for another program.
                tables.add_name(bit, os.path.basename(scope.interpreter))
                tables.add_script(bit, os.path.basename(scope.interpreter))
            case "exe":
                with contextlib.suppress(FileNotFoundError):  # it may come back
                    tables.add_program(bit, scope.value)
                # The file may be replaced, or its link moved, while we watch.
                tables.add_name(bit, os.path.basename(scope.value))
                tables.add_script(bit, os.path.basename(scope.path))
            case "comm":
                tables.add_comm(bit, scope.value)
            case "cmdline":
                tables.ask(bit)
            case "uid":
                tables.add_uid(bit, int(scope.value))
            case "cgroup" | "unit":
                with contextlib.suppress(FileNotFoundError):
                    tables.add_cgroup(bit, scope.cgroup)
            case "pid":
                tables.add_pid(bit, int(scope.value), follow_forks=scope.follow_forks)
            case "launch":
                assert pid is not None
                tables.add_pid(bit, pid, follow_forks=True)

    def remove(self, bit: int) -> None:
        """Filter `bit` exists no more; its sockets are looked at no more."""
        self._scopes.pop(bit, None)
        self.callouts.forget(1 << bit)

    # --- what the live source asks ---------------------------------------------------------------

    def rings(self) -> tuple[Ring, Ring]:
        return self.callouts.rings()

    def decide(self, candidate: Candidate) -> int:
        verdict = self._judge(candidate)
        self.callouts.decide(candidate.process_id, verdict)
        return verdict

    def set_flow_policy(self, flow_id: int, policy: Policy) -> None:
        self.callouts.set_flow_policy(flow_id, policy)

    def counters(self) -> dict[str, int]:
        """Those of the callouts, and how often nothing could be decided."""
        return self.callouts.counters() | {"undecided": self.undecided}

    def list_flows(self) -> NDArray[Any]:
        return self.callouts.list_flows()

    def cgroup_path(self, cgroup_id: int) -> str:
        return self.callouts.cgroups.path_of(cgroup_id)

    def program_of(self, pid: int) -> str:
        try:
            return os.readlink(f"/proc/{pid}/exe")
        except OSError:
            return ""

    # --- verdicts --------------------------------------------------------------------------------

    def _judge(self, candidate: Candidate) -> int:
        """The filters that a process is in, where the kernel could not tell."""
        verdict = 0
        arguments, directory = candidate.arguments, ""
        if candidate.existing:
            arguments, directory = process_text(candidate.pid)
        for bit, scope in self._scopes.items():
            if candidate.filters >> bit & 1 and self._matches(
                scope, candidate, arguments, directory
            ):
                verdict |= 1 << bit
                if scope.kind == "exe" and not scope.script and not scope.glob:
                    # The file was replaced: from now on the kernel knows the new one too.
                    with contextlib.suppress(OSError):
                        self.callouts.filters.add_program(bit, candidate.path)
        return verdict

    def _matches(
        self, scope: Scope, candidate: Candidate, arguments: bytes, directory: str
    ) -> bool:
        if scope.kind == "cmdline":
            try:
                with time_limit(PATTERN_S):
                    return matches_cmdline(scope, arguments)
            except TimeoutError:
                self.undecided += 1
                return False
        if matches_path(scope, candidate.path):
            return True
        if not (scope.script or scope.glob):
            return bool(scope.path) and os.path.realpath(scope.path) == candidate.path
        executed = candidate.filename
        if executed and matches_script(scope, self._absolute(executed, candidate.pid, directory)):
            return True
        # Or it is an interpreter that was given the script; not any program that was given a file.
        words = [os.fsdecode(word) for word in arguments.split(b"\0")[:8]]
        if scope.glob and not runs_scripts(candidate.path, words[0]):
            return False
        for word in words[1:]:
            if ENDS_OPTIONS.fullmatch(word):
                return False
            if not word or word.startswith("-"):
                continue
            path = self._absolute(word, candidate.pid, directory)
            if matches_script(scope, path) and (not scope.glob or _is_file(candidate.pid, path)):
                return True
            if _is_file(candidate.pid, path):
                return False  # this is what it runs, the rest are arguments
        return False

    def _absolute(self, path: str, pid: int, directory: str) -> str:
        if os.path.isabs(path):
            return os.path.normpath(path)
        return os.path.normpath(os.path.join(directory or process_text(pid).directory, path))


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer. A pattern can take for ever on what anybody may
    call a process. Without effect outside the main thread, which alone is told of signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_file(pid: int, path: str) -> bool:
    """Is it a file to the process, or, once that has ended, to us?"""
    if not os.path.isabs(path):
        return False
    return os.path.isfile(f"/proc/{pid}/root{path}") or os.path.isfile(path)
