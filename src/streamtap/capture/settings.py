"""The page that tells the callouts what they are to do, shared with them."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.layout import SETTINGS


class Settings:
    """Fields of SETTINGS: each is in force as soon as it is set."""

    def __init__(self, fd: int) -> None:
        """fd: of the map, which is the caller's."""
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        self._fields: NDArray[Any] = np.frombuffer(self._memory, SETTINGS, count=1)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self._fields[name][0] = value

    def get(self, name: str) -> int:
        return int(self._fields[name][0])

    def close(self) -> None:
        del self._fields
        self._memory.close()
