"""The client's side of the server connections: sign-in, presence, switchboards.

Everything is read when the script asks for it, in the order it came; what was not asked for yet
is kept. So a script waits for what the other side says, never for time to pass.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Self

from streamtap.demo.credentials import PRODUCT_ID, challenge_answer, ticket
from streamtap.demo.p2p import FILE_APPLICATION, SWITCHBOARD_PART, Packet
from streamtap.demo.wire import (
    FROM_SERVER,
    LINE_LIMIT,
    Command,
    Connection,
    Message,
    Transcript,
)

VERSIONS = ("MSNP12", "MSNP11", "CVR0")
CLIENT = ("0x0409", "winnt", "5.1", "i386", "MSNMSGR", "7.5.0324", "msmsgs")
CAPABILITIES = "1342472230"
UNCLAIMED_LIMIT = 1000
TEXT_FORMAT = "FN=Segoe%20UI; EF=; CO=0; CS=0; PF=22"


class ScriptFailed(Exception):
    """The conversation took another course than the script says."""


class Dialogue:
    """One connection to the server: requests and their answers, and what comes unasked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transactions = count(1)
        self._unclaimed: deque[Command] = deque()

    @classmethod
    async def open(cls, address: str, service: str, transcript: Transcript) -> Self:
        """Connect to `host:port`. Raises OSError."""
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=LINE_LIMIT)
        tap = transcript.tap(service)
        return cls(Connection(reader, writer, payloads=FROM_SERVER, tap=tap))

    def post(self, verb: str, *args: str, payload: bytes | None = None) -> str:
        """Send a request; the transaction number to wait for is returned."""
        transaction = str(next(self._transactions))
        self._connection.send(verb, transaction, *args, payload=payload)
        return transaction

    async def request(self, verb: str, *args: str, payload: bytes | None = None) -> Command:
        """Send a request and wait for the first line of its answer, which is no error."""
        transaction = self.post(verb, *args, payload=payload)
        answer = await self.expect(f"the answer to {verb}", lambda c: c.args[:1] == (transaction,))
        if answer.verb.isdecimal():
            raise ScriptFailed(f"the server answered {verb} with error {answer.verb}")
        return answer

    async def refused(self, code: str, verb: str, *args: str) -> None:
        """Send a request that the server must refuse with this error number."""
        transaction = self.post(verb, *args)
        await self.expect(f"error {code} for {verb}", lambda c: c == Command(code, (transaction,)))

    async def expect(self, what: str, matches: Callable[[Command], bool]) -> Command:
        """The first command that matches, of those kept and those to come."""
        for command in self._unclaimed:
            if matches(command):
                self._unclaimed.remove(command)
                return command
        while True:
            received = await self._connection.receive()
            if received is None:
                raise ScriptFailed(f"the server hung up before {what}")
            if matches(received):
                return received
            self._unclaimed.append(received)
            if len(self._unclaimed) > UNCLAIMED_LIMIT:
                raise ScriptFailed(f"too much came before {what}")

    async def ping(self) -> None:
        self._connection.send("PNG")
        await self.expect("QNG", lambda command: command.verb == "QNG")

    async def finish(self) -> None:
        """Say OUT and read to the end."""
        self._connection.send("OUT")
        while await self._connection.receive() is not None:
            pass
        await self._connection.close()

    async def close(self) -> None:
        await self._connection.close()


class Messenger:
    """An account that is signed in to the notification server."""

    def __init__(self, account: str, server: Dialogue, transcript: Transcript) -> None:
        self.account = account
        self._server = server
        self._transcript = transcript

    @classmethod
    async def sign_in(
        cls, account: str, password: str, address: str, transcript: Transcript
    ) -> "Messenger":
        """Through the dispatch server to the notification server, and through its lists."""
        dispatch = await Dialogue.open(address, "dispatch", transcript)
        redirect = await cls._introduce(dispatch, account)
        if redirect.verb != "XFR" or redirect.args[1:2] != ("NS",):
            raise ScriptFailed("the dispatch server did not say where to go")
        await dispatch.close()
        server = await Dialogue.open(redirect.args[2], "notification", transcript)
        challenge = await cls._introduce(server, account)
        if challenge.args[1:3] != ("TWN", "S"):
            raise ScriptFailed("the server did not give its policy")
        proof = ticket(account, password, challenge.args[3])
        if (await server.request("USR", "TWN", "S", proof)).args[1:3] != ("OK", account):
            raise ScriptFailed("the server signed somebody else in")
        await server.expect("the profile", lambda command: command.verb == "MSG")
        lists = await server.request("SYN", "0", "0")
        for _ in range(int(lists.args[3])):
            await server.expect("a contact", lambda command: command.verb == "LST")
        return cls(account, server, transcript)

    @staticmethod
    async def _introduce(server: Dialogue, account: str) -> Command:
        await server.request("VER", *VERSIONS)
        await server.request("CVR", *CLIENT, account)
        return await server.request("USR", "TWN", "I", account)

    async def appear(self, personal_message: str) -> None:
        """Be online from now on; answers the server's challenge."""
        await self.change_status("NLN")
        challenge = await self._server.expect("a challenge", lambda command: command.verb == "CHL")
        answer = challenge_answer(challenge.args[1])
        await self._server.request("QRY", PRODUCT_ID, payload=answer)
        data = f"<Data><PSM>{personal_message}</PSM><CurrentMedia></CurrentMedia></Data>"
        await self._server.request("UUX", payload=data.encode())
        await self._server.ping()

    async def change_status(self, status: str) -> None:
        await self._server.request("CHG", status, CAPABILITIES, "0")

    async def see(self, account: str, status: str) -> None:
        """Wait until a contact's status is this one; FLN is gone offline."""

        def matches(command: Command) -> bool:
            if status == "FLN":
                return command.verb == "FLN" and command.args[:1] == (account,)
            skipped = 1 if command.verb == "ILN" else 0
            shown = command.args[skipped : skipped + 2]
            return command.verb in ("ILN", "NLN") and shown == (status, account)

        await self._server.expect(f"{account} to be {status}", matches)

    async def open_switchboard(self) -> "Chat":
        answer = await self._server.request("XFR", "SB")
        _, service, address, _, cookie = answer.args
        if service != "SB":
            raise ScriptFailed("the server sent to something that is no switchboard")
        switchboard = await Dialogue.open(address, "switchboard", self._transcript)
        await switchboard.request("USR", self.account, cookie)
        return Chat(self.account, switchboard)

    async def answer_call(self, caller: str) -> "Chat":
        """Wait until somebody rings, and join."""
        call = await self._server.expect(f"a call from {caller}", lambda c: c.verb == "RNG")
        session_id, address, _, cookie, who, *_ = call.args
        if who != caller:
            raise ScriptFailed("somebody else called")
        switchboard = await Dialogue.open(address, "switchboard", self._transcript)
        roster = await switchboard.request("ANS", self.account, cookie, session_id)
        if roster.verb != "IRO" or roster.args[3] != caller:
            raise ScriptFailed("the caller is not in the conversation")
        await switchboard.expect("the end of the roster", lambda c: c.verb == "ANS")
        return Chat(self.account, switchboard)

    async def sign_out(self) -> None:
        await self._server.finish()


class Chat:
    """A conversation on a switchboard."""

    part = SWITCHBOARD_PART

    def __init__(self, account: str, switchboard: Dialogue) -> None:
        self.account = account
        self._switchboard = switchboard

    async def invite(self, account: str) -> None:
        """Call a contact and wait until it joins."""
        await self._switchboard.request("CAL", account)
        joined = await self._switchboard.expect(f"{account} to join", lambda c: c.verb == "JOI")
        if joined.args[0] != account:
            raise ScriptFailed("somebody else joined")

    async def invite_in_vain(self, account: str) -> None:
        """Call a contact that is offline."""
        await self._switchboard.refused("217", "CAL", account)

    async def say(self, text: str, *, acknowledged: bool = False) -> None:
        headers = {"Content-Type": "text/plain; charset=UTF-8", "X-MMS-IM-Format": TEXT_FORMAT}
        message = Message(headers, text.encode())
        await self._deliver("A" if acknowledged else "N", message)

    async def type(self) -> None:
        headers = {"Content-Type": "text/x-msmsgscontrol", "TypingUser": self.account}
        await self._deliver("U", Message(headers, b"\r\n"))

    async def nudge(self) -> None:
        await self._deliver("A", Message({"Content-Type": "text/x-msnmsgr-datacast"}, b"ID: 1\r\n"))

    async def _deliver(self, mode: str, message: Message) -> None:
        transaction = self._switchboard.post("MSG", mode, payload=message.encode())
        if mode in ("A", "D"):
            answer = await self._switchboard.expect(
                "an acknowledgement", lambda command: command.args == (transaction,)
            )
            if answer.verb != "ACK":
                raise ScriptFailed(f"a message was answered with {answer.verb}")

    async def hear(self, sender: str, text: str) -> None:
        """Wait for the next text, which must be this one."""
        message = await self._next("text/plain", sender)
        if message.body != text.encode():
            raise ScriptFailed(f"{sender} said something else")

    async def see_typing(self, sender: str) -> None:
        await self._next("text/x-msmsgscontrol", sender)

    async def feel_nudge(self, sender: str) -> None:
        message = await self._next("text/x-msnmsgr-datacast", sender)
        if message.body != b"ID: 1\r\n":
            raise ScriptFailed(f"{sender} sent something that is no nudge")

    async def _next(self, content_type: str, sender: str | None = None) -> Message:
        def matches(command: Command) -> bool:
            payload = command.payload or b""
            return command.verb == "MSG" and Message.parse(payload).content_type == content_type

        command = await self._switchboard.expect(f"a message of {content_type}", matches)
        if sender is not None and command.args[0] != sender:
            raise ScriptFailed("somebody else sent a message")
        return Message.parse(command.payload or b"")

    async def send_packet(self, packet: Packet, recipient: str) -> None:
        """One peer-to-peer packet, with the footer that a switchboard needs."""
        application = FILE_APPLICATION if packet.session_id else 0
        headers = {"Content-Type": "application/x-msnmsgrp2p", "P2P-Dest": recipient}
        body = packet.encode() + application.to_bytes(4, "big")
        await self._deliver("D", Message(headers, body))

    async def receive_packet(self) -> Packet:
        return Packet.parse((await self._next("application/x-msnmsgrp2p")).body)

    async def see_leave(self, account: str) -> None:
        await self._switchboard.expect(
            f"{account} to leave", lambda command: command == Command("BYE", (account,))
        )

    async def leave(self) -> None:
        await self._switchboard.finish()
