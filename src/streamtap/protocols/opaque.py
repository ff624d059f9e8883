"""The parser for what no parser knows: how many bytes, which way, and nothing else."""

from collections import deque
from collections.abc import Iterator
from typing import ClassVar

from streamtap.events import Event
from streamtap.model import Direction
from streamtap.protocols._base import Limits, Verdict
from streamtap.protocols._buffer import drain


class OpaqueData(Event, frozen=True, kw_only=True, tag="opaque.data"):
    """Bytes that arrived together; none of them is kept."""

    mergeable: ClassVar[bool] = True


class OpaqueParser:
    """Counts. A gap has no consequences here: nothing is held, nothing can be out of step."""

    name: ClassVar[str] = "opaque"
    events: ClassVar[tuple[type[Event], ...]] = (OpaqueData,)

    def __init__(self, *, limits: Limits, midstream: bool) -> None:
        self._offsets = [0, 0]
        self._ready: tuple[deque[Event], deque[Event]] = (deque(), deque())

    @classmethod
    def probe(cls, to_server: bytes, to_client: bytes) -> Verdict:
        """Claims nothing: detection falls back on it."""
        return Verdict.NO

    def receive(self, direction: Direction, data: bytes | memoryview) -> Iterator[Event]:
        length = len(data)
        offset = self._offsets[direction]
        self._offsets[direction] = offset + length
        ready = self._ready[direction]
        if length:
            ready.append(OpaqueData(offset=offset, length=length))
        return drain(ready)

    def gap(self, direction: Direction, length: int) -> Iterator[Event]:
        self._offsets[direction] += length
        return drain(self._ready[direction])

    def end(self, direction: Direction) -> Iterator[Event]:
        return drain(self._ready[direction])

    @property
    def held(self) -> int:
        return 0
