"""Asking the service, from Python: `streamtap.connect()`.

with streamtap.connect() as service:
    for record in service.records("notify:peer_to_peer", last=60):
        print(record.body)
"""

import contextlib
import grp
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from streamtap import __version__
from streamtap.capture.inspect import LiveFlow
from streamtap.errors import NotRunning, PermissionMissing, ServiceError
from streamtap.service.listening import connect as connect_to
from streamtap.service.paths import Paths
from streamtap.service.peers import GROUP
from streamtap.service.protocol import (
    MAX_REPLY,
    AddFilters,
    Attach,
    Attached,
    Content,
    DeleteFilters,
    Disable,
    Enable,
    Flows,
    List,
    NewFilter,
    Remove,
    Request,
    SessionInfo,
    Sessions,
    Status,
    StatusReply,
    Stop,
    TraceStop,
)
from streamtap.service.state import KEEP, LIMIT_BYTES, Filter, Recorded
from streamtap.service.stream import Lines, Records
from streamtap.service.wire import checked, decode_reply, encode_request, error_of, request_of
from streamtap.trace.text import printable

END_S = 60.0  # for what the rings hold, and for recordings to be written
TIMEOUT_S = 60.0  # a service that is asked much makes its clients wait
_SCOPES = ("exe", "comm", "cmdline", "pid", "uid", "cgroup", "unit")
T = TypeVar("T")


class Client:
    """The service, asked over its control socket; see `Operations` for what each thing does.

    Raises NotRunning where no service answers, PermissionMissing, NotFound, AlreadyExists and
    other StreamtapErrors as the service says, ValueError for what cannot be meant.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else Paths.of_environment().control
        self._number = 0
        self._holds = False  # filters that go with the connection
        self._lines = Lines(_connect(self.path))

    # --- what there is -----------------------------------------------------------------------

    def status(self) -> StatusReply:
        return self._ask(Status(), StatusReply)

    @property
    def enabled(self) -> bool:
        """Not everything was disabled at once."""
        return self.status().enabled

    def filters(self) -> tuple[Filter, ...]:
        return self._ask(List(), tuple[Filter, ...])

    def flows(self) -> tuple[LiveFlow, ...]:
        return self._ask(Flows(), tuple[LiveFlow, ...])

    def sessions(self) -> tuple[SessionInfo, ...]:
        return self._ask(Sessions(), tuple[SessionInfo, ...])

    # --- filters -----------------------------------------------------------------------------

    def add(
        self, filters: Sequence[NewFilter | str], *, temporary: bool = False
    ) -> tuple[Filter, ...]:
        """Adds filters, all or none. A text is the path of an executable, or a glob.

        temporary: they live as long as this client is open.
        """
        if isinstance(filters, str):
            raise TypeError("filters are a sequence: [path]")
        asked = tuple(new_filter("exe", one) if isinstance(one, str) else one for one in filters)
        added = self._ask(AddFilters(filters=asked, temporary=temporary), tuple[Filter, ...])
        self._holds |= temporary
        return added

    def delete(self, names: Sequence[str]) -> tuple[Filter, ...]:
        return self._ask(DeleteFilters(names=tuple(names)), tuple[Filter, ...])

    def enable(self, name: str | None = None) -> None:
        self._exchange(Enable(name=name))

    def disable(self, name: str | None = None) -> None:
        self._exchange(Disable(name=name))

    def remove(self) -> None:
        """Filters, callouts and pins; the service ends."""
        self._exchange(Remove())

    def stop(self, *, hold: bool = False) -> None:
        """Ends the service; callouts and filters stay. hold: what passes is kept for the next one,
        as far as there is room."""
        self._exchange(Stop(hold=hold))

    def wait_until_ended(self, timeout_s: float = END_S) -> None:
        """After `stop` or `remove`: until the service has let go of this connection, the last thing
        that it does. Raises ServiceError where it takes longer."""
        if self._lines.read(timeout_s) is not None:
            raise ServiceError(f"the service has not ended within {timeout_s:.0f} s")

    # --- sessions ----------------------------------------------------------------------------

    def start_trace(
        self,
        name: str,
        *selection: str,
        outputs: Sequence[str | os.PathLike[str]] = (),
        content: Content = "meta",
        filters: Sequence[str] = (),
        limit_bytes: int = LIMIT_BYTES,
        keep: int = KEEP,
    ) -> Recorded:
        """Records from now on, whenever the service runs, until `stop_trace`.

        selection: `COMPONENT[:FLAG,…][@LEVEL]`; none: everything but `all_traffic`. outputs: files,
        by their ending JSON lines or SQLite; none: one in the folder of the service's state.
        filters: names; none: all.
        """
        paths = [file_of(path) for path in outputs]
        return self.add_session(
            Recorded(
                name=name,
                selection=selection,
                outputs=tuple(paths or [str(own_recording(name))]),
                content=content,
                filters=tuple(filters),
                limit_bytes=limit_bytes,
                keep=keep,
            )
        )

    def stop_trace(self, name: str) -> Recorded:
        return self.remove_session(name)

    def add_session(self, session: Recorded) -> Recorded:
        return self._ask(request_of(session), Recorded)

    def remove_session(self, name: str) -> Recorded:
        return self._ask(TraceStop(name=name), Recorded)

    def records(
        self,
        *selection: str,
        content: Content = "meta",
        filters: Sequence[str] = (),
        last: float | None = None,
        name: str = "",
    ) -> Records:
        """A live session, on a connection of its own: records as they come.

        last: begin with those of so many seconds before. The rest as in `start_trace`.
        """
        lines = Lines(_connect(self.path))
        try:
            request = Attach(
                selection=selection,
                content=content,
                filters=tuple(filters),
                last_s=last,
                name=name,
            )
            attached = _result(_exchange(lines, _stamped(request, 1)), Attached)
        except BaseException:
            lines.close()
            raise
        return Records(lines, attached.name)

    # --- the connection ----------------------------------------------------------------------

    def _ask(self, request: Request, form: type[T]) -> T:
        return _result(self._exchange(request), form)

    def _exchange(self, request: Request) -> msgspec.Raw:
        if self._lines.is_at_end() and not self._holds:  # for want of words
            self._lines.close()
            self._lines = Lines(_connect(self.path))
        self._number += 1
        return _exchange(self._lines, _stamped(request, self._number))

    def close(self) -> None:
        """Temporary filters go; a second call does nothing."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def connect(path: str | os.PathLike[str] | None = None) -> Client:
    """The service of this machine, or the one whose control socket is at `path`.

    Raises NotRunning, PermissionMissing.
    """
    return Client(path)


def new_filter(
    kind: str,
    given: str,
    *,
    name: str = "",
    follow_forks: bool = False,
    protocol: str | None = None,
    content: str | None = None,
) -> NewFilter:
    """What a person wrote, made whole by the directory and the PATH of this process. Raises
    ValueError for what cannot be meant."""
    if kind not in _SCOPES:
        raise ValueError(f"{kind!r} is no kind of scope that can be written down")
    if not given.strip() or "\0" in given:
        raise ValueError(f"--{kind} needs a value")
    for text in (given, name):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{printable(text)} is not UTF-8, and cannot be written down: name it by a glob"
            ) from None
    path = _whole(given) if kind == "exe" else ""
    fields: dict[str, object] = {
        "kind": kind,
        "given": given,
        "path": path,
        "name": name,
        "follow_forks": follow_forks,
        "protocol": protocol,
        "content": content,
    }
    return checked(fields, NewFilter)


def _whole(given: str) -> str:
    """The path that is meant; "" where the service finds out as well, or as little."""
    if "/" in given:
        # A glob that begins with * is matched against whole paths as it is.
        return "" if given[0] == "*" else os.path.abspath(given)
    return os.path.abspath(found) if (found := shutil.which(given)) else ""


def file_of(path: str | os.PathLike[str]) -> str:
    """The one name of a file by which two sessions that record in it are known: it goes by the
    directory of this process, and through links."""
    return os.path.realpath(os.fspath(path))


def own_recording(name: str) -> Path:
    """The file of a session that names none; root finds its folder made. Raises OSError."""
    folder = Paths.of_environment().recordings
    if os.getuid() == 0:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"{name}.jsonl"


def _connect(path: Path) -> socket.socket:
    try:
        return connect_to(path)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise NotRunning("the service is not running", "sudo streamtap start") from None
    except PermissionError as error:
        raise _refused(error) from error
    except OSError as error:
        raise ServiceError(f"{path}: {error.strerror}") from error


def _refused(error: PermissionError) -> PermissionMissing:
    try:
        grp.getgrnam(GROUP)
    except KeyError:  # nobody can be made a member of it
        return PermissionMissing(
            f"the service answers only root: {error.strerror}", "run with sudo"
        )
    return PermissionMissing(
        f"the service answers only root and members of the group {GROUP}: {error.strerror}",
        f"run with sudo, or: sudo usermod -aG {GROUP} $USER",
    )


def _stamped(request: Request, number: int) -> Request:
    return msgspec.structs.replace(request, id=number, version=__version__)


def _exchange(lines: Lines, request: Request) -> msgspec.Raw:
    """Asks; the result as it came."""
    said = encode_request(request)
    try:
        with contextlib.suppress(BrokenPipeError):  # it says why, or has gone
            lines.send(said)
        line = lines.read(TIMEOUT_S, MAX_REPLY)
    except OSError as error:
        raise ServiceError(f"the service cannot be asked: {error.strerror or error}") from error
    except ValueError as error:
        raise ServiceError(f"the service answers with {error}") from None
    if line is None:
        raise ServiceError("the service has ended the connection", "see: streamtap status")
    if not line:
        raise ServiceError(f"the service does not answer within {TIMEOUT_S:.0f} s")
    try:
        reply = decode_reply(line)
    except ValueError as error:
        raise _not_understood(error) from error
    if reply.error is not None:
        raise error_of(reply.error)
    return reply.result


def _result(raw: msgspec.Raw, form: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=form)
    except msgspec.ValidationError as error:
        raise _not_understood(error) from error


def _not_understood(error: Exception) -> ServiceError:
    return ServiceError(
        f"the reply of the service is not understood by streamtap {__version__}: {error}",
        "are they of the same version? sudo streamtap restart",
    )
