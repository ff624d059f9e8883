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

_FLOWS = 8192  # flows whose name and service are remembered
_SERVICES = {"notification": "NS", "switchboard": "SB", "dispatch": "DS", "direct": "P2P"}
_PEER_TO_PEER = {"im.file", "im.media", "im.direct", "msnp.p2p"}
_ALARMS = frozenset({"warn", "error"})
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
        # By identity; the flow is held, so that its id is not given to another meanwhile.
        self._names: dict[int, tuple[FlowInfo | None, str]] = {}
        self._who_width = _WHO
        self._tag_width = _TAG

    @property
    def name(self) -> str:
        return self._output.name

    def open(self) -> None:
        self._output.open()

    def write(self, first: int, records: Sequence[Record]) -> None:
        lines: list[str] = []
        for record in records:
            lines.append(self._line(record))
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
        flow, event = record.flow, tag_of(record.body)
        service = self._service(record, event)
        words = tell(record, service.client, inline=self._show is None)
        when = f"{self._clock.second(record.time_ns)}.{record.time_ns // 1_000_000 % 1000:03}"
        who = self._who(flow)
        level = record.body.level
        arrow = "!" if level in _ALARMS else _ARROWS.get(record.direction or "", "*")
        tag = self._tag(record, service, event)
        word = f"{words.word:<{_WORD}}"
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

    def _who(self, flow: FlowInfo | None) -> str:
        """The application; in captures, which do not know it, the client's end."""
        known = self._names.get(id(flow))
        if known is None:
            if flow is None:
                name = "streamtap"
            elif flow.app is None:
                name = printable(flow.local)
            else:
                name = app_name(flow.app)
            if self._verbose and flow is not None and flow.peer is not None:
                name += f" <-> {app_name(flow.peer)}"
            if len(self._names) >= _FLOWS:
                self._names.clear()
            self._names[id(flow)] = known = (flow, name)
        self._who_width = min(max(self._who_width, len(known[1])), _WIDEST_WHO)
        return known[1].ljust(self._who_width)

    def _service(self, record: Record, event: str) -> _Service:
        """What the flow of the record serves, as far as its records told; and learns from this."""
        if record.flow is None:
            return _UNKNOWN
        flow, body = record.flow.flow, record.body
        if event == "im.connect":
            service = str(getattr(body, "service", ""))
            about = (getattr(body, "protocol_version", None), getattr(body, "client", None))
            client = ", ".join(printable(part, 60) for part in about if isinstance(part, str))
            tag = _SERVICES.get(service) or printable(service.upper()[:4])
            known = _Service(tag, client)
        elif event == "flow.identified":
            known = _Service(printable(_protocol(getattr(body, "protocol", ""))))
        elif event == "flow.closed":
            return self._services.pop(flow, _UNKNOWN)
        else:
            return self._services.get(flow, _UNKNOWN)
        if len(self._services) >= _FLOWS:
            self._services.clear()
        self._services[flow] = known
        return known

    def _tag(self, record: Record, service: _Service, event: str) -> str:
        tag = service.tag
        if event in _PEER_TO_PEER:
            tag = "P2P"
        elif not tag:
            tag = printable(_protocol(getattr(record.body, "protocol", "")) or "-")
        self._tag_width = max(self._tag_width, len(tag))
        return tag.ljust(self._tag_width)


def _protocol(name: object) -> str:
    return name.upper()[:4] if isinstance(name, str) and name != "opaque" else "-"


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
