"""What of an HTTP head is a credential.

Whole fields go by their name; parameters of targets and of other fields by theirs, so a token is
found in a query, a path parameter, a fragment, a Referer, or a URL within a parameter. In doubt a
value is redacted: too much costs a reader a word, too little costs a user an account.
"""

import re
from functools import lru_cache
from urllib.parse import unquote

from streamtap.protocols._redact import redact

# `author` and `authority` are no credentials, `authorization` is one.
_AUTH = r"auth(?!or(?!i[sz]))"
_FIELD = re.compile(
    rf"{_AUTH}|cookie|token|secret|passw|credential|session|api-?key|-key\Z|signature|ticket"
    r"|csrf|xsrf|jwt|assertion"
)
_PARAMETER = re.compile(
    rf"{_AUTH}|token|secret|pass(?:w|phrase|code|\Z)|pwd|signature|session|sess_?id|credential"
    r"|ticket|jwt|bearer|cookie|csrf|xsrf|saml|assertion"
    r"|(?:api|access|private|account|subscription|licen[cs]e)[_-]?key"
    r"|(?<![a-z0-9])(?:key|sig|sid|pass|pin|otp|hmac|nonce|digest)(?![a-z0-9])"
    r"|\A(?:(?:device|user|verification|login|otp|mfa|2fa|invite|access)[_-]?)?code\Z"
)
# A credential under a name nobody knows is still told by its scheme (RFC 9110 §11).
_SCHEME = re.compile(r"(?:basic|bearer|digest|negotiate|ntlm|passport1\.4)[ \t]+\S", re.IGNORECASE)
_USER_INFO = re.compile(r"//([^/?#\s]+)@")
# Names of parameters: in a URL from a delimiter to "="; in other fields also after a blank or ",",
# and blanks may stand around the "=".
_URL_NAME = re.compile(r"(?<![^?&;#/])([^?&;#/=\s]++)=")
_FIELD_NAME = re.compile(r"(?<![^\s&;,\"'])([^\s&;,\"'=]++)[ \t]*+=[ \t]*+[\"']?")
_QUERY_END = re.compile(r"[&#]|$")
_PATH_END = re.compile(r"[/?#]|$")
_FIELD_END = re.compile(r"[\s&;\"']|$")


@lru_cache(maxsize=1024)
def is_credential_field(name: str) -> bool:
    """Is a field of that name (lower case) a credential as a whole?"""
    # These list names of fields (CORS): they hold none.
    return not name.startswith("access-control-") and _FIELD.search(name) is not None


def is_credential_parameter(name: str) -> bool:
    """Is the value of a parameter of that name, percent-encoded or not, a credential?"""
    return _PARAMETER.search(unquote(name).lower()) is not None


def clean_field(name: str, value: str) -> str:
    """The value of a field without credentials; `name` is lower case."""
    if not value:
        return value
    if is_credential_field(name) or _SCHEME.match(value):
        return redact(value)
    if "://" in value or value[0] == "/":
        return clean_url(value)
    if "=" in value:
        return _clean_parameters(value, _FIELD_NAME, _FIELD_END, _FIELD_END)
    return value


def clean_url(text: str) -> str:
    """A target, or a field that holds a URL, without user information and credentials."""
    if "@" in text:
        text = _USER_INFO.sub(lambda found: f"//{redact(found[1])}@", text)
    if "=" in text:
        text = _clean_parameters(text, _URL_NAME, _PATH_END, _QUERY_END)
    return text


def clean_authority(text: str) -> str:
    """`user:password@host:port` without what is before the host."""
    user_info, at, host = text.rpartition("@")
    return f"{redact(user_info)}@{host}" if at else text


def _clean_parameters(
    text: str, names: re.Pattern[str], in_path: re.Pattern[str], in_query: re.Pattern[str]
) -> str:
    query = text.find("?")
    if query < 0:
        query = text.find("#") if "#" in text else len(text)
    parts: list[str] = []
    done = 0
    looked_into = 0  # a value is decoded once, not again for each name that it holds
    for found in names.finditer(text):
        if found.start() < done:
            continue  # inside a value that is redacted already
        start = found.end()
        credential = is_credential_parameter(found[1])
        if not credential and start < looked_into:
            continue
        end_of = in_query if found.start() > query else in_path
        end = end_of.search(text, start)
        stop = end.start() if end else len(text)
        if not credential:
            credential = _holds_credential(text[start:stop])
            looked_into = stop
        if credential and stop > start:
            parts += text[done:start], redact(text[start:stop])
            done = stop
    return "".join(parts) + text[done:] if parts else text


def _holds_credential(value: str) -> bool:
    # A URL within a parameter, encoded once or twice.
    if "%" not in value:
        return False
    inner = unquote(unquote(value))
    return bool(_USER_INFO.search(inner)) or any(
        is_credential_parameter(found[1]) for found in _URL_NAME.finditer(inner)
    )
