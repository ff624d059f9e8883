"""What the callouts know of filters: tables by which they find the filters of a program, a name, a
user, a cgroup or a process. A filter is a bit, 0 … 63, in the masks that the tables hold."""

import os
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from streamtap.capture import layout
from streamtap.capture.identity import Cgroups, FileKey, descendants, file_key
from streamtap.capture.libbpf import Map
from streamtap.capture.settings import Settings

KEY_BYTES = {  # of the maps that filters are in
    "apps": layout.APP_KEY.itemsize,
    "names": layout.NAME_LENGTH,
    "scripts": layout.COMM_LENGTH,
    "comms": layout.COMM_LENGTH,
    "uids": 4,
    "cgroups": 8,
}
_USES = {
    "comms": layout.ScopeUse.COMM,
    "uids": layout.ScopeUse.UID,
    "cgroups": layout.ScopeUse.CGROUP,
}
HELD_FILES = 1024  # versions of programs; one that was replaced is a candidate if it still starts
_ALL = (1 << 64) - 1
_u32, _u64 = struct.Struct("<I"), struct.Struct("<Q")


class FilterTables:
    """`add_…` may be called at any time. What is added is in force when its filter is enabled."""

    def __init__(self, maps: Mapping[str, Map], settings: Settings, cgroups: Cgroups) -> None:
        self._maps = maps
        self._settings = settings
        self._cgroups = cgroups
        self._held: OrderedDict[FileKey, int] = OrderedDict()
        self._keys: dict[str, set[bytes]] = {name: set() for name in KEY_BYTES}
        self._cgroup_of: dict[int, int] = {}

    def _add_bit(self, map_name: str, key: bytes, bit: int) -> None:
        table = self._maps[map_name]
        before = table.lookup(key, 8)
        mask = (_u64.unpack(before)[0] if before else 0) | 1 << bit
        table.update(key, _u64.pack(mask))
        self._keys[map_name].add(key)

    def _take(self, map_name: str, key: bytes, filters: int) -> int:
        """Takes filters (a mask) out of an entry, which goes with the last one; those left."""
        table = self._maps[map_name]
        value = table.lookup(key, 8)
        left: int = _u64.unpack(value)[0] & ~filters if value else 0
        if left:
            table.update(key, _u64.pack(left))
        else:
            table.delete(key)
            self._keys[map_name].discard(key)
        return left

    def add_program(self, bit: int, path: str) -> None:
        """The executable at `path` is in the filter. Its inode is held, so that its number keeps
        meaning this file; of more than `HELD_FILES` the oldest are known by their names only."""
        key, fd = file_key(path)
        if key in self._held:
            os.close(fd)
        else:
            self._held[key] = fd
        if len(self._held) > HELD_FILES:
            oldest, fd = self._held.popitem(last=False)
            self._take("apps", _app_key(oldest), _ALL)
            os.close(fd)
        self._add_bit("apps", _app_key(key), bit)

    def add_name(self, bit: int, name: str) -> None:
        """A program whose file has this name is a candidate."""
        self._add_bit("names", os.fsencode(name)[: layout.NAME_LENGTH - 1].ljust(64, b"\0"), bit)

    def add_script(self, bit: int, name: str) -> None:
        """A process that was started by this name (script or symbolic link) is a candidate."""
        self._add_bit("scripts", _comm(name), bit)

    def add_comm(self, bit: int, name: str) -> None:
        self._add_bit("comms", _comm(name), bit)
        self._settings.set(use=self._settings.get("use") | layout.ScopeUse.COMM)

    def add_uid(self, bit: int, uid: int) -> None:
        self._add_bit("uids", _u32.pack(uid), bit)
        self._settings.set(use=self._settings.get("use") | layout.ScopeUse.UID)

    def add_cgroup(self, bit: int, path: str) -> None:
        """`path` below the cgroup root, and all cgroups below it; in place of the one that the
        filter had, which was there before this one was made."""
        cgroup_id = self._cgroups.id_of(path)
        before = self._cgroup_of.get(bit)
        if before is not None and before != cgroup_id:
            self._take("cgroups", _u64.pack(before), 1 << bit)
        self._add_bit("cgroups", _u64.pack(cgroup_id), bit)
        self._cgroup_of[bit] = cgroup_id
        self._settings.set(use=self._settings.get("use") | layout.ScopeUse.CGROUP)

    def cgroup_of(self, bit: int) -> int:
        """The id of the cgroup that the filter has; 0 where it was not there yet."""
        return self._cgroup_of.get(bit, 0)

    def ask(self, bit: int) -> None:
        """Every program that is started is a candidate."""
        self._settings.set(ask=self._settings.get("ask") | 1 << bit)

    def add_pid(self, bit: int, pid: int, *, follow_forks: bool = False) -> None:
        """This process is in the filter; with `follow_forks` its descendants, now and later."""
        self._mark_process(pid, **{"inherited" if follow_forks else "own": 1 << bit})
        if not follow_forks:
            return
        known: set[int] = set()
        while new := set(descendants(pid)) - known:
            for child in new:
                self._mark_process(child, inherited=1 << bit)
            known |= new

    def _mark_process(self, pid: int, **masks: int) -> None:
        table, key = self._maps["processes"], _u32.pack(pid)
        process = np.zeros(1, layout.PROCESS)
        before = table.lookup(key, layout.PROCESS.itemsize)
        if before:
            process = np.frombuffer(before, layout.PROCESS).copy()
        else:
            process["process_id"] = (time.monotonic_ns() ^ pid << 40) & (1 << 64) - 1
        for name, mask in masks.items():
            process[name] |= np.uint64(mask)
        table.update(key, process.tobytes())
        self._settings.set(tracked=1)

    def forget(self, filters: int) -> None:
        """These filters (a mask) exist no more."""
        for name, size in KEY_BYTES.items():
            left = [self._take(name, key, filters) for key in self._maps[name].keys(size)]
            if name in _USES and not any(left):
                self._settings.set(use=self._settings.get("use") & ~_USES[name])
        for bit in [bit for bit in self._cgroup_of if filters >> bit & 1]:
            del self._cgroup_of[bit]
        kept = ~filters & _ALL
        self._settings.set(
            ask=self._settings.get("ask") & kept,
            known=self._settings.get("known") & kept,
            enabled=self._settings.get("enabled") & kept,
        )

    def prune(self) -> None:
        """Forget what earlier processes told the callouts and this one did not repeat: files that
        nobody holds open any more, whose numbers may become another's."""
        for name, size in KEY_BYTES.items():
            table = self._maps[name]
            for key in table.keys(size):
                if key not in self._keys[name]:
                    table.delete(key)

    def close(self) -> None:
        """What the tables hold stays."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()


def _app_key(key: FileKey) -> bytes:
    return struct.pack("<QII", key.inode, key.device, 0)


def _comm(name: str) -> bytes:
    return os.fsencode(name)[: layout.COMM_LENGTH - 1].ljust(layout.COMM_LENGTH, b"\0")
