"""The credentials and the words in the bytes of MSNP, found without the parser.

The second opinion of the privacy tests: by where they stand in the protocol (commands, headers,
fields), not by what a transcript says of itself. A unit is a command with its payload.
"""

import re

from streamtap.model import Direction

_FIELDS = (
    rb"(?im)^(?:MSPAuth|sid|kv|RouteInfo|AuthCookie|(?:Hashed-)?Nonce|Ticket-Token"
    rb"|Set-Cookie|Cookie|(?:Proxy-)?Authorization|\w*Password|\w*Username):[ \t]*([^\r\n]+)",
    rb"SessionID=([0-9a-f.-]{3,})",  # of the gateway
    rb"(?im)^[\w-]*-URL:[^?\r\n]*\?([^\r\n]+)",
)
_BY_SIDE = (
    (
        rb"\AUSR \d+ (?:TWN|SSO|MD5) S (\S+)",  # ticket, response
        rb"\AUSR \d+ SSO S \S+ (\S+)",  # response to the nonce
        rb"\AUSR \d+ CTP I \S+ (\S+)",  # password
        rb"\AUSR \d+ SHA A (\S+)",  # token of a circle
        rb"\AUSR \d+ [^\s@]+@\S+ (\S+)",  # cookie of a switchboard
        rb"\AUSR [^\s@]+@\S+ (\S+)",  # of MSNFTP
        rb"\AANS \d+ \S+@\S+ (\S+)",
        rb"\AQRY \d+ \S+ 32\r\n(.{32})",
        rb"\ACVR \d+ (?:\S+ ){8}(\S+)",  # token of a redirection
    ),
    (
        rb"\AUSR \d+ MD5 S (\S+)",  # challenge
        rb"\AUSR \d+ SSO S \S+ (\S+)",  # nonce
        rb"\A(?:XFR|RNG) [^\r\n]* CKI (\S+)",
        rb"\AXFR \d+ NS \S+ [UG] D (\S+)",
        rb"\ACHL \d+ (\S+)",
    ),
)
_PATTERNS = tuple(tuple(map(re.compile, (*side, *_FIELDS))) for side in _BY_SIDE)
_TEXT = re.compile(rb"Content-Type: text/plain[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{2,})")
_WORDS = re.compile(rb"<PSM>([^<]{2,})</PSM>")


def credentials(side: Direction, unit: bytes) -> set[str]:
    """Every credential in what one side says."""
    found = {value for pattern in _PATTERNS[side] for value in pattern.findall(unit)}
    return {value.decode("latin-1").strip() for value in found}


def said(unit: bytes) -> set[str]:
    """The first line of a text message, and a personal message."""
    found = {*_TEXT.findall(unit), *_WORDS.findall(unit)}
    return {value.decode("utf-8", "replace").strip() for value in found}
