"""One connection to the control socket: lines in, replies out, one request at a time.

A request is looked at only when the reply to the one before has been handed to the kernel, so what
waits for a client that does not read is one reply at most. A connection that is not read costs
nothing: what a client sends too fast stays in its own socket.
"""

import contextlib
import logging
import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from streamtap import __version__
from streamtap.errors import ServiceError
from streamtap.service.peers import Peer
from streamtap.service.protocol import MAX_LINE, AnyRequest, Failure
from streamtap.service.wire import encode_failure, encode_result, failure_of

if TYPE_CHECKING:
    from streamtap.service.control import ControlServer

_log = logging.getLogger(__name__)


class Later:
    """What `handle` gives for a request that is replied to by `Connection.finish`."""


LATER = Later()


class Connection:
    """A client, for the service that handles its requests.

    attached: it carries records now, and no requests. throttled: it waits for its turn.
    """

    def __init__(self, server: "ControlServer", accepted: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self.attached = False
        self.throttled = False
        self._server = server
        self._socket: socket.socket | None = accepted
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._waiting: AnyRequest | None = None
        self._held = False
        self._ending = False  # once what waits is sent
        self._no_more = False  # the client has said all it has to say
        self._interest = 0
        self._heard_at = self._moved_at = server.clock()
        self._when_closed: list[Callable[[], None]] = []
        self._watch()

    # --- for the service ---------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._socket is None

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Calls it once, when the connection has ended for whatever reason; at once, if it has."""
        if self.closed:
            callback()
        else:
            self._when_closed.append(callback)

    def hold(self) -> None:
        """Something lives as long as the connection: it is not ended for saying nothing."""
        self._held = True

    def finish(self, outcome: object) -> None:
        """Replies to the request for which `handle` gave LATER; an exception is an error."""
        request = self._waiting
        if request is None:
            return
        self._waiting = None
        failure = failure_of(outcome) if isinstance(outcome, Exception) else None
        self._server.told(self.peer, request, failure)  # also if the client has gone meanwhile
        if self.closed:
            return
        if self.attached:
            if failure is not None:
                self.close()
        elif failure is not None:
            self.fail(request.id, failure)
        else:
            self.reply(request.id, outcome)
        self._go_on()

    def attach(self, number: int, result: object) -> socket.socket:
        """Replies, and gives a second descriptor of the socket, non-blocking, to write records to;
        it belongs to the caller. That the client has gone is still noticed here; `close` ends the
        stream for every holder of a descriptor. Raises ServiceError where the client is not there
        or does not read, the connection being over then, and ValueError where it went on asking.
        """
        if self._incoming:
            raise ValueError("nothing may follow a request to attach on its connection")
        line = encode_result(number, __version__, result)
        try:
            if self._socket is None or self._outgoing or self._socket.send(line) != len(line):
                raise BlockingIOError
            second = self._socket.dup()
        except OSError:
            self.close()
            raise ServiceError("the client does not read its replies") from None
        second.setblocking(False)
        self.attached = True
        self._watch()
        return second

    def close(self) -> None:
        """Ends it now; a second call does nothing."""
        if self._socket is None:
            return
        ended, self._socket = self._socket, None
        if self._interest:
            self._server.selector.unregister(ended)
            self._interest = 0
        with contextlib.suppress(OSError):
            ended.shutdown(socket.SHUT_RDWR)  # of the other descriptors too
        ended.close()
        self._outgoing = bytearray()
        self._server.gone(self)
        callbacks, self._when_closed = self._when_closed, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # the others still have to know
                _log.exception("after a connection ended")

    # --- for the server ----------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Bytes that wait for the client."""
        return len(self._outgoing)

    def wait_for(self, request: AnyRequest) -> None:
        if not self.closed:
            self._waiting = request

    def reply(self, number: int | None, result: object) -> None:
        self._put(encode_result(number, __version__, result))

    def fail(self, number: int | None, failure: Failure) -> None:
        self._put(encode_failure(number, __version__, failure))

    def end(self) -> None:
        """Ends it when all is sent that waits."""
        self._ending = True
        if not self._outgoing:
            self.close()

    def expire(self, now: float) -> float | None:
        """Does what is due now; when something will be."""
        if self.throttled:
            self.throttled = False
            self._go_on()
        if self.closed or self.attached:
            return None
        due = self._due()
        if due is not None and now >= due:
            self._ready(self._interest)  # it may be us who were slow
            due = self._due()
            if due is not None and now >= due:
                self.close()
                return None
        return due

    def _due(self) -> float | None:
        """When it is to be ended if nothing happens."""
        if self.closed:
            return None
        if self._outgoing:
            return self._moved_at + self._server.bounds.stall_s
        if self._held or self._waiting is not None or self.throttled or self.attached:
            return None
        return self._heard_at + self._server.bounds.idle_s

    # --- in and out --------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send()
        if events & selectors.EVENT_READ and not self.closed:
            self._receive()
        self._go_on()

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(MAX_LINE + 1 - len(self._incoming))
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self.attached:
            # Nothing is expected: it has gone, or it does not keep to the protocol.
            if data:
                self._server.refused(self.peer, "it went on asking on the connection of a session")
            self.close()
        elif data:
            self._incoming += data
        else:
            self._no_more = True

    def _go_on(self) -> None:
        """Takes the requests that are there, as far as it may."""
        while self._may_take():
            at = self._incoming.find(b"\n", 0, MAX_LINE)
            if at < 0 and len(self._incoming) < MAX_LINE and not self._no_more:
                break
            if at < 0 and not self._incoming:
                self.close()
                break
            if not self._server.may_ask(self):
                self.throttled = True
                break
            if at < 0:
                cut = len(self._incoming) < MAX_LINE
                reason = "is cut short" if cut else f"is longer than {MAX_LINE} bytes"
                self._server.refused(self.peer, f"a line that {reason}")
                self.fail(None, Failure(f"the request {reason}", "one JSON object a line", 2))
                self.end()
                break
            line = bytes(self._incoming[:at])
            del self._incoming[: at + 1]
            self._heard_at = self._server.clock()
            self._server.take(self, line)
        self._watch()

    def _may_take(self) -> bool:
        return not (
            self.closed
            or self.attached
            or self._ending
            or self.throttled
            or self._outgoing
            or self._waiting is not None
        )

    def _put(self, line: bytes) -> None:
        if self.closed:
            return
        if not self._server.may_queue(self.peer, len(line)):
            self.close()  # its user has left enough unread
            return
        self._outgoing += line
        self._moved_at = self._server.clock()
        self._send()

    def _send(self) -> None:
        if self._socket is None:
            return
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing)
                del self._outgoing[:sent]
                self._moved_at = self._heard_at = self._server.clock()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._ending:
            self.close()

    def _watch(self) -> None:
        """Has the selector wait for what may happen now."""
        if self._socket is None:
            return
        interest = selectors.EVENT_WRITE if self._outgoing else 0
        full = len(self._incoming) > MAX_LINE
        if self.attached or (self._may_take() and not self._no_more and not full):
            interest |= selectors.EVENT_READ
        if interest == self._interest:
            return
        selector = self._server.selector
        if not self._interest:
            selector.register(self._socket, interest, self._ready)
        elif not interest:
            selector.unregister(self._socket)
        else:
            selector.modify(self._socket, interest, self._ready)
        self._interest = interest
