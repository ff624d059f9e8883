"""The notification server's side of one connection: sign-in, contacts, presence, redirects."""

import asyncio
import secrets
import time
from typing import Protocol
from urllib.parse import quote
from uuid import NAMESPACE_DNS, uuid5

from streamtap.demo.accounts import NAMES
from streamtap.demo.credentials import PASSWORD, PRODUCT_ID, challenge_answer, ticket
from streamtap.demo.switchboard import Room
from streamtap.demo.wire import Command, Connection, Message, Refusal, transaction_of

VERSION = "MSNP12"
CLIENT_VERSION = "7.5.0324"
STATUSES = frozenset({"NLN", "BSY", "IDL", "BRB", "AWY", "PHN", "LUN", "HDN"})
FORWARD_ALLOW_REVERSE = "11"  # bits 1, 2 and 8: everybody has everybody on the list
QUIET_S = "50"  # until the client should ping again


class Directory(Protocol):
    """What a notification session needs of the server."""

    users: dict[str, "NotificationSession"]
    redirected: set[str]  # accounts whose next sign-in is no longer sent on
    notification_address: str
    switchboard_address: str

    def new_room(self) -> Room: ...
    def new_cookie(self, account: str, room: Room) -> str: ...


class NotificationSession:
    """One client. Its presence is known to the others from its first CHG on."""

    def __init__(self, connection: Connection, directory: Directory, idle_s: float) -> None:
        self._connection = connection
        self._directory = directory
        self._idle_s = idle_s
        self._policy = ""
        self._claimed = ""  # the account that asked to sign in
        self._challenge = ""
        self.account = ""
        self.name = ""
        self.status = "FLN"
        self.capabilities = "0"
        self.object = "0"
        self.personal = b""
        self.tell = connection.send

    @property
    def reachable(self) -> bool:
        return self.status not in ("FLN", "HDN")

    async def serve(self) -> None:
        """Until the client leaves. Raises ProtocolError, or TimeoutError after a long silence."""
        while True:
            async with asyncio.timeout(self._idle_s):
                command = await self._connection.receive()
            if command is None or command.verb == "OUT":
                return
            if command.verb == "PNG":
                self.tell("QNG", QUIET_S)
                continue
            transaction, *args = transaction_of(command)
            try:
                goes_on = self._obey(transaction, args, command)
            except Refusal as refusal:
                self.tell(str(refusal.code), transaction)
                goes_on = not refusal.final
            if not goes_on:
                return

    def _obey(self, transaction: str, args: list[str], command: Command) -> bool:
        """Answer one command; False ends the connection."""
        match command.verb, args:
            case "VER", [*versions]:
                known = VERSION in versions
                self.tell("VER", transaction, VERSION if known else "0")
                return known
            case "CVR", [_, _, _, _, _, _, _, _]:
                address = "http://msgr.example.com"
                self.tell("CVR", transaction, *[CLIENT_VERSION] * 3, f"{address}/dl", address)
            case "USR", ["TWN", "I", account]:
                return self._claim(transaction, account.lower())
            case "USR", ["TWN", "S", proof]:
                self._sign_in(transaction, proof)
            case _ if not self.account:
                raise Refusal(302, final=True)
            case "SYN", [_, _]:
                self._synchronise(transaction)
            case "CHG", [status, *rest] if status in STATUSES and len(rest) <= 2:
                self._change(transaction, status, rest)
            case "UUX", []:
                self.personal = command.payload or b""
                self.tell("UUX", transaction, payload=b"")
                self._tell_watchers("UBX", self.account, payload=self.personal)
            case "QRY", _:
                expected = challenge_answer(self._challenge) if self._challenge else None
                self._challenge = ""
                if args != [PRODUCT_ID] or expected is None or command.payload != expected:
                    raise Refusal(540, final=True)
                self.tell("QRY", transaction)
            case "XFR", ["SB"]:
                if not self.reachable:
                    raise Refusal(913)
                cookie = self._directory.new_cookie(self.account, self._directory.new_room())
                address = self._directory.switchboard_address
                self.tell("XFR", transaction, "SB", address, "CKI", cookie)
            case (("CHG" | "SYN" | "XFR"), _):
                raise Refusal(201)
            case _:
                # where its payload would end is not known: nothing after it can be read
                raise Refusal(200, final=True)
        return True

    def _claim(self, transaction: str, account: str) -> bool:
        """First step of a sign-in: to the notification server, which is here, then the policy."""
        if account not in NAMES:
            raise Refusal(911, final=True)
        if account not in self._directory.redirected:
            self._directory.redirected.add(account)
            here = self._directory.notification_address
            self.tell("XFR", transaction, "NS", here, "0", here)
            return False
        self._claimed = account
        self._policy = f"lc=1033,id=507,tw=40,ru=http%3A%2F%2Fmsgr.example.com,ct={new_number()}"
        self.tell("USR", transaction, "TWN", "S", self._policy)
        return True

    def _sign_in(self, transaction: str, proof: str) -> None:
        account, self._claimed = self._claimed, ""
        expected = ticket(account, PASSWORD, self._policy)
        if not account or not secrets.compare_digest(proof.encode(), expected.encode()):
            raise Refusal(911, final=True)
        if (elsewhere := self._directory.users.get(account)) is not None:
            elsewhere.tell("OUT", "OTH")
            elsewhere.hang_up()
        self._directory.redirected.discard(account)
        self._directory.users[account] = self
        self.account, self.name = account, quote(NAMES[account])
        self.tell("USR", transaction, "OK", account, "1", "0")
        self.tell("SBS", "0", "null")
        profile = Message(
            {
                "Content-Type": "text/x-msmsgsprofile; charset=UTF-8",
                "LoginTime": str(int(time.time())),
                "EmailEnabled": "1",
                "lang_preference": "1033",
                "preferredEmail": account,
                "sid": "507",
                "kv": "5",
                "MSPAuth": secrets.token_urlsafe(48),
                "ClientIP": "127.0.0.1",
                "ClientPort": "0",
            }
        )
        self.tell("MSG", "Hotmail", "Hotmail", payload=profile.encode())

    def _synchronise(self, transaction: str) -> None:
        contacts = [account for account in NAMES if account != self.account]
        stamp = "2005-11-23T09:15:00.0000000-00:00"
        group = str(uuid5(NAMESPACE_DNS, "friends.example.com"))
        self.tell("SYN", transaction, stamp, stamp, str(len(contacts)), "1")
        self.tell("GTC", "A")
        self.tell("BLP", "AL")
        self.tell("PRP", "MFN", self.name)
        self.tell("LSG", "Friends", group)
        for account in contacts:
            words = (
                f"N={account}",
                f"F={quote(NAMES[account])}",
                f"C={uuid5(NAMESPACE_DNS, account)}",
            )
            self.tell("LST", *words, FORWARD_ALLOW_REVERSE, "1", group)

    def _change(self, transaction: str, status: str, rest: list[str]) -> None:
        first = self.status == "FLN"
        was_seen = self.reachable
        self.status = status
        self.capabilities, self.object = [*rest, "0", "0"][:2]
        self.tell("CHG", transaction, status, *rest)
        if first:
            self._initial_presence(transaction)
        if self.reachable:
            self._tell_watchers("NLN", *self._presence())
            if not was_seen and self.personal:
                self._tell_watchers("UBX", self.account, payload=self.personal)
        elif was_seen:
            self._tell_watchers("FLN", self.account)

    def _initial_presence(self, transaction: str) -> None:
        for user in self._directory.users.values():
            if user is not self and user.reachable:
                self.tell("ILN", transaction, *user._presence())
                if user.personal:
                    self.tell("UBX", user.account, payload=user.personal)
        self._challenge = new_number() + new_number()
        self.tell("CHL", "0", self._challenge)

    def _presence(self) -> tuple[str, ...]:
        return self.status, self.account, self.name, self.capabilities, self.object

    def _tell_watchers(self, verb: str, *args: str, payload: bytes | None = None) -> None:
        for user in self._directory.users.values():
            if user is not self and user.status != "FLN":
                user.tell(verb, *args, payload=payload)

    def leave(self, *, idle: bool) -> None:
        """The connection ended, whichever way: contacts see the account go offline, once."""
        if self._directory.users.get(self.account) is not self:
            return
        del self._directory.users[self.account]
        if self.reachable:
            self._tell_watchers("FLN", self.account)

    def hang_up(self) -> None:
        """Another place takes over, quietly: contacts see no change until its first CHG."""
        self._connection.finish()

    def shut_down(self) -> None:
        if self.account:
            self.tell("OUT", "SSD")
        self._connection.finish()


def new_number() -> str:
    return str(secrets.randbelow(9 * 10**9) + 10**9)
