"""Where the service keeps things: what outlives a reboot, what lives as long as the machine runs,
and what the kernel keeps. Each can be moved, to run beside another installation."""

import os
import re
from pathlib import Path
from typing import NamedTuple, Self

from streamtap.capture.layout import ABI
from streamtap.errors import PermissionMissing, StreamtapError

STATE_DIR, RUN_DIR, BPF_DIR = "/var/lib/streamtap", "/run/streamtap", "/sys/fs/bpf/streamtap"

_LAYOUT = re.compile(r"v[0-9]+")


class Paths(NamedTuple):
    """state: filters, sessions, recordings. run: the control socket, the lock, the
    ledger of flows. bpf: pins."""

    state: Path
    run: Path
    bpf: Path

    @classmethod
    def of_environment(cls) -> Self:
        """By STREAMTAP_STATE_DIR, STREAMTAP_RUN_DIR and STREAMTAP_BPF_DIR. A service in the
        background works in `/`: what is relative is made whole before."""

        def path(variable: str, default: str) -> Path:
            return Path(os.path.abspath(os.environ.get(variable) or default))

        return cls(
            path("STREAMTAP_STATE_DIR", STATE_DIR),
            path("STREAMTAP_RUN_DIR", RUN_DIR),
            path("STREAMTAP_BPF_DIR", BPF_DIR),
        )

    @classmethod
    def usual(cls) -> Self:
        return cls(Path(STATE_DIR), Path(RUN_DIR), Path(BPF_DIR))

    @property
    def filters(self) -> Path:
        return self.state / "filters.json"

    @property
    def sessions(self) -> Path:
        return self.state / "sessions.json"

    @property
    def recordings(self) -> Path:
        """Where sessions record that name no file."""
        return self.state / "recordings"

    @property
    def control(self) -> Path:
        return self.run / "control.sock"

    @property
    def lock(self) -> Path:
        """Held by who may change filters: the service, or for a moment a verb without one."""
        return self.run / "lock"

    @property
    def flows(self) -> Path:
        """The ledger of the flows that sessions were told of, and not of their end."""
        return self.run / "flows"

    @property
    def log(self) -> Path:
        """What a service in the background has to say of itself."""
        return self.run / "log"

    @property
    def pins(self) -> Path:
        """Of this layout of maps: another one has a folder of its own."""
        return self.bpf / f"v{ABI}"

    @property
    def run_files(self) -> tuple[Path, ...]:
        """All that the run folder holds of ours; it may be another's too."""
        half_made = self.control.with_name(f".{self.control.name}.new")
        served = self.control.with_name("control.lock")
        return (self.control, half_made, served, self.lock, self.flows, self.log)

    @property
    def layouts(self) -> tuple[Path, ...]:
        """The folders of pins that there are, of every layout; those of others left out."""
        try:
            found = sorted(self.bpf.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(one for one in found if _LAYOUT.fullmatch(one.name) and one.is_dir())

    def make(self) -> None:
        """The folders of state and run. Raises PermissionMissing, StreamtapError."""
        for folder, mode in (
            (self.state, 0o711),
            (self.recordings, 0o700),
            (self.run, 0o755),
        ):
            try:
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
            except PermissionError as error:
                raise PermissionMissing(
                    f"{folder}: cannot be made: {error.strerror}", "run with sudo"
                ) from error
            except OSError as error:
                raise StreamtapError(f"{folder}: cannot be made: {error.strerror}") from error
