"""Dispatch and notification servers: who signs in, who is there, where to talk."""

import re
from collections.abc import Callable, Sequence

from streamtap.model import Direction
from streamtap.patterns.model import Pattern, Redirect, SignIn, SignOut
from streamtap.patterns.msnp.client import Client
from streamtap.patterns.msnp.lists import (
    list_change,
    list_entry,
    list_payload,
    list_sizes,
)
from streamtap.patterns.msnp.membership import invited
from streamtap.patterns.msnp.presence import Presences, name_of
from streamtap.patterns.msnp.relayed import Relayed
from streamtap.patterns.msnp.transfers import Transfers
from streamtap.patterns.msnp.words import (
    OUT_REASONS,
    STATUS,
    account_of,
    group_of,
    place_of,
    unquoted,
)
from streamtap.protocols.msnp import MsnpCommand, MsnpPacket
from streamtap.protocols.msnp.commands import NEWEST
from streamtap.protocols.msnp.p2p import parse_slp

Patterns = Sequence[Pattern]
NOTHING: Patterns = ()
VERSIONS = 32  # words of VER that are looked at
_PROGRAM = re.compile(r"[\w.,+()/-]{1,64}")
_VERSION = re.compile(r"MSNP[0-9]{1,3}")


class Notification:
    """One client's session with the service."""

    __slots__ = (
        "_client",
        "_offered",
        "_presences",
        "_relayed",
        "_transfers",
        "carries",
        "signed_in",
    )

    def __init__(self, client: Client, transfers: Transfers) -> None:
        self._client = client
        self._transfers = transfers
        self._presences = Presences(client.level)
        self._relayed = Relayed(client, self._presences, transfers)
        self._offered: tuple[str, ...] = ()  # versions
        self.signed_in = False
        self.carries = False  # messages between people come this way

    # -- sign-in and sign-out

    def client_version(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        if len(args) > 5 and all(map(_PROGRAM.fullmatch, args[4:6])):
            self._client.program = f"{args[4]} {args[5]}"
        if len(args) > 7 and "@" in args[7]:
            self._client.account = account_of(args[7])
        return NOTHING

    def offered_versions(self, time_ns: int, event: MsnpCommand) -> Patterns:
        self._offered = event.args[:VERSIONS]
        return NOTHING

    def server_version(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """VER: early servers list all that they speak; the first that was offered holds."""
        listed = [word for word in event.args[:VERSIONS] if _VERSION.fullmatch(word)]
        if listed:
            common = (word for word in listed if word in self._offered)
            self._client.version = next(common, listed[0])
            if self._client.version_number > NEWEST:  # what follows is not understood
                return self._client.connect(event.offset, event.length, "notification")
        return NOTHING

    def identify(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """USR of the client: who wants to sign in."""
        args = event.args
        if len(args) > 2 and args[1] == "I":
            self._client.account = account_of(args[2])
        return NOTHING

    def confirm(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """USR of the server: a challenge, or the end of the sign-in."""
        client, args = self._client, event.args
        if args[1:2] == ("S",):
            return client.connect(event.offset, event.length, "notification")
        if len(args) < 2 or args[0] != "OK":
            return NOTHING
        account = account_of(args[1])
        if self.signed_in and account == client.account:  # joins circles (USR SHA)
            return NOTHING
        client.is_account(account, time_ns)
        self.signed_in = True
        # MSNP2 … 9 give the name; from MSNP10 on two numbers follow the account.
        named = len(args) > 2
        if len(args) == 4:  # MSNP6 and 7 as well: name and flag
            version = client.version_number
            named = 0 < version < 10 or not (version or (args[2] in ("0", "1") and args[3] == "0"))
        client.name = unquoted(args[2]) if named else None
        return [
            *client.connect(event.offset, event.length, "notification"),
            SignIn(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                account=account,
                display_name=client.name,
            ),
        ]

    def out(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """OUT of either side; the server gives a reason."""
        code = event.args[0] if event.args else ""
        return self._sign_out(event, OUT_REASONS.get(code))

    def _sign_out(self, event: MsnpCommand, reason: str | None) -> Patterns:
        if not self.signed_in and not (self._client.account and self._client.flow.midstream):
            return NOTHING
        return [self.left(event.offset, event.length, reason)]

    def left(self, offset: int, length: int, reason: str | None) -> SignOut:
        """The session is over."""
        self.signed_in = False
        return SignOut(
            offset=offset,
            length=length,
            protocol="msnp",
            account=self._client.account,
            reason=reason,
        )

    # -- to other servers

    def redirect(self, time_ns: int, event: MsnpCommand) -> Patterns:
        client, args = self._client, event.args
        if len(args) < 2:
            return NOTHING
        to = place_of(args[1])
        if not to:
            return NOTHING
        patterns: list[Pattern] = []
        conversation = None
        service = "switchboard" if args[0] == "SB" else "notification"
        if service == "switchboard":
            conversation = client.links.new_conversation(time_ns)
            client.announce(time_ns, conversation, to, args[3] if len(args) > 3 else "")
        elif not self.signed_in:
            patterns += client.connect(event.offset, event.length, "dispatch")
        else:  # the session goes on elsewhere: the end of this connection is no sign-out
            self.signed_in = False
        patterns.append(
            Redirect(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                conversation=conversation,
                to=to,
                service=service,
            )
        )
        return patterns

    def ringing(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """RNG: somebody asks into a conversation."""
        client, args = self._client, event.args
        if len(args) < 5 or "@" not in args[4]:
            return NOTHING
        session, caller, own = args[0], account_of(args[4]), client.own(time_ns)
        links, scope = client.links, client.scope
        found = links.find(("call", scope, caller, own), time_ns)
        found = found or links.find(("session", scope, session), time_ns)
        conversation = found if isinstance(found, str) else links.new_conversation(time_ns)
        # Not for longer: small servers count their sessions, and begin again.
        links.await_(("session", scope, session), conversation, time_ns)
        client.announce(time_ns, conversation, place_of(args[1]), args[3])
        return [invited(event, conversation, own or "", caller)]

    # -- presence and lists

    def own_presence(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._presences.own(event, self._client.own(time_ns), self._client.name)

    def contact_presence(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        gone = event.verb == "FLN"
        whose = args[:1] if gone else args[1:2]
        if whose and (group := group_of(whose[0])):
            status = "offline" if gone else STATUS.get(args[0])
            own = self._client.own(time_ns)
            return self._relayed.member(event, time_ns, group, account_of(whose[0]), own, status)
        return self._presences.contact(event)

    def personal(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """UBX of a contact, or of an own endpoint; what is said within a group is not of him."""
        if not event.args or group_of(event.args[0]):
            return NOTHING
        return self._presences.personal(event, account_of(event.args[0]))

    def own_personal(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._presences.personal(event, self._client.own(time_ns))

    def property(self, time_ns: int, event: MsnpCommand) -> Patterns:
        name = name_of(event)
        if name is not None:
            self._client.name = name
            self._presences.renamed(self._client.own(time_ns), name)
        return NOTHING

    def list_sizes(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return list_sizes(event, self._client.own(time_ns))

    def list_entry(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return list_entry(event, self._client.own(time_ns))

    def list_change(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return list_change(event, self._client.own(time_ns))

    def list_payload(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return list_payload(event, self._client.own(time_ns))

    # -- what the server itself says, or carries between people

    def service_message(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.service_message(event, self._client.own(time_ns))

    def alert(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.alert(event, self._client.own(time_ns))

    def page(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.page(event, time_ns, self._client.own(time_ns))

    def user_message(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.user_message(event, time_ns, self._client.own(time_ns))

    def routed_message(self, time_ns: int, event: MsnpCommand) -> Patterns:
        self.carries = True
        return self._relayed.routed_message(event, time_ns, self._client.own(time_ns))

    def packet(self, time_ns: int, event: MsnpPacket) -> Patterns:
        return self._relayed.packet(event, time_ns)

    def publish(self, time_ns: int, event: MsnpCommand) -> Patterns:
        own = self._client.own(time_ns)
        return self._relayed.publication(Direction.TO_SERVER, time_ns, event, own)

    def acknowledged(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.acknowledged(event, time_ns)

    def published(self, time_ns: int, event: MsnpCommand) -> Patterns:
        own = self._client.own(time_ns)
        return self._relayed.publication(Direction.TO_CLIENT, time_ns, event, own)

    def signal(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """User to user: type 3 is MSNSLP text."""
        if event.args[-1:] != ("3",) or (slp := parse_slp(event.payload)) is None:
            return NOTHING
        return self._relayed.bootstrap(event, time_ns, slp)


Handler = Callable[[Notification, int, MsnpCommand], Patterns]
_N = Notification
HANDLERS: tuple[dict[str, Handler], dict[str, Handler]] = (
    {
        "VER": _N.offered_versions,
        "CVR": _N.client_version,
        "USR": _N.identify,
        "OUT": _N.out,
        "ADL": _N.list_payload,
        "RML": _N.list_payload,
        "PAG": _N.page,
        "PGD": _N.page,
        "UUM": _N.user_message,
        "UUN": _N.signal,
        "SDG": _N.routed_message,
        "PUT": _N.publish,
        "DEL": _N.publish,
        "UUX": _N.own_personal,
    },
    {
        "VER": _N.server_version,
        "USR": _N.confirm,
        "XFR": _N.redirect,
        "RNG": _N.ringing,
        "OUT": _N.out,
        "CHG": _N.own_presence,
        "NLN": _N.contact_presence,
        "ILN": _N.contact_presence,
        "FLN": _N.contact_presence,
        "PRP": _N.property,
        "SYN": _N.list_sizes,
        "LST": _N.list_entry,
        "ADD": _N.list_change,
        "ADC": _N.list_change,
        "REM": _N.list_change,
        "ADL": _N.list_payload,
        "RML": _N.list_payload,
        "UBM": _N.user_message,
        "UBN": _N.signal,
        "SDG": _N.routed_message,
        "NFY": _N.published,
        "PUT": _N.acknowledged,
        "UBX": _N.personal,
        "NOT": _N.alert,
        "IPG": _N.alert,
    },
)
