"""The control socket, served: who may connect, how much they may ask, what is told of it.

For a loop with one thread: all sockets are non-blocking and registered with the loop's selector,
the data of each key being what is to be called with the events; `expire` does what time brings.
Nothing that a client does, or does not do, holds up another, or takes more than `Bounds` give it.
"""

import contextlib
import errno
import grp
import logging
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from streamtap import __version__
from streamtap.errors import PermissionMissing, StreamtapError
from streamtap.events import ControlRequest
from streamtap.service.bounds import Bounds, Bucket
from streamtap.service.connection import Connection, Later
from streamtap.service.listening import Listener
from streamtap.service.peers import GROUP, ROOT, Peer, peer_of, refusal
from streamtap.service.protocol import ANY_VERSION, AnyRequest, Failure
from streamtap.service.wire import (
    TOLD,
    Malformed,
    decode_request,
    encode_failure,
    failure_of,
    told,
)
from streamtap.trace.text import printable

ACCEPTS = 16  # in one turn of the loop
PAUSE_S = 1.0  # after an accept that failed for want of descriptors or memory
USERS = 256  # whose buckets are kept while they have no connection
_log = logging.getLogger(__name__)


class Service(Protocol):
    """What is served."""

    def handle(self, peer: Peer, request: AnyRequest, client: Connection) -> object:
        """The result of a request that the peer may make: what msgspec can encode, or
        `connection.LATER`. Raises StreamtapError, ValueError, OSError: an error reply."""
        ...

    def session_owner(self, name: str) -> int | None:
        """The user of a recorded session; None where there is no such session."""
        ...

    def on_request(self, asked: ControlRequest) -> None:
        """Told of each request, those that were refused or no requests among them."""
        ...


class _User:
    """What one user has used up. untold: requests not granted that no record tells of.
    waiting: connections whose requests wait for a token, who has waited longest first."""

    def __init__(self, bounds: Bounds, now: float, *, root: bool) -> None:
        rate, burst = bounds.rate, bounds.burst
        if root:
            rate, burst = bounds.root_rate, bounds.root_burst
        self.requests = Bucket(rate, burst, now)
        self.refused = Bucket(bounds.refused_rate, bounds.refused_burst, now)
        self.connections: set[Connection] = set()
        self.waiting: dict[Connection, None] = {}
        self.untold = 0


class ControlServer:
    """Serves `path` from `open` to `close`.

    group: whose members may look. Open it in the process that stays: the lock that tells a living
    service from the socket of a dead one is not inherited by children.
    """

    def __init__(
        self,
        service: Service,
        selector: selectors.BaseSelector,
        path: Path,
        *,
        group: str = GROUP,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.selector = selector
        self.bounds = bounds or Bounds()
        self.clock = clock
        self._service = service
        self._path = path
        try:
            self._gid: int | None = grp.getgrnam(group).gr_gid
        except KeyError:
            self._gid = None
        self._listener: Listener | None = None
        self._paused_until: float | None = None
        self._users: dict[int, _User] = {}

    # --- the listening socket --------------------------------------------------------------

    def open(self) -> None:
        """Raises AlreadyRunning, PermissionMissing, and OSError."""
        self._listener = Listener(self._path, self._gid)
        self.selector.register(self._listener.socket, selectors.EVENT_READ, self._accept)

    @property
    def is_found(self) -> bool:
        """Clients find the socket; its folder may have been swept."""
        return self._listener is not None and self._listener.is_found

    @property
    def is_locked(self) -> bool:
        """Other services find its lock."""
        return self._listener is not None and self._listener.is_locked

    def open_again(self) -> None:
        """Where one of both was removed; connections go on. Raises as `open` does."""
        self._unlisten()
        self.open()

    def close(self) -> None:
        """Ends all connections and takes the socket away; a second call does nothing."""
        for connection in self.connections:
            connection.close()
        self._unlisten()

    def _unlisten(self) -> None:
        if self._listener is not None:
            if self._paused_until is None:
                self.selector.unregister(self._listener.socket)
            self._paused_until = None
            self._listener.close()
            self._listener = None

    @property
    def connections(self) -> list[Connection]:
        return [one for user in self._users.values() for one in user.connections]

    def _accept(self, events: int) -> None:
        if self._listener is None:  # closed in this very turn
            return
        for _ in range(ACCEPTS):
            try:
                accepted, _ = self._listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _log.warning("no connection can be accepted now: %s", error.strerror)
                    self.selector.unregister(self._listener.socket)
                    self._paused_until = self.clock() + PAUSE_S
                    return
                continue  # that client has gone
            accepted.setblocking(False)
            self._admit(accepted)

    def _admit(self, accepted: socket.socket) -> None:
        try:
            peer = peer_of(accepted)
        except OSError:
            accepted.close()
            return
        user = self._user(peer.uid)
        others = [one for one in self.connections if one.peer.uid != ROOT]
        full = len(user.connections) >= (
            self.bounds.root if peer.uid == ROOT else self.bounds.per_user
        )
        if full or (peer.uid != ROOT and len(others) >= self.bounds.connections):
            failure = Failure("too many connections to the service", "close some of them", 1)
            self._tell_refused(peer, "connect", "too many connections")
            with contextlib.suppress(OSError):
                accepted.send(encode_failure(None, __version__, failure))
            accepted.close()
            return
        user.connections.add(Connection(self, accepted, peer))

    # --- what connections ask of us ----------------------------------------------------------

    def gone(self, connection: Connection) -> None:
        user = self._users.get(connection.peer.uid)
        if user is not None:
            user.connections.discard(connection)
            user.waiting.pop(connection, None)

    def may_ask(self, connection: Connection) -> bool:
        """Takes a token; False where its turn is to come. No connection that asks all the time
        keeps the user's others from ever being heard."""
        user = self._user(connection.peer.uid)
        first = next(iter(user.waiting), connection)
        if first is connection and user.requests.take(self.clock()):
            user.waiting.pop(connection, None)
            return True
        user.waiting.setdefault(connection)
        return False

    def may_queue(self, peer: Peer, length: int) -> bool:
        """Is there room for so much more that waits to be read by this user?"""
        pending = sum(one.pending for one in self._user(peer.uid).connections)
        return pending + length <= self.bounds.pending

    def take(self, connection: Connection, line: bytes) -> None:
        """Answers one line."""
        peer = connection.peer
        try:
            request = decode_request(line)
        except Malformed as error:
            head = error.head
            verb = f"{head.verb} " if head is not None and head.verb.isidentifier() else ""
            self._tell_refused(peer, printable(f"{verb}(malformed)", TOLD), "malformed")
            failure = Failure(str(error), code=2)
            if head is not None and head.version not in ("", __version__):
                failure = _other_version(head.version)
            connection.fail(head.id if head is not None else None, failure)
            if head is None:
                connection.end()  # nobody knows where the next request begins
            return
        if request.version not in ("", __version__) and not isinstance(request, ANY_VERSION):
            self._settle(connection, request, _other_version(request.version))
            return
        try:
            refused = refusal(peer, request, self._gid, self._service.session_owner)
            if refused is not None:
                raise refused
            result = self._service.handle(peer, request, connection)
        except (StreamtapError, ValueError, OSError) as error:
            self._settle(connection, request, failure_of(error))
        except Exception as error:
            _log.exception("a request failed: %s", told(request))
            self._settle(connection, request, failure_of(error))
        else:
            if isinstance(result, Later):
                connection.wait_for(request)
            else:
                self._settle(connection, request, result)

    def _settle(self, connection: Connection, request: AnyRequest, outcome: object) -> None:
        """Replies, where the connection is still one of requests, and tells of it."""
        self.told(connection.peer, request, outcome if isinstance(outcome, Failure) else None)
        if connection.attached:
            if isinstance(outcome, Failure):
                connection.close()
        elif isinstance(outcome, Failure):
            connection.fail(request.id, outcome)
        else:
            connection.reply(request.id, outcome)

    def told(self, peer: Peer, request: AnyRequest, failure: Failure | None) -> None:
        if failure is None:
            self._tell(peer, told(request), "granted")
        else:
            word = "refused" if failure.code == PermissionMissing.exit_code else "failed"
            self._tell_not_granted(peer, told(request), f"{word}: {failure.message}")

    def refused(self, peer: Peer, reason: str) -> None:
        """A connection is ended for what it did."""
        self._tell_refused(peer, "(malformed)", reason)

    def _tell_refused(self, peer: Peer, asked: str, reason: str) -> None:
        self._tell_not_granted(peer, asked, f"refused: {reason}")

    def _tell_not_granted(self, peer: Peer, asked: str, result: str) -> None:
        user = self._user(peer.uid)
        if not user.refused.take(self.clock()):
            user.untold += 1
            return
        more = f" ({user.untold} more before it)" if user.untold else ""
        user.untold = 0
        self._tell(peer, asked, printable(result, TOLD) + more)

    def _tell(self, peer: Peer, asked: str, result: str) -> None:
        self._service.on_request(
            ControlRequest(request=asked, user=peer.user, uid=peer.uid, pid=peer.pid, result=result)
        )

    def _user(self, uid: int) -> _User:
        user = self._users.get(uid)
        if user is None:
            now = self.clock()
            if len(self._users) >= USERS:
                self._users = {
                    number: one
                    for number, one in self._users.items()
                    if one.connections or one.untold or not one.requests.is_full(now)
                }
            user = self._users[uid] = _User(self.bounds, now, root=uid == ROOT)
        return user

    # --- time --------------------------------------------------------------------------------

    def expire(self) -> float | None:
        """Does what is due, and tells in how many seconds something will be; None: nothing.

        The loop calls it at each turn, and waits no longer than it says."""
        now = self.clock()
        due: list[float] = []
        if self._paused_until is not None and self._listener is not None:
            if now >= self._paused_until:
                self._paused_until = None
                self.selector.register(self._listener.socket, selectors.EVENT_READ, self._accept)
            else:
                due.append(self._paused_until - now)
        for user in list(self._users.values()):
            for connection in (*user.waiting, *(user.connections - user.waiting.keys())):
                at = connection.expire(now)
                if not connection.throttled:
                    user.waiting.pop(connection, None)
                if at is not None:
                    due.append(max(0.0, at - now))
                if connection.throttled:
                    due.append(user.requests.wait_s(now))
        return min(due, default=None)


def _other_version(version: str) -> Failure:
    return Failure(
        f"the service is streamtap {__version__}, and this is streamtap {printable(version, 64)}",
        "sudo streamtap restart",
    )
