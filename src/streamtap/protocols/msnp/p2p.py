"""Peer-to-peer packets (both formats) and the MSNSLP messages that negotiate sessions.

Packet headers: version 1 is little-endian with 48 bytes, version 2 big-endian with two headers of
variable size. Session 0 carries MSNSLP text, in several packets where it is long.
"""

import base64
import binascii
import hashlib
import re
import struct
import uuid
from typing import NamedTuple

from streamtap.protocols._base import Pool
from streamtap.protocols._redact import is_redacted, redact
from streamtap.protocols.msnp.events import MsnpPacket, Slp
from streamtap.protocols.msnp.secrets import redact_value

HEADER = struct.Struct("<IIQQIIIIQ")
ACK, HANDSHAKE = 0x2, 0x100
FIRST = 0x1  # flag of a version 2 packet that begins a message of MSNSLP
SLP_LIMIT = 16 * 1024  # a file offer with its Context is 2 KiB
SLP_OPEN = 8  # unfinished messages of one direction
ACCOUNT = 320
CONTEXT_LIMIT = 16 * 1024
FILE_GUID = "{5D3E02AB-6190-11D3-BBBB-00C04F795683}"

_START = re.compile(
    rb"(?:(INVITE|BYE|ACK) MSNMSGR:[^\r\n]*|MSNSLP/1\.0 ([0-9]{3})[^\r\n]*)\r?\n", re.IGNORECASE
)
_ACCOUNT = re.compile(r"<?(?:msnmsgr:)?([^;>]*)", re.IGNORECASE)
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_KIND = re.compile(r"[\w./+-]{1,64}", re.ASCII)
_TYPE = re.compile(r"""\bType=["']?(\d{1,6})""", re.IGNORECASE)
_SECRET = re.compile(r"nonce|password|user|cookie|ticket|auth", re.IGNORECASE)
# Some clients write the address fields mirrored, name and value.
_MIRRORED = re.compile(r"\A(?:sddA|srddA|troP|stroPdnA|ecnoN|labolg)|4vPI\Z|6vPI\Z")


class Raw(NamedTuple):
    """A packet's header, and its data.

    sequence, following: of version 2, where the packet stands among all that its sender says to
    one endpoint, and where the next one does.
    """

    version: int
    session: int
    message: int
    position: int
    total: int
    flags: int
    application: int | None
    data: bytes
    sequence: int = 0
    following: int = 0


def decode(body: bytes, *, footer: bool, second: bool) -> Raw | None:
    """The packet in `body`, or None if it is none.

    footer: the four bytes that follow a packet on a switchboard. second: it may be of version 2;
    on a switchboard nobody sends that without naming an endpoint, and to a peer on a direct
    connection not after a handshake of version 1.
    """
    tail = 4 if footer else 0
    if second:
        raw = _decode_v2(body, tail)
        if raw is not None:
            return raw
    return _decode_v1(body, tail)


def _decode_v1(body: bytes, tail: int) -> Raw | None:
    if len(body) < HEADER.size:
        return None
    session, message, position, total, size, flags, _, _, _ = HEADER.unpack_from(body)
    end = HEADER.size + size
    if len(body) not in (end, end + tail):
        return None
    application = int.from_bytes(body[end:], "big") if len(body) > end else None
    return Raw(1, session, message, position, total, flags, application, body[HEADER.size : end])


def _decode_v2(body: bytes, tail: int) -> Raw | None:
    if len(body) < 8:
        return None
    head, flags, size, sequence = struct.unpack_from(">BBHI", body)
    if head < 8 or head % 4 or head + size not in (len(body), len(body) - tail):
        return None
    if size == 0:
        return Raw(2, 0, 0, 0, 0, flags | ACK, None, b"")
    inner = body[head : head + size]
    if size < 8 or not 8 <= inner[0] <= size:
        return None
    kind, package, session = struct.unpack_from(">BHI", inner, 1)
    remaining = 0
    at = 8
    while at + 2 <= inner[0]:
        tag, length = inner[at], inner[at + 1]
        if tag == 0:
            at += 1
            continue
        if tag == 1 and length == 8 and at + 10 <= inner[0]:
            remaining = int.from_bytes(inner[at + 2 : at + 10], "big")
        at += 2 + length
    data = inner[inner[0] :]
    # Version 2 counts down: the position is not on the wire, `total` is what is still to come.
    total = min(len(data) + remaining, 2**63 - 1)
    following = (sequence + size) % 2**32
    return Raw(2, session, package, 0, total, kind, None, data, sequence, following)


def decode_all(body: bytes) -> list[tuple[Raw, int]]:
    """The packets of version 2 that fill `body` one behind the other, each with its length; none
    if they do not. Zeros may follow the last as a footer."""
    found: list[tuple[Raw, int]] = []
    at = 0
    while len(body) - at >= 8:
        length = body[at] + int.from_bytes(body[at + 2 : at + 4], "big")
        raw = _decode_v2(body[at : at + length], 0)
        if raw is None:
            return []
        found.append((raw, length))
        at += length
    rest = body[at:]
    if rest.strip(b"\0") or (rest and not found):
        return []
    if rest:
        raw, length = found.pop()
        found.append((raw, length + len(rest)))
    return found


class Packets:
    """The packets of one direction: decodes them and puts MSNSLP messages together. Of one that may
    not be held any longer, its beginning is read."""

    __slots__ = ("_open", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._open: dict[tuple[str, int], bytearray] = {}
        self._pool = pool

    @property
    def held(self) -> int:
        """Bytes of unfinished MSNSLP messages."""
        return sum(map(len, self._open.values()))

    def event(
        self,
        raw: Raw,
        *,
        offset: int,
        length: int,
        sender: str | None,
        recipient: str | None,
    ) -> MsnpPacket:
        return MsnpPacket(
            offset=offset,
            length=length,
            sender=sender,
            recipient=recipient,
            version=raw.version,
            session=raw.session,
            message=raw.message,
            position=raw.position,
            total=raw.total,
            size=len(raw.data),
            flags=raw.flags,
            application=raw.application,
            slp=self._slp(raw, sender or "") if raw.session == 0 and raw.data else None,
        )

    def _slp(self, raw: Raw, sender: str) -> Slp | None:
        if raw.version == 1:
            return self._by_position(raw, sender)
        # Package numbers are 0 for most; what continues a message is where it left off.
        before = None if raw.flags & FIRST else self._take((sender, raw.sequence))
        text = bytearray() if before is None else before
        text += raw.data
        if len(raw.data) == raw.total:
            return parse_slp(bytes(text))
        if before is not None or raw.flags & FIRST:
            return self._hold((sender, raw.following), text)
        return None

    def _by_position(self, raw: Raw, sender: str) -> Slp | None:
        if len(raw.data) == raw.total:
            return parse_slp(raw.data)
        key = (sender, raw.message)
        text = self._take(key) or bytearray()
        if raw.position != len(text):
            return None  # a part is missing: the message can't be read
        text += raw.data
        if len(text) >= raw.total:
            return parse_slp(bytes(text))
        return self._hold(key, text)

    def _take(self, key: tuple[str, int]) -> bytearray | None:
        text = self._open.pop(key, None)
        if text is not None:
            self._pool.held -= len(text)
        return text

    def _hold(self, key: tuple[str, int], text: bytearray) -> Slp | None:
        """Waits for what follows; what of it can be read, if it may not."""
        self._take(key)
        self._pool.held += len(text)
        if len(text) > SLP_LIMIT or self._pool.refuses(len(text)):
            self._pool.held -= len(text)
            slp = parse_slp(bytes(text))
            # An offer, or its answer; elsewhere a number that was cut would be another one.
            return slp if slp is not None and slp.content_type == "sessionreqbody" else None
        self._open[key] = text
        if len(self._open) > SLP_OPEN:
            self._take(next(iter(self._open)))
        return None

    def end(self) -> None:
        """There will be no more packets."""
        for key in list(self._open):
            self._take(key)


def _fields(block: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in block.split(b"\n", 64)[:64]:
        name, colon, value = line.rstrip(b"\r").partition(b":")
        if colon:
            key = str(name.strip(), "utf-8", "backslashreplace")
            text = str(value.strip(), "utf-8", "backslashreplace")
            if _MIRRORED.search(key):
                key, text = key[::-1], text[::-1]
            if _SECRET.search(key) and not is_redacted(text):
                text = redact_value(text.encode("utf-8", "backslashreplace"))
            fields[key.lower()] = text
    return fields


def _account(text: str) -> str:
    found = _ACCOUNT.match(text)
    return found[1][:ACCOUNT].lower() if found else ""


def parse_slp(text: bytes) -> Slp | None:
    """One MSNSLP message, or None where the text is none. Credentials come out replaced."""
    start = _START.match(text)
    if start is None:
        return None
    head, *body = _EMPTY_LINE.split(text[start.end() :].rstrip(b"\0"), maxsplit=1)
    headers = _fields(head)
    fields = _fields(body[0]) if body else {}
    context = fields.pop("context", "")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    kind = kind.removeprefix("application/x-msnmsgr-")
    name, size, object_type = _context(fields.get("euf-guid", "").upper(), context)
    return Slp(
        method=start[1].decode().upper() if start[1] else None,
        code=int(start[2]) if start[2] else None,
        to=_account(headers.get("to", "")),
        by=_account(headers.get("from", "")),
        branch=headers.get("via", "").rpartition("branch=")[2],
        call_id=headers.get("call-id", ""),
        content_type=kind if _KIND.fullmatch(kind) else "",
        fields=fields,
        name=name,
        size=size,
        object_type=object_type,
    )


def _context(guid: str, context: str) -> tuple[str | None, int | None, int | None]:
    """Name and size of an offered file, or the type of a requested MSNObject."""
    # What is asked for stands at its beginning; a picture of the file may follow.
    text = "".join(context[:CONTEXT_LIMIT].split()).rstrip("=")
    if len(text) % 4 == 1:  # it was cut: so much of base64 tells no byte
        text = text[:-1]
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None, None, None
    if guid == FILE_GUID and len(data) >= 22:
        size = int.from_bytes(data[8:16], "little")
        units = data[20:570]
        name = units[: len(units) // 2 * 2].decode("utf-16-le", "replace").partition("\0")[0]
        return file_name(name) or None, min(size, 2**63 - 1), None
    found = _TYPE.search(data.decode("utf-8", "replace"))
    return None, None, int(found[1]) if found else None


def file_name(text: str) -> str:
    """The name that an offer gives a file: without folders, and nothing that does not show."""
    return "".join(char for char in re.split(r"[/\\]", text)[-1] if char.isprintable())


def nonce_hashes(nonce: bytes) -> tuple[str, str]:
    """The redacted forms of a nonce seen on the wire, as `Nonce` and as `Hashed-Nonce`."""
    plain = uuid.UUID(bytes_le=nonce)
    digest = uuid.UUID(bytes_le=hashlib.sha1(nonce, usedforsecurity=False).digest()[:16])
    return redact(f"{{{plain}}}".upper()), redact(f"{{{digest}}}".upper())
