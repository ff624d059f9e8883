"""Child processes that are always cleaned up, in bounded time."""

import contextlib
import ctypes
import os
import selectors
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

FAREWELL_S = 3.0  # between asking to end and killing
_PR_SET_NAME = 15  # prctl(2)


def take_name(name: str) -> None:
    """This process is called so from now on, where the system knows how: the cast of the demo
    would otherwise be `python` in every role."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


class ProcessFailed(Exception):
    """A child did not do its part."""


class Processes:
    """Named children. Their stdout is read here; stderr is ours; stdin ends with this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Raises OSError."""
        self._children[name] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=self._environment,
        )

    def line(self, name: str, timeout_s: float) -> bytes:
        """The first line that a child prints. Raises ProcessFailed if none comes in time."""
        text = b""
        for _, data in self._outputs((name,), timeout_s):
            text += data
            if not data or text.endswith(b"\n"):
                break
        if not text.endswith(b"\n"):
            raise ProcessFailed(f"{name} did not start")
        return text

    def finish(self, names: Collection[str], timeout_s: float) -> list[bytes]:
        """What these children print until they end. Raises ProcessFailed as soon as any child,
        of all there are, ends badly or early, or when the time is over."""
        outputs = dict.fromkeys(names, b"")
        running = set(outputs)
        for name, data in self._outputs(self._children, timeout_s):
            if data:
                outputs[name] = outputs.get(name, b"") + data
                continue
            code = self._exit_code(name)
            if code != 0 or name not in running:
                raise ProcessFailed(f"{name} ended with {code}")
            running.remove(name)
            if not running:
                return [outputs[name] for name in names]
        raise ProcessFailed(f"not finished after {timeout_s:g} s")

    def _outputs(self, names: Iterable[str], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """What the children print, as it comes, and b"" for the end of each; ends in time."""
        deadline_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            for name in names:
                stdout = self._children[name].stdout
                assert stdout is not None
                selector.register(stdout, selectors.EVENT_READ, name)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline_s - time.monotonic()))
                if not ready:
                    return
                for key, _ in ready:
                    if not (data := os.read(key.fd, 4096)):
                        selector.unregister(key.fileobj)
                    yield key.data, data

    def _exit_code(self, name: str) -> int:
        try:
            return self._children[name].wait(FAREWELL_S)
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(f"{name} does not end") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        children = self._children.values()
        for child in children:
            child.terminate()
        deadline_s = time.monotonic() + FAREWELL_S
        for child in children:
            try:
                child.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
