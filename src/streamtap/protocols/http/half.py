"""One direction of an HTTP connection, and the little that both directions share."""

from collections import deque
from enum import Enum

from streamtap.events import Event, Malformed, Skipped
from streamtap.model import Direction
from streamtap.protocols._base import Limits
from streamtap.protocols._buffer import ByteBuffer
from streamtap.protocols.http.body import Framing
from streamtap.protocols.http.events import HttpBody
from streamtap.protocols.http.head import RequestLine, StatusLine

_PIPELINED = 256  # requests without a response; clients that pipeline at all send a few
_SKIPPED_PIECE = 64 * 1024  # a long skip is told in pieces of this size, not when it is over


class State(Enum):
    SEEK = "looking for a head"
    HEAD = "at a head"
    BODY = "in a body"
    TUNNEL = "no longer HTTP"


class Pairing:
    """The methods of the requests that have no response yet, and whether a tunnel began."""

    __slots__ = ("_methods", "_stale", "tunnel")

    def __init__(self) -> None:
        self._methods: list[str] | None = []  # few: a deque takes ten times the memory
        self._stale = False
        self.tunnel = False

    @property
    def waiting(self) -> bool:
        """Is a request known that has no response yet?"""
        return bool(self._methods)

    def asked(self, method: str) -> None:
        if self._methods is None:
            return
        if self._stale:
            # Requests were lost, nobody knows how many: take it that this client does not send
            # one before the last was answered.
            self._methods.clear()
            self._stale = False
        if len(self._methods) == _PIPELINED:
            self._methods = None  # from here on no response can be paired
        else:
            self._methods.append(method)

    def answered(self, status: int) -> str | None:
        """The method of the request that a response of this status answers, if it is known."""
        if not self._methods:
            return None
        interim = 100 <= status < 200 and status != 101
        return self._methods[0] if interim else self._methods.pop(0)

    def lost(self, requests: bool) -> None:
        """Heads of one direction were lost. Requests that went before them still pair."""
        if requests:
            self._stale = True
        elif self._methods:
            self._methods.clear()


class Half:
    """One direction: its bytes, its state, and what is ready to be told."""

    __slots__ = (
        "buffer",
        "confirming",
        "counted",
        "framing",
        "is_request",
        "limits",
        "may_tunnel",
        "ready",
        "reason",
        "scanned",
        "skipped",
        "start",
        "start_length",
        "state",
        "truncated",
    )

    def __init__(self, direction: Direction, limits: Limits, midstream: bool) -> None:
        self.is_request = direction is Direction.TO_SERVER
        self.limits = limits
        self.buffer = ByteBuffer()
        self.ready: deque[Event] = deque()
        self.state = State.SEEK if midstream else State.HEAD
        self.reason = "joined midstream"  # of the bytes skipped
        self.skipped = 0  # bytes before the buffer that are not told yet
        self.scanned = 0  # of the buffer, by whatever search is under way
        self.start: RequestLine | StatusLine | None = None  # of the head at the front
        self.start_length = 0
        self.confirming = False  # the head at the front was sought and may be none
        self.framing: Framing | None = None
        self.truncated = False  # bytes of the body were lost
        self.may_tunnel = False  # after CONNECT or an offer to upgrade
        self.counted = 0  # bytes held, as the room that all parsers have knows them
        limits.pool.share(1)

    def count(self) -> bool:
        """What is held counts for all; whether there is room for it."""
        pool, length = self.limits.pool, len(self.buffer)
        pool.held += length - self.counted
        self.counted = length
        return not pool.refuses(length)

    def skip(self, length: int, reason: str = "") -> None:
        """Pass over bytes at the front; told once it is known how far it goes."""
        if reason and reason != self.reason:
            self.flush_skipped()
            self.reason = reason
        self.buffer.skip(length)
        self.skipped += length
        while self.skipped >= _SKIPPED_PIECE:
            self._tell_skipped(_SKIPPED_PIECE)

    def flush_skipped(self) -> None:
        if self.skipped:
            self._tell_skipped(self.skipped)

    def _tell_skipped(self, length: int) -> None:
        offset = self.buffer.offset - self.skipped
        self.skipped -= length
        self.ready.append(Skipped(offset=offset, length=length, reason=self.reason))

    def malformed(self, reason: str) -> None:
        """A remark on what is at the front."""
        self.flush_skipped()
        self.ready.append(Malformed(offset=self.buffer.offset, length=0, reason=reason))

    def tell_body(self, length: int, payload: int, final: bool) -> None:
        """The first `length` bytes, which are still in the buffer, belong to the body."""
        if length or final:
            self.ready.append(
                HttpBody(
                    offset=self.buffer.offset,
                    length=length,
                    payload_length=payload,
                    final=final,
                    truncated=final and self.truncated,
                )
            )

    def seek(self, reason: str) -> None:
        """Look for a head from here on, for another reason than before."""
        self.flush_skipped()
        self.reason = reason
        self.resume_seek()

    def resume_seek(self) -> None:
        """Look on: what was found was no head."""
        self.await_head()
        self.state = State.SEEK

    def begin_tunnel(self) -> None:
        self.flush_skipped()
        self.state = State.TUNNEL
        self.start = None
        self.framing = None

    def await_head(self) -> None:
        self.state = State.HEAD
        self.scanned = 0
        self.start = None
        self.confirming = False
        self.framing = None
