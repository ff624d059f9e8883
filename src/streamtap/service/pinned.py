"""The callouts of an installation: pinned, attached, and read by one service at a time."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from streamtap.capture.callouts import Callouts
from streamtap.capture.libbpf import library
from streamtap.capture.pins import Pins
from streamtap.capture.rights import require_rights
from streamtap.driver import Driver
from streamtap.errors import Busy
from streamtap.service.lock import Lock
from streamtap.service.paths import Paths

TAKE_S = 3.0  # for a service that has lost its folder to end


class Pinned:
    """fill: makes the callouts what is to be in force, before they are attached.
    driver: of callouts that were loaded or adopted; None before.
    adopted: pins of an earlier process were found."""

    def __init__(self, paths: Paths, fill: Callable[[Driver], None]) -> None:
        self._paths = paths
        self._fill = fill
        self._lock: Lock | None = None
        self.driver: Driver | None = None
        self.adopted = False

    @property
    def exist(self) -> bool:
        """There are some, loaded here or by an earlier process."""
        return self.driver is not None or self._paths.pins.is_dir()

    def load(self) -> Driver:
        """At the first call they are loaded or adopted, and filled. Raises Busy where another
        service has them, what `Callouts` does, and what `fill` does."""
        if self.driver is None:
            require_rights()
            self.driver = self._adopt()
        return self.driver

    def _adopt(self) -> Driver:
        pins = Pins(self._paths.pins)
        fresh = not self._paths.pins.is_dir()
        pins.make()
        try:
            self._take()
            callouts = Callouts(pins=pins)
        except BaseException:
            if fresh:
                pins.remove()
            raise
        self.adopted = callouts.adopted
        driver = Driver(callouts)
        try:
            self._fill(driver)
            callouts.attach()
            callouts.adopt()
            callouts.filters.prune()
        except BaseException:
            callouts.close()
            if not self.adopted:
                pins.remove()
            raise
        for folder in self._others():  # their work is ours now
            Pins(folder).remove()
        return driver

    def _take(self) -> None:
        """Keeps them from a service whose run folder, and so whose lock, is another: both would
        read the same rings. One that has lost its own is just ending. Raises Busy."""
        until = time.monotonic() + TAKE_S
        while self._lock is None:
            try:
                self._lock = Lock(self._paths.bpf, os.O_RDONLY | os.O_DIRECTORY)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Busy(
                        f"the callouts in {self._paths.bpf} are held by another service",
                        "let STREAMTAP_BPF_DIR name a folder of its own",
                    ) from None
                time.sleep(0.05)

    def take(self) -> None:
        """To remove them, where there are some. Raises Busy."""
        if self._paths.bpf.is_dir():
            self._take()

    def remove(self) -> None:
        """They are gone, those of other versions too. Raises PermissionMissing, and
        KernelUnsupported."""
        require_rights()
        library()
        self._release()
        for folder in (self._paths.pins, *self._others()):
            Pins(folder).remove()
        with contextlib.suppress(OSError):
            self._paths.bpf.rmdir()
        self._let_go()

    def _others(self) -> list[Path]:
        """Folders of pins of other versions."""
        return [folder for folder in self._paths.layouts if folder != self._paths.pins]

    def close(self) -> None:
        """What is pinned goes on."""
        self._release()
        self._let_go()

    def _release(self) -> None:
        if self.driver is not None:
            self.driver.callouts.close()
            self.driver = None

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
