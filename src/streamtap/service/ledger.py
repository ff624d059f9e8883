"""The ledger: which flows sessions have been told of, and not of their end, for the next parser.

A file in the folder of what lives as long as the machine runs. The keeper opens it, the parser
maps it, and it outlives both, however they end: so every `flow.opened` is followed by a
`flow.closed`. It has a slot for each flow; one aligned store makes it valid or free.

It was written by a process without rights, which may have been taken over. Who reads it trusts no
number in it; all that can be made of it is flows that are told of and closed. Memory is allocated
by writing before it is used through the mapping: a full file system is then an error, no signal.
"""

import logging
import mmap
import os
import struct
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.layout import CLOSED_RECORD, OPENED_RECORD, RecordKind, Row
from streamtap.capture.resume import Remembered
from streamtap.errors import StreamtapError
from streamtap.model import Flow

SLOTS = 65_536  # as many flows as are followed at once
HEADER = np.dtype(
    [
        ("stamp", "V32"),  # of this layout and this boot of the machine
        ("used", "<u8"),  # slots, from the first on, that ever held a flow
        ("names", "<u8", (64,)),  # hashes of the filters' names, by bit; 0 for none yet
        ("reserved", "V3544"),
    ]
)
SLOT = np.dtype(
    [
        ("state", "<u8"),
        ("closed", CLOSED_RECORD),  # where the state is ENDING
        ("opened", OPENED_RECORD),
        ("path_length", "<u2"),
        ("cgroup_length", "<u2"),
        ("reserved", "V4"),
        ("texts", "V696"),  # path and cgroup, one behind the other
    ]
)
FREE, OPEN, ENDING = range(3)
SIZE = HEADER.itemsize + SLOTS * SLOT.itemsize  # sparse: memory is taken by what was used
_AT_ONCE = 64  # slots that are allocated together
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STAMP = 32

_opened_row, _closed_row = Row(OPENED_RECORD), Row(CLOSED_RECORD)
_LENGTHS = struct.Struct("<HH4x")


def _offset(dtype: np.dtype[Any], name: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[name][1])


_CLOSED, _OPENED = _offset(SLOT, "closed"), _offset(SLOT, "opened")
_LENGTHS_AT, _TEXTS = _offset(SLOT, "path_length"), _offset(SLOT, "texts")
_FILTERS = _OPENED + _offset(OPENED_RECORD, "filters")
_ROOM = SLOT["texts"].itemsize
_MOST = 1 << 62  # bytes of one connection

_log = logging.getLogger(__name__)


def open_ledger(path: Path) -> int:
    """A descriptor of the ledger at `path`, which is made anew where it is of another boot of the
    machine, of another layout, or damaged. Raises StreamtapError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StreamtapError(f"{path}: {error.strerror}") from error
    try:
        prepare(fd)
    except OSError as error:
        os.close(fd)
        raise StreamtapError(f"{path}: {error.strerror}") from error
    return fd


def prepare(fd: int) -> None:
    """Makes a ledger of a file that is none, or that of another time. Raises OSError."""
    boot = _BOOT_ID.read_bytes()
    layout = repr((HEADER.descr, SLOT.descr, SLOTS)).encode()
    stamp = blake2b(boot + layout, digest_size=_STAMP).digest()
    if os.fstat(fd).st_size == SIZE and os.pread(fd, _STAMP, 0) == stamp:
        return
    os.ftruncate(fd, 0)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, stamp.ljust(HEADER.itemsize, b"\0"), 0)


class Ledger:
    """As `capture.resume.Ledger` says. The descriptor is the caller's, and made by `prepare`.

    The end of a flow counts when `settle` is called, which is to follow the telling of it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._memory = mmap.mmap(fd, SIZE)
        self._bytes = memoryview(self._memory)
        self._words = self._bytes.cast("Q")
        self._header: NDArray[Any] = np.frombuffer(self._memory, HEADER, 1)
        self._rows: NDArray[Any] = np.frombuffer(self._memory, SLOT, SLOTS, HEADER.itemsize)
        self._slots: dict[int, int] = {}
        self._told: list[int] = []
        self._free: list[int] = []
        self._is_full = False
        self._used = 0
        used = min(int(self._header["used"][0]), SLOTS)
        while self._used < used and self._allocate(keep=True):
            pass

    # --- for the reader before -------------------------------------------------------------------

    def recover(self) -> list[Remembered]:
        """The flows that it remembers; to be called once, before anything is told."""
        found: dict[int, tuple[int, Remembered]] = {}
        now_ns = time.monotonic_ns()
        for slot in np.flatnonzero(self._rows["state"][: self._used]).tolist():
            one = self._read(slot, now_ns)
            other = found.get(one.opened["flow_id"]) if one is not None else None
            # Of two lives of a socket the end of the first was just about to be told.
            if one is not None and (
                other is None or one.opened["time_ns"] > other[1].opened["time_ns"]
            ):
                found[one.opened["flow_id"]] = slot, one
        self._slots = {flow_id: slot for flow_id, (slot, _) in found.items()}
        taken = set(self._slots.values())
        self._free = [slot for slot in range(self._used - 1, -1, -1) if slot not in taken]
        for slot in self._free:
            self._set(slot, FREE)
        return [one for _, one in found.values()]

    def _read(self, slot: int, now_ns: int) -> Remembered | None:
        """None for what no callouts and no parser wrote."""
        at = self._at(slot)
        opened = _opened_row.read(self._bytes, at + _OPENED)
        path_length, cgroup_length = _LENGTHS.unpack_from(self._bytes, at + _LENGTHS_AT)
        if not (
            opened["kind"] == RecordKind.OPENED
            and opened["family"] in (4, 6)
            and 0 < opened["flow_id"] < 1 << 63
            and opened["filters"]
            and opened["pid"] < 1 << 31
            and opened["time_ns"] <= now_ns
            and max(opened["passed"]) < _MOST
            and path_length + cgroup_length <= _ROOM
        ):
            return None
        texts = bytes(self._bytes[at + _TEXTS : at + _TEXTS + path_length + cgroup_length])
        state, closed = self._words[at >> 3], None
        if state > ENDING:
            return None
        if state == ENDING:
            closed = _closed_row.read(self._bytes, at + _CLOSED)
            if not (
                closed["kind"] == RecordKind.CLOSED
                and closed["flow_id"] == opened["flow_id"]
                and opened["time_ns"] <= closed["time_ns"] <= now_ns
                and max(closed["bytes_acked"], closed["bytes_received"]) < _MOST
            ):
                return None
        path, cgroup = texts[:path_length], texts[path_length:]
        return Remembered(
            opened | {"candidates": 0}, os.fsdecode(path), os.fsdecode(cgroup), closed
        )

    def name(self, names: Mapping[int, str]) -> None:
        """What filters are called, by bit. No flow is of a filter that has got another's bit."""
        hashes = self._header["names"][0]
        stale = 0
        for bit, name in names.items():
            if hashes[bit] not in (0, _hash(name)):
                stale |= 1 << bit
        if stale:
            self._rows["opened"]["filters"][: self._used] &= np.uint64(~stale & (1 << 64) - 1)
        for bit, name in names.items():
            hashes[bit] = _hash(name)

    def clear(self) -> None:
        """Nothing is remembered any more."""
        self._rows["state"][: self._used] = FREE

    # --- what it is told -------------------------------------------------------------------------

    def opened(self, record: Mapping[str, Any], flow: Flow) -> None:
        if flow.flow_id in self._slots:  # remembered from the reader before
            self.scoped(flow.flow_id, flow.filters)
            return
        if not self._free and not self._allocate():
            return
        slot = self._slots[flow.flow_id] = self._free.pop()
        app = flow.app
        path = os.fsencode(app.path if app is not None else "")
        cgroup = os.fsencode(app.cgroup if app is not None else "")
        if len(path) + len(cgroup) > _ROOM:  # cut, they were others: the keeper is asked again
            path = cgroup = b""
        told = {**record, "filters": flow.filters, "candidates": 0}
        body = _opened_row.write(told) + _LENGTHS.pack(len(path), len(cgroup)) + path + cgroup
        at = self._at(slot) + _OPENED
        self._bytes[at : at + len(body)] = body
        self._set(slot, OPEN)

    def scoped(self, flow_id: int, filters: int) -> None:
        slot = self._slots.get(flow_id)
        if slot is not None:
            self._words[self._at(slot) + _FILTERS >> 3] = filters

    def ending(self, record: Mapping[str, Any]) -> None:
        slot = self._slots.get(record["flow_id"])
        if slot is not None and self._words[self._at(slot) >> 3] == OPEN:
            at = self._at(slot) + _CLOSED
            self._bytes[at : at + CLOSED_RECORD.itemsize] = _closed_row.write(record)
            self._set(slot, ENDING)

    def closed(self, flow_id: int) -> None:
        slot = self._slots.pop(flow_id, None)
        if slot is not None:
            self._told.append(slot)

    def settle(self) -> None:
        """The ends that were given have been told."""
        if self._told:
            for slot in self._told:
                self._set(slot, FREE)
            self._free += self._told
            self._told.clear()

    # --- slots -----------------------------------------------------------------------------------

    def _at(self, slot: int) -> int:
        return HEADER.itemsize + slot * SLOT.itemsize

    def _set(self, slot: int, state: int) -> None:
        self._words[self._at(slot) >> 3] = state

    def _allocate(self, *, keep: bool = False) -> bool:
        """Some more slots, with what they hold or free; False where there is no room for them."""
        count = min(_AT_ONCE, SLOTS - self._used)
        if not count:
            return False
        at, length = self._at(self._used), count * SLOT.itemsize
        try:
            held = os.pread(self._fd, length, at) if keep else bytes(length)
            if os.pwrite(self._fd, held, at) != length:
                raise OSError("no space")
        except OSError as error:
            if not self._is_full:
                self._is_full = True
                _log.warning("no room to remember more than %d flows: %s", self._used, error)
            return False
        self._free += range(self._used + count - 1, self._used - 1, -1)
        self._used += count
        if not keep:
            self._header["used"][0] = self._used
        return True


def _hash(name: str) -> int:
    digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
