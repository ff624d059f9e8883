"""The values of the control protocol as lines, and errors as what a reply says of them."""

import re
from typing import TypeVar

import msgspec

from streamtap.errors import (
    AlreadyExists,
    CalloutError,
    NotFound,
    PermissionMissing,
    ServiceError,
    StreamtapError,
)
from streamtap.service.protocol import (
    MAX_LINE,
    MAX_REPLY,
    REQUESTS,
    AnyRequest,
    Failure,
    Reply,
    Request,
    TraceStart,
    check_session,
)
from streamtap.service.state import Recorded
from streamtap.trace.jsonlines import encode_any
from streamtap.trace.text import printable

SESSION_NAMES = "letters, digits, '.', '_' and '-', at most 64, a letter or digit first"
TOLD = 200  # letters of names, or of a reason, in a `control.request` record
VERBS = tuple(str(kind.__struct_config__.tag) for kind in REQUESTS)
T = TypeVar("T", bound=msgspec.Struct)
_BEYOND = re.compile(r"Expected `(\w+)` (?:of length )?([<>])= ([\d.]+) - at `\$\.?(.*)`")
_NAMED = re.compile(r"matching regex .* - at `\$\.(name)`")


class Head(msgspec.Struct, frozen=True):
    """What can be read of a request whose rest is not understood."""

    id: int | None = None
    verb: str = ""
    version: str = ""


class Malformed(ValueError):
    """A line that is no request; head: what could be read of it, None where nothing could."""

    def __init__(self, reason: str, head: Head | None = None) -> None:
        super().__init__(printable(reason, TOLD))
        self.head = head


_heads = msgspec.json.Decoder(Head)
_requests: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
_replies = msgspec.json.Decoder(Reply)


def decode_request(line: bytes) -> AnyRequest:
    """Raises Malformed."""
    try:
        head = _heads.decode(line)
    except (ValueError, RecursionError):
        raise Malformed("no request: one JSON object a line, with id and verb") from None
    if head.verb not in VERBS:
        raise Malformed(f"no such verb: there are {', '.join(VERBS)}", head)
    try:
        return _requests.decode(line)
    except msgspec.ValidationError as error:
        raise Malformed(in_words(error), head) from None
    except ValueError as error:
        raise Malformed(str(error), head) from None


def encode_request(request: Request) -> bytes:
    """One line. Raises ValueError where it is longer than the service takes."""
    line = encode_any(request) + b"\n"
    if len(line) > MAX_LINE:
        raise ValueError(f"a request is at most {MAX_LINE} bytes; this one has {len(line)}")
    return line


def encode_result(number: int | None, version: str, result: object) -> bytes:
    """The line of a reply. A result that is too long becomes an error."""
    line = _reply(number, version, b"result", result)
    if len(line) > MAX_REPLY:
        failure = Failure(f"the reply has {len(line)} bytes; at most {MAX_REPLY} are sent")
        return encode_failure(number, version, failure)
    return line


def encode_failure(number: int | None, version: str, failure: Failure) -> bytes:
    return _reply(number, version, b"error", failure)


def decode_reply(line: bytes) -> Reply:
    """Raises ValueError."""
    try:
        return _replies.decode(line)
    except RecursionError:
        raise ValueError("nested too deeply for a reply") from None


def _reply(number: int | None, version: str, kind: bytes, value: object) -> bytes:
    head = msgspec.json.encode({"id": number, "version": version})
    return head[:-1] + b',"' + kind + b'":' + encode_any(value) + b"}\n"


# --- what a person asks for -------------------------------------------------------------------


def checked(fields: dict[str, object], form: type[T]) -> T:
    """Fields as the service would take them. Raises ValueError in words for a person."""
    try:
        return msgspec.convert(fields, form)
    except msgspec.ValidationError as error:
        raise ValueError(in_words(error)) from None


def in_words(error: msgspec.ValidationError) -> str:
    """`name: at most 255 letters`, for what is beyond its bounds."""
    found = _BEYOND.fullmatch(str(error))
    if found is None:
        named = _NAMED.search(str(error))
        return f"{named[1]}: {SESSION_NAMES}" if named else str(error)
    kind, sign, bound, field = found.groups()
    letters = " letter" if bound == "1" else " letters"
    unit = {"str": letters, "array": " of them"}.get(kind, "")
    return f"{field or 'this'}: at {'most' if sign == '<' else 'least'} {bound}{unit}"


def request_of(session: Recorded) -> TraceStart:
    """What starts such a session; the service knows who asks, and when. Raises ValueError."""
    check_session(session)
    fields = msgspec.structs.asdict(session)
    for name in ("uid", "user", "started_ns"):
        del fields[name]
    return checked(fields | {"verb": "trace_start"}, TraceStart)


# --- errors ----------------------------------------------------------------------------------

_CLASSES: dict[int, type[StreamtapError]] = {
    3: ServiceError,
    4: PermissionMissing,
    5: CalloutError,
    6: NotFound,
    7: AlreadyExists,
}


def failure_of(error: Exception) -> Failure:
    """What a client is told of an exception."""
    if isinstance(error, StreamtapError):
        return Failure(str(error), error.hint, error.exit_code)
    if isinstance(error, ValueError):
        return Failure(str(error), code=2)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return Failure(f"{error.filename}: {reason}" if error.filename else reason)
    return Failure(f"the service failed: {type(error).__name__}", "its log tells more")


def error_of(failure: Failure) -> Exception:
    """The exception that a client raises: of the class that has this exit code."""
    if failure.code == 2:
        return ValueError(failure.message)
    error = _CLASSES.get(failure.code, StreamtapError)(failure.message, failure.hint)
    error.exit_code = failure.code
    return error


# --- records of requests ---------------------------------------------------------------------


def told(request: Request) -> str:
    """The request as a record tells it: the verb, and names of what it is about."""
    verb = str(request.__struct_config__.tag)
    names = ", ".join(request.concerned())
    return f"{verb} {printable(names, TOLD)}" if names else verb
