"""Peer-to-peer layer, version 1: packets, the MSNSLP dialogue inside them, file offers.

Bytes in, values out: no sockets here. The packet header is little-endian; a switchboard adds a
big-endian footer, a direct connection a little-endian length before it.
"""

import base64
import secrets
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from uuid import UUID, uuid4

from streamtap.demo.wire import encode_fields, parse_fields

HEADER = struct.Struct("<IIQQIIIIQ")
SWITCHBOARD_PART = 1202  # data bytes a packet may carry
DIRECT_PART = 1352
MESSAGE_LIMIT = 16 * 1024 * 1024  # of one message put together: far above the demo's files

ACK = 0x2
NONCE = 0x100
FILE_DATA = 0x1000030

FILE_TRANSFER = "{5D3E02AB-6190-11D3-BBBB-00C04F795683}"
FILE_APPLICATION = 2
SESSION_REQUEST = "application/x-msnmsgr-sessionreqbody"
SESSION_CLOSE = "application/x-msnmsgr-sessionclosebody"
TRANSPORT_REQUEST = "application/x-msnmsgr-transreqbody"
TRANSPORT_RESPONSE = "application/x-msnmsgr-transrespbody"

# header length, version, file size, no preview, name in UTF-16LE, end mark
FILE_CONTEXT = struct.Struct("<IIQI550sI")


class Packet(NamedTuple):
    """One part of a message: `data` belongs at `offset` of `total` bytes.

    ack_id, ack_unique, ack_size: what an ACK acknowledges; in all other packets `ack_id` is a
        random number that the ACK repeats, and the other two are 0.
    """

    session_id: int
    message_id: int
    offset: int
    total: int
    flags: int
    ack_id: int
    ack_unique: int
    ack_size: int
    data: bytes

    def encode(self) -> bytes:
        header = HEADER.pack(
            self.session_id,
            self.message_id,
            self.offset,
            self.total,
            len(self.data),
            self.flags,
            self.ack_id,
            self.ack_unique,
            self.ack_size,
        )
        return header + self.data

    @classmethod
    def parse(cls, raw: bytes) -> "Packet":
        """Bytes after the counted data (a footer) are ignored. Raises ValueError if too short."""
        if len(raw) < HEADER.size:
            raise ValueError("a peer-to-peer packet shorter than its header")
        fields = HEADER.unpack_from(raw)
        session_id, message_id, offset, total, length, flags, ack_id, ack_unique, ack_size = fields
        data = raw[HEADER.size : HEADER.size + length]
        if len(data) != length:
            raise ValueError("a peer-to-peer packet shorter than it says")
        return cls(session_id, message_id, offset, total, flags, ack_id, ack_unique, ack_size, data)

    def acknowledgement(self, message_id: int) -> "Packet":
        """The ACK for the whole message of which this packet is a part."""
        return Packet(
            self.session_id,
            message_id,
            0,
            self.total,
            ACK,
            self.message_id,
            self.ack_id,
            self.total,
            b"",
        )

    def acknowledges(self, other: "Packet") -> bool:
        return self.flags & ACK != 0 and (self.ack_id, self.ack_unique) == (
            other.message_id,
            other.ack_id,
        )


def split(
    message: bytes, *, session_id: int, message_id: int, flags: int, part: int
) -> Iterator[Packet]:
    """A message as packets of at most `part` data bytes."""
    unique = secrets.randbits(32)
    for offset in range(0, len(message), part):
        data = message[offset : offset + part]
        yield Packet(session_id, message_id, offset, len(message), flags, unique, 0, 0, data)


class Assembler:
    """Packets that come in order to whole messages, for one peer."""

    def __init__(self) -> None:
        self._parts: dict[int, bytearray] = {}

    def add(self, packet: Packet) -> bytes | None:
        """The whole message, with its last packet. Raises ValueError where parts do not fit."""
        held = self._parts.setdefault(packet.message_id, bytearray())
        end = packet.offset + len(packet.data)
        if packet.offset != len(held) or end > packet.total or packet.total > MESSAGE_LIMIT:
            raise ValueError("a peer-to-peer part that does not fit")
        held += packet.data
        if end < packet.total:
            return None
        return bytes(self._parts.pop(packet.message_id))


def new_guid() -> str:
    return f"{{{uuid4()}}}".upper()


def nonce_packet(nonce: str, message_id: int) -> Packet:
    """The handshake of a direct connection: the nonce stands in the last 16 header bytes."""
    ack_id, ack_unique, ack_size = struct.unpack("<IIQ", UUID(nonce).bytes_le)
    return Packet(0, message_id, 0, 0, NONCE, ack_id, ack_unique, ack_size, b"")


def nonce_of(packet: Packet) -> str:
    raw = struct.pack("<IIQ", packet.ack_id, packet.ack_unique, packet.ack_size)
    return f"{{{UUID(bytes_le=raw)}}}".upper()


class Slp(NamedTuple):
    """One MSNSLP message: a request or an answer, its headers, the fields of its body."""

    start: str
    headers: Mapping[str, str]
    fields: Mapping[str, str]

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "")

    @property
    def status(self) -> int | None:
        """200, 603… of an answer; None of a request."""
        words = self.start.split(" ")
        return int(words[1]) if words[0] == "MSNSLP/1.0" and words[1:2] != [] else None

    def encode(self) -> bytes:
        body = encode_fields(self.fields) + b"\r\n\0"
        headers = {**self.headers, "Content-Length": str(len(body))}
        return f"{self.start}\r\n".encode() + encode_fields(headers) + b"\r\n" + body

    @classmethod
    def parse(cls, message: bytes) -> "Slp":
        head, _, body = message.partition(b"\r\n\r\n")
        start, _, headers = head.partition(b"\r\n")
        text = start.decode("utf-8", "replace")
        return cls(text, parse_fields(headers), parse_fields(body.rstrip(b"\0")))

    @classmethod
    def request(
        cls,
        method: str,
        *,
        to: str,
        sender: str,
        call_id: str,
        content_type: str,
        fields: Mapping[str, str],
    ) -> "Slp":
        start = f"{method} MSNMSGR:{to} MSNSLP/1.0"
        return cls(start, _headers(to, sender, new_guid(), "0 ", call_id, content_type), fields)

    def answer(self, status: str, content_type: str, fields: Mapping[str, str]) -> "Slp":
        """The answer to this request, with its branch and one more in the sequence."""
        to, sender = (self.headers[name][len("<msnmsgr:") : -1] for name in ("From", "To"))
        branch = self.headers["Via"].partition("branch=")[2]
        call_id = self.headers["Call-ID"]
        headers = _headers(to, sender, branch, "1 ", call_id, content_type)
        return Slp(f"MSNSLP/1.0 {status}", headers, fields)


def _headers(
    to: str, sender: str, branch: str, sequence: str, call_id: str, content_type: str
) -> dict[str, str]:
    return {
        "To": f"<msnmsgr:{to}>",
        "From": f"<msnmsgr:{sender}>",
        "Via": f"MSNSLP/1.0/TLP ;branch={branch}",
        "CSeq": sequence,
        "Call-ID": call_id,
        "Max-Forwards": "0",
        "Content-Type": content_type,
    }


def file_context(name: str, size: int) -> str:
    raw = FILE_CONTEXT.pack(FILE_CONTEXT.size, 2, size, 1, name.encode("utf-16-le"), 0xFFFFFFFF)
    return base64.b64encode(raw).decode()


def parse_file_context(text: str) -> tuple[str, int]:
    """Name and size of the file. Raises ValueError for anything that is no file context."""
    try:
        _, _, size, _, name, _ = FILE_CONTEXT.unpack(base64.b64decode(text, validate=True))
    except struct.error as error:
        raise ValueError("a file offer of an unknown form") from error
    return name.decode("utf-16-le").partition("\0")[0], size
