"""Records as lines that people read: when, who, which way, of what service, what.

    22:48:16.120 pidgin[4121] < SB  message   bob@example.com -> alice@example.com  text, 11 bytes

The arrow is `>` for what the application sends, `<` for what it receives, `!` for what went wrong
and `*` for the rest. The columns of names grow with what they meet, so that lines stay aligned.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Literal, NamedTuple

from streamtap.events import FlowInfo, Record, tag_of
from streamtap.trace.sink import Output
from streamtap.trace.text import Clock, app_name, ends, printable
from streamtap.trace.words import tell

Show = Literal["text", "hex"]

_FLOWS = 8192  # flows whose service is remembered
_SERVICES = {"notification": "NS", "switchboard": "SB", "dispatch": "DS", "direct": "P2P"}
_PEER_TO_PEER = {"im.file", "im.media", "im.direct", "msnp.p2p"}
_ARROWS = {"sent": ">", "received": "<"}
_WHO, _WIDEST_WHO, _TAG, _WORD = 12, 40, 3, 9  # columns, in characters

_DIM, _BOLD, _RED, _GREEN, _YELLOW, _CYAN = "2", "1", "31", "32", "33", "36"
_COLOURS = {">": _GREEN, "<": _CYAN, "!": _YELLOW, "*": _DIM}


class _Service(NamedTuple):
    tag: str
    client: str = ""  # protocol version and client, as the flow was opened with


_UNKNOWN = _Service("")


class Console:
    """The sink of lines for people.

    quiet: without the service and details. verbose: with the date, the flow and its ends.
    show: content, where records hold it, in lines below, as text or as hex.
    """

    def __init__(
        self,
        output: Output,
        *,
        color: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        show: Show | None = None,
    ) -> None:
        self._output = output
        self._color = color
        self._quiet = quiet
        self._verbose = verbose
        self._show = show
        self._clock = Clock("%Y-%m-%d %H:%M:%S" if verbose else "%H:%M:%S")
        self._services: dict[str, _Service] = {}
        self._who_width = _WHO
        self._tag_width = _TAG

    @property
    def name(self) -> str:
        return self._output.name

    def open(self) -> None:
        self._output.open()

    def write(self, first: int, records: Sequence[Record]) -> None:
        for record in records:
            lines = [self._line(record)]
            if self._show is not None and (content := _content(record)):
                lines += _as_text(content) if self._show == "text" else _as_hex(content)
            lines.append("")
            # What is printable encodes, so this replaces nothing; it guards against raising here.
            self._output.put("\n".join(lines).encode("utf-8", "replace"))

    def flush(self) -> None:
        self._output.flush()

    def close(self) -> None:
        self._output.close()

    def _line(self, record: Record) -> str:
        flow, level = record.flow, record.body.level
        service = self._service(record)
        words = tell(record, service.client, inline=self._show is None)
        when = f"{self._clock.second(record.time_ns)}.{record.time_ns // 1_000_000 % 1000:03}"
        who = _who(flow)
        if self._verbose and flow is not None and flow.peer is not None:
            who += f" <-> {app_name(flow.peer)}"
        self._who_width = min(max(self._who_width, len(who)), _WIDEST_WHO)
        who = who.ljust(self._who_width)
        arrow = "!" if level in ("warn", "error") else _ARROWS.get(record.direction or "", "*")
        tag = self._tag(record, service)
        self._tag_width = max(self._tag_width, len(tag))
        tag = tag.ljust(self._tag_width)
        word = words.word.ljust(_WORD)
        about, detail = words.about, words.detail
        if words.word == "opened" and flow is not None and flow.peer is not None:
            detail += f"  peer {app_name(flow.peer)}"
        if self._verbose and flow is not None:
            place = "" if words.word == "opened" else f" {ends(flow)}"
            detail += f"  [flow {printable(flow.flow)}{place}]"
        if self._color:
            alarm = _RED if level == "error" else _COLOURS[arrow]
            when, who, tag = _paint(when, _DIM), _paint(who, _CYAN), _paint(tag, _DIM)
            arrow, word = _paint(arrow, alarm), _paint(word, _BOLD)
        if self._quiet:
            return f"{when} {who} {arrow} {word} {about}".rstrip()
        return f"{when} {who} {arrow} {tag} {word} {about}{detail}".rstrip()

    def _service(self, record: Record) -> _Service:
        """What the flow of the record serves, as far as its records told; and learns from this."""
        if record.flow is None:
            return _UNKNOWN
        flow, body, tag = record.flow.flow, record.body, tag_of(record.body)
        known = self._services.get(flow, _UNKNOWN)
        if tag == "im.connect":
            service = str(getattr(body, "service", ""))
            about = (getattr(body, "protocol_version", None), getattr(body, "client", None))
            client = ", ".join(printable(part, 60) for part in about if isinstance(part, str))
            known = _Service(_SERVICES.get(service, service.upper()[:4]), client)
        elif tag == "flow.identified":
            known = _Service(_protocol(getattr(body, "protocol", "")))
        elif tag == "flow.closed":
            return self._services.pop(flow, _UNKNOWN)
        else:
            return known
        if len(self._services) >= _FLOWS:
            self._services.clear()
        self._services[flow] = known
        return known

    def _tag(self, record: Record, service: _Service) -> str:
        if tag_of(record.body) in _PEER_TO_PEER:
            return "P2P"
        return printable(service.tag or _protocol(getattr(record.body, "protocol", "")) or "-")


def _protocol(name: object) -> str:
    return name.upper()[:4] if isinstance(name, str) and name != "opaque" else "-"


def _who(flow: FlowInfo | None) -> str:
    """The application; in captures, which do not know it, the client's end."""
    if flow is None:
        return "streamtap"
    return app_name(flow.app) if flow.app is not None else printable(flow.local)


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


def _content(record: Record) -> bytes:
    """What was said, where the record holds it."""
    for name in ("content", "content_base64", "payload"):
        value = getattr(record.body, name, None)
        if isinstance(value, bytes):
            return value
        if isinstance(value, str) and name == "content_base64":
            try:
                return base64.b64decode(value)
            except binascii.Error:
                return b""
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace")
    return b""


def _as_text(content: bytes) -> list[str]:
    text = content.decode("utf-8", "backslashreplace").replace("\r\n", "\n").rstrip("\n")
    return ["    " + printable(line.expandtabs(), len(text) + 1) for line in text.split("\n")]


def _as_hex(content: bytes) -> list[str]:
    lines = []
    for start in range(0, len(content), 16):
        row = content[start : start + 16]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"    0x{start:04x}:  {row.hex(' ', -2):<39}  {shown}")
    return lines
