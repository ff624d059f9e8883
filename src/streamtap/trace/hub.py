"""Records to any number of sessions at once, which come and go at any time.

A record is encoded once for each content level that somebody listens at, not once for each session:
sessions that want the same share lists of lines. Nothing here blocks; a session whose reader stalls
loses its own records (`subscriber`). Sessions that begin may ask for what was told just before
(`recall`).
"""

import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from msgspec.structs import replace

from streamtap.events import (
    Body,
    FlowIdentified,
    FlowInfo,
    FlowOpened,
    Place,
    Record,
    StreamGap,
    StreamLimit,
)
from streamtap.model import Content
from streamtap.trace.jsonlines import LineEncoder
from streamtap.trace.recall import KEEP_BYTES, KEEP_S, Kept, Recall
from streamtap.trace.selection import Selection, choose
from streamtap.trace.subscriber import QUEUE_BYTES, Subscriber

EVERY = -1  # a mask of filters: also flows that are in none

Clean = Callable[[Body, Content], Body]
_Wants = tuple[frozenset[Place], int, Content]  # places, mask of filters, content level


class _Audience:
    """Sessions that want the same; lines: what a batch has for them so far."""

    def __init__(self, wants: _Wants) -> None:
        self.wants = wants
        self.places, self.filters, self.content = wants
        self.members: list[Subscriber] = []
        self.lines: list[bytes] = []


class Hub:
    """Gives records to sessions, each a stream socket on which JSON lines arrive.

    clean: takes from a body what a content level does not allow. Of a record it is asked for levels
        below the one that the record was cleaned for.
    keep_bytes, keep_s: bounds of the flight recorder; with 0 bytes there is none.
    queue_bytes: bound of what waits for one session. clock: Unix time in nanoseconds.

    places: where records are wanted by a session, or by the flight recorder, which keeps what is
        selected by default.
    content: the most that is wanted of what was said; not less than META where there is a flight
        recorder, for a session that asks for less is no reason to remember less.
    Both change when a session is attached, detached, or has gone.
    """

    def __init__(
        self,
        *,
        clean: Clean,
        keep_bytes: int = KEEP_BYTES,
        keep_s: float = KEEP_S,
        queue_bytes: int = QUEUE_BYTES,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._clean = clean
        self._clock = clock
        self._queue_bytes = queue_bytes
        self._recall = Recall(keep_bytes, keep_s)
        self._kept_places: frozenset[Place] = choose().places if keep_bytes else frozenset()
        self._encode_own = LineEncoder().encode  # at the level that a record was cleaned for
        self._sessions: dict[str, Subscriber] = {}
        self._audiences: dict[_Wants, _Audience] = {}
        self._audience_of: dict[Subscriber, _Audience] = {}
        self._at: dict[Place, list[_Audience]] = {}
        self._epoll = select.epoll()
        self._by_fd: dict[int, Subscriber] = {}
        self._ready: dict[Subscriber, None] = {}  # something waits, and the socket may take it
        self._stalled: set[Subscriber] = set()
        self._leaving: dict[Subscriber, float] = {}  # until when, by the monotonic clock
        self._arrange()

    @property
    def fd(self) -> int:
        """Readable when `flush` has something to do that is not due to a `give`: a socket takes
        again, or a reader went away."""
        return self._epoll.fileno()

    @property
    def sessions(self) -> Mapping[str, Subscriber]:
        """By name; one that has gone stays until it is detached."""
        return MappingProxyType(self._sessions)

    @property
    def leaving(self) -> int:
        """Sessions that were detached, and take what waits for them: `flush` is to be called now
        and then, to end those whose time is over."""
        return len(self._leaving)

    @property
    def waiting(self) -> bool:
        """Something waits for a session that its socket did not take."""
        return bool(self._leaving) or any(one.queued for one in self._sessions.values())

    def attach(
        self,
        name: str,
        out: socket.socket,
        selection: Selection,
        *,
        content: Content = Content.META,
        filters: int = EVERY,
        after: int = 0,
        dropped: int = 0,
        since_ns: int | None = None,
        last: bool = True,
        resumed: bool = False,
        opening: Sequence[Record] = (),
    ) -> None:
        """Begins a session on `out`, which belongs to the hub from here on.

        filters: mask of the filters whose flows are wanted; records of no flow always are.
        after, dropped: of a session that goes on, the number last given and the records lost.
        since_ns: what is remembered and not older comes first. last: it was asked for; records that
            the flight recorder had no room for are told by a `stream.limit` before it.
        resumed: a line feed comes first, for the line before may be cut.
        opening: records that come before all others, whatever the selection; what is remembered
            of the same flows is not told twice.
        Raises ValueError where there is a session of that name; `out` is then as it was.
        """
        if name in self._sessions:
            raise ValueError(f"there is a session {name!r} already")
        wants = (selection.places, filters, content)
        remembered: list[Kept] = []
        if since_ns is not None:
            self._recall.forget(self._clock())
            remembered = [
                (record, length)
                for record, length in self._recall.since(since_ns)
                if record.body.place() in selection.places and _is_in(record.flow, filters)
            ]
            opening = _without([record for record, _ in remembered], opening)
            if not last:
                ended = _ended([record for record, _ in remembered], opening)
                wanted = [one for one in ended if one.body.place() in selection.places]
                opening = (*opening, *wanted)
            if last:
                opening = (*opening, *self._missing(since_ns))
        first = [(each, len(self._encode(each, content))) for each in opening]
        subscriber = Subscriber(
            out,
            self._encode,
            content=content,
            queue_bytes=self._queue_bytes,
            after=after,
            dropped=dropped,
            resumed=resumed,
            first=first + remembered,
        )
        self._sessions[name] = subscriber
        self._by_fd[out.fileno()] = subscriber
        # A hang-up is always told. What there is to give goes with the next `flush`, to which the
        # owner is woken.
        self._epoll.register(out, select.EPOLLOUT)
        self._stalled.add(subscriber)
        self._seat(subscriber, wants)
        self._arrange()

    def set_filters(self, name: str, filters: int) -> None:
        """The session wants the flows of these filters from the next `give` on. Raises KeyError."""
        subscriber = self._sessions[name]
        if not subscriber.gone:
            places, _, content = self._unseat(subscriber).wants
            self._seat(subscriber, (places, filters, content))
            self._arrange()

    def detach(self, name: str, *, wait_s: float = 0.0) -> None:
        """Ends a session. It is given nothing more; what waits is sent as the socket takes it, for
        so long at most, then it is closed. Its name is free at once. Raises KeyError."""
        subscriber = self._sessions.pop(name)
        if subscriber.gone:
            return
        more = subscriber.drain()
        if not more or wait_s <= 0:
            self._part(subscriber)
            return
        self._leaving[subscriber] = time.monotonic() + wait_s
        self._unseat(subscriber)
        self._arrange()
        if subscriber not in self._stalled:
            self._watch(subscriber, True)

    def give(self, records: Sequence[Record]) -> None:
        """Records to all sessions that want them, and to the flight recorder. Nothing is sent
        before `flush`."""
        kept_places, at, places = self._kept_places, self._at, self.places
        wanted = [record for record in records if record.body.place() in places]
        for record, line in zip(wanted, self._encode_own(wanted), strict=True):
            where = record.body.place()
            if where in kept_places:
                self._recall.add(record, len(line))
            audiences = at.get(where)
            if audiences is not None:
                self._spread(record, line, audiences)
        for audience in self._audiences.values():
            if audience.lines:
                lines, audience.lines = audience.lines, []
                length = sum(map(len, lines))
                for subscriber in audience.members:
                    subscriber.take(lines, length, records[-1].time_ns)
                    if subscriber not in self._stalled:
                        self._ready[subscriber] = None

    def flush(self) -> None:
        """Sends each session what its socket takes, and finds out which readers went away."""
        self._recall.forget(self._clock())
        for fd, events in self._epoll.poll(0):
            subscriber = self._by_fd[fd]
            if events & select.EPOLLHUP:
                subscriber.gone = True
            self._ready[subscriber] = None
        ready, self._ready = self._ready, {}
        for subscriber in ready:
            more = not subscriber.gone and subscriber.push()
            if subscriber.gone or (not more and subscriber in self._leaving):
                self._part(subscriber)
            elif more != (subscriber in self._stalled):
                self._watch(subscriber, more)
        if self._leaving:
            now = time.monotonic()
            for subscriber in [one for one, until in self._leaving.items() if until <= now]:
                self._part(subscriber)

    def close(self) -> None:
        """Ends all sessions as `detach` does, at once. Nothing else may be called afterwards."""
        for name in list(self._sessions):
            self.detach(name)
        for subscriber in list(self._leaving):
            self._part(subscriber)
        self._epoll.close()

    def _encode(self, record: Record, content: Content) -> bytes:
        """The line of the record at a content level."""
        if content < record.content:
            body = self._clean(record.body, content)
            record = replace(record, body=body, content=content)
        return next(self._encode_own((record,)))

    def _spread(self, record: Record, line: bytes, audiences: Sequence[_Audience]) -> None:
        flow = record.flow
        told = {record.content: line}
        for audience in audiences:
            if not _is_in(flow, audience.filters):
                continue
            content = min(audience.content, record.content)
            if content not in told:
                told[content] = self._encode(record, content)
            audience.lines.append(told[content])

    def _missing(self, since_ns: int) -> Sequence[Record]:
        count = self._recall.missing_since(since_ns)
        if not count:
            return ()
        value = self._recall.keep_bytes
        body = StreamLimit(limit="flight recorder", value=value, count=count)
        return (Record(time_ns=since_ns, body=body),)

    def _part(self, subscriber: Subscriber) -> None:
        """Frees everything that belongs to a session."""
        # The descriptor may be open elsewhere too: closing it does not unregister it.
        self._epoll.unregister(subscriber.socket)
        del self._by_fd[subscriber.socket.fileno()]
        subscriber.close()
        self._stalled.discard(subscriber)
        self._ready.pop(subscriber, None)
        if self._leaving.pop(subscriber, None) is None:
            self._unseat(subscriber)
            self._arrange()

    def _seat(self, subscriber: Subscriber, wants: _Wants) -> None:
        audience = self._audiences.setdefault(wants, _Audience(wants))
        audience.members.append(subscriber)
        self._audience_of[subscriber] = audience

    def _unseat(self, subscriber: Subscriber) -> _Audience:
        """Takes it out of its audience, which is given back."""
        audience = self._audience_of.pop(subscriber)
        audience.members.remove(subscriber)
        if not audience.members:
            del self._audiences[audience.wants]
        return audience

    def _watch(self, subscriber: Subscriber, stalled: bool) -> None:
        self._epoll.modify(subscriber.socket, select.EPOLLOUT if stalled else 0)
        if stalled:
            self._stalled.add(subscriber)
        else:
            self._stalled.remove(subscriber)

    def _arrange(self) -> None:
        """What follows from who is attached."""
        self._at = {}
        for audience in self._audiences.values():
            for where in audience.places:
                self._at.setdefault(where, []).append(audience)
        self.places: frozenset[Place] = self._kept_places | self._at.keys()
        least = Content.META if self._kept_places or not self._audiences else Content.NONE
        self.content = max([least, *(audience.content for audience in self._audiences.values())])


def _without(remembered: Sequence[Record], opening: Sequence[Record]) -> list[Record]:
    """What is said of open flows at first, where what is remembered of them follows: nothing of one
    that is opened there; of another, what had passed ends where what is remembered begins."""
    told: set[tuple[type[Body], str]] = set()
    begins: dict[tuple[str, str | None], int] = {}
    for one in remembered:
        if one.flow is not None:
            told.add((type(one.body), one.flow.flow))
            key = (one.flow.flow, one.direction)
            if (offset := getattr(one.body, "offset", None)) is not None:
                begins[key] = min(offset, begins.get(key, offset))
    kept = []
    for one in opening:
        if one.flow is not None:
            flow = one.flow.flow
            if (FlowOpened, flow) in told or (
                type(one.body) is FlowIdentified and (FlowIdentified, flow) in told
            ):
                continue
            if isinstance(one.body, StreamGap):
                length = begins.get((flow, one.direction), one.body.length) - one.body.offset
                if length <= 0:
                    continue
                if length < one.body.length:
                    one = replace(one, body=replace(one.body, length=length))
        kept.append(one)
    return kept


def _ended(remembered: Sequence[Record], opening: Sequence[Record]) -> list[Record]:
    """Of flows that were open when the session began and have ended since, of which nothing tells
    that they are open: that they were, and what had passed of them."""
    known = {
        one.flow.flow
        for one in (*opening, *remembered)
        if one.flow is not None and type(one.body) is FlowOpened
    }
    found: dict[tuple[str, str | None], Record] = {}
    for one in remembered:
        if one.flow is None or one.flow.flow in known:
            continue
        found.setdefault((one.flow.flow, None), replace(one, body=FlowOpened(midstream=True)))
        offset = getattr(one.body, "offset", None)
        if offset and one.direction is not None and not isinstance(one.body, StreamGap):
            gap = StreamGap(offset=0, length=offset, cause="midstream")
            found.setdefault((one.flow.flow, one.direction), replace(one, body=gap))
    return list(found.values())


def _is_in(flow: FlowInfo | None, filters: int) -> bool:
    return filters == EVERY or flow is None or flow.filters & filters != 0
