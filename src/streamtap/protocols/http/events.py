"""What the HTTP parser tells. Credentials never get here: they are marks (`redact`)."""

from typing import ClassVar

from streamtap.events import Event

Headers = tuple[tuple[str, str], ...]


class HttpRequest(Event, frozen=True, kw_only=True, tag="http.request"):
    """The head of a request.

    target: as sent, with user information and the values of credential parameters redacted.
    version: "1.0" or "1.1".
    host: the Host field, else the authority in the target.
    content_length: as declared; None where it is absent or `chunked` overrules it.
    upgrade: the protocols that the client offers to go on with.
    headers: fields in order, names as sent; a repeated field appears again.
    """

    method: str
    target: str
    version: str
    host: str | None = None
    content_length: int | None = None
    chunked: bool = False
    upgrade: str | None = None
    headers: Headers = ()


class HttpResponse(Event, frozen=True, kw_only=True, tag="http.response"):
    """The head of a response; fields as in `HttpRequest`.

    request_method: of the request it answers; None where that was not seen.
    """

    status: int
    reason: str
    version: str
    request_method: str | None = None
    content_type: str | None = None
    content_length: int | None = None
    chunked: bool = False
    upgrade: str | None = None
    headers: Headers = ()


class HttpBody(Event, frozen=True, kw_only=True, tag="http.body"):
    """The bytes of a body that arrived together, with the framing of its chunks.

    payload_length: content bytes among them.
    final: the body ends here; truncated: it ends without its last bytes, or bytes of it were lost.
    """

    mergeable: ClassVar[bool] = True
    payload_length: int
    final: bool = False
    truncated: bool = False


class HttpTunnel(Event, frozen=True, kw_only=True, tag="http.tunnel"):
    """Bytes that arrived together after CONNECT or an upgrade: no longer HTTP."""

    mergeable: ClassVar[bool] = True
