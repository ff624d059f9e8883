"""Framing of the command protocol: one direction's bytes to commands.

In step, the loop cuts lines, looks the form up (direction, verb, number of arguments) and takes the
payload by count; nothing looks inside it before it is whole. Out of step (a start in mid-stream, a
gap, garbage) a `Search` finds the way back. All decisions depend on stream positions only, never on
how the bytes were cut.
"""

import re
from enum import Enum

from streamtap.events import Event, Malformed, Skipped
from streamtap.model import Direction
from streamtap.protocols._base import FULL, Limits
from streamtap.protocols.msnp.carried import HEAD, PEER_TO_PEER, Carried, head_of
from streamtap.protocols.msnp.commands import (
    FORMS,
    MESSAGE_PAYLOAD,
    TELLS_VERSION,
    UNKNOWN,
    begins_command,
    is_number,
    longest_payload,
    version_of,
)
from streamtap.protocols.msnp.events import MsnpCommand
from streamtap.protocols.msnp.secrets import ARGUMENTS, redact_arguments, redact_payload
from streamtap.protocols.msnp.seek import Outcome, Search

# Most messages; there are no credentials in them.
HARMLESS = (
    b"MIME-Version: 1.0\r\nContent-Type: text/plain",
    b"MIME-Version: 1.0\r\nContent-Type: text/x-msmsgscontrol",
)
# The line of such a message, by direction: transaction and acknowledgement, or who sends it; the
# length; and, not taken, how its payload begins. Most of what is said has this shape, and one match
# costs a third of looking at the line word by word. Words are bounded, for a line that has not
# ended is looked at again with each segment.
_HARMLESS = rb"([1-9][0-9]{0,4})\r\n(?=%b)" % b"|".join(map(re.escape, HARMLESS))
USUAL = (
    re.compile(rb"MSG ([0-9]{1,10}) ([UNAD]) " + _HARMLESS),
    re.compile(rb"MSG ([^ \r\n]{1,400}) ([^ \r\n]{1,400}) " + _HARMLESS),
)
MIDSTREAM = "joined in mid-stream"
LOST = "bytes were lost"
TRUNCATED = "rest of a payload of which bytes were lost"
NOT_MSNP = "not MSNP"
NEWER = "MSNP22 or later"
FAILED_LOCKS = 3
LOCKED = 4  # commands in a row after which a lock has held

TO_SERVER = Direction.TO_SERVER  # looking up an enum's member is slow
CARRIERS = frozenset({"MSG", "SDG"})  # of peer-to-peer packets

_UNKNOWN = re.compile(r"[A-Z]{3}\Z")


class _State(Enum):
    STEP = 0
    SEEK = 1
    DEAD = 2  # not MSNP; counts bytes until the end


_STEP, _SEEK, _DEAD = _State  # looking a member up costs as much as cutting a line


class CommandStream:
    """One direction of a notification, dispatch or switchboard connection."""

    __slots__ = (
        "_carried",
        "_direction",
        "_drop",
        "_forms",
        "_held",
        "_limits",
        "_locks",
        "_need",
        "_offset",
        "_pending",
        "_pool",
        "_reason",
        "_run",
        "_secrets",
        "_sought",
        "_start",
        "_state",
        "_surely",
        "_unknown",
        "_usual",
        "_version",
    )

    def __init__(self, direction: Direction, limits: Limits, *, midstream: bool) -> None:
        self._direction = direction
        self._limits = limits
        self._forms = FORMS[direction]
        self._usual = USUAL[direction].match
        self._secrets = ARGUMENTS[direction]
        self._surely = min(MESSAGE_PAYLOAD, limits.payload)  # no payload is too long before
        self._carried = Carried(direction, limits.pool)
        self._pool = limits.pool
        self._pool.share(1)
        self._held = bytearray()  # from stream offset _offset on
        self._offset = 0
        self._need = 0  # bytes held before looking again is of use
        self._state = _STEP
        self._pending: tuple[int, int] | None = None  # length of line and of payload, incomplete
        self._drop = 0  # bytes of a payload still to come behind a gap
        self._unknown = 0  # unknown verbs in a row
        self._run = 0  # commands since the last lock
        self._locks = 0  # locks that did not hold
        self._version = 0  # of MSNP; 0 unknown
        self._start = 0  # where the bytes being skipped began
        self._reason = ""
        self._sought = Search(direction, limits, 0, -1)
        if midstream:
            self._seek(0, MIDSTREAM, fresh=0)

    def begin(self, offset: int) -> None:
        """Its first byte stands at `offset`; said before there is any."""
        self._offset = self._start = offset

    @property
    def held(self) -> int:
        """Bytes stored now."""
        return len(self._held) + self._carried.held

    # -- what arrives

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self._drop:
            data = self._pass_over(data, events)
        if self._state is _DEAD:
            self._offset += len(data)
            return events
        if self._held:
            self._hold(data, events)
            if len(self._held) < self._need:
                return events
            data = self._release()
        self._advance(data, events)
        return events

    def _hold(self, data: bytes, events: list[Event]) -> None:
        """Waits with these bytes too; with none, where all flows together hold too much."""
        held, pool = self._held, self._pool
        held += data
        pool.held += len(data)
        if len(held) >= self._need or not pool.refuses(len(held)):
            return
        if self._state is _STEP and self._pending:
            self._drop = sum(self._pending) - len(held)
            self._truncate(events)
            self._start, self._reason = self._offset, FULL
        else:
            self._leave(FULL, events)
            self._seek(self._offset, FULL, fresh=-1)

    def _release(self) -> bytes:
        """What was held."""
        data = bytes(self._held)
        self._held.clear()
        self._pool.held -= len(data)
        return data

    def gap(self, length: int) -> list[Event]:
        """`length` bytes are missing here; what was held is given as far as it goes."""
        events: list[Event] = []
        rest = 0
        if self._drop:
            rest = self._drop
            self._skip(self._offset, events)
        elif self._state is _STEP and self._pending:
            rest = sum(self._pending) - len(self._held)
            self._truncate(events)
        else:
            self._leave(LOST, events)
        self._offset += length
        self._start = self._offset
        self._drop = max(0, rest - length)
        if self._drop:
            self._reason = TRUNCATED
        elif self._state is not _DEAD and rest != length:
            began = self._state is _SEEK and self._reason == MIDSTREAM
            self._seek(self._offset, MIDSTREAM if began else LOST, fresh=self._offset)
        return events

    def end(self) -> list[Event]:
        """No more bytes: what is held is given as far as it goes, or skipped."""
        events: list[Event] = []
        if self._drop:
            self._skip(self._offset, events)
        elif self._state is _SEEK:
            self._advance(self._release(), events, ended=True)
        if self._state is _STEP and self._pending:
            self._truncate(events)
        else:
            self._leave("ended inside a line", events)
        self._drop = 0
        self._start = self._offset
        self._carried.end()
        self._pool.share(-1)
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
        if self._state is _STEP:
            self._start = self._offset
            self._reason = reason
        self._offset += len(self._release())
        self._skip(self._offset, events)

    def _truncate(self, events: list[Event]) -> None:
        """The command whose payload is held only in part."""
        assert self._pending is not None
        line, payload = self._pending
        data = self._release()
        words = str(data[:line].rstrip(b"\r\n "), "utf-8", "backslashreplace").split(" ")
        verb = words[0]
        numbered = self._forms.get(verb, UNKNOWN).numbered
        transaction, args = self._arguments(verb, words[:-1], numbered=numbered)
        kept = data[line:]
        if verb in CARRIERS and PEER_TO_PEER in kept[:HEAD]:
            kept = head_of(verb, kept)[0]
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
            if self._state is _STEP:
                taken = self._commands(data, events)
            elif self._state is _SEEK:
                taken = self._search(data, events, ended=ended)
            else:
                taken = len(data)
            self._offset += taken
            if taken == len(data):
                return
            if taken:
                data = data[taken:]
            if self._need:
                break
        self._hold(data, events)

    def _commands(self, data: bytes, events: list[Event]) -> int:
        """Appends the commands that are whole; returns the bytes taken. The hot loop."""
        forms, secrets, usual = self._forms, self._secrets, self._usual
        to_server = self._direction is TO_SERVER
        base = self._offset
        size = len(data)
        longest = self._limits.line
        before = len(events)
        position = 0
        self._need = 0
        self._pending = None
        while position < size:
            message = usual(data, position)
            if message is not None:
                begin = message.end()
                first, second, number = message.groups()
                length = int(number)
                stop = begin + length
                if stop <= size and length <= self._surely and begin - position <= longest:
                    if to_server:
                        transaction, args = int(first), [second.decode()]
                    else:
                        transaction = None
                        args = [
                            first.decode("utf-8", "backslashreplace"),
                            second.decode("utf-8", "backslashreplace"),
                        ]
                    self._unknown = 0
                    events.append(
                        MsnpCommand(
                            offset=base + position,
                            length=stop - position,
                            verb="MSG",
                            transaction=transaction,
                            args=tuple(args),
                            payload_length=length,
                            payload=data[begin:stop],
                        )
                    )
                    position = stop
                    continue
            end = data.find(b"\n", position, position + longest)
            if end < 0:
                if size - position >= longest:
                    return self._lose(position, "line too long", before, events)
                self._need = size - position + 1
                break
            line = data[position:end].rstrip(b"\r ")
            words = line.decode("utf-8", "backslashreplace").split(" ")
            verb = words[0]
            form = forms.get(verb)
            if form is None:
                if self._unknown or not _UNKNOWN.match(verb):
                    return self._lose(position, "not a command", before, events)
                self._unknown = 1
                form = UNKNOWN
            elif self._unknown:
                self._unknown = 0
            counts, doubtful, numbered = form
            stop = end + 1
            payload = b""
            length = 0
            if counts and len(words) - 1 in counts:
                last = words[-1]
                if len(last) <= 7 and last.isdecimal() and last.isascii():
                    length = int(last)
                    if doubtful and length:
                        believed = self._believed(verb, data, stop, length)
                        if believed is None:
                            self._pending = stop - position, length
                            self._need = stop - position + min(length, 4)
                            break
                        if not believed:
                            length = 0
                    if length:
                        words.pop()
                        if length > self._surely and length > longest_payload(verb, self._limits):
                            return self._lose(position, "payload too long", before, events)
                        if stop + length > size:
                            self._pending = stop - position, length
                            self._need = stop - position + length
                            break
                        payload = data[stop : stop + length]
                        stop += length
                    elif not doubtful:
                        words.pop()
            if numbered or verb in secrets:
                transaction, args = self._arguments(verb, words, numbered=numbered)
            else:
                transaction, args = None, words[1:]
            if payload and not payload.startswith(HARMLESS):
                if verb in CARRIERS and PEER_TO_PEER in payload[:HEAD]:
                    head, packets = self._carried.split(verb, base + stop, args, payload)
                    if packets:
                        events.append(
                            MsnpCommand(
                                offset=base + position,
                                length=packets[0].offset - base - position,
                                verb=verb,
                                transaction=transaction,
                                args=tuple(args),
                                payload_length=length,
                                payload=head,
                            )
                        )
                        events += packets
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
            if verb in TELLS_VERSION:
                agreed, newer = version_of(self._direction, verb, args)
                self._version = agreed or self._version
                if newer:
                    self._stop(base + position, NEWER)
                    return size
        self._run += len(events) - before
        return position

    def _arguments(
        self, verb: str, words: list[str], *, numbered: bool
    ) -> tuple[int | None, list[str]]:
        """Transaction id and arguments of a line without its payload length."""
        args = words[1:]
        if verb in self._secrets:
            args = redact_arguments(self._direction, verb, args)
        # LSG of MSNP8 and 9 begins with the number of a group.
        if numbered and args and is_number(args[0]) and (verb != "LSG" or len(args) > 4):
            return int(args[0]), args[1:]
        return None, args

    def _believed(self, verb: str, data: bytes, stop: int, length: int) -> bool | None:
        """Whether a doubtful number is a payload length; None where more bytes are needed."""
        if verb != "GET" and 0 < self._version < 13:
            return False
        if len(data) < stop + min(length, 4):
            return None
        return not begins_command(self._forms, data, stop)

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
        self._state = _SEEK
        self._start = start
        self._reason = reason
        self._sought = Search(self._direction, self._limits, start, fresh)
        self._pending = None
        self._need = 0
        self._unknown = 0

    def _search(self, data: bytes, events: list[Event], *, ended: bool) -> int:
        """Looks for a command in `data`; returns the bytes that need not be looked at again."""
        outcome, taken, self._need = self._sought.look(data, self._offset, ended=ended)
        if outcome is Outcome.FOUND:
            self._skip(self._offset + taken, events)
            self._state = _STEP
            self._run = 0
        elif outcome is Outcome.NONE:
            self._give_up(events)
        return taken

    def _give_up(self, events: list[Event]) -> None:
        events.append(Malformed(offset=self._start, length=0, reason=NOT_MSNP))
        self._stop(self._start, NOT_MSNP)

    def _stop(self, start: int, reason: str) -> None:
        """What stands from `start` on is not looked at."""
        self._state = _DEAD
        self._start = start
        self._reason = reason
        self._need = 0
