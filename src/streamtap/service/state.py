"""Filters and trace sessions as values, and on disk: text, replaced as a whole, never half
written, readable by root alone."""

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from streamtap.errors import NotFound, PermissionMissing, StreamtapError
from streamtap.flows.scope import Scope

LIMIT_BYTES = 256 << 20
KEEP = 4
VERSION = 1
Level = Literal["none", "meta", "full"]  # of content
MAX_BYTES = 16 << 20  # of a file: thousands of sessions
T = TypeVar("T", bound=msgspec.Struct)


class Filter(msgspec.Struct, frozen=True):
    """A filter on the callouts.

    bit: 0 … 63, by which the callouts know it. protocol: forced on its flows.
    content: the most that any session is told of its flows (none, meta, full); None: what the
        session asks for.
    process: of a scope by process number, which process of all that ever had the number.
    """

    name: Annotated[str, msgspec.Meta(min_length=1)]
    scope: Scope
    bit: Annotated[int, msgspec.Meta(ge=0, lt=64)]
    enabled: bool = True
    protocol: str | None = None
    content: Level | None = None
    added_ns: int = 0
    process: str = ""


class Recorded(msgspec.Struct, frozen=True):
    """A stored trace session, which records whenever the service runs.

    selection: words of the trace grammar; none: everything but `all_traffic`.
    outputs: absolute paths, JSON lines or SQLite by their ending.
    uid, user: who asked for it, with whose rights it is recorded.
    filters: names; none: all filters.
    limit_bytes, keep: a recording of that size is rotated, and so many old ones are kept.
    """

    name: str
    selection: tuple[str, ...]
    outputs: tuple[str, ...]
    content: Level = "meta"
    uid: int = 0
    user: str = "root"
    filters: tuple[str, ...] = ()
    limit_bytes: int = LIMIT_BYTES
    keep: int = KEEP
    started_ns: int = 0


class Filters(msgspec.Struct, frozen=True):
    """enabled: false where everything was disabled at once."""

    version: int = VERSION
    enabled: bool = True
    filters: tuple[Filter, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError, for what somebody wrote by hand."""
        for what in ("name", "bit"):
            values = [getattr(one, what) for one in self.filters]
            if len(set(values)) != len(values):
                raise ValueError(f"two filters have the same {what}")

    @property
    def mask(self) -> int:
        """The bits in force."""
        return sum(1 << one.bit for one in self.filters if one.enabled) if self.enabled else 0

    @property
    def known(self) -> int:
        return sum(1 << one.bit for one in self.filters)


class Sessions(msgspec.Struct, frozen=True):
    version: int = VERSION
    sessions: tuple[Recorded, ...] = ()


def require(names: Iterable[str], filters: Iterable[Filter]) -> None:
    """Raises NotFound where none of the filters has a name."""
    known = {one.name for one in filters}
    for name in names:
        if name not in known:
            raise NotFound(f"no filter {name}", "streamtap list shows what there is")


def load(path: Path, form: type[T], *, force: bool = False, kept: list[Path] | None = None) -> T:
    """What a file holds; what `form` is by itself where there is no file.

    Raises StreamtapError where it is damaged, or of a later version. force: it is put aside, and
        the state is begun anew; where it is then is added to `kept`.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
        value = msgspec.json.decode(text, type=form)
        if getattr(value, "version", VERSION) != VERSION:
            raise ValueError("of another version of streamtap")
        return value
    except FileNotFoundError:
        return form()
    except PermissionError as error:
        raise PermissionMissing(f"{path}: {error.strerror}", "run with sudo") from error
    except OSError as error:
        raise StreamtapError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if not force:
            raise StreamtapError(
                f"{path} is damaged: {error}",
                "mend it, or put it aside and begin with none: streamtap start --force",
            ) from error
        new = aside(path)
        os.rename(path, new)
        if kept is not None:
            kept.append(new)
        return form()


def aside(path: Path) -> Path:
    """Where a damaged file is kept."""
    return path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")


def save(path: Path, value: msgspec.Struct) -> None:
    """All of it is on disk when this returns, or, where it raises StreamtapError, what was there
    before is there still."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)  # it may have been removed
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        if isinstance(error, PermissionError):
            raise PermissionMissing(f"{path}: {error.strerror}", "run with sudo") from error
        raise StreamtapError(f"{path} cannot be written: {error.strerror}") from error
