"""What passes through the notification server: its own messages, chat that it carries between
people (other networks, MSNP18 … 21), and presence in routed payloads."""

from collections.abc import Sequence

from msgspec.structs import replace

from streamtap.model import Content
from streamtap.patterns.model import CLIENT_CLIENT, Message, Pattern
from streamtap.patterns.msnp.client import Client
from streamtap.patterns.msnp.lists import presence
from streamtap.patterns.msnp.mime import Mime, parse_mime, shown_text
from streamtap.patterns.msnp.words import account_of, roster_status, routed
from streamtap.protocols.msnp import MsnpCommand

PEERS = 1024  # people whose endpoints are remembered of one flow
ENDPOINTS = 64  # of one person


class Relayed:
    """One flow's share of it. `own` is the user at the client's end."""

    __slots__ = ("_content", "_endpoints", "_links", "_scope", "_status")

    def __init__(self, client: Client) -> None:
        self._scope = client.scope
        self._links = client.links
        self._content = client.content
        self._endpoints: dict[str, set[str]] = {}  # where contacts are signed in
        self._status = ""  # own, as told last

    def service_message(self, event: MsnpCommand, own: str | None) -> Sequence[Pattern]:
        """MSG of the service: profile, mail, offline messages, shutdown."""
        mime = parse_mime(event.payload, event.payload_length)
        kind = "control" if mime.kind == "other" else mime.kind
        return [self._message(event, None, own, mime._replace(kind=kind), None)]

    def alert(self, event: MsnpCommand, own: str | None) -> Sequence[Pattern]:
        """NOT: an alert of the service, in XML."""
        mime = Mime("text/xml", "control", {}, event.payload, event.payload_length)
        return [self._message(event, None, own, mime, None)]

    def user_message(self, event: MsnpCommand, time_ns: int, own: str | None) -> Sequence[Pattern]:
        """UUM and UBM: from and to people of other networks."""
        accounts = [account_of(arg) for arg in event.args if "@" in arg or arg.startswith("tel:")]
        mime = parse_mime(event.payload, event.payload_length)
        first = accounts[0] if accounts else None
        if event.verb == "UUM":
            return self._between(event, time_ns, own, first, mime)
        return self._between(event, time_ns, first, accounts[1] if accounts[1:] else own, mime)

    def routed_message(self, event: MsnpCommand, time_ns: int) -> Sequence[Pattern]:
        """SDG; an acknowledgement or signal gives none."""
        route = routed(event.payload, event.payload_length)
        if route is None or not route.sender or not route.kind:
            return ()
        mime = Mime(route.content_type, route.kind, {}, route.body, route.size)
        return self._between(event, time_ns, route.sender, route.recipient or None, mime)

    def publication(
        self, event: MsnpCommand, own: str | None, own_name: str | None
    ) -> Sequence[Pattern]:
        """Own presence as the client publishes it (PUT), a contact's as the server tells it."""
        route = routed(event.payload, event.payload_length)
        if route is None or not route.sender:
            return ()
        account = route.sender
        status, name, endpoints = roster_status(route.body)
        name = name or (own_name if account == own else None)
        if event.args[:1] == ("DEL",):
            left = self._endpoints.get(account, set())
            left -= endpoints
            if left or not endpoints:
                return ()
            self._endpoints.pop(account, None)
            return [presence(event, account, "offline", name)]
        if account in self._endpoints or len(self._endpoints) < PEERS:
            held = self._endpoints.setdefault(account, set())
            if len(held) < ENDPOINTS:
                held |= endpoints | ({route.endpoint} if route.endpoint else set())
        if status is None or (account == own and status == self._status):
            return ()
        if account == own:
            self._status = status
        return [presence(event, account, status, name)]

    def _between(
        self,
        event: MsnpCommand,
        time_ns: int,
        sender: str | None,
        recipient: str | None,
        mime: Mime,
    ) -> Sequence[Pattern]:
        """A message between two people, who have one conversation for as long as they talk."""
        key = ("pair", self._scope, *sorted((sender or "", recipient or "")))
        found = self._links.find(key, time_ns)
        conversation = found if isinstance(found, str) else self._links.new_conversation(time_ns)
        self._links.keep(key, conversation, time_ns)
        return [self._message(event, sender, recipient, mime, conversation)]

    def _message(
        self,
        event: MsnpCommand,
        sender: str | None,
        recipient: str | None,
        mime: Mime,
        conversation: str | None,
    ) -> Message:
        message = Message(
            offset=event.offset,
            length=event.length,
            protocol="msnp",
            conversation=conversation,
            sender=sender,
            recipients=(recipient,) if recipient else (),
            kind=mime.kind,
            content_type=mime.content_type,
            size=mime.size,
            content=shown_text(mime.body) if self._content is Content.FULL else None,
        )
        return message if conversation is None else replace(message, pattern=CLIENT_CLIENT)
