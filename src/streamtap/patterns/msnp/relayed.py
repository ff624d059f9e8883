"""What passes through the notification server: its own messages, chat that it carries between
people (other networks, MSNP18 … 21), and presence in routed payloads."""

from collections.abc import Sequence

from msgspec.structs import replace

from streamtap.model import Direction
from streamtap.patterns.model import CLIENT_CLIENT, Message, Pattern
from streamtap.patterns.msnp.client import Client
from streamtap.patterns.msnp.groups import Groups
from streamtap.patterns.msnp.mime import Mime, parse_mime, shown_text
from streamtap.patterns.msnp.presence import Presences
from streamtap.patterns.msnp.transfers import Transfers
from streamtap.patterns.msnp.words import Routed, account_of, roster_status, routed
from streamtap.protocols.msnp import MsnpCommand, MsnpPacket, Slp
from streamtap.protocols.msnp.p2p import parse_slp

PEERS = 1024  # people whose endpoints are remembered of one flow
ENDPOINTS = 64  # of one person
USER_MESSAGES = {"1": "text", "2": "typing", "3": "nudge"}  # last argument of UUM and UBM

Patterns = Sequence[Pattern]
NOTHING: Patterns = ()


class Relayed:
    """One flow's share of it. `own` is the user at the client's end."""

    __slots__ = ("_client", "_endpoints", "_groups", "_presences", "_transfers")

    def __init__(self, client: Client, presences: Presences, transfers: Transfers) -> None:
        self._client = client
        self._presences = presences
        self._transfers = transfers
        self._groups = Groups(client.scope, client.links)
        # Where people are signed in, in all and within each group.
        self._endpoints: dict[tuple[str, str], set[str]] = {}

    def service_message(self, event: MsnpCommand, own: str | None) -> Patterns:
        """MSG of the service: profile, mail, offline messages, shutdown."""
        mime = parse_mime(event.payload, event.payload_length)
        kind = "control" if mime.kind == "other" else mime.kind
        return [self._message(event, None, (own,) if own else (), mime._replace(kind=kind), None)]

    def alert(self, event: MsnpCommand, own: str | None) -> Patterns:
        """NOT: an alert of the service, in XML; IPG: an answer from a phone, likewise."""
        mime = Mime("text/xml", "control", {}, event.payload, event.payload_length)
        return [self._message(event, None, (own,) if own else (), mime, None)]

    def page(self, event: MsnpCommand, time_ns: int, own: str | None) -> Patterns:
        """PAG and PGD: a text to somebody's phone; the acknowledgement of the server gives none."""
        if not event.args or not event.payload_length:
            return NOTHING
        mime = Mime("text/xml", "text", {}, event.payload, event.payload_length)
        return self._between(event, time_ns, own, account_of(event.args[0]), mime)

    def user_message(self, event: MsnpCommand, time_ns: int, own: str | None) -> Patterns:
        """UUM and UBM: from and to people of other networks."""
        accounts = [account_of(arg) for arg in event.args if "@" in arg or "tel:" in arg]
        mime = parse_mime(event.payload, event.payload_length)
        if mime.kind == "other" and event.args:
            mime = mime._replace(kind=USER_MESSAGES.get(event.args[-1], "other"))
        first = accounts[0] if accounts else None
        if event.verb == "UUM":
            return self._between(event, time_ns, own, first, mime)
        return self._between(event, time_ns, first, accounts[1] if accounts[1:] else own, mime)

    def routed_message(self, event: MsnpCommand, time_ns: int, own: str | None) -> Patterns:
        """SDG; an acknowledgement gives none, and of the signals only one that offers a session.

        What another endpoint of the user says comes as a copy: it is told as said by the user.
        """
        route = routed(event.payload, event.payload_length)
        if route is None or not route.sender:
            return NOTHING
        if route.signal == "p2p" and (slp := parse_slp(route.body.lstrip())) is not None:
            to = (route.recipient,) if route.recipient else ()
            conversation = self._pair(route.sender, route.recipient, time_ns)
            return self._transfers.slp(event, time_ns, slp, route.sender, to, conversation)
        if not route.kind:
            return NOTHING
        mime = Mime(route.content_type, route.kind, {}, route.body, route.size)
        if route.group:
            conversation = self._groups.conversation(route.group, time_ns)
            recipients = self._groups.recipients(route.group, route.sender, own)
            return [self._message(event, route.sender, recipients, mime, conversation)]
        return self._between(event, time_ns, route.sender, route.recipient or None, mime)

    def packet(self, event: MsnpPacket, time_ns: int) -> Patterns:
        """A peer-to-peer packet that a routed message carried."""
        recipients = (event.recipient,) if event.recipient else ()
        conversation = self._pair(event.sender, event.recipient, time_ns)
        return self._transfers.packet(event, time_ns, event.sender, recipients, conversation)

    def bootstrap(self, event: MsnpCommand, time_ns: int, slp: Slp) -> Patterns:
        """UUN and UBN of type 3: a session that two people begin by way of the service."""
        conversation = self._pair(slp.by, slp.to, time_ns)
        return self._transfers.slp(event, time_ns, slp, None, (), conversation)

    def publication(
        self, direction: Direction, time_ns: int, event: MsnpCommand, own: str | None
    ) -> Patterns:
        """What the client publishes (PUT, DEL) and what the server tells of others (NFY): who is
        there, and who is in a group."""
        route = routed(event.payload, event.payload_length)
        if route is None or not route.sender:
            return NOTHING
        if route.group and "circle" in route.uri:
            sent = direction is Direction.TO_SERVER
            return self._groups.published(event, time_ns, route, own, sent=sent)
        return self._presence(event, time_ns, route, own)

    def member(
        self,
        event: MsnpCommand,
        time_ns: int,
        group: str,
        account: str,
        own: str | None,
        status: str | None,
    ) -> Patterns:
        """NLN and FLN of somebody in a group."""
        return self._groups.seen(event, time_ns, group, account, own, status) if status else NOTHING

    def acknowledged(self, event: MsnpCommand, time_ns: int) -> Patterns:
        """PUT of the server: the answer to a publication, which may name a new group."""
        route = routed(event.payload, event.payload_length)
        if route is not None and route.group:
            self._groups.named(route.group, time_ns)
        return NOTHING

    def _presence(
        self, event: MsnpCommand, time_ns: int, route: Routed, own: str | None
    ) -> Patterns:
        account, group = route.sender, route.group
        place = group, account
        status, name, message, endpoints = roster_status(route.body)
        name = name or (self._client.name if account == own else None)
        if event.verb == "DEL" or event.args[:1] == ("DEL",):
            left = self._endpoints.get(place, set())
            left -= endpoints
            if left or not endpoints:
                return NOTHING
            self._endpoints.pop(place, None)
            status = "offline"
        elif place in self._endpoints or len(self._endpoints) < PEERS:
            held = self._endpoints.setdefault(place, set())
            if route.full:  # what it does not name is signed in no more
                held.clear()
            if len(held) < ENDPOINTS:
                held |= endpoints | ({route.endpoint} if route.endpoint else set())
        if status is not None and group:
            return self._groups.seen(event, time_ns, group, account, own, status)
        if status is None or (account == own and status == self._presences.status_of(account)):
            return NOTHING
        return [self._presences.tell(event, account, status, name, message)]

    def _pair(self, sender: str | None, recipient: str | None, time_ns: int) -> str:
        """Two people have one conversation for as long as they talk."""
        links = self._client.links
        key = ("pair", self._client.scope, *sorted((sender or "", recipient or "")))
        found = links.find(key, time_ns)
        conversation = found if isinstance(found, str) else links.new_conversation(time_ns)
        links.keep(key, conversation, time_ns)
        return conversation

    def _between(
        self,
        event: MsnpCommand,
        time_ns: int,
        sender: str | None,
        recipient: str | None,
        mime: Mime,
    ) -> Patterns:
        conversation = self._pair(sender, recipient, time_ns)
        recipients = (recipient,) if recipient else ()
        return [self._message(event, sender, recipients, mime, conversation)]

    def _message(
        self,
        event: MsnpCommand,
        sender: str | None,
        recipients: tuple[str, ...],
        mime: Mime,
        conversation: str | None,
    ) -> Message:
        message = Message(
            offset=event.offset,
            length=event.length,
            protocol="msnp",
            conversation=conversation,
            sender=sender,
            recipients=recipients,
            kind=mime.kind,
            content_type=mime.content_type,
            size=mime.size,
            content=shown_text(mime.body) if self._client.level.full else None,
        )
        return message if conversation is None else replace(message, pattern=CLIENT_CLIENT)
