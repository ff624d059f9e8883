"""Filters and trace sessions, on disk and in the pinned callouts, kept alike.

What is on disk is the truth. A change is prepared in the kernel, written to disk, and then put in
force; wherever it is cut short, `adopt` makes the kernel what the disk says. One process at a time
may do this: the one that holds the lock.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from streamtap.capture.callouts import Callouts, require_rights
from streamtap.capture.libbpf import library
from streamtap.capture.pins import Pins
from streamtap.driver import Driver
from streamtap.errors import AlreadyExists, Busy, NotFound, PermissionMissing, StreamtapError
from streamtap.flows.scope import Scope, resolve
from streamtap.protocols import by_name
from streamtap.service.listening import is_same_file
from streamtap.service.paths import Paths
from streamtap.service.protocol import NewFilter, SessionInfo, stored
from streamtap.service.state import Filter, Filters, Recorded, Sessions, load, save
from streamtap.service.wire import request_of
from streamtap.trace import parse
from streamtap.trace.rotation import name_of

BITS = range(48)  # of filters that persist
TEMPORARY_BITS = range(48, 64)  # of those that live as long as somebody watches
PERSISTENT = (1 << len(BITS)) - 1
MAX_SESSIONS = 4000
TAKE_S = 3.0  # for a service that has lost its folder to end


class Registry:
    """adopted: pins of an earlier process were found. put_aside: where damaged state is kept, that
    was begun anew. make_room: called now and then while
    processes are judged, for the control ring has not room for all of a machine."""

    def __init__(self, paths: Paths, *, force: bool = False) -> None:
        """Raises Busy, PermissionMissing, StreamtapError for damaged state."""
        paths.make()
        self.paths = paths
        self.put_aside: list[Path] = []
        self._lock = _lock(paths.lock)
        self._pins_lock = -1
        try:
            kept = self.put_aside
            self._filters = load(paths.filters, Filters, force=force, kept=kept)
            self._sessions = load(paths.sessions, Sessions, force=force, kept=kept)
        except BaseException:
            self.close()
            raise
        self._driver: Driver | None = None
        self._temporary: dict[str, Filter] = {}
        self._cgroups: dict[int, int] = {}
        self.adopted = False
        self.make_room: Callable[[], None] | None = None

    # --- the callouts ----------------------------------------------------------------------------

    @property
    def driver(self) -> Driver:
        """The callouts, pinned and attached; at the first call they are loaded or adopted, and
        made what the disk says. Raises what `Callouts` does."""
        if self._driver is None:
            require_rights()
            self._driver = self._adopt()
        return self._driver

    def _adopt(self) -> Driver:
        pins = Pins(self.paths.pins)
        fresh = not self.paths.pins.is_dir()
        pins.make()
        try:
            self._take_pins()
            callouts = Callouts(pins=pins)
        except BaseException:
            if fresh:
                pins.remove()
            raise
        self.adopted = callouts.adopted
        driver = Driver(callouts)
        try:
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
            callouts.attach()
            callouts.adopt()
            callouts.prune()
        except BaseException:
            callouts.close()
            if not self.adopted:
                pins.remove()
            raise
        self._remove_others()
        return driver

    def _take_pins(self) -> None:
        """Keeps them from a service whose run folder, and so whose lock, is another: both would
        read the same rings. One that has lost its own is just ending. Raises Busy."""
        until = time.monotonic() + TAKE_S
        while self._pins_lock < 0:
            try:
                self._pins_lock = _locked(self.paths.bpf, os.O_RDONLY | os.O_DIRECTORY)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Busy(
                        f"the callouts in {self.paths.bpf} are held by another service",
                        "let STREAMTAP_BPF_DIR name a folder of its own",
                    ) from None
                time.sleep(0.05)

    def _remove_others(self) -> None:
        """Pins of other versions: their work is ours now."""
        for folder in self._other_folders():
            Pins(folder).remove()

    def _other_folders(self) -> list[Path]:
        return [folder for folder in self.paths.layouts if folder != self.paths.pins]

    def _install(self, driver: Driver, one: Filter) -> None:
        scope = one.scope
        if scope.kind == "pid":
            if _process(scope.value) != one.process:
                return  # its number is another's now
        elif scope.kind in ("cgroup", "unit"):
            self._cgroups[one.bit] = _cgroup_id(driver, scope)
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
            if found and found != self._cgroups.get(one.bit):
                self._cgroups[one.bit] = found
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
        first = self._driver is None
        driver = self.driver
        installed = 0
        try:
            made = self._new_filters(filters, TEMPORARY_BITS if temporary else BITS)
            if prepared is not None:
                prepared(made)
            for one in made:
                installed |= 1 << one.bit
                self._install(driver, one)
            if temporary:
                self._temporary |= {one.name: one for one in made}
            elif made:
                self._save(self._filters.filters + tuple(made))
        except BaseException:
            driver.callouts.forget(installed)
            if first and not self.adopted:
                self._unpin()  # there were no callouts before
            raise
        self._put_in_force()
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
            self._cgroups.pop(one.bit, None)
            driver.remove(one.bit)
        return gone

    def forget(self) -> None:
        """No filter is kept any more; what is in the kernel goes on until `remove`."""
        if self._filters.filters or not self._filters.enabled:
            self._save((), enabled=True)

    def remove(self) -> None:
        """Filters, callouts and pins, of other versions too. Sessions stay."""
        if self.paths.bpf.is_dir():
            self._take_pins()
        self.forget()
        self._temporary.clear()
        require_rights()
        library()
        self._unpin()

    def _unpin(self) -> None:
        if self._driver is not None:
            self._driver.callouts.close()
            self._driver = None
        for folder in (self.paths.pins, *self._other_folders()):
            Pins(folder).remove()
        with contextlib.suppress(OSError):
            self.paths.bpf.rmdir()
        if self._pins_lock >= 0:
            os.close(self._pins_lock)
            self._pins_lock = -1

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
            _require([name], self._filters.filters)
            self._save(
                tuple(
                    replace(one, enabled=enabled) if one.name == name else one
                    for one in self._filters.filters
                )
            )
        if self._driver is not None or self.paths.pins.is_dir():  # else it holds from then on
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
        _require(names, self.all_filters())

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
        return self._sessions.sessions

    def sessions(self) -> Sequence[SessionInfo]:
        return [stored(one) for one in self.recorded]

    def add_session(self, session: Recorded) -> Recorded:
        """Raises AlreadyExists, NotFound for a filter that is not there, ValueError for words, or
        what the service would not take."""
        request_of(session)
        parse(session.selection)
        if any(one.name == session.name for one in self.recorded):
            raise AlreadyExists(
                f"there is a session {session.name} already", "streamtap trace list shows it"
            )
        _require(session.filters, self._filters.filters)
        for at, output in enumerate(session.outputs):
            if any(_share(output, other) for other in session.outputs[:at]):
                raise ValueError(f"{output} is named twice, or is what rotation makes of another")
            for one in self.recorded:
                if any(_share(output, other) for other in one.outputs):
                    raise AlreadyExists(
                        f"{output} is a file of session {one.name} already, or would become one "
                        "by rotation",
                        "streamtap trace list shows which files are taken",
                    )
        if len(self.recorded) >= MAX_SESSIONS:
            raise StreamtapError(f"there are {MAX_SESSIONS} sessions already, the most at once")
        self._save_sessions((*self.recorded, session))
        return session

    def remove_session(self, name: str) -> Recorded:
        for one in self.recorded:
            if one.name == name:
                self._save_sessions(tuple(other for other in self.recorded if other is not one))
                return one
        raise NotFound(f"no session {name}", "streamtap trace list shows what there is")

    def _save_sessions(self, sessions: tuple[Recorded, ...]) -> None:
        after = Sessions(sessions=sessions)
        save(self.paths.sessions, after)
        self._sessions = after

    # --- the lock --------------------------------------------------------------------------------

    @property
    def is_locked(self) -> bool:
        """The lock keeps others out: its file is there."""
        return is_same_file(self._lock, self.paths.lock)

    def lock_again(self) -> bool:
        """Where its file was removed; False where somebody else has changed the state since.
        Raises Busy where somebody holds it, and what else making it may raise."""
        self.paths.make()
        lock = _lock(self.paths.lock)
        os.close(self._lock)
        self._lock = lock
        kept = (load(self.paths.filters, Filters), load(self.paths.sessions, Sessions))
        return kept == (self._filters, self._sessions)

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """What is pinned goes on."""
        driver = getattr(self, "_driver", None)
        if driver is not None:
            driver.callouts.close()
            self._driver = None
        for fd in (self._pins_lock, self._lock):
            if fd >= 0:
                os.close(fd)
        self._pins_lock = self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _require(names: Iterable[str], filters: Iterable[Filter]) -> None:
    known = {one.name for one in filters}
    for name in names:
        if name not in known:
            raise NotFound(f"no filter {name}", "streamtap list shows what there is")


def _share(one: str, other: str) -> bool:
    """Whether two recordings would have a file of one name."""
    first, second = Path(one), Path(other)
    return first == second or name_of(first)[0] == second or name_of(second)[0] == first


def _lock(path: Path) -> int:
    """A descriptor that holds the lock; the kernel lets go of it with the process."""
    try:
        return _locked(path, os.O_RDWR | os.O_CREAT)
    except BlockingIOError:
        raise Busy(f"{path} is held by another process", "try again") from None
    except PermissionError as error:
        raise PermissionMissing(f"{path}: {error.strerror}", "run with sudo") from error
    except OSError as error:
        raise StreamtapError(f"{path}: {error.strerror}") from error


def _locked(path: Path, flags: int) -> int:
    """Raises BlockingIOError where somebody has it, and what `open` does."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
