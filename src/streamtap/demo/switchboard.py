"""The switchboard's side of one connection: who is in the conversation, and who hears what."""

import asyncio
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote

from streamtap.demo.accounts import NAMES
from streamtap.demo.wire import Command, Connection, Refusal, transaction_of

MESSAGE_LIMIT = 1664  # payload bytes that real switchboards let through


class Room:
    """One conversation. Its session id is public; a cookie is needed to come in."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.members: dict[str, SwitchboardSession] = {}


class SignedIn(Protocol):
    """What a switchboard asks of somebody who is signed in."""

    capabilities: str


class Directory(Protocol):
    """What a switchboard session needs of the server."""

    @property
    def users(self) -> Mapping[str, SignedIn]: ...
    def redeem_cookie(self, account: str, cookie: str) -> Room | None: ...
    def ring(self, account: str, room: Room, caller: str) -> bool: ...


class SwitchboardSession:
    """One client in at most one conversation."""

    def __init__(self, connection: Connection, directory: Directory, idle_s: float) -> None:
        self._connection = connection
        self._directory = directory
        self._idle_s = idle_s
        self._room: Room | None = None
        self.account = ""
        self.tell = connection.send

    async def serve(self) -> None:
        """Until the client leaves. Raises ProtocolError, or TimeoutError after a long silence."""
        while True:
            async with asyncio.timeout(self._idle_s):
                command = await self._connection.receive()
            if command is None or command.verb == "OUT":
                return
            transaction, *args = transaction_of(command)
            try:
                self._obey(transaction, args, command)
            except Refusal as refusal:
                self.tell(str(refusal.code), transaction)
                if refusal.final:
                    return

    def _obey(self, transaction: str, args: list[str], command: Command) -> None:
        match command.verb, args:
            case "USR", [account, cookie] if self._room is None:
                self._enter(account, cookie)
                self.tell("USR", transaction, "OK", self.account, self.name)
            case "ANS", [account, cookie, session_id] if self._room is None:
                room = self._enter(account, cookie, session_id)
                others = [member for member in room.members.values() if member is not self]
                for index, other in enumerate(others, 1):
                    place = str(index), str(len(others))
                    self.tell("IRO", transaction, *place, *other.introduction())
                self.tell("ANS", transaction, "OK")
                self._tell_others("JOI", *self.introduction())
            case _ if self._room is None:
                raise Refusal(911, final=True)
            case "CAL", [account]:
                self._call(self._room, account.lower())
                self.tell("CAL", transaction, "RINGING", self._room.session_id)
            case "MSG", [mode] if mode in ("U", "N", "A", "D"):
                if len(command.payload or b"") > MESSAGE_LIMIT:
                    raise Refusal(285)
                heard = self._tell_others("MSG", self.account, self.name, payload=command.payload)
                if heard and mode in ("A", "D"):
                    self.tell("ACK", transaction)
                elif not heard and mode != "U":
                    self.tell("NAK", transaction)
            case (("CAL" | "MSG"), _):
                raise Refusal(201)
            case _:
                # where its payload would end is not known: nothing after it can be read
                raise Refusal(200, final=True)

    @property
    def name(self) -> str:
        return quote(NAMES[self.account])

    def introduction(self) -> tuple[str, ...]:
        """Account, name and capabilities, as JOI and IRO carry them."""
        user = self._directory.users.get(self.account)
        return self.account, self.name, user.capabilities if user else "0"

    def _enter(self, account: str, cookie: str, session_id: str | None = None) -> Room:
        account = account.lower()
        room = self._directory.redeem_cookie(account, cookie)
        if room is None or session_id not in (None, room.session_id) or account in room.members:
            raise Refusal(911, final=True)
        self.account, self._room = account, room
        room.members[account] = self
        return room

    def _call(self, room: Room, account: str) -> None:
        if account not in NAMES:
            raise Refusal(208)
        if account in room.members:
            raise Refusal(215)
        if not self._directory.ring(account, room, self.account):
            raise Refusal(217)

    def _tell_others(self, verb: str, *args: str, payload: bytes | None = None) -> bool:
        """False when there is nobody to tell."""
        members = self._room.members.values() if self._room else ()
        others = [member for member in members if member is not self]
        for member in others:
            member.tell(verb, *args, payload=payload)
        return bool(others)

    def leave(self, *, idle: bool) -> None:
        """The connection ended, whichever way: the others see the account go, once."""
        if self._room is None:
            return
        self._tell_others("BYE", self.account, *(["1"] if idle else []))
        del self._room.members[self.account]
        self._room = None

    def shut_down(self) -> None:
        self._connection.finish()
