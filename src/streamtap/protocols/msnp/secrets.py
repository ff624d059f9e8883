"""Credentials of MSNP, replaced before an event exists.

What is kept is named; in a command that carries credentials everything else is replaced.
"""

import re
from collections.abc import Callable

from streamtap.model import Direction
from streamtap.protocols._redact import redact
from streamtap.protocols.msnp.commands import ERRORS, METHODS, is_number, is_session

Redactor = Callable[[list[str]], list[str]]

_POLICY = re.compile(r"MBI_[A-Z_]{3,16}")  # what a server asks to be signed; not secret
_PLACE = re.compile(r"[\w.-]{1,255}:[0-9]{1,5}|[A-Z0-9]")  # host:port, or a flag
# An account and its endpoint, and nothing that may be a cookie behind a separator gone wrong.
_ACCOUNT = re.compile(r"[^\0-\x20\x7f\\@;]+@[^\0-\x20\x7f\\@;]+(?:;\{[^\0-\x20\x7f\\{}]{0,64}\})?")
_CONTROL = re.compile(r"[\0-\x1f\x7f]")
_ADDRESS = re.compile(r"([a-z]{1,8}://)?(?:([^/?#;@]*)@)?([^?#;]*[?#;]?)(.*)")


def _hide(args: list[str], start: int) -> list[str]:
    return args[:start] + [redact(arg) for arg in args[start:]]


def _usr(args: list[str]) -> list[str]:
    if args[1:2] == ["OK"]:
        return _hide(args, 6)  # account, name, two flags
    if len(args) > 2 and args[1] in METHODS and args[2] in ("I", "S", "A"):
        shown = _ACCOUNT if args[2] == "I" else _POLICY if args[1] == "SSO" else None
        told = shown is not None and len(args) > 3 and shown.fullmatch(args[3])
        if (
            args[1:3] == ["CTP", "I"] and len(args) < 5
        ):  # the password stands where the account does
            told = None
        return _hide(args, 4 if told else 3)
    return _hide(args, _behind_account(args))  # switchboard: account, cookie


def _behind_account(args: list[str]) -> int:
    """Where what follows the account of a switchboard's user begins; where nothing does, account
    and cookie are one word."""
    return 2 if len(args) > 2 and _ACCOUNT.fullmatch(args[1]) else 1


def _after_cki(args: list[str], plain: int) -> list[str]:
    """The argument after CKI is the cookie; where CKI is missing nothing past `plain` is shown."""
    if "CKI" not in args:
        return _hide(args, plain)
    at = args.index("CKI") + 1
    end = next((end for end, arg in enumerate(args[at:], at + 1) if arg), at)
    return args[:at] + [redact(arg) for arg in args[at:end]] + args[end:]


def _xfr(args: list[str]) -> list[str]:
    if args[1:2] != ["NS"]:
        return _after_cki(args, 3)
    # Two flags, or a flag and the address just left, then (MSNP21) the hop token.
    told = [arg if _PLACE.fullmatch(arg) else redact(arg) for arg in args[3:5]]
    return [*args[:3], *told, *_hide(args[5:], 0)]


def _rng(args: list[str]) -> list[str]:
    return _after_cki(args, 2)


def _ans(args: list[str]) -> list[str]:
    keep = _behind_account(args)
    if len(args) == 4 and keep == 2 and is_session(args[3]):
        return [*_hide(args[:3], keep), args[3]]  # the session id is no secret
    return args if args[1:] == ["OK"] else _hide(args, keep)


def _cvr(args: list[str]) -> list[str]:
    # Eight words, account, token; a word may be missing.
    account = next((at for at, arg in enumerate(args[6:], 7) if _ACCOUNT.fullmatch(arg)), 8)
    return _hide(args, account)


def _signal(args: list[str]) -> list[str]:
    """Account, type and length; more where the line does not end where its payload begins."""
    most = 4 if args and is_number(args[0]) else 3
    end = next((at for at, arg in enumerate(args) if _CONTROL.search(arg)), most)
    return _hide(args, min(end, most))


def _url(args: list[str]) -> list[str]:
    return _hide([_ADDRESS.sub(_address, arg) for arg in args], 3)


def _address(found: re.Match[str]) -> str:
    scheme, user, path, rest = found.groups("")
    return scheme + (f"{redact(user)}@" if user else "") + path + (redact(rest) if rest else "")


def _challenge(args: list[str]) -> list[str]:
    return _hide(args, 1)


def _answer(args: list[str]) -> list[str]:
    return _hide(args, 2)  # transaction, product; the answer itself is a payload


def _rest(args: list[str]) -> list[str]:
    return _hide(args, 0)


def _error(args: list[str]) -> list[str]:
    return [arg if is_number(arg) else redact(arg) for arg in args]


# Verb -> arguments (transaction id included) with credentials replaced. The same both ways: which
# end is the server may be a guess, and a wrong one must not show a cookie.
_REDACTORS: dict[str, Redactor] = {
    "USR": _usr,
    "ANS": _ans,
    "CVR": _cvr,
    "CVQ": _cvr,
    "XFR": _xfr,
    "RNG": _rng,
    "CHL": _challenge,
    "QRY": _answer,
    "URL": _url,
    "UUN": _signal,
    "UBN": _signal,
    **dict.fromkeys(ERRORS, _error),
    **dict.fromkeys((*METHODS, "CKI"), _rest),  # no verbs: what is left of a line after a loss
}
# What the first argument is, where it is no number.
_FIRST: dict[str, Callable[[str], object]] = {"RNG": is_session, "UBN": _ACCOUNT.fullmatch}
ARGUMENTS: tuple[dict[str, Redactor], dict[str, Redactor]] = (_REDACTORS, _REDACTORS)

# Header or body fields whose values are credentials, wherever in a payload they stand; a value may
# go on in lines that begin with a blank.
_FIELDS = re.compile(
    rb"(?im)^([ \t]*(?:MSPAuth|sid|kv|RouteInfo|AuthCookie|(?:Hashed-)?Nonce|ecnoN(?:-dehsaH)?"
    rb"|Proxy-Authorization|Authorization|Cookie|Set-Cookie|Ticket-Token|TURN[\w-]{0,32}"
    rb"|[\w-]*(?:Ticket|Password|Username))[ \t]*:[ \t]*)([^\r\n]*(?:\r?\n[ \t]+[^\r\n]+)*)"
)
# Addresses in mail notifications carry sign-in tokens behind the question mark.
_QUERIES = re.compile(rb"(?im)^([ \t]*[\w-]*URL[ \t]*:[^?#\r\n]*[?#])([^\r\n]+)")
_GUID = re.compile(rb"\s*\{[0-9A-Fa-f-]{36}\}\s*\Z")
_MAIL = re.compile(rb"(?i)-url[ \t]*:")
# Elements and attributes of XML, by a part of their name; the end may have been lost.
_NAMES = (b"ticket", b"passw", b"token", b"secret", b"cookie", b"nonce", b"authori", b"mspauth")
_NAMED = rb"[\w:.-]{0,32}(?:%b)[\w:.-]{0,32}" % b"|".join(_NAMES)
_ELEMENTS = re.compile(rb"(?i)(<" + _NAMED + rb"(?:\s[^<>]{0,256})?>)([^<]+)")
_ATTRIBUTES = re.compile(rb"(?i)((?<![\w:.-])" + _NAMED + rb"\s?=\s?)(\"[^\"<]+|'[^'<]+)")
_SIGNAL = re.compile(rb"(?im)^Message-Type:[ \t]*Signal/Turn[ \t]*\r?$")

# Payloads that are nothing but a credential; UUN type 10 sets up a relay with user and password.
_WHOLE = frozenset({"QRY"})
# What people write to each other is shown as it is.
_WRITTEN = frozenset({"MSG", "SDG", "UUM", "UBM", "PAG", "PGD"})


def redact_value(value: bytes) -> str:
    """A field's value as its hash; GUIDs compare without regard to case."""
    text = value.strip().decode("utf-8", "backslashreplace")
    return redact(text.upper() if _GUID.match(value) else text)


def _field(found: re.Match[bytes]) -> bytes:
    return found[1] + redact_value(found[2]).encode() if found[2] else found[0]


def _attribute(found: re.Match[bytes]) -> bytes:
    return found[1] + found[2][:1] + redact_value(found[2][1:]).encode()


def redact_payload(verb: str, args: list[str], payload: bytes) -> bytes:
    """A payload with its credentials replaced. `args` as in the command, without the length."""
    if verb in _WHOLE or (verb in ("UUN", "UBN") and args and args[-1] == "10"):
        return redact(payload.decode("latin-1")).encode()
    if verb == "SDG" and (found := _SIGNAL.search(payload)):  # the same, in a routed message
        body = payload.find(b"\r\n\r\n", found.end()) + 4
        secret = payload[body:] if body > 3 else payload[found.end() :]
        return payload[: len(payload) - len(secret)] + redact(secret.decode("latin-1")).encode()
    if b"<" in payload and (verb not in _WRITTEN or args[:1] == ["Hotmail"]):
        lower = payload.lower()
        if any(name in lower for name in _NAMES):  # seldom, and found a hundred times faster
            payload = _ELEMENTS.sub(_field, payload)
            payload = _ATTRIBUTES.sub(_attribute, payload)
    if b":" not in payload:
        return payload
    payload = _FIELDS.sub(_field, payload)
    return _QUERIES.sub(_field, payload) if _MAIL.search(payload) else payload


def redact_arguments(direction: Direction, verb: str, args: list[str]) -> list[str]:
    """Arguments with the credentials of `verb` replaced; the count stays."""
    if verb == "MSNFTP":  # USR of a direct transfer: account, cookie
        return _hide(args, 1 if args and "@" in args[0] else 0)
    redactor = ARGUMENTS[direction].get(verb)
    if redactor is None:
        return args
    known = _FIRST.get(verb, is_number)
    if args and not known(args[0]):  # no form that we know: nothing in it is known to be safe
        return _hide(args, 0)
    return redactor(args)
