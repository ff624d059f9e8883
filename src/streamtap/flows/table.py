"""The open flows: what belongs to each, which two are ends of one connection, how each ended.

The table knows no reassembler and no parser. It is given a function that makes the stream of
one direction, and keeps a slot for whatever the owner attaches to a flow.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from streamtap.model import App, Closed, Direction, Flow, Opened, Policy, Segment, StreamItem

MAX_FLOWS = 65_536
EARLY_FLOW = 132 * 1024  # bytes kept for a flow not opened yet: the largest segment, and a few
EARLY_TOTAL = 4 << 20  # the same for all such flows
EARLY_COST = 512  # what a kept segment costs beside its bytes
EARLY_NS = 5_000_000_000  # an opening comes within milliseconds of its data, or never
RANGES = 16  # missing ranges in a certificate

# namespace, local address and port, remote address and port
_Ends = tuple[int, str, int, str, int]


class Stream(Protocol):
    """What the table asks of the stream of one direction; counts are bytes."""

    @property
    def delivered(self) -> int: ...
    @property
    def counted(self) -> int: ...
    @property
    def missing(self) -> int: ...
    @property
    def missing_ranges(self) -> Sequence[tuple[int, int]]: ...

    def end(
        self,
        time_ns: int,
        total: int | None = None,
        lost: int | None = None,
        fin: int | None = None,
    ) -> Sequence[StreamItem]: ...


StreamT = TypeVar("StreamT", bound=Stream)
ParserT = TypeVar("ParserT")


class Certificate(msgspec.Struct, frozen=True):
    """How complete what was seen of a flow is; fields as in the record of its end.

    missing: bytes by the kernel's totals that were neither delivered nor counted by policy,
        those before a flow was joined midstream included; None without totals.
    missing_ranges: ("sent" or "received", offset, length), at most `RANGES`; known without totals
        too.
    """

    sent: int
    received: int
    sent_total: int | None
    received_total: int | None
    sent_counted: int
    received_counted: int
    missing: int | None
    complete: bool | None
    missing_ranges: tuple[tuple[str, int, int], ...]
    duration_ns: int


class FlowState(Generic[StreamT, ParserT]):
    """What is known of an open flow.

    streams: indexed by `Direction`.
    before: bytes of each direction that passed before the flow was joined.
    parser: the owner's slot.
    paired: the other end of the connection, while both ends are open.
    peer: the application at that end, kept when it has closed.
    primary: False for the end of a pair that opened second; it stays so.
    last_ns: when it was last active; the owner keeps it up to date where flows may fall idle.
    """

    __slots__ = (
        "before",
        "flow",
        "last_ns",
        "paired",
        "parser",
        "peer",
        "policy",
        "primary",
        "streams",
    )

    def __init__(self, opened: Opened, streams: tuple[StreamT, StreamT]) -> None:
        self.flow = opened.flow
        self.streams = streams
        self.before = opened.offsets
        self.parser: ParserT | None = None
        self.paired: FlowState[StreamT, ParserT] | None = None
        self.peer: App | None = None
        self.primary = True
        self.policy = Policy.FULL
        self.last_ns = opened.flow.opened_ns


class Ending(Generic[StreamT, ParserT]):
    """A flow that was closed: its state, what was left of its streams, and the certificate, which
    is made when it is asked for.

    items: the last chunks and gaps, indexed by `Direction`.
    """

    __slots__ = ("_closed", "items", "state")

    def __init__(
        self,
        state: FlowState[StreamT, ParserT],
        items: tuple[Sequence[StreamItem], Sequence[StreamItem]],
        closed: Closed,
    ) -> None:
        self.state = state
        self.items = items
        self._closed = closed

    @property
    def certificate(self) -> Certificate:
        return _certify(self.state, self._closed)


class _Early:
    """Segments of a flow that has not been opened yet."""

    __slots__ = ("cost", "segments", "time_ns")

    def __init__(self, time_ns: int) -> None:
        self.time_ns = time_ns
        self.cost = 0
        self.segments: list[Segment] = []


class FlowTable(Generic[StreamT, ParserT]):
    """The flows that are open now.

    opened, closed: flows since the beginning. repeated: openings of a flow that was open.
    refused: flows beyond `max_flows`. early_refused, early_expired: segments without an opening,
    beyond the bounds on them and after their time.
    """

    def __init__(
        self,
        make_stream: Callable[[int | None, int], StreamT],
        *,
        max_flows: int = MAX_FLOWS,
        idle_ns: int | None = None,
    ) -> None:
        """make_stream: from the sequence number of the first byte to come, if it is known, and
        its offset. idle_ns: flows silent for longer have ended; None (live) for never.
        """
        self.opened = 0
        self.closed = 0
        self.repeated = 0
        self.refused = 0
        self.early_refused = 0
        self.early_expired = 0
        self._make_stream = make_stream
        self._max_flows = max_flows
        self._idle_ns = idle_ns
        self._idle_due_ns = 0
        self._flows: dict[int, FlowState[StreamT, ParserT]] = {}
        # Flows that may yet find their other end; of those with the same ends, the newest last.
        self._single: dict[_Ends, dict[int, FlowState[StreamT, ParserT]]] = {}
        self._early: dict[int, _Early] = {}  # the oldest first
        self._early_cost = 0
        # The open flow with this id, if there is one. Called for each segment, so not a method.
        self.find: Callable[[int], FlowState[StreamT, ParserT] | None] = self._flows.get

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[FlowState[StreamT, ParserT]]:
        """The open flows, in the order in which they opened."""
        return iter(self._flows.values())

    def open(self, opened: Opened) -> tuple[FlowState[StreamT, ParserT], Sequence[Segment]] | None:
        """The new flow, and the segments that came before its opening, in their order.

        None, and counted, if the flow is open already or there are too many.
        """
        flow = opened.flow
        if flow.flow_id in self._flows:
            self.repeated += 1
            return None
        early = self._claim(flow.flow_id)
        if len(self._flows) >= self._max_flows:
            self.refused += 1
            self.early_refused += len(early)
            return None
        make, sequences, offsets = self._make_stream, opened.sequences, opened.offsets
        state: FlowState[StreamT, ParserT] = FlowState(
            opened, (make(sequences[0], offsets[0]), make(sequences[1], offsets[1]))
        )
        self._flows[flow.flow_id] = state
        self.opened += 1
        self._pair(state)
        return state, early

    def close(self, closed: Closed) -> Ending[StreamT, ParserT] | None:
        """End both streams of a flow and take it out; None if it is not open."""
        state = self._flows.pop(closed.flow_id, None)
        if state is None:
            self.early_expired += len(self._claim(closed.flow_id))
            return None
        self.closed += 1
        if state.paired is not None:
            state.paired.paired = None
            state.paired = None
        if state.flow.app is not None:
            self._forget_single(state)
        totals = closed.totals or (None, None)
        to_server, to_client = state.streams
        items = (
            to_server.end(closed.time_ns, totals[0], closed.lost[0], closed.fins[0]),
            to_client.end(closed.time_ns, totals[1], closed.lost[1], closed.fins[1]),
        )
        return Ending(state, items, closed)

    def early(self, segment: Segment) -> bool:
        """Keep a copy of a segment whose flow is not open, for its opening.

        False, and counted, if there is no room. The owner calls `expire` now and then.
        """
        length = len(segment.data)
        if not length and not segment.counted:
            return True
        cost = EARLY_COST + length
        early = self._early.get(segment.flow_id)
        if (
            (early.cost if early else 0) + cost > EARLY_FLOW
            or self._early_cost + cost > EARLY_TOTAL
            or len(self._flows) >= self._max_flows
        ):
            self.early_refused += 1
            return False
        if early is None:
            early = self._early[segment.flow_id] = _Early(segment.time_ns)
        early.segments.append(
            msgspec.structs.replace(
                segment,
                data=bytes(segment.data),
                ends=tuple(segment.ends),
                times_ns=tuple(segment.times_ns),
            )
        )
        early.cost += cost
        self._early_cost += cost
        return True

    def expire(self, now_ns: int) -> Sequence[Closed]:
        """Forget early segments that nobody claimed; closings of the flows that fell idle.

        The closings are to be handled as if the source had given them.
        """
        while self._early:
            flow_id, early = next(iter(self._early.items()))
            if now_ns - early.time_ns <= EARLY_NS:
                break
            self.early_expired += len(self._claim(flow_id))
        idle_ns = self._idle_ns
        if idle_ns is None or now_ns < self._idle_due_ns:
            return ()
        # A look at every flow, so rarely: an idle flow ends up to a quarter late.
        self._idle_due_ns = now_ns + idle_ns // 4
        return [
            Closed(flow_id, now_ns, "idle")
            for flow_id, state in self._flows.items()
            if now_ns - state.last_ns > idle_ns
        ]

    def _claim(self, flow_id: int) -> Sequence[Segment]:
        early = self._early.pop(flow_id, None)
        if early is None:
            return ()
        self._early_cost -= early.cost
        return early.segments

    def _pair(self, state: FlowState[StreamT, ParserT]) -> None:
        """Join the state with the newest flow that is its mirror image, or let it wait for one."""
        flow = state.flow
        if flow.app is None or flow.local == flow.remote:  # a socket connected to itself
            return
        candidates = self._single.get(_ends(flow, mirrored=True), {})
        other = candidates[next(reversed(candidates))] if candidates else None
        # A capture holds both ends as one flow: there, a mirror image is a port used again.
        if other is None or (other.flow.role is flow.role and not flow.namespace):
            self._single.setdefault(_ends(flow), {})[flow.flow_id] = state
            return
        self._forget_single(other)
        state.paired, other.paired = other, state
        state.peer, other.peer = other.flow.app, flow.app
        state.primary = False

    def _forget_single(self, state: FlowState[StreamT, ParserT]) -> None:
        ends = _ends(state.flow)
        waiting = self._single.get(ends, {})
        waiting.pop(state.flow.flow_id, state)
        if not waiting:
            self._single.pop(ends, {})


def _ends(flow: Flow, mirrored: bool = False) -> _Ends:
    local, remote = (flow.remote, flow.local) if mirrored else (flow.local, flow.remote)
    return flow.namespace, _plain(local.address), local.port, _plain(remote.address), remote.port


def _plain(address: str) -> str:
    """An IPv4 client of a server on an IPv6 socket shows as ::ffff:1.2.3.4 at one end only."""
    return address.removeprefix("::ffff:")


def _certify(state: FlowState[StreamT, ParserT], closed: Closed) -> Certificate:
    """The certificate of a flow whose streams have ended."""
    sent = state.flow.sent
    received = sent.opposite
    totals = closed.totals or (None, None)
    sent_missing, sent_ranges = _missing(state, sent, totals[sent])
    received_missing, received_ranges = _missing(state, received, totals[received])
    ranges = [("sent", *one) for one in sent_ranges]
    ranges += [("received", *one) for one in received_ranges]
    missing = None if closed.totals is None else sent_missing + received_missing
    return Certificate(
        sent=state.streams[sent].delivered,
        received=state.streams[received].delivered,
        sent_total=totals[sent],
        received_total=totals[received],
        sent_counted=state.streams[sent].counted,
        received_counted=state.streams[received].counted,
        missing=missing,
        complete=None if missing is None else missing == 0,
        missing_ranges=tuple(ranges[:RANGES]),
        duration_ns=max(0, closed.time_ns - state.flow.opened_ns),
    )


def _missing(
    state: FlowState[StreamT, ParserT], direction: Direction, total: int | None
) -> tuple[int, list[tuple[int, int]]]:
    """Bytes missing below `total` in a direction; and their ranges, as far as they were kept."""
    stream, before = state.streams[direction], state.before[direction]
    ranges = [*([(0, before)] if before else []), *stream.missing_ranges]
    unlisted = before + stream.missing - sum(length for _, length in ranges)
    if total is not None:  # a gap may reach past it where TCP refused what lay behind
        ranges = [(start, min(length, total - start)) for start, length in ranges if start < total]
    return unlisted + sum(length for _, length in ranges), ranges
