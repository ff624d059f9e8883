"""Filters and trace sessions, on disk and in the pinned callouts, kept alike.

What is on disk is the truth. A change is prepared in the kernel, written to disk, and then put in
force; wherever it is cut short, the next adoption makes the kernel what the disk says. One process
at a time may do this: the one that holds the lock.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from streamtap.driver import Driver
from streamtap.errors import AlreadyExists, Busy, PermissionMissing, StreamtapError
from streamtap.flows.scope import Scope, resolve
from streamtap.protocols import by_name
from streamtap.service.lock import Lock
from streamtap.service.paths import Paths
from streamtap.service.pinned import Pinned
from streamtap.service.protocol import NewFilter, SessionInfo, stored
from streamtap.service.state import Filter, Filters, Recorded, load, require, save
from streamtap.service.stored import StoredSessions

BITS = range(48)  # of filters that persist
TEMPORARY_BITS = range(48, 64)  # of those that live as long as somebody watches
PERSISTENT = (1 << len(BITS)) - 1


class Registry:
    """put_aside: where damaged state is kept, that was begun anew. make_room: called now and then
    while processes are judged, for the control ring has not room for all of a machine."""

    def __init__(self, paths: Paths, *, force: bool = False) -> None:
        """Raises Busy, PermissionMissing, StreamtapError for damaged state."""
        paths.make()
        self.paths = paths
        self.put_aside: list[Path] = []
        self._lock = _lock(paths.lock)
        try:
            kept = self.put_aside
            self._filters = load(paths.filters, Filters, force=force, kept=kept)
            self._stored = StoredSessions(paths.sessions, force=force, kept=kept)
        except BaseException:
            self._lock.close()
            raise
        self._pinned = Pinned(paths, self._fill)
        self._temporary: dict[str, Filter] = {}
        self.make_room: Callable[[], None] | None = None

    # --- the callouts ----------------------------------------------------------------------------

    @property
    def driver(self) -> Driver:
        """The callouts, pinned and attached; at the first call they are loaded or adopted, and
        made what the disk says. Raises what `Pinned.load` does."""
        return self._pinned.load()

    @property
    def adopted(self) -> bool:
        """Pins of an earlier process were found."""
        return self._pinned.adopted

    def _fill(self, driver: Driver) -> None:
        callouts = driver.callouts
        callouts.forget(~self._filters.known & (1 << 64) - 1)
        for one in self._filters.filters:
            try:
                self._install(driver, one)
            except ValueError as error:
                raise StreamtapError(
                    f"{self.paths.filters} is damaged: filter {one.name}: {error}",
                    "mend it, or take that filter out of the file",
                ) from error
        callouts.enable(self._filters.mask)
        callouts.unmark()

    def _install(self, driver: Driver, one: Filter) -> None:
        scope = one.scope
        if scope.kind == "pid" and _process(scope.value) != one.process:
            return  # its number is another's now
        driver.install(one.bit, scope)

    def refresh(self) -> None:
        """Cgroups that were made anew since, as when a unit was started again, are in their filter
        again. To be called now and then."""
        driver = self.driver
        for one in self.all_filters():
            if one.scope.kind not in ("cgroup", "unit"):
                continue
            scope = one.scope
            found = _cgroup_id(driver, scope)
            if not found and scope.kind == "unit":
                with contextlib.suppress(StreamtapError, ValueError):
                    root = driver.callouts.cgroups.root
                    scope = resolve("unit", scope.given, name=scope.name, cgroup_root=root)
                    found = _cgroup_id(driver, scope)
            if found and found != driver.callouts.filters.cgroup_of(one.bit):
                driver.install(one.bit, scope)
                driver.callouts.adopt()

    # --- filters ---------------------------------------------------------------------------------

    def filters(self) -> Sequence[Filter]:
        return self._filters.filters

    def all_filters(self) -> list[Filter]:
        """Those that live as long as somebody watches, too."""
        return [*self._filters.filters, *self._temporary.values()]

    @property
    def temporary(self) -> Sequence[str]:
        """The names of those."""
        return list(self._temporary)

    @property
    def enabled(self) -> bool:
        """Not everything was disabled at once."""
        return self._filters.enabled

    def add(
        self,
        filters: Sequence[NewFilter],
        *,
        temporary: bool = False,
        prepared: Callable[[Sequence[Filter]], None] | None = None,
    ) -> Sequence[Filter]:
        """All of them or none; without any, the callouts alone are seen to.

        temporary: not written down; `delete` takes them away.
        prepared: called with what will be in force, if it is.
        Raises AlreadyExists, what `resolve` does, and StreamtapError for more than there are bits.
        """
        first = self._pinned.driver is None
        driver = self.driver
        kept, others = self._filters, self._temporary
        installed = 0
        try:
            made = self._new_filters(filters, TEMPORARY_BITS if temporary else BITS)
            if prepared is not None:
                prepared(made)
            for one in made:
                installed |= 1 << one.bit
                self._install(driver, one)
            if temporary:
                self._temporary = others | {one.name: one for one in made}
            elif made:
                self._save(kept.filters + tuple(made))
            self._put_in_force()
        except BaseException:
            self._temporary = others
            if self._filters is not kept:
                self._save(kept.filters)
            driver.callouts.forget(installed)
            if first and not self.adopted:
                self._pinned.remove()  # there were no callouts before
            raise
        return made

    def _new_filters(self, asked: Sequence[NewFilter], bits: range) -> list[Filter]:
        made: list[Filter] = []
        names = {one.name for one in self.all_filters()}
        taken = {one.bit for one in self.all_filters()}
        free = (bit for bit in bits if bit not in taken)
        for new in asked:
            if new.protocol is not None:
                by_name(new.protocol)
            scope = new.resolve(cgroup_root=self.driver.callouts.cgroups.root)
            if any(scope.name == one.name for one in made):
                raise AlreadyExists(
                    f"two of these filters would be called {scope.name}",
                    "add one after the other, with --name",
                )
            if scope.name in names:
                raise AlreadyExists(
                    f"there is a filter {scope.name} already",
                    "streamtap list shows it; --name gives another name",
                )
            names.add(scope.name)
            bit = next(free, None)
            if bit is None:
                raise StreamtapError(
                    f"{len(bits)} filters are the most at once, and these would be more",
                    "streamtap delcallouts removes one",
                )
            made.append(
                Filter(
                    name=scope.name,
                    scope=scope,
                    bit=bit,
                    protocol=new.protocol,
                    content=new.content,
                    added_ns=time.time_ns(),
                    process=_process(scope.value) if scope.kind == "pid" else "",
                )
            )
        return made

    def delete(self, names: Sequence[str]) -> Sequence[Filter]:
        """The filters that are gone, all that are named or none. Raises NotFound."""
        self.require(names)
        known = {one.name: one for one in self.all_filters()}
        gone = [known[name] for name in dict.fromkeys(names)]
        driver = self.driver
        kept = tuple(one for one in self._filters.filters if one not in gone)
        if len(kept) != len(self._filters.filters):
            self._save(kept)
        for one in gone:
            self._temporary.pop(one.name, None)
            driver.remove(one.bit)
        return gone

    def forget(self) -> None:
        """No filter is kept any more; what is in the kernel goes on until `remove`."""
        if self._filters.filters or not self._filters.enabled:
            self._save((), enabled=True)

    def remove(self) -> None:
        """Filters, callouts and pins, of other versions too. Sessions stay."""
        self._pinned.take()
        self.forget()
        self._temporary.clear()
        self._pinned.remove()

    def enable(self, name: str | None = None) -> None:
        self._switch(name, True)

    def disable(self, name: str | None = None) -> None:
        """What it watched is watched no more; connections go on. Raises NotFound."""
        self._switch(name, False)

    def _switch(self, name: str | None, enabled: bool) -> None:
        replace = msgspec.structs.replace
        if name is None:
            self._save(self._filters.filters, enabled=enabled)
        else:
            require([name], self._filters.filters)
            self._save(
                tuple(
                    replace(one, enabled=enabled) if one.name == name else one
                    for one in self._filters.filters
                )
            )
        if self._pinned.exist:  # else it holds from then on
            self._put_in_force()

    @property
    def mask(self) -> int:
        """The bits that are in force."""
        temporary = sum(1 << one.bit for one in self._temporary.values())
        return self._filters.mask | (temporary if self._filters.enabled else 0)

    def mask_of(self, names: Iterable[str], coming: Sequence[Filter] = ()) -> int:
        """The bits of those of the filters that there are; of all that persist, where none is
        named. coming: filters that are about to be added."""
        wanted = set(names)
        if not wanted:
            return PERSISTENT
        return sum(1 << one.bit for one in (*self.all_filters(), *coming) if one.name in wanted)

    def require(self, names: Iterable[str]) -> None:
        """Raises NotFound where there is no filter of a name."""
        require(names, self.all_filters())

    def _put_in_force(self) -> None:
        callouts = self.driver.callouts
        before = callouts.enabled
        callouts.enable(self.mask)
        if before & ~self.mask:
            callouts.unmark()
        if fresh := self.mask & ~before:
            callouts.seed(fresh, make_room=self.make_room)
            callouts.adopt(make_room=self.make_room)

    def _save(self, filters: tuple[Filter, ...], *, enabled: bool | None = None) -> None:
        now = self._filters.enabled if enabled is None else enabled
        after = Filters(enabled=now, filters=filters)
        save(self.paths.filters, after)
        self._filters = after

    # --- sessions --------------------------------------------------------------------------------

    @property
    def recorded(self) -> Sequence[Recorded]:
        return self._stored.sessions

    def sessions(self) -> Sequence[SessionInfo]:
        return [stored(one) for one in self.recorded]

    def add_session(self, session: Recorded) -> Recorded:
        """Raises as `StoredSessions.add` does: it may name filters that persist."""
        self._stored.add(session, self._filters.filters)
        return session

    def remove_session(self, name: str) -> Recorded:
        """Raises NotFound."""
        return self._stored.remove(name)

    # --- the lock --------------------------------------------------------------------------------

    @property
    def is_locked(self) -> bool:
        """The lock keeps others out: its file is there."""
        return self._lock.is_found

    def lock_again(self) -> bool:
        """Where its file was removed; False where somebody else has changed the state since.
        Raises Busy where somebody holds it, and what else making it may raise."""
        self.paths.make()
        lock = _lock(self.paths.lock)
        self._lock.close()
        self._lock = lock
        return load(self.paths.filters, Filters) == self._filters and self._stored.is_current

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """What is pinned goes on."""
        self._pinned.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _lock(path: Path) -> Lock:
    try:
        return Lock(path, os.O_RDWR | os.O_CREAT)
    except BlockingIOError:
        raise Busy(f"{path} is held by another process", "try again") from None
    except PermissionError as error:
        raise PermissionMissing(f"{path}: {error.strerror}", "run with sudo") from error
    except OSError as error:
        raise StreamtapError(f"{path}: {error.strerror}") from error


def _cgroup_id(driver: Driver, scope: Scope) -> int:
    """0 where it is not there."""
    try:
        return driver.callouts.cgroups.id_of(scope.cgroup)
    except OSError:
        return 0


def _process(pid: str) -> str:
    """Which process of all that ever had the number; "" where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        with open(f"/proc/{pid}/stat", "rb") as file:
            started = file.read().rpartition(b") ")[2].split()[19]
        return f"{boot}/{started.decode()}"
    except OSError:
        return ""
