"""What is known of one flow serves another: who, with whom, in which conversation."""

import base64
import struct
import uuid
from typing import TypeVar

import pytest

from helpers import transcripts
from streamtap.model import Content, Direction
from streamtap.patterns import (
    Connect,
    Contacts,
    Conversations,
    Direct,
    Error,
    File,
    Invite,
    Join,
    Leave,
    Media,
    Message,
    Pattern,
    Presence,
    SignIn,
    SignOut,
)
from streamtap.patterns.level import Level
from streamtap.patterns.links import MOST, Links
from streamtap.patterns.msnp import chunks
from streamtap.patterns.msnp.chunks import OPEN, Chunks, Talk
from streamtap.patterns.msnp.client import Place
from streamtap.patterns.msnp.mime import parse_mime
from streamtap.protocols.msnp import MsnpCommand

ALICE, BOB = "alice@example.com", "bob@example.com"
P = TypeVar("P", bound=Pattern)


def patterns(text: str, content: Content = Content.META) -> list[tuple[str, Pattern]]:
    """The patterns of a transcript, each with the name of its flow."""
    told = transcripts.play(transcripts.parse(text), content)
    return [(item.flow, item.body) for item in told if isinstance(item.body, Pattern)]


def only(kind: type[P], text: str, content: Content = Content.META) -> list[P]:
    return [body for _, body in patterns(text, content) if isinstance(body, kind)]


def said(direction: str, line: str, text: str = "hi") -> str:
    """A text message as lines of a transcript."""
    mark = direction[0]
    return (
        f"{direction} {line} *\n{mark}| MIME-Version: 1.0\n"
        f"{mark}| Content-Type: text/plain; charset=UTF-8\n{mark}|\n{mark}| {text}\n"
    )


SERVER = (
    """
-- app 99 /usr/sbin/msnserver
-- flow A 10.0.0.2:1025 192.0.2.20:1863
-- server
S< USR 4 OK alice@example.com 1 0
-- flow B 10.0.0.2:1026 192.0.2.20:1863
-- server
S< USR 4 OK bob@example.com 1 0
-- flow A
S< XFR 15 SB 192.0.2.20:1864 CKI 1.2.3
-- flow SA 10.0.0.2:1030 192.0.2.20:1864
-- server
C> USR 1 alice@example.com 1.2.3
C> CAL 2 bob@example.com
-- flow B
S< RNG 777 192.0.2.20:1864 CKI 4.5.6 alice@example.com Alice
-- flow SA
S< CAL 2 RINGING 777
-- flow SB 10.0.0.2:1031 192.0.2.20:1864
-- server
C> ANS 1 bob@example.com 4.5.6 777
S< IRO 1 1 1 alice@example.com Alice
-- flow SA
S< JOI bob@example.com Bob
"""
    + said("C>", "MSG 3 N")
    + "-- flow SB\n"
    + said("S<", "MSG alice@example.com Alice")
)


def test_a_server_sees_one_conversation_on_the_flows_of_both_its_users() -> None:
    told = patterns(SERVER)
    named = {body.conversation for flow, body in told if flow in ("SA", "SB")}
    assert len(named) == 1
    invited = [body for flow, body in told if isinstance(body, Invite) and flow == "B"]
    assert [(body.by, body.account, {body.conversation}) for body in invited] == [
        (ALICE, BOB, named)
    ]
    messages = [
        (flow, body.sender, body.recipients) for flow, body in told if isinstance(body, Message)
    ]
    assert messages == [("SA", ALICE, (BOB,)), ("SB", ALICE, (BOB,))]


def test_a_number_that_a_session_is_given_again_is_another_conversation() -> None:
    ring = "-- flow N\nS< RNG 1 192.0.2.30:1863 CKI {0} {1} B\n"
    ring += "-- flow {0} 10.0.0.2:2{0} 192.0.2.30:1863\n"
    ring += "C> ANS 1 alice@example.com {0} 1\nS< IRO 1 1 1 {1} B\n"
    text = "-- flow N 10.0.0.2:1 192.0.2.20:1863\nS< USR 4 OK alice@example.com 1 0\n"
    text += ring.format(1, BOB) + ring.format(2, "carol@example.com")
    text += "-- wait 600000\n" + ring.format(3, "carol@example.com")
    named = [body.conversation for body in only(Join, text)]
    assert named[0] == named[1] != named[2]


def test_a_switchboard_alone_tells_whose_it_is() -> None:
    text = "-- flow SB 10.0.0.2:1 192.0.2.30:1863\nC> ANS 1 Alice@Example.com 1.2.3 77\n"
    text += "S< IRO 1 1 1 bob@example.com Bob\nS< ANS 1 OK\n" + said("C>", "MSG 2 N")
    (message,) = only(Message, text)
    assert (message.sender, message.recipients) == (ALICE, (BOB,))
    assert [body.service for body in only(Connect, text)] == ["switchboard"]


def test_a_switchboard_joined_midstream_knows_its_user_from_the_notification_server() -> None:
    text = "-- app 5 /usr/bin/pidgin\n-- flow NS 10.0.0.2:1 192.0.2.20:1863\n"
    text += "S< USR 4 OK alice@example.com 1 0\n"
    text += "-- flow SB 10.0.0.2:2 192.0.2.30:1863\n-- midstream\n"
    text += said("S<", "MSG bob@example.com Bob") + said("C>", "MSG 7 N")
    received, sent = only(Message, text)
    assert (received.sender, received.recipients) == (BOB, (ALICE,))
    assert (sent.sender, sent.recipients) == (ALICE, (BOB,))


def test_who_leaves_a_switchboard_joined_midstream_has_not_signed_out() -> None:
    text = "-- app 5 /usr/bin/pidgin\n-- flow NS 10.0.0.2:1 192.0.2.20:1863\n"
    text += "S< USR 4 OK alice@example.com 1 0\n"
    text += "-- flow SB 10.0.0.2:2 192.0.2.30:1863\n-- midstream\n"
    text += said("C>", "MSG 7 N") + said("C>", "MSG 8 N") + "C> OUT\n"
    assert not only(SignOut, text)
    assert [body.account for body in only(Leave, text)] == [ALICE]


def test_a_number_that_a_called_session_had_is_another_conversation_later() -> None:
    text = "-- app 5 /usr/sbin/msnserver\n-- flow A 10.0.0.2:1 192.0.2.30:1863\n"
    text += "C> USR 1 alice@example.com 1\nC> CAL 2 bob@example.com\nS< CAL 2 RINGING 1\n"
    text += "S< JOI bob@example.com Bob\n-- wait 600000\n-- flow N 10.0.0.3:1 192.0.2.20:1863\n"
    text += "S< USR 4 OK carol@example.com 1 0\nS< RNG 1 192.0.2.30:1863 CKI 9 dave@example.com D\n"
    text += "-- flow C 10.0.0.3:2 192.0.2.30:1863\nC> ANS 1 carol@example.com 9 1\n"
    text += "S< IRO 1 1 1 dave@example.com D\n"
    first, second = (body.conversation for body in only(Join, text))
    assert first != second


def test_two_users_behind_one_address_are_not_taken_for_each_other() -> None:
    text = "-- flow N1 10.0.0.2:1 192.0.2.20:1863\nS< USR 4 OK alice@example.com 1 0\n"
    text += "-- flow N2 10.0.0.2:2 192.0.2.20:1863\nS< USR 4 OK bob@example.com 1 0\n"
    text += "-- flow SB 10.0.0.2:3 192.0.2.30:1863\n-- midstream\n"
    text += said("S<", "MSG carol@example.com Carol")
    (message,) = only(Message, text)
    assert message.recipients == ()


def test_applications_do_not_share_conversations() -> None:
    text = "-- app 5 /usr/bin/pidgin\n-- flow NS 10.0.0.2:1 192.0.2.20:1863\n"
    text += "S< XFR 15 SB 192.0.2.30:1863 CKI 1.2.3\n"
    text += "-- app 6 /usr/bin/other\n-- flow SB 10.0.0.2:2 192.0.2.30:1863\n"
    text += "C> USR 1 alice@example.com 1.2.3\n"
    first, second = (body.conversation for _, body in patterns(text))
    assert first
    assert second
    assert first != second


def test_without_a_known_cookie_the_announced_address_links_within_two_minutes() -> None:
    start = "-- flow NS 10.0.0.2:1 192.0.2.20:1863\nS< XFR 15 SB 192.0.2.30:1863 CKI 1.2.3\n"
    board = "-- flow SB 10.0.0.2:2 192.0.2.30:1863\n-- midstream\nS< JOI bob@example.com Bob\n"
    board += "S< JOI carol@example.com Carol\n"
    soon = {body.conversation for _, body in patterns(start + board)}
    late = {body.conversation for _, body in patterns(f"{start}-- wait 130000\n{board}")}
    assert len(soon) == 1
    assert len(late) == 2


def test_each_endpoint_of_a_person_joins_and_leaves_only_once() -> None:
    text = "-- flow SB 10.0.0.2:1 192.0.2.30:1863\nC> USR 1 alice@example.com;{a} 1.2.3\n"
    text += "C> CAL 2 alice@example.com\nS< JOI alice@example.com;{b} Alice 0:0\n"
    text += "S< JOI bob@example.com;{x} Bob 0:0\nS< JOI bob@example.com Bob 0:0\n"
    text += "S< BYE bob@example.com;{x}\nS< BYE alice@example.com;{b}\nS< BYE bob@example.com\n"
    assert [body.account for body in only(Join, text)] == [BOB]
    assert only(Join, text)[0].participants == (ALICE, BOB)
    assert [(body.account, body.participants) for body in only(Leave, text)] == [(BOB, (ALICE,))]
    assert only(Invite, text) == []


def test_whose_connection_breaks_has_signed_out() -> None:
    text = "-- flow NS 10.0.0.2:1 192.0.2.20:1863\nS< USR 4 OK alice@example.com 1 0\n"
    (out,) = only(SignOut, f"{text}-- close\n")
    assert (out.account, out.reason) == (ALICE, "connection closed")
    assert only(SignOut, text) == []  # watching ended, not the connection
    assert len(only(SignOut, f"{text}C> OUT\n-- close\n")) == 1


def test_who_is_sent_to_another_server_has_not_signed_out() -> None:
    text = "-- flow NS 10.0.0.2:1 192.0.2.20:1863\nS< USR 4 OK alice@example.com 1 0\n"
    text += "S< XFR 0 NS 192.0.2.21:1863 U D\n-- close\n"
    assert only(SignOut, text) == []


def test_the_version_is_the_first_of_the_server_that_the_client_offered() -> None:
    text = "-- flow NS 10.0.0.2:1 192.0.2.20:1863\nC> VER 0 MSNP5 MSNP4 CVR0\n"
    text += "S< VER 0 MSNP7 MSNP5 MSNP4 CVR0\nS< USR 6 OK alice@example.com Alice\n"
    (connect,) = only(Connect, text)
    assert connect.protocol_version == "MSNP5"


def test_joining_a_circle_is_no_second_sign_in() -> None:
    text = "-- flow NS 10.0.0.2:1 192.0.2.20:1863\nC> VER 1 MSNP18\nS< VER 1 MSNP18\n"
    text += "S< USR 4 OK alice@example.com 1 0\nC> USR 5 SHA A token\n"
    text += "S< USR 5 OK alice@example.com 0 0\n"
    assert len(only(SignIn, text)) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NLN BSY bob@example.com Bob", (BOB, "busy", "Bob")),
        ("NLN BSY bob@example.com 1 268435456", (BOB, "busy", "1")),
        ("NLN BSY bob@example.com Bob 268435456 %3Cmsnobj%20/%3E", (BOB, "busy", "Bob")),
        ("NLN PHN bob@example.com 1 Bob%20B 198:0 0", (BOB, "phone", "Bob B")),
        ("NLN LUN 1:bob@example.com Bob 198:0 0", (BOB, "lunch", "Bob")),
        ("ILN 8 IDL bob@example.com 1 Bob 198 0", (BOB, "idle", "Bob")),
        ("FLN 1:Bob@example.com 0:0", (BOB, "offline", None)),
        ("FLN bob@example.com 1 198", (BOB, "offline", None)),
        ("NLN BRB bob@example.com a+b%2520", (BOB, "brb", "a+b%20")),
    ],
)
def test_presence_is_read_in_the_shape_of_every_version(
    line: str, expected: tuple[str, str, str | None]
) -> None:
    text = f"-- flow NS 10.0.0.2:1 192.0.2.20:1863\nS< SBS 0 null\nS< {line}\n"
    (body,) = only(Presence, text)
    assert (body.account, body.status, body.display_name) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("LST bob@example.com Bob 11 0", ("list", BOB, ("forward", "allow", "reverse"))),
        ("LST N=bob@example.com F=Bob C=1-2 3 4-5", ("list", BOB, ("forward", "allow"))),
        ("LST N=bob@example.com 16 1", ("list", BOB, ("pending",))),
        ("LST 7 BL 12 1 1 bob@example.com Bob", ("list", BOB, ("block",))),
        ("ADC 0 RL N=bob@example.com F=Bob", ("add", BOB, ("reverse",))),
        ("ADC 9 BL N=bob@example.com", ("block", BOB, ("block",))),
        ("REM 9 AL bob@example.com", ("remove", BOB, ("allow",))),
        ("REM 9 FL 12 bob@example.com", ("remove", BOB, ("forward",))),
        ("REM 9 FL 1-2-3", ("remove", None, ("forward",))),
    ],
)
def test_lists_are_read_in_the_shape_of_every_version(
    line: str, expected: tuple[str, str, tuple[str, ...]]
) -> None:
    (body,) = only(Contacts, f"-- flow NS 10.0.0.2:1 192.0.2.20:1863\nS< {line}\n")
    assert (body.action, body.contact, body.lists) == expected


@pytest.mark.parametrize(
    "line", ["REM 9 FL 12 bob@example.com 3", "REM 9 FL 1-2-3 4-5-6", "ADC 9 FL C=1-2-3 4-5-6"]
)
def test_a_contact_that_changes_its_group_stays_on_its_list(line: str) -> None:
    assert not only(Contacts, f"-- flow NS 10.0.0.2:1 192.0.2.20:1863\nS< {line}\n")


@pytest.mark.parametrize(
    "line", ["C> ANS 1 al ce@example.com 1.2.3 777", "S< RNG 777 192.0.2.30:1863 CKI  1.2.3 B x"]
)
def test_what_is_not_told_apart_from_a_cookie_is_nobodys_name(line: str) -> None:
    text = f"-- flow SB 10.0.0.2:1 192.0.2.30:1863\n{line}\n" + said("C>", "MSG 3 N")
    told = [body for _, body in patterns(text)]
    assert [body.sender for body in told if isinstance(body, Message)] == [None]
    assert not [body for body in told if isinstance(body, Invite)]


def test_an_error_names_the_request_that_caused_it() -> None:
    text = "-- flow SB 10.0.0.2:1 192.0.2.30:1863\nC> CAL 9 bob@example.com\n"
    text += "S< 217 9\nS< 999 8\nS< 801 8\n"
    first, second, third = only(Error, text)
    assert (first.code, first.name, first.command) == (217, "not online", "CAL")
    assert (second.code, second.name, second.command) == (999, None, None)
    assert (third.code, third.name) == (801, "rate limit exceeded")


def test_messages_between_networks_go_through_the_notification_server() -> None:
    text = "-- flow NS 10.0.0.2:1 192.0.2.20:1863\nS< USR 4 OK alice@example.com 1 0\n"
    text += said("C>", "UUM 5 bob@example.com 32 1")
    text += said("S<", "UBM bob@example.com 32 alice@example.com 1 1")
    sent, received = only(Message, text)
    assert (sent.sender, sent.recipients) == (ALICE, (BOB,))
    assert (received.sender, received.recipients) == (BOB, (ALICE,))
    assert sent.conversation == received.conversation


def test_a_message_whose_other_parts_never_come_is_told_in_the_end() -> None:
    text = "-- flow SB 10.0.0.2:1 192.0.2.30:1863\nC> USR 1 alice@example.com 1.2.3\n"
    text += "S< JOI bob@example.com Bob\nS< MSG bob@example.com Bob *\nS| MIME-Version: 1.0\n"
    text += "S| Content-Type: text/plain\nS| Message-ID: {1}\nS| Chunks: 3\nS|\nS| first\n"
    later = only(Message, f"{text}-- wait 200000\nS< ACK 1\n")
    closed = only(Message, f"{text}-- close\n")
    for (message,) in (later, closed):
        assert (message.sender, message.kind, message.size) == (BOB, "text", 5)


def chunk(line: str, name: str, body: str, number: int = 0, of: int = 2) -> str:
    """A part of a message as lines of a transcript."""
    place = f"Chunk: {number}" if number else f"Chunks: {of}"
    head = "" if number else "{0}| MIME-Version: 1.0\n{0}| Content-Type: text/plain\n"
    text = f"{line} *\n{head}{{0}}| Message-ID: {name}\n{{0}}| {place}\n{{0}}|\n{{0}}| {body}\n"
    return text.replace("{0}", line[0])


@pytest.mark.parametrize("flows", [1, 3])
def test_no_message_in_parts_is_lost_where_too_many_are_unfinished(flows: int) -> None:
    text = ""
    for number in range(flows):
        text += f"-- flow {number} 10.0.0.2:{1 + number} 192.0.2.30:1863\n"
        text += "C> USR 1 alice@example.com 1.2.3\nS< JOI bob@example.com Bob\n"
    for number in range(2 * OPEN):
        text += f"-- flow {number % flows}\n"
        text += chunk("S< MSG bob@example.com Bob", f"{{m{number}}}", f"{number:04}")
    told = only(Message, text, Content.FULL)
    assert sorted(body.content or "" for body in told) == [f"{n:04}" for n in range(2 * OPEN)]
    assert {(body.sender, body.recipients, body.kind) for body in told} == {(BOB, (ALICE,), "text")}


def test_what_made_room_is_told_also_while_the_clock_stands_still() -> None:
    told = Chunks(Level(Content.META))
    place = Place(1, Direction.TO_CLIENT, 5, 0, 10)
    for number in range(OPEN + 2):
        mime = parse_mime(f"Message-ID: {number}\r\nChunks: 2\r\n\r\nx".encode(), 100)
        assert told.add("", Talk(place, "c", BOB, (ALICE,)), mime) is None
    conversations = Conversations()
    conversations._chunks = told
    conversations._ticked_ns = 5
    assert len(conversations.tick(5)) == 2
    assert conversations.tick(5) == []


def test_the_bytes_of_unfinished_messages_are_bounded_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "HELD", 100)
    text = BOARD + "".join(chunk("C> MSG 3 N", f"{{m{n}}}", "x" * 40) for n in range(9))
    assert [body.size for body in only(Message, text, Content.FULL)] == [40] * 9


def test_a_name_that_is_given_again_begins_another_message() -> None:
    text = BOARD + chunk("C> MSG 3 N", "{m}", "first", of=3) + chunk("C> MSG 4 N", "{m}", "1", 1)
    text += chunk("C> MSG 5 N", "{m}", "again") + chunk("C> MSG 6 N", "{m}", "2", 1)
    told = only(Message, text, Content.FULL)
    assert sorted(body.content or "" for body in told) == ["again2", "first1"]


def test_the_parts_of_a_message_are_of_one_sender_whenever_he_is_known() -> None:
    text = "-- app 5 /usr/bin/pidgin\n-- flow NS 10.0.0.2:1 192.0.2.20:1863\n"
    text += "-- flow SB 10.0.0.2:2 192.0.2.30:1863\n-- midstream\n"
    text += chunk("C> MSG 7 N", "{m}", "first ") + "-- flow NS\nS< USR 4 OK alice@example.com 1 0\n"
    text += "-- flow SB\n" + chunk("C> MSG 8 N", "{m}", "second", 1)
    (message,) = only(Message, text, Content.FULL)
    assert (message.sender, message.content) == (ALICE, "first second")


def test_content_is_decoded_after_the_parts_are_joined() -> None:
    text = "-- flow SB 10.0.0.2:1 192.0.2.30:1863\nC> USR 1 alice@example.com 1.2.3\n"
    text += "S< MSG bob@example.com Bob *\nS| MIME-Version: 1.0\nS| Content-Type: text/plain\n"
    text += "S| Message-ID: {1}\nS| Chunks: 2\nS|\nS# c3\n"
    text += "S< MSG bob@example.com Bob *\nS| Message-ID: {1}\nS| Chunk: 1\nS|\nS# a9\n"
    (message,) = only(Message, text, Content.FULL)
    assert message.content == "é"


@pytest.mark.parametrize(
    ("head", "body", "kind"),
    [
        ("Content-Type: text/x-msnmsgr-datacast", "ID: 1", "nudge"),
        ("Content-Type: text/x-msnmsgr-datacast", "ID: 2", "wink"),
        ("Content-Type: text/x-msnmsgr-datacast", "ID: 3", "voice"),
        ("Content-Type: text/x-msnmsgr-datacast", "ID: 4", "datacast"),
        ("content-type: TEXT/X-MMS-EMOTICON", ":)", "emoticon"),
        ("Content-Type: image/gif", "base64:", "ink"),
        ("Content-Type: text/x-keepalive", "", "control"),
        ("Content-Type: text/x-new-thing", "?", "other"),
        ("Content-Type: text/plain", "x", "text"),
    ],
)
def test_kinds_of_messages(head: str, body: str, kind: str) -> None:
    text = "-- flow SB 10.0.0.2:1 192.0.2.30:1863\nC> USR 1 alice@example.com 1.2.3\n"
    text += f"C> MSG 3 N *\nC| MIME-Version: 1.0\nC| {head}\nC|\nC| {body}\n"
    (message,) = only(Message, text)
    assert (message.kind, message.size) == (kind, len(body))


def p2p(direction: str, line: str, body: bytes) -> str:
    mark = direction[0]
    return (
        f"{direction} {line} *\n{mark}| MIME-Version: 1.0\n"
        f"{mark}| Content-Type: application/x-msnmsgrp2p\n{mark}| P2P-Dest: bob@example.com\n"
        f"{mark}|\n{mark}# {body.hex()}\n"
    )


def packet(session: int, data: bytes, total: int = 0, position: int = 0, *, tail: bytes) -> bytes:
    header = struct.pack(
        "<IIQQIIIIQ", session, 9, position, total or len(data), len(data), 0, 1, 0, 0
    )
    return header + data + tail


def slp(start: str, kind: str, **fields: str) -> bytes:
    sender, to = (ALICE, BOB) if start.startswith(("INVITE", "BYE")) else (BOB, ALICE)
    lines = [start, f"To: <msnmsgr:{to}>", f"From: <msnmsgr:{sender}>", "Call-ID: {1}"]
    lines += [f"Content-Type: application/x-msnmsgr-{kind}", ""]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", "\0"]).encode()


CONTEXT = base64.b64encode(
    struct.pack("<IIQI550sI", 574, 2, 3000, 1, "../häßlich.txt".encode("utf-16-le"), 0xFFFFFFFF)
).decode()
FILE = "{5D3E02AB-6190-11D3-BBBB-00C04F795683}"
NONCE = "{12345678-9ABC-DEF0-1234-56789ABCDEF0}"
TAIL = bytes(4)
INVITATION = slp(
    "INVITE MSNMSGR:bob@example.com MSNSLP/1.0",
    "sessionreqbody",
    EUF_GUID=FILE,
    SessionID="4711",
    AppID="2",
    Context=CONTEXT,
)
BOARD = "-- flow SB 10.0.0.2:1 192.0.2.30:1863\nC> USR 1 alice@example.com 1.2.3\n"
BOARD += "S< JOI bob@example.com Bob\n"
OFFER = BOARD + p2p("C>", "MSG 5 D", packet(0, INVITATION, tail=TAIL))
ACCEPT = p2p(
    "S<",
    "MSG bob@example.com Bob",
    packet(0, slp("MSNSLP/1.0 200 OK", "sessionreqbody", SessionID="4711"), tail=TAIL),
)


def test_a_file_is_offered_accepted_carried_and_complete() -> None:
    text = OFFER + ACCEPT
    for position in range(0, 3000, 1000):
        data = packet(4711, bytes(1000), 3000, position, tail=b"\0\0\0\2")
        text += p2p("C>", f"MSG {position} D", data)
    files = only(File, text)
    assert [(body.action, body.transferred) for body in files] == [
        ("offer", None),
        ("accept", None),
        ("progress", 1000),
        ("progress", 2000),
        ("complete", 3000),
    ]
    assert {(body.name, body.size, body.sender, body.recipients) for body in files} == {
        ("häßlich.txt", 3000, ALICE, (BOB,))
    }
    assert only(Message, text) == []


def test_a_file_may_be_declined_or_cancelled() -> None:
    answer = slp("MSNSLP/1.0 603 Decline", "sessionreqbody", SessionID="4711")
    declined = OFFER + p2p("S<", "MSG bob@example.com Bob", packet(0, answer, tail=TAIL))
    assert [body.action for body in only(File, declined)] == ["offer", "decline"]
    bye = slp("BYE MSNMSGR:bob@example.com MSNSLP/1.0", "sessionclosebody")
    cancelled = OFFER + ACCEPT + p2p("C>", "MSG 6 D", packet(0, bye, tail=TAIL))
    assert [body.action for body in only(File, cancelled)] == ["offer", "accept", "cancel"]


def test_a_direct_connection_belongs_to_the_conversation_that_negotiated_it() -> None:
    answer = slp(
        "MSNSLP/1.0 200 OK",
        "transrespbody",
        Bridge="TCPv1",
        Listening="true",
        Nonce=NONCE,
        IPv4Internal_Addrs="10.0.0.3 10.0.0.4",
        IPv4Internal_Port="6900",
        SessionID="4711",
    )
    nonce = bytearray(packet(0, b"", tail=b""))
    nonce[28:32] = (0x100).to_bytes(4, "little")
    nonce[32:48] = uuid.UUID(NONCE).bytes_le
    text = OFFER + ACCEPT + p2p("S<", "MSG bob@example.com Bob", packet(0, answer, tail=TAIL))
    # Behind a translated address: only the nonce can tell.
    text += "-- flow DC 10.0.0.2:5 203.0.113.9:40000\n"
    frames = [b"foo\0", bytes(nonce), packet(4711, bytes(1300), 3000, 0, tail=b"")]
    for frame in frames:
        text += raw("C", len(frame).to_bytes(4, "little") + frame)
    told = patterns(text)
    assert len({body.conversation for _, body in told}) == 1
    directs = [
        (flow, body.address, body.transport) for flow, body in told if isinstance(body, Direct)
    ]
    assert directs == [
        ("SB", "10.0.0.3:6900", "p2p"),
        ("SB", "10.0.0.4:6900", "p2p"),
        ("DC", "203.0.113.9:40000", "p2p"),
    ]
    progress = [(flow, body.action) for flow, body in told if isinstance(body, File)][-1]
    assert progress == ("DC", "progress")
    assert {body.place()[1] for flow, body in told if flow == "DC"} == {"peer_to_peer"}


def raw(side: str, data: bytes) -> str:
    """Bytes outside of any command, as a line of a transcript."""
    return f"{side}: {data.hex()}\n"


def test_a_display_picture_is_media_not_a_message() -> None:
    context = base64.b64encode(b'<msnobj Creator="bob@example.com" Type="3"/>\0').decode()
    request = slp(
        "INVITE MSNMSGR:bob@example.com MSNSLP/1.0",
        "sessionreqbody",
        EUF_GUID="{A4268EEC-FEC5-49E5-95C3-F126696BDBF6}",
        SessionID="99",
        AppID="1",
        Context=context,
    )
    text = BOARD + p2p("C>", "MSG 5 D", packet(0, request, tail=TAIL))
    text += p2p("S<", "MSG bob@example.com Bob", packet(99, bytes(4), tail=b"\0\0\0\1"))
    text += p2p("S<", "MSG bob@example.com Bob", packet(99, bytes(500), tail=b"\0\0\0\1"))
    assert [(body.action, body.kind) for body in only(Media, text)] == [
        ("offer", "display_picture"),
        ("complete", "display_picture"),
    ]


def test_a_call_is_complete_when_it_is_ended_and_not_by_what_it_carries() -> None:
    request = slp(
        "INVITE MSNMSGR:bob@example.com MSNSLP/1.0",
        "sessionreqbody",
        EUF_GUID="{4BD96FC0-AB17-4425-A14A-439185962DC8}",
        SessionID="98",
    )
    answer = slp("MSNSLP/1.0 200 OK", "sessionreqbody", SessionID="98")
    bye = slp("BYE MSNMSGR:bob@example.com MSNSLP/1.0", "sessionclosebody")
    text = BOARD + p2p("C>", "MSG 5 D", packet(0, request, tail=TAIL))
    text += p2p("S<", "MSG bob@example.com Bob", packet(0, answer, tail=TAIL))
    text += p2p("S<", "MSG bob@example.com Bob", packet(98, bytes(500), tail=b"\0\0\0\4"))
    text += p2p("C>", "MSG 6 D", packet(0, bye, tail=TAIL))
    assert [(body.action, body.kind) for body in only(Media, text)] == [
        ("offer", "video_call"),
        ("accept", "video_call"),
        ("complete", "video_call"),
    ]


def test_a_camera_whose_offer_was_not_seen_is_told_when_it_ends() -> None:
    text = "-- flow WC 10.0.0.2:1 198.51.100.9:6901\n" + raw(
        "C", b"recipientid=1&sessionid=2\r\n\r\n"
    )
    assert [body.address for body in only(Direct, text)] == ["198.51.100.9:6901"]
    assert only(Media, text) == []
    (media,) = only(Media, f"{text}-- close\n")
    assert (media.action, media.kind) == ("complete", "webcam")


SIGNED_IN = "-- flow NS 10.0.0.2:1 192.0.2.20:1863\nS< USR 4 OK alice@example.com 1 0\n"


def routed(line: str, to: str, by: str, *about: str) -> str:
    head = ("Routing: 1.0", f"To: {to}", f"From: {by}", "", "Reliability: 1.0", "", *about)
    mark = line[0]
    return f"{line} *\n" + "".join(f"{mark}| {part}\n" for part in head)


TEXT = ("Messaging: 2.0", "Message-Type: Text", "", "hi")


def test_what_the_user_says_elsewhere_is_not_a_message_received() -> None:
    text = SIGNED_IN + routed(
        "S< SDG 0", "1:bob@example.com", "1:alice@example.com;epid={b}", *TEXT
    )
    (message,) = only(Message, text)
    assert (message.sender, message.recipients) == (ALICE, (BOB,))


def test_of_a_group_of_which_nobody_is_known_the_group_itself_is_named() -> None:
    group = "10:12345678-0000-4000-8000-000000000001@live.com"
    text = SIGNED_IN + routed("C> SDG 7", group, "1:alice@example.com", *TEXT)
    text += routed("S< SDG 0", group, "1:bob@example.com", *TEXT)
    text += routed("C> SDG 8", group, "1:alice@example.com", *TEXT)
    sent, received, again = only(Message, text)
    assert sent.recipients == (group.removeprefix("10:"),)
    assert (received.sender, received.recipients) == (BOB, (ALICE,))
    assert again.recipients == (BOB,)
    assert sent.conversation == received.conversation == again.conversation


CIRCLE = "9:00000000-0000-0000-0009-00000000000a@live.com"
ABOUT_BOB = ("1:alice@example.com", f"1:bob@example.com;via={CIRCLE}")


def state(change: str, to: str, by: str, status: str) -> str:
    """NFY about somebody's state as lines of a transcript; "" names an endpoint alone."""
    state = f'<s n="IM"><Status>{status}</Status></s>' if status else ""
    body = f'<user>{state}<sep n="IM" epid="{{b}}"/></user>'
    head = ("Notification: 1.0", "Uri: /user", "Content-Type: application/user+xml", "", body)
    return routed(f"S< NFY {change}", to, by, *head)


@pytest.mark.parametrize(
    ("came", "went"),
    [
        (state("PUT", *ABOUT_BOB, "BSY"), state("PUT", *ABOUT_BOB, "FLN")),
        (state("PUT", *ABOUT_BOB, "BSY"), state("DEL", *ABOUT_BOB, "")),
        (
            f"S< NLN AWY 1:bob@example.com;via={CIRCLE} Bob 1:2\n",
            f"S< FLN 1:bob@example.com;via={CIRCLE} 0:0\n",
        ),
    ],
)
def test_who_is_online_in_a_circle_is_in_it_and_no_more_is_said_of_him(
    came: str, went: str
) -> None:
    plain = ("1:alice@example.com", "1:bob@example.com")
    text = SIGNED_IN + state("PUT", *plain, "NLN") + came + came
    text += routed("C> SDG 7", CIRCLE, "1:alice@example.com", *TEXT) + went + went
    text += state("DEL", *plain, "")
    assert [(body.account, body.status) for body in only(Presence, text)] == [
        (BOB, "online"),
        (BOB, "offline"),
    ]
    (join,), (leave,) = only(Join, text), only(Leave, text)
    assert (join.account, join.participants) == (BOB, (ALICE, BOB))
    assert (leave.account, leave.participants) == (BOB, (ALICE,))
    (message,) = only(Message, text)
    assert message.recipients == (BOB,)
    assert message.conversation == join.conversation == leave.conversation


@pytest.mark.parametrize(
    "line",
    [
        f"S< NLN NLN {CIRCLE} Friends 1:2\n",
        f"S< FLN {CIRCLE} 0:0\n",
        state("PUT", "1:alice@example.com", CIRCLE, "NLN"),
        state(
            "PUT", f"1:alice@example.com;via={CIRCLE}", f"1:alice@example.com;via={CIRCLE}", "BSY"
        ),
        f"S< NLN XXX 1:bob@example.com;via={CIRCLE} Bob 1:2\n",
    ],
)
def test_the_state_of_a_circle_is_nobodys(line: str) -> None:
    told = [
        body for _, body in patterns(SIGNED_IN + line) if not isinstance(body, Connect | SignIn)
    ]
    assert told == []


def test_words_beside_a_name_in_a_circle_are_not_those_of_the_person() -> None:
    text = SIGNED_IN + "S< NLN BSY bob@example.com Bob 0\n"
    text += personal("S< UBX 1:bob@example.com", "working")
    text += personal(f"S< UBX 1:bob@example.com;via={CIRCLE}", "playing")
    shown = [body.personal_message for body in only(Presence, text, Content.FULL)]
    assert shown == [None, "working"]


def personal(line: str, words: str) -> str:
    return f"{line} *\n{line[0]}| <Data><PSM>{words}</PSM></Data>\n"


def test_a_personal_message_is_told_once_and_when_it_changes() -> None:
    text = SIGNED_IN + "S< NLN BSY bob@example.com Bob 0\n"
    text += personal("S< UBX bob@example.com", "&lt;busy&gt;") * 2
    text += personal("S< UBX 1:bob@example.com", "")
    told = [(body.status, body.display_name) for body in only(Presence, text)]
    assert told == [("busy", "Bob")] * 3
    shown = [body.personal_message for body in only(Presence, text, Content.FULL)]
    assert shown == [None, "<busy>", None]
    assert [body.personal_message for body in only(Presence, text)] == [None] * 3


def test_a_personal_message_that_comes_before_the_status_is_told_with_it() -> None:
    text = SIGNED_IN + personal("C> UUX 5", "at work") + "C> CHG 6 AWY 0\nS< CHG 6 AWY 0\n"
    (body,) = only(Presence, text, Content.FULL)
    assert (body.account, body.status, body.personal_message) == (ALICE, "away", "at work")


def test_a_message_that_is_not_delivered_is_an_error() -> None:
    text = BOARD + said("C>", "MSG 5 N") + "S< NAK 5\n" + said("C>", "MSG 6 A") + "S< ACK 6\n"
    (error,) = only(Error, text)
    assert (error.code, error.name, error.command) == (0, "not delivered", "MSG")


def test_memory_of_links_is_bounded_by_count_and_age() -> None:
    links = Links()
    for number in range(MOST + 100):
        links.await_(("address", number), "c", number)
    assert len(links) == MOST
    assert links.find(("address", 0), 0) is None
    assert links.find(("address", MOST), MOST) == "c"
    links.expire(10**15)
    assert len(links) == 0


def test_nothing_of_a_closed_flow_is_kept() -> None:
    conversations = Conversations()
    transcript = transcripts.parse("-- flow NS 10.0.0.2:1 192.0.2.20:1863\n")
    flow = transcript.flows["NS"]
    event = MsnpCommand(offset=0, length=9, verb="ACK", transaction=1, args=(), payload_length=0)
    conversations.interpret(flow, transcripts.C, 0, event)
    conversations.closed(flow, 1)
    assert not conversations._msnp
