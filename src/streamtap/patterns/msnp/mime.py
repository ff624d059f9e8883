"""The payload of an MSNP message: MIME header, body, and what kind of thing was said."""

import re
from functools import lru_cache
from typing import NamedTuple

TEXT_HEAD = b"MIME-Version: 1.0\r\nContent-Type: text/plain"
HEAD = 64 * 1024  # of a header that is looked into

KINDS = {
    "text/plain": "text",
    "text/x-msmsgscontrol": "typing",
    "text/x-mms-emoticon": "emoticon",
    "text/x-mms-animemoticon": "emoticon",
    "application/x-ms-ink": "ink",
    "image/gif": "ink",
    "text/x-clientcaps": "control",
    "text/x-keepalive": "control",
    "text/x-msmsgsinvite": "control",
    "text/x-msmsgsprofile": "control",
    "text/x-msmsgsinitialemailnotification": "control",
    "text/x-msmsgsemailnotification": "control",
    "text/x-msmsgsactivemailnotification": "control",
    "text/x-msmsgsinitialmdatanotification": "control",
    "text/x-msmsgsoimnotification": "control",
    "text/x-msmsgssystemmessage": "control",
    "application/x-msmsgssystemmessage": "control",
}
DATACASTS = {"1": "nudge", "2": "wink", "3": "voice"}
_CONTENT_TYPE = re.compile(r"([A-Za-z0-9][\w.+-]{0,63}/[\w.+-]{1,63})[ \t]*(?:;|\Z)", re.ASCII)
_HEAD_END = re.compile(rb"\n\r?\n")
_USUAL = 512  # bytes of a header that may be remembered: people say much under the same few


class Mime(NamedTuple):
    """fields: header, names in lower case. size: bytes of the body as announced."""

    content_type: str
    kind: str
    fields: dict[str, str]
    body: bytes
    size: int


def fields_of(block: bytes, limit: int = 64) -> dict[str, str]:
    """`Name: value` lines as a dict, names in lower case; other lines are passed over."""
    fields: dict[str, str] = {}
    for line in block.split(b"\n", limit)[:limit]:
        name, colon, value = line.partition(b":")
        if colon:
            key = str(name.strip(), "utf-8", "backslashreplace").lower()
            fields.setdefault(key, str(value.strip(), "utf-8", "backslashreplace"))
    return fields


def content_type_of(value: str) -> str:
    """Type and subtype of a Content-Type, or "unknown" where it names none."""
    found = _CONTENT_TYPE.match(value)
    return found[1].lower() if found else "unknown"


class _Head(NamedTuple):
    content_type: str
    kind: str
    fields: dict[str, str]  # shared by all messages with this header: never changed


def _head_of(head: bytes) -> _Head:
    fields = fields_of(head)
    content_type = content_type_of(fields.get("content-type", ""))
    kind = KINDS.get(content_type, "other")
    if kind == "typing" and "typinguser" not in fields:
        kind = "control"  # RecordingUser: a voice clip is made, and may or may not be sent
    return _Head(content_type, kind, fields)


_usual_head_of = lru_cache(maxsize=1024)(_head_of)


def parse_mime(payload: bytes, announced: int) -> Mime:
    """The parts of a message. announced: its length, of which `payload` may be only a part."""
    found = _HEAD_END.search(payload, 0, HEAD)
    end, used = found.span() if found else (len(payload), len(payload))
    head, body = payload[:end].removesuffix(b"\r"), payload[used:]
    content_type, kind, fields = (_usual_head_of if end <= _USUAL else _head_of)(head)
    if content_type == "text/x-msnmsgr-datacast":
        kind = DATACASTS.get(fields_of(body[:1024], 8).get("id", ""), "datacast")
    return Mime(content_type, kind, fields, body, max(0, announced - used))


def shown_text(body: bytes) -> str | None:
    """A body as text, or None where it is empty or nothing but ends of lines."""
    return str(body, "utf-8", "backslashreplace") if body.strip(b"\r\n") else None
