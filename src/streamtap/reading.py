"""Captures -> records: `streamtap read` and the Python API's `read`. The counterpart of `watch` for
what was captured before."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from operator import attrgetter
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from streamtap import __version__
from streamtap.capture.connections import MAX_FLOWS, Item
from streamtap.capture.identity import host_key
from streamtap.capture.offline import OfflineSource
from streamtap.capture.packets import Chosen
from streamtap.demux import Demux, Tap
from streamtap.errors import CaptureFileError
from streamtap.events import Record, Started, Stopped
from streamtap.flows import FlowState
from streamtap.model import (
    DIRECTIONS,
    Content,
    Direction,
    Flow,
    Gap,
    Limit,
    Opened,
    Scoped,
    StreamItem,
)
from streamtap.ordered import Paths, Wait, open_source
from streamtap.pipeline import Pipeline
from streamtap.streams import Reassembler
from streamtap.tally import COUNTED, Tally
from streamtap.trace import Selection

_time = attrgetter("time_ns")


class _Captures(Tally):
    """What there is to say of captures that are read, whatever is made of them."""

    def __init__(self, source: OfflineSource, stop: Callable[[], bool]) -> None:
        super().__init__()
        self.source = source
        self._stop = stop

    @property
    def problems(self) -> list[CaptureFileError]:
        return self.source.problems

    def _losses(self) -> dict[str, int]:
        return {
            "packets that the capture itself dropped": self.source.dropped,
            "bytes that the capture cut off (its snapshot length)": self.source.missing,
            "flows given up because there were too many": self.source.evicted,
        }

    def close(self) -> None:
        self.source.close()


class Reading(_Captures):
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
        source = open_source(
            paths,
            chosen,
            follow=follow,
            wait=wait,
            acknowledgements=bool(taps),
            max_flows=max_flows,
        )
        super().__init__(source, stop)
        self._names = [os.fspath(path) for path in paths]
        # What comes as it happens is told at once; of files, a stretch later, in better order.
        self._arrives = follow or not all(os.path.isfile(name) for name in self._names)
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


class Keeping(_Captures):
    """Captures read for their ordered bytes alone, which taps are shown: nothing is understood, and
    there are no records.

    stop: asked after each stretch.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        chosen: Chosen,
        taps: Sequence[Tap],
        wanted: Callable[[Flow], bool] | None = None,
        follow: bool = False,
        stop: Callable[[], bool] = lambda: False,
        wait: Wait | None = None,
        max_flows: int = MAX_FLOWS,
    ) -> None:
        source = open_source(paths, chosen, follow=follow, wait=wait, max_flows=max_flows)
        super().__init__(source, stop)
        self._demux: Demux[None] = Demux(self, wanted=wanted, taps=taps, max_flows=2 * max_flows)

    @property
    def flows(self) -> int:
        return self._demux.table.opened

    def batches(self) -> Generator[list[Record], None, None]:
        """No record after each stretch."""
        source = self.source
        packets = 0
        for items in source.pieces():
            self._take(items)
            if source.packets != packets:
                packets = source.packets
                yield []
                if self._stop():
                    self.ended = "stop"
                    break
        self.ended = self.ended or "end"
        self._take(source.finish())
        self.drops = self._losses()
        yield []

    def _take(self, items: list[Item]) -> None:
        demux = self._demux
        for closed in demux.feed(items):
            ending = demux.close(closed)
            if ending is None:
                continue
            for direction, left in zip(DIRECTIONS, ending.items, strict=True):
                self.give(ending.state, direction, left)
                stream = ending.state.streams[direction]
                self.bytes += stream.delivered + stream.counted

    # --- of the streams only what is wrong with them is counted -----------------------------------

    def begin(self, state: FlowState[Reassembler, None], opened: Opened) -> None:
        """The taps were told."""

    def unwanted(self, flow: Flow) -> None:
        """Nobody wants it."""

    def refused(self, flow: Flow) -> None:
        self.limits += 1

    def scoped(self, state: FlowState[Reassembler, None], scoped: Scoped) -> None:
        """Captures know no filters."""

    def give(
        self,
        state: FlowState[Reassembler, None],
        direction: Direction,
        items: Sequence[StreamItem],
    ) -> None:
        for item in items:
            if type(item) is Gap:
                self.gaps[item.cause] += 1
            elif type(item) is Limit:
                self.limits += 1


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
