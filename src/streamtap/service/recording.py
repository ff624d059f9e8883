"""The recorders as the keeper sees them: one for each user who has sessions recorded."""

import logging
import os
import pwd
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from streamtap.service.confine import ENVIRONMENT
from streamtap.service.recorder import MAX_MESSAGE, Answer, Become, Order, Record
from streamtap.service.state import Recorded

PAUSE_S = 1.0  # before a recorder that ended is started again
_log = logging.getLogger(__name__)
_answers = msgspec.json.Decoder(Answer)


class Recorders:
    """report: called with the name of a session and why it does not record, "" once it does
    again. lost: called with the name of a session whose recorder ended; it wants a new stream.
    dropped: records of a session that its recorder could not write.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        report: Callable[[str, str], None],
        lost: Callable[[str], None],
    ) -> None:
        self._selector = selector
        self._report = report
        self._lost = lost
        self._recorders: dict[int, _Recorder] = {}  # by user
        self._waiting: list[tuple[float, str]] = []
        self.dropped: dict[str, int] = {}

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(one.process.pid for one in self._recorders.values())

    def record(self, stored: Recorded, stream: socket.socket) -> None:
        """Has the lines of `stream` written; the caller closes its own descriptor. Raises OSError
        where no process can be made."""
        recorder = self._recorders.get(stored.uid)
        if recorder is None:
            recorder = self._recorders[stored.uid] = _Recorder(stored.uid, stored.user)
            self._selector.register(
                recorder.link, selectors.EVENT_READ, lambda events: self._hear(recorder)
            )
        recorder.sessions.add(stored.name)
        order = Order(record=Record(stored.name, stored.outputs, stored.limit_bytes, stored.keep))
        recorder.send(order, stream)

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
        elif counters := answer.counters or answer.ended:
            self.dropped[said.session] = counters.dropped + counters.cut + counters.damaged
        if answer.ended is not None:
            recorder.sessions.discard(said.session)

    def _ended(self, recorder: "_Recorder") -> None:
        code = self._release(recorder)
        _log.error("recorder of %s ended: %d", recorder.user, code)
        due = time.monotonic() + PAUSE_S
        self._waiting += [(due, name) for name in recorder.sessions]

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

    def finish(self, wait_s: float) -> None:
        """Lets them write what has come, and end."""
        until = time.monotonic() + wait_s
        for recorder in self._recorders.values():
            with suppress(OSError):
                recorder.link.shutdown(socket.SHUT_WR)
        for recorder in list(self._recorders.values()):
            with suppress(subprocess.TimeoutExpired):
                recorder.process.wait(max(0.0, until - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        for recorder in list(self._recorders.values()):
            with suppress(OSError):
                recorder.process.kill()
            self._release(recorder)

    def _release(self, recorder: "_Recorder") -> int:
        self._selector.unregister(recorder.link)
        recorder.link.close()  # that ends it
        self._recorders = {uid: one for uid, one in self._recorders.items() if one is not recorder}
        return recorder.process.wait()


class _Recorder:
    """A recorder process, with the rights of one user. sessions: that it records."""

    def __init__(self, uid: int, user: str) -> None:
        self.user = user
        self.sessions: set[str] = set()
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.setblocking(False)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streamtap.service.recorder", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=os.environ | ENVIRONMENT,
            )
        except OSError:
            self.link.close()
            raise
        finally:
            theirs.close()
        self.send(Order(become=_groups(uid)))

    def send(self, order: Order, stream: socket.socket | None = None) -> None:
        """Raises OSError, BlockingIOError among them, where it takes nothing."""
        message = [msgspec.json.encode(order)]
        if stream is None:
            self.link.send(message[0], socket.MSG_NOSIGNAL)
        else:
            socket.send_fds(self.link, message, [stream.fileno()], socket.MSG_NOSIGNAL)


def _groups(uid: int) -> Become:
    """Who a user is; one that is not known has no groups but its own number's."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Become(uid, uid)
    return Become(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))
