"""A process that goes to the background, while who started it waits until it is ready.

The two share a socket. Over it goes one word: that the process is ready, or why it is not. When
the waiting end is closed, because it was killed, interrupted or ran out of patience, the kernel
signals that to the other one, which then stops; so nobody is left that nobody knows of.
"""

import fcntl
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from streamtap.errors import ServiceError, StreamtapError
from streamtap.service.notify import Ready

TIMEOUT_S = 60.0  # loading the callouts takes seconds on a slow machine
GRACE_S = 5.0  # to stop before it is killed

_log = logging.getLogger(__name__)


class Started(NamedTuple):
    """pid: of the process in the background. status: what it said when it was ready."""

    pid: int
    status: str


class _Word(msgspec.Struct, omit_defaults=True):
    pid: int = 0
    ready: str | None = None
    error: str | None = None
    hint: str = ""
    code: int = 1


class _Abandoned(BaseException):
    """Nobody waits any more. Not an Exception: nothing on the way up may take it for its own."""


def detach(
    run: Callable[[Ready], int], *, log: Path | None = None, timeout_s: float = TIMEOUT_S
) -> Started:
    """Runs `run` in the background, in a session of its own, and waits until it calls its `Ready`.

    log: where its standard output and error are appended to; None: nowhere. Its directory is `/`.
    What `run` returns becomes its exit code. Call it before threads are started.

    Raises the StreamtapError that `run` raised before it was ready, as a StreamtapError with the
    same message, hint and exit code; ServiceError where it ended without a word, or took longer
    than `timeout_s` (then it is ended). OSError where `log` cannot be opened.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # it takes the place of a standard stream that was closed
    os.close(spare)
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _flush()  # or both would write what waits there
    try:
        child = os.fork()
        if not child:
            _in_between(run, ours, theirs, output)
    finally:
        theirs.close()
        os.close(output)
    with ours:
        os.waitpid(child, 0)
        return _wait(ours, time.monotonic() + timeout_s, timeout_s, log)


# --- who waits -----------------------------------------------------------------------------------


def _wait(channel: socket.socket, deadline: float, timeout_s: float, log: Path | None) -> Started:
    hint = f"see {log}" if log else "in the foreground it says why: streamtap start --foreground"
    first = _receive(channel, deadline)
    if first is None:
        raise ServiceError("the service could not be started", hint)
    process = _Process(first.pid)
    try:
        word = _receive(channel, deadline)
    except TimeoutError:
        channel.shutdown(socket.SHUT_WR)  # that is the signal to stop
        process.end(GRACE_S)
        raise ServiceError(f"the service was not ready within {timeout_s:g} s", hint) from None
    finally:
        process.close()
    if word is None:
        raise ServiceError("the service ended before it was ready", hint)
    if word.error is not None:
        error = StreamtapError(word.error, word.hint)
        error.exit_code = word.code
        raise error
    return Started(first.pid, word.ready or "")


def _receive(channel: socket.socket, deadline: float) -> _Word | None:
    """None: the other end is closed. Raises TimeoutError."""
    channel.settimeout(max(deadline - time.monotonic(), 0.001))
    message = channel.recv(1 << 16)
    return msgspec.json.decode(message, type=_Word) if message else None


class _Process:
    """Held so that its pid cannot come to mean another one."""

    def __init__(self, pid: int) -> None:
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = -1

    def end(self, grace_s: float) -> None:
        if self._descriptor < 0:
            return
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        if not poll.poll(grace_s * 1000):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


# --- who is waited for ---------------------------------------------------------------------------


def _in_between(
    run: Callable[[Ready], int], ours: socket.socket, channel: socket.socket, output: int
) -> NoReturn:
    """The first child: makes the session and goes, so that the second leads none and can never
    get a terminal."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            code = 0
        else:
            ours.close()
            code = _run(run, channel, output)
    finally:  # whatever happens, never back into the code of who called
        with suppress(OSError, ValueError):
            _flush()
        os._exit(code)


def _run(run: Callable[[Ready], int], channel: socket.socket, output: int) -> int:
    def abandoned(*_: object) -> NoReturn:
        raise _Abandoned

    def say(word: _Word) -> None:
        try:
            channel.send(msgspec.json.encode(word))
        except OSError:
            raise _Abandoned from None

    def ready(status: str) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # who has read it closes its end at once
        say(_Word(ready=status))
        _forget(channel)

    try:
        signal.signal(signal.SIGIO, abandoned)
        fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(channel, fcntl.F_SETFL, fcntl.fcntl(channel, fcntl.F_GETFL) | os.O_ASYNC)
        say(_Word(pid=os.getpid()))
        _settle(output)
        try:
            return run(ready)
        except StreamtapError as error:
            reason, hint, code = str(error), error.hint, error.exit_code
        except Exception as error:
            _log.exception("the service failed")
            reason, hint, code = f"the service failed: {type(error).__name__}: {error}", "", 1
        if channel.fileno() >= 0:
            say(_Word(error=reason, hint=hint, code=code))
        else:
            _log.error("%s", reason)
        return code
    except _Abandoned:
        _log.warning("nobody waits for the service any more: stopped")
        return 1
    finally:
        _forget(channel)


def _flush() -> None:
    print(end="", flush=True)
    print(end="", flush=True, file=sys.stderr)


def _forget(channel: socket.socket) -> None:
    """From here on the process is on its own."""
    if channel.fileno() >= 0:
        channel.close()
        signal.signal(signal.SIGIO, signal.SIG_DFL)


def _settle(output: int) -> None:
    os.chdir("/")  # so that no file system is held
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)
    # What whoever started us left open, such as the other end of a pipe that somebody reads to its
    # end. Python makes none that is inherited.
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if int(name) > 2 and os.get_inheritable(int(name)):
                os.close(int(name))
