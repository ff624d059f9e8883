"""Captures -> records, and captures -> ordered bytes: `streamtap read` and the Python API's `read`
and `streams`. The counterpart of `watch` for what was captured before."""

import ipaddress
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from types import TracebackType
from typing import NamedTuple, Self

from msgspec.structs import replace

from streamtap import __version__
from streamtap.capture.connections import MAX_FLOWS, Item
from streamtap.capture.identity import host_key
from streamtap.capture.inputs import open_input
from streamtap.capture.offline import OfflineSource
from streamtap.capture.packets import Chosen
from streamtap.capture.reader import STRETCH, Merge, Single
from streamtap.capture.stretches import Serial, StretchSource
from streamtap.capture.workers import PAYS, Workers
from streamtap.demux import Demux, Tap
from streamtap.errors import CaptureFileError
from streamtap.events import Record, Started, Stopped
from streamtap.flows import FlowState
from streamtap.model import DIRECTIONS, Closed, Content, Direction, Flow, Opened, Scoped, StreamItem
from streamtap.pipeline import Pipeline
from streamtap.streams import Reassembler
from streamtap.tally import COUNTED, Tally
from streamtap.trace import Selection

MOST_WORKERS = 3  # one process takes in what they decode
_time = attrgetter("time_ns")
Wait = Callable[[float], bool]  # waits so many seconds; true where no more is wanted
Paths = Sequence[str | os.PathLike[str]]


def choose(
    ports: Iterable[int] = (),
    hosts: Iterable[str] = (),
    *,
    tunnels: bool = False,
    boundaries: bool = True,
) -> Chosen:
    """Which connections are read: with one of the ports, and one of the addresses."""
    keys = tuple(int.from_bytes(os.urandom(8)) | 1 for _ in range(3))
    packed = (ipaddress.ip_address(host).packed for host in hosts)
    assert len(keys) == 3
    return Chosen(keys, frozenset(ports), frozenset(packed), tunnels, boundaries)


def open_source(
    paths: Paths,
    chosen: Chosen,
    *,
    follow: bool = False,
    wait: Wait | None = None,
    acknowledgements: bool = False,
    max_flows: int = MAX_FLOWS,
) -> OfflineSource:
    """The source of several captures as one. Raises NotFound, PermissionMissing."""
    names = [os.fspath(path) for path in paths]
    open_ = partial(open_input, follow=follow, wait=wait)
    processes = len(os.sched_getaffinity(0))
    stretches: StretchSource
    if len(names) > 1:
        stretches = Serial(Merge(names, open_), chosen)
    else:
        source = open_(names[0])
        if (
            source.regular
            and not follow
            and (source.size or 0) >= PAYS
            and processes > 1
            and threading.active_count() == 1  # a process with threads can't safely be forked
        ):
            # Of a part of the traffic a longer stretch holds as much as a short one of all.
            part = STRETCH * (4 if chosen.ports or chosen.hosts else 1)
            stretches = Workers(source, chosen, min(processes, MOST_WORKERS), part=part)
        else:
            stretches = Serial(Single(source), chosen)
    return OfflineSource(stretches, chosen, acknowledgements=acknowledgements, max_flows=max_flows)


class Reading(Tally):
    """Captures read from the first packet to the last.

    stop: asked after each stretch. problems: what is wrong with the captures.
    key: of the hashes of names; the host's own by default, so that they are the same as live.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        selection: Selection,
        chosen: Chosen,
        content: Content = Content.META,
        protocol: str | None = None,
        wanted: Callable[[Flow], bool] | None = None,
        taps: Sequence[Tap] = (),
        key: bytes | None = None,
        follow: bool = False,
        stop: Callable[[], bool] = lambda: False,
        wait: Wait | None = None,
        max_flows: int = MAX_FLOWS,
    ) -> None:
        super().__init__()
        self._names = [os.fspath(path) for path in paths]
        self._stop = stop
        # What comes as it happens is told at once; of files, a stretch later, in better order.
        self._arrives = follow or not all(os.path.isfile(name) for name in self._names)
        self.source = open_source(
            paths,
            chosen,
            follow=follow,
            wait=wait,
            acknowledgements=bool(taps),
            max_flows=max_flows,
        )
        self.pipeline = Pipeline(
            content=content,
            places=selection.places | COUNTED,
            protocol=protocol,
            key=key or host_key(),
            wanted=wanted,
            taps=taps,
            max_flows=max_flows * 2,
        )

    @property
    def flows(self) -> int:
        return self.pipeline.table.opened

    @property
    def problems(self) -> list[CaptureFileError]:
        return self.source.problems

    def batches(self) -> Generator[list[Record], None, None]:
        """All records, some of them of places that were not selected."""
        pipeline, source = self.pipeline, self.source
        began_ns: int | None = None
        records: list[Record] = []
        for items in source:
            if began_ns is None:
                began_ns = min(
                    (item.flow.opened_ns for item in items if type(item) is Opened),
                    default=source.now_ns,
                )
                started = Started(version=__version__, source=f"capture {', '.join(self._names)}")
                yield pipeline.note(began_ns, started)
            # In the order of time as far as a stretch goes: what waited in the pipeline, for the
            # end of a burst, belongs before what is newer.
            yield records
            records = self.counted(pipeline.feed(items) + pipeline.tick(source.now_ns))
            records.sort(key=_time)
            if self._arrives:
                yield records
                records = []
            if self._stop():
                self.ended = "stop"
                break
        self.ended = self.ended or "end"
        records += self.counted(pipeline.feed(source.finish()))
        records.sort(key=_time)
        yield records
        self.drops = self._losses()
        stopped = Stopped(
            flows=self.flows,
            bytes=self.bytes,
            records=self.records,
            gaps=self.gaps.total(),
            drops=sum(self.drops.values()),
        )
        yield pipeline.note(source.now_ns, stopped)

    def _losses(self) -> dict[str, int]:
        return {
            "packets that the capture itself dropped": self.source.dropped,
            "bytes that the capture cut off (its snapshot length)": self.source.missing,
            "flows given up because there were too many": self.source.evicted,
        }

    def close(self) -> None:
        self.source.close()


class Capture(Iterator[Record]):
    """Records of captures, numbered from 1. What is wrong with a file is raised, as
    CaptureFileError, after what can be read of it."""

    def __init__(self, reading: Reading, selection: Selection) -> None:
        self._reading = reading
        self._places = selection.places
        self._records = self._numbered()

    def _numbered(self) -> Iterator[Record]:
        reading = self._reading
        try:
            for batch in reading.batches():
                for record in batch:
                    if record.body.place() in self._places:
                        reading.records += 1
                        yield replace(record, number=reading.records)
        finally:
            reading.close()
        for problem in reading.problems:
            raise problem

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        return next(self._records)

    def close(self) -> None:
        """Ends early; a second call does nothing."""
        self._reading.close()
        self._records = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class StreamPart(NamedTuple):
    """What comes next in one direction of a flow: ordered bytes, a hole, or the flow's end."""

    flow: Flow
    direction: Direction
    item: StreamItem | Closed


class _Parts:
    """Collects what the demultiplexer gives."""

    def __init__(self) -> None:
        self.ready: list[StreamPart] = []

    def begin(self, state: FlowState[Reassembler, None], opened: Opened) -> None:
        """A flow begins: told by its first part."""

    def unwanted(self, flow: Flow) -> None:
        """Nobody wants it."""

    def refused(self, flow: Flow) -> None:
        """The source bounds the flows, and counts those it gives up."""

    def scoped(self, state: FlowState[Reassembler, None], scoped: Scoped) -> None:
        """Captures know no filters."""

    def give(
        self,
        state: FlowState[Reassembler, None],
        direction: Direction,
        items: Sequence[StreamItem],
    ) -> None:
        for item in items:
            self.ready.append(StreamPart(state.flow, direction, item))


def streams(
    *paths: str | os.PathLike[str],
    ports: Iterable[int] = (),
    hosts: Iterable[str] = (),
    tunnels: bool = False,
    segments: bool = False,
) -> Iterator[StreamPart]:
    """The ordered bytes of each direction of each flow, with every hole named: for each flow and
    direction parts in stream order, and a `Closed` when the flow has ended.

    ports, hosts: only flows with one of the ports, and one of the addresses, at either end.
    segments: chunks tell the boundaries and times of their segments; else their own end alone.
    Raises NotFound and PermissionMissing; CaptureFileError after what can be read of a file.
    """
    source = open_source(paths, choose(ports, hosts, tunnels=tunnels, boundaries=segments))
    parts = _Parts()
    demux: Demux[None] = Demux(parts, max_flows=2 * MAX_FLOWS)
    try:
        for items in chain(source.pieces(), _last(source)):
            for closed in demux.feed(items):
                ending = demux.close(closed)
                if ending is not None:
                    for direction, left in zip(DIRECTIONS, ending.items, strict=True):
                        if left:
                            parts.give(ending.state, direction, left)
                    parts.ready.append(StreamPart(ending.state.flow, Direction.TO_SERVER, closed))
            ready, parts.ready = parts.ready, []
            yield from ready
    finally:
        source.close()
    for problem in source.problems:
        raise problem


def _last(source: OfflineSource) -> Iterator[list[Item]]:
    """What is left, asked for when all has been read."""
    yield source.finish()
