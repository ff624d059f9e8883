"""Messages in several parts (`Message-ID`, `Chunks`, `Chunk`), put together within bounds."""

from collections.abc import Iterator
from typing import NamedTuple

from streamtap.model import Direction
from streamtap.patterns.level import Level
from streamtap.patterns.model import CLIENT_CLIENT, Meaning, Message
from streamtap.patterns.msnp.mime import Mime, shown_text
from streamtap.protocols.msnp import MsnpCommand

PARTS = 1024
SIZE = 1024 * 1024  # of one message
WAIT_NS = 120_000_000_000
OPEN = 256  # unfinished messages of all flows
HELD = 16 * 1024 * 1024  # bytes of all of them


class Talk(NamedTuple):
    """Who says it to whom, and where."""

    flow_id: int
    direction: Direction
    conversation: str
    sender: str | None
    recipients: tuple[str, ...]


class _Parts:
    __slots__ = ("bodies", "count", "event", "first", "held", "size", "talk", "time_ns")

    def __init__(self, talk: Talk, time_ns: int, event: MsnpCommand) -> None:
        self.talk = talk
        self.time_ns = time_ns
        self.event = event
        self.first: Mime | None = None
        self.count = 0  # announced parts, 0 while unknown
        self.bodies: dict[int, bytes] = {}
        self.size = 0
        self.held = 0

    def joined(self) -> Mime:
        body = b"".join(self.bodies[part] for part in sorted(self.bodies))
        if self.first is None:
            return Mime("unknown", "other", {}, body, self.size)
        return self.first._replace(body=body, size=self.size)


class Chunks:
    """The unfinished messages of all flows.

    level: at full the bodies are wanted, not only their sizes.
    """

    def __init__(self, level: Level) -> None:
        self._level = level
        self._open: dict[tuple[int, Direction, str | None, str], _Parts] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, talk: Talk, time_ns: int, event: MsnpCommand, mime: Mime) -> Mime | None:
        """The whole message, with the part that completes it, or that passes a bound."""
        key = talk.flow_id, talk.direction, talk.sender, mime.fields["message-id"]
        parts = self._open.get(key)
        if parts is None:
            if len(self._open) >= OPEN or self._held >= HELD:
                self._drop(next(iter(self._open)))
            parts = self._open[key] = _Parts(talk, time_ns, event)
        announced = mime.fields.get("chunks", "")
        if announced.isdecimal() and len(announced) <= 4:
            parts.count = int(announced) or 1
            parts.first = mime
        number = mime.fields.get("chunk", "0")
        place = int(number) if number.isdecimal() and len(number) <= 4 else 0
        if place not in parts.bodies:
            body = mime.body if self._level.full else b""
            parts.bodies[place] = body
            parts.size += mime.size
            parts.held += len(body)
            self._held += len(body)
        whole = 0 < parts.count <= len(parts.bodies)
        if whole or len(parts.bodies) > PARTS or parts.size > SIZE:
            return self._drop(key).joined()
        return None

    def _drop(self, key: tuple[int, Direction, str | None, str]) -> _Parts:
        parts = self._open.pop(key)
        self._held -= parts.held
        return parts

    def expire(self, now_ns: int) -> Iterator[Meaning]:
        """What is still incomplete after long enough, as far as it came."""
        for key, parts in list(self._open.items()):
            if now_ns - parts.time_ns < WAIT_NS:
                return  # they began one after the other
            yield _incomplete(self._drop(key))

    def end(self, flow_id: int) -> Iterator[Meaning]:
        """What a flow that ended has left incomplete."""
        for key in [key for key in self._open if key[0] == flow_id]:
            yield _incomplete(self._drop(key))


def _incomplete(parts: _Parts) -> Meaning:
    mime = parts.joined()
    talk = parts.talk
    message = Message(
        offset=parts.event.offset,
        length=parts.event.length,
        protocol="msnp",
        pattern=CLIENT_CLIENT,
        conversation=talk.conversation,
        sender=talk.sender,
        recipients=talk.recipients,
        kind=mime.kind,
        content_type=mime.content_type,
        size=mime.size,
        content=shown_text(mime.body),  # empty where the text is not wanted
    )
    return Meaning(talk.flow_id, talk.direction, parts.time_ns, message)
