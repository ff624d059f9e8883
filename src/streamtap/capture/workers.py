"""A capture file decoded by several processes, a stretch each at a time.

The file is cut at fixed places. Nobody knows where in its part a record begins: a worker guesses,
and the guess is proved by the part before, whose last record must end exactly there. Where it does
not, the part is done again from the place that is now known.
"""

import ctypes
import os
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from streamtap.capture.container import Layout, Stop
from streamtap.capture.drops import Dropped, Drops
from streamtap.capture.forking import Fork
from streamtap.capture.inputs import Input
from streamtap.capture.packets import SLACK, Chosen
from streamtap.capture.payloads import Payload
from streamtap.capture.reader import BAD, CUT, STRETCH, Buffer, read_head
from streamtap.capture.stretches import Mapped, Stretch, decode_stretch
from streamtap.errors import CaptureFileError, StreamtapError

PAYS = 48 << 20  # bytes of a file from which on more processes are faster
AHEAD = 2  # parts that a worker may have done, or be at, before they are taken in
SMALL = 1 << 14  # bytes of a layout, pickled: so much fits into a pipe that nobody reads just now
OVERHANG = 1 << 17  # bytes that are read behind a part, for the record that crosses its end
CHANGES = 16  # of the layout; after so many, no part is begun before the one before it is known
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


class _Task(NamedTuple):
    """A part to be done. exact: a record begins at `start`. slot: where its payload goes."""

    number: int
    layout: Layout
    start: int
    stop: int
    exact: bool
    slot: int


class _Done(NamedTuple):
    """What a part gave. begin: where its first record begins, -1 if none was found; next: where
    the one behind its last begins, and why no farther; size: of its payload; learned: the layout
    behind it, where what it holds changes what is known of those that follow; dropped: what it
    tells of packets that were lost."""

    begin: int = -1
    next: int = -1
    why: Stop = Stop.END
    found: Stretch | None = None
    size: int = 0
    learned: Layout | None = None
    dropped: tuple[Dropped, ...] = ()
    problem: str = ""


class Workers:
    """Decodes a regular file to its end as it is now, by `count` processes.

    problems, dropped, progress: as of any `StretchSource`.
    """

    def __init__(self, source: Input, chosen: Chosen, count: int, *, part: int = STRETCH) -> None:
        self.problems: list[CaptureFileError] = []
        self._drops = Drops()
        self.progress = 0.0
        self._source = source
        self._part = part
        self._slots = [[Mapped() for _ in range(AHEAD)] for _ in range(count)]
        self._chosen = chosen
        self._forks: list[Fork] = []
        self._pipes: list[Connection] = []
        self._done: dict[int, _Done] = {}  # by the number of the task
        self._tasks = 0
        self._given: deque[_Task] = deque()

    @property
    def dropped(self) -> int:
        return self._drops.total

    @property
    def pids(self) -> list[int]:
        """The processes at work."""
        return [fork.pid for fork in self._forks]

    def __iter__(self) -> Iterator[tuple[Stretch, Payload]]:
        for slots in self._slots:
            work = partial(_work, fd=self._source.fileno(), chosen=self._chosen, slots=slots)
            self._forks.append(Fork(work, self._pipes))
            self._pipes.append(self._forks[-1].pipe)
        try:
            yield from self._parts()
        except CaptureFileError as error:
            self.problems.append(error)

    def _parts(self) -> Iterator[tuple[Stretch, Payload]]:
        layout, at, _ = read_head(self._source)
        size = self._source.size or 0
        changes = 0
        ahead = self._ahead(layout, changes)
        given = at
        while at < size:
            while given < size and len(self._given) < ahead:
                stop = min((given // self._part + 1) * self._part, size)
                self._give(_Task(self._tasks, layout, given, stop, given == at, 0))
                given = stop
            task = self._given.popleft()
            done = self._take(task)
            if at >= task.stop:  # a record covers all of it
                continue
            if done.begin != at:
                # The guess was wrong, or there was none: once more, from where it is known.
                task = task._replace(start=at, exact=True, layout=layout)
                self._pipes[task.number % len(self._pipes)].send(task)
                done = self._take(task)
            if done.found is not None:
                yield done.found, self._slot(task).view(done.size)
            self._drops.add(done.dropped)
            at = done.next
            self.progress = at / size
            if done.problem:
                raise CaptureFileError(self._source.name, at, done.problem)
            if done.why is Stop.BAD:
                raise CaptureFileError(self._source.name, at, BAD)
            if done.learned is not None:
                layout = done.learned
            if done.why is Stop.CHANGE:
                layout, at = self._change(layout, at)
            elif done.why is Stop.END and at < task.stop:
                raise CaptureFileError(self._source.name, at, CUT)
            if layout == task.layout and done.why is Stop.PAUSE:
                task = task._replace(start=at, exact=True)
                self._given.appendleft(task)
                self._pipes[task.number % len(self._pipes)].send(task)
            elif layout != task.layout:
                changes += 1
                ahead = self._ahead(layout, changes)
                while self._given:  # they were begun without knowing
                    self._take(self._given.popleft())
                given = at

    def _ahead(self, layout: Layout, changes: int) -> int:
        """How many parts may be given. A worker may be waiting until what it tells of a part is
        read: meanwhile it must not be sent what waits until the worker reads."""
        if changes >= CHANGES:
            return 1
        return len(self._pipes) * (AHEAD if len(pickle.dumps(layout)) <= SMALL else 1)

    def _slot(self, task: _Task) -> Mapped:
        return self._slots[task.number % len(self._slots)][task.slot]

    def _give(self, task: _Task) -> None:
        count = len(self._pipes)
        task = task._replace(slot=task.number // count % AHEAD)
        self._tasks += 1
        self._given.append(task)
        self._pipes[task.number % count].send(task)

    def _take(self, task: _Task) -> _Done:
        """What became of a task; others' results are kept, so that nobody waits with them."""
        while task.number not in self._done:
            for pipe in wait(self._pipes):
                assert isinstance(pipe, Connection)
                try:
                    number, done = pipe.recv()
                except EOFError as error:
                    raise StreamtapError("a process that decodes the capture ended") from error
                self._done[number] = done
        return self._done.pop(task.number)

    def _change(self, layout: Layout, at: int) -> tuple[Layout, int]:
        """The layout behind a block that changes it, and where that ends."""
        size = 1 << 16
        while True:
            buffer = Buffer(size)
            used = _read(self._source.fileno(), buffer, at, size)
            changed = layout.change(buffer.bytes[:used], 0, at)
            if changed is not None:
                return changed[0], at + changed[1]
            if used < size:
                raise CaptureFileError(self._source.name, at, CUT)
            if size > layout.longest:
                raise CaptureFileError(self._source.name, at, BAD)
            size *= 4

    def close(self) -> None:
        for fork in self._forks:
            fork.end()
        self._forks = []
        self._pipes = []
        for slots in self._slots:
            for slot in slots:
                slot.close()
        self._slots = []
        self._source.close()


def _work(pipe: Connection, *, fd: int, chosen: Chosen, slots: Sequence[Mapped]) -> None:
    """A worker's life: a task after the other."""
    _keep_memory()
    buffer = Buffer(STRETCH + OVERHANG)
    while True:
        task: _Task = pipe.recv()
        if buffer.size < task.stop - task.start + OVERHANG:
            buffer = Buffer(task.stop - task.start + OVERHANG)
        try:
            done = _do(task, fd, buffer, chosen, slots[task.slot])
        except OSError as error:
            done = _Done(task.start, task.start, problem=f"can't be read: {error.strerror}")
        pipe.send((task.number, done))


def _keep_memory() -> None:
    """What was freed is used again, and not given back to the kernel, which would clear it anew:
    each stretch needs as much as the one before."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _do(task: _Task, fd: int, buffer: Buffer, chosen: Chosen, slot: Mapped) -> _Done:
    """The packets of a part, decoded."""
    layout = task.layout
    size = task.stop - task.start
    used = _read(fd, buffer, task.start, size + OVERHANG)
    begin = 0 if task.exact else layout.guess(buffer.bytes[:used], 0, size)
    if begin < 0:
        return _Done()
    records, end, why = layout.walk(buffer.bytes[:used], begin, size)
    if why is Stop.END and end < size and used == size + OVERHANG:  # a record of unusual size
        buffer = Buffer(size + layout.longest)
        used = _read(fd, buffer, task.start, buffer.size)
        records, end, why = layout.walk(buffer.bytes[:used], begin, size)
    done = _Done(task.start + begin, task.start + end, why)
    if not len(records):
        return done
    packets, learned, dropped = layout.read(buffer.bytes[:used], records)
    packets = packets._replace(data=buffer.bytes[: used + SLACK])
    found = decode_stretch(packets, chosen, slot.payloads)
    return done._replace(
        found=found,
        size=slot.payloads.size,
        learned=learned if learned != layout else None,
        dropped=dropped,
    )


def _read(fd: int, buffer: Buffer, at: int, size: int) -> int:
    """Fills the buffer from the file; how much there was, less only at the file's end."""
    used = 0
    while used < size and (count := os.preadv(fd, [buffer.view[used:size]], at + used)):
        used += count
    return used
