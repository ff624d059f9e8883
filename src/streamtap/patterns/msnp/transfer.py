"""One transfer between two people: a file, a picture, a call."""

from streamtap.patterns.model import CLIENT_CLIENT, File, Media, Pattern
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket

LIVE = frozenset({"webcam", "voice_call", "video_call", "whiteboard", "game"})
NAME = 1024  # characters of a file's name; no file system has longer ones


class Transfer:
    """One session between two people, from offer to end; the only thing here that changes."""

    __slots__ = (
        "conversation",
        "done",
        "flow_id",
        "kind",
        "listener",
        "name",
        "quarters",
        "recipients",
        "sender",
        "size",
        "state",
    )

    def __init__(
        self,
        kind: str,
        sender: str | None,
        recipients: tuple[str, ...],
        conversation: str | None,
        name: str | None = None,
        size: int | None = None,
    ) -> None:
        self.kind = kind  # "file", or a kind of im.media
        self.sender = sender
        self.recipients = recipients
        self.conversation = conversation
        self.name = name[:NAME] if name else None
        self.size = size
        self.done = 0  # bytes of the file
        self.quarters = 0  # told so far
        self.state = "offer"
        self.flow_id = 0  # of the connection that its offer was seen on
        self.listener: str | None = None  # who waits for a direct connection

    @property
    def ended(self) -> bool:
        return self.state in ("complete", "cancel", "decline")

    def passed_on_as(self, offer: "Transfer") -> bool:
        """Whether another connection carries the same offer to its receiver."""
        same = (self.sender, self.name, self.size) == (offer.sender, offer.name, offer.size)
        return same and self.state == "offer" and self.flow_id != offer.flow_id

    @property
    def live(self) -> bool:
        """It goes on until somebody ends it: no number of bytes completes it."""
        return self.kind in LIVE

    def tell(self, event: MsnpCommand | MsnpPacket | MsnpDirect, action: str) -> Pattern:
        """The pattern for what happens to it now."""
        if action != "progress":
            self.state = action
        if self.kind == "file":
            return File(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                pattern=CLIENT_CLIENT,
                conversation=self.conversation,
                action=action,
                sender=self.sender,
                recipients=self.recipients,
                name=self.name,
                size=self.size,
                transferred=self.done if action in ("progress", "complete", "cancel") else None,
            )
        return Media(
            offset=event.offset,
            length=event.length,
            protocol="msnp",
            pattern=CLIENT_CLIENT,
            conversation=self.conversation,
            action=action,
            kind=self.kind,
            sender=self.sender,
            recipients=self.recipients,
        )

    def carry(self, event: MsnpPacket | MsnpDirect, done: int) -> list[Pattern]:
        """`done` bytes have been carried: each quarter is told, and the end."""
        self.done = max(self.done, done)
        if not self.size or self.ended:
            return []
        if self.done >= self.size:
            return [self.tell(event, "complete")]
        quarters = self.done * 4 // self.size
        if quarters <= self.quarters or self.kind != "file":
            return []
        self.quarters = quarters
        return [self.tell(event, "progress")]

    def other(self, account: str | None) -> str | None:
        """Who is at the other end from `account`."""
        if account is None or account != self.sender:
            return self.sender
        return self.recipients[0] if self.recipients else None
