"""The parser as the keeper sees it: a process that is started, told, looked after, and started
again when it has ended."""

import errno
import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from streamtap.capture.callouts import CONTROL_BYTES
from streamtap.driver import Driver
from streamtap.events import Body, ControlState
from streamtap.service import messages
from streamtap.service.board import Board
from streamtap.service.confine import Confinement
from streamtap.service.link import LinkError, ParserEnd
from streamtap.service.sessions import Session
from streamtap.service.starting import start_parser
from streamtap.service.state import Filter
from streamtap.trace.jsonlines import encode_any

PUSH_S = 0.05  # between two tries to give it what it has not taken
HUNG_S = 20.0  # without a sign of life
PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0)  # before it is started again; the last one from then on
CALM_S = 60.0  # after so long a failure is a first one again
_log = logging.getLogger(__name__)


class ParserProcess:
    """began: called when a parser is there that knows nothing yet; with whether one was before.
        It reads the rings after `begin`, which is to follow what it is to know.
    ledger_fd: of the ledger that every parser goes on with; the caller's.
    left: called with the name of a session that nobody reads any more.
    confined: what it gave up, in words; empty before it has said so. restarts: since the keeper
    began."""

    def __init__(
        self,
        driver: Driver,
        board: Board,
        ledger_fd: int,
        selector: selectors.BaseSelector,
        key: bytes | None,
        *,
        began: Callable[[bool], None],
        left: Callable[[str], None],
    ) -> None:
        self._driver = driver
        self._board = board
        self._ledger_fd = ledger_fd
        self._selector = selector
        self._key = key
        self._began = began
        self._left = left
        self._filters = messages.SetFilters({}, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self._end: ParserEnd | None = None
        self._pidfd = -1
        self._started = 0.0
        self._due: float | None = None
        self._failures = 0
        self._beginning = False  # one that fails meanwhile is started again later, not within
        self.restarts = 0
        self.confined: tuple[str, ...] = ()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Raises OSError."""
        again = self._started > 0
        self._started = time.monotonic()  # also of an attempt that fails, so that pauses grow
        self._beginning = True
        callouts = self._driver.callouts
        process, end = start_parser(
            *callouts.ring_fds,
            self._board,
            self._ledger_fd,
            self,
            messages.Setup(callouts.ring_bytes, CONTROL_BYTES, self._key),
            self._filters,
        )
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            end.close()
            raise
        self._process, self._end = process, end
        self.confined = ()
        self._selector.register(end.fd, selectors.EVENT_READ, self.serve)
        self._selector.register(
            self._pidfd, selectors.EVENT_READ, lambda events: self._ended(process)
        )
        self._began(again)

    def begin(self) -> None:
        """Every session that there is has been told to it: it may read the rings."""
        self._order(messages.Begin())
        self._beginning = False

    def serve(self, events: int = 0) -> None:
        """Answers what it has asked."""
        if self._end is None:
            return
        try:
            self._end.serve(self._driver)
        except (LinkError, OSError) as error:  # it waits for an answer that nobody can give
            self._give_up(error)

    def ready(self, ready: messages.Ready) -> None:
        self.confined = (
            *("no privileged user", "no capability"),
            *Confinement(ready.seccomp, ready.landlock_abi).words,
        )
        self.note(time.time_ns(), ControlState(state=f"parser has {', '.join(self.confined)}"))

    def gone(self, session: str) -> None:
        self._left(session)

    def _give_up(self, error: LinkError | OSError) -> None:
        _log.error("the parser is ended: %s", error)
        self.kill()
        self._again()

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        if process is not self._process:  # its link told first, and another one is there
            return
        code = process.wait()
        _log.error("the parser ended: %s", _how(code))
        self._release()
        self._again()

    def _again(self) -> None:
        now = time.monotonic()
        if now - self._started > CALM_S:
            self._failures = 0
        self._due = now + PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
        self._failures += 1
        if self._due <= now and not self._beginning:
            self.look_after()

    def look_after(self) -> None:
        """To be called now and then: starts it again, and ends it where it hangs."""
        now = time.monotonic()
        if self._process is not None:
            alive = max(self._started, self._board.total("beat_ns") / 1e9)
            if now - alive > HUNG_S:
                _log.error("the parser gives no sign of life: it is ended")
                self.kill()
                self._again()
        elif self._due is not None and now >= self._due:
            self._due = None
            self.restarts += 1
            try:
                self.start()
                self.begin()
            except (OSError, LinkError) as error:
                _log.error("the parser cannot be started: %s", error)
                self.kill()
                self._beginning = False
                self._again()

    # --- orders ----------------------------------------------------------------------------------

    def set_filters(self, filters: Sequence[Filter], enabled: int) -> None:
        terms = {
            one.bit: messages.FilterTerms(one.name, one.protocol, one.content) for one in filters
        }
        self._filters = messages.SetFilters(terms, enabled)
        self._order(self._filters)

    def note(self, time_ns: int, body: Body) -> None:
        self._order(messages.Note(time_ns, encode_any(body)))

    def attach(
        self,
        session: Session,
        *,
        last_s: float | None = None,
        resumed: bool = False,
        opening: bool = False,
        asked_ns: int = 0,
    ) -> None:
        number, dropped = self._board.session(session.slot)
        order = messages.Attach(
            session.name,
            session.slot,
            session.selection,
            session.content,
            session.mask,
            last_s,
            number,
            dropped,
            resumed,
            opening,
            asked_ns,
        )
        self._order(order, session.stream.fileno())

    def narrow(self, session: Session) -> None:
        """Its mask is another one."""
        self._order(messages.Narrow(session.name, session.mask))

    def detach(self, session: Session) -> None:
        self._order(messages.Detach(session.name))

    def _order(self, order: messages.Order, fd: int | None = None) -> None:
        """What it cannot be told now it is told when it is there again."""
        if self._end is None:
            return
        try:
            self._end.order(order, fd)
        except LinkError as error:
            self._give_up(error)

    # --- the end ---------------------------------------------------------------------------------

    def finish(self, wait_s: float) -> None:
        """Has it read what the rings hold, and end; waits for it, answering what it asks."""
        if self._end is None or self._process is None:
            return
        self._due = None
        self._order(messages.Finish(self._driver.undecided))
        if self._end is None:
            return
        until = time.monotonic() + wait_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._end.fd, selectors.EVENT_READ)
            selector.register(self._pidfd, selectors.EVENT_READ)
            asks = True
            while self._process is not None and self._process.poll() is None:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    _log.error("the parser does not finish: it is ended")
                    break
                selector.select(min(left_s, PUSH_S))
                if asks:
                    try:
                        self._end.serve(self._driver)
                    except (LinkError, OSError):  # it has gone, or cannot be answered
                        selector.unregister(self._end.fd)
                        asks = False
        self.kill()

    def kill(self) -> None:
        """Ends it now; not started again by itself."""
        self._due = None
        if self._process is not None:
            try:
                self._process.send_signal(signal.SIGKILL)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise
            self._process.wait()
            self._release()

    def _release(self) -> None:
        self._process = None
        if self._pidfd >= 0:
            self._selector.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._end is not None:
            self._selector.unregister(self._end.fd)
            self._end.close()
            self._end = None


def _how(code: int) -> str:
    if code < 0:
        return f"signal {-code}"
    return f"exit code {code}"
