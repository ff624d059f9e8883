"""What is known of one conversation."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from streamtap.events import FlowInfo

SIGNALS = frozenset({"typing", "control"})  # kinds of messages that say nothing by themselves
ENDED = frozenset({"complete", "decline", "cancel"})  # actions that end a transfer


class Transfer(msgspec.Struct):
    """A file, or a picture, call or game (`kind` as in `im.media`).

    action: the last that was seen. size, transferred: bytes, where they are known.
    """

    kind: str
    sender: str | None
    recipients: tuple[str, ...]
    action: str
    name: str | None = None
    size: int | None = None
    transferred: int | None = None


class Line(msgspec.Struct, frozen=True):
    """One message of a transcript; content: its text, where that is known."""

    time_ns: int
    sender: str | None
    kind: str
    size: int
    content: str | None


class Sender(msgspec.Struct):
    """What one account said. messages, bytes: without those of kinds that are `SIGNALS`."""

    messages: int = 0
    bytes: int = 0
    kinds: dict[str, int] = msgspec.field(default_factory=dict)


class Conversation(msgspec.Struct):
    """What is known of one conversation.

    conversation: its name in the records; None where they have none: all of one flow.
    began_ns, ended_ns: the first and the last thing that was seen of it.
    participants: in the order of their appearance. invited: who was asked in and never came.
    transfers: files and media in the order in which they began.
    direct: address, transport and account. errors: code, name and command, and how often.
    missing: bytes that were not seen on its flows, so that messages may be missing here.
    """

    conversation: str | None
    protocol: str
    began_ns: int
    ended_ns: int
    participants: dict[str, None] = msgspec.field(default_factory=dict)
    invited: dict[str, None] = msgspec.field(default_factory=dict)
    senders: dict[str | None, Sender] = msgspec.field(default_factory=dict)
    transfers: list[Transfer] = msgspec.field(default_factory=list)
    direct: dict[tuple[str, str, str | None], None] = msgspec.field(default_factory=dict)
    errors: Counter[tuple[int, str | None, str | None]] = msgspec.field(default_factory=Counter)
    flows: dict[str, FlowInfo] = msgspec.field(default_factory=dict)
    transcript: list[Line] = msgspec.field(default_factory=list)
    missing: int = 0

    @property
    def messages(self) -> int:
        return sum(sender.messages for sender in self.senders.values())

    @property
    def bytes(self) -> int:
        return sum(sender.bytes for sender in self.senders.values())

    @property
    def files(self) -> list[Transfer]:
        return [transfer for transfer in self.transfers if transfer.kind == "file"]

    @property
    def media(self) -> list[Transfer]:
        return [transfer for transfer in self.transfers if transfer.kind != "file"]

    def concerns(self, accounts: Iterable[str]) -> bool:
        """Whether one of these took part, or was asked to."""
        return any(account in self.participants or account in self.invited for account in accounts)
