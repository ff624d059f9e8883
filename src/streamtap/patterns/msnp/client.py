"""Whose connection it is: what the nouns of one MSNP flow know of it together."""

from typing import NamedTuple

from streamtap.events import Event
from streamtap.model import Direction, Flow
from streamtap.patterns.level import Level
from streamtap.patterns.links import Key, Links, scope_of, server_of, user_of
from streamtap.patterns.model import CLIENT_CLIENT, CLIENT_SERVER, Connect, Pattern


class Place(NamedTuple):
    """Where something stands: the flow, and the bytes of a direction of it that say it."""

    flow_id: int
    direction: Direction
    time_ns: int
    offset: int
    length: int


class Client:
    """The user at the client's end of a flow, whether the application is that end or the server.

    service: dispatch, notification, switchboard or direct; "" while it is not known.
    server: host:port that was connected to.
    account, version, program, name: as far as they were said.
    carried: where in HTTP what it says now stands; None where HTTP does not carry it.
    """

    __slots__ = (
        "_connected",
        "account",
        "carried",
        "conversation",
        "flow",
        "level",
        "links",
        "name",
        "program",
        "scope",
        "server",
        "service",
        "user",
        "version",
    )

    def __init__(self, flow: Flow, links: Links, level: Level) -> None:
        self.flow = flow
        self.links = links
        self.level = level
        self.scope = scope_of(flow)
        self.user = user_of(flow)
        self.server = server_of(flow)
        self.service = ""
        self.account: str | None = None
        self.version: str | None = None
        self.program: str | None = None
        self.name: str | None = None
        self.conversation: str | None = None
        self.carried: Place | None = None
        self._connected = False  # im.connect was told

    @property
    def undecided(self) -> bool:
        """A version was agreed on, and nothing yet told what service it is."""
        return self.service == "" and self.version is not None and not self._connected

    @property
    def is_board(self) -> bool:
        """A switchboard that was seen from its beginning."""
        return self.service == "switchboard" and not self.flow.midstream

    @property
    def version_number(self) -> int:
        """Of MSNP; 0 where it is not known."""
        digits = (self.version or "")[4:]
        return int(digits) if digits.isdecimal() and len(digits) < 4 else 0

    def place_of(self, direction: Direction, time_ns: int, event: Event) -> Place:
        """Where an event of it stands."""
        if self.carried is not None:
            return self.carried
        return Place(self.flow.flow_id, direction, time_ns, event.offset, event.length)

    def connect(self, offset: int, length: int, service: str) -> list[Pattern]:
        """It is this service; told once."""
        self.service = service
        if self._connected:
            return []
        self._connected = True
        return [
            Connect(
                offset=offset,
                length=length,
                protocol="msnp",
                pattern=CLIENT_CLIENT if service == "direct" else CLIENT_SERVER,
                conversation=self.conversation,
                service=service,
                protocol_version=self.version,
                client=self.program,
            )
        ]

    def is_account(self, account: str, time_ns: int) -> None:
        """Whose flow it is. Other flows of the same user may need to know."""
        self.account = account
        known = self.links.find(("own", self.user), time_ns)
        if known != account:
            # Two accounts at one place: neither can be taken for the other's.
            self.links.keep(("own", self.user), account if known is None else "", time_ns)

    def own(self, time_ns: int) -> str | None:
        """The account, from another flow of the same user if need be."""
        if self.account is None:
            known = self.links.find(("own", self.user), time_ns)
            if isinstance(known, str) and known:
                self.account = known
        return self.account

    def find_conversation(self, time_ns: int, *keys: Key) -> str:
        """The conversation of this flow: one that was announced, or a new one."""
        if self.conversation is None:
            address = ("address", self.user, self.server)
            for key in (*keys, address):
                found = self.links.find(key, time_ns)
                if isinstance(found, str):
                    self.conversation = found
                    # The connection that was awaited at this address has come.
                    if self.links.find(address, time_ns) == found:
                        self.links.drop(address)
                    break
            else:
                self.conversation = self.links.new_conversation(time_ns)
        return self.conversation

    def announce(self, time_ns: int, conversation: str, to: str, cookie: str) -> None:
        """A connection of this conversation should soon be opened to `to`."""
        if cookie:
            self.links.await_(("cookie", self.scope, cookie), conversation, time_ns)
        self.links.await_(("address", self.user, to), conversation, time_ns)
