"""Peer-to-peer packets that messages carry: told apart from the message around them."""

import re

from streamtap.events import Event
from streamtap.model import Direction
from streamtap.protocols.msnp.p2p import Packets, decode
from streamtap.protocols.msnp.secrets import redact_payload

PEER_TO_PEER = b"x-msnmsgrp2p"
HEAD = 512  # bytes of a payload within which its type stands

_P2P_TYPE = re.compile(rb"(?im)^Content-Type:[ \t]*application/x-msnmsgrp2p")
_P2P_NAMES = re.compile(rb"(?im)^P2P-(Dest|Src):[ \t]*([^\r\n;]*)(;?)")


class Carried:
    """The packets in the messages of one direction."""

    __slots__ = ("_direction", "_packets")

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._packets = Packets()

    @property
    def held(self) -> int:
        """Bytes of unfinished MSNSLP messages."""
        return self._packets.held

    def split(self, end: int, args: list[str], payload: bytes) -> tuple[bytes, Event] | None:
        """MIME header and packet of a message, or None if it holds none.

        end: stream offset of the end of the payload. args: as in the command.
        """
        head, empty, body = payload.partition(b"\r\n\r\n")
        if not _P2P_TYPE.search(head):
            return None
        names = {kind.lower(): (name, more) for kind, name, more in _P2P_NAMES.findall(head)}
        endpoints = b"src" in names or bool(names.get(b"dest", (b"", b""))[1])
        raw = decode(body, footer=True, endpoints=endpoints) if empty else None
        if raw is None:
            return None
        recipient = str(names.get(b"dest", (b"", b""))[0].strip(), "utf-8", "backslashreplace")
        received = self._direction is Direction.TO_CLIENT and args
        event = self._packets.event(
            raw,
            offset=end - len(body),
            length=len(body),
            sender=args[0].partition(";")[0].lower() if received else None,
            recipient=recipient.lower() or None,
        )
        return redact_payload("MSG", args, head + empty), event
