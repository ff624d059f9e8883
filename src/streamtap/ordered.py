"""Captures -> ordered bytes: how captures are opened, and the Python API's `streams`."""

import ipaddress
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from streamtap.capture.connections import MAX_FLOWS, Item
from streamtap.capture.inputs import open_input
from streamtap.capture.offline import OfflineSource
from streamtap.capture.packets import Chosen
from streamtap.capture.reader import STRETCH, Merge, Single
from streamtap.capture.stretches import Serial, StretchSource
from streamtap.capture.workers import PAYS, Workers
from streamtap.demux import Demux
from streamtap.flows import FlowState
from streamtap.model import DIRECTIONS, Closed, Direction, Flow, Opened, Scoped, StreamItem
from streamtap.protocols import way_of
from streamtap.streams import Reassembler

MOST_WORKERS = 3  # one process takes in what they decode
Wait = Callable[[float], bool]  # waits so many seconds; true where no more is wanted
Paths = Sequence[str | os.PathLike[str]]


def choose(
    ports: Iterable[int] = (),
    hosts: Iterable[str] = (),
    *,
    tunnels: bool = False,
    boundaries: bool = True,
) -> Chosen:
    """Which connections are read: with one of the ports, and one of the addresses. Raises
    ValueError for what is neither."""
    ports = frozenset(ports)
    for port in ports:
        if not (isinstance(port, int) and 0 <= port <= 0xFFFF):
            raise ValueError(f"{port!r} is no port: 0 to 65535")
    keys = tuple(int.from_bytes(os.urandom(8)) | 1 for _ in range(3))
    packed = (ipaddress.ip_address(host).packed for host in hosts)
    assert len(keys) == 3
    return Chosen(keys, ports, frozenset(packed), tunnels, boundaries)


def open_source(
    paths: Paths,
    chosen: Chosen,
    *,
    follow: bool = False,
    wait: Wait | None = None,
    acknowledgements: bool = False,
    max_flows: int = MAX_FLOWS,
    part: int = STRETCH,
) -> OfflineSource:
    """The source of several captures as one. part: bytes of a long file that are decoded at a time.
    Raises NotFound, PermissionMissing."""
    names = [os.fsdecode(path) for path in paths]
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
            part *= 4 if chosen.ports or chosen.hosts else 1
            stretches = Workers(source, chosen, min(processes, MOST_WORKERS), part=part)
        else:
            stretches = Serial(Single(source), chosen)
    return OfflineSource(
        stretches,
        chosen,
        acknowledgements=acknowledgements,
        max_flows=max_flows,
        way_of=way_of,
    )


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
) -> Generator[StreamPart, None, None]:
    """The ordered bytes of each direction of each flow, with every hole named: for each flow and
    direction parts in stream order, and a `Closed` when the flow has ended.

    ports, hosts: only flows with one of the ports, and one of the addresses, at either end.
    segments: chunks tell the boundaries and times of their segments; else their own end alone.
    Files are opened when the first part is asked for, and closed behind the last, or by `close`.
    Raises NotFound and PermissionMissing; CaptureFileError after what can be read of a file.
    """
    if not paths:
        raise ValueError("nothing to read: no capture is named")
    return _parts(paths, choose(ports, hosts, tunnels=tunnels, boundaries=segments))


def _parts(paths: Paths, chosen: Chosen) -> Generator[StreamPart, None, None]:
    source = open_source(paths, chosen)
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
