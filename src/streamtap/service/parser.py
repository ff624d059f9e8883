"""The parser: rings -> pipeline -> sessions, in a process that may do nothing else.

`python -P -m streamtap.service.parser LINK DATA CONTROL BOARD LEDGER`: numbers of descriptors that
it is started with. It is the one process that looks at what came from the network, so it gives up
all rights before the first byte: no file, no socket but those it is given, no capability. What it
may ask for goes over the link. It ends with the keeper, and on the keeper's order.
"""

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from itertools import islice
from traceback import extract_tb

import msgspec

from streamtap.capture.live import IDLE_S, LiveSource
from streamtap.events import (
    Body,
    ControlOpened,
    ControlRequest,
    ControlState,
    FilterChanged,
    Record,
    Started,
    StateChanged,
    Stopped,
)
from streamtap.model import Content
from streamtap.patterns import clean
from streamtap.pipeline import Pipeline, Terms
from streamtap.pipeline.speech import OPAQUE
from streamtap.protocols import by_name
from streamtap.service import messages
from streamtap.service.board import LOSSES, SLOTS, Board
from streamtap.service.confine import (
    Confinement,
    become,
    close_others,
    confine,
    preload,
    unprivileged_user,
)
from streamtap.service.ledger import Ledger
from streamtap.service.link import Given, LinkError, RemoteKernel
from streamtap.service.syscalls import prctl
from streamtap.trace.hub import EVERY, Hub
from streamtap.trace.selection import parse

GARBAGE_AFTER = 20_000  # objects; records hold no cycles
TICK_S = 0.01  # while bursts are open
TICK_AT_LEAST_NS = 1_000_000_000  # else: what waits for a flow that is never opened has to go
TOTALS_S = 1.0  # between two looks at the callouts' counters
LAST_DRAIN_S = 5.0  # for what is left at the end; traffic may go on
CLOSED_AT_ONCE = 1024  # flows, at the end: more than that no session's queue has room for
LEAVE_S = 0.2  # for a session that is detached to take what it was told
LAST_FLUSH_S = 2.0  # for sessions to take what they were told
_PR_SET_PDEATHSIG = 1
_KEY_BYTES = 16
_NOTES = (
    StateChanged | FilterChanged | ControlOpened | ControlRequest | ControlState | Started | Stopped
)

_log = logging.getLogger(__name__)


class _Names(dict[int, str]):
    """Names of filters by bit. One that is missing may be in an order that was not read yet: the
    keeper sends it before the callouts know the filter."""

    def __init__(self, kernel: RemoteKernel) -> None:
        super().__init__()
        self._kernel = kernel

    def get(self, bit: int, default: str = "") -> str:  # type: ignore[override]
        if bit not in self:
            for given in self._kernel.look():
                order = given.order
                if isinstance(order, messages.SetFilters) and bit in order.filters:
                    return order.filters[bit].name
        return super().get(bit, default)


class Parser:
    """A source, a pipeline and a hub, with the keeper behind them.

    finished: the keeper's order to end was carried out.
    """

    def __init__(self, kernel: RemoteKernel, board: Board, ledger: Ledger) -> None:
        self.finished = False
        self._kernel = kernel
        self._board = board
        self._ledger = ledger
        key = kernel.setup.key or os.urandom(_KEY_BYTES)
        self._names = _Names(kernel)
        self._filters: dict[int, messages.FilterTerms] = {}
        self._source = LiveSource(kernel, self._names, ledger)
        self._hub = Hub(clean=lambda body, content: clean(body, content, key))
        self._pipeline = Pipeline(
            content=self._hub.content,
            places=self._hub.places,
            set_policy=kernel.set_flow_policy,
            key=key,
        )
        self._slots: dict[str, int] = {}
        self._last_order: messages.Finish | None = None
        self._turns = 0
        self._tick_due_ns = 0
        self._totals_due = 0.0
        self._counters: dict[str, int] = {}
        self._source.wake_on(kernel.fd)
        self._source.wake_on(self._hub.fd)

    # --- the loop --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Takes in the sessions that there are, and finds the flows that are open."""
        first = self._kernel.wait().order
        if not isinstance(first, messages.SetFilters):
            raise LinkError("the keeper tells of no filters")
        self._know(first)
        remembered = self._ledger.recover()
        while not isinstance((given := self._kernel.wait()).order, messages.Begin):
            self._obey([given])
        try:
            self._source.resume(first.enabled, remembered)
        except LinkError:
            raise
        except Exception:
            self._ledger.clear()  # or the next parser would break at the same
            raise
        self._beat()

    def run(self) -> None:
        """Until the keeper says `finish`. Raises LinkError where it has gone."""
        try:
            while not self.finished:
                self.turn()
        except LinkError:
            raise
        except Exception:
            self._source.skip()  # or the next parser would break at the same
            raise

    def turn(self, timeout_s: float = IDLE_S) -> None:
        if self._pipeline.pending:
            timeout_s = min(timeout_s, TICK_S)
        if self._hub.leaving:
            timeout_s = min(timeout_s, LEAVE_S)
        items = self._source.poll(timeout_s)
        # Before what came is told: the orders tell how much of it may be.
        self._obey(self._kernel.receive())
        self._tell(self._pipeline.feed(items) if items else [])
        given_ns = self._source.given_ns
        if self._pipeline.pending or given_ns >= self._tick_due_ns:
            self._tick_due_ns = given_ns + TICK_AT_LEAST_NS
            self._tell(self._pipeline.tick(given_ns))
        self._end_turn()
        if self._last_order is not None:
            self._finish(self._last_order)

    def _tell(self, records: Sequence[Record]) -> None:
        if records:
            self._hub.give(records)

    def _end_turn(self) -> None:
        """What was told is counted before it is sent: no number is given twice."""
        self._beat()
        self._hub.flush()
        self._ledger.settle()
        self._source.release()
        self._kernel.flush()
        gone = [name for name, session in self._hub.sessions.items() if session.gone]
        for name in gone:
            self._part(name)
            self._kernel.tell(messages.Gone(name))

    def _beat(self) -> None:
        board, pipeline, table = self._board, self._pipeline, self._pipeline.table
        for name, session in self._hub.sessions.items():
            board.set_session(self._slots[name], session.number, session.dropped)
        now = time.monotonic()
        if now >= self._totals_due:
            self._totals_due = now + TOTALS_S
            self._counters = self._kernel.counters()
        self._turns += 1
        board.set_totals(
            turns=self._turns,
            flows_open=len(table),
            flows_opened=table.opened,
            records=pipeline.records,
            bytes=pipeline.bytes,
            gaps=pipeline.gaps,
            **self._losses(),
            beat_ns=time.monotonic_ns(),
        )

    def _losses(self) -> dict[str, int]:
        table = self._pipeline.table
        told = {name: self._counters.get(name, 0) for name in LOSSES}
        return told | {
            "orphans_lost": self._source.orphans_lost,
            "refused": table.refused,
            "early_refused": table.early_refused,
        }

    # --- orders ----------------------------------------------------------------------------------

    def _obey(self, orders: Sequence[Given]) -> None:
        for given in orders:
            order = given.order
            match order:
                case messages.SetFilters():
                    self._set_filters(order)
                case messages.Attach():
                    self._attach(order, given.take_socket())
                case messages.Narrow():
                    if order.session in self._slots:
                        self._hub.set_filters(order.session, order.filters)
                case messages.Detach():
                    if order.session in self._slots:
                        self._part(order.session, LEAVE_S)
                case messages.Note():
                    self._note(order)
                case messages.Finish():
                    self._last_order = order  # when the turn is over
                case messages.Setup() | messages.Begin():
                    raise LinkError("the keeper begins twice")

    def _set_filters(self, order: messages.SetFilters) -> None:
        before = self._filters
        # A bit that has another name is another filter: the one that had it is gone.
        same = ~sum(
            1 << bit
            for bit, terms in before.items()
            if bit not in order.filters or order.filters[bit].name != terms.name
        )
        if ~same:
            self._source.retire(order.enabled & same)
        self._know(order)
        self._source.retire(order.enabled)

    def _know(self, order: messages.SetFilters) -> None:
        """What the filters are called, and how their flows are told."""
        self._filters = order.filters
        self._names.clear()
        self._names.update({bit: terms.name for bit, terms in order.filters.items()})
        self._ledger.name(self._names)
        self._pipeline.set_filters(
            {
                terms.name: Terms(
                    terms.protocol, None if terms.content is None else _content(terms.content)
                )
                for terms in order.filters.values()
            }
        )

    def _note(self, order: messages.Note) -> None:
        try:
            body: Body = msgspec.json.decode(order.body, type=_NOTES)
        except msgspec.DecodeError as error:
            _log.error("a note that is no record: %s", error)
            return
        self._tell(self._pipeline.note(order.time_ns, body))

    def _attach(self, order: messages.Attach, out: socket.socket) -> None:
        """One that cannot be is as if its reader had gone at once."""
        try:
            if order.slot >= SLOTS:
                raise ValueError(f"no slot {order.slot}")
            self._listen(order, out)
        except (ValueError, OSError) as error:
            _log.error("session %s: %s", order.session, error)
            out.close()
            if order.session not in self._slots:
                self._kernel.tell(messages.Gone(order.session))
            return
        self._slots[order.session] = order.slot
        self._follow()

    def _listen(self, order: messages.Attach, out: socket.socket) -> None:
        """Raises ValueError for what cannot be meant."""
        selection, content = parse(order.selection), _content(order.content)
        asked_ns = order.asked_ns or time.time_ns()
        since_ns = asked_ns if order.last_s is None else asked_ns - round(order.last_s * 1e9)
        opening: list[Record] = []
        if order.opening:
            opening = [
                record
                for record in self._pipeline.standing(since_ns)
                if record.body.place() in selection.places and _concerns(record, order.filters)
            ]
        self._hub.attach(
            order.session,
            out,
            selection,
            content=content,
            filters=order.filters,
            after=order.after,
            dropped=order.dropped,
            since_ns=since_ns if order.opening or order.last_s is not None else None,
            last=order.last_s is not None,
            resumed=order.resumed,
            opening=opening,
        )

    def _part(self, name: str, wait_s: float = 0.0) -> None:
        session = self._hub.sessions[name]
        self._hub.detach(name, wait_s=wait_s)
        self._board.set_session(self._slots.pop(name), session.number, session.dropped)
        self._follow()

    def _follow(self) -> None:
        """What is wanted is what the sessions want together."""
        self._pipeline.set_places(self._hub.places)
        self._pipeline.set_content(self._hub.content)

    def _finish(self, order: messages.Finish) -> None:
        """The last look at the rings, the ends of all flows, and the sums."""
        standing = self._source.standing()
        deadline = time.monotonic() + LAST_DRAIN_S
        while not self._source.is_drained and time.monotonic() < deadline:
            self._tell(self._pipeline.feed(self._source.poll(0)))
            self._end_turn()
        items = self._source.finish(standing)
        deadline = time.monotonic() + LAST_FLUSH_S
        while some := list(islice(items, CLOSED_AT_ONCE)):
            self._tell(self._pipeline.feed(some))
            self._empty_queues(deadline)
        self._totals_due = 0.0
        self._beat()
        pipeline = self._pipeline
        stopped = Stopped(
            flows=pipeline.table.opened,
            bytes=pipeline.bytes,
            records=pipeline.records,
            gaps=pipeline.gaps,
            drops=sum(self._losses().values()) + order.undecided,
        )
        self._tell(pipeline.note(time.time_ns(), stopped))
        self._empty_queues(max(deadline, time.monotonic() + LAST_FLUSH_S / 2))
        self.finished = True

    def _empty_queues(self, deadline: float) -> None:
        """Until the sessions have taken what they were told, or the deadline."""
        self._end_turn()
        while self._hub.waiting:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            select.select([self._hub.fd], [], [], left_s)
            self._end_turn()

    def close(self) -> None:
        """Ends the sessions; what of them could not be sent is counted as dropped."""
        for name in list(self._slots):
            with contextlib.suppress(KeyError):
                self._part(name)
        self._hub.close()


def _content(word: str) -> Content:
    """Raises ValueError."""
    try:
        return Content[word.upper()]
    except KeyError:
        raise ValueError(f"no content level {word!r}") from None


def _concerns(record: Record, filters: int) -> bool:
    return filters == EVERY or (record.flow is not None and bool(record.flow.filters & filters))


def give_up_rights(keep: Sequence[int]) -> Confinement:
    """From here on this process can but use the descriptors it has.

    keep: descriptors; those of standard streams stay too.
    """
    preload()
    close_others({0, 1, 2, *keep})
    if not os.geteuid():
        become(unprivileged_user())
    # After the user changed, which takes it back. Two parsers must not read the rings at once.
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return confine()


def main(arguments: Sequence[str]) -> int:
    link_fd, data_fd, control_fd, board_fd, ledger_fd = map(int, arguments)
    logging.basicConfig(format="streamtap parser: %(message)s")
    # The keeper tells when to end; a signal to all of the service must not be first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    gc.set_threshold(GARBAGE_AFTER)
    by_name(OPAQUE)  # finds the parsers, which are files
    keep = (link_fd, data_fd, control_fd, board_fd, ledger_fd)
    confinement = give_up_rights(keep)
    kernel = RemoteKernel(socket.socket(fileno=link_fd), data_fd, control_fd)
    parser = Parser(kernel, Board(board_fd), Ledger(ledger_fd))
    try:
        parser.begin()
        kernel.tell(messages.Ready(confinement.seccomp, confinement.landlock_abi))
        parser.run()
        parser.close()
    except LinkError as error:
        _log.error("%s", error)
        return 1
    except Exception as error:
        # The places alone: what an exception says may quote what was said on the wire.
        places = ", ".join(f"{at.filename}:{at.lineno}" for at in extract_tb(error.__traceback__))
        _log.error("%s at %s", type(error).__name__, places)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
