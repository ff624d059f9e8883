"""The vocabulary of MSNP: accounts, statuses, lists, and the XML of its payloads."""

import re
from typing import NamedTuple
from urllib.parse import unquote

from streamtap.patterns.msnp.errors import ERRORS
from streamtap.patterns.msnp.mime import HEAD, content_type_of, fields_of
from streamtap.protocols.msnp.commands import is_number

STATUS = {
    "NLN": "online",
    "BSY": "busy",
    "IDL": "idle",
    "AWY": "away",
    "BRB": "brb",
    "PHN": "phone",
    "LUN": "lunch",
    "HDN": "invisible",
    "FLN": "offline",
}
LISTS = {"FL": "forward", "AL": "allow", "BL": "block", "RL": "reverse", "PL": "pending"}
_BITS = tuple(zip((1, 2, 4, 8, 16), LISTS.values(), strict=True))
OUT_REASONS = {
    "OTH": "signed in elsewhere",
    "SSD": "server shutting down",
    "MIG": "moved to another server",
    "TOU": "terms of use",
    "RCT": "reconnect later",
}
MESSAGE_TYPES = {
    "text": "text",
    "nudge": "nudge",
    "wink": "wink",
    "customemoticon": "emoticon",
    "control/typing": "typing",
    "control": "control",
}
ENTRIES = 32 * 1024  # of one list payload
PORT = 1863
ENDPOINT = 64  # a GUID is shorter
ACCOUNT = 320  # longest account that is told apart; RFC 3696 allows 64 + 1 + 255

_PLACE = re.compile(r"(?:[\w.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}", re.ASCII)
_NETWORK = re.compile(r"\d{1,3}:")
# Tags and attributes are bounded: no search may go over the same bytes again and again.
_TAG = re.compile(rb"<(/?)(ml|d|c|t|s|sep)\b([^<>]{0,1024})>")
_ATTRIBUTE = re.compile(rb"""\b([a-z]{1,8})=(?:"([^"]*)"|'([^']*)')""")
_STATUS = re.compile(rb"<Status>([A-Z]{3})</Status>")
_PERSONAL = re.compile(rb"<PSM>([^<]{0,8192})</PSM>")
_GROUP = re.compile(r"(?:\A|via=)(?:9|10):([^;\s]{1,320})")
_MEMBER = re.compile(r"/roster\([^)]*\)/user\(([^)]{1,400})\)")
_ROSTER = re.compile(rb"<user>\s*<id>([^<]{1,400})</id>")
_FRIENDLY = re.compile(rb"<FriendlyName>([^<]{1,2048})</FriendlyName>")
_ENTITIES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&"))


def account_of(text: str) -> str:
    """The account in any of its forms: without endpoint, path and network number, lower case."""
    if ";" in text:
        text = text.partition(";")[0]
    if ":" in text and (found := _NETWORK.match(text)):
        text = text[found.end() :]
    return text[:ACCOUNT].lower()


def group_of(text: str) -> str:
    """The circle or temporary group that an address is, or is reached through; "" for none."""
    found = _GROUP.search(text) if ":" in text else None
    return found[1].lower() if found else ""


def unquoted(name: str) -> str:
    """A friendly name; `+` is itself, and what is not UTF-8 shows as replacement characters."""
    return unquote(name) if "%" in name else name


def place_of(text: str) -> str:
    """host:port, of which the port may be missing; "" where it is neither."""
    place = text if ":" in text else f"{text}:{PORT}"
    return place if is_place(place) else ""


def is_place(text: str) -> bool:
    """Is this host:port?"""
    return _PLACE.fullmatch(text) is not None


def error_name(code: int) -> str | None:
    return ERRORS.get(code)


def lists_of_bits(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _BITS if bits & bit)


def presence_of(args: tuple[str, ...]) -> tuple[str, str, str | None] | None:
    """Account, status and name of NLN and ILN, by their shape.

    status account name …; from MSNP14 on status account network name capabilities …; in MSNP18
    status network:account name ….
    """
    if len(args) < 2 or args[0] not in STATUS:
        return None
    name = args[2] if len(args) > 2 else None
    if (
        len(args) > 4
        and not _NETWORK.match(args[1])
        and args[2] in ("1", "2", "4", "8", "9", "10", "11", "13", "14", "16", "32")
        and is_number(args[4].replace(":", "0"))
        and (len(args) > 5 or args[4] != "0")
    ):
        name = args[3]
    return account_of(args[1]), STATUS[args[0]], unquoted(name) if name else None


def _attributes(text: bytes) -> dict[bytes, str]:
    return {name: _plain(one or two) for name, one, two in _ATTRIBUTE.findall(text)}


def list_entries(payload: bytes) -> tuple[bool, list[tuple[str, int]]]:
    """`<ml>`: whether it is the initial list, and each contact with its list bits."""
    entries: list[tuple[str, int]] = []
    initial = False
    host = ""
    for closing, tag, text in _TAG.findall(payload):
        if closing or tag == b"sep":
            host = "" if tag == b"d" else host
            continue
        values = _attributes(text)
        name = values.get(b"n", "")
        if tag == b"ml":
            initial = values.get(b"l") == "1"
        elif tag == b"d":
            host = name
        elif tag == b"c" and name and len(entries) < ENTRIES:
            bits = values.get(b"l", "")
            number = int(bits) if is_number(bits) else 0
            entries.append((f"{name}@{host}".lower() if host else name.lower(), number))
        elif tag == b"s" and entries and is_number(bits := values.get(b"l", "")):
            contact, number = entries[-1]  # MSNP21: bits for each service that it is on the list of
            entries[-1] = contact, number | int(bits)
    return initial, entries


def _plain(text: bytes) -> str:
    plain = str(text, "utf-8", "backslashreplace")
    for entity, char in _ENTITIES if "&" in plain else ():
        plain = plain.replace(entity, char)
    return plain


class Routed(NamedTuple):
    """A payload with routing headers (MSNP18 … 21).

    kind: of a message, "" where it is none; signal: what kind of signal it is, or "".
    group: the circle or group that it is about, or ""; uri: what a publication is about, and
    member: the account in it that this one is about, or "". full: a notification replaces what
    was told before.
    """

    sender: str
    recipient: str
    endpoint: str
    kind: str
    content_type: str
    body: bytes
    size: int
    signal: str
    group: str
    uri: str
    member: str
    full: bool


def routed(payload: bytes, announced: int) -> Routed | None:
    """Three blocks of headers and a body, or None where there is none (an acknowledgement)."""
    blocks = payload[:HEAD].split(b"\r\n\r\n", 3)
    if len(blocks) < 3:
        return None
    routing, about = fields_of(blocks[0]), fields_of(blocks[2])
    used = sum(map(len, blocks[:3])) + 12
    kind = signal = ""
    if "messaging" in about:
        name = about.get("message-type", "").lower()
        if about.get("message-subtype"):
            name = f"{name}/{about['message-subtype'].lower()}"
        if name.startswith("signal"):
            signal = name.removeprefix("signal/")
        elif name != "data":
            kind = MESSAGE_TYPES.get(name, "other")
    sender, to = routing.get("from", ""), routing.get("to", "")
    uri = about.get("uri", "")
    member = _MEMBER.search(uri)
    return Routed(
        account_of(sender),
        account_of(to),
        sender.partition("epid=")[2].partition(";")[0][:ENDPOINT],
        kind,
        content_type_of(about.get("content-type", "")),
        payload[used:],
        max(0, announced - used),
        signal,
        group_of(to) or group_of(sender),
        uri,
        account_of(member[1]) if member else "",
        about.get("notiftype", "").lower() == "full",
    )


def roster(body: bytes) -> list[str]:
    """The accounts in the roster of `<circle>` XML."""
    return [account_of(_plain(text)) for text in _ROSTER.findall(body[:HEAD])]


def personal_message(payload: bytes) -> str | None:
    """The words that stand beside somebody's status; None where nothing is said of them."""
    found = _PERSONAL.search(payload[:HEAD])
    return _plain(found[1]) if found else None


def roster_status(body: bytes) -> tuple[str | None, str | None, str | None, set[str]]:
    """Status, name, personal message and endpoints in `<user>` XML."""
    body = body[:HEAD]
    status = _STATUS.search(body)
    name = _FRIENDLY.search(body)
    parts = [_attributes(text) for _, tag, text in _TAG.findall(body) if tag == b"sep"]
    endpoints = {part.get(b"epid", "")[:ENDPOINT] for part in parts if part.get(b"n") == "IM"} - {
        ""
    }
    return (
        STATUS.get(status[1].decode()) if status else None,
        _plain(name[1]) if name else None,
        personal_message(body),
        endpoints,
    )
