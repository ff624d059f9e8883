"""The trace sessions that are stored: those that record whenever the service runs."""

from collections.abc import Sequence
from pathlib import Path

from streamtap.errors import AlreadyExists, NotFound, StreamtapError
from streamtap.service.state import Filter, Recorded, Sessions, load, require, save
from streamtap.service.wire import request_of
from streamtap.trace import parse
from streamtap.trace.rotation import name_of

MAX_SESSIONS = 4000


class StoredSessions:
    """sessions: what is on disk, in the order in which they were added."""

    def __init__(self, path: Path, *, force: bool, kept: list[Path]) -> None:
        """Raises what `state.load` does."""
        self._path = path
        self._value = load(path, Sessions, force=force, kept=kept)

    @property
    def sessions(self) -> Sequence[Recorded]:
        return self._value.sessions

    @property
    def is_current(self) -> bool:
        """Nobody else has changed them since. Raises what `state.load` does."""
        return load(self._path, Sessions) == self._value

    def add(self, session: Recorded, filters: Sequence[Filter]) -> None:
        """filters: those that it may name. Raises AlreadyExists, NotFound for a filter that is not
        there, ValueError for words, or what the service would not take."""
        request_of(session)
        parse(session.selection)
        if any(one.name == session.name for one in self.sessions):
            raise AlreadyExists(
                f"there is a session {session.name} already", "streamtap trace list shows it"
            )
        require(session.filters, filters)
        for at, output in enumerate(session.outputs):
            if any(_share(output, other) for other in session.outputs[:at]):
                raise ValueError(f"{output} is named twice, or is what rotation makes of another")
            for one in self.sessions:
                if any(_share(output, other) for other in one.outputs):
                    raise AlreadyExists(
                        f"{output} is a file of session {one.name} already, or would become one "
                        "by rotation",
                        "streamtap trace list shows which files are taken",
                    )
        if len(self.sessions) >= MAX_SESSIONS:
            raise StreamtapError(f"there are {MAX_SESSIONS} sessions already, the most at once")
        self._save((*self.sessions, session))

    def remove(self, name: str) -> Recorded:
        """Raises NotFound."""
        for one in self.sessions:
            if one.name == name:
                self._save(tuple(other for other in self.sessions if other is not one))
                return one
        raise NotFound(f"no session {name}", "streamtap trace list shows what there is")

    def _save(self, sessions: tuple[Recorded, ...]) -> None:
        after = Sessions(sessions=sessions)
        save(self._path, after)
        self._value = after


def _share(one: str, other: str) -> bool:
    """Whether two recordings would have a file of one name."""
    first, second = Path(one), Path(other)
    return first == second or name_of(first)[0] == second or name_of(second)[0] == first
