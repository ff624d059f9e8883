"""The systemd unit, by which the filters are back after a reboot."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from streamtap.errors import PermissionMissing, StreamtapError
from streamtap.service.paths import Paths

NAME = "streamtap.service"
TEMPLATE = Path(__file__).with_name(NAME)
MANAGED = Path("/run/systemd/system")  # is there where systemd runs the machine: sd_booted(3)
ADMINISTRATOR = Path("/etc/systemd/system")
# Units that came with a package of the distribution. They are enabled, and never written.
PACKAGED = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))

_EXECUTABLE = "/usr/bin/streamtap"  # in the template
_OURS = "# Written by streamtap"


def install(executable: str) -> Path | None:
    """Writes the unit that starts `executable` (an absolute path), and enables it for the next
    boot; gives its file. None where systemd does not run the machine: see `one_line`; and where the
    folders of the service are others than the usual ones, of which a unit does not know.

    STREAMTAP_UNIT_DIR is where the unit goes instead; systemd is then told nothing. A unit that
    somebody else wrote is enabled as it is. Raises StreamtapError.
    """
    if (folder := _folder()) is None:
        return None
    path = folder / NAME
    packaged = [there / NAME for there in PACKAGED if (there / NAME).exists()]
    if not _moved() and packaged and not path.exists():
        path = packaged[0]
    elif not path.exists() or _is_ours(path):
        _write(path, text(executable))
    if not _moved():
        _systemctl("daemon-reload")
        _systemctl("enable", NAME)
    return path


def remove() -> Path | None:
    """Disables the unit, and removes it if it is ours; gives the file that is gone. A service that
    runs is not touched. Raises StreamtapError."""
    if (folder := _folder()) is None:
        return None
    path = folder / NAME
    ours = path.exists() and _is_ours(path)
    if not _moved() and (ours or any((there / NAME).exists() for there in PACKAGED)):
        _systemctl("disable", NAME)
    if not ours:
        return None
    try:
        path.unlink()
    except OSError as error:
        raise _failed(path, "removed", error) from error
    if not _moved():
        _systemctl("daemon-reload")
    return path


def one_line(executable: str) -> str:
    """What another init system is to run."""
    return f"{executable} start"


def text(executable: str) -> str:
    """The unit that starts `executable`."""
    return TEMPLATE.read_text().replace(f"={_EXECUTABLE} ", f"={_quoted(executable)} ")


def _quoted(path: str) -> str:
    """As a word of a command line in a unit: systemd.service(5), Command lines."""
    path = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{path}"' if set(path) & set(" \t'\"\\;") else path


def _moved() -> str:
    return os.environ.get("STREAMTAP_UNIT_DIR", "")


def _folder() -> Path | None:
    if moved := _moved():
        return Path(moved)
    if Paths.of_environment() != Paths.usual():
        return None  # it would start a service on other folders, or be of the one there
    return ADMINISTRATOR if MANAGED.is_dir() else None


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text().startswith(_OURS)
    except (OSError, ValueError):
        return False


def _write(path: Path, content: str) -> None:
    new = path.with_name(f".{NAME}.new")
    try:
        new.write_text(content)
        new.chmod(0o644)
        os.replace(new, path)  # never half a unit
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise _failed(path, "written", error) from error


def _failed(path: Path, what: str, error: OSError) -> StreamtapError:
    kind = PermissionMissing if isinstance(error, PermissionError) else StreamtapError
    hint = "run with sudo" if kind is PermissionMissing else ""
    return kind(f"{path} cannot be {what}: {error.strerror}", hint)


def _systemctl(*words: str) -> None:
    command = ["systemctl", "--quiet", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StreamtapError(f"systemctl {' '.join(words)}: {error}") from error
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise StreamtapError(f"systemctl {' '.join(words)}: {told[0]}")
