"""Values as text for people: safe for a terminal, sizes and times in human units."""

import time
from functools import lru_cache

from streamtap.events import FlowInfo
from streamtap.model import App

LONG = 120  # characters of one value that a line shows
_NAME = 80  # … and of the name of a person


def printable(text: str, limit: int = LONG) -> str:
    """The text without anything that a terminal obeys, hides or reorders: controls, escapes,
    invisible and bidirectional marks, line separators and lone surrogates appear as `\\x1b`.
    Longer text is cut, with `…` in its place."""
    text = cut(text, limit)
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else " " if letter in "\xa0\u3000" else _escape(letter)
        for letter in text
    )


def quote(text: str, limit: int = LONG) -> str:
    return '"' + printable(text, limit).replace('"', '\\"') + '"'


def size(count: int) -> str:
    """Bytes for people: exact below 10 kB, then in powers of 1000."""
    if count < 10_000:
        return f"{count} byte" if count == 1 else f"{count} bytes"
    scaled = float(min(count, 10**18))  # a header may claim any number
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        scaled /= 1000
        if scaled < 999.5 or unit == "PB":
            break
    return f"{scaled:.1f} {unit}" if scaled < 99.95 else f"{scaled:.0f} {unit}"


def duration(nanoseconds: int) -> str:
    seconds = nanoseconds / 1e9
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def counted(count: int | None, thing: str) -> str:
    return f"{count or 0} {thing}" + ("" if count == 1 else "s")


def app_name(app: App) -> str:
    return f"{printable(app.comm, 32)}[{app.pid}]"


def ends(flow: FlowInfo) -> str:
    """Both ends; the arrow points from the client to the server."""
    arrow = "<-" if flow.role == "server" else "->"
    return f"{printable(flow.local)} {arrow} {printable(flow.remote)}"


class Clock:
    """Local time as text, in the given form of `time.strftime`; one second is kept, for records
    come many to a second."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._second = -1
        self._text = ""

    def second(self, time_ns: int) -> str:
        second = time_ns // 1_000_000_000
        if second != self._second:
            try:
                self._text = time.strftime(self._form, time.localtime(second))
            except (OverflowError, ValueError, OSError):  # damaged captures hold any time
                self._text = f"@{second}"
            self._second = second
        return self._text


def account(text: str) -> str:
    """A name of a person."""
    return _account(cut(text, _NAME))


@lru_cache(maxsize=4096)  # a few people say all that there is
def _account(text: str) -> str:
    # Quoted where it could be taken for more than one word of the line.
    return quote(text) if text and text.split() != [text] else printable(text)


def cut(text: str, limit: int) -> str:
    """The text, or as much of it as the limit leaves room for, and `…`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escape(letter: str) -> str:
    code = ord(letter)
    named = {9: "\\t", 10: "\\n", 13: "\\r"}.get(code)
    if named is not None:
        return named
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
