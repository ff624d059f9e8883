"""What HTTP events mean: each head is a send or receive with a line that says what it is."""

from streamtap.patterns.model import Data
from streamtap.protocols.http import HttpRequest, HttpResponse


def data_of(event: HttpRequest | HttpResponse) -> Data:
    """The head of a request or response as a pattern."""
    if isinstance(event, HttpRequest):
        summary = f"{event.method} {event.target}"
    else:
        summary = f"{event.status} {event.reason}".rstrip()
    return Data(
        offset=event.offset,
        length=event.length,
        protocol="http",
        bytes=event.length,
        summary=summary,
    )
