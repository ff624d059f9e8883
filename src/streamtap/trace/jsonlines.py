"""Records as JSON, one object a line, and back.

The order of the keys: number, time_ns, provider, flag, level, event; app, flow, local, remote,
role (and peer) where a flow is concerned; direction, offset, length where bytes are; then the
fields of the body. A body encodes itself, tag first; the envelope is spliced in behind the tag,
from parts that are kept per kind of body and per flow.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, cast

import msgspec

from streamtap.events import Body, FlowInfo, Record, tag_of
from streamtap.model import App
from streamtap.trace.sink import Output

Way = Literal["sent", "received"]
ENVELOPE = frozenset(
    (
        *("number", "time_ns", "provider", "flag", "level", "event"),
        *("app", "flow", "local", "remote", "role", "peer", "direction"),
    )
)
_encode = msgspec.json.Encoder().encode
HEAD = b'{"number":'  # what a line begins with
_PLAIN = [b"%d," % low for low in range(1000)]
_PADDED = [b"%03d," % low for low in range(1000)]
_FLOWS = 4096  # flows whose part of the line is kept
_AT_ONCE = 128  # lines: what they take stays in a processor's own cache
_DIRECTIONS: dict[str | None, bytes] = {
    None: b"",
    "sent": b',"direction":"sent"',
    "received": b',"direction":"received"',
}


class LineEncoder:
    """Encodes records as lines but for their number, which is each session's own.

    `numbered` makes lines of that.
    """

    def __init__(self) -> None:
        # The place of a body, by identity, for each class has its own -> the envelope's part that
        # they decide, and the length of the part of the encoded body that it replaces.
        self._kinds: dict[int, tuple[bytes, int]] = {}
        # Keyed by identity, for hashing a FlowInfo costs more than all the rest; the value holds
        # the flow, so that its id is not given to another while it is here.
        self._flows: dict[int, tuple[FlowInfo, bytes]] = {}

    def encode(self, records: Iterable[Record]) -> Iterator[bytes]:
        """The rest of each record's line, with its line feed."""
        kinds, flows, encode = self._kinds, self._flows, _encode
        for record in records:
            body, flow = record.body, record.flow
            head, cut = kinds.get(id(body.place())) or self._new_kind(body)
            if flow is None:
                part = b""
            else:
                known = flows.get(id(flow))
                part = known[1] if known is not None else self._new_flow(flow)
            try:
                text = encode(body)
            except UnicodeEncodeError:
                text = encode_any(body)
            yield b'"time_ns":%d,%b%b%b%b\n' % (
                record.time_ns,
                head,
                part,
                _DIRECTIONS[record.direction],
                text[cut:],
            )

    def _new_kind(self, body: Body) -> tuple[bytes, int]:
        provider, flag, level = body.place()
        tag = b'"event":' + msgspec.json.encode(tag_of(body))
        text = f'"provider":"{provider}","flag":"{flag}","level":"{level}",'.encode() + tag
        kind = (text, len(b"{" + tag))
        self._kinds[id(body.place())] = kind
        return kind

    def _new_flow(self, flow: FlowInfo) -> bytes:
        fields = {
            "app": flow.app,
            "flow": flow.flow,
            "local": flow.local,
            "remote": flow.remote,
            "role": flow.role,
        }
        if flow.peer is not None:
            fields["peer"] = flow.peer
        part = b"," + encode_any(fields)[1:-1]
        if len(self._flows) >= _FLOWS:
            self._flows.clear()
        self._flows[id(flow)] = (flow, part)
        return part


def numbered(first: int, lines: Sequence[bytes]) -> bytes:
    """What `LineEncoder.encode` gave, each with its number in front, counted from `first` on.

    Thousands and the rest of a number are put there by slices: a third of what formatting costs.
    """
    parts: list[bytes] = []
    at = 0
    while at < len(lines):
        high, low = divmod(first + at, 1000)
        some = lines[at : at + 1000 - low]
        block = [HEAD + b"%d" % high if high else HEAD] * (3 * len(some))
        block[1::3] = (_PADDED if high else _PLAIN)[low : low + len(some)]
        block[2::3] = some
        parts += block
        at += len(some)
    return b"".join(parts)


class JsonLines:
    """The sink of JSON lines."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._encode = LineEncoder().encode

    @property
    def name(self) -> str:
        return self._output.name

    def open(self) -> None:
        self._output.open()

    def write(self, first: int, records: Sequence[Record]) -> None:
        for at in range(0, len(records), _AT_ONCE):
            some = records[at : at + _AT_ONCE]
            self._output.put(numbered(first + at, list(self._encode(some))))

    def flush(self) -> None:
        self._output.flush()

    def close(self) -> None:
        self._output.close()


class _Envelope(msgspec.Struct, frozen=True):
    """What a line says beside the body. Without a flow its four words are missing."""

    number: int
    time_ns: int
    app: App | None = None
    flow: str | None = None
    local: str = ""
    remote: str = ""
    role: str = ""
    peer: App | None = None
    direction: Way | None = None


class _Decode(Protocol):
    def __call__(self, line: bytes | str) -> Body: ...


class RecordDecoder:
    """Reads lines back to records whose bodies are of the given types.

    body_types: each with its own tag; TypeError if one has a field that an envelope's would hide.
    """

    def __init__(self, body_types: Iterable[type[Body]]) -> None:
        types = tuple(dict.fromkeys(body_types))
        for body_type in types:
            if hidden := ENVELOPE & set(body_type.__struct_encode_fields__):
                raise TypeError(f"{body_type.__name__} has a field {sorted(hidden)[0]!r}")
        union = msgspec.json.Decoder(_union(types))
        self._body = cast(_Decode, union.decode)
        self._envelope = msgspec.json.Decoder(_Envelope)
        self._flows: dict[str, FlowInfo] = {}

    def decode(self, line: bytes) -> Record:
        """Raises ValueError where the line is no record, cut short, or of an unknown event."""
        try:
            envelope = self._envelope.decode(line)
        except RecursionError:
            raise ValueError("nested too deeply for a record") from None
        return Record(
            number=envelope.number,
            time_ns=envelope.time_ns,
            body=self.decode_body(line),
            flow=None if envelope.flow is None else self._flow(envelope, envelope.flow),
            direction=envelope.direction,
        )

    def _flow(self, envelope: _Envelope, name: str) -> FlowInfo:
        """One value for all lines that say the same of a flow, as a live run has it: sinks look
        flows up by identity."""
        flow = FlowInfo(
            app=envelope.app,
            flow=name,
            local=envelope.local,
            remote=envelope.remote,
            role=envelope.role,
            peer=envelope.peer,
        )
        known = self._flows.get(name)
        if known == flow:
            return known
        if len(self._flows) >= _FLOWS:
            self._flows.clear()
        self._flows[name] = flow
        return flow

    def decode_body(self, text: bytes | str) -> Body:
        """The body alone, from its own object or a whole line. Raises ValueError as `decode`."""
        try:
            return self._body(text)
        except RecursionError:
            raise ValueError("nested too deeply for a record") from None


def decode(line: bytes, body_types: Iterable[type[Body]]) -> Record:
    """One line read back; for many, keep a `RecordDecoder`."""
    return RecordDecoder(body_types).decode(line)


def _union(types: Sequence[type[Body]]) -> type[Body]:
    if not types:
        raise TypeError("no body types to decode")
    union: object = types[0]
    for body_type in types[1:]:
        union = union | body_type
    return cast(type[Body], union)


def encode_any(value: object) -> bytes:
    """JSON of a value whose text may hold lone surrogates (a file name that is not UTF-8): they
    are written as escapes, as text from the wire is."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_clean(msgspec.to_builtins(value)))


def _clean(value: object) -> object:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def clean_text(text: str) -> str:
    """The text with lone surrogates as escapes; any other text as it is."""
    if text.isascii():  # nearly all is
        return text
    return text.encode("utf-8", "backslashreplace").decode()
