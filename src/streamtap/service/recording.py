"""The recorders as the keeper sees them: one for each user who has sessions recorded."""

import errno
import logging
import os
import pwd
import select
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from streamtap.service.confine import helper_environment
from streamtap.service.recorder import MAX_MESSAGE, Answer, Become, Order, Record
from streamtap.service.state import Recorded

PAUSE_S = 1.0  # before a recorder that ended is started again
END_S = 1.0  # for a process to be gone that has ended
LEAVE_S = 10.0  # for one to write what has come
MOST_WAITING = 4096  # orders that wait for a recorder
_log = logging.getLogger(__name__)
_answers = msgspec.json.Decoder(Answer)


class Recorders:
    """report: called with the name of a session and why it does not record, "" once it does
    again. begun: called with the name of a session once its outputs were tried: those that failed
    are reported. lost: called with the name of a session whose recorder ended; it wants a new
    stream.
    dropped: records of a session that its recorder could not write.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        report: Callable[[str, str], None],
        begun: Callable[[str], None],
        lost: Callable[[str], None],
    ) -> None:
        self._selector = selector
        self._report = report
        self._begun = begun
        self._lost = lost
        self._recorders: dict[int, _Recorder] = {}  # by user
        self._waiting: list[tuple[float, str]] = []
        # Those that are to end: until when, by the monotonic clock.
        self._leaving: list[tuple[float, subprocess.Popen[bytes]]] = []
        self.dropped: dict[str, int] = {}
        self._before: dict[str, int] = {}  # the same, of recorders that ended

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(one.process.pid for one in self._recorders.values())

    def record(self, stored: Recorded, stream: socket.socket) -> None:
        """Has the lines of `stream` written; the caller closes its own descriptor. Raises OSError
        where no process can be made, or the one that there is takes nothing."""
        recorder = self._recorders.get(stored.uid)
        if recorder is None:
            recorder = self._recorders[stored.uid] = _Recorder(stored.uid, stored.user)
            self._selector.register(
                recorder.link, selectors.EVENT_READ, lambda events: self._serve(recorder, events)
            )
        order = Order(record=Record(stored.name, stored.outputs, stored.limit_bytes, stored.keep))
        recorder.order(order, stream)
        recorder.sessions[stored.name] += 1
        self._before[stored.name] = self.dropped.setdefault(stored.name, 0)
        self._watch(recorder)

    def _watch(self, recorder: "_Recorder") -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if recorder.waiting else 0)
        key = self._selector.get_key(recorder.link)
        if key.events != wanted:
            self._selector.modify(recorder.link, wanted, key.data)

    def _serve(self, recorder: "_Recorder", events: int) -> None:
        if events & selectors.EVENT_WRITE:
            recorder.push()
            self._watch(recorder)
        if events & selectors.EVENT_READ:
            self._hear(recorder)

    def _hear(self, recorder: "_Recorder") -> None:
        for _ in range(64):
            try:
                message = recorder.link.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._ended(recorder)
                return
            try:
                self._take(recorder, _answers.decode(message))
            except ValueError as error:
                _log.error("recorder %d says what is no answer: %s", recorder.process.pid, error)
                recorder.process.kill()

    def _take(self, recorder: "_Recorder", answer: Answer) -> None:
        # A recorder is believed about its own sessions only.
        said = answer.failed or answer.recovered or answer.counters or answer.ended
        if said is None or said.session not in recorder.sessions:
            return
        if answer.failed is not None:
            self._report(said.session, f"{answer.failed.output}: {answer.failed.error}")
        elif answer.recovered is not None:
            self._report(said.session, "")
        elif (counters := answer.counters or answer.ended) and said.session in self._before:
            now = counters.dropped + counters.cut + counters.damaged
            self.dropped[said.session] = self._before[said.session] + now
            if answer.counters is not None:
                self._begun(said.session)
        if answer.ended is not None:
            recorder.sessions[said.session] -= 1
            recorder.sessions += Counter()  # without those that are 0

    def _ended(self, recorder: "_Recorder") -> None:
        self._release(recorder)
        with suppress(subprocess.TimeoutExpired):
            recorder.process.wait(END_S)
        _log.error("recorder of %s ended: %s", recorder.user, recorder.process.returncode)
        for name in recorder.sessions:
            self.later(name)
            self._report(name, "its recorder ended")
            self._begun(name)

    def forget(self, name: str) -> None:
        """The session is stopped for good."""
        self.dropped.pop(name, None)
        self._before.pop(name, None)

    def later(self, name: str) -> None:
        """`lost` is called with the session after a pause."""
        self._waiting.append((time.monotonic() + PAUSE_S, name))

    def look_after(self) -> None:
        """To be called now and then."""
        now = time.monotonic()
        due = [name for at, name in self._waiting if at <= now]
        self._waiting = [(at, name) for at, name in self._waiting if at > now]
        for name in due:
            self._lost(name)
        for recorder in list(self._recorders.values()):
            if not recorder.sessions:
                self._release(recorder)
        self._leaving = [(at, one) for at, one in self._leaving if one.poll() is None]
        for at, process in self._leaving:
            if at <= now:
                process.kill()

    def finish(self, wait_s: float) -> None:
        """Lets them write what has come, and end."""
        until = time.monotonic() + wait_s
        for recorder in self._recorders.values():
            recorder.push(max(0.0, until - time.monotonic()))
            with suppress(OSError):
                recorder.link.shutdown(socket.SHUT_WR)
        for recorder in list(self._recorders.values()):
            with suppress(subprocess.TimeoutExpired):
                recorder.process.wait(max(0.0, until - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        for recorder in list(self._recorders.values()):
            self._release(recorder)
        for _, process in self._leaving:
            process.kill()
            # One that the kernel keeps, because its disk hangs, is not waited for.
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        self._leaving = []

    def _release(self, recorder: "_Recorder") -> None:
        """Lets it end, without waiting for it: it may have much to write, on a disk that hangs."""
        self._selector.unregister(recorder.link)
        recorder.close()
        self._recorders = {uid: one for uid, one in self._recorders.items() if one is not recorder}
        self._leaving.append((time.monotonic() + LEAVE_S, recorder.process))


class _Recorder:
    """A recorder process, with the rights of one user. sessions: that it records, how often: one
    may end while the next of its name has begun."""

    def __init__(self, uid: int, user: str) -> None:
        self.user = user
        self.sessions: Counter[str] = Counter()
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.setblocking(False)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streamtap.service.recorder", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=helper_environment(),
            )
        except OSError:
            self.link.close()
            raise
        finally:
            theirs.close()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self.order(Order(become=_groups(uid)))

    @property
    def waiting(self) -> int:
        """Orders that wait until it takes them."""
        return len(self._queue)

    def order(self, order: Order, stream: socket.socket | None = None) -> None:
        """Raises OSError where it has taken nothing for long."""
        if len(self._queue) >= MOST_WAITING:
            raise OSError(errno.EAGAIN, f"the recorder of {self.user} takes no orders")
        self._queue.append(
            (msgspec.json.encode(order), [] if stream is None else [os.dup(stream.fileno())])
        )
        self.push()

    def push(self, wait_s: float = 0.0) -> None:
        """Sends what waits, as far as it is taken within a time."""
        until = time.monotonic() + wait_s
        while self._queue:
            message, descriptors = self._queue[0]
            try:
                socket.send_fds(self.link, [message], descriptors, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.link, select.POLLOUT)
                left_s = until - time.monotonic()
                if left_s <= 0 or not poll.poll(left_s * 1000):
                    return
                continue
            except OSError:  # it has ended, as will be read
                self._forget()
                return
            self._queue.popleft()
            _close(descriptors)

    def close(self) -> None:
        self._forget()
        self.link.close()

    def _forget(self) -> None:
        while self._queue:
            _close(self._queue.popleft()[1])


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _groups(uid: int) -> Become:
    """Who a user is; one that is not known has no groups but its own number's."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Become(uid, uid)
    return Become(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))
