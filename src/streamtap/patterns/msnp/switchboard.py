"""Switchboards: who takes part in a session, and what is said in it."""

from collections.abc import Callable, Iterable, Sequence

from streamtap.model import Direction
from streamtap.patterns.links import Key
from streamtap.patterns.model import CLIENT_CLIENT, Meaning, Message, Pattern
from streamtap.patterns.msnp.chunks import Chunks, Talk
from streamtap.patterns.msnp.client import Client
from streamtap.patterns.msnp.membership import came, invited, went
from streamtap.patterns.msnp.mime import HEAD, TEXT_HEAD, parse_mime, shown_text
from streamtap.patterns.msnp.participants import Participants
from streamtap.patterns.msnp.transfers import Transfers
from streamtap.patterns.msnp.words import account_of
from streamtap.protocols.msnp import MsnpCommand, MsnpPacket

CHUNK_FIELDS = ("chunks", "chunk")

TO_CLIENT = Direction.TO_CLIENT  # looked up once: each message asks
Patterns = Sequence[Pattern]
NOTHING: Patterns = ()


class Switchboard:
    """One client's part in one session. people: the others."""

    __slots__ = ("_chunks", "_client", "_transfers", "people")

    def __init__(self, client: Client, transfers: Transfers, chunks: Chunks) -> None:
        self._client = client
        self._transfers = transfers
        self._chunks = chunks
        self.people = Participants()

    # -- who comes and goes

    def enter(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """USR of the caller, ANS of the invitee: whose it is, and which conversation."""
        client, args = self._client, event.args
        if len(args) < 2:
            return NOTHING
        keys: list[Key] = [("cookie", client.scope, args[1])]
        if event.verb == "ANS" and len(args) > 2:
            keys.append(("session", client.scope, args[2]))
        if "@" in args[0]:  # else it was not told apart from the cookie
            client.is_account(account_of(args[0]), time_ns)
        client.service = "switchboard"
        client.find_conversation(time_ns, *keys)
        return client.connect(event.offset, event.length, "switchboard")

    def call(self, time_ns: int, event: MsnpCommand) -> Patterns:
        client = self._client
        account = account_of(event.args[0]) if event.args else ""
        own = client.own(time_ns)
        if not account or account == own:  # some clients call their own other endpoints
            return NOTHING
        conversation = client.find_conversation(time_ns)
        client.links.await_(("call", client.scope, own, account), conversation, time_ns)
        return [invited(event, conversation, account, own)]

    def called(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """CAL RINGING: the number of the session, which its invitees are told too."""
        client = self._client
        if len(event.args) > 1:
            session = ("session", client.scope, event.args[1])
            client.links.await_(session, client.find_conversation(time_ns), time_ns)
        return NOTHING

    def present(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._join(time_ns, event, event.args[2]) if len(event.args) > 2 else NOTHING

    def joined(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._join(time_ns, event, event.args[0]) if event.args else NOTHING

    def _join(self, time_ns: int, event: MsnpCommand, text: str) -> Patterns:
        """A participant, or one more endpoint of one."""
        client = self._client
        account, _, endpoint = text.partition(";")
        account = account_of(account)
        conversation = client.find_conversation(time_ns)
        if client.service == "":
            client.service = "switchboard"
        if account == client.own(time_ns) or not self.people.join(account, endpoint):
            return NOTHING
        return [came(event, conversation, account, self.people.with_user(client.account))]

    def bye(self, time_ns: int, event: MsnpCommand) -> Patterns:
        if not event.args:
            return NOTHING
        account, _, endpoint = event.args[0].partition(";")
        account = account_of(account)
        own = self._client.own(time_ns)
        if account in self.people:
            if not self.people.leave(account, endpoint):
                return NOTHING
        elif account == own or endpoint:
            return NOTHING
        participants = self.people.with_user(own)
        return [went(event, self._client.conversation, account, participants)]

    def out(self, time_ns: int, event: MsnpCommand) -> Patterns:
        own = self._client.own(time_ns)
        if own is None:
            return NOTHING
        return [went(event, self._client.conversation, own, self.people.recipients)]

    # -- what is said

    def message(self, direction: Direction, time_ns: int, event: MsnpCommand) -> Patterns:
        client, payload = self._client, event.payload
        if not event.payload_length:
            return NOTHING
        sender: str | None
        if direction is TO_CLIENT:
            text = event.args[0] if event.args else ""
            known = self.people.received(text)
            sender, recipients = self._sender(time_ns, text) if known is None else known
        else:
            sender, recipients = client.account or client.own(time_ns), self.people.recipients
        conversation = client.conversation or client.find_conversation(time_ns)
        end = payload.find(b"\r\n\r\n", 0, HEAD) if payload.startswith(TEXT_HEAD) else -1
        if end > 0 and payload.find(b"hunk", 0, end) < 0:
            kind, content_type = "text", "text/plain"
            body = end + 4
            size = event.payload_length - body
            content = shown_text(payload[body:]) if self._client.level.full else None
        else:
            mime = parse_mime(payload, event.payload_length)
            if mime.content_type == "text/x-msmsgsinvite":
                return self._transfers.invitation(
                    event, time_ns, mime.body, sender, recipients, conversation
                )
            if mime.content_type == "application/x-msnmsgrp2p" and not event.missing:
                return NOTHING  # the packet that follows says what it is
            if sender is None and mime.kind == "typing":
                typing = account_of(mime.fields.get("typinguser", ""))
                if "@" in typing:
                    client.is_account(typing, time_ns)
                    sender = typing
            if "message-id" in mime.fields and not mime.fields.keys().isdisjoint(CHUNK_FIELDS):
                place = client.place_of(direction, time_ns, event)
                talk = Talk(place, conversation, sender, recipients)
                joined = self._chunks.add(client, talk, mime)
                if joined is None:
                    return NOTHING
                mime = joined
            kind, content_type, size = mime.kind, mime.content_type, mime.size
            content = shown_text(mime.body) if self._client.level.full else None
        return (
            Message(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                pattern=CLIENT_CLIENT,
                conversation=conversation,
                sender=sender,
                recipients=recipients,
                kind=kind,
                content_type=content_type,
                size=size,
                content=content,
            ),
        )

    def unfinished(self) -> Iterable[Meaning]:
        """Messages of which parts will not come any more, as far as they came."""
        return self._chunks.end(self._client) if len(self._chunks) else ()

    def _sender(self, time_ns: int, text: str) -> tuple[str, tuple[str, ...]]:
        """Who sent a message to this flow's user, and to whom."""
        sender = account_of(text)
        own = self._client.own(time_ns)
        if sender != own and "@" in sender and sender not in self.people:
            self.people.join(sender, "")  # came before we did
        return self.people.remember(text, sender, own)

    def packet(self, direction: Direction, time_ns: int, event: MsnpPacket) -> Patterns:
        """A peer-to-peer packet in a message."""
        client = self._client
        received = direction is TO_CLIENT
        sender = event.sender if received else client.own(time_ns)
        recipients = (event.recipient,) if event.recipient else self.people.recipients
        conversation = client.find_conversation(time_ns)
        return self._transfers.packet(event, time_ns, sender, recipients, conversation)


Handler = Callable[[Switchboard, int, MsnpCommand], Patterns]
_S = Switchboard
HANDLERS: tuple[dict[str, Handler], dict[str, Handler]] = (
    {
        "ANS": _S.enter,
        "CAL": _S.call,
    },
    {
        "CAL": _S.called,
        "IRO": _S.present,
        "JOI": _S.joined,
        "BYE": _S.bye,
    },
)
