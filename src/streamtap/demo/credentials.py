"""Stand-ins for the two secrets of a sign-in: the Passport ticket and the client challenge.

The real ticket comes from a web service over TLS, which a demo on loopback does not have. Both
ends compute it from the password and the server's policy instead, so that it is new for each
sign-in and a wrong password is refused like a wrong ticket.
"""

import hashlib
import hmac

PASSWORD = "wonderland"
PRODUCT_ID = "PROD0000DEMO{1A"
PRODUCT_KEY = "streamtap demo"


def ticket(account: str, password: str, policy: str) -> str:
    """In the form `t=…&p=…` that `USR TWN S` carries."""
    digest = hmac.new(password.encode(), f"{account} {policy}".encode(), hashlib.sha256).hexdigest()
    return f"t={digest[:40]}&p={digest[40:]}"


def challenge_answer(challenge: str) -> bytes:
    """The 32 hexadecimal digits of a QRY, by the plain rule of MSNP6 to MSNP10: later versions
    put arithmetic around the same MD5, which shows nothing more on the wire."""
    text = f"{challenge}{PRODUCT_KEY}".encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest().encode()
