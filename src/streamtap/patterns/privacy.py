"""What each content level lets through: the last step before a record.

FULL shows what was said. META shows who and how much, not what. NONE shows neither: accounts, names
and files become short keyed hashes, equal for equal names under one key. Credentials are marks
already when they come here, and lose even their hash.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b

from msgspec.structs import replace

from streamtap.events import Body
from streamtap.model import Content
from streamtap.patterns.model import (
    Contacts,
    Data,
    Direct,
    File,
    Invite,
    Join,
    Leave,
    Media,
    Message,
    Presence,
    SignIn,
    SignOut,
)
from streamtap.protocols._redact import without_hashes
from streamtap.protocols.http import HttpRequest, HttpResponse
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket, Slp
from streamtap.protocols.msnp.commands import FORMS

HIDDEN = "@hidden"
META = Content.META  # looking up an enum's member is slow, and each message asks

# Words of MSNP lines that name no person; anything else is hidden at NONE.
_SAFE = re.compile(
    r"MSNP\d+|CVR0|OK|MD5|TWN|SSO|CTP|SHA|I|S|A|U|N|D|SB|NS|CKI|RINGING|FL|AL|BL|RL|PL|NLN|BSY|IDL"
    r"|AWY|BRB|PHN|LUN|HDN|FLN|OTH|SSD|MIG|TOU|PUT|DEL|Hotmail|MSNFTP|MSNMSGR|winnt|i386|redacted"
    r"|\d{1,4}|0x[0-9a-f]{4}|\d{1,3}(?:\.\d{1,3}){3}:\d{1,5}"
)
_VERBS = frozenset(FORMS[0]) | frozenset(FORMS[1]) | {"FIL", "TFR", "CCL"}  # the last: MSNFTP
_TARGET_FIELDS = frozenset({"referer", "location", "content-location", "link", "refresh"})
# Fields of an HTTP head that say what is carried and how, not who asks for what.
_PLAIN_FIELDS = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-ranges",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "host",
        "keep-alive",
        "server",
        "te",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "vary",
    }
)


@lru_cache(maxsize=4096)
def _hash(text: str, key: bytes) -> str:
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=4, key=key).hexdigest()


def _account(text: str, key: bytes) -> str:
    return f"account-{_hash(text.lower(), key)}{HIDDEN}"


def _accounts(texts: tuple[str, ...], key: bytes) -> tuple[str, ...]:
    return tuple(_account(text, key) for text in texts)


def _maybe(text: str | None, key: bytes) -> str | None:
    return _account(text, key) if text else text


def _name(text: str | None, key: bytes) -> str | None:
    return f"name-{_hash(text, key)}" if text else text


def _file_name(text: str | None, key: bytes) -> str | None:
    return f"file-{_hash(text, key)}" if text else text


def _word(text: str, key: bytes) -> str:
    if _SAFE.fullmatch(text):
        return text
    if "@" in text:
        # The same hash as in patterns: without list mark, network number and endpoint.
        bare = text.removeprefix("N=").partition(";")[0]
        head, colon, tail = bare.partition(":")
        return _account(tail if colon and head.isdecimal() else bare, key)
    return f"hidden-{_hash(text, key)}"


# -- patterns


def _message(body: Message, content: Content, key: bytes) -> Body:
    if content is META:
        return replace(body, content=None) if body.content is not None else body
    return replace(
        body,
        content=None,
        sender=_maybe(body.sender, key),
        recipients=_accounts(body.recipients, key),
    )


def _data(body: Data, content: Content, key: bytes) -> Body:
    summary = without_hashes(body.summary) if body.summary else body.summary
    if summary and body.protocol == "http":
        first, _, rest = summary.partition(" ")
        if not first.isdecimal():  # a request: method and target
            shown = _target(rest, content, key)
            summary = f"{first} {shown}"
    return replace(body, summary=summary, content=None, content_base64=None)


def _hide_account(body: SignOut, content: Content, key: bytes) -> Body:
    return replace(body, account=_maybe(body.account, key))


def _hide_named(body: SignIn, content: Content, key: bytes) -> Body:
    return replace(
        body, account=_account(body.account, key), display_name=_name(body.display_name, key)
    )


def _presence(body: Presence, content: Content, key: bytes) -> Body:
    if content is Content.META:
        return replace(body, personal_message=None) if body.personal_message else body
    return replace(
        body,
        account=_account(body.account, key),
        display_name=_name(body.display_name, key),
        personal_message=None,
    )


def _hide_contacts(body: Contacts, content: Content, key: bytes) -> Body:
    return replace(body, account=_maybe(body.account, key), contact=_maybe(body.contact, key))


def _hide_invite(body: Invite, content: Content, key: bytes) -> Body:
    return replace(body, account=_account(body.account, key), by=_maybe(body.by, key))


def _hide_member(body: Join | Leave, content: Content, key: bytes) -> Body:
    return replace(
        body,
        account=_account(body.account, key),
        participants=_accounts(body.participants, key),
    )


def _hide_file(body: File, content: Content, key: bytes) -> Body:
    return replace(
        body,
        sender=_maybe(body.sender, key),
        recipients=_accounts(body.recipients, key),
        name=_file_name(body.name, key),
    )


def _hide_media(body: Media, content: Content, key: bytes) -> Body:
    return replace(
        body, sender=_maybe(body.sender, key), recipients=_accounts(body.recipients, key)
    )


def _hide_direct(body: Direct, content: Content, key: bytes) -> Body:
    return replace(body, account=_maybe(body.account, key))


# -- protocol events


def _command(body: MsnpCommand, content: Content, key: bytes) -> Body:
    args = tuple(map(without_hashes, body.args))
    if content is not Content.FULL and body.verb not in _VERBS:
        # What looks like one may be text behind a message that was longer than it said.
        args = tuple(arg if _SAFE.fullmatch(arg) else "hidden" for arg in args)
        return replace(body, args=args, payload=b"")
    if content is Content.FULL:
        payload = body.payload
        if b"redacted:" in payload:
            text = without_hashes(payload.decode("latin-1"))
            payload = text.encode("latin-1")
        return replace(body, args=args, payload=payload)
    if content is Content.NONE:
        args = tuple(_word(arg, key) for arg in args)
    return replace(body, args=args, payload=b"")


def _packet(body: MsnpPacket, content: Content, key: bytes) -> Body:
    slp = body.slp
    if slp is not None:
        fields = {name: without_hashes(value) for name, value in slp.fields.items()}
        slp = replace(slp, fields=fields)
    if content is not Content.NONE:
        return replace(body, slp=slp)
    if slp is not None:
        slp = Slp(
            method=slp.method,
            code=slp.code,
            to=_maybe(slp.to, key) or "",
            by=_maybe(slp.by, key) or "",
            content_type=slp.content_type,
            name=_file_name(slp.name, key),
            size=slp.size,
            object_type=slp.object_type,
        )
    return replace(
        body, sender=_maybe(body.sender, key), recipient=_maybe(body.recipient, key), slp=slp
    )


def _direct(body: MsnpDirect, content: Content, key: bytes) -> Body:
    nonce = "redacted" if body.nonce else None
    return replace(body, nonce=nonce, hashed_nonce=nonce)


def _target(text: str, content: Content, key: bytes) -> str:
    """A request's target: below FULL without the values of its query, at NONE without path.

    The hash is that of the path alone, for after META the query is no more what it was.
    """
    text = without_hashes(text)
    if content is Content.FULL:
        return text
    path, mark, query = text.partition("?")
    path = path.partition("#")[0]
    if content is Content.NONE:
        return f"/hidden-{_hash(path, key)}" if len(path) > 1 or mark else path
    if not mark:
        return path
    names = [part.partition("=") for part in re.split("[&;]", query.partition("#")[0])]
    # A part without "=" is a value as well as a name.
    return f"{path}?{'&'.join(name for name, equals, _ in names if equals and name)}"


def _headers(
    headers: tuple[tuple[str, str], ...], content: Content, key: bytes
) -> tuple[tuple[str, str], ...]:
    shown = []
    for name, value in headers:
        value = without_hashes(value)
        known = name.lower()
        if content is not Content.FULL and known in _TARGET_FIELDS:
            value = _target(value, content, key)
        elif content is Content.NONE and known not in _PLAIN_FIELDS:
            value = f"hidden-{_hash(value, key)}"
        shown.append((name, value))
    return tuple(shown)


def _request(body: HttpRequest, content: Content, key: bytes) -> Body:
    return replace(
        body,
        target=_target(body.target, content, key),
        headers=_headers(body.headers, content, key),
    )


def _response(body: HttpResponse, content: Content, key: bytes) -> Body:
    return replace(body, headers=_headers(body.headers, content, key))


def _marks(body: Data, content: Content, key: bytes) -> Body:
    if body.summary and "redacted:" in body.summary:
        return replace(body, summary=without_hashes(body.summary))
    return body


_Cleaner = Callable[..., Body]
_ALWAYS: dict[type[Body], _Cleaner] = {
    MsnpCommand: _command,
    MsnpPacket: _packet,
    MsnpDirect: _direct,
    HttpRequest: _request,
    HttpResponse: _response,
}
# By content level: what has to be done to which type; other types pass as they are.
_CLEANERS: tuple[dict[type[Body], _Cleaner], ...] = (
    _ALWAYS
    | {
        Message: _message,
        Data: _data,
        SignIn: _hide_named,
        Presence: _presence,
        SignOut: _hide_account,
        Contacts: _hide_contacts,
        Invite: _hide_invite,
        Join: _hide_member,
        Leave: _hide_member,
        File: _hide_file,
        Media: _hide_media,
        Direct: _hide_direct,
    },
    _ALWAYS | {Message: _message, Data: _data, Presence: _presence},
    _ALWAYS | {Data: _marks},
)


def clean(body: Body, content: Content, key: bytes) -> Body:
    """`body` with only what `content` lets a record tell.

    Cleaning for a lower level what was cleaned for a higher one gives what cleaning for the lower
    one at once gives, so that one record can be told to several at their own levels.
    key: up to 64 bytes; hashes are equal for equal names under one key.
    """
    cleaner = _CLEANERS[content].get(type(body))
    return body if cleaner is None else cleaner(body, content, key)
