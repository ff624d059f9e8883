"""HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112).

events: what is told; `head`: start lines and fields; `body`: where bodies end; `boundary`: finding
a head again; `redaction`: what of a head is a credential; `parser`: both directions together.
"""

from streamtap.protocols.http.events import HttpBody, HttpRequest, HttpResponse, HttpTunnel
from streamtap.protocols.http.parser import HttpParser

__all__ = ["HttpBody", "HttpParser", "HttpRequest", "HttpResponse", "HttpTunnel"]
