"""The HTTP gateway: MSNP in the bodies of requests and responses.

A session is a chain: each response names the id that the next request shall give. Ids are
credentials; their marks are equal where they are, and that is all it takes. One connection may
carry several sessions, one session may use several connections, and a command may be cut where a
body ends. Within one connection responses come in the order of the requests.
"""

import re
from collections import deque
from collections.abc import Sequence
from urllib.parse import unquote
from weakref import WeakSet

from streamtap.model import Direction, Flow
from streamtap.patterns.links import scope_of
from streamtap.patterns.model import Connect, Meaning
from streamtap.patterns.msnp.client import Place
from streamtap.patterns.msnp.inner import Inner, Memory
from streamtap.patterns.msnp.words import place_of
from streamtap.protocols import Limits
from streamtap.protocols._buffer import ByteBuffer
from streamtap.protocols._redact import redact
from streamtap.protocols.http import HttpBody, HttpRequest, HttpResponse
from streamtap.protocols.http.body import Chunked

SESSIONS = 4096
HELD = 64 * 1024 * 1024  # bytes of unfinished commands of all sessions
PENDING = 64  # requests of a connection without a response; a client has one for each session
SILENT_NS = 120_000_000_000  # a client polls every few seconds
HEADER = "x-msn-messenger"
NS, SB = "NS", "SB"

_TARGET = re.compile(r"(?:\Ahttps?://[^/?#]*)?[^?#]*/gateway\.dll(?:\?|\Z)", re.IGNORECASE)

Key = tuple[str, str]  # scope, and mark of a session id, or where it began while it has none


class Session:
    """One session: what it carries, and where it was last heard of.

    whole: it was seen from its opening.
    """

    def __init__(self, inner: Inner, *, whole: bool) -> None:
        self.inner = inner
        self.whole = whole
        self.key: Key | None = None
        self.held = 0  # bytes of it that are counted
        self.last: Place | None = None
        self.closing = False  # with the body of the response at hand
        self.over = False


class _Body:
    """The body at hand of one direction: whose it is, and how its chunks are cut."""

    def __init__(self, session: Session | None, chunked: bool) -> None:
        self.session = session
        self._framing = Chunked(Limits()) if chunked else None
        self._buffer = ByteBuffer()

    def content(self, data: bytes) -> bytes:
        """What of the bytes of a body is content."""
        if self._framing is None:
            return data
        self._buffer.append(data)
        length, spans = self._framing.take(self._buffer)
        found = b"".join(self._buffer.peek(start, size) for start, size in spans)
        self._buffer.skip(length)
        return found


class _Carrier:
    """One HTTP connection to a gateway. heard: the sessions that it carried and that live."""

    def __init__(self) -> None:
        self.heard: WeakSet[Session] = WeakSet()  # which keeps none of them
        self.pending: deque[Session | None] = deque()
        self.bodies: list[_Body | None] = [None, None]
        self.latest: Session | None = None
        self.orphan: Session | None = None  # its next id was lost

    def awaiting(self) -> Session | None:
        """The one session that it carries, where the last answer to that was not seen: a name that
        nobody knows is then the one that the answer gave."""
        if len(self.heard) > PENDING:
            return None
        living = [session for session in self.heard if not session.over]
        if len(living) == 1 and living[0].whole and living[0] in self.pending:
            return living[0]
        return None


class Gateway:
    """The sessions of all flows, and the connections that carry them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._sessions: dict[Key, Session] = {}
        self._carriers: dict[int, _Carrier] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._sessions)

    # -- requests and responses

    def request(self, flow: Flow, place: Place, event: HttpRequest) -> Sequence[Meaning] | None:
        """The head of a request; None where it is for no gateway."""
        carrier = self._carriers.get(flow.flow_id)
        if event.method != "POST" or not _TARGET.match(event.target):
            if carrier is not None:
                self._asks(carrier, None, event.chunked)
            return None
        if carrier is None:
            carrier = self._carriers[flow.flow_id] = _Carrier()
        scope = scope_of(flow)
        asked = _parameters(event.target.partition("?")[2], "&")
        mark = asked.get("sessionid", "")
        told: list[Meaning] = []
        session: Session | None
        if asked.get("action", "").lower() == "open":
            server = unquote(asked.get("ip", ""))
            target = place_of(server) if server else ""
            inner = Inner(flow, target, self._memory, midstream=False)
            session = Session(inner, whole=True)
            told += [self._opened(place), *self._name(session, _where(place))]
        else:
            session = self._sessions.pop((scope, mark), None)
            if session is None:
                session, carrier.orphan = carrier.orphan, None
                if session is not None and session.over:
                    session = None
            session = session or carrier.awaiting() or self._joined(flow)
            # Until the answer names the next id this one holds: the request may be sent again.
            told += self._name(session, (scope, mark) if mark else _where(place))
        session.last = place
        carrier.latest = session
        carrier.heard.add(session)
        self._asks(carrier, session, event.chunked)
        return told

    def _joined(self, flow: Flow) -> Session:
        """A session whose beginning was not seen."""
        return Session(Inner(flow, "", self._memory, midstream=True), whole=False)

    @staticmethod
    def _opened(place: Place) -> Meaning:
        flow_id, direction, time_ns, offset, length = place
        connect = Connect(offset=offset, length=length, protocol="msnp", service="gateway")
        return Meaning(flow_id, direction, time_ns, connect)

    @staticmethod
    def _asks(carrier: _Carrier, session: Session | None, chunked: bool) -> None:
        if len(carrier.pending) >= PENDING:
            carrier.pending.clear()
        carrier.pending.append(session)
        carrier.bodies[Direction.TO_SERVER] = _Body(session, chunked)

    def response(self, flow: Flow, place: Place, event: HttpResponse) -> Sequence[Meaning] | None:
        """The head of a response; None where it is no gateway's."""
        value = next((value for name, value in event.headers if name.lower() == HEADER), "")
        answer = _parameters(value, ";")
        named = answer.get("sessionid")
        carrier = self._carriers.get(flow.flow_id)
        if carrier is None:
            if not named:
                return None
            carrier = self._carriers[flow.flow_id] = _Carrier()
        if 100 <= event.status < 200:
            return ()
        session = carrier.pending.popleft() if carrier.pending else carrier.latest
        if session is not None and session.over:
            session = None
        if session is None and named:  # the request was not seen, or another is taken for it
            session = carrier.latest = self._joined(flow)
        carrier.bodies[Direction.TO_CLIENT] = _Body(session, event.chunked)
        if session is None:
            return None
        session.last = place
        carrier.heard.add(session)
        told = self._name(session, (scope_of(flow), named) if named else session.key)
        # The word itself was taken for a credential: it is known by its mark.
        ends = answer.get("session", "").lower() in ("close", redact("close"))
        session.closing = ends or event.status != 200
        if session.closing and not event.chunked and not event.content_length:
            told += self._close(session, place)
        return told

    def _name(self, session: Session, key: Key | None) -> list[Meaning]:
        """It is called this from now on; what it costs another session."""
        told: list[Meaning] = []
        if session.key is not None:
            self._sessions.pop(session.key, None)
        session.key = key
        if key is not None:
            if key in self._sessions:  # nobody knows any more which of the two is meant
                told += self._give_up(self._sessions[key])
            self._sessions[key] = session
            if len(self._sessions) > SESSIONS:
                told += self._give_up(next(iter(self._sessions.values())))
        return told

    def _count(self, session: Session) -> list[Meaning]:
        """What it holds may have changed; those heard of longest ago make room."""
        self._held += session.inner.held - session.held
        session.held = session.inner.held
        told: list[Meaning] = []
        while self._held > HELD:
            told += self._give_up(next(iter(self._sessions.values())))
        return told

    def _give_up(self, session: Session) -> list[Meaning]:
        """It has to go, though nobody ended it: what is left of it is told."""
        self._forget(session)
        assert session.last is not None
        return session.inner.closed(session.last, "removed")

    def _forget(self, session: Session) -> None:
        self._name(session, None)
        session.over = True
        self._held -= session.held
        session.held = 0

    def _close(self, session: Session, place: Place) -> list[Meaning]:
        self._forget(session)
        return session.inner.closed(place, "fin")

    # -- bodies

    def body(
        self, flow: Flow, place: Place, event: HttpBody, data: bytes | memoryview | None
    ) -> Sequence[Meaning] | None:
        """Bytes of a body; None where they are of no session."""
        carrier = self._carriers.get(flow.flow_id)
        body = carrier.bodies[place.direction] if carrier is not None else None
        session = body.session if body is not None else None
        if body is None or session is None:
            return None
        if session.over:
            return ()
        session.last = place
        told: list[Meaning] = []
        data = bytes(data or b"")
        content = body.content(data)
        if len(data) != event.length or len(content) != event.payload_length:
            told += session.inner.lost(place)
        elif content:
            told += session.inner.receive(place, content)
        told += self._count(session)
        if session.over:  # it had to make room
            return told
        if event.final and session.closing and place.direction is Direction.TO_CLIENT:
            told += self._close(session, place)
        return told

    def lost(self, flow: Flow, direction: Direction, time_ns: int) -> Sequence[Meaning]:
        """Bytes of a connection were lost: of a body, and heads perhaps."""
        carrier = self._carriers.get(flow.flow_id)
        if carrier is None:
            return ()
        waiting = {session for session in (*carrier.pending, carrier.latest) if session}
        carrier.pending.clear()
        session = carrier.latest
        if session is None or session.last is None or session.over:
            return ()
        carrier.orphan = session if len(waiting) == 1 else None
        return session.inner.lost(session.last._replace(direction=direction, time_ns=time_ns))

    # -- ends

    def closed(self, flow_id: int, time_ns: int, reason: str) -> list[Meaning]:
        """A connection ended. Its sessions may go on over others, unless watching ended."""
        told: list[Meaning] = []
        carrier = self._carriers.pop(flow_id, None)
        if carrier is None or reason not in ("end", "removed"):
            return told
        ended = [
            (session.last, session)
            for session in carrier.heard
            if session.last is not None and session.last.flow_id == flow_id and not session.over
        ]
        for last, session in sorted(ended, key=_time_of):
            self._forget(session)
            told += session.inner.closed(last._replace(time_ns=time_ns), reason)
        return told

    def expire(self, now_ns: int) -> list[Meaning]:
        """Sessions that were silent for long have ended."""
        told: list[Meaning] = []
        while self._sessions:  # in the order in which they were last heard of
            session = next(iter(self._sessions.values()))
            if session.last is None or now_ns - session.last.time_ns < SILENT_NS:
                break
            told += self._close(session, session.last._replace(time_ns=now_ns))
        return told


def _time_of(heard: tuple[Place, Session]) -> tuple[int, int]:
    return heard[0].time_ns, heard[0].offset


def _where(place: Place) -> Key:
    return "", f"{place.flow_id} {place.offset}"


def _parameters(text: str, separator: str) -> dict[str, str]:
    """`name=value` parts, names in lower case."""
    found: dict[str, str] = {}
    for part in text.split(separator):
        name, equals, value = part.strip().partition("=")
        if equals:
            found.setdefault(name.strip().lower(), value.strip())
    return found
