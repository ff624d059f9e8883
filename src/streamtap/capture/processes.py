"""Whose the packets of a pcapng file are: process blocks, options and comments.

Four ways are in use, and all of them are read:

- a Process Information Block. It has no block type of its own yet: Wireshark (4.7,
  wiretap/pcapng-wireshark-custom.c) carries it in a custom block of its enterprise number 32622,
  entry type 3, little-endian in every section; a process id, then options. The packet has the
  option epb_processid_threadid (draft-ietf-opsawg-pcapng, section 4.3).
- Apple's process block, type 0x80000001, with the process id and options. The packet tells by
  option 32769 which of the section's blocks it means, and by 32771 on whose behalf the process
  acts (wiretap/pcapng-darwin-custom.c).
- a comment of the packet with a line `PID: 1` and others (ptcpdump, internal/writer/pcapng.go).
- the option epb_processid_threadid alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.container import Process
from streamtap.capture.options import COMMENT, PacketOptions, options

CUSTOM = (0x00000BAD, 0x40000BAD)  # may be copied to other files; may not
APPLE = 0x80000001
_WIRESHARK = 32622  # IANA private enterprise number
_ENTRY = 3  # Process Information
_CUSTOM_HEAD = Struct("<II")  # entry type, entry length; behind the enterprise number

# Options of the process blocks. Apple's has only a name, by the same code.
_NAME, _PATH, _UID, _STARTED = 2, 3, 6, 9
# Options of a packet.
_FLAGS = 2  # the lowest two bits: received, or sent
_DROPS = 4  # packets lost since the one before
_PID, _APPLE_PROCESS, _APPLE_ON_BEHALF = 8, 32769, 32771
_PID_LINE = b"PID:"  # what the comment of a packet begins with
_COMM = 15  # characters that Linux keeps of a process's name

Told = tuple[int, int, Process]  # where a process block stands, in which section; what it says

# Blocks kept of a section, the latest: a file of nothing but process blocks must not fill memory.
_MOST = 16_384


@dataclass(frozen=True)
class Processes:
    """What the process blocks of a section said so far.

    count: blocks seen. by_number: by the number of the block in its section.
    """

    count: int = 0
    by_number: dict[int, Process] = field(default_factory=dict)

    def with_blocks(self, blocks: Iterable[Process]) -> "Processes":
        count, by_number = self.count, dict(self.by_number)
        for process in blocks:
            by_number[count] = process
            by_number.pop(count - _MOST, None)
            count += 1
        return Processes(count, by_number)

    def of_packets(
        self,
        said: "Said",
        records: NDArray[np.int64],
        times_ns: NDArray[np.int64],
        sections: NDArray[np.int64],
        told: Sequence[Told],
    ) -> tuple[NDArray[np.int64] | None, tuple[Process, ...], NDArray[np.uint8] | None]:
        """Which process each packet belongs to, as `Packets.processes`, `.identities` and
        `.ways`.

        records: where the packets' blocks begin. sections: of each, counted from this one.
        told: the process blocks that lie among them.
        """
        if not said.anything:
            return None, (), None
        keys = np.zeros(len(records), np.int64)
        whose = sections << 32  # what is told in a section holds there
        identities: dict[Process, int] = {Process(0): 0}

        def key(process: Process) -> int:
            return identities.setdefault(process, len(identities))

        # By section and process id, in the order of the file; section and number of the block.
        by_pid: dict[int, list[tuple[int, Process]]] = {}
        for process in self.by_number.values():
            by_pid.setdefault(process.pid, []).append((-1, process))
        by_number = dict(self.by_number)
        counts = {0: self.count}
        for at, section, process in told:
            by_pid.setdefault(section << 32 | process.pid, []).append((at, process))
            count = counts.get(section, 0)
            by_number[section << 32 | count] = process
            counts[section] = count + 1
        for pid, which in _groups(np.where(said.pids > 0, whose | said.pids, 0), 0):
            if known := by_pid.get(pid):
                chosen = _current(known, records[which], times_ns[which])
                keys[which] = np.array([key(process) for _, process in known])[chosen]
        numbers = np.where((keys == 0) & (said.numbers >= 0), whose | said.numbers, -1)
        for number, which in _groups(numbers, -1):
            if number in by_number:
                keys[which] = key(by_number[number])
        texts: dict[bytes, int] = {}
        for packet in np.flatnonzero((keys == 0) & (said.comments >= 0)).tolist():
            text = said.found.value(said.comments[packet], said.lengths[packet])
            if text not in texts:
                commented = _read_comment(_text(text))
                texts[text] = key(commented) if commented else 0
            keys[packet] = texts[text]
        for pid, which in _groups(np.where(keys == 0, said.pids, 0), 0):
            keys[which] = key(Process(pid))
        return keys, tuple(identities), said.ways


def _current(
    known: list[tuple[int, Process]], records: NDArray[np.int64], times_ns: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Which of the processes that had the same id each packet belongs to.

    That which had started last; if they don't all tell, the last that was told of before.
    """
    started = [process.started_ns for _, process in known]
    if None in started:
        latest = np.searchsorted([at for at, _ in known], records, "right") - 1
    else:
        known.sort(key=lambda one: one[1].started_ns or 0)
        latest = np.searchsorted([one.started_ns or 0 for _, one in known], times_ns, "right") - 1
    return np.maximum(latest, 0)  # none before: the first one


@dataclass(frozen=True)
class Said:
    """What packets say in their options, (n,) each; of their process, 0 or -1 where they don't.

    ways: as in `Packets`. drops: numbers of packets, and where each tells how many were lost before
        it. anything: of a process.
    """

    found: PacketOptions
    pids: NDArray[np.int64]
    numbers: NDArray[np.int64]
    comments: NDArray[np.int64]
    lengths: NDArray[np.int64]
    ways: NDArray[np.uint8]
    drops: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    anything: bool

    @classmethod
    def of(cls, found: PacketOptions, count: int) -> "Said":
        pids = np.zeros(count, np.int64)
        numbers, comments, lengths = (np.full(count, -1, np.int64) for _ in range(3))
        ways = np.zeros(count, np.uint8)
        drops: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        anything = False

        def put(column: NDArray[np.int64], these: NDArray[np.int64]) -> None:
            column[which[these]] = found.u32(at[these])

        for which, codes, at, length in found:
            by_pid = np.flatnonzero((codes == _PID) & (length >= 4))
            process = np.flatnonzero((codes == _APPLE_PROCESS) & (length == 4))
            behalf = np.flatnonzero((codes == _APPLE_ON_BEHALF) & (length == 4))
            behalf = behalf[numbers[which[behalf]] < 0]  # whose socket it is counts for more
            put(pids, by_pid)
            put(numbers, behalf)
            put(numbers, process)
            flags = np.flatnonzero((codes == _FLAGS) & (length == 4))
            ways[which[flags]] = found.u32(at[flags]) & 3
            lost = np.flatnonzero((codes == _DROPS) & (length == 8))
            if len(lost):
                drops.append((which[lost], at[lost]))
            text = np.flatnonzero((codes == COMMENT) & (length >= 4))
            text = text[(found.u32(at[text]) == found.as_u32(_PID_LINE))]
            comments[which[text]], lengths[which[text]] = at[text], length[text]
            anything |= bool(len(by_pid) + len(process) + len(behalf) + len(text))
        return cls(found, pids, numbers, comments, lengths, ways, drops, anything)


def _groups(values: NDArray[np.int64], nothing: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each value but `nothing`, and the indices at which it stands."""
    which = np.flatnonzero(values != nothing)
    which = which[np.argsort(values[which], kind="stable")]
    ends = np.flatnonzero(np.diff(values[which])) + 1
    for indices in np.split(which, ends) if len(which) else ():
        yield int(values[indices[0]]), indices


def read_process(kind: int, body: memoryview, order: str) -> Process | None:
    """The process of a block's body; None where the block is of another sort, or damaged."""
    if kind in CUSTOM:
        if len(body) < 16 or Struct(order + "I").unpack_from(body) != (_WIRESHARK,):
            return None
        entry, length = _CUSTOM_HEAD.unpack_from(body, 4)
        if entry != _ENTRY or not 4 <= length <= len(body) - 12:
            return None
        body, order = body[12 : 12 + length], "<"
    elif len(body) < 4:
        return None
    (pid,) = Struct(order + "I").unpack_from(body)
    known: dict[str, str] = {}
    uid = started_ns = None
    for code, value in options(body, order, 4, len(body)):
        if code == _NAME:
            known["comm"] = _text(value)
        elif kind == APPLE:
            continue  # else it has only an identity of the program's build, by a code used below
        elif code == _PATH:
            known["path"] = _text(value)
        elif code == _UID and len(value) == 4:
            (uid,) = Struct(order + "I").unpack(value)
        elif code == _STARTED and len(value) == 8:
            started_ns = min(Struct(order + "Q").unpack(value)[0], (1 << 63) - 1)
        elif code == COMMENT:
            lines = _lines(_text(value))
            known |= {key: lines[key] for key in ("cgroup", "filter") if key in lines}
    return Process(pid, **known, uid=uid, started_ns=started_ns)


def _read_comment(text: str) -> Process | None:
    lines = _lines(text)
    pid, command = lines.get("PID", ""), lines.get("Cmd", "")
    if not (pid.isascii() and pid.isdigit() and len(pid) <= 10):
        return None
    path = command if command.startswith("/") else ""
    return Process(int(pid), comm=command.rpartition("/")[2][:_COMM], path=path)


def _lines(text: str) -> dict[str, str]:
    """The lines `key: value` of a text."""
    parts = (line.partition(": ") for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in parts if colon}


def _text(data: bytes | memoryview) -> str:
    return str(data, "utf-8", "backslashreplace").rstrip("\0")
