"""What a service must not leave behind, and what it holds while it runs."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from helpers.services import is_alive
from streamtap.capture import layout
from streamtap.capture.filters import KEY_BYTES
from streamtap.capture.libbpf import Map
from streamtap.capture.pins import Pins
from streamtap.service.paths import Paths


def processes_of(paths: Paths) -> list[int]:
    """Those that run with these folders."""
    mark = b"STREAMTAP_STATE_DIR=" + os.fsencode(paths.state)
    return [pid for pid in _pids() if mark in _environment(pid) and is_alive(pid)]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def lock_is_free(paths: Paths) -> bool:
    with paths.lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def pins_of(paths: Paths) -> list[str]:
    """Every file that is pinned, below the folder."""
    return sorted(str(one.relative_to(paths.bpf)) for one in paths.bpf.rglob("*"))


def masks_of(paths: Paths) -> tuple[int, int]:
    """Of the pinned callouts: the filters in force, and all that any of their tables names."""
    pins = Pins(paths.pins)
    fd = pins.open_map("settings")
    with mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ) as memory:
        settings = np.frombuffer(bytes(memory[: layout.SETTINGS.itemsize]), layout.SETTINGS)
        enabled, named = int(settings["enabled"][0]), int(settings["known"][0])
        named |= int(settings["ask"][0])
    os.close(fd)
    for name, size in KEY_BYTES.items():
        fd = pins.open_map(name)
        table = Map(fd, name)
        for key in table.keys(size):
            value = table.lookup(key, 8)
            named |= int.from_bytes(value, "little") if value else 0
        os.close(fd)
    return enabled, named


def held_by(pid: int) -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))
