"""What the files of captured packets have in common, whatever their form.

A file is read in three steps, each a function over a buffer and without state, so that several
processes can share them: `Layout.walk` finds where the records of a stretch begin, `Layout.read`
reads their headers by column, and where the form itself changes (the first section of a pcapng
file, or one of the other byte order) `Layout.change` gives the next layout.
"""

from enum import Enum
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamtap.capture.drops import Dropped

# No link type that streamtap reads has larger packets; a record that claims more is damage.
# Wireshark's and libpcap's bound is 262,144; the largest TCP segments of Linux need more (BIG TCP).
LARGEST_PACKET = 1 << 20
MOST_RECORDS = 1 << 18  # of a walk: each takes memory at every step, however short it is
UNKNOWN_LINK = 0xFFFF  # of a packet whose interface was never described


class Stop(Enum):
    """Why a walk ended where it did."""

    END = "end"  # the next record begins at or behind the stop, or is not whole in the data
    CHANGE = "change"  # a block stands there that changes the layout
    PAUSE = (
        "pause"  # enough for one go: the next walk begins there, with the layout behind this one
    )
    BAD = "bad"  # what stands there can't be a record


class Process(msgspec.Struct, frozen=True):
    """The process that a packet belongs to, as far as the file tells; "" and None: it does not.

    cgroup, filter: only files of streamtap's own have them.
    started_ns: Unix time.
    """

    pid: int
    comm: str = ""
    path: str = ""
    uid: int | None = None
    cgroup: str = ""
    filter: str = ""
    started_ns: int | None = None


class Packets(NamedTuple):
    """Packets of a batch, by column.

    data: (m,) uint8, the buffer that `offsets` points into.
    offsets: (n,) int64, first byte of each packet in data.
    captured: (n,) int64, bytes that are there.
    lengths: (n,) int64, bytes on the wire; never less than captured.
    times_ns: (n,) int64, Unix time; 0 where the file tells none.
    links: LINKTYPE_… of all, or (n,) uint16 of each; `UNKNOWN_LINK` where it is not known.
    processes: (n,) int64, index in `identities`, 0 where the process is not known; None where no
        packet of the batch has process data.
    identities: the processes of this batch; the first only stands for "not known".
    ways: (n,) uint8, whether its host received (1) or sent (2) the packet, 0 where it does not
        tell; None as `processes`.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    captured: NDArray[np.int64]
    lengths: NDArray[np.int64]
    times_ns: NDArray[np.int64]
    links: int | NDArray[np.uint16]
    processes: NDArray[np.int64] | None = None
    identities: tuple[Process, ...] = ()
    ways: NDArray[np.uint8] | None = None


class Taken(NamedTuple):
    """What the records of a stretch hold.

    layout: that behind them. How the file is read is the same; what they told of interfaces and
        processes is kept for the packets that follow.
    dropped: what they tell of packets that were lost, in the order of their sections.
    """

    packets: Packets
    layout: "Layout"
    dropped: tuple[Dropped, ...] = ()


class Layout(Protocol):
    """What is known of a file's form at a point of it: a frozen value that can be pickled.

    longest: bound on a record's length in bytes. What claims more is `Stop.BAD`.
    """

    @property
    def longest(self) -> int: ...

    def walk(
        self, data: NDArray[np.uint8], start: int, stop: int
    ) -> tuple[NDArray[np.int64], int, Stop]:
        """Offsets of the records that begin at or behind `start`, where one begins, and before
        `stop`, and lie whole in data; then where the walk ended, and why there.

        Most records hold a packet; of the others `read` keeps what they tell."""
        ...

    def guess(self, data: NDArray[np.uint8], start: int, stop: int) -> int:
        """Where a record most likely begins, from start on and before stop; -1 where no place
        looks right. A guess is proved only by a walk that arrives exactly there."""
        ...

    def read(self, data: NDArray[np.uint8], records: NDArray[np.int64]) -> Taken:
        """What records hold that `walk` found in the same data."""
        ...

    def change(
        self, data: NDArray[np.uint8], at: int, base: int = 0
    ) -> "tuple[Layout, int] | None":
        """The layout behind the block at `at`, and where the next begins; None while the block
        is not whole in data. base: offset of the data in the file, for error messages.

        Raises CaptureFileError where the block can't be what it says.
        """
        ...
