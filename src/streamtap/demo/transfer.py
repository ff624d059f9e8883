"""File transfers between two clients: over the switchboard, or a direct connection they make."""

import asyncio
import secrets
from collections import deque
from itertools import count
from typing import NamedTuple, Protocol

from streamtap.demo.messenger import Chat, ScriptFailed
from streamtap.demo.p2p import (
    ACK,
    DIRECT_PART,
    FILE_APPLICATION,
    FILE_DATA,
    FILE_TRANSFER,
    NONCE,
    SESSION_CLOSE,
    SESSION_REQUEST,
    TRANSPORT_REQUEST,
    TRANSPORT_RESPONSE,
    Assembler,
    Packet,
    Slp,
    file_context,
    new_guid,
    nonce_of,
    nonce_packet,
    parse_file_context,
    split,
)
from streamtap.demo.wire import Tap, Transcript, close_writer

PRELUDE = b"foo\0"
FRAME_LIMIT = 64 * 1024


class File(NamedTuple):
    name: str
    data: bytes


class Carrier(Protocol):
    """What takes packets to the peer: a switchboard or a direct connection."""

    part: int  # data bytes that one packet may carry

    async def send_packet(self, packet: Packet, recipient: str) -> None: ...
    async def receive_packet(self) -> Packet: ...


class DirectConnection:
    """A TCP connection between two clients: each frame is a little-endian length and a packet."""

    part = DIRECT_PART

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: Tap
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._tap = tap

    @classmethod
    async def connect(
        cls, host: str, port: int, nonce: str, transcript: Transcript
    ) -> "DirectConnection":
        """Connect to a peer that listens, and be recognised by the nonce it gave."""
        reader, writer = await asyncio.open_connection(host, port)
        connection = cls(reader, writer, transcript.tap("direct"))
        await connection._send_frame(PRELUDE)
        await connection.send_packet(nonce_packet(nonce, secrets.randbits(31)))
        await connection._check_nonce(nonce)
        return connection

    @classmethod
    async def welcome(
        cls,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        nonce: str,
        transcript: Transcript,
    ) -> "DirectConnection":
        """Take up a peer's connection, which must show the nonce that it was given."""
        connection = cls(reader, writer, transcript.tap("direct"))
        if await connection._receive_frame() != PRELUDE:
            raise ScriptFailed("a direct connection did not begin as one")
        await connection._check_nonce(nonce)
        await connection.send_packet(nonce_packet(nonce, secrets.randbits(31)))
        return connection

    async def _check_nonce(self, nonce: str) -> None:
        packet = await self.receive_packet()
        if not packet.flags & NONCE or nonce_of(packet) != nonce:
            raise ScriptFailed("a stranger came to the direct connection")

    async def send_packet(self, packet: Packet, recipient: str = "") -> None:
        await self._send_frame(packet.encode())

    async def receive_packet(self) -> Packet:
        return Packet.parse(await self._receive_frame())

    async def _send_frame(self, data: bytes) -> None:
        frame = len(data).to_bytes(4, "little") + data
        self._tap("sent", frame)
        self._writer.write(frame)
        await self._writer.drain()

    async def _receive_frame(self) -> bytes:
        try:
            head = await self._reader.readexactly(4)
            if (length := int.from_bytes(head, "little")) > FRAME_LIMIT:
                raise ScriptFailed("a frame past the limit on the direct connection")
            data = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ScriptFailed("the direct connection broke") from error
        self._tap("received", head + data)
        return data

    async def close(self) -> None:
        await close_writer(self._writer)


class Peer:
    """Peer-to-peer messages with one contact, each acknowledged, over the best carrier there is."""

    def __init__(self, account: str, chat: Chat, transcript: Transcript) -> None:
        self.account = account  # the contact's
        self._own = chat.account
        self._chat = chat
        self._direct: DirectConnection | None = None
        self._transcript = transcript
        self._message_ids = count(secrets.randbelow(2**30) + 1)
        self._assembler = Assembler()
        self._arrived: deque[bytes] = deque()

    @property
    def _carrier(self) -> Carrier:
        return self._direct or self._chat

    async def offer(self, file: File, *, direct: bool = False) -> bool:
        """Offer a file and send it; False when it is declined."""
        session_id = secrets.randbelow(2**31 - 1) + 1
        session = str(session_id)
        call_id = new_guid()
        fields = {
            "EUF-GUID": FILE_TRANSFER,
            "SessionID": session,
            "AppID": str(FILE_APPLICATION),
            "Context": file_context(file.name, len(file.data)),
        }
        await self._send_slp(self._request("INVITE", call_id, SESSION_REQUEST, fields))
        if (answer := await self._receive_slp()).status == 603:
            return False
        _check(answer.status == 200, "an offer got a strange answer")
        if direct:
            await self._negotiate(call_id, session)
        await self._send(file.data, session_id, FILE_DATA)
        bye = await self._receive_slp()
        _check(bye.start.startswith("BYE "), "a transfer did not end with BYE")
        await self._hang_up()
        return True

    async def _negotiate(self, call_id: str, session: str) -> None:
        """Ask the peer to listen, and connect to where it does."""
        fields = {
            "Bridges": "TRUDPv1 TCPv1",
            "NetID": "0",
            "Conn-Type": "Direct-Connect",
            "UPnPNat": "false",
            "ICF": "false",
            "SessionID": session,
        }
        await self._send_slp(self._request("INVITE", call_id, TRANSPORT_REQUEST, fields))
        answer = await self._receive_slp()
        _check(answer.status == 200, "a direct connection was refused")
        where = answer.fields
        host, port = where["IPv4Internal-Addrs"].split()[0], int(where["IPv4Internal-Port"])
        self._direct = await DirectConnection.connect(host, port, where["Nonce"], self._transcript)

    async def take(self, name: str) -> File:
        """Wait for the offer of this file, accept it and receive it."""
        invitation, session, size = await self._receive_offer(name)
        await self._send_slp(invitation.answer("200 OK", SESSION_REQUEST, {"SessionID": session}))
        if (data := await self._receive()).startswith(b"INVITE "):
            await self._listen(Slp.parse(data), session)
            data = await self._receive()
        _check(len(data) == size, "a file came with another size than was offered")
        call_id = invitation.headers["Call-ID"]
        await self._send_slp(self._request("BYE", call_id, SESSION_CLOSE, {"SessionID": session}))
        await self._hang_up()
        return File(name, data)

    async def decline(self, name: str) -> None:
        invitation, session, _ = await self._receive_offer(name)
        fields = {"SessionID": session}
        await self._send_slp(invitation.answer("603 Decline", SESSION_REQUEST, fields))

    async def _receive_offer(self, name: str) -> tuple[Slp, str, int]:
        invitation = await self._receive_slp()
        _check(invitation.content_type == SESSION_REQUEST, "an offer was expected")
        offered, size = parse_file_context(invitation.fields["Context"])
        _check(offered == name, "another file was offered")
        return invitation, invitation.fields["SessionID"], size

    async def _listen(self, request: Slp, session: str) -> None:
        """Answer a request for a direct connection: open a port, and take the first that comes."""
        _check(request.content_type == TRANSPORT_REQUEST, "a transport request was expected")
        first: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        first = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if first.done():
                writer.transport.abort()
            else:
                first.set_result((reader, writer))

        listener = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1)
        nonce = new_guid()
        fields = {
            "Bridge": "TCPv1",
            "Listening": "true",
            "Nonce": nonce,
            "IPv4Internal-Addrs": "127.0.0.1",
            "IPv4Internal-Port": str(listener.sockets[0].getsockname()[1]),
            "SessionID": session,
        }
        try:
            await self._send_slp(request.answer("200 OK", TRANSPORT_RESPONSE, fields))
            reader, writer = await first
        finally:
            listener.close()
        self._direct = await DirectConnection.welcome(reader, writer, nonce, self._transcript)

    async def _hang_up(self) -> None:
        if self._direct is not None:
            await self._direct.close()
            self._direct = None

    def _request(self, method: str, call_id: str, content_type: str, fields: dict[str, str]) -> Slp:
        return Slp.request(
            method,
            to=self.account,
            sender=self._own,
            call_id=call_id,
            content_type=content_type,
            fields=fields,
        )

    async def _send_slp(self, message: Slp) -> None:
        await self._send(message.encode())

    async def _receive_slp(self) -> Slp:
        return Slp.parse(await self._receive())

    async def _send(self, message: bytes, session_id: int = 0, flags: int = 0) -> None:
        """Send a message and wait until the peer has all of it."""
        carrier = self._carrier
        packets = split(
            message,
            session_id=session_id,
            message_id=next(self._message_ids),
            flags=flags,
            part=carrier.part,
        )
        for last in packets:
            await carrier.send_packet(last, self.account)
        while not (packet := await carrier.receive_packet()).acknowledges(last):
            await self._accept(packet, carrier)

    async def _receive(self) -> bytes:
        """The next whole message of the peer; its acknowledgement is sent."""
        carrier = self._carrier
        while not self._arrived:
            await self._accept(await carrier.receive_packet(), carrier)
        return self._arrived.popleft()

    async def _accept(self, packet: Packet, carrier: Carrier) -> None:
        if packet.flags & ACK:
            raise ScriptFailed("an acknowledgement of something that was not sent")
        if (message := self._assembler.add(packet)) is not None:
            self._arrived.append(message)
            answer = packet.acknowledgement(next(self._message_ids))
            await carrier.send_packet(answer, self.account)


def _check(holds: bool, complaint: str) -> None:
    if not holds:
        raise ScriptFailed(complaint)
