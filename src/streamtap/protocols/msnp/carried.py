"""Peer-to-peer packets that messages carry: told apart from the message around them."""

import re

from streamtap.model import Direction
from streamtap.protocols._base import Pool
from streamtap.protocols.msnp.events import MsnpPacket
from streamtap.protocols.msnp.p2p import Packets, Raw, decode, decode_all
from streamtap.protocols.msnp.secrets import redact_payload

PEER_TO_PEER = b"x-msnmsgrp2p"
HEAD = 2048  # bytes of a payload within which its type stands
BLOCKS = {"MSG": 1, "SDG": 3}  # of headers, each with an empty line behind it
EMPTY = b"\r\n\r\n"

_P2P_TYPE = re.compile(rb"(?im)^Content-Type:[ \t]*application/x-msnmsgrp2p")
_P2P_NAMES = re.compile(rb"(?im)^P2P-(Dest|Src):[ \t]*([^\r\n;]*)(;?)")
_ROUTES = re.compile(rb"(?im)^(From|To):[ \t]*(?:\d{1,3}:)?([^\r\n;]*)")


def head_of(verb: str, payload: bytes) -> tuple[bytes, bytes | None]:
    """The headers of a message with the empty line behind them, and the body if there is one."""
    end = 0
    for _ in range(BLOCKS[verb]):
        found = payload.find(EMPTY, end)
        if found < 0:
            return payload, None
        end = found + len(EMPTY)
    return payload[:end], payload[end:]


class Carried:
    """The packets in the messages of one direction."""

    __slots__ = ("_direction", "_packets")

    def __init__(self, direction: Direction, pool: Pool) -> None:
        self._direction = direction
        self._packets = Packets(pool)

    @property
    def held(self) -> int:
        """Bytes of unfinished MSNSLP messages."""
        return self._packets.held

    def end(self) -> None:
        """There will be no more packets."""
        self._packets.end()

    def split(
        self, verb: str, end: int, args: list[str], payload: bytes
    ) -> tuple[bytes, list[MsnpPacket]]:
        """Headers and packets of a message; no packets where it holds none.

        end: stream offset of the end of the payload. args: as in the command.
        """
        head, body = head_of(verb, payload)
        if not body or not _P2P_TYPE.search(head):
            return b"", []
        sender: str | None = None
        if verb == "SDG":
            routes = {kind.lower(): _account(name) for kind, name in _ROUTES.findall(head)}
            sender, recipient = routes.get(b"from"), routes.get(b"to")
            raws = decode_all(body)
        else:
            names = {kind.lower(): (name, more) for kind, name, more in _P2P_NAMES.findall(head)}
            to, endpoint = names.get(b"dest", (b"", b""))
            recipient = _account(to)
            if self._direction is Direction.TO_CLIENT and args:
                sender = args[0].partition(";")[0].lower()
            raw = decode(body, footer=True, second=b"src" in names or bool(endpoint))
            raws = [(raw, len(body))] if raw is not None else []
        return redact_payload(verb, args, head), self._events(
            raws, end - len(body), sender, recipient
        )

    def _events(
        self, raws: list[tuple[Raw, int]], offset: int, sender: str | None, recipient: str | None
    ) -> list[MsnpPacket]:
        events = []
        for raw, length in raws:
            events.append(
                self._packets.event(
                    raw, offset=offset, length=length, sender=sender, recipient=recipient
                )
            )
            offset += length
        return events


def _account(name: bytes) -> str | None:
    return str(name.strip(), "utf-8", "backslashreplace").lower() or None
