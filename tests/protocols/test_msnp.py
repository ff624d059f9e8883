"""MSNP framing: which bytes are which command, and the way back after loss and garbage."""

import base64
import uuid
from struct import pack

import pytest

from helpers.streams import Script, assert_tiles, bytewise, run
from protocols.samples import (
    DATA,
    FORMATTED,
    P2P,
    ROUTED,
    TEXT,
    C,
    S,
    counted,
    frame,
    lines,
    packet,
    second,
)
from streamtap.events import Event, Malformed, Skipped
from streamtap.model import Direction
from streamtap.protocols import Limits, Pool, Verdict
from streamtap.protocols._base import OWN_LEAST, OWN_MOST
from streamtap.protocols._redact import redact
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket, MsnpParser, MsnpPrelude
from streamtap.protocols.msnp.p2p import FILE_GUID, decode, nonce_hashes, parse_slp


def told(events: list[Event]) -> list[tuple[object, ...]]:
    """Commands as (verb, transaction, args…, length of payload), other events by name."""
    return [
        (event.verb, event.transaction, *event.args, event.payload_length)
        if isinstance(event, MsnpCommand)
        else (type(event).__name__, event.length)
        for event in events
    ]


def events_of(data: bytes, direction: Direction = S, *, midstream: bool = False) -> list[Event]:
    """What a direction gives, the same whole, byte by byte, and before a tail."""
    script: Script = [(direction, data)]
    whole = run(MsnpParser, script, midstream=midstream)
    assert_tiles(whole)
    single = run(MsnpParser, bytewise(script), midstream=midstream)
    assert single.of(direction) == whole.of(direction)
    if not any(isinstance(event, Skipped | Malformed) for event in whole.of(direction)):
        tail = run(MsnpParser, [(direction, data + b"PNG\r\nQN")], midstream=midstream)
        assert tail.of(direction)[: len(whole.of(direction))] == whole.of(direction)
    return whole.of(direction)


VECTORS: list[tuple[Direction, bytes, list[tuple[object, ...]]]] = [
    (C, b"PNG\r\nOUT\n", [("PNG", None, 0), ("OUT", None, 0)]),
    (S, b"QNG 50\r\nOUT OTH\r\n", [("QNG", None, "50", 0), ("OUT", None, "OTH", 0)]),
    (C, b"VER 0 MSNP8 CVR0\r\n", [("VER", 0, "MSNP8", "CVR0", 0)]),
    (S, b"BYE b@example.com 1  \r\n", [("BYE", None, "b@example.com", "1", 0)]),
    (C, b"CVQ 7 0x0409  winnt\r\n", [("CVQ", 7, "0x0409", "", "winnt", 0)]),
    (S, b"LST b@example.com Bob 3 0\r\n", [("LST", None, "b@example.com", "Bob", "3", "0", 0)]),
    (S, b"LST 7 FL 12 1 1 b@e Bob\r\n", [("LST", 7, "FL", "12", "1", "1", "b@e", "Bob", 0)]),
    (S, b"LSG 1 Friends 0\r\n", [("LSG", None, "1", "Friends", "0", 0)]),
    (S, b"JOI b@e B 1342472230\r\n", [("JOI", None, "b@e", "B", "1342472230", 0)]),
    (S, b"NLN NLN b@e B 268435456\r\n", [("NLN", None, "NLN", "b@e", "B", "268435456", 0)]),
    (S, b"CAL 2 RINGING 40817733\r\n", [("CAL", 2, "RINGING", "40817733", 0)]),
    (S, b"UBX b@e 4\r\nabcdACK 5\r\n", [("UBX", None, "b@e", 4), ("ACK", 5, 0)]),
    (S, b"UBX b@e 1 0\r\n", [("UBX", None, "b@e", "1", 0)]),
    (S, b"UBX 1:b@e;via=9:g@h 2\r\nhi", [("UBX", None, "1:b@e;via=9:g@h", 2)]),
    (S, b"ADL 6 OK\r\nADL 0 5\r\n<ml/>", [("ADL", 6, "OK", 0), ("ADL", 0, 5)]),
    (C, b"QRY 1 product 32\r\n" + b"0" * 32, [("QRY", 1, "product", 32)]),
    (S, b"QRY 10\r\nUUX 9 0\r\n", [("QRY", 10, 0), ("UUX", 9, 0)]),
    (C, b"GCF 5 Shields.xml\r\n", [("GCF", 5, "Shields.xml", 0)]),
    (S, b"GCF 5 Shields.xml 2\r\nhi", [("GCF", 5, "Shields.xml", 2)]),
    (S, b"UUN 7 OK\r\nUBN b@e 3 2\r\nhi", [("UUN", 7, "OK", 0), ("UBN", None, "b@e", "3", 2)]),
    (S, b"PUT 8 OK 2\r\nhiPUT 9 OK\r\n", [("PUT", 8, "OK", 2), ("PUT", 9, "OK", 0)]),
    (S, b"NFY PUT 2\r\nhiSDG 0 2\r\nho", [("NFY", None, "PUT", 2), ("SDG", 0, 2)]),
    (S, b"SBS 0 null\r\nFSL 4 1025 3\r\n", [("SBS", 0, "null", 0), ("FSL", 4, "1025", "3", 0)]),
    (
        S,
        b"MSG b@e a name with blanks 2\r\nhi",
        [("MSG", None, "b@e", "a", "name", "with", "blanks", 2)],
    ),
    (S, b"217 7\r\n911 0\r\n", [("217", 7, 0), ("911", 0, 0)]),
    (S, b"241 11 5\r\n<ml/>217 12\r\n", [("241", 11, 5), ("217", 12, 0)]),
    (S, b"241 4 5\r\nNLN NLN b@e B\r\n", [("241", 4, "5", 0), ("NLN", None, "NLN", "b@e", "B", 0)]),
    (S, b"XYZ 1 2\r\nACK 1\r\n", [("XYZ", 1, "2", 0), ("ACK", 1, 0)]),
    (S, "NLN NLN b@e Zoë%20☕\r\n".encode(), [("NLN", None, "NLN", "b@e", "Zoë%20☕", 0)]),
    (S, b"NLN NLN b@e \xff\r\n", [("NLN", None, "NLN", "b@e", "\\xff", 0)]),
]


@pytest.mark.parametrize(
    ("direction", "data", "expected"), VECTORS, ids=lambda item: str(item)[:30]
)
def test_a_command_takes_the_payload_that_its_form_announces(
    direction: Direction, data: bytes, expected: list[tuple[object, ...]]
) -> None:
    assert told(events_of(data, direction)) == expected


def test_an_error_of_an_old_version_never_has_a_payload() -> None:
    events = events_of(lines("VER 1 MSNP8", "205 4 5") + b"LST b@example.com B 3\r\n")
    assert told(events)[1] == ("205", 4, "5", 0)


def test_payload_text_is_never_read_as_commands() -> None:
    data = counted("MSG b@example.com B", *TEXT, "BYE b@example.com\r\nOUT\r\n") + lines("ACK 9")
    assert [event.verb for event in events_of(data) if isinstance(event, MsnpCommand)] == [
        "MSG",
        "ACK",
    ]


def test_gap_inside_payload_loses_only_that_message() -> None:
    first = counted("MSG b@example.com B", *TEXT, "x" * 100)
    second = counted("MSG b@example.com B", *TEXT, "second")
    trace = run(MsnpParser, [(S, first[:120]), (S, 20), (S, first[140:] + second)])
    assert_tiles(trace)
    broken, rest, whole = trace.of(S)
    assert isinstance(broken, MsnpCommand)
    assert broken.payload == first[first.index(b"MIME") : 120]
    assert broken.missing == len(first) - 120
    assert isinstance(rest, Skipped)
    assert isinstance(whole, MsnpCommand)
    assert whole.payload.endswith(b"second")


def test_gap_to_the_end_of_a_payload_costs_nothing_behind_it() -> None:
    first = counted("MSG b@example.com B", *TEXT, "x" * 100)
    trace = run(MsnpParser, [(S, first[:120]), (S, len(first) - 120), (S, lines("BYE b@e"))])
    assert_tiles(trace)
    assert told(trace.of(S))[1:] == [("BYE", None, "b@e", 0)]


def test_gap_between_commands_resumes_at_the_next_message() -> None:
    message = counted("MSG b@example.com B", *TEXT, "again")
    trace = run(MsnpParser, [(S, lines("ACK 1") + b"JOI b@ex"), (S, 50), (S, message)])
    assert_tiles(trace)
    assert [type(event).__name__ for event in trace.of(S)] == [
        "MsnpCommand",
        "Skipped",
        "MsnpCommand",
    ]


def test_a_message_of_a_name_with_spaces_is_found_amid_a_line() -> None:
    message = counted("MSG b@e Two Words More", *TEXT, "", "two")
    events = events_of(b"rest of a payload" + message + lines("ACK 4"), midstream=True)
    assert told(events) == [
        ("Skipped", 17),
        (
            "MSG",
            None,
            "b@e",
            "Two",
            "Words",
            "More",
            len(message) - len("MSG b@e Two Words More 67\r\n"),
        ),
        ("ACK", 4, 0),
    ]


@pytest.mark.parametrize(
    ("direction", "line", "body"),
    [
        (S, "UBM b@e 32 a@e 1 1", "MIME-Version: 1.0\r\n\r\nhi"),
        (C, "UUM 7 b@e 32 1", "MIME-Version: 1.0\r\n\r\nhi"),
        (C, "SDG 7", "Routing: 1.0\r\n\r\nhi"),
        (C, "PUT 7", "Routing: 1.0\r\n\r\nhi"),
        (S, "NFY PUT", "Routing: 1.0\r\n\r\nhi"),
        (C, "ADL 7", "<ml></ml>"),
        (S, "UBX b@e 1", "<Data><PSM>hi</PSM></Data>"),
    ],
)
def test_what_a_payload_shows_is_found_amid_a_line(
    direction: Direction, line: str, body: str
) -> None:
    command = f"{line} {len(body)}\r\n{body}".encode()
    after = lines("QNG 5") if direction is S else lines("PNG")
    events = events_of(b"rest, MSG of 5 " + command + command + after, direction, midstream=True)
    verb = line[:3]
    assert [event.verb for event in events if isinstance(event, MsnpCommand)][:2] == [verb, verb]
    assert told(events)[0] == ("Skipped", 15)


def test_a_message_whose_version_is_not_its_first_header_is_found_after_a_gap() -> None:
    message = counted("MSG b@example.com B", *FORMATTED, "again")
    trace = run(MsnpParser, [(S, lines("ACK 1") + b"JOI b@ex"), (S, 50), (S, message)])
    assert_tiles(trace)
    assert [line[0] for line in told(trace.of(S)[-1:])] == ["MSG"]


def test_a_gap_in_one_direction_leaves_the_other_alone() -> None:
    trace = run(MsnpParser, [(C, lines("CAL 1 b@e")), (S, 100), (C, lines("CAL 2 c@e"))])
    assert [line[0] for line in told(trace.of(C))] == ["CAL", "CAL"]


def test_joined_amid_a_quoted_command_nothing_is_made_up() -> None:
    quoted = b"?\r\n\r\nquoting a log:\r\nBYE cal@example.com\r\nend"
    message = counted("MSG bob@example.com Bob", *TEXT, "back")
    events = events_of(quoted + message + lines("ACK 31", "BYE bob@example.com"), midstream=True)
    assert told(events) == [
        ("Skipped", len(quoted)),
        ("MSG", None, "bob@example.com", "Bob", len(message) - 28),
        ("ACK", 31, 0),
        ("BYE", None, "bob@example.com", 0),
    ]


def test_joined_before_a_message_it_is_told_without_waiting_for_more() -> None:
    parser = MsnpParser(limits=Limits(), midstream=True)
    message = counted("MSG bob@example.com Bob", *TEXT, "hello")
    assert [type(event) for event in parser.receive(S, message)] == [MsnpCommand]


def test_garbage_is_reported_once_and_left_behind() -> None:
    garbage = b"what is\r\nall this?\r\n"
    events = events_of(lines("JOI b@e B") + garbage + lines("ACK 1", "ACK 2", "ACK 3"))
    assert told(events) == [
        ("JOI", None, "b@e", "B", 0),
        ("Malformed", 0),
        ("Skipped", len(garbage)),
        ("ACK", 1, 0),
        ("ACK", 2, 0),
        ("ACK", 3, 0),
    ]


def test_two_unknown_commands_in_a_row_are_garbage() -> None:
    events = events_of(lines("ABC 1", "DEF 2", "ACK 1", "ACK 2"))
    assert [line[0] for line in told(events)] == ["ABC", "Malformed", "Skipped", "ACK", "ACK"]


def test_a_payload_length_past_the_limit_is_not_waited_for() -> None:
    events = events_of(lines("MSG b@e B 999999", "ACK 1", "ACK 2"))
    assert [line[0] for line in told(events)] == ["Malformed", "Skipped", "ACK", "ACK"]


@pytest.mark.parametrize(
    "begin",
    [b"ADL 1 100000\r\n<ml>", b"XXXX\r\nADL 1 60000\r\n<ml>", b"LST ", b"\0" + b"x" * 17_000],
)
def test_what_all_flows_hold_is_bounded(begin: bytes) -> None:
    flows, part = 200, 20_000
    limits = Limits(pool=Pool(limit=100_000))
    parsers = [MsnpParser(limits=limits, midstream=False) for _ in range(flows)]
    events: list[list[Event]] = [[] for _ in parsers]
    for data in (lines("VER 1 MSNP18 CVR0"), begin, *[b"x" * (part // 10)] * 10):
        for parser, told_ in zip(parsers, events, strict=True):
            told_ += parser.receive(C, data)
            assert sum(parser.held for parser in parsers[:3]) <= 3 * (part + 32_000)
    held = sum(parser.held for parser in parsers)
    assert 50_000 < held <= 100_000 + flows * OWN_MOST + part
    assert limits.pool.held == held
    for parser, told_ in zip(parsers, events, strict=True):
        told_ += parser.end(C)
    assert limits.pool.held == 0
    length = sum(event.offset + event.length for event in (told_[-1] for told_ in events))
    assert length == flows * (len(lines("VER 1 MSNP18 CVR0")) + len(begin) + part)


def test_what_one_may_hold_whatever_the_others_do_is_less_where_there_are_many() -> None:
    pool = Pool(limit=0)
    pool.held = 1
    pool.share(10)
    assert (pool.refuses(OWN_MOST), pool.refuses(OWN_MOST + 1)) == (False, True)
    pool.share(1 << 20)
    assert (pool.refuses(OWN_LEAST), pool.refuses(OWN_LEAST + 1)) == (False, True)


def test_a_payload_that_finds_no_room_is_told_and_what_follows_is_understood() -> None:
    limits = Limits(pool=Pool(limit=0))
    parser = MsnpParser(limits=limits, midstream=False)
    payload = b"<ml>" + b"x" * 29_996
    data = b"ADL 7 30000\r\n" + payload + lines("CHG 8 NLN")
    events = [
        event for at in range(0, len(data), 1000) for event in parser.receive(C, data[at:][:1000])
    ]
    events += parser.end(C)
    first, rest, last = events
    assert isinstance(first, MsnpCommand)
    assert first.missing == 30_000 - len(first.payload) > 12_000
    assert isinstance(rest, Skipped)
    assert (rest.length, rest.reason) == (first.missing, "too much is held for others")
    assert isinstance(last, MsnpCommand)
    assert last.verb == "CHG"


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_an_offer_that_is_longer_than_what_may_wait_is_told_by_its_beginning(limit: int) -> None:
    """A picture of the file makes it long."""
    context = base64.b64encode(pack("<IIQI550s", 574, 2, 3000, 0, "a.png".encode("utf-16-le")))
    text = b"INVITE MSNMSGR:b@e MSNSLP/1.0\r\nTo: <msnmsgr:b@e>\r\nCall-ID: {1}\r\n"
    text += b"Content-Type: application/x-msnmsgr-sessionreqbody\r\n\r\nEUF-GUID: %b\r\n" % (
        FILE_GUID.encode()
    )
    text += b"SessionID: 4711\r\nContext: %b%b\r\n\r\n\0" % (context, b"A" * 50_000)
    parts = [text[at : at + 1200] for at in range(0, len(text), 1200)]
    parser = MsnpParser(limits=Limits(pool=Pool(limit=limit)), midstream=True)
    events: list[Event] = []
    for at, part in enumerate(parts):
        body = packet(0, part, len(text), at * 1200) + bytes(4)
        events += parser.receive(S, counted("MSG b@e B", *P2P, "", "", tail=body))
    told_ = [event.slp for event in events if isinstance(event, MsnpPacket) and event.slp]
    found = [(slp.name, slp.size, slp.fields["sessionid"]) for slp in told_]
    assert found == [("a.png", 3000, "4711")]


def test_a_stream_that_is_not_msnp_is_given_up() -> None:
    trace = run(MsnpParser, [(S, b"no command at all\r\n" * 100)] * 200)
    assert_tiles(trace)
    reasons = [event.reason for event in trace.of(S) if isinstance(event, Skipped | Malformed)]
    assert reasons == ["not a command", "not MSNP", "not MSNP"]
    assert trace.held < 10_000


SECRET = "s3cret@value"
SECRET_LINES = [
    (C, f"USR 1 MD5 S {SECRET}"),
    (C, f"USR 1 CTP I a@example.com {SECRET}"),
    (C, f"USR 1 TWN S {SECRET}"),
    (C, f"USR 1 TWN S {SECRET} {SECRET}"),
    (C, f"USR 1 SSO S {SECRET} {SECRET} {{guid}}"),
    (C, f"USR 1 SHA A {SECRET}"),
    (C, f"USR 1 a@example.com {SECRET}"),
    (C, f"USR {SECRET}"),
    (C, f"USR TWN S {SECRET}"),
    (S, f"USR 1 MD5 S {SECRET}"),
    (S, f"USR 1 SSO S MBI_KEY {SECRET}"),
    (C, f"ANS 1 a@example.com {SECRET} 123"),
    (C, f"ANS 1 a@example.com {SECRET}"),
    (C, f"ANS {SECRET}"),
    (S, f"XFR 1 SB 1.2.3.4:1863 CKI {SECRET}"),
    (S, f"XFR 1 SB 1.2.3.4:1863 CKI {SECRET} U example.com 1"),
    (S, f"XFR 1 SB 1.2.3.4:1863 {SECRET}"),
    (S, f"XFR 0 NS 1.2.3.4:1863 U D {SECRET}"),
    (S, f"RNG 1 1.2.3.4:1863 CKI {SECRET} b@example.com B"),
    (S, f"RNG 1 1.2.3.4:1863 {SECRET}"),
    (S, f"CHL 0 {SECRET}"),
    (S, f"CHL {SECRET}"),
    (C, f"CVR 1 a b c d e f g h@example.com {SECRET}"),
    (C, f"CVQ 1 a b c d e f g h@example.com {SECRET}"),
    (S, f"XFR 1 NS 1.2.3.4:1863 {SECRET}"),
    (S, f"XFR 1 NS 1.2.3.4:1863 0 {SECRET}"),
    (S, f"USR 1 OK a@example.com A 1 0 {SECRET}"),
    (C, f"QRY 1 product {SECRET}"),
    (S, f"URL 1 /cgi-bin/x https://example.com/?t={SECRET} {SECRET}"),
    (S, f"URL 1 /cgi-bin/x#{SECRET} https://a:{SECRET}@example.com/;t={SECRET} 2"),
    (S, f"911 1 {SECRET}"),
    (C, f"USR 1 CTP I a@example.com\0{SECRET}"),
    (C, f"USR 1 CTP I a@example.com\t{SECRET} x"),
    (C, f"USR 1 CTP I a@example.com{SECRET}"),
    (C, f"USR 1 a@example.com\t{SECRET} x"),
    (C, f"USR 1 a@example.com;{{g}}\xc3{SECRET} x"),
    (C, f"USR 1 a@example.com{SECRET}"),
    (C, f"ANS 1 a@example.com\t{SECRET} 123"),
    (C, f"ANS 1 a example.com {SECRET}"),
    (C, "ANS 1 a example.com s3cret"),
    (S, f"XFR 1 SB 1.2.3.4:1863 CKI  {SECRET} U example.com 1"),
    (S, f"RNG 1 1.2.3.4:1863 CKI  {SECRET} b@example.com B"),
    (C, f"CVR 1 a b c d e f a@example.com {SECRET}"),
    (C, f"CVR 1 a b c d e f g h i a@example.com {SECRET}"),
    (C, f"CVR 1 a b c d e f g h@example.com\v{SECRET}"),
    (S, f"UBN a@example.com 10 19\r{SECRET}"),
    (C, f"UUN 5 a@example.com 10 19\r {SECRET}"),
    (C, f"UUN 5 a@example.com 10 19 {SECRET}"),
    (S, f"UBN a@example.com 10 19 {SECRET}"),
    (C, f"SSO S {SECRET} {SECRET}"),
    (S, f"CKI {SECRET} b@example.com B"),
]


@pytest.mark.parametrize(("direction", "line"), SECRET_LINES, ids=lambda item: str(item))
def test_a_credential_in_a_line_is_only_a_mark(direction: Direction, line: str) -> None:
    for event in events_of(lines(line), direction):
        assert SECRET not in repr(event)
        assert "redacted:" in repr(event)


@pytest.mark.parametrize(("direction", "line"), SECRET_LINES, ids=lambda item: str(item))
def test_nor_is_it_told_where_the_ends_were_mistaken_for_each_other(
    direction: Direction, line: str
) -> None:
    for event in events_of(lines(line), C if direction is S else S):
        assert SECRET not in repr(event)


def test_what_is_signed_in_by_and_where_to_is_told() -> None:
    for line in (
        "USR 1 SSO S MBI_KEY_OLD nonce",
        "XFR 1 NS 1.2.3.4:1863 0 5.6.7.8:1863",
        "XFR 0 NS messenger.example.com:1863 G D hop",
        "USR 1 OK a@example.com A 1 0",
    ):
        (event,) = events_of(lines(line))
        assert isinstance(event, MsnpCommand)
        assert event.args[:3] == tuple(line.split()[2:5])


SECRET_PAYLOADS = [
    (S, counted("MSG Hotmail Hotmail", "MIME-Version: 1.0", f"MSPAuth: {SECRET}", "", "")),
    (S, counted("MSG Hotmail Hotmail", "MIME-Version: 1.0", f"SID:  {SECRET}", f"kv: {SECRET}")),
    (S, counted("MSG b@e B", "MIME-Version: 1.0", "Content-Type: x", "", f"AuthCookie: {SECRET}")),
    (S, counted("MSG H H", "MIME-Version: 1.0", "", f"Message-URL: https://e.com/?x={SECRET}&y=1")),
    (C, counted("QRY 1 product", SECRET)),
    (C, counted("UUN 1 b@example.com 10", SECRET)),
    (C, counted("UUN 1 b@example.com 3", "INVITE MSNMSGR:b@e MSNSLP/1.0", "", f"Nonce: {SECRET}")),
    (S, counted("MSG b@e B", *P2P, "", "", tail=b"broken\r\nNonce: " + SECRET.encode())),
    (S, counted("MSG Hotmail Hotmail", "MSPAuth:", f"\t{SECRET}", f" {SECRET}", "kv: 1")),
    (S, counted("MSG Hotmail Hotmail", "MIME-Version: 1.0", "", f"Post-URL: /x#{SECRET}")),
    (S, counted("201 4", f"<x><Ticket>{SECRET}</Ticket><y token='{SECRET}'/></x>")),
    (S, counted("NOT", f'<NOTIFICATION><x:AuthCookie a="1">{SECRET}</x><y Passwd = "{SECRET}"/>')),
    (C, counted("SDG 1", *ROUTED, "Message-Type: Signal/Turn", "", f"{SECRET};{SECRET}")),
    (C, counted("UUN 1 b@example.com 3", "x", f"TURN-User: {SECRET}", f"TURNPass: {SECRET}")),
]


@pytest.mark.parametrize(("direction", "data"), SECRET_PAYLOADS, ids=lambda item: str(item)[:40])
def test_a_credential_in_a_payload_is_not_kept(direction: Direction, data: bytes) -> None:
    for event in events_of(data, direction):
        assert SECRET not in repr(event)


def test_what_somebody_writes_about_passwords_is_kept() -> None:
    said = b'<a token="abc">, <password>abc</password>'
    (event,) = events_of(counted("MSG b@e B", "MIME-Version: 1.0", "", tail=b"\r\n" + said))
    assert isinstance(event, MsnpCommand)
    assert event.payload.endswith(said)


def test_equal_cookies_have_equal_marks_so_that_flows_can_be_linked() -> None:
    offer = events_of(lines("XFR 1 SB 1.2.3.4:1863 CKI 12.34"))[0]
    use = events_of(lines("USR 1 a@example.com 12.34"), C)[0]
    assert isinstance(offer, MsnpCommand)
    assert isinstance(use, MsnpCommand)
    assert offer.args[-1] == use.args[-1] == redact("12.34")


SLP = b"\r\n".join(
    [
        b"MSNSLP/1.0 200 OK",
        b"To: <msnmsgr:Alice@example.com;{guid}>",
        b"From: <msnmsgr:bob@example.com>",
        b"Call-ID: {call}",
        b"Content-Type: application/x-msnmsgr-transrespbody",
        b"Content-Length: 99",
        b"",
        b"Bridge: TCPv1",
        b"Nonce: {12345678-9abc-DEF0-1234-56789ABCDEF0}",
        b"srddA-lanretnI4vPI: 5.0.0.01",
        b"",
        b"\0",
    ]
)


def test_slp_with_bare_line_feeds_says_the_same() -> None:
    assert parse_slp(SLP.replace(b"\r", b"")) == parse_slp(SLP)


def test_words_in_the_place_of_a_type_are_no_type() -> None:
    for given, told_ in (
        ("application/x-msnmsgr-TransReqBody; charset=x", "transreqbody"),
        ("what a secret", ""),
    ):
        slp = parse_slp(f"BYE MSNMSGR:b@e MSNSLP/1.0\r\nContent-Type: {given}\r\n\r\n".encode())
        assert slp is not None
        assert slp.content_type == told_


def test_slp_in_several_packets_is_read_when_it_is_whole() -> None:
    parts = [SLP[:100], SLP[100:]]
    data = b"".join(
        counted("MSG b@e B", *P2P, "", "", tail=packet(0, part, len(SLP), at) + bytes(4))
        for part, at in zip(parts, (0, 100), strict=True)
    )
    packets = [event for event in events_of(data) if isinstance(event, MsnpPacket)]
    assert packets[0].slp is None
    slp = packets[1].slp
    assert slp is not None
    assert (slp.code, slp.to, slp.by) == (200, "alice@example.com", "bob@example.com")
    assert slp.fields["ipv4internal-addrs"] == "10.0.0.5"
    assert packets[1].sender == "b@e"
    assert packets[1].recipient == "a@example.com"


def test_a_nonce_on_the_wire_has_the_mark_of_the_one_in_the_negotiation() -> None:
    nonce = uuid.UUID("12345678-9ABC-DEF0-1234-56789ABCDEF0").bytes_le
    slp = parse_slp(SLP)
    assert slp is not None
    assert slp.fields["nonce"] == nonce_hashes(nonce)[0]
    assert nonce_hashes(nonce)[1] == redact("{C2C547E3-95C8-5CBE-2CF0-FB8BB1BCC80C}")
    header = bytearray(packet(0, b"", 0, 0, 0x100))
    header[32:48] = nonce
    opening = [(C, b"\x04\0\0\0foo\0" + frame(bytes(header))), (S, frame(bytes(header)))]
    trace = run(MsnpParser, opening)
    assert [event.step for event in trace.of(C) if isinstance(event, MsnpDirect)] == [
        "open",
        "nonce",
    ]
    shown = trace.of(S)[0]
    assert isinstance(shown, MsnpDirect)
    assert shown.nonce == slp.fields["nonce"]


def test_after_a_handshake_of_version_1_packets_are_of_version_1() -> None:
    header = packet(0, b"", 0, 0, 0x100)
    data = packet(0xE8030030, b"\x08" * 1000, 1000)  # its first words fit version 2 as well
    for opening, version in ((frame(header), 1), (frame(header[32:]), 2)):
        trace = run(MsnpParser, [(C, opening), (S, opening), (C, frame(data))])
        shown = trace.of(C)[-1]
        assert isinstance(shown, MsnpPacket)
        assert shown.version == version


@pytest.mark.parametrize("version", ["VER MSNFTP", "VER 1 MSNFTP"])
def test_a_file_between_clients_is_blocks_not_lines(version: str) -> None:
    script = [
        (C, lines(version, "USR b@example.com 271828")),
        (S, lines(version, "FIL 6") + b"\0\x04\0BYE \0\x02\0\r\n\1\0\0"),
        (C, lines("BYE 16777989")),
    ]
    trace = run(MsnpParser, script)
    assert trace.of(C) == run(MsnpParser, bytewise(script)).of(C)
    assert_tiles(trace)
    steps = [(event.step, event.size) for event in trace.of(S) if isinstance(event, MsnpDirect)]
    assert steps == [("block", 4), ("block", 2), ("end", 0)]
    assert "271828" not in repr(trace.events)


@pytest.mark.parametrize(
    ("to_server", "to_client", "verdict"),
    [
        (b"VER 1 MSNP8 CVR0\r\n", b"", Verdict.YES),
        # On a flow that was joined in mid-stream any line may come first.
        (b"XFR 6 SB\r\n", b"", Verdict.YES),
        (b"", b"XFR 6 SB example.com:1863 CKI 1.2\r\n", Verdict.YES),
        (b"", b"IRO 1 1 2 b@example.com B\r\n", Verdict.YES),
        (b"", b"ACK 5\r\n", Verdict.MORE),
        (b"", b"ACK 5\r\nACK 6\r\n", Verdict.NO),
        (b"", b"ACK 5\r\nJOI b@example.com B\r\n", Verdict.YES),
        (b"", b"ADL 6 OK\r\nPRP 7 MFN A", Verdict.MORE),
        (b"", b"ADL 6 OK\r\nPRP 7 MFN A\r\n", Verdict.YES),
        (b"", b"UBX b@example.com 1 0\r\n217 5\r\n", Verdict.YES),
        (b"", b"ADL 0 9\r\n<ml", Verdict.YES),
        (b"", b"ADL 0 9\r\n<m", Verdict.MORE),
        (b"", b"ADL 0 9\r\nabc", Verdict.NO),
        (b"UUN 9 b@example.com 1 2\r\nhiBLP 4 AL\r\n", b"", Verdict.YES),
        (b"SYN 7 0\r\nhello\r\n", b"", Verdict.NO),
        (b"GET 1\r\nGET 2\r\n", b"", Verdict.NO),
        (b"", b"220 10\r\n220 11\r\n", Verdict.NO),
        (b"VE", b"", Verdict.MORE),
        (b"VER 12 MSNF", b"", Verdict.MORE),
        (b"VER 12 MSNFTP\r\n", b"", Verdict.YES),
        (b"USR 1 a@example.com 1.2.3\r\n", b"", Verdict.YES),
        (b"ANS 0 a@example.com;{g} 1.2.3 77\r\n", b"", Verdict.YES),
        (b"ANS 0 a@example.com 017a7e02 8f4ae137d97931\r\n", b"", Verdict.YES),
        (b"", b"RNG 8f4ae137d97931 192.0.2.1:1863 CKI 017a b@e B\r\n", Verdict.YES),
        (b"", b"QNG\r\n", Verdict.YES),
        (b"\x04\0\0\0foo\0", b"", Verdict.YES),
        (b"", b"MSG Hotmail Hotmail 20\r\nMIME-Version: 1.0", Verdict.YES),
        (b"", b"e of a text" + counted("MSG b@e B", *TEXT), Verdict.YES),
        (b"", counted("MSG b@e B", "TypingUser: b@e", "Content-Type: x", "", ""), Verdict.YES),
        (b"", b"e of a text" + counted("MSG b@e B", *FORMATTED), Verdict.YES),
        (counted("MSG 2 N", *FORMATTED), b"", Verdict.YES),
        (counted("MSG 2 D", *reversed(P2P)), b"", Verdict.YES),
        (b"MSG 2 N 99\r\nContent-", b"", Verdict.MORE),
        (b"MSG 2 N 99\r\nSubject: ", b"", Verdict.NO),
        (b"CNT 1 CON 123\r\n", b"", Verdict.YES),
        (b"\x05\x01\0", b"\x05\0", Verdict.MORE),
        (b"\x05\x01\0\x05\x01\0\1abcd\7\x47VER 1 MSNP8 CVR0\r\n", b"\x05\0", Verdict.YES),
        (b"\x05\x01\0\x05\x01\0\1abcd\7\x47GET / HTTP", b"\x05\0", Verdict.NO),
        (b"\x04\1\7\x47abcdme\0USR 1 a@example.com 1.2.3\r\n", b"", Verdict.YES),
        (b"\x04\1\7\x47abcdme", b"", Verdict.MORE),
        (b"\x04\2\7\x47abcdme", b"", Verdict.NO),
        (frame(bytes(16)), b"", Verdict.MORE),
        (frame(bytes(16)), frame(bytes(16)), Verdict.YES),
        (frame(bytes(16)), b"hello", Verdict.NO),
        (b"USER anonymous\r\n", b"220 ready\r\n", Verdict.NO),
        (b"EHLO host\r\n", b"220 host ESMTP\r\n", Verdict.NO),
        (b"GET / HTTP/1.1\r\n", b"", Verdict.NO),
        (b"\x16\x03\x01", b"", Verdict.NO),
    ],
)
def test_msnp_is_known_by_its_first_bytes(
    to_server: bytes, to_client: bytes, verdict: Verdict
) -> None:
    assert MsnpParser.probe(to_server, to_client) is verdict


def test_a_proxy_is_told_its_target_and_nothing_of_the_login() -> None:
    asked = b"\x05\1\2" + b"\1\4user\x06secret" + b"\x05\1\0\3\x0bexample.com\7\x47"
    events = events_of(asked + lines("VER 1 MSNP8 CVR0"), C)
    assert "user" not in repr(events)
    assert "secret" not in repr(events)
    steps = [(e.proxy, e.step, e.target) for e in events if isinstance(e, MsnpPrelude)]
    assert steps == [
        ("socks5", "greeting", None),
        ("socks5", "login", None),
        ("socks5", "connect", "example.com:1863"),
    ]
    assert told(events)[3:] == [("VER", 1, "MSNP8", "CVR0", 0)]


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (b"\x04\1\7\x47\xc0\0\2\1me\0", "192.0.2.1:1863"),
        (b"\x04\1\7\x47\0\0\0\1me\0example.com\0", "example.com:1863"),
        (b"\x05\1\0\x05\1\0\1\xc0\0\2\1\7\x47", "192.0.2.1:1863"),
        (b"\x05\1\0\x05\1\0\4" + bytes(15) + b"\1\7\x47", "[::1]:1863"),
    ],
)
def test_the_target_asked_of_a_proxy_is_kept(request_: bytes, target: str) -> None:
    events = events_of(request_ + lines("PNG"), C)
    assert [e.target for e in events if isinstance(e, MsnpPrelude)][-1] == target
    assert told(events)[-1] == ("PNG", None, 0)


def test_a_gap_in_what_a_proxy_is_told_leaves_msnp_to_be_found() -> None:
    script: Script = [(C, b"\x05\1"), (C, 30), (C, counted("MSG 3 N", *TEXT, "x"))]
    trace = run(MsnpParser, script)
    assert_tiles(trace)
    assert [type(event) for event in trace.of(C)] == [Skipped, MsnpCommand]


@pytest.mark.parametrize(
    ("direction", "data"),
    [
        (C, lines("VER 1 MSNP24 MSNP22 CVR0", "CNT 2 CON 5", "PNG")),
        (C, lines("CNT 2 CON 5", "PNG")),
        (S, lines("VER 1 MSNP22", "ACK 1", "ACK 2")),
        (S, lines("XFR 2 CON 5", "ACK 1", "ACK 2")),
    ],
)
def test_what_follows_a_later_version_is_not_parsed(direction: Direction, data: bytes) -> None:
    first, rest = events_of(data, direction)
    assert isinstance(first, MsnpCommand)
    assert isinstance(rest, Skipped)
    assert rest.reason == "MSNP22 or later"


def test_a_later_version_may_be_offered_beside_ours() -> None:
    events = events_of(lines("VER 1 MSNP22 MSNP21 CVR0", "PNG"), C)
    assert [line[0] for line in told(events)] == ["VER", "PNG"]


def test_packets_in_a_routed_message_are_told_one_by_one() -> None:
    data = counted("SDG 7", *ROUTED, *DATA, "", "", tail=second(b"a\r\n\r\nb", 9) + second(b""))
    command, *packets = events_of(data, C)
    assert isinstance(command, MsnpCommand)
    assert command.payload.endswith(b"Pipe: 1\r\n\r\n")
    shown = [
        (e.sender, e.recipient, e.session, e.size) for e in packets if isinstance(e, MsnpPacket)
    ]
    assert shown == [
        ("a@example.com", "b@example.com", 9, 6),
        ("a@example.com", "b@example.com", 0, 0),
    ]


def test_what_is_no_packet_stays_in_its_message() -> None:
    data = counted("SDG 7", *ROUTED, *DATA, "", "", tail=second(b"x", 9) + b"Nonce: 1")
    (command,) = events_of(data, C)
    assert isinstance(command, MsnpCommand)


def test_a_direct_connection_may_begin_with_the_nonce() -> None:
    nonce = uuid.UUID("12345678-9ABC-DEF0-1234-56789ABCDEF0").bytes_le
    trace = run(MsnpParser, [(C, frame(nonce)), (S, frame(nonce)), (C, frame(second(b"x", 9)))])
    assert_tiles(trace)
    first, packet_ = trace.of(C)
    assert isinstance(first, MsnpDirect)
    assert first.nonce == nonce_hashes(nonce)[0]
    assert isinstance(packet_, MsnpPacket)
    assert (packet_.version, packet_.session) == (2, 9)


def test_a_packet_that_claims_more_than_there_can_be_is_told_with_a_number_that_fits() -> None:
    inner = pack(">BBHIBB8s2x", 20, 1, 0, 9, 1, 8, b"\xff" * 8) + b"data"
    raw = decode(pack(">BBHI", 8, 0, len(inner), 7) + inner, footer=False, second=True)
    assert raw is not None
    assert (raw.data, raw.total) == (b"data", 2**63 - 1)
