"""Capture files -> their packets by column, a stretch of a file at a time.

Memory is bounded by the stretch. What is wrong with a file is told after what can be read of it.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.container import Layout, Packets, Stop
from streamtap.capture.drops import Drops
from streamtap.capture.inputs import Input
from streamtap.capture.packets import SLACK
from streamtap.capture.pcapfile import HEADER, read_header
from streamtap.errors import CaptureFileError

STRETCH = 16 << 20  # bytes of a file that are read at a time
CUT = "the file ends within a record"
BAD = "what stands here is no record"


class Buffer:
    """Memory for a stretch of a file, on huge pages where there are any, and `SLACK` behind it."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size + SLACK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self.view = memoryview(self._map)[:size]
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)


def read_head(source: Input) -> tuple[Layout, int, bytes]:
    """The layout of a capture, where its records begin, and what was read beyond that.

    Raises CaptureFileError, naming what the file is instead.
    """
    head = bytearray(HEADER)
    view, used = memoryview(head), 0
    while used < HEADER and (count := source.readinto(view[used:])):
        used += count
    layout, start = read_header(bytes(head[:used]), source.name)
    return layout, start, bytes(head[start:used])


class Reader:
    """The packets of one capture. After the last, `problem` says what is wrong with it, if
    anything is. dropped: packets that the capture itself says it lost.
    """

    def __init__(self, source: Input, *, stretch: int = STRETCH) -> None:
        self.source = source
        self.problem: CaptureFileError | None = None
        self._drops = Drops()
        self._stretch = stretch

    @property
    def dropped(self) -> int:
        return self._drops.total

    def __iter__(self) -> Iterator[Packets]:
        """Each stretch, whose data has `SLACK` bytes more and is valid until the next."""
        try:
            yield from self._stretches()
        except CaptureFileError as error:
            self._note(error)

    def _note(self, error: CaptureFileError) -> None:
        """What is wrong with it; nothing, where nobody wanted to see its end."""
        if not self.source.stopped:
            self.problem = error

    def _stretches(self) -> Iterator[Packets]:
        layout, base, head = read_head(self.source)
        buffer = Buffer(self._stretch)
        buffer.view[: len(head)] = head
        used = len(head)
        while True:
            used, ended = self._fill(buffer, used)
            data, start, stop = buffer.bytes[:used], 0, Stop.CHANGE
            while stop in (Stop.CHANGE, Stop.PAUSE):
                records, start, stop = layout.walk(data, start, used)
                if len(records):
                    packets, layout, dropped = layout.read(data, records)
                    self._drops.add(dropped)
                    if len(packets.offsets):
                        yield packets._replace(data=buffer.bytes[: used + SLACK])
                if stop is Stop.CHANGE:
                    if (changed := layout.change(data, start, base)) is None:
                        break
                    layout, start = changed
            if stop is Stop.BAD:
                raise CaptureFileError(self.source.name, base + start, BAD)
            if ended and start < used and self.problem is None:
                raise CaptureFileError(self.source.name, base + start, CUT)
            elif ended:  # what ended it, if it was no end, says more than that a record is cut
                return
            elif not start and used == buffer.size:  # a record larger than the buffer
                if used > layout.longest:
                    raise CaptureFileError(self.source.name, base, BAD)
                larger = Buffer(2 * buffer.size)
                larger.view[:used] = buffer.view[:used]
                buffer = larger
            rest = used - start
            buffer.bytes[:rest] = buffer.bytes[start:used]
            base += start
            used = rest

    def _fill(self, buffer: Buffer, used: int) -> tuple[int, bool]:
        """Reads until the buffer is full, or for now there is no more: how much it holds, and
        whether the file has ended."""
        while used < buffer.size:
            try:
                count = self.source.readinto(buffer.view[used:])
            except CaptureFileError as error:
                self._note(error)
                count = 0
            if not count:
                return used, True
            used += count
            if not self.source.ready():
                break
        return used, False


class PacketSource(Protocol):
    """Gives the packets of captures in the order of time.

    problems: what is wrong with them, whole when all is read. dropped: packets that the captures
    themselves say they lost, as far as they were read. progress: the share that was read, None
    where that can't be known.
    """

    @property
    def progress(self) -> float | None: ...

    @property
    def problems(self) -> list[CaptureFileError]: ...

    @property
    def dropped(self) -> int: ...

    def __iter__(self) -> Iterator[Packets]: ...

    def close(self) -> None: ...


class Single:
    """The packets of one capture."""

    def __init__(self, source: Input, *, stretch: int = STRETCH) -> None:
        self._reader = Reader(source, stretch=stretch)

    def __iter__(self) -> Iterator[Packets]:
        return iter(self._reader)

    @property
    def problems(self) -> list[CaptureFileError]:
        return [self._reader.problem] if self._reader.problem is not None else []

    @property
    def dropped(self) -> int:
        return self._reader.dropped

    @property
    def progress(self) -> float | None:
        source = self._reader.source
        return source.position / source.size if source.size else None

    def close(self) -> None:
        self._reader.source.close()


_Stretches = tuple[Reader, Iterator[Packets]]


class Merge:
    """Several captures as one, in the order of time. A file is open only while its turn is.

    problems: what is wrong with them, in the order in which it was found.
    """

    def __init__(self, paths: Sequence[str], open_: Callable[[str], Input]) -> None:
        self.problems: list[CaptureFileError] = []
        self._open = open_
        self._dropped = 0
        self._current: dict[Reader, tuple[Iterator[Packets], Packets]] = {}
        # When each begins, and how to read it; the last is the first.
        self._waiting: list[tuple[int, Callable[[], _Stretches]]] = []
        self._pipes: list[Input] = []  # that were opened, and wait
        try:
            for path in paths:
                self._look(path)
        except BaseException:
            self.close()
            raise
        self._waiting.sort(key=lambda entry: entry[0], reverse=True)

    @property
    def progress(self) -> None:
        return None  # of the files that wait, only the names are known

    @property
    def dropped(self) -> int:
        """Packets that the captures themselves say they lost, as far as they were read."""
        return self._dropped + sum(reader.dropped for reader in self._current)

    def _look(self, path: str) -> None:
        """When it begins. A file is closed until its turn; a pipe can't be opened again."""
        source = self._open(path)
        lasting = source.size is not None
        reader = Reader(source, stretch=1 << 16 if lasting else STRETCH)
        stretches = iter(reader)
        first = next(stretches, None)
        if first is None:
            self._end(reader)
            return
        begins_ns = int(first.times_ns[0])
        if lasting:
            source.close()
            self._waiting.append((begins_ns, partial(self._again, path)))
        else:
            self._pipes.append(source)
            self._waiting.append((begins_ns, lambda: (reader, chain((first,), stretches))))

    def _again(self, path: str) -> _Stretches:
        reader = Reader(self._open(path))
        return reader, iter(reader)

    def __iter__(self) -> Iterator[Packets]:
        current = self._current
        while current or self._waiting:
            latest = self._latest()
            while self._waiting and (latest is None or self._waiting[-1][0] <= latest):
                self._next(*self._waiting.pop()[1]())
                latest = self._latest()
            if latest is None:
                continue
            parts, done = [], []
            for reader, (stretches, packets) in current.items():
                due = packets.times_ns <= latest
                if due.all():
                    parts.append(packets)
                    done.append((reader, stretches))
                elif due.any():
                    parts.append(_some(packets, due))
                    current[reader] = stretches, _some(packets, ~due)
            yield _merged(parts)
            for reader, stretches in done:  # only now: the data of the next may overwrite it
                self._next(reader, stretches)

    def _latest(self) -> int | None:
        """Up to when every capture that is open has been read."""
        ends = (int(packets.times_ns.max()) for _, packets in self._current.values())
        return min(ends, default=None)

    def _next(self, reader: Reader, stretches: Iterator[Packets]) -> None:
        packets = next(stretches, None)
        if packets is not None:
            self._current[reader] = stretches, packets
        else:
            self._current.pop(reader, None)
            self._end(reader)

    def _end(self, reader: Reader) -> None:
        self._close(reader.source)
        self._dropped += reader.dropped
        if reader.problem is not None:
            self.problems.append(reader.problem)

    def _close(self, source: Input) -> None:
        source.close()
        if source in self._pipes:
            self._pipes.remove(source)

    def close(self) -> None:
        for reader in self._current:
            self._close(reader.source)
        for source in self._pipes:
            source.close()
        self._current, self._waiting, self._pipes = {}, [], []


def _some(packets: Packets, which: NDArray[Any]) -> Packets:
    links, processes = packets.links, packets.processes
    return packets._replace(
        offsets=packets.offsets[which],
        captured=packets.captured[which],
        lengths=packets.lengths[which],
        times_ns=packets.times_ns[which],
        links=links if isinstance(links, int) else links[which],
        processes=None if processes is None else processes[which],
        ways=None if packets.ways is None else packets.ways[which],
    )


def _merged(parts: Sequence[Packets]) -> Packets:
    """The packets of several captures in the order of time."""
    if len(parts) == 1:
        return parts[0]
    bases = np.cumsum([0, *(len(part.data) for part in parts)])
    known = np.cumsum([0, *(len(part.identities) for part in parts)])
    whole = Packets(
        data=np.concatenate([part.data for part in parts]),
        offsets=np.concatenate([part.offsets + at for part, at in zip(parts, bases, strict=False)]),
        captured=np.concatenate([part.captured for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        times_ns=np.concatenate([part.times_ns for part in parts]),
        links=np.concatenate(
            [
                np.full(len(part.offsets), part.links, np.uint16)
                if isinstance(part.links, int)
                else part.links
                for part in parts
            ]
        ),
        processes=np.concatenate(
            [
                np.zeros(len(part.offsets), np.int64)
                if part.processes is None
                else part.processes + at
                for part, at in zip(parts, known, strict=False)
            ]
        ),
        identities=tuple(one for part in parts for one in part.identities),
        ways=np.concatenate(
            [
                np.zeros(len(part.offsets), np.uint8) if part.ways is None else part.ways
                for part in parts
            ]
        ),
    )
    return _some(whole, np.argsort(whole.times_ns, kind="stable"))
