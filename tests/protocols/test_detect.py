"""Which parser a flow gets, from its first bytes."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import transcripts
from streamtap.model import Direction
from streamtap.protocols import Limits, Verdict, by_name, detect, parsers, way_of
from streamtap.protocols.http import HttpParser
from streamtap.protocols.opaque import OpaqueParser

GOLDEN = Path(__file__).parent.parent / "golden" / "msnp"
C, S = Direction.TO_SERVER, Direction.TO_CLIENT
TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
GET = b"GET /index.html HTTP/1.1\r\n"


def test_every_parser_of_the_folder_is_registered_by_its_name() -> None:
    names = [parser.name for parser in parsers()]
    assert {"http", "opaque"} <= set(names)
    assert names == sorted(set(names))
    assert by_name("http") is HttpParser


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown protocol 'gopher'.*http, .*opaque"):
        by_name("gopher")


def test_importing_the_folder_imports_no_parser() -> None:
    code = "import sys, streamtap.protocols; print('streamtap.protocols.http' in sys.modules)"
    path = ":".join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": path},
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("to_server", "to_client"),
    [
        (GET, b""),
        (b"\r\n" + GET, b""),
        (b"POST http://h/gateway/gateway.dll?Action=open HTTP/1.0\r\n", b""),
        (b"CONNECT example.com:443 HTTP/1.1\r\n", b""),
        (b"OPTIONS * HTTP/1.1\n", b""),
        (b"BREW /pot HTTP/1.1\r\n", b""),
        (b"GET /" + b"a" * 300, b""),
        (b"", b"HTTP/1.1 200 OK\r\n"),
        (b"\x00\x01rest of an upload", b"HTTP/1.0 404 "),
        (GET, b"SSH-2.0-x\r\n"),
    ],
)
def test_http_is_known_by_either_direction(to_server: bytes, to_client: bytes) -> None:
    assert detect(to_server, to_client) is HttpParser


@pytest.mark.parametrize(
    ("to_server", "to_client"),
    [
        (b"\x16", b""),
        (TLS, b""),
        (b"\x00", b""),
        (b"SSH-2", b""),
        (b"", b"220 smtp.example.com\r\n"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
        (b"GET key\r\n", b""),
        (b"EHLO mail.example.com\r\n", b""),
        (b"{", b""),
    ],
)
def test_what_cannot_be_text_of_a_known_protocol_is_opaque_at_once(
    to_server: bytes, to_client: bytes
) -> None:
    assert detect(to_server, to_client) is OpaqueParser


@pytest.mark.parametrize(
    "prefix", [b"", b"G", b"GET", b"GET ", b"GET /x", b"GET /x HTTP/1", b"\r\n"]
)
def test_a_prefix_is_undecided_until_it_is_final_or_too_long(prefix: bytes) -> None:
    assert detect(prefix, b"") is None
    assert detect(prefix, b"", final=True) is OpaqueParser
    assert detect(prefix.ljust(len(GET), b"/"), b"", limits=Limits(probe=len(GET))) is not None


@pytest.mark.parametrize(
    "line",
    [
        b"VER 1 MSNP8 CVR0\r\n",
        b"VER 1 MSNP12 MSNP11 CVR0\r\n",
        b"USR 1 OK alice@example.com Alice\r\n",
        b"USR 1 alice@example.com 1234.5678.9\r\n",
        b"ANS 1 alice@example.com 1234 5678\r\n",
        b"XFR 1 NS\r\n",
        b"VER MSNFTP\r\n",
        b"MSG alice@example.com Alice 133\r\n",
        b"GET 7 x 12\r\n",
        b"PUT 3 220\r\nRouting: 1.0\r\n",
    ],
)
def test_http_leaves_msnp_alone(line: bytes) -> None:
    assert HttpParser.probe(line, b"") is Verdict.NO
    assert HttpParser.probe(b"", line) is Verdict.NO


@pytest.mark.parametrize(
    "data",
    [
        GET,
        b"\r\n\r\n" + GET,
        b"BREW /pot HTTP/1.1 \r\n",
        b"BREW /a b HTTP/1.1\r\n",
        b"GET /a b HTTP/1.1\r\n",
        b"GET  /a HTTP/1.0\r\n",
        b"GET /" + b"a" * 300 + b" junk\r\n",
        b"ABC http://x y://z HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"VER 1 MSNP8\r\n",
    ],
)
def test_more_bytes_never_change_a_decision(data: bytes) -> None:
    verdicts = [HttpParser.probe(data[:count], b"") for count in range(len(data) + 1)]
    decided = [verdict for verdict in verdicts if verdict is not Verdict.MORE]
    assert len(set(decided)) == 1
    assert verdicts[len(verdicts) - len(decided) :] == decided


def test_the_order_of_parsers_decides_between_two_that_say_yes() -> None:
    assert detect(GET, b"HTTP/1.1 200 OK\r\n") is detect(GET, b"")


@pytest.mark.parametrize(
    ("data", "way"),
    [
        (GET, C),
        (b"HTTP/1.1 200 OK\r\n", S),
        (b"MSG 3 N 40\r\nMIME-Version: 1.0\r\n", C),
        (b"MSG 3 D 40\r\nMessage-ID: {1}\r\n", C),
        (b"MSG bob@example.com Bob%20B 40\r\nMIME-Version: 1.0\r\n", S),
        (b"MSG Hotmail Hotmail 40\r\nMIME-Version: 1.0\r\n", S),
        (b"rest\r\nMSG 3 N 40\r\nMIME-Version: 1.0\r\nContent-Type: text/plain", C),
        (b"restMSG b@e B 40\r\nMIME-Version: 1.0\r\nContent-Type: text/plain", S),
        (b"USR 1 alice@example.com 1.2.3\r\n", C),
        (b"USR 1 OK alice@example.com Alice\r\n", S),
        (b"CAL 2 bob@example.com\r\n", C),
        (b"CAL 2 RINGING 7\r\n", S),
        (b"XFR 5 SB\r\n", C),
        (b"XFR 5 SB 192.0.2.30:1863 CKI 1.2\r\n", S),
        (b"JOI bob@example.com Bob\r\n", S),
        (b"SDG 8 90\r\nRouting: 1.0\r\n", C),
        (b"SDG 0 90\r\nRouting: 1.0\r\n", S),
        (b"VER 1 MSNP8 CVR0\r\n", None),
        (b"CHG 8 NLN 0 0\r\n", None),
        (b"USR 4 TWN S x\r\n", None),
        (TLS, None),
        (b"", None),
    ],
)
def test_what_only_one_end_says_tells_which_way_it_goes(data: bytes, way: Direction | None) -> None:
    assert way_of(data) is way


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.transcript")), ids=lambda path: path.stem)
def test_no_command_is_taken_for_one_of_the_other_end(path: Path) -> None:
    for step in transcripts.read(path).steps:
        if isinstance(step.data, bytes):
            assert way_of(step.data) in (step.direction, None), step.data[:60]
