"""Direct connections between two clients: MSNP2P over TCP, MSNFTP, webcam.

Told by the first bytes. There is no way back into such a stream: a gap that is not inside one
counted frame ends the parsing of its direction, and the rest is skipped.
"""

import re
from enum import Enum

from streamtap.events import Event, Malformed, Skipped
from streamtap.model import Direction
from streamtap.protocols._base import FULL, Limits
from streamtap.protocols.msnp.commands import is_number
from streamtap.protocols.msnp.events import MsnpCommand, MsnpDirect
from streamtap.protocols.msnp.p2p import HANDSHAKE, HEADER, Packets, decode, nonce_hashes
from streamtap.protocols.msnp.secrets import redact_arguments

WEBCAM_DATA = "webcam data"
FRAME = 64 * 1024  # longest frame of a direct connection; real ones stay below 1.5 KiB


class Kind(Enum):
    """Which direct connection."""

    P2P = "p2p"
    MSNFTP = "msnftp"
    WEBCAM = "webcam"


NONCE = 16
# First bytes of the end that speaks first.
_NONCE_FRAME = NONCE.to_bytes(4, "little")
_HANDSHAKE_FRAME = (0x30).to_bytes(4, "little")
PRELUDES = (
    (b"\x04\0\0\0foo\0", Kind.P2P),
    (b"VER MSNFTP", Kind.MSNFTP),
    (b"recipientid=", Kind.WEBCAM),
)
_NUMBERED = re.compile(rb"\AVER [0-9]{1,10} ?")  # some clients number the line of MSNFTP


def recognise(data: bytes) -> Kind | bool:
    """The direct connection that begins so; True if more bytes may tell, False if it is none."""
    plain = _NUMBERED.sub(b"VER ", data)
    for prelude, kind in PRELUDES:
        if plain.startswith(prelude):
            return kind
        if prelude.startswith(plain):
            return True
    if _NONCE_FRAME.startswith(data[:4]):  # version 2 without prelude: nothing but the nonce
        return Kind.P2P if len(data) >= len(_NONCE_FRAME) + NONCE else True
    if _HANDSHAKE_FRAME.startswith(data[:4]):
        # Without prelude: a frame that holds a version 1 header with the handshake flag.
        if len(data) < 4 + 32:
            return True
        return Kind.P2P if int.from_bytes(data[32:36], "little") == HANDSHAKE else False
    return False


def recognise_both(to_server: bytes, to_client: bytes) -> Kind | bool:
    """As `recognise`, by what both ends said: a bare nonce is believed if a nonce answers it."""
    heads = [data for data in (to_server, to_client) if data]
    bare = [data for data in heads if data.startswith(_NONCE_FRAME)]
    kinds = [recognise(data) for data in heads if data not in bare]
    known = next((kind for kind in kinds if isinstance(kind, Kind)), None)
    if known is not None:
        return known
    if any(kinds):
        return True
    if not bare or len(bare) < len(heads):
        return False
    complete = len(bare) == 2 and all(isinstance(recognise(data), Kind) for data in bare)
    return Kind.P2P if complete else True


class DirectStream:
    """One direction of a direct connection."""

    __slots__ = (
        "_blocks",
        "_dead",
        "_direction",
        "_greeted",
        "_held",
        "_kind",
        "_limits",
        "_need",
        "_offset",
        "_packets",
        "_pool",
        "_reason",
        "_second",
        "_start",
    )

    def __init__(self, kind: Kind, direction: Direction, limits: Limits) -> None:
        self._kind = kind
        self._direction = direction
        self._limits = limits
        self._held = bytearray()
        self._need = 0  # bytes held before looking again is of use
        self._offset = 0
        self._packets = Packets(limits.pool)
        self._pool = limits.pool
        self._pool.share(1)
        self._greeted = False  # the handshake of this direction is over
        self._second = True  # packets may be of version 2
        self._blocks = False  # this end sends the file (MSNFTP)
        self._dead = False
        self._start = 0
        self._reason = ""

    def begin(self, offset: int) -> None:
        """Its first byte stands at `offset`; said before there is any."""
        self._offset = self._start = offset

    @property
    def held(self) -> int:
        """Bytes stored now."""
        return len(self._held) + self._packets.held

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self._dead:
            self._offset += len(data)
            return events
        self._hold(data)
        if len(self._held) < self._need:
            self._wait(events)
            return events
        data = self._release()
        self._need = 0
        taken = 0
        while not self._dead and taken < len(data):
            length = self._one(data, taken, events)
            if not length:
                break
            taken += length
            self._offset += length
        if self._dead:
            self._offset += len(data) - taken
        else:
            self._hold(data[taken:])
            self._wait(events)
        return events

    def _hold(self, data: bytes) -> None:
        self._held += data
        self._pool.held += len(data)

    def _wait(self, events: list[Event]) -> None:
        """What is held has to wait: not where all flows together hold too much."""
        if self._pool.refuses(len(self._held)):
            self._malformed(FULL, events)
            self._offset += len(self._release())

    def _release(self) -> bytes:
        """What was held."""
        data = bytes(self._held)
        self._held.clear()
        self._pool.held -= len(data)
        return data

    def gap(self, length: int) -> list[Event]:
        """`length` bytes are missing here: nothing behind them can be told apart."""
        events: list[Event] = []
        if not self._dead:
            self._stop("bytes were lost")
        self._offset += len(self._release())
        self._skip(events)
        self._offset += length
        self._start = self._offset
        return events

    def end(self) -> list[Event]:
        events: list[Event] = []
        if not self._dead:
            self._stop("ended inside a frame")
        self._offset += len(self._release())
        self._skip(events)
        self._packets.end()
        self._pool.share(-1)
        return events

    def _stop(self, reason: str) -> None:
        self._dead = True
        self._start = self._offset
        self._reason = reason

    def _skip(self, events: list[Event]) -> None:
        length = self._offset - self._start
        if length and self._kind is Kind.WEBCAM and self._reason == WEBCAM_DATA:
            events.append(self._step("data", length, size=length, at=self._start))
        elif length:
            events.append(Skipped(offset=self._start, length=length, reason=self._reason))
        self._start = self._offset

    def _malformed(self, reason: str, events: list[Event]) -> int:
        events.append(Malformed(offset=self._offset, length=0, reason=reason))
        self._stop(reason)
        return 0

    def _step(
        self,
        step: str,
        length: int,
        *,
        size: int = 0,
        at: int | None = None,
        nonce: str | None = None,
        hashed_nonce: str | None = None,
    ) -> MsnpDirect:
        return MsnpDirect(
            offset=self._offset if at is None else at,
            length=length,
            transport=self._kind.value,
            step=step,
            size=size,
            nonce=nonce,
            hashed_nonce=hashed_nonce,
        )

    def _one(self, data: bytes, at: int, events: list[Event]) -> int:
        """Appends the unit at `at` and returns its length: 0 while it is not whole."""
        if self._kind is Kind.P2P:
            return self._frame(data, at, events)
        if self._kind is Kind.MSNFTP:
            return self._transfer(data, at, events)
        return self._webcam(data, at, events)

    def _frame(self, data: bytes, at: int, events: list[Event]) -> int:
        if len(data) < at + 4:
            return 0
        size = int.from_bytes(data[at : at + 4], "little")
        if size > FRAME:
            return self._malformed("frame too long", events)
        length = 4 + size
        if len(data) < at + length:
            self._need = length
            return 0
        body = data[at + 4 : at + length]
        if size == 0:
            events.append(self._step("keepalive", length))
        elif body == b"foo\0" and not self._greeted:
            events.append(self._step("open", length))
        elif not self._greeted and (nonce := _nonce(body)):
            self._greeted = True
            self._second = len(body) == NONCE
            plain, hashed = nonce_hashes(nonce)
            events.append(self._step("nonce", length, nonce=plain, hashed_nonce=hashed))
        elif raw := decode(body, footer=False, second=self._second):
            event = self._packets.event(
                raw, offset=self._offset, length=length, sender=None, recipient=None
            )
            events.append(event)
        else:
            events.append(self._step("data", length, size=size))
        return length

    def _transfer(self, data: bytes, at: int, events: list[Event]) -> int:
        if self._blocks and data[at] in (0, 1):
            if len(data) < at + 3:
                return 0
            size = int.from_bytes(data[at + 1 : at + 3], "little")
            length = 3 + size
            if len(data) < at + length:
                self._need = length
                return 0
            step = "end" if data[at] == 1 else "block"
            events.append(self._step(step, length, size=size))
            return length
        end = data.find(b"\n", at, at + self._limits.line)
        if end < 0:
            if len(data) - at >= self._limits.line:
                return self._malformed("line too long", events)
            return 0
        words = str(data[at:end].rstrip(b"\r "), "utf-8", "backslashreplace").split(" ")
        verb, args = words[0], words[1:]
        if verb not in ("VER", "USR", "FIL", "TFR", "BYE", "CCL"):
            return self._malformed("not a command", events)
        if verb == "USR":
            args = redact_arguments(self._direction, "MSNFTP", args)
        elif verb == "FIL":
            self._blocks = len(args) > 0 and is_number(args[0])
        events.append(
            MsnpCommand(
                offset=self._offset,
                length=end + 1 - at,
                verb=verb,
                transaction=None,
                args=tuple(args),
                payload_length=0,
            )
        )
        return end + 1 - at

    def _webcam(self, data: bytes, at: int, events: list[Event]) -> int:
        end = data.find(b"\r\n\r\n", at, at + self._limits.line)
        if end < 0:
            if len(data) - at >= self._limits.line:
                return self._malformed("line too long", events)
            return 0
        length = end + 4 - at
        events.append(self._step("open", length))
        self._offset += length
        self._stop(WEBCAM_DATA)
        self._offset -= length
        return length


def _nonce(body: bytes) -> bytes | None:
    """The nonce of a handshake frame: bare, or behind a version 1 header."""
    if len(body) == NONCE:
        return body
    if len(body) == HEADER.size and HEADER.unpack(body)[5] & HANDSHAKE:
        return body[32:48]
    return None
