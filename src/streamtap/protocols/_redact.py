"""Credentials become marks before an event exists.

A mark is a hash under a key that lives as long as the process: equal secrets have equal marks, so
that flows can be linked by a cookie nobody kept; nothing can be learned from a mark elsewhere.
What leaves the pipeline does not even tell equal from unequal (`without_hashes`).
"""

import re
import secrets
from hashlib import blake2b

_KEY = secrets.token_bytes(32)
_MARK = re.compile(r"redacted:[0-9a-f]{8}")
# Nothing that is left may look like a mark, or doing it twice would give something else.
_MARKS = re.compile(r"redacted(?::[0-9a-f]{8})+")


def redact(secret: str | bytes) -> str:
    """`redacted:` and 8 hexadecimal digits that stand for `secret` in this process."""
    if isinstance(secret, str):
        secret = secret.encode("utf-8", "surrogatepass")
    return f"redacted:{blake2b(secret, digest_size=4, key=_KEY).hexdigest()}"


def is_redacted(text: str) -> bool:
    """Is the whole of `text` a mark?"""
    return _MARK.fullmatch(text) is not None


def without_hashes(text: str) -> str:
    """`text` with each mark reduced to the word `redacted`."""
    return _MARKS.sub("redacted", text) if "redacted:" in text else text
