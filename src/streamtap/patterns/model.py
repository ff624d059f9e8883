"""Patterns: what was meant, in words that every messaging protocol shares.

A client-to-server pattern is about the application and a service; a client-to-client pattern is
about people who talk to each other, whichever way the bytes took. Names are account names.
"""

from typing import ClassVar, Literal

import msgspec

from streamtap.events import Event, Place
from streamtap.model import Direction

CLIENT_SERVER: Literal["client-to-server"] = "client-to-server"
CLIENT_CLIENT: Literal["client-to-client"] = "client-to-client"


class Pattern(Event, frozen=True, kw_only=True):
    """Base: the protocol, who is concerned, and the conversation, where there is one."""

    flag: ClassVar[str] = "client_server"
    level: ClassVar[str] = "info"
    protocol: str
    pattern: Literal["client-to-server", "client-to-client"] = CLIENT_SERVER
    conversation: str | None = None
    between: ClassVar[Place]  # people

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.between = (cls.provider, "peer_to_peer", cls.level)

    def place(self) -> Place:
        return self.between if self.pattern == CLIENT_CLIENT else self.home


class Connect(Pattern, frozen=True, kw_only=True, tag="im.connect"):
    """The client came to a service (notification, switchboard, dispatch, direct…)."""

    service: str
    protocol_version: str | None = None
    client: str | None = None


class SignIn(Pattern, frozen=True, kw_only=True, tag="im.sign_in"):
    """An account signed in to the service; display_name: what it is shown as."""

    account: str
    display_name: str | None = None


class SignOut(Pattern, frozen=True, kw_only=True, tag="im.sign_out"):
    """An account left the service; reason: why, as far as it was seen."""

    account: str | None
    reason: str | None = None


class Presence(Pattern, frozen=True, kw_only=True, tag="im.presence"):
    """Somebody's state, but not that within a circle or group alone, which `im.join` tells; status:
    online busy idle away brb phone lunch invisible offline; personal_message: the words beside it,
    only with `--content full`."""

    account: str
    status: str
    display_name: str | None = None
    personal_message: str | None = None


class Contacts(Pattern, frozen=True, kw_only=True, tag="im.contacts"):
    """A contact list (`count`) or one change to it (`contact`); action: list add remove block."""

    account: str | None
    action: str
    count: int | None = None
    contact: str | None = None
    lists: tuple[str, ...] = ()


class Redirect(Pattern, frozen=True, kw_only=True, tag="im.redirect"):
    """The service sends the client to another server; to: its host:port."""

    to: str
    service: str


class Invite(Pattern, frozen=True, kw_only=True, tag="im.invite"):
    """An account is asked into a conversation; by: who asks."""

    account: str
    by: str | None


class Join(Pattern, frozen=True, kw_only=True, tag="im.join"):
    """An account came into a conversation; participants: who is in it now."""

    account: str
    participants: tuple[str, ...]


class Leave(Pattern, frozen=True, kw_only=True, tag="im.leave"):
    """An account left a conversation; participants: who is still in it."""

    account: str
    participants: tuple[str, ...]


class Message(Pattern, frozen=True, kw_only=True, tag="im.message"):
    """A message between people; kind: text typing nudge emoticon wink ink voice datacast control
    other; size: bytes of the body; content: its text, only with `--content full`."""

    sender: str | None
    recipients: tuple[str, ...]
    kind: str
    content_type: str
    size: int
    content: str | None = None


class File(Pattern, frozen=True, kw_only=True, tag="im.file"):
    """A file transfer; action: offer accept decline cancel progress complete; size, transferred:
    bytes of the file, and how many of them have passed."""

    action: str
    sender: str | None
    recipients: tuple[str, ...]
    name: str | None = None
    size: int | None = None
    transferred: int | None = None


class Media(Pattern, frozen=True, kw_only=True, tag="im.media"):
    """A picture, call or game; action: as in `im.file`; kind: display_picture webcam voice_call
    video_call whiteboard game emoticon other."""

    action: str
    kind: str
    sender: str | None
    recipients: tuple[str, ...]


class Direct(Pattern, frozen=True, kw_only=True, tag="im.direct"):
    """A client-to-client connection was negotiated or opened; address: the peer's host:port."""

    address: str
    transport: str
    account: str | None = None


class Error(Pattern, frozen=True, kw_only=True, tag="im.error"):
    """The service refused a command; code: its number, 0 where it gave none; name: what that
    means."""

    code: int
    name: str | None = None
    command: str | None = None


class Data(Pattern, frozen=True, kw_only=True, tag="data"):
    """Plain send and receive: a burst of bytes in one direction.

    summary: what a parser can say of it in a few words (the line of an HTTP request).
    content, content_base64: only with `--content full`: the bytes as text where they are UTF-8,
        else as base64; at most the first 64 KiB of the burst.
    """

    flag: ClassVar[str] = "unknown"
    served: ClassVar[Place] = (Pattern.provider, "client_server", Pattern.level)
    bytes: int
    summary: str | None = None
    content: str | None = None
    content_base64: str | None = None

    def place(self) -> Place:
        if self.pattern == CLIENT_CLIENT:
            return self.between
        return self.home if self.protocol == "opaque" else self.served


class Meaning(msgspec.Struct, frozen=True, gc=False):
    """A pattern, and where and when it was seen."""

    flow_id: int
    direction: Direction
    time_ns: int
    pattern: Pattern
