"""What MSNP commands mean: one `MsnpFlow` for each connection.

A flow belongs to the user at its client end, whether the monitored application is that client or
the server with many such flows. What the server confirms is told when it confirms it; what only
the client says (messages, invitations) when it is said.
"""

from collections.abc import Callable, Sequence

from streamtap.events import Event
from streamtap.model import Content, Direction, Flow
from streamtap.patterns.chunks import Chunks, Talk
from streamtap.patterns.links import Links, scope_of, server_of, user_of
from streamtap.patterns.mime import HEAD, TEXT_HEAD, parse_mime, shown_text
from streamtap.patterns.model import (
    CLIENT_CLIENT,
    CLIENT_SERVER,
    Connect,
    Error,
    Invite,
    Join,
    Leave,
    Meaning,
    Message,
    Pattern,
    Redirect,
    SignIn,
    SignOut,
)
from streamtap.patterns.msnp_lists import (
    contact_presence,
    list_change,
    list_entry,
    list_payload,
    list_sizes,
    presence,
)
from streamtap.patterns.msnp_words import (
    OUT_REASONS,
    STATUS,
    account_of,
    error_name,
    place_of,
    unquoted,
)
from streamtap.patterns.participants import Participants
from streamtap.patterns.relayed import Relayed
from streamtap.patterns.transfers import Transfers
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket
from streamtap.protocols.msnp.p2p import parse_slp

REQUESTS = 64  # requests that an error may name

CHUNK_FIELDS = ("chunks", "chunk")

Patterns = Sequence[Pattern]
NOTHING: Patterns = ()


class MsnpFlow:
    """One connection: whose it is, what service it is, who takes part."""

    __slots__ = (
        "_chunks",
        "_client",
        "_connected",
        "_content",
        "_conversation",
        "_flow",
        "_links",
        "_name",
        "_people",
        "_relayed",
        "_requests",
        "_scope",
        "_sent",
        "_service",
        "_signed_in",
        "_transfers",
        "_user",
        "_version",
        "account",
    )

    def __init__(self, flow: Flow, links: Links, chunks: Chunks, content: Content) -> None:
        self._flow = flow
        self._links = links
        self._chunks = chunks
        self._content = content
        self._scope = scope_of(flow)
        self._user = user_of(flow)
        self._transfers = Transfers(flow, links)
        self._relayed = Relayed(self._scope, links, content)
        self.account: str | None = None
        self._service = ""  # dispatch, notification, switchboard or direct, once known
        self._version: str | None = None
        self._client: str | None = None
        self._connected = False  # im.connect was told
        self._signed_in = False
        self._name: str | None = None
        self._conversation: str | None = None
        self._people = Participants()  # of a switchboard session
        self._requests: dict[int, str] = {}
        self._sent = True  # the command at hand came from the local end

    # -- the way in

    def interpret(self, direction: Direction, time_ns: int, event: Event) -> Sequence[Meaning]:
        """What an event of this flow means."""
        if type(event) is MsnpCommand:
            verb = event.verb
            if verb == "MSG":
                patterns = self._msg(direction, time_ns, event)
            else:
                if direction is Direction.TO_SERVER and event.transaction is not None:
                    self._request(event.transaction, verb)
                handler = HANDLERS[direction].get(verb)
                if handler is not None:
                    self._sent = direction is self._flow.sent
                    patterns = handler(self, time_ns, event)
                elif verb.isdigit():
                    patterns = self._error(time_ns, event)
                else:
                    return ()
        elif type(event) is MsnpPacket:
            patterns = self._packet(direction, time_ns, event)
        elif type(event) is MsnpDirect:
            patterns = self._direct(time_ns, event)
        else:
            return ()
        flow_id = self._flow.flow_id
        return [Meaning(flow_id, direction, time_ns, pattern) for pattern in patterns]

    def closed(self, offsets: tuple[int, int], time_ns: int, reason: str) -> Sequence[Meaning]:
        """The connection ended. Somebody who did not sign out before has done so now."""
        patterns: list[Pattern] = []
        if self._service == "" and self._version and not self._connected:
            patterns += self._connect(offsets[Direction.TO_SERVER], 0, "notification")
        if self._signed_in and reason in ("fin", "rst"):
            self._signed_in = False
            patterns.append(
                SignOut(
                    offset=offsets[Direction.TO_SERVER],
                    length=0,
                    protocol="msnp",
                    account=self.account,
                    reason="connection closed",
                )
            )
        flow_id, side = self._flow.flow_id, Direction.TO_SERVER
        return [Meaning(flow_id, side, time_ns, pattern) for pattern in patterns]

    def _request(self, transaction: int, verb: str) -> None:
        self._requests[transaction] = verb
        if len(self._requests) > REQUESTS:
            del self._requests[next(iter(self._requests))]

    # -- sessions with a server

    def _connect(self, offset: int, length: int, service: str) -> list[Pattern]:
        self._service = service
        if self._connected:
            return []
        self._connected = True
        return [
            Connect(
                offset=offset,
                length=length,
                protocol="msnp",
                pattern=CLIENT_CLIENT if service == "direct" else CLIENT_SERVER,
                conversation=self._conversation,
                service=service,
                protocol_version=self._version,
                client=self._client,
            )
        ]

    def _is(self, account: str, time_ns: int) -> None:
        """Whose flow it is. Other flows of the same user may need to know."""
        self.account = account
        known = self._links.find(("own", self._user), time_ns)
        if known != account:
            # Two accounts at one place: neither can be taken for the other's.
            self._links.keep(("own", self._user), account if known is None else "", time_ns)

    def _own(self, time_ns: int) -> str | None:
        """The account at the client's end, from another flow of the same user if need be."""
        if self.account is None:
            known = self._links.find(("own", self._user), time_ns)
            if isinstance(known, str) and known:
                self.account = known
        return self.account

    def _client_version(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        if len(args) > 5:
            self._client = f"{args[4]} {args[5]}"
        if len(args) > 7 and "@" in args[7]:
            self.account = account_of(args[7])
        return NOTHING

    def _server_version(self, time_ns: int, event: MsnpCommand) -> Patterns:
        if "MSNFTP" in event.args:
            self._service = "direct"
        if event.args and event.args[0].startswith("MSNP"):
            self._version = event.args[0]
        return NOTHING

    def _offered_version(self, time_ns: int, event: MsnpCommand) -> Patterns:
        if "MSNFTP" in event.args:
            self._service = "direct"
        return NOTHING

    def _usr_to_server(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        if self._service == "direct":
            return self._transfer_receiver(time_ns, event)
        if len(args) > 2 and args[1] == "I":
            self.account = account_of(args[2])
        elif len(args) > 1 and "@" in args[0]:
            return self._enter(time_ns, event, args[0], ("cookie", self._scope, args[1]))
        return NOTHING

    def _usr_to_client(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        if self._service == "direct":
            return self._transfer_receiver(time_ns, event)
        if args[1:2] == ("S",):
            return self._connect(event.offset, event.length, "notification")
        if len(args) < 2 or args[0] != "OK":
            return NOTHING
        account = account_of(args[1])
        # Two arguments after OK are also MSNP2 … 5; a switchboard was named one by the client.
        if self._service == "switchboard" or self._people:
            self._is(account, time_ns)
            return NOTHING
        if self._signed_in and account == self.account:  # joins circles (USR SHA)
            return NOTHING
        self._is(account, time_ns)
        self._signed_in = True
        # MSNP2 … 9 give the name; from MSNP10 on two numbers follow the account.
        named = len(args) in (3, 5) or (len(args) == 4 and args[3] != "0") or len(args) > 5
        if len(args) == 4 and self._version_number() >= 10:
            named = False
        self._name = unquoted(args[2]) if named and len(args) > 2 else None
        return [
            *self._connect(event.offset, event.length, "notification"),
            SignIn(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                account=account,
                display_name=self._name,
            ),
        ]

    def _version_number(self) -> int:
        digits = (self._version or "")[4:]
        return int(digits) if digits.isdecimal() and len(digits) < 4 else 0

    def _out_to_server(self, time_ns: int, event: MsnpCommand) -> Patterns:
        if self._service == "switchboard" or (not self._signed_in and self._people):
            if self._own(time_ns) is None:
                return NOTHING
            return [self._leave(event, self.account or "", self._people.recipients)]
        return self._sign_out(event, None)

    def _out_to_client(self, time_ns: int, event: MsnpCommand) -> Patterns:
        if self._service == "switchboard":
            return NOTHING
        code = event.args[0] if event.args else ""
        return self._sign_out(event, OUT_REASONS.get(code, code.lower() or None))

    def _sign_out(self, event: MsnpCommand, reason: str | None) -> Patterns:
        if not self._signed_in and not (self.account and self._flow.midstream):
            return NOTHING
        self._signed_in = False
        return [
            SignOut(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                account=self.account,
                reason=reason,
            )
        ]

    def _xfr(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        if len(args) < 2:
            return NOTHING
        to = place_of(args[1])
        patterns: list[Pattern] = []
        conversation = None
        service = "switchboard" if args[0] == "SB" else "notification"
        if service == "switchboard":
            conversation = self._links.new_conversation(time_ns)
            self._announce(time_ns, conversation, to, args[3] if len(args) > 3 else "")
        elif not self._signed_in:
            patterns += self._connect(event.offset, event.length, "dispatch")
        else:  # the session goes on elsewhere: the end of this connection is no sign-out
            self._signed_in = False
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

    def _announce(self, time_ns: int, conversation: str, to: str, cookie: str) -> None:
        if cookie:
            self._links.await_(("cookie", self._scope, cookie), conversation, time_ns)
        self._links.await_(("address", self._user, to), conversation, time_ns)

    def _rng(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        if len(args) < 5:
            return NOTHING
        session, caller, own = args[0], account_of(args[4]), self._own(time_ns)
        found = self._links.find(("call", self._scope, caller, own), time_ns)
        found = found or self._links.find(("session", self._scope, session), time_ns)
        conversation = found if isinstance(found, str) else self._links.new_conversation(time_ns)
        self._links.keep(("session", self._scope, session), conversation, time_ns)
        self._announce(time_ns, conversation, place_of(args[1]), args[3])
        return [
            Invite(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                pattern=CLIENT_CLIENT,
                conversation=conversation,
                account=own or "",
                by=caller,
            )
        ]

    # -- presence and lists

    def _chg(self, time_ns: int, event: MsnpCommand) -> Patterns:
        own = self._own(time_ns)
        status = STATUS.get(event.args[0] if event.args else "")
        if own is None or status is None:
            return NOTHING
        return [presence(event, own, status, self._name)]

    def _contact_presence(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return contact_presence(event)

    def _prp(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        if "MFN" in args and (at := args.index("MFN") + 1) < len(args):
            self._name = unquoted(args[at])
        return NOTHING

    def _syn(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return list_sizes(event, self._own(time_ns))

    def _lst(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return list_entry(event, self._own(time_ns))

    def _list_change(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return list_change(event, self._own(time_ns))

    def _list_payload(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return list_payload(event, self._own(time_ns))

    def _error(self, time_ns: int, event: MsnpCommand) -> Patterns:
        code = int(event.verb)
        return [
            Error(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                conversation=self._conversation,
                code=code,
                name=error_name(code),
                command=self._requests.get(event.transaction or 0),
            )
        ]

    # -- switchboards

    def _enter(
        self, time_ns: int, event: MsnpCommand, account: str, *keys: tuple[str, str, str]
    ) -> Patterns:
        """USR or ANS of a switchboard: whose it is, and which conversation."""
        self._is(account_of(account), time_ns)
        self._service = "switchboard"
        self._find_conversation(time_ns, *keys)
        return self._connect(event.offset, event.length, "switchboard")

    def _find_conversation(self, time_ns: int, *keys: tuple[str, str, str]) -> str:
        if self._conversation is None:
            address = ("address", self._user, server_of(self._flow))
            for key in (*keys, address):
                found = self._links.find(key, time_ns)
                if isinstance(found, str):
                    self._conversation = found
                    # The connection that was awaited at this address has come.
                    if self._links.find(address, time_ns) == found:
                        self._links.drop(address)
                    break
            else:
                self._conversation = self._links.new_conversation(time_ns)
        return self._conversation

    def _ans(self, time_ns: int, event: MsnpCommand) -> Patterns:
        args = event.args
        if len(args) < 2:
            return NOTHING
        keys = [("cookie", self._scope, args[1])]
        if len(args) > 2:
            keys.append(("session", self._scope, args[2]))
        return self._enter(time_ns, event, args[0], *keys)

    def _cal(self, time_ns: int, event: MsnpCommand) -> Patterns:
        account = account_of(event.args[0]) if event.args else ""
        own = self._own(time_ns)
        if not account or account == own:  # some clients call their own other endpoints
            return NOTHING
        conversation = self._find_conversation(time_ns)
        self._links.await_(("call", self._scope, own, account), conversation, time_ns)
        return [
            Invite(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                pattern=CLIENT_CLIENT,
                conversation=conversation,
                account=account,
                by=own,
            )
        ]

    def _ringing(self, time_ns: int, event: MsnpCommand) -> Patterns:
        if len(event.args) > 1:
            session = ("session", self._scope, event.args[1])
            self._links.keep(session, self._find_conversation(time_ns), time_ns)
        return NOTHING

    def _iro(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._join(time_ns, event, event.args[2]) if len(event.args) > 2 else NOTHING

    def _joi(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._join(time_ns, event, event.args[0]) if event.args else NOTHING

    def _join(self, time_ns: int, event: MsnpCommand, text: str) -> Patterns:
        """A participant, or one more endpoint of one."""
        account, _, endpoint = text.partition(";")
        account = account_of(account)
        conversation = self._find_conversation(time_ns)
        if self._service == "":
            self._service = "switchboard"
        if account == self._own(time_ns) or not self._people.join(account, endpoint):
            return NOTHING
        return [
            Join(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                pattern=CLIENT_CLIENT,
                conversation=conversation,
                account=account,
                participants=self._people.with_user(self.account),
            )
        ]

    def _bye(self, time_ns: int, event: MsnpCommand) -> Patterns:
        if not event.args:
            return NOTHING
        if self._service == "direct":
            return self._transfers.ended(event, event.args[0])
        account, _, endpoint = event.args[0].partition(";")
        account = account_of(account)
        own = self._own(time_ns)
        if account in self._people:
            if not self._people.leave(account, endpoint):
                return NOTHING
        elif account == own or endpoint:
            return NOTHING
        return [self._leave(event, account, self._people.with_user(own))]

    def _leave(self, event: MsnpCommand, account: str, participants: tuple[str, ...]) -> Leave:
        return Leave(
            offset=event.offset,
            length=event.length,
            protocol="msnp",
            pattern=CLIENT_CLIENT,
            conversation=self._conversation,
            account=account,
            participants=participants,
        )

    # -- messages

    def _msg(self, direction: Direction, time_ns: int, event: MsnpCommand) -> Patterns:
        payload = event.payload
        if not event.payload_length:
            return NOTHING
        if direction is Direction.TO_CLIENT:
            text = event.args[0] if event.args else ""
            known = self._people.received(text)
            if known is None:
                if text in ("Hotmail", ""):
                    return self._relayed.service_message(event, self._own(time_ns))
                known = self._sender(time_ns, text)
            sender: str | None
            sender, recipients = known
        else:
            sender, recipients = self.account or self._own(time_ns), self._people.recipients
        conversation = self._conversation or self._find_conversation(time_ns)
        end = payload.find(b"\r\n\r\n", 0, HEAD)
        if end > 0 and payload.startswith(TEXT_HEAD) and payload.find(b"hunk", 0, end) < 0:
            kind, content_type = "text", "text/plain"
            body = end + 4
            size = event.payload_length - body
            content = shown_text(payload[body:]) if self._content is Content.FULL else None
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
                    self._is(typing, time_ns)
                    sender = typing
            if "message-id" in mime.fields and not mime.fields.keys().isdisjoint(CHUNK_FIELDS):
                talk = Talk(self._flow.flow_id, direction, conversation, sender, recipients)
                joined = self._chunks.add(talk, time_ns, event, mime)
                if joined is None:
                    return NOTHING
                mime = joined
            kind, content_type, size = mime.kind, mime.content_type, mime.size
            content = shown_text(mime.body) if self._content is Content.FULL else None
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

    def _sender(self, time_ns: int, text: str) -> tuple[str, tuple[str, ...]]:
        """Who sent a message to this flow's user, and to whom."""
        sender = account_of(text)
        own = self._own(time_ns)
        if sender != own and "@" in sender and sender not in self._people:
            self._people.join(sender, "")  # came before we did
        return self._people.remember(text, sender, own)

    # -- what the notification server itself says, or carries between people

    def _notification(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.alert(event, self._own(time_ns))

    def _uum(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.user_message(event, time_ns, self._own(time_ns))

    def _sdg(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.routed_message(event, time_ns)

    def _put(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._relayed.publication(event, self._own(time_ns), self._name)

    # -- peer to peer

    def _packet(self, direction: Direction, time_ns: int, event: MsnpPacket) -> Patterns:
        if direction is Direction.TO_SERVER or self._service == "direct":
            sender = self._own(time_ns) if self._service != "direct" else None
        else:
            sender = event.sender
        conversation = self._conversation
        if self._service != "direct":
            conversation = self._find_conversation(time_ns)
        recipients = (event.recipient,) if event.recipient else self._people.recipients
        return self._transfers.packet(event, time_ns, sender, recipients, conversation)

    def _uun(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """User to user through the notification server: type 3 is MSNSLP text."""
        if event.args[-1:] != ("3",) or (slp := parse_slp(event.payload)) is None:
            return NOTHING
        return self._transfers.slp(event, time_ns, slp, None, (), None)

    def _direct(self, time_ns: int, event: MsnpDirect) -> Patterns:
        patterns: list[Pattern] = []
        if event.step == "nonce" and self._service == "":
            marks = (event.nonce, event.hashed_nonce)
            patterns += self._opened(time_ns, event, "p2p", marks)
        elif event.step == "open" and event.transport == "webcam":
            patterns += self._opened(time_ns, event, "webcam", ())
        elif event.step == "block" and self._transfers.active is not None:
            transfer = self._transfers.active
            patterns += transfer.carry(event, transfer.done + event.size)
        return patterns

    def _opened(
        self,
        time_ns: int,
        event: MsnpCommand | MsnpDirect,
        transport: str,
        marks: tuple[str | None, ...],
        peer: str | None = None,
    ) -> Patterns:
        self._service = "direct"
        own = self._own(time_ns)
        patterns = self._transfers.connected(event, time_ns, transport, marks, own, peer)
        if self._transfers.active is not None:
            self._conversation = self._transfers.active.conversation
        return patterns

    def _transfer_receiver(self, time_ns: int, event: MsnpCommand) -> Patterns:
        """USR of MSNFTP: who receives the file. If it is the local end, the peer sends it."""
        receiver = account_of(event.args[0]) if event.args else None
        peer = None if self._sent else receiver
        return self._opened(time_ns, event, "msnftp", event.args[1:2], peer)

    def _fil(self, time_ns: int, event: MsnpCommand) -> Patterns:
        size = event.args[0] if event.args else ""
        if size.isdecimal() and len(size) < 18:
            self._transfers.begin(int(size))
        return NOTHING

    def _ccl(self, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._transfers.ended(event, "")


Handler = Callable[[MsnpFlow, int, MsnpCommand], Patterns]
_M = MsnpFlow
# MSNFTP lines are not requests and answers: either end may be the one that connected.
_TRANSFER: dict[str, Handler] = {
    "FIL": _M._fil,
    "CCL": _M._ccl,
}
HANDLERS: tuple[dict[str, Handler], dict[str, Handler]] = (
    _TRANSFER
    | {
        "VER": _M._offered_version,
        "CVR": _M._client_version,
        "USR": _M._usr_to_server,
        "ANS": _M._ans,
        "CAL": _M._cal,
        "OUT": _M._out_to_server,
        "BYE": _M._bye,
        "ADL": _M._list_payload,
        "RML": _M._list_payload,
        "UUM": _M._uum,
        "UUN": _M._uun,
        "SDG": _M._sdg,
        "PUT": _M._put,
    },
    _TRANSFER
    | {
        "VER": _M._server_version,
        "USR": _M._usr_to_client,
        "XFR": _M._xfr,
        "RNG": _M._rng,
        "OUT": _M._out_to_client,
        "CHG": _M._chg,
        "NLN": _M._contact_presence,
        "ILN": _M._contact_presence,
        "FLN": _M._contact_presence,
        "PRP": _M._prp,
        "SYN": _M._syn,
        "LST": _M._lst,
        "ADD": _M._list_change,
        "ADC": _M._list_change,
        "REM": _M._list_change,
        "ADL": _M._list_payload,
        "RML": _M._list_payload,
        "CAL": _M._ringing,
        "IRO": _M._iro,
        "JOI": _M._joi,
        "BYE": _M._bye,
        "UBM": _M._uum,
        "UBN": _M._uun,
        "SDG": _M._sdg,
        "NFY": _M._put,
        "NOT": _M._notification,
    },
)
