"""Protocol events to patterns, the same for every messaging protocol, across flows.

conversations: the way in, and what ties flows together; `msnp`, `http`, `bursts`: the meaning of
each protocol's events; `privacy`: what of a body a record may tell.
"""

from streamtap.events import Event
from streamtap.patterns.conversations import INSIDE, Conversations
from streamtap.patterns.model import (
    Connect,
    Contacts,
    Data,
    Direct,
    Error,
    File,
    Invite,
    Join,
    Leave,
    Meaning,
    Media,
    Message,
    Pattern,
    Presence,
    Redirect,
    SignIn,
    SignOut,
)
from streamtap.patterns.privacy import clean
from streamtap.protocols.http import HttpBody, HttpRequest, HttpResponse, HttpTunnel
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket, MsnpPrelude
from streamtap.protocols.opaque import OpaqueData

PATTERNS: tuple[type[Pattern], ...] = (
    Connect,
    SignIn,
    SignOut,
    Presence,
    Contacts,
    Redirect,
    Invite,
    Join,
    Leave,
    Message,
    File,
    Media,
    Direct,
    Error,
    Data,
)
# Protocol events that have a meaning here.
EVENTS: tuple[type[Event], ...] = (
    OpaqueData,
    HttpRequest,
    HttpResponse,
    HttpBody,
    HttpTunnel,
    MsnpCommand,
    MsnpPacket,
    MsnpDirect,
    MsnpPrelude,
)

__all__ = [
    "EVENTS",
    "INSIDE",
    "PATTERNS",
    "Connect",
    "Contacts",
    "Conversations",
    "Data",
    "Direct",
    "Error",
    "File",
    "Invite",
    "Join",
    "Leave",
    "Meaning",
    "Media",
    "Message",
    "Pattern",
    "Presence",
    "Redirect",
    "SignIn",
    "SignOut",
    "clean",
]
