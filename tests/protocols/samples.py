"""Sample conversations by parser: what every parser's tests cut, mutate and lose parts of.

A script is what crossed the wire, in order. Each parser has at least one; the properties in
`test_every_parser.py` are drawn from them.
"""

from collections.abc import Mapping
from struct import pack

from helpers.streams import Script
from streamtap.model import Direction

C = Direction.TO_SERVER
S = Direction.TO_CLIENT


def lines(*parts: str) -> bytes:
    """The parts as lines that end in CR LF."""
    return "".join(f"{part}\r\n" for part in parts).encode()


OPAQUE: tuple[Script, ...] = (
    ((C, b"\x16\x03\x01\x00\x05hello"), (S, b"\x16\x03\x03" + bytes(300)), (C, bytes(range(256)))),
    ((S, b"220 mail.example.com ESMTP\r\n"), (C, b"EHLO me\r\n"), (S, b"250 ok\r\n")),
)

HTTP: tuple[Script, ...] = (
    (  # keep-alive, a HEAD, bodies of a known length
        (C, lines("GET /a?x=1 HTTP/1.1", "Host: example.com", "Accept: */*", "")),
        (S, lines("HTTP/1.1 200 OK", "Content-Type: text/plain", "Content-Length: 11", "")),
        (S, b"hello world"),
        (C, lines("HEAD /a HTTP/1.1", "Host: example.com", "")),
        (S, lines("HTTP/1.1 200 OK", "Content-Length: 11", "")),
        (
            C,
            lines("POST /form HTTP/1.1", "Host: example.com", "Content-Length: 7", "") + b"a=1&b=2",
        ),
        (S, lines("HTTP/1.1 100 Continue", "", "HTTP/1.1 204 No Content", "")),
        (C, lines("GET /gone HTTP/1.1", "Host: example.com", "")),
        (S, lines("HTTP/1.1 304 Not Modified", "Content-Length: 11", "")),
    ),
    (  # pipelined requests, chunks with an extension and a trailer, a body until the end
        (C, lines("GET /1 HTTP/1.1", "Host: h", "", "", "GET /2 HTTP/1.0", "Cookie: secret=1", "")),
        (S, lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "5;a=b", "hello")),
        (S, lines("1f", "GET /inside HTTP/1.1 of a body\n", "0", "X-Sum: 1", "")),
        (S, lines("HTTP/1.0 200 OK", "") + b"until the end of the stream\r\n\r\nHTTP/1.1 200 OK"),
    ),
    (  # an upgrade, and line ends of LF alone
        (C, b"GET /chat HTTP/1.1\nHost: h\nUpgrade: websocket\nConnection: Upgrade\n\n"),
        (S, b"HTTP/1.1 101 Switching Protocols\nUpgrade: websocket\n\n\x81\x02hi"),
        (C, b"\x81\x82\x00\x00\x00\x00hi"),
        (S, b"\x88\x00"),
    ),
    (  # CONNECT, refused and taken
        (C, lines("CONNECT host:443 HTTP/1.1", "Host: host:443", "")),
        (S, lines("HTTP/1.1 407 Proxy Authentication Required", "Content-Length: 3", "") + b"no!"),
        (C, lines("CONNECT host:443 HTTP/1.1", "Proxy-Authorization: Basic c2VjcmV0", "")),
        (S, lines("HTTP/1.1 200 Connection established", "")),
        (C, b"\x16\x03\x01 tls"),
        (S, b"\x16\x03\x03 tls"),
    ),
    (  # faults: contradicting lengths, a bad chunk, a line that is none
        (C, lines("POST / HTTP/1.1", "Content-Length: 3", "Content-Length: 4", "") + b"abcd"),
        (C, lines("POST / HTTP/1.1", "Content-Length: 3", "Transfer-Encoding: chunked", "")),
        (C, lines("2", "ok", "xyz", "not HTTP at all", "GET /found HTTP/1.1", "Host: h", "")),
        (
            S,
            lines(
                "garbage", "HTTP/1.1 200 OK", "no colon here", " folded", "Content-Length : 2", ""
            ),
        ),
        (S, b"ok" + lines("HTTP/1.1 500 Oh", "A: 1", " 2", "Content-Length: nine", "")),
    ),
)


def counted(line: str, *payload: str, tail: bytes = b"") -> bytes:
    """A command with its payload, whose lines are joined by CR LF; its length is added."""
    data = "\r\n".join(payload).encode() + tail
    return f"{line} {len(data)}\r\n".encode() + data


TEXT = ("MIME-Version: 1.0", "Content-Type: text/plain; charset=UTF-8", "")
FORMATTED = ("X-MMS-IM-Format: FN=Arial", "Content-Type: text/plain", "MIME-Version: 1.0", "")
P2P = ("MIME-Version: 1.0", "Content-Type: application/x-msnmsgrp2p", "P2P-Dest: a@example.com")
SLP = (
    b"INVITE MSNMSGR:a@example.com MSNSLP/1.0\r\nTo: <msnmsgr:a@example.com>\r\n"
    b"From: <msnmsgr:b@example.com>\r\nVia: MSNSLP/1.0/TLP ;branch={1}\r\nCall-ID: {2}\r\n"
    b"Content-Type: application/x-msnmsgr-transrespbody\r\n\r\nNonce: {3}\r\n\r\n\0"
)


def packet(session: int, data: bytes, total: int, position: int = 0, flags: int = 0) -> bytes:
    """A peer-to-peer packet of version 1, without footer."""
    return pack("<IIQQIIIIQ", session, 7, position, total, len(data), flags, 9, 0, 0) + data


def frame(data: bytes) -> bytes:
    """A frame of a direct connection."""
    return len(data).to_bytes(4, "little") + data


ROUTED = (
    *("Routing: 1.0", "To: 1:b@example.com", "From: 1:a@example.com;epid={1}", ""),
    *("Reliability: 1.0", "", "Messaging: 2.0"),
)
DATA = ("Message-Type: Data", "Content-Type: application/x-msnmsgrp2p", "Pipe: 1")


def second(data: bytes, session: int = 0) -> bytes:
    """A peer-to-peer packet of version 2, without footer; without data an acknowledgement."""
    if not data:
        return pack(">BBHIBBI2x", 16, 0, 0, 7, 2, 4, 9)
    return pack(">BBHIBBHI", 8, 0, 8 + len(data), 7, 8, 5 if session else 1, 0, session) + data


MSNP: tuple[Script, ...] = (
    (  # a notification server: payloads in both directions, errors with and without one
        (C, lines("VER 1 MSNP15 CVR0", "CVR 2 0x0409 winnt 5.1 i386 MSNMSGR 8.1 msmsgs a@example")),
        (S, lines("VER 1 MSNP15")),
        (C, lines("USR 3 SSO I a@example.com")),
        (S, counted("GCF 0", "<Policies/>") + lines("USR 3 SSO S MBI_KEY_OLD bm9uY2U=")),
        (C, lines("USR 4 SSO S t=ticket&p= response")),
        (S, lines("USR 4 OK a@example.com 1 0", "SBS 0 null")),
        (S, counted("MSG Hotmail Hotmail", "MIME-Version: 1.0", "MSPAuth: x", "", "")),
        (C, counted("ADL 6", '<ml l="1"><d n="example.com"><c n="b" l="3" t="1"/></d></ml>')),
        (S, lines("ADL 6 OK", "UUX 9 0", "ILN 8 BSY b@example.com 1 B%20 198 0")),
        (S, counted("UBX b@example.com 1", "<Data><PSM>é</PSM></Data>") + lines("CHL 0 407133")),
        (C, counted("QRY 10 PROD0119GSJUC$18", "18515699913f54faea520d603dde7252")),
        (S, lines("QRY 10") + counted("241 11", "<ml/>") + lines("217 12", "OUT OTH")),
    ),
    (  # a switchboard: text, typing, a picture's negotiation in two packets
        (C, lines("USR 1 a@example.com 1.2.3")),
        (S, lines("USR 1 OK a@example.com A", "JOI b@example.com B%20B 268435456")),
        (C, counted("MSG 2 N", *TEXT, "caf\u00e9 MSG x y 5\r\nBYE b@example.com")),
        (S, counted("MSG b@example.com B", *TEXT, "nu?") + lines("ACK 2", "")),
        (
            S,
            counted(
                "MSG b@example.com B", *P2P, "", "", tail=packet(0, SLP[:99], len(SLP)) + bytes(4)
            ),
        ),
        (
            S,
            counted(
                "MSG b@example.com B",
                *P2P,
                "",
                "",
                tail=packet(0, SLP[99:], len(SLP), 99) + bytes(4),
            ),
        ),
        (S, counted("MSG b@example.com B", *P2P, "", "", tail=b"no packet")),
        (C, lines("XYZ 1", "OUT")),
        (S, lines("BYE b@example.com 1")),
    ),
    (  # garbage, and the way back
        (C, lines("ANS 1 a@example.com 1.2.3 77") + b"what is this?\r\nMSG 5 N 99999999\r\n"),
        (S, lines("ANS 1 OK") + b"end of something" + counted("MSG b@example.com B", *TEXT, "x")),
        (
            S,
            lines("JOI c@example.com C", "BYE c@example.com")
            + counted("MSG c@example.com C", *TEXT),
        ),
        (C, counted("MSG 6 N", *TEXT, "y") + lines("OUT")),
    ),
    (  # files between clients
        (C, lines("VER MSNFTP")),
        (S, lines("VER MSNFTP")),
        (C, lines("USR b@example.com 271828")),
        (S, lines("FIL 11")),
        (C, lines("TFR")),
        (S, b"\x00\x0b\x00hello world\x01\x00\x00"),
        (C, lines("BYE 16777989")),
    ),
    (  # a direct connection
        (C, b"\x04\0\0\0foo\0" + frame(packet(0, b"", 0, 0, 0x100))),
        (S, frame(packet(0, b"", 0, 0, 0x100)) + frame(b"")),
        (C, frame(packet(4711, bytes(100), 300)) + frame(packet(0, SLP, len(SLP)))),
        (S, frame(b"what is this?") + frame(packet(0, b"", 100, 0, 2))),
    ),
    (  # through a proxy: a greeting, a login, a request
        (C, b"\x05\x01\x02"),
        (S, b"\x05\x02"),
        (C, b"\x01\x04name\x06secret"),
        (S, b"\x01\0"),
        (C, b"\x05\x01\0\x03\x0bexample.com\x07\x47" + lines("VER 1 MSNP12 CVR0")),
        (S, b"\x05\0\0\x01\xc0\0\x02\x01\x07\x47" + lines("VER 1 MSNP12", "CHL 0 1")),
        (C, counted("QRY 2 p", "0" * 32) + lines("PNG")),
        (S, lines("QRY 2", "QNG 5")),
    ),
    (  # a proxy of the older kind, and a version that is too new
        (C, b"\x04\x01\x07\x47\0\0\0\x01name\0example.com\0" + lines("VER 1 MSNP22 CVR0")),
        (S, b"\0\x5a\0\0\0\0\0\0" + lines("VER 1 MSNP22", "XFR 2 CON 3") + b"abc"),
        (C, lines("CNT 2 CON 3") + b"abc"),
    ),
    (  # routed messages, some with packets of version 2
        (C, lines("VER 1 MSNP21 CVR0")),
        (S, lines("VER 1 MSNP21", "USR 5 OK a@example.com 1 0")),
        (C, counted("SDG 6", *ROUTED, "Message-Type: Text", "", "hi")),
        (C, counted("SDG 7", *ROUTED, *DATA, "", "", tail=second(b"SLP") + second(b"\r\n\r\n"))),
        (S, counted("SDG 0", *ROUTED, *DATA, "", "", tail=second(SLP) + bytes(4))),
        (S, counted("SDG 0", *ROUTED, *DATA, "", "", tail=b"\x08no packet")),
        (S, counted("NFY PUT", "Routing: 1.0", "", "", "", "<user/>") + lines("SDG 7 OK")),
    ),
    (  # a direct connection of version 2 that begins with the nonce
        (C, frame(b"0123456789abcdef")),
        (S, frame(b"fedcba9876543210")),
        (C, frame(second(bytes(50), session=9)) + frame(second(SLP))),
        (S, frame(second(b"")) + frame(b"")),
    ),
    (  # a camera
        (C, b"recipientid=1&sessionid=2\r\n\r\n"),
        (S, b"connected\r\n\r\n" + bytes(500)),
        (C, bytes(100)),
    ),
)

SAMPLES: Mapping[str, tuple[Script, ...]] = {"http": HTTP, "msnp": MSNP, "opaque": OPAQUE}
