"""The holder: the process of a monitor that has the rights, and reads no traffic.

`fork` makes it before anything of the kernel is touched. It loads the callouts, launches the
command, and answers over a link what the process that reads the rings asks, which gives up its own
rights meanwhile. It ends with that process: it waits for nothing else, and what it holds is pinned
nowhere.
"""

import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from streamtap.capture.callouts import CONTROL_BYTES
from streamtap.capture.kernel import Kernel
from streamtap.errors import StreamtapError
from streamtap.flows.scope import Scope
from streamtap.holding import Hooks, Local
from streamtap.service import link, messages
from streamtap.service.link import KernelEnd, LinkError, RemoteKernel
from streamtap.service.messages import Message

FAREWELL_S = 10.0  # for it to end the command, and then itself
PUSH_MS = 50  # between two tries to tell the reader what it has not taken


def told_error(failed: messages.Failed) -> StreamtapError:
    """What went wrong in the holder, as it told it."""
    error = StreamtapError(failed.message, failed.hint)
    error.exit_code = failed.exit_code
    return error


# --- the process ---------------------------------------------------------------------------------


class HolderEnd(KernelEnd):
    """Its end of the link: what the reader may ask beside what is asked of any kernel."""

    understood: ClassVar[Callable[[bytes], Any]] = messages.decode_from_reader

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end, -1)
        self._is_room = True
        self._is_hooked = False

    def fail(self, error: Exception) -> None:
        """Raises what is no news for a person."""
        match error:
            case StreamtapError():
                told = messages.Failed(str(error), error.hint, error.exit_code)
            case OSError():
                where = f"{error.filename}: " if error.filename else ""
                told = messages.Failed(f"{where}{error.strerror or error}", "", 1)
            case ValueError():
                told = messages.Failed(str(error), "", 2)
            case _:
                raise error
        self._put(told)

    def begin(self, holder: Local) -> None:
        """The callouts are loaded."""
        callouts = holder.callouts
        self._put(messages.Loaded(), [os.dup(fd) for fd in callouts.ring_fds])
        self._put(messages.Setup(callouts.ring_bytes, CONTROL_BYTES))

    def tell_status(self, status: int) -> None:
        self._put(messages.CommandEnded(status))

    def _do(self, kernel: Kernel, message: Message) -> None:
        assert isinstance(kernel, Local)
        match message:
            case messages.Hook():
                if self._is_hooked:
                    raise LinkError("the reader begins twice")
                self._is_hooked = True
                try:
                    hooks = kernel.attach(lambda: self._make_room(kernel))
                except LinkError:
                    raise
                except Exception as error:
                    self.fail(error)
                else:
                    self._put(messages.Hooked(message.call, hooks.attached, hooks.missing))
            case messages.Unhook():
                kernel.detach()
                self._put(messages.Unhooked(message.call))
            case messages.RoomMade():
                self._is_room = True
            case _:
                super()._do(kernel, message)

    def _make_room(self, kernel: Kernel) -> None:
        """Waits until the reader has read the control ring, answering what it asks meanwhile."""
        self._is_room = False
        self._put(messages.MakeRoom())
        while not self._is_room:
            select.select([self.fd], [], [])
            self.serve(kernel)


def _hold(end: HolderEnd, make: Callable[[], Local]) -> None:
    """Until the reader is gone."""
    try:
        holder = make()
    except Exception as error:
        end.fail(error)
        return
    try:
        _leave_terminal()
        end.begin(holder)
        poll = select.poll()
        poll.register(end.fd, select.POLLIN)
        child_fd = -1
        if holder.child is not None:
            child_fd = os.pidfd_open(holder.child.pid)
            poll.register(child_fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll(PUSH_MS if end.waiting else None):
                if fd == end.fd:
                    end.serve(holder)
                elif (status := holder.status()) is not None:
                    poll.unregister(child_fd)
                    end.tell_status(status)
    except LinkError:
        return
    finally:
        holder.close()


def _ignore_signals() -> None:
    """They are for the reader, which decides when all of it ends. The command gets them as ever:
    it sets the first two back, and a handler is gone when it is executed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)


def _leave_terminal() -> None:
    """Nobody waits for what this process might write, or misses what it might read."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)


# --- for the reader ------------------------------------------------------------------------------


class Forked:
    """A holder that was just forked, and loads the callouts. To be closed, even where it failed."""

    def __init__(self, make: Callable[[], Local]) -> None:
        """make: called in the new process; what it raises is told in this one, when asked for.

        Threads that NumPy has started are gone from this process then, as its linear algebra ends
        them before a fork.
        """
        self.end, theirs = link.make()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it was closed when we were started
                stream.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                _ignore_signals()
                self.end.close()
                _hold(HolderEnd(theirs), make)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        self._pidfd = os.pidfd_open(self.pid)

    def close(self) -> None:
        """Waits until it has ended the command, and is gone."""
        if self._pidfd < 0:
            return
        self.end.close()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(FAREWELL_S * 1000)
        os.close(self._pidfd)
        self._pidfd = -1
        with suppress(OSError):  # a confined process may not: it leaves that to who started it
            os.waitpid(self.pid, os.WNOHANG)


class Remote(RemoteKernel):
    """`holding.Holder` by another process.

    Its answers have no deadline: where it is gone the link tells so at once, and a machine that was
    asleep is no reason to end. Raises StreamtapError beside LinkError.
    """

    patience_s: ClassVar[float | None] = None
    understood: ClassVar[Callable[[bytes], Any]] = messages.decode_from_holder

    def __init__(self, forked: Forked, scopes: Sequence[Scope]) -> None:
        """Waits until the callouts are loaded; raises StreamtapError where they cannot be."""
        self.scopes = tuple(scopes)
        self._forked = forked
        self._status: int | None = None
        self._make_room: Callable[[], None] | None = None
        super().__init__(forked.end, -1, -1)

    def attach(self, make_room: Callable[[], None]) -> Hooks:
        self._make_room = make_room
        hooked, _ = self._ask(messages.Hook(self._next()), messages.Hooked)
        return Hooks(hooked.attached, hooked.missing)

    def status(self) -> int | None:
        self.look()
        return self._status

    def detach(self) -> None:
        self._ask(messages.Unhook(self._next()), messages.Unhooked)

    def close(self) -> None:
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds = -1, -1
        self._forked.close()

    def _keep(self, message: Message, descriptors: list[int]) -> None:
        match message:
            case messages.Loaded():
                data_fd, control_fd = descriptors
                self._fds = data_fd, control_fd
            case messages.MakeRoom() if self._make_room is not None:
                self._make_room()
                self.tell(messages.RoomMade())
            case messages.CommandEnded():
                self._status = message.status
            case messages.Failed():
                raise told_error(message)
            case _:
                super()._keep(message, descriptors)
