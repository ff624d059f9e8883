"""Loads the callouts, tells them what is in scope, attaches and detaches them.

Without pins every link dies with this process, however it ends; with pins all goes on without it.
"""

import contextlib
import errno
import mmap
import os
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture import layout
from streamtap.capture.identity import (
    Cgroups,
    FileKey,
    descendants,
    file_key,
    in_host_user_namespace,
)
from streamtap.capture.libbpf import Log, Object
from streamtap.capture.pins import Pins
from streamtap.capture.ring import Ring
from streamtap.errors import CalloutError, KernelUnsupported, PermissionMissing
from streamtap.model import Policy

FOLDER = Path(__file__).parent
VARIANTS = {"dynptr": "callout.bpf.o", "scratch": "callout_scratch.bpf.o"}
# Before the sockets are looked at, every process must be known; before a socket is marked, its
# packets must be seen.
PROCESS_HOOKS = ("process_exec", "process_fork", "process_exit")
CGROUP_HOOKS = ("stream_received", "stream_sent", "flow_established", "socket_created")
OPTIONAL_HOOKS = ("socket_sent", "socket_received")
RING_BYTES = 16 << 20
CONTROL_BYTES = 2 << 20
MAPS = (
    *("apps", "names", "scripts", "comms", "uids", "cgroups", "processes", "verdicts"),
    *("policies", "settings", "counters", "flows", "segments", "control"),
)
_KEY_BYTES = {  # of the maps that filters are in
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
_ALL = (1 << 64) - 1
WAKE_BYTES = 256 << 10
WAKE_NS = 10_000_000
HELD_FILES = 1024  # versions of programs; one that was replaced is a candidate if it still starts
CAPABILITIES = {12: "CAP_NET_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}
_CAP_SYS_ADMIN = 21

_u32, _u64 = struct.Struct("<I"), struct.Struct("<Q")


class Callouts:
    """The callouts in the kernel, loaded but not attached.

    variant: "dynptr", or "scratch" for kernels before 5.19. missing: optional hooks that the
    kernel refused. adopted: maps and hooks of an earlier process were found and are used on.
    Filters are bits 0 … 63; `add_…` may be called at any time.
    """

    def __init__(
        self,
        *,
        ring_bytes: int = RING_BYTES,
        variant: str | None = None,
        optional: bool = True,
        pins: Pins | None = None,
    ) -> None:
        """Raises PermissionMissing, KernelUnsupported, or CalloutError with the verifier's log.

        ring_bytes: a power of two and a multiple of the page size; of pinned maps, what they have.
        pins: where they are kept, so that they outlive this process.
        """
        if ring_bytes & (ring_bytes - 1) or ring_bytes < mmap.PAGESIZE:
            raise ValueError(f"a ring of {ring_bytes} bytes: not a power of two of whole pages")
        variant = variant or os.environ.get("STREAMTAP_CALLOUTS") or None
        if variant is not None and variant not in VARIANTS:
            raise ValueError(f"no callouts {variant!r}: {', '.join(VARIANTS)}")
        require_rights()
        self.cgroups = Cgroups()
        self._held: OrderedDict[FileKey, int] = OrderedDict()
        self._attached: list[str] = []
        self._pins = pins
        self._keys: dict[str, set[bytes]] = {name: set() for name in _KEY_BYTES}
        sizes = {"segments": ring_bytes, "control": CONTROL_BYTES}
        reuse: dict[str, int] = {}
        found: set[str] = set()
        try:
            if pins is not None:
                pins.make()
                reuse = {name: pins.open_map(name) for name in pins.maps if name in MAPS}
                # Their making was cut short: nothing is attached to them yet.
                if set(reuse) != set(MAPS) and not pins.links:
                    _close(reuse)
                    pins.remove()
                    pins.make()
                found = set(reuse)
            self._object, self.variant, self.missing = load(
                [variant] if variant else list(VARIANTS),
                {name: size for name, size in sizes.items() if name not in reuse},
                optional,
                reuse,
            )
        except BaseException:
            self.cgroups.close()
            raise
        finally:
            _close(reuse)
        self.adopted = bool(found)
        self._maps = {name: self._object.map(name) for name in MAPS}
        if pins is not None:
            for name in MAPS:
                if name not in found:
                    pins.pin_map(name, self._maps[name].fd)
        self.ring_bytes = ring_bytes
        self._settings_memory = mmap.mmap(self._maps["settings"].fd, mmap.PAGESIZE)
        self._settings: NDArray[Any] = np.frombuffer(
            self._settings_memory, layout.SETTINGS, count=1
        )
        if self.adopted:
            self.ring_bytes = self._get("ring_bytes")
        self._set(
            wake_ns=WAKE_NS,
            ring_bytes=self.ring_bytes,
            wake_bytes=min(WAKE_BYTES, self.ring_bytes // 4),
            abi=layout.ABI,
        )

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            self._settings[name][0] = value

    def _get(self, name: str) -> int:
        return int(self._settings[name][0])

    # --- filters ---------------------------------------------------------------------------------

    def _add_bit(self, map_name: str, key: bytes, bit: int) -> None:
        table = self._maps[map_name]
        before = table.lookup(key, 8)
        mask = (_u64.unpack(before)[0] if before else 0) | 1 << bit
        table.update(key, _u64.pack(mask))
        self._keys[map_name].add(key)

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
            self._maps["apps"].delete(_app_key(oldest))
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
        self._set(use=self._get("use") | layout.ScopeUse.COMM)

    def add_uid(self, bit: int, uid: int) -> None:
        self._add_bit("uids", _u32.pack(uid), bit)
        self._set(use=self._get("use") | layout.ScopeUse.UID)

    def add_cgroup(self, bit: int, path: str) -> None:
        """`path` below the cgroup root, and all cgroups below it."""
        self._add_bit("cgroups", _u64.pack(self.cgroups.id_of(path)), bit)
        self._set(use=self._get("use") | layout.ScopeUse.CGROUP)

    def ask(self, bit: int) -> None:
        """Every program that is started is a candidate."""
        self._set(ask=self._get("ask") | 1 << bit)

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
        self._set(tracked=1)

    def decide(self, process_id: int, filters: int) -> None:
        """What a candidate turned out to be: the filters it does match, 0 for none."""
        self._maps["verdicts"].update(_u64.pack(process_id), _u64.pack(filters))

    def enable(self, filters: int) -> None:
        """Put exactly these filters (a mask) in force; live connections are not touched."""
        self._set(enabled=filters, known=self._get("known") | filters)

    @property
    def enabled(self) -> int:
        return self._get("enabled")

    def forget(self, filters: int) -> None:
        """These filters (a mask) exist no more: their bits may be used again."""
        for name, size in _KEY_BYTES.items():
            table = self._maps[name]
            left = False
            for key in table.keys(size):
                value = table.lookup(key, 8)
                mask = _u64.unpack(value)[0] & ~filters if value else 0
                left |= bool(mask)
                if mask:
                    table.update(key, _u64.pack(mask))
                else:
                    table.delete(key)
                    self._keys[name].discard(key)
            if name in _USES and not left:
                self._set(use=self._get("use") & ~_USES[name])
        kept = ~filters & _ALL
        self._set(
            ask=self._get("ask") & kept,
            known=self._get("known") & kept,
            enabled=self._get("enabled") & kept,
        )
        self._run("sweep_processes", "processes")
        self.unmark()

    def unmark(self) -> None:
        """Sockets that are in no filter in force are looked at no more."""
        self._run("sweep_flows", "flows")

    def prune(self) -> None:
        """Forget what earlier processes told the callouts and this one did not repeat: files that
        nobody holds open any more, whose numbers may become another's."""
        for name, size in _KEY_BYTES.items():
            table = self._maps[name]
            for key in table.keys(size):
                if key not in self._keys[name]:
                    table.delete(key)

    def _run(self, iterator: str, over: str) -> None:
        for _ in self._object.run_iterator(iterator, self._maps[over].fd):
            pass

    def pause(self, paused: bool) -> None:
        """While nobody reads the rings: payload is counted as lost, and not kept."""
        self._set(paused=int(paused))

    @property
    def unseen_bytes(self) -> int:
        """Payload for which there was no room, or nobody, since the last `told`."""
        return self.counters()["lost_bytes"] - self._get("missed")

    def told(self) -> None:
        """What was lost until now is known of."""
        self._set(missed=self.counters()["lost_bytes"])

    def set_policy(self, policy: Policy, head: int = 0) -> None:
        """How much of flows yet to be made is copied."""
        self._set(mode=int(policy), head=head)

    def set_flow_policy(self, flow_id: int, policy: Policy, head: int = 0) -> None:
        """How much of one flow is copied, from its next segment on."""
        self._maps["policies"].update(_u64.pack(flow_id), struct.pack("<II", int(policy), head))
        self._set(policy_epoch=(self._get("policy_epoch") + 1) & 0xFFFFFFFF)

    # --- attaching -------------------------------------------------------------------------------

    def attach(
        self, *, new_only: bool = False, make_room: Callable[[], None] | None = None
    ) -> None:
        """Attach all hooks. First the processes, then the packets, then the sockets that exist:
        whatever is made meanwhile is seen by one of them.

        make_room: called now and then to read the control ring, which has not room for all the
            processes of a machine.
        """
        self._set(new_only=int(new_only))
        for name in PROCESS_HOOKS:
            self._attach(name)
        self.seed(_ALL, make_room=make_room)
        self._attach("flow_closed")
        for name in CGROUP_HOOKS:
            self._attach(name)
        if self._pins is not None:
            self._set(build=_build(self.variant))

    def seed(self, filters: int, *, make_room: Callable[[], None] | None = None) -> None:
        """Judge the programs that run already for these filters (a mask)."""
        self._set(seeding=filters)
        self._tell("seed_processes", make_room)

    def adopt(self, *, make_room: Callable[[], None] | None = None) -> None:
        """Mark the sockets that processes in scope hold already; make_room as for `attach`."""
        self._tell("adopt_sockets", make_room)
        for name in OPTIONAL_HOOKS:
            if name not in self.missing and name not in self._attached:
                try:
                    self._attach(name)
                except CalloutError:
                    self.missing = (*self.missing, name)

    def _tell(self, iterator: str, make_room: Callable[[], None] | None) -> None:
        # It writes a byte for each process told: after so many the ring is half full.
        turn = CONTROL_BYTES // layout.PROCESS_RECORD.itemsize // 2
        for _ in self._object.run_iterator(iterator, piece=turn):
            if make_room is not None:
                make_room()

    def _attach(self, name: str) -> None:
        try:
            if self._pins is None or name not in self._pins.links:
                self._attach_new(name)
            elif self._get("build") != _build(self.variant):
                self._replace(name)
        except OSError as error:
            raise _attach_error(name, error) from error
        self._attached.append(name)

    def _attach_new(self, name: str) -> None:
        if name in CGROUP_HOOKS:
            self._object.attach_cgroup(name, self.cgroups.fd)
        else:
            self._object.attach(name)
        if self._pins is not None:
            self._pins.pin_link(name, self._object.link_fd(name))

    def _replace(self, name: str) -> None:
        """Programs of another build do the work: ours take their place. A link to a cgroup is
        given the new program without a gap. A link to a tracepoint cannot be: for a moment both
        run, and do the same twice, which they are made for."""
        assert self._pins is not None
        if name not in CGROUP_HOOKS:
            self._attach_new(name)
            return
        link = self._pins.open_link(name)
        try:
            self._object.replace(name, link)
        finally:
            os.close(link)

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(self._attached)

    # --- what user space reads -------------------------------------------------------------------

    def rings(self) -> tuple[Ring, Ring]:
        """The data ring and the control ring."""
        return (
            Ring(self._maps["segments"].fd, self.ring_bytes),
            Ring(self._maps["control"].fd, CONTROL_BYTES),
        )

    @property
    def ring_fds(self) -> tuple[int, int]:
        """The descriptors of the two, for a process that reads them in our place."""
        return self._maps["segments"].fd, self._maps["control"].fd

    def counters(self) -> dict[str, int]:
        """Totals over all flows and CPUs; names as in `bpf/callout.h`. candidates_lost: segments of
        flows of which it was not known yet whether they are in scope; not in the others."""
        size, counters = layout.COUNTERS.itemsize * possible_cpus(), self._maps["counters"]
        known, candidates = (add_up(counters.lookup(_u32.pack(key), size) or b"") for key in (0, 1))
        return known | {"candidates_lost": candidates["lost_segments"]}

    def list_flows(self) -> NDArray[Any]:
        """(n,) FLOW_LISTING: the connections that are marked now, with the kernel's counters."""
        pieces = self._object.run_iterator("list_flows", self._maps["flows"].fd)
        return np.frombuffer(b"".join(pieces), layout.FLOW_LISTING)

    def detach(self) -> None:
        """Remove all hooks; live connections go on, what is in the rings stays readable."""
        if self._pins is not None:
            self._pins.remove_links()
        self._object.detach()
        self._attached.clear()

    def close(self) -> None:
        """Detaches; what is pinned goes on without this process."""
        self._object.detach()
        self._attached.clear()
        del self._settings
        self._settings_memory.close()
        self._object.close()
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
        self.cgroups.close()


def load(
    variants: list[str],
    sizes: dict[str, int],
    optional: bool = True,
    reuse: dict[str, int] | None = None,
) -> tuple[Object, str, tuple[str, ...]]:
    """The first variant that the kernel takes, with the optional hooks if it takes them too: the
    loaded object, the variant, and the hooks left out. Raises CalloutError for none.

    reuse: maps that exist already, by name."""
    said = ""
    for variant in variants:
        for skipped in ((), OPTIONAL_HOOKS) if optional else (OPTIONAL_HOOKS,):
            log = Log()
            try:
                path = str(FOLDER / VARIANTS[variant])
                if not os.path.exists(path):
                    raise KernelUnsupported(
                        "the callout object", f"{path} is not there", "build the package again"
                    )
                return Object(path, skip=skipped, sizes=sizes, reuse=reuse), variant, skipped
            except OSError as error:
                reason, said = error, log.text
            finally:
                log.close()
    if reason.errno in (errno.EPERM, errno.EACCES) and not _effective(_CAP_SYS_ADMIN):
        raise PermissionMissing(
            "the kernel refuses the callouts: a capability is missing", "run with sudo"
        ) from reason
    raise CalloutError(
        f"the kernel refuses the callouts: {os.strerror(reason.errno or 0)}",
        "see: streamtap doctor",
        said,
    ) from reason


def _attach_error(name: str, error: OSError) -> CalloutError:
    if error.errno == errno.EPERM and name in CGROUP_HOOKS:
        return CalloutError(
            f"cannot attach {name}: another program holds this hook for itself alone",
            "bpftool cgroup tree shows which",
        )
    return CalloutError(f"cannot attach {name}: {os.strerror(error.errno or 0)}")


def missing_capabilities() -> list[str]:
    """Names of the capabilities that loading and attaching need and this process lacks. Those
    held in a user namespace do not count for the kernel's own objects."""
    if not in_host_user_namespace():
        return list(CAPABILITIES.values())
    if _effective(_CAP_SYS_ADMIN):
        return []
    return [name for number, name in CAPABILITIES.items() if not _effective(number)]


def require_rights() -> None:
    """Raises PermissionMissing naming what is missing."""
    if missing := missing_capabilities():
        where = "" if in_host_user_namespace() else " outside of this user namespace"
        raise PermissionMissing(
            "watching other programs needs administrator rights: "
            f"{', '.join(missing)} missing{where}",
            "run with sudo" if not where else "run on the host with sudo",
        )


def _effective(capability: int) -> bool:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def add_up(counters: bytes) -> dict[str, int]:
    """Totals over all CPUs of the value of the `counters` map."""
    rows = np.frombuffer(counters, layout.COUNTERS)
    return {name: int(rows[name].sum()) for name in layout.COUNTERS.names or ()}


def possible_cpus() -> int:
    with contextlib.suppress(OSError, ValueError), open("/sys/devices/system/cpu/possible") as file:
        return int(file.read().strip().split("-")[-1].split(",")[-1]) + 1
    return os.cpu_count() or 1


@cache
def _build(variant: str) -> int:
    """Tells one build of the callouts from another."""
    return _u64.unpack(sha256((FOLDER / VARIANTS[variant]).read_bytes()).digest()[:8])[0] or 1


def _close(fds: dict[str, int]) -> None:
    while fds:
        os.close(fds.popitem()[1])


def _app_key(key: FileKey) -> bytes:
    return struct.pack("<QII", key.inode, key.device, 0)


def _comm(name: str) -> bytes:
    return os.fsencode(name)[: layout.COMM_LENGTH - 1].ljust(layout.COMM_LENGTH, b"\0")
