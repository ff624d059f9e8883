"""Captures heard, in this process or in one of its own: stretches of words, to be told here.

To hear and to tell take about the same time. So of a capture that is long enough, one process
hears a stretch while another tells the one before it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from typing import Protocol, TypeVar

import msgspec

from streamtap.capture.connections import Item
from streamtap.capture.forking import Fork
from streamtap.capture.offline import OfflineSource
from streamtap.errors import CaptureFileError, StreamtapError
from streamtap.model import Opened
from streamtap.pipeline import Listening, Word, WordReader, write_words

T = TypeVar("T")
AHEAD = 2  # stretches that may be heard and not yet told


class Heard(msgspec.Struct, frozen=True):
    """What came of captures so far.

    began_ns: when the first flow began, or the first stretch ended without one. whole: there is no
    more of the stretch; of one that gives very many words, the rest comes next. last: there is no
    more of the captures. flows: that were opened. damage: path, offset and reason of each problem.
    The rest as of an `OfflineSource`.
    """

    began_ns: int | None = None
    whole: bool = True
    last: bool = False
    now_ns: int = 0
    flows: int = 0
    packets: int = 0
    missing: int = 0
    evicted: int = 0
    dropped: int = 0
    progress: float | None = None
    passed: dict[str, int] = {}
    damage: tuple[tuple[str, int | None, str], ...] = ()

    @property
    def problems(self) -> list[CaptureFileError]:
        """What is wrong with the captures."""
        return [CaptureFileError(*each) for each in self.damage]


Stop = Callable[[], bool]
Stretch = tuple[Heard, Iterable[Iterable[Word]]]


class Listener(Protocol):
    """Gives words stretch by stretch, to be told before the next one is asked for."""

    def stretches(self, stop: Stop) -> Iterator[Stretch]:
        """stop: asked after each stretch whether the rest is wanted."""
        ...

    def close(self) -> None: ...


class Local:
    """Hears captures in this process."""

    def __init__(self, source: OfflineSource, listening: Listening) -> None:
        self._source = source
        self._listening = listening

    def stretches(self, stop: Stop) -> Iterator[Stretch]:
        for heard, words in self.heard(self._listening.feed, stop):
            yield heard, (words,)
            words.clear()  # told: the next ones need the room

    def heard(
        self, hear: Callable[[list[Item]], Iterable[tuple[T, bool]]], stop: Stop
    ) -> Iterator[tuple[Heard, T]]:
        """What `hear` makes of each stretch, one after the other, and with each whether it is the
        last of the stretch."""
        source, table = self._source, self._listening.table
        began_ns: int | None = None
        for items in source:
            if began_ns is None:
                began_ns = min(
                    (item.flow.opened_ns for item in items if type(item) is Opened),
                    default=source.now_ns,
                )
            for words, whole in hear(items):
                yield heard_of(source, table.opened, began_ns, whole=whole), words
            if stop():
                break
        for words, whole in hear(source.finish()):
            yield heard_of(source, table.opened, began_ns, whole=whole, last=whole), words

    def written(self, stop: Stop) -> Iterator[tuple[Heard, list[bytes]]]:
        """The words of each stretch in pieces, for a `WordReader`."""
        return self.heard(lambda items: write_words(self._listening.hear(items)), stop)

    def close(self) -> None:
        self._source.close()


def heard_of(
    source: OfflineSource,
    flows: int,
    began_ns: int | None = None,
    *,
    whole: bool = True,
    last: bool = False,
) -> Heard:
    """What came of its captures so far."""
    return Heard(
        began_ns=began_ns,
        whole=whole,
        last=last,
        now_ns=source.now_ns,
        flows=flows,
        packets=source.packets,
        missing=source.missing,
        evicted=source.evicted,
        dropped=source.dropped,
        progress=source.progress,
        passed=dict(source.passed),
        damage=tuple((each.path, each.offset, each.reason) for each in source.problems),
    )


class _Written(msgspec.Struct, frozen=True):
    """A stretch: the lengths of its pieces, one behind the other in the file of its turn."""

    heard: Heard
    pieces: list[int]


_TOLD, _STOP = b"", b"stop"  # what is said to the process that hears


class Remote:
    """Hears captures in a process of its own, which is forked here."""

    def __init__(self, source: OfflineSource, listening: Listening) -> None:
        self._reader = WordReader()
        self._files = [os.memfd_create("streamtap", os.MFD_CLOEXEC) for _ in range(AHEAD)]
        local = Local(source, listening)
        self._fork = Fork(partial(_listen, local=local, files=tuple(self._files)))
        local.close()  # it is that process's alone

    @property
    def pid(self) -> int:
        """Of the process that hears."""
        return self._fork.pid

    def stretches(self, stop: Stop) -> Iterator[Stretch]:
        decode = msgspec.msgpack.Decoder(_Written).decode
        pipe, files = self._fork.pipe, self._files
        stopped = False
        for turn in count():
            try:
                written = decode(pipe.recv_bytes())
            except (EOFError, OSError) as error:
                raise StreamtapError("the process that reads the capture has ended") from error
            yield written.heard, self._pieces(files[turn % AHEAD], written.pieces)
            if written.heard.last:
                return
            if not stopped and stop():  # what it heard meanwhile is told still
                stopped = True
                pipe.send_bytes(_STOP)
            pipe.send_bytes(_TOLD)

    def _pieces(self, file: int, lengths: Sequence[int]) -> Iterator[Iterable[Word]]:
        at = 0
        for length in lengths:
            yield self._reader.read(os.pread(file, length, at))
            at += length

    def close(self) -> None:
        self._fork.end()
        for file in self._files:
            os.close(file)
        self._files = []


class _Teller:
    """Who tells what is heard, as the process that hears sees it.

    told: stretches that were. stopped: no more are wanted.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.told = 0
        self.stopped = False

    def is_done(self) -> bool:
        while self._pipe.poll():
            self.heed()
        return self.stopped

    def heed(self) -> None:
        """Waits for the next word of it. Raises EOFError when it has gone."""
        if self._pipe.recv_bytes() == _STOP:
            self.stopped = True
        else:
            self.told += 1


def _listen(pipe: Connection, *, local: Local, files: Sequence[int]) -> None:
    """The life of the process that hears."""
    teller = _Teller(pipe)
    encode = msgspec.msgpack.Encoder().encode
    try:
        for turn, (heard, pieces) in enumerate(local.written(teller.is_done)):
            while teller.told + AHEAD <= turn:
                teller.heed()
            file = files[turn % AHEAD]
            at = 0
            for piece in pieces:
                at += _write(file, piece, at)
            pipe.send_bytes(encode(_Written(heard, [len(piece) for piece in pieces])))
        while True:  # until nobody is there any more
            teller.heed()
    finally:
        local.close()


def _write(file: int, data: bytes, at: int) -> int:
    """All of it; its length."""
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], at + written)
    return written
