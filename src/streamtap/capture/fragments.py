"""Fragments of IP packets -> whole packets (RFC 791 §3.2, RFC 8200 §4.5).

The first copy of a byte is kept. What is incomplete for too long, or too much, is given up and
counted: anybody may send fragments.
"""

from collections import OrderedDict
from typing import NamedTuple

TIMEOUT_NS = 30_000_000_000  # Linux: net.ipv4.ipfrag_time
HELD = 4 << 20  # bytes of all fragments that are held (Linux: ipfrag_high_thresh)
PIECES = 512  # fragments of one packet
LARGEST = 65_535
GIVEN_UP = "fragments of packets that never became whole"
_COST = 128  # what a held fragment costs beside its bytes

_V6_OPTIONS = frozenset((0, 43, 60, 135, 139, 140))


class _Piece(NamedTuple):
    """A fragment: whose, what stands before what was cut, where in that, and whether more comes."""

    key: tuple[bytes, ...]
    header: bytes
    offset: int
    more: bool
    data: bytes


class _Partial:
    """A packet of which fragments have come."""

    __slots__ = ("cost", "first", "length", "pieces", "since_ns")

    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self.cost = 0
        self.first: bytes | None = None  # the header of the first fragment
        self.length = -1  # of the whole, known from the last fragment
        self.pieces: list[tuple[int, bytes]] = []

    def whole(self) -> bytes | None:
        """The packet, if nothing is missing."""
        if self.first is None or self.length < 0:
            return None
        body = bytearray()
        for offset, data in sorted(self.pieces, key=lambda piece: piece[0]):
            if offset > len(body):
                return None
            body += data[len(body) - offset :]
        if len(body) < self.length or len(self.first) + self.length > LARGEST:
            return None
        return self.first + bytes(body[: self.length])


class Fragments:
    """The packets that are being put together.

    given_up: fragments of those that never became whole.
    """

    def __init__(self) -> None:
        self.given_up = 0
        # The oldest first; of a plain dictionary the first is found past the places of those gone.
        self._partial: OrderedDict[tuple[bytes, ...], _Partial] = OrderedDict()
        self._held = 0

    def add(self, time_ns: int, version: int, packet: bytes) -> bytes | None:
        """The whole packet, as if it had never been cut, where this fragment completes it.

        packet: from the IP header on, without padding.
        """
        self._expire(time_ns)
        piece = _read_v4(packet) if version == 4 else _read_v6(packet)
        if piece is None:
            self.given_up += 1
            return None
        partial = self._partial.get(piece.key)
        if partial is None:
            partial = self._partial[piece.key] = _Partial(time_ns)
        if len(partial.pieces) >= PIECES:
            self._drop(piece.key)
            self.given_up += 1
            return None
        cost = _COST + len(piece.data)
        partial.cost += cost
        self._held += cost
        # Among pieces that begin at the same byte the earlier one stands first, and is kept.
        partial.pieces.append((piece.offset, piece.data))
        if not piece.offset and partial.first is None:
            partial.first = piece.header
        if not piece.more and partial.length < 0:
            partial.length = piece.offset + len(piece.data)
        whole = partial.whole()
        if whole is not None:
            self._forget(piece.key)
            return _mend_v4(whole) if version == 4 else _mend_v6(whole)
        while self._held > HELD:
            self._drop(next(iter(self._partial)))
        return None

    def finish(self) -> None:
        """No more will come."""
        for key in list(self._partial):
            self._drop(key)

    def _expire(self, now_ns: int) -> None:
        while self._partial:
            key = next(iter(self._partial))
            if now_ns - self._partial[key].since_ns <= TIMEOUT_NS:
                return
            self._drop(key)

    def _drop(self, key: tuple[bytes, ...]) -> None:
        self.given_up += len(self._partial[key].pieces)
        self._forget(key)

    def _forget(self, key: tuple[bytes, ...]) -> None:
        self._held -= self._partial.pop(key).cost


def _read_v4(packet: bytes) -> _Piece | None:
    if len(packet) < 20:
        return None
    size = (packet[0] & 15) * 4
    place = int.from_bytes(packet[6:8], "big")
    key = (b"4", packet[12:20], packet[9:10], packet[4:6])
    return _piece(key, packet[:size], (place & 0x1FFF) * 8, bool(place & 0x2000), packet[size:])


def _mend_v4(packet: bytes) -> bytes:
    """The header of a packet that is whole; its checksum is nobody's concern here."""
    return packet[:2] + len(packet).to_bytes(2, "big") + packet[4:6] + b"\0\0" + packet[8:]


def _read_v6(packet: bytes) -> _Piece | None:
    at, protocol, says = 40, packet[6] if len(packet) > 40 else 59, 6
    while protocol in _V6_OPTIONS and at + 8 <= len(packet):
        says, protocol, at = at, packet[at], at + (packet[at + 1] + 1) * 8
    if protocol != 44 or at + 8 > len(packet):
        return None
    place = int.from_bytes(packet[at + 2 : at + 4], "big")
    # Without the fragment header: the one before it leads to what was cut.
    header = packet[:says] + packet[at : at + 1] + packet[says + 1 : at]
    key = (b"6", packet[8:40], packet[at + 4 : at + 8])
    return _piece(key, header, place & 0xFFF8, bool(place & 1), packet[at + 8 :])


def _mend_v6(packet: bytes) -> bytes:
    return packet[:4] + (len(packet) - 40).to_bytes(2, "big") + packet[6:]


def _piece(
    key: tuple[bytes, ...], header: bytes, offset: int, more: bool, data: bytes
) -> _Piece | None:
    if more:
        data = data[: len(data) & ~7]  # all but the last hold a multiple of eight bytes
    if not data or offset + len(data) > LARGEST:
        return None
    return _Piece(key, header, offset, more, data)
