"""Framing of the command protocol: one direction's bytes to commands.

In step, the loop cuts lines, looks the form up (direction, verb, number of arguments) and takes the
payload by count; nothing looks inside it before it is whole. Out of step (a start in mid-stream, a
gap, garbage) every line, and every line's end, is a candidate for a command; one is taken only if
it looks right, its payload begins as it should, and what follows is a command again. A candidate
with such a payload that stands right at the first byte after a start or gap needs no follower.
All decisions depend on stream positions only, never on how the bytes were cut.
"""

import re
from collections.abc import Iterator
from enum import Enum

from streamtap.events import Event, Malformed, Skipped
from streamtap.model import Direction
from streamtap.protocols._base import Limits
from streamtap.protocols.msnp.commands import (
    DOUBTFUL,
    FORMS,
    MESSAGE_PAYLOAD,
    NO_TRANSACTION,
    OPENING,
    OPENINGS,
    is_number,
    plausible,
)
from streamtap.protocols.msnp.events import MsnpCommand
from streamtap.protocols.msnp.p2p import Packets, decode
from streamtap.protocols.msnp.secrets import ARGUMENTS, redact_arguments, redact_payload

# Most messages; there are no credentials in them.
HARMLESS = (
    b"MIME-Version: 1.0\r\nContent-Type: text/plain",
    b"MIME-Version: 1.0\r\nContent-Type: text/x-msmsgscontrol",
)
PEER_TO_PEER = b"x-msnmsgrp2p"
SEARCH = 256 * 1024  # bytes without a command after which a direction is not MSNP
WINDOW = 64 * 1024  # longest payload of a candidate
SUFFIX = 2 * 1024  # longest command that may be found at the end of a line
YES, NO = -1, 0
MIDSTREAM = "joined in mid-stream"
LOST = "bytes were lost"
TRUNCATED = "rest of a payload of which bytes were lost"
NOT_MSNP = "not MSNP"
FAILED_LOCKS = 3
LOCKED = 4  # commands in a row after which a lock has held

_UNKNOWN = re.compile(r"[A-Z]{3}\Z")
_INSIDE = {2: (b"NFY", b"SDG", b"UBX"), 3: (b"MSG", b"UBX")}  # arguments -> verbs
_P2P_TYPE = re.compile(rb"(?im)^Content-Type:[ \t]*application/x-msnmsgrp2p")
_P2P_NAMES = re.compile(rb"(?im)^P2P-(Dest|Src):[ \t]*([^\r\n;]*)(;?)")


class _State(Enum):
    STEP = 0
    SEEK = 1
    DEAD = 2  # not MSNP; counts bytes until the end


class CommandStream:
    """One direction of a notification, dispatch or switchboard connection."""

    __slots__ = (
        "_direction",
        "_drop",
        "_forms",
        "_fresh",
        "_held",
        "_limits",
        "_locks",
        "_midline",
        "_need",
        "_offset",
        "_packets",
        "_pending",
        "_reason",
        "_run",
        "_scanned",
        "_secrets",
        "_start",
        "_state",
        "_unknown",
        "_version",
    )

    def __init__(self, direction: Direction, limits: Limits, *, midstream: bool) -> None:
        self._direction = direction
        self._limits = limits
        self._forms = FORMS[direction]
        self._secrets = ARGUMENTS[direction]
        self._packets = Packets()
        self._held = bytearray()  # from stream offset _offset on
        self._offset = 0
        self._need = 0  # bytes held before looking again is of use
        self._state = _State.STEP
        self._pending: tuple[int, int] | None = None  # length of line and of payload, incomplete
        self._drop = 0  # bytes of a payload still to come behind a gap
        self._unknown = 0  # unknown verbs in a row
        self._run = 0  # commands since the last lock
        self._locks = 0  # locks that did not hold
        self._version = 0  # of MSNP; 0 unknown
        self._start = 0  # where the bytes being skipped began
        self._fresh = -1  # offset of the first byte after a start or gap
        self._scanned = 0  # bytes held in which no line ends
        self._midline = False  # the first byte held is not the first of its line
        self._reason = ""
        if midstream:
            self._seek(0, MIDSTREAM, fresh=0)

    @property
    def held(self) -> int:
        """Bytes stored now."""
        return len(self._held) + self._packets.held

    # -- what arrives

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self._drop:
            data = self._pass_over(data, events)
        if self._state is _State.DEAD:
            self._offset += len(data)
            return events
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return events
            data = bytes(self._held)
            self._held.clear()
        self._advance(data, events)
        return events

    def gap(self, length: int) -> list[Event]:
        """`length` bytes are missing here; what was held is given as far as it goes."""
        events: list[Event] = []
        rest = 0
        if self._drop:
            rest = self._drop
            self._skip(self._offset, events)
        elif self._state is _State.STEP and self._pending:
            rest = sum(self._pending) - len(self._held)
            self._truncate(events)
        else:
            self._leave(LOST, events)
        self._offset += length
        self._start = self._offset
        self._drop = max(0, rest - length)
        if self._drop:
            self._reason = TRUNCATED
        elif self._state is not _State.DEAD and rest != length:
            began = self._state is _State.SEEK and self._reason == MIDSTREAM
            self._seek(self._offset, MIDSTREAM if began else LOST, fresh=self._offset)
        return events

    def end(self) -> list[Event]:
        """No more bytes: what is held is given as far as it goes, or skipped."""
        events: list[Event] = []
        if self._drop:
            self._skip(self._offset, events)
        elif self._state is _State.SEEK:
            data = bytes(self._held)
            self._held.clear()
            self._advance(data, events, ended=True)
        if self._state is _State.STEP and self._pending:
            self._truncate(events)
        else:
            self._leave("ended inside a line", events)
        self._drop = 0
        self._start = self._offset
        return events

    def _pass_over(self, data: bytes, events: list[Event]) -> bytes:
        passed = min(self._drop, len(data))
        self._offset += passed
        self._drop -= passed
        if not self._drop:
            self._skip(self._offset, events)
        return data[passed:]

    def _skip(self, end: int, events: list[Event]) -> None:
        """Tells of the bytes passed over since `_start`."""
        if end > self._start:
            events.append(
                Skipped(offset=self._start, length=end - self._start, reason=self._reason)
            )
        self._start = end

    def _leave(self, reason: str, events: list[Event]) -> None:
        """Skips what is held, and what was passed over before it."""
        if self._state is _State.STEP:
            self._start = self._offset
            self._reason = reason
        self._offset += len(self._held)
        self._held.clear()
        self._skip(self._offset, events)

    def _truncate(self, events: list[Event]) -> None:
        """The command whose payload is held only in part."""
        assert self._pending is not None
        line, payload = self._pending
        data = bytes(self._held)
        self._held.clear()
        words = str(data[:line].rstrip(b"\r\n "), "utf-8", "backslashreplace").split(" ")
        verb = words[0]
        transaction, args = self._arguments(verb, words[:-1])
        kept = data[line:]
        if verb == "MSG" and PEER_TO_PEER in kept[:512]:
            kept = kept.partition(b"\r\n\r\n")[0]
        events.append(
            MsnpCommand(
                offset=self._offset,
                length=len(data),
                verb=verb,
                transaction=transaction,
                args=tuple(args),
                payload_length=payload,
                payload=redact_payload(verb, args, kept),
                missing=line + payload - len(data),
            )
        )
        self._offset += len(data)
        self._run += 1
        self._pending = None
        self._need = 0

    # -- in step

    def _advance(self, data: bytes, events: list[Event], *, ended: bool = False) -> None:
        """Takes what is complete from `data`, which begins at `_offset`, and holds the rest."""
        while True:
            if self._state is _State.STEP:
                taken = self._commands(data, events)
            elif self._state is _State.SEEK:
                taken = self._search(data, events, ended=ended)
            else:
                taken = len(data)
            self._offset += taken
            if taken:
                data = data[taken:]
            if self._need or not data:
                break
        self._held += data

    def _commands(self, data: bytes, events: list[Event]) -> int:
        """Appends the commands that are whole; returns the bytes taken. The hot loop."""
        forms = self._forms
        base = self._offset
        size = len(data)
        longest = self._limits.line
        before = len(events)
        position = 0
        self._need = 0
        self._pending = None
        while position < size:
            end = data.find(b"\n", position, position + longest)
            if end < 0:
                if size - position >= longest:
                    return self._lose(position, "line too long", before, events)
                self._need = size - position + 1
                break
            line = data[position:end].rstrip(b"\r ")
            words = str(line, "utf-8", "backslashreplace").split(" ")
            verb = words[0]
            counts = forms.get(verb)
            if counts is None:
                if self._unknown or not _UNKNOWN.match(verb):
                    return self._lose(position, "not a command", before, events)
                self._unknown = 1
            elif self._unknown:
                self._unknown = 0
            stop = end + 1
            payload = b""
            length = 0
            if counts and len(words) - 1 in counts:
                last = words[-1]
                if is_number(last) and len(last) <= 7:
                    length = int(last)
                    if verb in DOUBTFUL and length:
                        believed = self._believed(verb, data, stop, length)
                        if believed is None:
                            self._pending = stop - position, length
                            self._need = stop - position + min(length, 4)
                            break
                        if not believed:
                            length = 0
                    if length:
                        words.pop()
                        if length > self._longest_payload(verb):
                            return self._lose(position, "payload too long", before, events)
                        if stop + length > size:
                            self._pending = stop - position, length
                            self._need = stop - position + length
                            break
                        payload = data[stop : stop + length]
                        stop += length
                    elif verb not in DOUBTFUL:
                        words.pop()
            transaction, args = self._arguments(verb, words)
            if payload and not payload.startswith(HARMLESS):
                if verb == "MSG" and PEER_TO_PEER in payload[:512]:
                    packet = self._packet(base + position, stop - position, args, payload)
                    if packet is not None:
                        head, event = packet
                        events.append(
                            MsnpCommand(
                                offset=base + position,
                                length=event.offset - base - position,
                                verb=verb,
                                transaction=transaction,
                                args=tuple(args),
                                payload_length=length,
                                payload=head,
                            )
                        )
                        events.append(event)
                        position = stop
                        continue
                payload = redact_payload(verb, args, payload)
            events.append(
                MsnpCommand(
                    offset=base + position,
                    length=stop - position,
                    verb=verb,
                    transaction=transaction,
                    args=tuple(args),
                    payload_length=length,
                    payload=payload,
                )
            )
            position = stop
        self._run += len(events) - before
        return position

    def _arguments(self, verb: str, words: list[str]) -> tuple[int | None, list[str]]:
        """Transaction id and arguments of a line without its payload length."""
        args = words[1:]
        if verb in self._secrets:
            args = redact_arguments(self._direction, verb, args)
        elif verb == "VER" and self._direction is Direction.TO_CLIENT:
            offered = args[1] if len(args) > 1 else ""
            if offered.startswith("MSNP") and is_number(offered[4:]):
                self._version = int(offered[4:])
        # LSG of MSNP8 and 9 begins with the number of a group.
        if (
            args
            and verb not in NO_TRANSACTION
            and is_number(args[0])
            and (verb != "LSG" or len(args) > 4)
            and (verb != "MSG" or self._direction is Direction.TO_SERVER)
        ):
            return int(args[0]), args[1:]
        return None, args

    def _longest_payload(self, verb: str) -> int:
        return min(MESSAGE_PAYLOAD, self._limits.payload) if verb == "MSG" else self._limits.payload

    def _believed(self, verb: str, data: bytes, stop: int, length: int) -> bool | None:
        """Whether a doubtful number is a payload length; None where more bytes are needed."""
        if verb != "GET" and 0 < self._version < 13:
            return False
        if len(data) < stop + min(length, 4):
            return None
        return not self._begins_command(data, stop)

    def _begins_command(self, data: bytes, at: int) -> bool:
        head = data[at : at + 4]
        return len(head) == 4 and head[3] in b" \r\n" and str(head[:3], "latin-1") in self._forms

    def _packet(
        self, offset: int, length: int, args: list[str], payload: bytes
    ) -> tuple[bytes, Event] | None:
        """MIME header and packet of a peer-to-peer message, or None if it is none."""
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
            offset=offset + length - len(body),
            length=len(body),
            sender=args[0].partition(";")[0].lower() if received else None,
            recipient=recipient.lower() or None,
        )
        return redact_payload("MSG", args, head + empty), event

    # -- out of step

    def _lose(self, position: int, reason: str, before: int, events: list[Event]) -> int:
        self._run += len(events) - before
        self._locks = self._locks + 1 if self._run < LOCKED else 0
        start = self._offset + position
        events.append(Malformed(offset=start, length=0, reason=reason))
        self._seek(start, reason, fresh=-1)
        if self._locks >= FAILED_LOCKS:
            self._give_up(events)
        return position

    def _seek(self, start: int, reason: str, *, fresh: int) -> None:
        """Out of step: bytes from `start` on are skipped until a command is found."""
        self._state = _State.SEEK
        self._start = start
        self._fresh = fresh
        self._reason = reason
        self._held.clear()
        self._pending = None
        self._need = 0
        self._unknown = 0
        self._scanned = 0
        self._midline = False

    def _search(self, data: bytes, events: list[Event], *, ended: bool) -> int:
        """Looks for a command in `data`; returns the bytes that need not be looked at again."""
        line = 0
        self._need = 0
        while True:
            end = data.find(b"\n", max(line, self._scanned))
            self._scanned = 0
            if end < 0:
                break
            for at in self._candidates(data, line, end):
                verdict = self._weigh(data, at, end, ended=ended)
                if verdict == YES:
                    return self._lock(at, events)
                if verdict:
                    self._need = verdict - line
                    return line
            line = end + 1
            self._midline = False
            if self._offset + line - self._start > SEARCH:
                self._give_up(events)
                return len(data)
        rest = len(data) - line
        if self._offset + len(data) - self._start > SEARCH + self._limits.line:
            self._give_up(events)
            return len(data)
        if rest > self._limits.line:  # too long for a command that begins the line
            self._midline = True
            line = len(data) - min(rest, 2 * SUFFIX)
            rest = len(data) - line
        self._scanned = rest
        self._need = rest + 1
        return line

    def _candidates(self, data: bytes, line: int, end: int) -> Iterator[int]:
        """Where in the line that ends at `end` a command may begin."""
        if not self._midline and end - line <= self._limits.line:
            yield line
        low = max(line, end - SUFFIX)
        text = data[low:end].rstrip(b"\r")
        if not text[-1:].isdigit():  # only a payload makes a command begin inside a line
            return
        for count in (2, 3):
            parts = text.rsplit(b" ", count)
            at = low + len(parts[0]) - 3
            if len(parts) > count and parts[0][-3:] in _INSIDE[count] and at > line:
                yield at

    def _weigh(self, data: bytes, at: int, end: int, *, ended: bool) -> int:
        """YES, NO, or the length of `data` that it takes to decide on the command at `at`."""
        offset = self._offset + at
        if offset - self._start > SEARCH or (offset == self._start and offset != self._fresh):
            return NO
        words = str(data[at:end].rstrip(b"\r "), "utf-8", "backslashreplace").split(" ")
        verb = words[0]
        counts = self._forms.get(verb)
        if counts is None or not plausible(self._direction, words):
            return NO
        stop = end + 1
        strong = False
        last = words[-1]
        if len(words) - 1 in counts and is_number(last) and verb not in DOUBTFUL:
            length = int(last)
            if length > min(WINDOW, self._longest_payload(verb)):
                return NO
            if length and verb in OPENINGS:
                opening = data[stop : stop + min(length, OPENING)].lower()
                if not any(map(opening.startswith, OPENINGS[verb])):
                    complete = len(opening) == min(length, OPENING)
                    possible = any(known.startswith(opening) for known in OPENINGS[verb])
                    return NO if ended or complete or not possible else len(data) + 1
                strong = True
            stop += length
            if len(data) < stop:
                return NO if ended else stop
        if strong and offset == self._fresh:
            return YES
        if ended and len(data) == stop:
            return YES
        if len(data) < stop + 4:
            return NO if ended else stop + 4
        if not self._begins_command(data, stop):
            return NO
        if strong:
            return YES
        following = data.find(b"\n", stop, stop + self._limits.line)
        if following < 0:
            if ended or len(data) >= stop + self._limits.line:
                return NO
            return len(data) + 1
        second = str(data[stop:following].rstrip(b"\r "), "utf-8", "backslashreplace").split(" ")
        return YES if plausible(self._direction, second) else NO

    def _lock(self, at: int, events: list[Event]) -> int:
        """In step again at `at`."""
        self._skip(self._offset + at, events)
        self._state = _State.STEP
        self._run = 0
        self._need = 0
        return at

    def _give_up(self, events: list[Event]) -> None:
        events.append(Malformed(offset=self._start, length=0, reason=NOT_MSNP))
        self._state = _State.DEAD
        self._reason = NOT_MSNP
        self._need = 0
