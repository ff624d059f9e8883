"""Plain send and receive: bytes of a flow that no parser understands, joined to bursts.

A burst ends when the direction changes, after a pause, or when it is old, all by the times of the
data, so that a live flow and its capture give the same bursts. It ends too where the clock was put
back: no burst waits for the time that was taken away.
"""

import base64
from collections.abc import Sequence

from streamtap.model import Direction
from streamtap.patterns.model import Data, Meaning

PAUSE_NS = 20_000_000
AGE_NS = 1_000_000_000
_AHEAD_NS = 2 * AGE_NS  # by so much no burst ends later than now, but where the clock was put back
CONTENT = 64 * 1024  # bytes of a burst that are kept to be shown

NOTHING: Sequence[Meaning] = ()


class _Burst:
    __slots__ = (
        "began_ns",
        "bytes",
        "content",
        "direction",
        "end",
        "last_ns",
        "offset",
        "protocol",
    )

    def begin(
        self, protocol: str, direction: Direction, time_ns: int, offset: int, length: int, size: int
    ) -> None:
        """Start anew; in a chat every message does, so the object stays."""
        self.protocol = protocol
        self.direction = direction
        self.began_ns = time_ns
        self.last_ns = time_ns
        self.offset = offset
        self.end = offset + length
        self.bytes = size
        self.content: bytearray | None = None


class Bursts:
    """The open burst of each flow."""

    def __init__(self) -> None:
        self._open: dict[int, _Burst] = {}
        self._due_ns = 0  # no burst ends before; a lower bound, so that most ticks cost nothing

    def __len__(self) -> int:
        return len(self._open)

    def add(
        self,
        flow_id: int,
        protocol: str,
        direction: Direction,
        time_ns: int,
        offset: int,
        length: int,
        size: int,
        data: bytes | memoryview | None,
    ) -> Sequence[Meaning]:
        """Adds `size` bytes that stand at `offset` … `offset + length`; gives what they end."""
        burst = self._open.get(flow_id)
        if (
            burst is not None
            and burst.direction is direction
            and burst.end == offset
            and time_ns - burst.last_ns < PAUSE_NS
            and -AGE_NS < time_ns - burst.began_ns < AGE_NS
            and burst.protocol == protocol
        ):
            burst.end = offset + length
            burst.bytes += size
            if time_ns > burst.last_ns:
                burst.last_ns = time_ns
            ended = NOTHING
        else:
            if not self._open or time_ns + PAUSE_NS < self._due_ns:
                self._due_ns = time_ns + PAUSE_NS
            if burst is None:
                ended = NOTHING
                burst = self._open[flow_id] = _Burst()
            else:
                ended = (_meaning(flow_id, burst),)
            burst.begin(protocol, direction, time_ns, offset, length, size)
        if data is not None:
            if burst.content is None:
                burst.content = bytearray()
            room = CONTENT - len(burst.content)
            if room > 0:
                burst.content += data[:room]
        return ended

    def begins(self, flow_id: int, direction: Direction) -> int | None:
        """Where the burst that a direction is in begins; None where none is open."""
        burst = self._open.get(flow_id)
        return burst.offset if burst is not None and burst.direction is direction else None

    def end(self, flow_id: int) -> Sequence[Meaning]:
        """Ends the burst of one flow."""
        burst = self._open.pop(flow_id, None)
        return NOTHING if burst is None else (_meaning(flow_id, burst),)

    def tick(self, now_ns: int) -> Sequence[Meaning]:
        """Ends the bursts whose pause, or age, has passed, oldest first."""
        if not self._open or 0 < self._due_ns - now_ns <= _AHEAD_NS:
            return NOTHING
        due_ns = now_ns + AGE_NS
        over = []
        for flow_id, burst in self._open.items():
            end_ns = min(burst.last_ns + PAUSE_NS, burst.began_ns + AGE_NS)
            if now_ns >= end_ns or end_ns - now_ns > _AHEAD_NS:
                over.append(flow_id)
            elif end_ns < due_ns:
                due_ns = end_ns
        self._due_ns = due_ns
        ended = [_meaning(flow_id, self._open.pop(flow_id)) for flow_id in over]
        ended.sort(key=lambda meaning: meaning.time_ns)
        return ended


def _meaning(flow_id: int, burst: _Burst) -> Meaning:
    text, encoded = (None, None) if burst.content is None else shown(burst.content)
    return Meaning(
        flow_id,
        burst.direction,
        burst.last_ns,
        Data(
            offset=burst.offset,
            length=burst.end - burst.offset,
            protocol=burst.protocol,
            bytes=burst.bytes,
            content=text,
            content_base64=encoded,
        ),
    )


def shown(content: bytes | bytearray) -> tuple[str | None, str | None]:
    """Bytes as text where they are UTF-8, else as base64."""
    try:
        return content.decode(), None
    except UnicodeDecodeError as error:
        # The bound may have cut a character in two.
        if error.start >= len(content) - 3 and error.reason == "unexpected end of data":
            return content[: error.start].decode(), None
        return None, base64.b64encode(content).decode()
