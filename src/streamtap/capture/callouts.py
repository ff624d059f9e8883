"""Loads the callouts, tells them what is in scope, attaches and detaches them.

Without pins every link dies with this process, however it ends; with pins all goes on without it.
"""

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.capture import layout
from streamtap.capture.compiled import (
    CGROUP_HOOKS,
    MAPS,
    OPTIONAL_HOOKS,
    PROCESS_HOOKS,
    VARIANTS,
    build,
    load,
)
from streamtap.capture.filters import FilterTables
from streamtap.capture.identity import Cgroups
from streamtap.capture.pins import Pins
from streamtap.capture.rights import require_rights
from streamtap.capture.ring import Ring
from streamtap.capture.settings import Settings
from streamtap.errors import CalloutError
from streamtap.model import Policy

RING_BYTES = 16 << 20
CONTROL_BYTES = 2 << 20
WAKE_BYTES = 256 << 10
WAKE_NS = 10_000_000

_ALL = (1 << 64) - 1
_u32, _u64 = struct.Struct("<I"), struct.Struct("<Q")


class Callouts:
    """The callouts in the kernel, loaded but not attached.

    variant: "dynptr", or "scratch" for kernels before 5.19. missing: optional hooks that the
    kernel refused. adopted: maps and hooks of an earlier process were found and are used on.
    filters: what they know of filters, which are bits 0 … 63.
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
        self._attached: list[str] = []
        self._pins = pins
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
        self.ring_bytes = ring_bytes
        self.settings = Settings(self._maps["settings"].fd)
        self.filters = FilterTables(self._maps, self.settings, self.cgroups)
        if self.adopted:
            self.ring_bytes = self.settings.get("ring_bytes")
        self.settings.set(
            wake_ns=WAKE_NS,
            ring_bytes=self.ring_bytes,
            wake_bytes=min(WAKE_BYTES, self.ring_bytes // 4),
            abi=layout.ABI,
        )
        # Now: who finds all of them goes by the settings, however soon this process ends.
        if pins is not None:
            for name in MAPS:
                if name not in found:
                    pins.pin_map(name, self._maps[name].fd)

    # --- filters ---------------------------------------------------------------------------------

    def decide(self, process_id: int, filters: int) -> None:
        """What a candidate turned out to be: the filters it does match, 0 for none."""
        self._maps["verdicts"].update(_u64.pack(process_id), _u64.pack(filters))

    def enable(self, filters: int) -> None:
        """Put exactly these filters (a mask) in force; live connections are not touched."""
        self.settings.set(enabled=filters, known=self.settings.get("known") | filters)

    @property
    def enabled(self) -> int:
        return self.settings.get("enabled")

    def forget(self, filters: int) -> None:
        """These filters (a mask) exist no more: their bits may be used again."""
        self.filters.forget(filters)
        self._run("sweep_processes", "processes")
        self.unmark()

    def unmark(self) -> None:
        """Sockets that are in no filter in force are looked at no more."""
        self._run("sweep_flows", "flows")

    def _run(self, iterator: str, over: str) -> None:
        for _ in self._object.run_iterator(iterator, self._maps[over].fd):
            pass

    def pause(self, paused: bool) -> None:
        """While nobody reads the rings: payload is counted as lost, and not kept."""
        self.settings.set(paused=int(paused))

    @property
    def unseen_bytes(self) -> int:
        """Payload for which there was no room, or nobody, since the last `told`."""
        return self.counters()["lost_bytes"] - self.settings.get("missed")

    def told(self) -> None:
        """What was lost until now is known of."""
        self.settings.set(missed=self.counters()["lost_bytes"])

    def set_policy(self, policy: Policy, head: int = 0) -> None:
        """How much of flows yet to be made is copied."""
        self.settings.set(mode=int(policy), head=head)

    def set_flow_policy(self, flow_id: int, policy: Policy, head: int = 0) -> None:
        """How much of one flow is copied, from its next segment on."""
        self._maps["policies"].update(_u64.pack(flow_id), struct.pack("<II", int(policy), head))
        self.settings.set(policy_epoch=(self.settings.get("policy_epoch") + 1) & 0xFFFFFFFF)

    # --- attaching -------------------------------------------------------------------------------

    def attach(
        self, *, new_only: bool = False, make_room: Callable[[], None] | None = None
    ) -> None:
        """Attach all hooks. First the processes, then the packets, then the sockets that exist:
        whatever is made meanwhile is seen by one of them.

        make_room: called now and then to read the control ring, which has not room for all the
            processes of a machine.
        """
        self.settings.set(new_only=int(new_only))
        for name in PROCESS_HOOKS:
            self._attach(name)
        self.seed(_ALL, make_room=make_room)
        self._attach("flow_closed")
        for name in CGROUP_HOOKS:
            self._attach(name)
        if self._pins is not None:
            self.settings.set(build=build(self.variant))

    def seed(self, filters: int, *, make_room: Callable[[], None] | None = None) -> None:
        """Judge the programs that run already for these filters (a mask)."""
        self.settings.set(seeding=filters)
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
            elif self.settings.get("build") != build(self.variant):
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
        self.settings.close()
        self._object.close()
        self.filters.close()
        self.cgroups.close()


def _attach_error(name: str, error: OSError) -> CalloutError:
    if error.errno == errno.EPERM and name in CGROUP_HOOKS:
        return CalloutError(
            f"cannot attach {name}: another program holds this hook for itself alone",
            "bpftool cgroup tree shows which",
        )
    return CalloutError(f"cannot attach {name}: {os.strerror(error.errno or 0)}")


def add_up(counters: bytes) -> dict[str, int]:
    """Totals over all CPUs of the value of the `counters` map."""
    rows = np.frombuffer(counters, layout.COUNTERS)
    return {name: int(rows[name].sum()) for name in layout.COUNTERS.names or ()}


def possible_cpus() -> int:
    with contextlib.suppress(OSError, ValueError), open("/sys/devices/system/cpu/possible") as file:
        return int(file.read().strip().split("-")[-1].split(",")[-1]) + 1
    return os.cpu_count() or 1


def _close(fds: dict[str, int]) -> None:
    while fds:
        os.close(fds.popitem()[1])
