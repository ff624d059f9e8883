"""Both directions of an HTTP connection: heads, bodies, and which response answers what.

Each direction is a machine of four states of its own. All that crosses between them is the queue of
requests without a response (`Pairing`), which says whether a response has a body, and whether the
connection became a tunnel. Nothing waits for the other direction.
"""

import re
from collections.abc import Iterator
from typing import ClassVar

from streamtap.events import Event, Malformed, Skipped
from streamtap.model import Direction
from streamtap.protocols._base import FULL, Limits, Verdict
from streamtap.protocols._buffer import drain
from streamtap.protocols.http.body import Chunked, Counted, UntilClose
from streamtap.protocols.http.boundary import confirm, seek_request, seek_response
from streamtap.protocols.http.events import HttpBody, HttpRequest, HttpResponse, HttpTunnel
from streamtap.protocols.http.half import Half, Pairing, State
from streamtap.protocols.http.head import (
    Fields,
    RequestLine,
    StatusLine,
    fields,
    probe_request,
    probe_response,
    request_line,
    status_line,
)

_HEAD_END = re.compile(rb"\n\r?\n")
_BLANK_LINES = re.compile(rb"(?:\r?\n)++")


class HttpParser:
    """One HTTP/1 connection. What a tunnel carries is not looked into."""

    name: ClassVar[str] = "http"
    events: ClassVar[tuple[type[Event], ...]] = (
        HttpRequest,
        HttpResponse,
        HttpBody,
        HttpTunnel,
        Malformed,
        Skipped,
    )

    def __init__(self, *, limits: Limits, midstream: bool) -> None:
        self._halves = tuple(Half(direction, limits, midstream) for direction in Direction)
        self._pairing = Pairing()

    @classmethod
    def probe(cls, to_server: bytes, to_client: bytes) -> Verdict:
        """By a request line or a status line; one direction may be in the middle of a body."""
        verdicts = {
            probe(data)
            for probe, data in ((probe_request, to_server), (probe_response, to_client))
            if data
        }
        if Verdict.YES in verdicts:
            return Verdict.YES
        return Verdict.MORE if Verdict.MORE in verdicts or not verdicts else Verdict.NO

    @classmethod
    def speaks(cls, data: bytes) -> Direction | None:
        """A request or a response."""
        if probe_request(data) is Verdict.YES:
            return Direction.TO_SERVER
        return Direction.TO_CLIENT if probe_response(data) is Verdict.YES else None

    @property
    def sides_apart(self) -> bool:
        return False  # what was asked tells whether the answer has a body

    @property
    def held(self) -> int:
        return sum(len(half.buffer) for half in self._halves)

    def receive(self, direction: Direction, data: bytes | memoryview) -> Iterator[Event]:
        half = self._halves[direction]
        if data and not self._passes(half, len(data)):
            half.buffer.append(data)
            self._advance(half)
            if not half.count():
                self._make_room(half)
        return drain(half.ready)

    def gap(self, direction: Direction, length: int) -> Iterator[Event]:
        half = self._halves[direction]
        self._advance(half)  # the other direction may have begun a tunnel since
        if half.state is State.BODY:
            self._gap_in_body(half, length)
        elif half.state is not State.TUNNEL:
            self._lose(half, "gap")
        half.buffer.pass_over(length)
        half.count()
        return drain(half.ready)

    def end(self, direction: Direction) -> Iterator[Event]:
        half = self._halves[direction]
        self._advance(half)
        if half.state is State.BODY:
            assert half.framing is not None
            half.truncated |= not isinstance(half.framing, UntilClose)
            self._end_body(half, len(half.buffer))
            half.await_head()
        elif half.state is not State.TUNNEL:
            if len(half.buffer) and not self._in_doubt(half):
                half.seek("ended within a head")
            half.skip(len(half.buffer))
            half.flush_skipped()
        half.count()
        half.limits.pool.share(-1)
        return drain(half.ready)

    @staticmethod
    def _in_doubt(half: Half) -> bool:
        """Are the bytes held still part of what is being skipped?"""
        return half.state is State.SEEK or half.confirming

    def _lose(self, half: Half, reason: str) -> None:
        """What is held is passed over; whatever was lost may have held heads."""
        self._pairing.lost(half.is_request)
        if not self._in_doubt(half):
            half.seek(reason)
        half.skip(len(half.buffer))
        half.seek(reason)

    def _make_room(self, half: Half) -> None:
        """All flows together hold too much for what waits here."""
        if half.state is State.BODY:
            self._break_body(half, FULL)
        else:
            self._lose(half, FULL)
        half.count()

    def _passes(self, half: Half, length: int) -> bool:
        # Content in bulk is counted where it lies: storing it would only cost time.
        if len(half.buffer):
            return False
        if half.state is State.TUNNEL:
            half.ready.append(HttpTunnel(offset=half.buffer.offset, length=length))
        elif half.framing is None or not half.framing.swallow(length):
            return False
        else:
            finished = half.framing.finished
            half.tell_body(length, length, finished)
            if finished:
                half.await_head()
        half.buffer.pass_over(length)
        return True

    def _advance(self, half: Half) -> None:
        goes_on = True
        while goes_on:
            match half.state:
                case State.HEAD:
                    goes_on = self._at_head(half)
                case State.BODY:
                    goes_on = self._in_body(half)
                case State.SEEK:
                    goes_on = self._seeking(half)
                case State.TUNNEL:
                    goes_on = False
                    length = len(half.buffer)
                    if length:
                        half.ready.append(HttpTunnel(offset=half.buffer.offset, length=length))
                        half.buffer.skip(length)

    # Heads

    def _at_head(self, half: Half) -> bool:
        buffer = half.buffer
        if half.is_request and not half.start:
            if self._becomes_tunnel(half):
                return True
            if half.may_tunnel:
                return False
        if not len(buffer):
            return False
        if half.start is None:
            blank = buffer.match(_BLANK_LINES)
            if blank > 0:  # RFC 9112 §2.2: tolerated before a request line
                half.skip(blank, "empty line")
                return True
            length = buffer.line(half.limits.line)
            if length == 0:
                return False
            line = buffer.peek(0, length) if length > 0 else b""
            half.start = request_line(line) if half.is_request else status_line(line)
            if half.start is None:
                reason = "request line" if half.is_request else "status line"
                return self._reject(half, f"no {reason}" if line else f"{reason} too long", 1)
            half.start_length = length
            half.scanned = length if half.confirming else length - 1
        if half.confirming:
            length, half.scanned = confirm(buffer, half.scanned, half.limits)
        else:
            stop = min(len(buffer), half.limits.headers)
            length = buffer.search(_HEAD_END, half.scanned, stop)[1]
            if length < 0:
                half.scanned = max(half.start_length - 1, stop - 2)
                length = 0 if len(buffer) < half.limits.headers else -1
        if length < 0:
            return self._reject(half, "head too long", half.scanned)
        if length == 0:
            return False
        half.flush_skipped()
        self._tell_head(half, half.start, length)
        return True

    def _becomes_tunnel(self, half: Half) -> bool:
        tunnel = self._pairing.tunnel
        if half.may_tunnel and not tunnel and len(half.buffer):
            # The answer was not seen yet, or refuses: the bytes themselves tell.
            begin = half.buffer.peek(0, half.limits.probe)
            verdict = probe_request(begin)
            tunnel = verdict is Verdict.NO
            half.may_tunnel = verdict is Verdict.MORE and len(begin) < half.limits.probe
        if tunnel:
            self._pairing.tunnel = True
            half.begin_tunnel()
        return tunnel

    def _reject(self, half: Half, reason: str, confirmed: int) -> bool:
        if half.confirming:
            half.skip(confirmed)
            half.resume_seek()
        else:
            self._pairing.lost(half.is_request)
            half.malformed(reason)
            half.seek(reason)
        return True

    def _tell_head(self, half: Half, start: RequestLine | StatusLine, length: int) -> None:
        block = half.buffer.peek(half.start_length, length - half.start_length)
        found = fields(block, start.version)
        for note in found.notes:
            half.malformed(note)
        half.await_head()
        half.truncated = False
        if isinstance(start, RequestLine):
            self._tell_request(half, start, found, length)
        else:
            self._tell_response(half, start, found, length)
        half.buffer.skip(length)
        if half.framing is not None:
            half.state = State.BODY
        elif half.state is State.SEEK:
            self._pairing.lost(half.is_request)

    def _tell_request(self, half: Half, start: RequestLine, found: Fields, length: int) -> None:
        half.ready.append(
            HttpRequest(
                offset=half.buffer.offset,
                length=length,
                method=start.method,
                target=start.target,
                version=start.version,
                host=found.host or start.authority,
                content_length=_declared(found),
                chunked=found.chunked,
                upgrade=found.upgrade,
                headers=found.headers,
            )
        )
        self._pairing.asked(start.method)
        half.may_tunnel = start.method == "CONNECT" or found.upgrade is not None
        if start.method == "CONNECT":
            return  # RFC 9110 §9.3.6: it has no content
        if found.chunked:
            half.framing = Chunked(half.limits)
        elif found.coded or found.content_length == -1:
            half.seek("length of a body not known")  # RFC 9112 §6.3: a server gives up as well
        elif found.content_length:
            half.framing = Counted(found.content_length)

    def _tell_response(self, half: Half, start: StatusLine, found: Fields, length: int) -> None:
        status = start.status
        method = self._pairing.answered(status)
        half.ready.append(
            HttpResponse(
                offset=half.buffer.offset,
                length=length,
                status=status,
                reason=start.reason,
                version=start.version,
                request_method=method,
                content_type=found.content_type,
                content_length=_declared(found),
                chunked=found.chunked,
                upgrade=found.upgrade,
                headers=found.headers,
            )
        )
        if status >= 200 and not self._pairing.waiting:
            self._halves[Direction.TO_SERVER].may_tunnel = False  # unless it follows now
        # RFC 9112 §6.3, in its order.
        if status == 101 or (method == "CONNECT" and 200 <= status < 300):
            self._pairing.tunnel = True
            half.begin_tunnel()
        elif method == "HEAD" or status < 200 or status in (204, 304):
            return
        elif found.chunked:
            half.framing = Chunked(half.limits)
        elif found.content_length == -1:
            half.seek("length of a body not known")
        elif found.coded or found.content_length is None:
            half.framing = UntilClose()
        elif found.content_length:
            half.framing = Counted(found.content_length)

    # Bodies

    def _in_body(self, half: Half) -> bool:
        framing = half.framing
        assert framing is not None
        if not len(half.buffer):
            return False
        length, spans = framing.take(half.buffer)
        ends = framing.finished or bool(framing.broken)
        half.truncated |= bool(framing.broken)
        half.tell_body(length, sum(span for _, span in spans), ends)
        half.buffer.skip(length)
        if framing.broken:
            self._pairing.lost(half.is_request)
            half.malformed(framing.broken)
            half.seek(framing.broken)
        elif framing.finished:
            half.await_head()
        return ends

    def _gap_in_body(self, half: Half, length: int) -> None:
        framing = half.framing
        assert framing is not None
        half.truncated = True
        if not len(half.buffer) and framing.swallow(length):
            if framing.finished:
                half.tell_body(0, 0, final=True)
                half.await_head()
            return
        self._break_body(half, "gap")

    def _break_body(self, half: Half, reason: str) -> None:
        """Where the body ends is not known any more."""
        half.truncated = True
        self._end_body(half, len(half.buffer))
        self._pairing.lost(half.is_request)
        half.seek(reason)

    def _end_body(self, half: Half, held: int) -> None:
        half.tell_body(held, 0, final=True)
        half.buffer.skip(held)

    # Resynchronisation

    def _seeking(self, half: Half) -> bool:
        if self._pairing.tunnel:
            half.begin_tunnel()
            return True
        seek = seek_request if half.is_request else seek_response
        skip, found, half.scanned = seek(half.buffer, half.scanned, half.limits)
        half.skip(skip)
        if found:
            half.state = State.HEAD
            half.start = None
            half.confirming = True
        return found


def _declared(found: Fields) -> int | None:
    length = found.content_length
    return None if length is None or length < 0 else length
