"""Finding a head again: after a gap, a fault, or where the beginning was not seen.

*Seek* a start line: a request line may follow the last byte of a body without a line end between
them, so known methods are found anywhere in a line. *Confirm* it: only lines shaped like fields may
follow, up to an empty one. Both look at each byte a bounded number of times, however often a
candidate fails: what a failed one had confirmed is passed over with it.
"""

import re
from typing import NamedTuple

from streamtap.protocols._base import Limits
from streamtap.protocols._buffer import ByteBuffer
from streamtap.protocols.http.head import METHODS

_VERSION = b" HTTP/1."
_VERSION_END = re.compile(rb"[01]\r?\n")
_REQUEST = re.compile(
    rb"(?:" + rb"|".join(re.escape(method) for method in METHODS) + rb") [^\s]++ HTTP/1\.[01]\r?\n"
)
_STATUS = re.compile(rb"HTTP/1\.[01] [1-5][0-9][0-9](?: [^\r\n]*+)?\r?\n")
_STATUS_START = b"HTTP/1."
_FIELDS = re.compile(rb"(?:(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:|[ \t])[^\n]*+\n)*+")
_HEAD_END = re.compile(rb"\r?\n")


class Sought(NamedTuple):
    """skip: bytes at the front at which no head begins; found: one may begin behind them.

    scanned: how much of what is left was searched in vain.
    """

    skip: int
    found: bool
    scanned: int


def seek_request(buffer: ByteBuffer, scanned: int, limits: Limits) -> Sought:
    """The next candidate for a request line, no longer than `limits.line`."""
    at = scanned
    while (at := buffer.find(_VERSION, at)) >= 0:
        version = at + len(_VERSION)
        end = buffer.match(_VERSION_END, version)
        if end < 0:
            if len(buffer) - version < 3 and buffer.find(b"\n", version) < 0:
                begin = _line_start(buffer, 0, at, len(buffer) + 1 - limits.line)
                return Sought(begin, False, at - begin)
            at = version
            continue
        begin = _line_start(buffer, 0, at, end - limits.line)
        start, _ = buffer.search(_REQUEST, begin, end)
        if start >= 0:
            return Sought(start, True, 0)
        at = end
    left = max(0, len(buffer) - len(_VERSION) + 1)
    # What was scanned before holds no line end: it would have been skipped up to there.
    begin = _line_start(buffer, scanned, len(buffer), len(buffer) - limits.line)
    return Sought(begin, False, max(0, left - begin))


def _line_start(buffer: ByteBuffer, searched: int, at: int, lowest: int) -> int:
    lowest = max(0, lowest)
    return max(lowest, buffer.rfind(b"\n", max(lowest, searched), at) + 1)


def seek_response(buffer: ByteBuffer, scanned: int, limits: Limits) -> Sought:
    """The next candidate for a status line, no longer than `limits.line`."""
    at = scanned
    while (at := buffer.find(_STATUS_START, at)) >= 0:
        length = buffer.line(limits.line, at)
        if length == 0:
            return Sought(at, False, 0)
        if length > 0 and buffer.match(_STATUS, at, at + length) >= 0:
            return Sought(at, True, 0)
        at += 1
    left = max(0, len(buffer) - len(_STATUS_START) + 1)
    return Sought(left, False, 0)


class Confirmed(NamedTuple):
    """length: of the whole head, 0 while it is not there, -1 if it is none.

    checked: bytes that passed so far.
    """

    length: int
    checked: int


def confirm(buffer: ByteBuffer, checked: int, limits: Limits) -> Confirmed:
    """Does a head follow the start line at the front, of which `checked` bytes have passed?"""
    bound = limits.headers
    while True:
        length = buffer.line(bound - checked, checked)
        if length <= 0:
            return Confirmed(length, checked)
        passed = buffer.match(_FIELDS, checked, min(len(buffer), bound))
        if passed == checked:
            end = buffer.match(_HEAD_END, checked)
            return Confirmed(end, end) if end >= 0 else Confirmed(-1, checked)
        checked = passed
