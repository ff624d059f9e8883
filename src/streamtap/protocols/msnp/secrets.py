"""Credentials of MSNP, replaced before an event exists.

What is kept is named; in a command that carries credentials everything else is replaced.
"""

import re
from collections.abc import Callable

from streamtap.model import Direction
from streamtap.protocols._redact import redact
from streamtap.protocols.msnp.commands import METHODS, is_number, is_session

Redactor = Callable[[list[str]], list[str]]


def _hide(args: list[str], start: int) -> list[str]:
    return args[:start] + [redact(arg) for arg in args[start:]]


def _usr_to_server(args: list[str]) -> list[str]:
    if len(args) > 2 and args[1] in METHODS and args[2] in ("I", "S", "A"):
        return _hide(args, 4 if args[2] == "I" else 3)
    if len(args) > 1 and "@" in args[1]:  # switchboard: account, cookie
        return _hide(args, 2)
    return _hide(args, 1)


def _usr_to_client(args: list[str]) -> list[str]:
    if len(args) > 1 and args[1] == "OK":
        return args
    if len(args) > 2 and args[1] in METHODS and args[2] in ("I", "S", "A"):
        return _hide(args, 4 if args[1] == "SSO" else 3)
    return _hide(args, 1)


def _after_cki(args: list[str], plain: int) -> list[str]:
    """The argument after CKI is the cookie; where CKI is missing nothing past `plain` is shown."""
    if "CKI" not in args:
        return _hide(args, plain)
    at = args.index("CKI") + 1
    return args[:at] + [redact(arg) for arg in args[at : at + 1]] + args[at + 1 :]


def _xfr(args: list[str]) -> list[str]:
    # NS: two flags, or a flag and the address just left, then (MSNP21) the hop token.
    return _hide(args, 5) if args[1:2] == ["NS"] else _after_cki(args, 3)


def _rng(args: list[str]) -> list[str]:
    return _after_cki(args, 2)


def _ans(args: list[str]) -> list[str]:
    keep = 2 if len(args) > 1 and "@" in args[1] else 1
    if len(args) == 4 and is_session(args[3]):
        return [*_hide(args[:3], keep), args[3]]  # the session id is no secret
    return args if args[1:] == ["OK"] else _hide(args, keep)


def _cvr(args: list[str]) -> list[str]:
    return _hide(args, 9)


def _url(args: list[str]) -> list[str]:
    shown = [arg if "?" not in arg else arg.partition("?")[0] + "?" + redact(arg) for arg in args]
    return _hide(shown, 3)


def _after_transaction(args: list[str]) -> list[str]:
    return _hide(args, 1)


# By direction: verb -> arguments (transaction id included) with credentials replaced.
ARGUMENTS: tuple[dict[str, Redactor], dict[str, Redactor]] = (
    {
        "USR": _usr_to_server,
        "ANS": _ans,
        "CVR": _cvr,
        "XFR": _xfr,
        "CHL": _after_transaction,
        "URL": _url,
    },
    {
        "USR": _usr_to_client,
        "XFR": _xfr,
        "RNG": _rng,
        "ANS": _ans,
        "CHL": _after_transaction,
        "URL": _url,
    },
)

# Header or body fields whose values are credentials, wherever in a payload they stand.
_FIELDS = re.compile(
    rb"(?im)^([ \t]*(?:MSPAuth|sid|kv|RouteInfo|AuthCookie|(?:Hashed-)?Nonce|ecnoN(?:-dehsaH)?"
    rb"|Proxy-Authorization|Authorization|Cookie|Set-Cookie|Ticket-Token"
    rb"|[\w-]*(?:Ticket|Password|Username))[ \t]*:[ \t]*)([^\r\n]+)"
)
# Addresses in mail notifications carry sign-in tokens behind the question mark.
_QUERIES = re.compile(rb"(?im)^([ \t]*[\w-]*URL[ \t]*:[^?\r\n]*\?)([^\r\n]+)")
_GUID = re.compile(rb"\s*\{[0-9A-Fa-f-]{36}\}\s*\Z")
_MAIL = re.compile(rb"(?i)-url[ \t]*:")

# Payloads that are nothing but a credential; UUN type 10 sets up a relay with user and password.
_WHOLE = frozenset({"QRY"})


def redact_value(value: bytes) -> str:
    """A field's value as its hash; GUIDs compare without regard to case."""
    text = value.strip().decode("utf-8", "backslashreplace")
    return redact(text.upper() if _GUID.match(value) else text)


def _field(found: re.Match[bytes]) -> bytes:
    return found[1] + redact_value(found[2]).encode()


def redact_payload(verb: str, args: list[str], payload: bytes) -> bytes:
    """A payload with its credentials replaced. `args` as in the command, without the length."""
    if verb in _WHOLE or (verb in ("UUN", "UBN") and args and args[-1] == "10"):
        return redact(payload.decode("latin-1")).encode()
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
    known = is_session if verb == "RNG" else is_number
    if args and not known(args[0]):  # no form that we know: nothing in it is known to be safe
        return _hide(args, 0)
    return redactor(args)
