"""The parser: rings -> pipeline -> sessions, in a process that may do nothing else.

`python -P -m streamtap.service.parser LINK DATA CONTROL BOARD LEDGER`: numbers of descriptors that
it is started with. It is the one process that looks at what came from the network, so it gives up
all rights before the first byte: no file, no socket but those it is given, no capability. What it
may ask for goes over the link. It ends with the keeper, and on the keeper's order.
"""

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
from streamtap.service.attached import LEAVE_S, AttachedSessions
from streamtap.service.board import LOSSES, Board
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
from streamtap.trace.hub import Hub

GARBAGE_AFTER = 20_000  # objects; records hold no cycles
TICK_S = 0.01  # while bursts are open
TICK_AT_LEAST_NS = 1_000_000_000  # else: what waits for a flow that is never opened has to go
TOTALS_S = 1.0  # between two looks at the callouts' counters
LAST_DRAIN_S = 5.0  # for what is left at the end; traffic may go on
CLOSED_AT_ONCE = 1024  # flows, at the end: more than that no session's queue has room for
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
        self._attached = AttachedSessions(self._hub, self._pipeline, board, kernel)
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
        self._attached.part_gone()

    def _beat(self) -> None:
        pipeline, table = self._pipeline, self._pipeline.table
        self._attached.count()
        now = time.monotonic()
        if now >= self._totals_due:
            self._totals_due = now + TOTALS_S
            self._counters = self._kernel.counters()
        self._turns += 1
        self._board.set_totals(
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
                    self._attached.attach(order, given.take_socket())
                case messages.Narrow():
                    self._attached.narrow(order)
                case messages.Detach():
                    self._attached.detach(order)
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
                    terms.protocol, None if terms.content is None else Content.named(terms.content)
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
        self._attached.close()


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
