"""What the kernel holds of streamtap now: callouts of any process, found by their ids.

A set of callouts is the programs of one loaded object, known by their names and by the maps they
share. It counts as attached while it has a link.
"""

import contextlib
import ctypes
import errno
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamtap.capture import layout
from streamtap.capture.callouts import add_up, possible_cpus
from streamtap.capture.compiled import (
    CGROUP_HOOKS,
    FOLDER,
    OPTIONAL_HOOKS,
    PROCESS_HOOKS,
    VARIANTS,
)
from streamtap.capture.layout import FlowFlag
from streamtap.capture.libbpf import LINK_ID, MAP_ID, PROGRAM_ID, Log, Map, Object, check, library
from streamtap.errors import PermissionMissing
from streamtap.model import Endpoint, Policy, Role

LISTER = "list_flows"
_OTHER_ITERATORS = ("seed_processes", "adopt_sockets", "sweep_processes", "sweep_flows")
HOOKS = (*PROCESS_HOOKS, "flow_closed", *CGROUP_HOOKS, *OPTIONAL_HOOKS)
STATES = {  # include/net/tcp_states.h
    1: "established",
    2: "syn-sent",
    3: "syn-received",
    4: "fin-wait-1",
    5: "fin-wait-2",
    6: "time-wait",
    7: "closed",
    8: "close-wait",
    9: "last-ack",
    10: "listen",
    11: "closing",
}
_NAME_LENGTH = 15  # of a program or map: BPF_OBJ_NAME_LEN without its NUL
_MAP_IDS = 64  # at most, of one program
_HOOK_NAMES = {name[:_NAME_LENGTH]: name for name in HOOKS}
# struct bpf_prog_info up to `name`, bpf_map_info up to `name`, bpf_link_info up to `prog_id`;
# include/uapi/linux/bpf.h. Offsets are the same on every 64-bit architecture.
_PROGRAM = struct.Struct("<II8sIIQQQIIQ16s")
_MAP = struct.Struct("<IIIIII16s")
_LINK = struct.Struct("<III")
_SMALL = {"segments": 4096, "control": 4096, "processes": 1, "verdicts": 128, "policies": 128}


class Attached(NamedTuple):
    """Callouts that are attached.

    pids: processes that hold the links, or rather, where one holds them for another that only
        reads the ring, that one; none where they are pinned, or held in another pid namespace.
    uptime_s: since the callouts were loaded. hooks: names of those attached. maps: ids by name.
    counters: as in `Callouts.counters`; none where they are of another version.
    abi: of the structs that they share with Python; 0 where even that is not known.
    """

    pids: tuple[int, ...]
    uptime_s: float
    hooks: tuple[str, ...]
    counters: dict[str, int]
    maps: dict[str, int]
    abi: int

    @property
    def readable(self) -> bool:
        """They are of this version: what they hold is understood."""
        return self.abi == layout.ABI


class LiveFlow(msgspec.Struct, frozen=True):
    """A connection that is watched now. Bytes are payload by the kernel's counters.

    state: of the TCP connection. policy: full, head or count. lost: bytes seen and not kept.
    """

    flow: str
    pid: int
    comm: str
    uid: int
    local: str
    remote: str
    role: str
    state: str
    policy: str
    sent: int
    received: int
    lost: int
    midstream: bool
    monitor: int | None


class _Program(NamedTuple):
    name: str
    loaded_ns: int
    maps: frozenset[int]


class _Map(NamedTuple):
    id: int
    value_size: int


def attached() -> list[Attached]:
    """The callouts of all processes, the oldest first. Raises PermissionMissing."""
    holders = _holders()
    programs: dict[int, _Program] = {}
    links: list[tuple[int, _Program]] = []
    for link_id in _ids(LINK_ID):
        info = _info(LINK_ID, link_id, bytes(_LINK.size))
        if info is None:
            continue
        program_id = _LINK.unpack(info)[2]
        program = programs.get(program_id) or _program(program_id)
        if program is not None and program.name in _HOOK_NAMES:
            programs[program_id] = program
            links.append((link_id, program))
    found = []
    for members in _groups(links):
        maps = _maps({map_id for _, program in members for map_id in program.maps})
        # Another's programs may happen to be called like ours.
        if {"settings", "counters", "flows"} <= maps.keys():
            found.append(_describe(members, maps, holders))
    return sorted(found, key=lambda one: -one.uptime_s)


def _groups(links: list[tuple[int, _Program]]) -> Iterator[list[tuple[int, _Program]]]:
    """The links whose programs share maps, directly or by way of others."""
    rest = links
    while rest:
        maps, members = set(rest[0][1].maps), [rest[0]]
        rest = rest[1:]
        while near := [link for link in rest if maps & link[1].maps]:
            members += near
            maps.update(*(program.maps for _, program in near))
            rest = [link for link in rest if link not in near]
        yield members


def _describe(
    members: list[tuple[int, _Program]],
    maps: dict[str, _Map],
    holders: dict[tuple[str, int], set[int]],
) -> Attached:
    settings = _value(maps["settings"], layout.SETTINGS.itemsize)
    abi = int(np.frombuffer(settings, layout.SETTINGS)["abi"][0]) if settings else 0
    counters: dict[str, int] = {}
    raw = _value(maps["counters"], layout.COUNTERS.itemsize, possible_cpus())
    if raw and abi == layout.ABI:
        counters = add_up(raw)
    pids: set[int] = set()
    for link_id, _ in members:
        pids |= holders.get(("link", link_id), set())
    if pids and "segments" in maps:
        pids = holders.get(("map", maps["segments"].id), set()) - pids or pids
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    loaded_ns = min(program.loaded_ns for _, program in members)
    return Attached(
        tuple(sorted(pids)),
        (now_ns - loaded_ns) / 1e9,
        tuple(_HOOK_NAMES[program.name] for _, program in members),
        counters,
        {name: of.id for name, of in maps.items()},
        abi,
    )


class Lister:
    """Lists the connections that callouts of any process have marked: an object of which only
    the iterator is loaded, run over their map of flows."""

    def __init__(self) -> None:
        """Raises OSError where the kernel refuses it."""
        path = str(FOLDER / VARIANTS["scratch"])  # it has no program that a kernel may not take
        log = Log()  # what libbpf has to say would go to stderr
        try:
            self._object = Object(path, skip=(*HOOKS, *_OTHER_ITERATORS), sizes=_SMALL)
        finally:
            log.close()

    def flows(self, of: Attached) -> list[LiveFlow]:
        """The connections of these callouts; none if they are gone, or of another version."""
        if not of.readable:
            return []
        fd = library().bpf_map_get_fd_by_id(of.maps["flows"])
        if fd < 0:
            return []
        try:
            raw = b"".join(self._object.run_iterator(LISTER, fd))
        finally:
            os.close(fd)
        rows = np.frombuffer(raw, layout.FLOW_LISTING)
        return live_flows(rows, of.pids[0] if of.pids else None)

    def close(self) -> None:
        self._object.close()


def live_flows(rows: NDArray[Any], monitor: int | None = None) -> list[LiveFlow]:
    """Rows as `Callouts.list_flows` gives them; monitor: the process that watches them."""
    return [_flow(row, monitor) for row in rows]


def _flow(row: np.void, monitor: int | None) -> LiveFlow:
    opened = row["opened"]
    family, size = (socket.AF_INET, 4) if opened["family"] == 4 else (socket.AF_INET6, 16)

    def end(side: str) -> str:
        address = socket.inet_ntop(family, bytes(opened[side])[:size])
        return str(Endpoint(address, int(opened[f"{side}_port"])))

    flags = int(opened["flags"])
    return LiveFlow(
        flow=f"{int(opened['flow_id']):x}",
        pid=int(opened["pid"]),
        comm=bytes(opened["comm"]).split(b"\0")[0].decode("utf-8", "backslashreplace"),
        uid=int(opened["uid"]),
        local=end("local"),
        remote=end("remote"),
        role=(Role.CLIENT if flags & FlowFlag.ACTIVE else Role.SERVER).value,
        state=STATES.get(int(row["state"]), str(row["state"])),
        policy=Policy(int(row["mode"])).name.lower(),
        sent=int(row["totals"][0]),
        received=int(row["totals"][1]),
        lost=int(row["lost"].sum()),
        midstream=bool(flags & FlowFlag.MIDSTREAM),
        monitor=monitor,
    )


# --- objects of the kernel by their ids ------------------------------------------------------


def _ids(kind: str) -> Iterator[int]:
    """The ids of all programs, maps or links. Raises PermissionMissing."""
    following = getattr(library(), f"bpf_{kind}_get_next_id")
    number = ctypes.c_uint32(0)
    while True:
        result = following(number.value, ctypes.byref(number))
        if result == -errno.ENOENT:
            return
        if result == -errno.EPERM:
            raise PermissionMissing(
                "looking at the callouts of other processes needs administrator rights: "
                "CAP_SYS_ADMIN missing",
                "run with sudo",
            )
        check(result, f"next {kind}")
        yield number.value


def _open(kind: str, number: int) -> int | None:
    """A descriptor; None where the object is gone, or only just being made."""
    fd: int = getattr(library(), f"bpf_{kind}_get_fd_by_id")(number)
    if fd in (-errno.ENOENT, -errno.EAGAIN):
        return None
    return check(fd, f"{kind} {number}")


def _info(kind: str, number: int, before: bytes) -> bytes | None:
    """What the kernel tells of an object, as much as `before` is long, which is what the kernel
    is given: pointers and lengths of arrays for it to fill. None where the object is gone."""
    fd = _open(kind, number)
    if fd is None:
        return None
    try:
        buffer = ctypes.create_string_buffer(before, len(before))
        length = ctypes.c_uint32(len(before))
        check(library().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(length)), f"{kind} info")
        return buffer.raw
    finally:
        os.close(fd)


def _program(number: int) -> _Program | None:
    ids = (ctypes.c_uint32 * _MAP_IDS)()
    asked = (0, 0, b"", 0, 0, 0, 0, 0, 0, _MAP_IDS, ctypes.addressof(ids), b"")
    info = _info(PROGRAM_ID, number, _PROGRAM.pack(*asked))
    if info is None:
        return None
    *_, loaded_ns, _, count, _, name = _PROGRAM.unpack(info)
    return _Program(_text(name), loaded_ns, frozenset(ids[: min(count, _MAP_IDS)]))


def _maps(numbers: set[int]) -> dict[str, _Map]:
    """Maps by name; those that are gone are left out."""
    found = {}
    for number in numbers:
        info = _info(MAP_ID, number, bytes(_MAP.size))
        if info is not None:
            *_, value_size, _, _, name = _MAP.unpack(info)
            found[_text(name)] = _Map(number, value_size)
    return found


def _value(of: _Map, size: int, cpus: int = 1) -> bytes | None:
    """The first value of an array; None where it is gone, or not of the size that we know."""
    if of.value_size != size:
        return None
    fd = _open(MAP_ID, of.id)
    if fd is None:
        return None
    try:
        return Map(fd, "array").lookup(struct.pack("<I", 0), size * cpus)
    finally:
        os.close(fd)


def _holders() -> dict[tuple[str, int], set[int]]:
    """The processes that hold each link and each map, by /proc."""
    found: dict[tuple[str, int], set[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("anon_inode:bpf"):
                        continue
                    with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                        held = re.search(r"^(link|map)_id:\s*(\d+)$", file.read(), re.MULTILINE)
                    if held:
                        found.setdefault((held[1], int(held[2])), set()).add(int(pid))
    return found


def _text(name: bytes) -> str:
    return name.split(b"\0")[0].decode("ascii", "replace")
