"""The bytes of each direction of each flow in a file of its own, and an index of them.

Files cost system calls more than bytes: a short stream is kept whole and written at once when its
flow ends. Longer ones go out piece by piece. No file stays open in between, so there may be any
number of flows; what is kept of all of them has a bound.

Where writing fails, as on a full disk, the index lists what is there all the same: room for it is
kept from the beginning.

What is in the folder may have been put there by somebody else. So every file is made anew, no
symbolic link is followed, and a file that gets its next piece must be the one that was made.
"""

import errno
import hashlib
import os
import re
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from streamtap.errors import AlreadyExists
from streamtap.events import Record
from streamtap.model import (
    Chunk,
    Closed,
    Direction,
    Endpoint,
    Flow,
    Gap,
    Opened,
    Role,
    Segment,
    StreamItem,
)

INDEX = "index.jsonl"
PIECE = 256 << 10  # bytes of a stream that are kept at most: beyond it a write costs its bytes
HELD = 64 << 20  # the same for all streams together
SMALL = 1024  # bytes: pieces below it are joined, for each costs some that are not counted
RESERVE = 1 << 20  # bytes of the disk that are kept for the index: some thousand lines
RANGES = 1 << 20  # gaps that are kept for all open flows together: 16 bytes each

_AT_ONCE = 1024  # IOV_MAX: pieces at a call
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMELESS = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
_FILE_MODE, _FOLDER_MODE = 0o600, 0o700  # what was said is nobody else's business
_UNSAFE = re.compile(r"[^0-9A-Za-z.]")  # the colons of IPv6, above all
Bytes = bytes | bytearray | memoryview
_encode = msgspec.json.Encoder().encode


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the index: one direction of one flow.

    role: of the end that sends, `src`. length, sha256: of the file. gaps: offset and length in the
        stream of the ranges that the file leaves out, ascending. cut: writing failed, and what came
        behind it is missing.
    """

    file: str
    flow: str
    src: str
    dst: str
    role: Role
    length: int
    sha256: str
    gaps: list[tuple[int, int]]
    cut: bool = False


class _Stream:
    """What is known of a direction. pending: bytes still to be written, `size` in all.
    written: bytes in the file. inode: of the file, once it has been made.
    gaps: offset, length, offset, length ..."""

    __slots__ = (
        "digest",
        "dst",
        "file",
        "flow",
        "gaps",
        "inode",
        "pending",
        "role",
        "size",
        "src",
        "written",
    )

    def __init__(self, flow: Flow, direction: Direction) -> None:
        ends = (flow.local, flow.remote)
        self.src, self.dst = ends if direction is flow.sent else ends[::-1]
        self.role = Role.CLIENT if direction is Direction.TO_SERVER else Role.SERVER
        self.flow = f"{flow.flow_id:x}"
        self.file = f"{self.flow}_{_plain(self.src)}_{_plain(self.dst)}"
        self.pending: list[bytes | bytearray] = []
        self.size = 0
        self.written = 0
        self.digest = hashlib.sha256()
        self.inode = 0
        self.gaps = array("Q")

    def add(self, pieces: Sequence[Bytes]) -> None:
        """They are in the file now."""
        for piece in pieces:
            self.digest.update(piece)
            self.written += len(piece)

    def entry(self, *, cut: bool = False) -> Entry:
        return Entry(
            file=self.file,
            flow=self.flow,
            src=str(self.src),
            dst=str(self.dst),
            role=self.role,
            length=self.written,
            sha256=self.digest.hexdigest(),
            gaps=list(zip(self.gaps[::2], self.gaps[1::2], strict=True)),
            cut=cut,
        )


class Extract:
    """A tap that keeps the ordered bytes, and the sink that writes them to the files of a folder.

    A direction without a byte and without a gap has no file. Of a connection inside the host, both
    ends of which are watched, the end that was opened first has files; with both_ends each has.
    """

    def __init__(self, folder: Path, *, both_ends: bool = False) -> None:
        self._path = folder
        self._both_ends = both_ends
        self._folder = self._index = self._reserve = -1  # descriptors
        self._flows: dict[int, list[_Stream | None]] = {}
        self._held = 0
        self._ranges = 0
        self._lines = bytearray()  # of the index, to be written with the next flush
        self._error: OSError | None = None

    # --- the sink --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return str(self._path)

    def open(self) -> None:
        """Makes the folder, or takes an empty one. Raises AlreadyExists where it is not empty."""
        os.makedirs(self._path, _FOLDER_MODE, exist_ok=True)
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(folder) as entries:
                if any(entries):
                    raise AlreadyExists(
                        f"{self._path} is not empty", "name a new folder, or remove it first"
                    )
            self._index = os.open(INDEX, _CREATE | os.O_APPEND, _FILE_MODE, dir_fd=folder)
        except BaseException:
            os.close(folder)
            raise
        self._folder = folder
        with suppress(OSError):  # not every file system can
            self._reserve = os.open(".", _NAMELESS, _FILE_MODE, dir_fd=folder)
            os.posix_fallocate(self._reserve, 0, RESERVE)

    def write(self, first: int, records: Sequence[Record]) -> None:
        """Bytes are all that is written."""

    def flush(self) -> None:
        """Raises what went wrong since the last one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        try:
            self._write_index()
        except OSError as error:
            self._give_up()
            raise error

    def close(self) -> None:
        if self._folder < 0:
            return
        try:
            for flow_id in list(self._flows):
                self._end(flow_id)
        finally:
            self._give_up()
            self._close()

    def _close(self) -> None:
        try:
            self._write_index()
        finally:
            os.close(self._index)
            os.close(self._folder)
            self._index = self._folder = -1

    # --- the tap ---------------------------------------------------------------------------------

    def opened(self, opened: Opened, first: Flow | None) -> None:
        if self._folder < 0 or self._error is not None:
            return
        if first is not None and not self._both_ends:
            return
        flow = opened.flow
        self._flows[flow.flow_id] = [None, None]
        for direction in Direction:
            if passed := opened.offsets[direction]:
                self._skip(self._stream(flow, direction), 0, passed)

    def segment(self, flow: Flow, segment: Segment) -> None:
        """The bytes in order are all that is wanted."""

    def item(self, flow: Flow, direction: Direction, item: StreamItem) -> None:
        streams = self._flows.get(flow.flow_id)
        if streams is None:
            return
        if type(item) is Chunk:
            stream = streams[direction] or self._stream(flow, direction)
            data = item.data
            if data is None or self._is_cut(stream, item.offset):
                self._skip(stream, item.offset, item.ends[-1] - item.offset)
                return
            try:
                self._keep(stream, data)
            except OSError as error:
                self._fail(error)
        elif type(item) is Gap:
            self._skip(
                streams[direction] or self._stream(flow, direction), item.offset, item.length
            )

    def closed(self, flow: Flow, closed: Closed) -> None:
        try:
            self._end(flow.flow_id)
        except OSError as error:
            self._fail(error)

    # --- streams ---------------------------------------------------------------------------------

    def _stream(self, flow: Flow, direction: Direction) -> _Stream:
        stream = self._flows[flow.flow_id][direction] = _Stream(flow, direction)
        return stream

    def _skip(self, stream: _Stream, offset: int, length: int) -> None:
        """Bytes that the file leaves out."""
        gaps = stream.gaps
        if gaps and gaps[-2] + gaps[-1] == offset:
            gaps[-1] += length
        else:
            gaps.extend((offset, length))
            self._ranges += 1

    def _is_cut(self, stream: _Stream, offset: int) -> bool:
        """There are too many gaps, and the stream is in one of them: it grows, instead of bytes
        that would have another one behind them."""
        gaps = stream.gaps
        return self._ranges >= RANGES and bool(gaps) and gaps[-2] + gaps[-1] == offset

    def _keep(self, stream: _Stream, data: bytes | memoryview) -> None:
        pending, length = stream.pending, len(data)
        if not pending and length >= PIECE:
            self._put(stream, [data])
            return
        if length >= SMALL:
            pending.append(bytes(data))  # no copy, if it is bytes
        elif pending and type(pending[-1]) is bytearray:
            pending[-1] += data
        else:
            pending.append(bytearray(data))
        stream.size += length
        self._held += length
        if stream.size >= PIECE:
            self._put_pending(stream)
        elif self._held > HELD:
            self._make_room()

    def _make_room(self) -> None:
        """The longest go first: most of the short ones are whole when they are written."""
        streams = [one for streams in self._flows.values() for one in streams if one is not None]
        for stream in sorted(streams, key=lambda one: one.size, reverse=True):
            if self._held <= HELD // 2:
                break
            self._put_pending(stream)

    def _end(self, flow_id: int) -> None:
        """The files of a flow are whole: the index may tell of them."""
        streams = self._flows.get(flow_id, [])
        for direction, stream in enumerate(streams):
            if stream is None:
                continue
            self._ranges -= len(stream.gaps) // 2
            self._put_pending(stream, last=True)
            self._lines += _encode(stream.entry()) + b"\n"
            streams[direction] = None
        self._flows.pop(flow_id, None)

    # --- files -----------------------------------------------------------------------------------

    def _put_pending(self, stream: _Stream, *, last: bool = False) -> None:
        pending, stream.pending = stream.pending, []
        self._held -= stream.size
        stream.size = 0
        if pending or not stream.inode:
            self._put(stream, pending, last=last)

    def _put(self, stream: _Stream, pieces: Sequence[Bytes], *, last: bool = False) -> None:
        """Adds to the file, which is made by that."""
        file = os.open(
            stream.file, _APPEND if stream.inode else _CREATE, _FILE_MODE, dir_fd=self._folder
        )
        try:
            if stream.inode or not last:
                inode = os.fstat(file).st_ino
                if stream.inode not in (0, inode):
                    raise OSError(errno.ESTALE, f"{stream.file} was replaced by somebody else")
                stream.inode = inode
            _write_all(file, pieces)
        except OSError:
            status = os.fstat(file)
            stream.inode = stream.inode or status.st_ino
            if stream.inode == status.st_ino:  # some of it may be there
                pieces = [memoryview(b"".join(pieces))[: status.st_size - stream.written]]
                stream.add(pieces)
            raise
        finally:
            os.close(file)
        stream.add(pieces)

    def _write_index(self) -> None:
        if self._lines:
            before = os.fstat(self._index).st_size
            try:
                _write_all(self._index, [self._lines])
            finally:  # what is not there is written when there is room
                del self._lines[: os.fstat(self._index).st_size - before]

    def _fail(self, error: OSError) -> None:
        """The next flush tells; nothing more is kept until then, nor after it."""
        self._error = error
        self._give_up()

    def _give_up(self) -> None:
        """No more is kept. What there is of streams that have not ended is told."""
        for streams in self._flows.values():
            for stream in streams:
                if stream is not None and stream.inode:
                    self._lines += _encode(stream.entry(cut=True)) + b"\n"
        self._flows.clear()
        self._held = self._ranges = 0
        if self._reserve >= 0:  # the index has more room by that
            os.close(self._reserve)
            self._reserve = -1


def _write_all(file: int, pieces: Sequence[Bytes]) -> None:
    for first in range(0, len(pieces), _AT_ONCE):
        part = pieces[first : first + _AT_ONCE]
        left = sum(map(len, part)) - os.writev(file, part)
        if left:  # rarely: a signal, or a disk that is nearly full
            rest = memoryview(b"".join(part))[-left:]
            while rest:
                rest = rest[os.write(file, rest) :]


def _plain(end: Endpoint) -> str:
    """An end as a part of a file's name: the port behind a dot, as netstat has it."""
    return _UNSAFE.sub("-", f"{end.address}.{end.port}")
