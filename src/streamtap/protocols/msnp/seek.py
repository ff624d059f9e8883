"""The way back into a stream: seek a command, confirm it by what follows.

Every line, and every line's end, is a candidate; one is taken only if it looks right, its payload
begins as it should, and what follows is a command again. A candidate with such a payload that
stands right at the first byte after a start or gap needs no follower, nor does the address of a
switchboard that stands there. All decisions depend on stream positions only, never on how the bytes
were cut.
"""

import re
from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from streamtap.model import Direction
from streamtap.protocols._base import Limits
from streamtap.protocols.msnp.commands import (
    FORMS,
    OPENING,
    OPENINGS,
    UNKNOWN,
    begins_command,
    is_number,
    longest_payload,
    plausible,
)

SEARCH = 256 * 1024  # bytes without a command after which a direction is not MSNP
WINDOW = 64 * 1024  # longest payload of a candidate
INSIDE = 4  # commands that may be found inside of one line
SUFFIX = 2 * 1024  # longest command that may be found at the end of a line
YES, NO = -1, 0
_ANNOUNCES = frozenset({"XFR", "RNG"})

# What may begin inside a line is told by how its payload begins.
_INSIDE = [
    re.compile(
        "|".join(f"{verb} " for verb in OPENINGS if forms.get(verb, UNKNOWN).counts).encode()
    )
    for forms in FORMS
]


class Outcome(Enum):
    FOUND = "a command stands behind the bytes taken"
    MORE = "more bytes are needed"
    NONE = "there is none"


class Look(NamedTuple):
    """taken: bytes that need not be looked at again; need: bytes held that it takes to go on."""

    outcome: Outcome
    taken: int
    need: int = 0


class Search:
    """One search, from the stream offset `start` on. fresh: offset of the first byte after a start
    or gap, or -1."""

    __slots__ = ("_direction", "_forms", "_fresh", "_limits", "_midline", "_scanned", "_start")

    def __init__(self, direction: Direction, limits: Limits, start: int, fresh: int) -> None:
        self._direction = direction
        self._limits = limits
        self._forms = FORMS[direction]
        self._start = start
        self._fresh = fresh
        self._scanned = 0  # bytes held in which no line ends
        self._midline = False  # the first byte held is not the first of its line

    def look(self, data: bytes, offset: int, *, ended: bool) -> Look:
        """Looks at what is held, `data` from stream offset `offset` on."""
        line = 0
        while True:
            end = data.find(b"\n", max(line, self._scanned))
            self._scanned = 0
            if end < 0:
                break
            for at in self._candidates(data, line, end):
                verdict = self._weigh(data, offset, at, end, ended=ended)
                if verdict == YES:
                    return Look(Outcome.FOUND, at)
                if verdict:
                    return Look(Outcome.MORE, line, verdict - line)
            line = end + 1
            self._midline = False
            if offset + line - self._start > SEARCH:
                return Look(Outcome.NONE, len(data))
        rest = len(data) - line
        if offset + len(data) - self._start > SEARCH + self._limits.line:
            return Look(Outcome.NONE, len(data))
        if rest > self._limits.line:  # too long for a command that begins the line
            self._midline = True
            line = len(data) - min(rest, 2 * SUFFIX)
            rest = len(data) - line
        self._scanned = rest
        return Look(Outcome.MORE, line, rest + 1)

    def _candidates(self, data: bytes, line: int, end: int) -> Iterator[int]:
        """Where in the line that ends at `end` a command may begin."""
        if not self._midline and end - line <= self._limits.line:
            yield line
        low = max(line, end - SUFFIX)
        text = data[low:end].rstrip(b"\r")
        if not text[-1:].isdigit():  # only a payload makes a command begin inside a line
            return
        # The last few: of what looks like one in a text, each costs as much as a command.
        for found in deque(_INSIDE[self._direction].finditer(text), maxlen=INSIDE):
            if low + found.start() > line:
                yield low + found.start()

    def _weigh(self, data: bytes, base: int, at: int, end: int, *, ended: bool) -> int:
        """YES, NO, or the length of `data` that it takes to decide on the command at `at`."""
        offset = base + at
        if offset - self._start > SEARCH or (offset == self._start and offset != self._fresh):
            return NO
        words = str(data[at:end].rstrip(b"\r "), "utf-8", "backslashreplace").split(" ")
        verb = words[0]
        form = self._forms.get(verb)
        if form is None or not plausible(self._direction, words):
            return NO
        stop = end + 1
        # It announces a connection that opens before anything else is said here.
        strong = verb in _ANNOUNCES and "CKI" in words[3:5] and offset == self._fresh
        last = words[-1]
        if len(words) - 1 in form.counts and is_number(last) and not form.doubtful:
            length = int(last)
            if length > min(WINDOW, longest_payload(verb, self._limits)):
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
        if not begins_command(self._forms, data, stop):
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
