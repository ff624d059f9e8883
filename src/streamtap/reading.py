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
from streamtap.capture.packets import Chosen
from streamtap.demux import Demux, Tap
from streamtap.errors import CaptureFileError
from streamtap.events import Record, Started, Stopped
from streamtap.flows import FlowState
from streamtap.listener import Heard, Listener, Local, Remote, heard_of
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
from streamtap.pipeline import Listening, Places, Telling, Wanted
from streamtap.streams import Reassembler
from streamtap.tally import COUNTED, Tally
from streamtap.trace import Selection

PART = 8 << 20  # bytes of a long capture that are heard before they are told: who tells must wait
_time = attrgetter("time_ns")


class _Captures(Tally):
    """What there is to say of captures that are read, whatever is made of them.

    heard: what came of them so far.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        super().__init__()
        self.heard = Heard()
        self._stop = stop
        self._open = True

    @property
    def flows(self) -> int:
        return self.heard.flows

    @property
    def problems(self) -> list[CaptureFileError]:
        return self.heard.problems

    def _is_over(self) -> bool:
        if self._stop():
            self.ended = "stop"
        return bool(self.ended)

    def _losses(self) -> dict[str, int]:
        return {
            "packets that the capture itself dropped": self.heard.dropped,
            "bytes that the capture cut off (its snapshot length)": self.heard.missing,
            "flows given up because there were too many": self.heard.evicted,
        }

    def close(self) -> None:
        """A second call does nothing."""
        if self._open:
            self._open = False
            self._release()

    def _release(self) -> None:
        raise NotImplementedError


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
        super().__init__(stop)
        source = open_source(
            paths,
            chosen,
            follow=follow,
            wait=wait,
            acknowledgements=bool(taps),
            max_flows=max_flows,
            part=PART,
        )
        self._names = [os.fsdecode(path) for path in paths]
        # What comes as it happens is told at once; of files, a stretch later, in better order.
        self._arrives = follow or not all(os.path.isfile(name) for name in self._names)
        places = Wanted(selection.places | COUNTED, content)
        self._telling = Telling(places, key=key or host_key())
        listening = Listening(
            places, protocol=protocol, follows=wanted, taps=taps, max_flows=max_flows * 2
        )
        self._listener: Listener
        if source.is_long and not taps:  # these want what is heard here
            self._listener = Remote(source, listening)
        else:
            self._listener = Local(source, listening)

    def batches(self) -> Generator[list[Record], None, None]:
        """All records, some of them of places that were not selected."""
        telling = self._telling
        records: list[Record] = []
        begun = False
        for heard, words in self._listener.stretches(self._is_over):
            self.heard = heard
            if heard.began_ns is not None and not begun:
                begun = True
                started = Started(version=__version__, source=f"capture {', '.join(self._names)}")
                telling.emit(heard.began_ns, started)
                yield telling.flush()
            if not heard.last:
                # In the order of time as far as a stretch goes: what waited, for the end of a
                # burst, belongs before what is newer.
                yield records
                records = []
            for some in words:
                telling.tell(some)
            if heard.whole and not heard.last:
                telling.tick(heard.now_ns)
            records += self.counted(telling.flush())
            if self._arrives:
                yield records
                records = []
        self.ended = self.ended or "end"
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
        telling.emit(self.heard.now_ns, stopped)
        yield telling.flush()

    def _release(self) -> None:
        self._listener.close()


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
        super().__init__(stop)
        self._source = open_source(paths, chosen, follow=follow, wait=wait, max_flows=max_flows)
        self._demux: Demux[None] = Demux(self, wanted=wanted, taps=taps, max_flows=2 * max_flows)

    def batches(self) -> Generator[list[Record], None, None]:
        """No record after each stretch."""
        source, table = self._source, self._demux.table
        for items in source.pieces():
            self._take(items)
            if source.packets != self.heard.packets:
                self.heard = heard_of(source, table.opened)
                yield []
                if self._is_over():
                    break
        self.ended = self.ended or "end"
        self._take(source.finish())
        self.heard = heard_of(source, table.opened)
        self.drops = self._losses()
        yield []

    def _release(self) -> None:
        self._source.close()

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
    CaptureFileError, after what can be read of it. Whoever lets go of it has closed it."""

    def __init__(self, reading: Reading, selection: Selection) -> None:
        self._reading = reading
        self._records = _numbered(reading, selection.places)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        return next(self._records)

    def __del__(self) -> None:
        self.close()  # its processes would wait for somebody who asks

    def close(self) -> None:
        """Ends early; a second call does nothing."""
        self._records.close()
        self._reading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _numbered(reading: Reading, places: Places) -> Generator[Record, None, None]:
    try:
        for batch in reading.batches():
            for record in batch:
                if record.body.place() in places:
                    reading.records += 1
                    yield replace(record, number=reading.records)
    finally:
        reading.close()
    for problem in reading.problems:
        raise problem
