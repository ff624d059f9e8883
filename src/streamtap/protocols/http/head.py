"""Heads of HTTP messages: the start line, the fields, and what they say of the body.

RFC 9112 §2.2 (lines), §3 (request line), §4 (status line), §5 (fields), §6 (body length). Text is
UTF-8, other bytes are escaped. What breaks the rules is noted, never quoted.
"""

import re
from typing import NamedTuple

from streamtap.protocols._base import Verdict
from streamtap.protocols.http.events import Headers
from streamtap.protocols.http.redaction import clean_authority, clean_field, clean_url

# RFC 9110 §9, RFC 5789, WebDAV (RFC 4918, 3253, 5323), UPnP; others are known by their shape.
METHODS = (
    b"GET POST HEAD PUT DELETE CONNECT OPTIONS TRACE PATCH PROPFIND PROPPATCH MKCOL COPY MOVE LOCK "
    b"UNLOCK REPORT SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE M-SEARCH"
).split()

_METHOD_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) +([1-9][0-9][0-9])(?:[ \t]([^\r\n]*))?\r?\n")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FOLD = re.compile(r"\r?\n[ \t]+")
_LENGTH = re.compile(r"[0-9]{1,18}")  # 18 digits: below 2**63, as peers count

_BLANK_LINE = re.compile(rb"\r?\n")
_METHOD = re.compile(rb"[A-Z][A-Z_-]{0,23}+")
_TARGET_START = re.compile(rb"[/*]|[A-Za-z][A-Za-z0-9+.-]*+(?::/?/?[^\s]*+)?+$")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*+://")
_STATUS_START = re.compile(rb"HTTP/1\.[01] [1-9][0-9][0-9][ \r\n]")
_VERSION_START = re.compile(rb"(?:HTTP/1(?:\.(?:[01][ \t\r]*)?)?|HTTP?/?|HT?)?\Z")
# So much of a target after a known method needs no version to be believed.
_CERTAIN = re.compile(
    rb"(?:" + rb"|".join(re.escape(method) for method in METHODS) + rb") [/*][^\s]{255}"
)


class RequestLine(NamedTuple):
    method: str
    target: str  # redacted
    authority: str | None  # redacted
    version: str


class StatusLine(NamedTuple):
    status: int
    reason: str
    version: str


class Fields(NamedTuple):
    """The fields of a head, credentials redacted, and what they say of the body.

    content_length: None where absent or chunked; -1 where the declarations contradict each other
        or are no numbers.
    coded: a transfer coding is declared whose last is not `chunked`.
    notes: reasons for `Malformed`.
    """

    headers: Headers
    host: str | None
    content_type: str | None
    content_length: int | None
    chunked: bool
    coded: bool
    upgrade: str | None
    notes: tuple[str, ...]


def request_line(line: bytes) -> RequestLine | None:
    """A request line with its end, or None if it is none."""
    parts = _request_parts(line)
    if parts is None:
        return None
    method, target, version = (_text(part) for part in parts)
    authority: str | None = None
    if method == "CONNECT" or target[0] not in "/*":
        if "://" in target:
            target = clean_url(target)
            authority = re.split(r"[/?#]", target.partition("://")[2], maxsplit=1)[0]
        elif method == "CONNECT":
            target = authority = clean_authority(target)
        else:
            target = clean_url(target)
    else:
        target = clean_url(target)
    return RequestLine(method, target, authority or None, version)


def _request_parts(line: bytes) -> tuple[bytes, bytes, bytes] | None:
    # Partitions, not one pattern: a line of blanks must not make it backtrack. A blank within the
    # target is a fault that clients make and servers take.
    method, _, rest = line.rstrip(b"\r\n\t ").partition(b" ")
    target, _, version = rest.rpartition(b" ")
    target = target.strip(b" ")
    if version not in _VERSIONS or not target or b"\r" in target or line[-1:] != b"\n":
        return None
    return (method, target, version[5:]) if _METHOD_TOKEN.fullmatch(method) else None


def status_line(line: bytes) -> StatusLine | None:
    """A status line with its end, or None if it is none."""
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        return None
    version, status, reason = found.groups()
    return StatusLine(int(status), _text(reason or b"").strip(), _text(version))


def fields(block: bytes, version: str) -> Fields:
    """The fields between the start line and the end of the head."""
    text = _text(block)
    notes: list[str] = []
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)  # obs-fold, RFC 9112 §5.2
    headers: list[tuple[str, str]] = []
    host = content_type = upgrade = None
    lengths: list[str] = []
    codings: list[str] = []
    for line in text.split("\n"):
        if not line or line == "\r":
            continue
        name, colon, value = line.partition(":")
        if not colon:
            notes.append("header line without colon")
            continue
        if not _NAME.fullmatch(name):
            stripped = name.rstrip(" \t")
            if not _NAME.fullmatch(stripped):
                notes.append("header name is not a token")
                continue
            notes.append("blank before the colon of a header")
            name = stripped
        key = name.lower()
        value = value.strip(" \t\r")
        if key == "content-length":
            lengths += (part.strip() for part in value.split(","))
        elif key == "transfer-encoding":
            codings += (part.strip().lower() for part in value.split(","))
        elif key == "host":
            if host is not None:
                notes.append("more than one host")
            host = value = clean_authority(value)
        cleaned = clean_field(key, value)
        if key == "content-type":
            content_type = cleaned
        elif key == "upgrade":
            upgrade = cleaned
        headers.append((name, cleaned))

    codings = [coding for coding in codings if coding and coding != "identity"]
    chunked = bool(codings) and codings[-1] == "chunked"
    content_length: int | None = None
    if codings:
        if version == "1.0":
            notes.append("transfer-encoding in HTTP/1.0")
        if not chunked:
            notes.append("transfer-encoding does not end in chunked")
        if lengths:
            notes.append("both transfer-encoding and content-length")
    elif lengths:
        values = {int(length) if _LENGTH.fullmatch(length) else -1 for length in lengths}
        content_length = values.pop() if len(values) == 1 else -1
        if content_length < 0:
            notes.append("content-length is not one number")
    return Fields(
        headers=tuple(headers),
        host=host,
        content_type=content_type,
        content_length=content_length,
        chunked=chunked,
        coded=bool(codings) and not chunked,
        upgrade=upgrade,
        notes=tuple(dict.fromkeys(notes)),
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def probe_request(data: bytes) -> Verdict:
    """Do these bytes begin a request? Once it is yes or no, more bytes do not change it."""
    data = data.lstrip(b"\r\n") if _BLANK_LINE.match(data) else data
    if not data or data == b"\r":
        return Verdict.MORE
    if _CERTAIN.match(data):
        return Verdict.YES
    line, lf, _ = data.partition(b"\n")
    if lf:
        parts = _request_parts(line + lf)
        fits = parts and _METHOD.fullmatch(parts[0]) and _target_fits(parts[0], parts[1])
        return Verdict.YES if fits else Verdict.NO
    method = _METHOD.match(line)
    if method is None:
        return Verdict.NO
    rest = line[method.end() :]
    if not rest:
        return Verdict.MORE
    if rest[0] != 0x20:
        return Verdict.NO
    target, blank, version = rest.lstrip(b" ").partition(b" ")
    if method[0] in METHODS or not target:
        return Verdict.MORE
    if not blank:
        return Verdict.MORE if _TARGET_START.match(target) else Verdict.NO
    if not _target_fits(method[0], target):
        return Verdict.NO
    return Verdict.MORE if _VERSION_START.match(version.lstrip(b" ")) else Verdict.NO


def _target_fits(method: bytes, target: bytes) -> bool:
    if method in METHODS:
        return True
    return b" " not in target and (target[:1] in b"/*" or _SCHEME.match(target) is not None)


def probe_response(data: bytes) -> Verdict:
    """Do these bytes begin a response?"""
    if len(data) >= 13:
        return Verdict.YES if _STATUS_START.match(data) else Verdict.NO
    # Whether the beginning fits is the same question with the rest of a good line put behind.
    example = b"HTTP/1.1 200 "
    return Verdict.MORE if _STATUS_START.match(data + example[len(data) :]) else Verdict.NO
