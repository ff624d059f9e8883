"""Messages in several parts (`Message-ID`, `Chunks`, `Chunk`), put together within bounds."""

from collections.abc import Iterator
from typing import NamedTuple

from streamtap.model import Direction
from streamtap.patterns.level import Level
from streamtap.patterns.model import CLIENT_CLIENT, Meaning, Message
from streamtap.patterns.msnp.client import Place
from streamtap.patterns.msnp.mime import Mime, shown_text

PARTS = 1024
SIZE = 1024 * 1024  # of one message
WAIT_NS = 120_000_000_000
OPEN = 256  # unfinished messages of all flows
HELD = 16 * 1024 * 1024  # bytes of all of them
MARK = 256  # characters by which messages are told apart; a GUID is shorter

_Key = tuple[object, Direction, str | None, str]


class Talk(NamedTuple):
    """Who says it to whom, and where its first part stands."""

    place: Place
    conversation: str
    sender: str | None
    recipients: tuple[str, ...]


class _Parts:
    __slots__ = ("bodies", "count", "first", "held", "size", "talk")

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
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
    """The unfinished messages of all flows. What has to go before it is whole is told as far as it
    came.

    level: at full the bodies are wanted, not only their sizes.
    """

    def __init__(self, level: Level) -> None:
        self._level = level
        self._open: dict[_Key, _Parts] = {}
        self._held = 0
        self._gone: list[Meaning] = []  # what had to make room, until it is asked for

    def __len__(self) -> int:
        """How many `expire`, `gone` and `end` may have something to say of."""
        return len(self._open) + len(self._gone)

    def add(self, owner: object, talk: Talk, mime: Mime) -> Mime | None:
        """The whole message, with the part that completes it, or that passes a bound.

        owner: the connection. What a client says is its own, whether its account is known or not.
        """
        side = talk.place.direction
        sender = talk.sender if side is Direction.TO_CLIENT else None
        key = owner, side, sender, mime.fields["message-id"][:MARK]
        number = mime.fields.get("chunk", "0")
        place = int(number) if number.isdecimal() and len(number) <= 4 else 0
        parts = self._open.get(key)
        if parts is not None and place in parts.bodies:  # the name begins another message
            self._give_up(key)
            parts = None
        if parts is None:
            if len(self._open) >= OPEN or self._held >= HELD:
                self._give_up(next(iter(self._open)))
            parts = self._open[key] = _Parts(talk)
        announced = mime.fields.get("chunks", "")
        if announced.isdecimal() and len(announced) <= 4:
            parts.count = int(announced) or 1
            parts.first = mime
        body = mime.body if self._level.full else b""
        parts.bodies[place] = body
        parts.size += mime.size
        parts.held += len(body)
        self._held += len(body)
        whole = 0 < parts.count <= len(parts.bodies)
        if whole or len(parts.bodies) > PARTS or parts.size > SIZE:
            return self._drop(key).joined()
        return None

    def _drop(self, key: _Key) -> _Parts:
        parts = self._open.pop(key)
        self._held -= parts.held
        return parts

    def _give_up(self, key: _Key) -> None:
        self._gone.append(_incomplete(self._drop(key)))

    def expire(self, now_ns: int) -> Iterator[Meaning]:
        """What is still incomplete after long enough, as far as it came."""
        for key, parts in list(self._open.items()):
            if now_ns - parts.talk.place.time_ns < WAIT_NS:
                return  # they began one after the other
            yield _incomplete(self._drop(key))

    def gone(self) -> list[Meaning]:
        """What had to make room for others, as far as it came; told once."""
        gone, self._gone = self._gone, []
        return gone

    def end(self, owner: object) -> Iterator[Meaning]:
        """What a connection that ended has left incomplete."""
        for key in [key for key in self._open if key[0] is owner]:
            yield _incomplete(self._drop(key))


def _incomplete(parts: _Parts) -> Meaning:
    mime = parts.joined()
    talk = parts.talk
    place = talk.place
    message = Message(
        offset=place.offset,
        length=place.length,
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
    return Meaning(place.flow_id, place.direction, place.time_ns, message)
