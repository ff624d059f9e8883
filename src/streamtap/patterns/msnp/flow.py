"""What MSNP commands mean: one `MsnpFlow` for each connection.

A flow belongs to the user at its client end, whether the monitored application is that client or
the server with many such flows. What the server confirms is told when it confirms it; what only
the client says (messages, invitations) when it is said.
"""

from collections.abc import Iterable, Sequence

from streamtap.events import Event
from streamtap.model import Direction, Flow
from streamtap.patterns.level import Level
from streamtap.patterns.links import Links
from streamtap.patterns.model import Error, Meaning, Pattern
from streamtap.patterns.msnp import direct, notification, switchboard
from streamtap.patterns.msnp.chunks import Chunks
from streamtap.patterns.msnp.client import Client, Place
from streamtap.patterns.msnp.direct import DirectConnection
from streamtap.patterns.msnp.notification import Notification
from streamtap.patterns.msnp.switchboard import Switchboard
from streamtap.patterns.msnp.transfers import Transfers
from streamtap.patterns.msnp.words import account_of, error_name
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket, MsnpPrelude

REQUESTS = 64  # requests that an error may name

TO_SERVER = Direction.TO_SERVER  # looking up an enum's member is slow, and each event asks
Patterns = Sequence[Pattern]
NOTHING: Patterns = ()


class MsnpFlow:
    """One connection. Which of the three nouns speaks shows in what is said."""

    __slots__ = ("_board", "_client", "_direct", "_flow_id", "_notification", "_requests", "_said")

    def __init__(self, flow: Flow, links: Links, chunks: Chunks, level: Level) -> None:
        self._flow_id = flow.flow_id
        self._client = Client(flow, links, level)
        transfers = Transfers(self._client)
        self._notification = Notification(self._client, transfers)
        self._board = Switchboard(self._client, transfers, chunks)
        self._direct = DirectConnection(self._client, transfers)
        self._requests: dict[int, str] = {}
        self._said = 0  # where the last event of the client ended

    @property
    def account(self) -> str | None:
        """Whose it is, as far as it is known."""
        return self._client.account

    def reached(self, server: str) -> None:
        """The host:port behind the proxy that the flow goes to."""
        self._client.server = server

    def stands(self, place: Place) -> None:
        """Where in HTTP that stands of which an event is given next."""
        self._client.carried = place

    def unfinished(self) -> Iterable[Meaning]:
        """What of its messages waits for more, which will not come."""
        return self._board.unfinished()

    def interpret(self, direction: Direction, time_ns: int, event: Event) -> Sequence[Meaning]:
        """What an event of this flow means."""
        patterns: Patterns
        if direction is TO_SERVER:
            self._said = event.offset + event.length
        if type(event) is MsnpCommand:
            if event.verb == "MSG":
                if event.args and event.args[0] == "Hotmail":
                    patterns = self._notification.service_message(time_ns, event)
                else:
                    patterns = self._board.message(direction, time_ns, event)
            else:
                patterns = self._command(direction, time_ns, event)
                if not patterns:
                    return ()
        elif type(event) is MsnpPacket:
            if self._client.service == "direct":
                patterns = self._direct.packet(time_ns, event)
            elif self._notification.carries:
                patterns = self._notification.packet(time_ns, event)
            else:
                patterns = self._board.packet(direction, time_ns, event)
        elif type(event) is MsnpDirect:
            patterns = self._direct.step(time_ns, event)
        elif type(event) is MsnpPrelude:
            if event.target:
                self.reached(event.target)
            return ()
        else:
            return ()
        flow_id = self._flow_id
        if len(patterns) == 1:
            return (Meaning(flow_id, direction, time_ns, patterns[0]),)
        return [Meaning(flow_id, direction, time_ns, pattern) for pattern in patterns]

    def closed(self, time_ns: int, reason: str) -> Sequence[Meaning]:
        """The connection ended. Somebody who did not sign out before has done so now."""
        patterns: list[Pattern] = []
        offset = self._said
        if reason in ("fin", "rst"):
            patterns += self._direct.closed(offset)
        if self._client.undecided:
            patterns += self._client.connect(offset, 0, "notification")
        if self._notification.signed_in and reason in ("fin", "rst"):
            patterns.append(self._notification.left(offset, 0, "connection closed"))
        flow_id = self._flow_id
        return [Meaning(flow_id, TO_SERVER, time_ns, pattern) for pattern in patterns]

    def _command(self, direction: Direction, time_ns: int, event: MsnpCommand) -> Patterns:
        verb, client = event.verb, self._client
        if direction is TO_SERVER and event.transaction is not None:
            self._request(event.transaction, verb)
        if verb == "VER" and "MSNFTP" in event.args:
            client.service = "direct"
            return NOTHING
        if client.service == "direct" or verb in ("FIL", "CCL"):
            part = direct.HANDLERS.get(verb)
            return NOTHING if part is None else part(self._direct, direction, time_ns, event)
        if verb == "USR" or verb == "OUT":
            return self._either(direction, time_ns, event)
        handler = notification.HANDLERS[direction].get(verb)
        if handler is not None:
            return handler(self._notification, time_ns, event)
        member = switchboard.HANDLERS[direction].get(verb)
        if member is not None:
            return member(self._board, time_ns, event)
        return self._error(event) if verb.isdigit() or verb == "NAK" else NOTHING

    def _either(self, direction: Direction, time_ns: int, event: MsnpCommand) -> Patterns:
        """USR and OUT: said to notification servers and switchboards."""
        client, args = self._client, event.args
        board = client.service == "switchboard"
        if event.verb == "OUT":
            if direction is Direction.TO_CLIENT:
                return NOTHING if board else self._notification.out(time_ns, event)
            talked = self._board.people or client.conversation
            if board or (not self._notification.signed_in and talked):
                return self._board.out(time_ns, event)
            return self._notification.out(time_ns, event)
        if direction is TO_SERVER:
            if args[1:2] != ("I",) and args and "@" in args[0]:
                return self._board.enter(time_ns, event)
            return self._notification.identify(time_ns, event)
        # Two arguments after OK are also MSNP2 … 5; a switchboard was named one by the client.
        if args[:1] == ("OK",) and len(args) > 1 and (board or self._board.people):
            client.is_account(account_of(args[1]), time_ns)
            return NOTHING
        return self._notification.confirm(time_ns, event)

    def _request(self, transaction: int, verb: str) -> None:
        self._requests[transaction] = verb
        if len(self._requests) > REQUESTS:
            del self._requests[next(iter(self._requests))]

    def _error(self, event: MsnpCommand) -> Patterns:
        nak = event.verb == "NAK"  # no number: the message with this transaction is not delivered
        code = 0 if nak else int(event.verb)
        command = self._requests.get(event.transaction or 0)
        if nak or (command is None and event.transaction and self._client.is_board):
            command = "MSG"  # the one request that is not kept
        return [
            Error(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                conversation=self._client.conversation,
                code=code,
                name="not delivered" if nak else error_name(code),
                command=command,
            )
        ]
