"""The board: memory that the parser writes and the keeper reads, so that what the parser had come
to is known however it ended, and its heartbeat needs no message.

Each value is one aligned store; several of them belong together only roughly.
"""

import mmap
import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SLOTS = 4096  # sessions at once
LOSSES = {  # as `Watch.losses` has them: field, and what was lost
    "lost_segments": "segments for which the ring had no room",
    "control_lost": "openings and closings for which the ring had no room",
    "marks_lost": "sockets that could not be marked",
    "orphans_lost": "first segments whose connection was never seen",
    "refused": "flows beyond the most that are followed",
    "early_refused": "segments of flows that were not known",
}
TOTALS = np.dtype(
    [
        ("beat_ns", "<u8"),  # CLOCK_MONOTONIC, of the last turn
        ("turns", "<u8"),
        ("flows_open", "<u8"),
        ("flows_opened", "<u8"),
        ("records", "<u8"),  # made; each session is told of some of them
        ("bytes", "<u8"),  # delivered
        ("gaps", "<u8"),
        *((name, "<u8") for name in LOSSES),
    ]
)
SESSION = np.dtype(
    [
        ("number", "<u8"),  # of the last record given, or left out
        ("dropped", "<u8"),
    ]
)
BOARD = np.dtype([("totals", TOTALS), ("sessions", SESSION, (SLOTS,))])


class Board:
    """totals: () TOTALS; sessions: (SLOTS,) SESSION. The descriptor is the caller's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, BOARD.itemsize)
        board: NDArray[Any] = np.frombuffer(self._memory, BOARD)
        self.totals: NDArray[Any] = board["totals"][0:1]
        self.sessions: NDArray[Any] = board["sessions"][0]

    @classmethod
    def create(cls) -> Self:
        """All zero."""
        fd = os.memfd_create("board", os.MFD_CLOEXEC)
        os.ftruncate(fd, BOARD.itemsize)
        return cls(fd)

    def set_totals(self, **values: int) -> None:
        for name, value in values.items():
            self.totals[name][0] = value

    def total(self, name: str) -> int:
        return int(self.totals[name][0])

    def set_session(self, slot: int, number: int, dropped: int) -> None:
        session = self.sessions[slot]
        session["number"] = number
        session["dropped"] = dropped

    def session(self, slot: int) -> tuple[int, int]:
        """The last number, and how many records were dropped."""
        session = self.sessions[slot]
        return int(session["number"]), int(session["dropped"])

    def clear(self, slot: int) -> None:
        """The slot is another session's."""
        self.set_session(slot, 0, 0)
