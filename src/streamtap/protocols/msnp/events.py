"""What the MSNP parser gives: commands, peer-to-peer packets and steps of direct connections."""

import msgspec

from streamtap.events import Event


class MsnpCommand(Event, frozen=True, kw_only=True, tag="msnp.command"):
    """One command line, with its payload where it carries one.

    verb: three letters, or the three digits of an error.
    transaction: the transaction id; None where the form has none.
    args: the rest, without payload length, split at spaces and still percent-encoded. Credentials
        are replaced by `redacted`, and below `full` the words of a verb that is not known by
        `hidden`.
    payload_length: bytes announced. `payload` holds them, with credentials replaced, or only the
        MIME header where a `MsnpPacket` follows that stands for the body.
    missing: announced bytes behind the first that was lost; `payload` ends there. Those of them
        that did come are skipped.
    """

    verb: str
    transaction: int | None
    args: tuple[str, ...]
    payload_length: int
    payload: bytes = b""
    missing: int = 0


class Slp(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One MSNSLP message: a request (`method`) or an answer (`code`).

    to, by: accounts, without endpoint.
    content_type: without the common prefix: sessionreqbody, transrespbody…
    fields: the body's fields, names in lower case, without Context; credentials replaced.
    name, size: of a file offer, from its Context; object_type: of an MSNObject request.
    """

    method: str | None = None
    code: int | None = None
    to: str = ""
    by: str = ""
    branch: str = ""
    call_id: str = ""
    content_type: str = ""
    fields: dict[str, str] = {}
    name: str | None = None
    size: int | None = None
    object_type: int | None = None


class MsnpPacket(Event, frozen=True, kw_only=True, tag="msnp.p2p"):
    """One peer-to-peer packet, from a switchboard message or a direct connection.

    sender, recipient: accounts, where the packet came with them.
    version: 1 or 2, of the packet format. session: 0 for MSNSLP text.
    message, position, total, size: which message (v2: package number), where in it, how long the
        message is (v2: only as far as known), and the bytes of data in this packet.
    slp: the MSNSLP message that this packet completes.
    """

    sender: str | None
    recipient: str | None
    version: int
    session: int
    message: int
    position: int
    total: int
    size: int
    flags: int
    application: int | None = None
    slp: Slp | None = None


class MsnpDirect(Event, frozen=True, kw_only=True, tag="msnp.direct"):
    """A step of a direct connection between two clients that is neither line nor packet.

    transport: p2p, msnftp or webcam.
    step: open, nonce, block (data of a file), end, keepalive or data (bytes not looked into).
    size: bytes of data. nonce, hashed_nonce: keyed hashes that tie the connection to its offer.
    """

    transport: str
    step: str
    size: int = 0
    nonce: str | None = None
    hashed_nonce: str | None = None


class MsnpPrelude(Event, frozen=True, kw_only=True, tag="msnp.prelude"):
    """A unit of SOCKS before the first byte of MSNP; names and passwords in it are not told.

    proxy: socks4 or socks5. step: greeting, login, connect or answer.
    target: host:port that the proxy is asked to connect to.
    """

    proxy: str
    step: str
    target: str | None = None
