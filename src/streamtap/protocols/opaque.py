"""The parser for what no parser knows: how many bytes, which way, and nothing else."""

from collections.abc import Iterator
from typing import ClassVar

from streamtap.events import Event
from streamtap.model import Direction
from streamtap.protocols._base import Limits, Verdict


class OpaqueData(Event, frozen=True, kw_only=True, tag="opaque.data"):
    """Bytes that arrived together; none of them is kept."""

    mergeable: ClassVar[bool] = True


class OpaqueParser:
    """Counts. A gap has no consequences here: nothing is held, nothing can be out of step."""

    name: ClassVar[str] = "opaque"
    events: ClassVar[tuple[type[Event], ...]] = (OpaqueData,)

    __slots__ = ("_offsets", "_ready")

    def __init__(self, *, limits: Limits, midstream: bool) -> None:
        self._offsets = [0, 0]
        # Lists, not deques: there may be very many of these, and little in any.
        self._ready: tuple[list[Event], list[Event]] = ([], [])

    @classmethod
    def probe(cls, to_server: bytes, to_client: bytes) -> Verdict:
        """Claims nothing: detection falls back on it."""
        return Verdict.NO

    @classmethod
    def speaks(cls, data: bytes) -> Direction | None:
        """Nothing tells."""
        return None

    def receive(self, direction: Direction, data: bytes | memoryview) -> Iterator[Event]:
        length = len(data)
        offset = self._offsets[direction]
        self._offsets[direction] = offset + length
        ready = self._ready[direction]
        if length:
            ready.append(OpaqueData(offset=offset, length=length))
        return _drain(ready)

    def gap(self, direction: Direction, length: int) -> Iterator[Event]:
        self._offsets[direction] += length
        return _drain(self._ready[direction])

    def end(self, direction: Direction) -> Iterator[Event]:
        return _drain(self._ready[direction])

    @property
    def sides_apart(self) -> bool:
        return True

    @property
    def held(self) -> int:
        return 0


def _drain(ready: list[Event]) -> Iterator[Event]:
    while ready:
        yield ready.pop(0)
