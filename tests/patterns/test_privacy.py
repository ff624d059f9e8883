"""What each content level lets through."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.transcripts import play, read
from streamtap.events import Body
from streamtap.model import Content
from streamtap.patterns import (
    PATTERNS,
    Contacts,
    Data,
    Direct,
    File,
    Invite,
    Join,
    Leave,
    Media,
    Message,
    Presence,
    SignIn,
    SignOut,
    clean,
)
from streamtap.protocols._redact import redact
from streamtap.protocols.http import HttpRequest, HttpResponse
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket, Slp

KEY, OTHER = b"k" * 32, b"o" * 32
PLACE = {"offset": 0, "length": 9}
IM = {**PLACE, "protocol": "msnp"}
MESSAGE = Message(
    **IM,  # type: ignore[arg-type]
    sender="alice@example.com",
    recipients=("bob@example.com",),
    kind="text",
    content_type="text/plain",
    size=5,
    content="hello",
)
COMMAND = MsnpCommand(
    offset=0,
    length=9,
    verb="RNG",
    transaction=None,
    args=("77", "1.2.3.4:1863", "CKI", redact("cookie"), "bob@example.com", "Bobby"),
    payload_length=5,
    payload=b"hello " + redact("x").encode(),
)
REQUEST = HttpRequest(
    offset=0,
    length=9,
    method="GET",
    target=f"/private/path?user=alice&t={redact('x')}&flag",
    version="1.1",
    headers=(("Host", "h"), ("X-User", "alice"), ("Referer", "http://h/?q=alice")),
)


def test_full_shows_what_was_said_but_no_mark_of_a_credential() -> None:
    assert clean(MESSAGE, Content.FULL, KEY) == MESSAGE
    shown = clean(COMMAND, Content.FULL, KEY)
    assert isinstance(shown, MsnpCommand)
    assert shown.args[3] == "redacted"
    assert shown.payload == b"hello redacted"


def test_meta_shows_who_and_how_much_but_not_what() -> None:
    shown = clean(MESSAGE, Content.META, KEY)
    assert isinstance(shown, Message)
    assert (shown.sender, shown.size, shown.content) == ("alice@example.com", 5, None)
    command = clean(COMMAND, Content.META, KEY)
    assert isinstance(command, MsnpCommand)
    assert (command.args[4], command.payload, command.payload_length) == ("bob@example.com", b"", 5)


def test_none_replaces_names_by_hashes_that_are_stable_under_one_key() -> None:
    shown, again, other = (clean(MESSAGE, Content.NONE, key) for key in (KEY, KEY, OTHER))
    assert isinstance(shown, Message)
    assert isinstance(other, Message)
    assert shown == again
    assert shown.sender != other.sender
    assert (shown.sender or "").startswith("account-")
    assert (shown.sender or "").endswith("@hidden")


def test_an_account_has_the_same_hash_in_commands_and_patterns() -> None:
    shown = clean(MESSAGE, Content.NONE, KEY)
    assert isinstance(shown, Message)
    for form in ("Bob@example.com", "N=bob@example.com", "1:bob@example.com;{guid}"):
        line = MsnpCommand(
            offset=0, length=9, verb="CAL", transaction=1, args=(form,), payload_length=0
        )
        command = clean(line, Content.NONE, KEY)
        assert isinstance(command, MsnpCommand)
        assert command.args == shown.recipients


ALICE, BOB = "alice@example.com", "bob@example.com"
NAMED: list[Body] = [
    MESSAGE,
    COMMAND,
    REQUEST,
    SignIn(**IM, account=ALICE, display_name="Bobby"),  # type: ignore[arg-type]
    SignOut(**IM, account=ALICE),  # type: ignore[arg-type]
    Presence(**IM, account=ALICE, status="busy", display_name="Bobby"),  # type: ignore[arg-type]
    Contacts(**IM, account=ALICE, action="add", contact=BOB),  # type: ignore[arg-type]
    Invite(**IM, account=ALICE, by=BOB),  # type: ignore[arg-type]
    Join(**IM, account=ALICE, participants=(ALICE, BOB)),  # type: ignore[arg-type]
    Leave(**IM, account=ALICE, participants=(BOB,)),  # type: ignore[arg-type]
    File(**IM, action="offer", sender=ALICE, recipients=(BOB,), name="plan"),  # type: ignore[arg-type]
    Media(**IM, action="offer", kind="webcam", sender=ALICE, recipients=(BOB,)),  # type: ignore[arg-type]
    Direct(**IM, address="1.2.3.4:5", transport="p2p", account=BOB),  # type: ignore[arg-type]
    MsnpPacket(
        offset=0,
        length=9,
        sender=ALICE,
        recipient=BOB,
        version=1,
        session=0,
        message=1,
        position=0,
        total=1,
        size=1,
        flags=0,
        slp=Slp(method="INVITE", to=ALICE, by=BOB, name="plan", fields={"nick": "Bobby"}),
    ),
    HttpResponse(
        offset=0,
        length=9,
        status=302,
        reason="Found",
        version="1.1",
        headers=(("Location", "/home/alice?x=plan"),),
    ),
    Data(offset=0, length=9, protocol="http", bytes=9, summary="GET /alice?plan=bob"),
    MsnpDirect(offset=0, length=9, transport="p2p", step="nonce", nonce=redact("n")),
]


@pytest.mark.parametrize("body", NAMED, ids=lambda body: type(body).__name__)
def test_none_names_nobody(body: Body) -> None:
    shown = repr(clean(body, Content.NONE, KEY)).lower()
    for name in ("alice", "bob", "plan", "hello", "redacted:"):
        assert name not in shown


def test_every_pattern_that_has_a_name_in_it_is_cleaned_at_none() -> None:
    names = {"account", "sender", "recipients", "participants", "contact", "by", "name"}
    named = {pattern for pattern in PATTERNS if names & set(pattern.__struct_fields__)}
    tried = {type(body) for body in NAMED}
    assert {pattern.__name__ for pattern in named - tried} == {"Error"}  # its name is the code's


def test_meta_reduces_a_query_to_the_names_of_its_parameters() -> None:
    shown = clean(REQUEST, Content.META, KEY)
    assert isinstance(shown, HttpRequest)
    assert shown.target == "/private/path?user&t"
    assert shown.headers[2] == ("Referer", "http://h/?q")
    full = clean(REQUEST, Content.FULL, KEY)
    assert isinstance(full, HttpRequest)
    assert full.target == "/private/path?user=alice&t=redacted&flag"
    data = Data(offset=0, length=9, protocol="http", bytes=9, summary="GET /a?user=alice")
    shown_data = clean(data, Content.META, KEY)
    assert isinstance(shown_data, Data)
    assert shown_data.summary == "GET /a?user"


def test_text_that_looks_like_a_command_is_shown_only_at_full() -> None:
    slipped = msgspec.structs.replace(COMMAND, verb="OMG", args=("17", "what", "a", "secret"))
    assert clean(slipped, Content.FULL, KEY) == clean(slipped, Content.FULL, OTHER)
    for content in (Content.META, Content.NONE):
        shown = clean(slipped, content, KEY)
        assert isinstance(shown, MsnpCommand)
        assert shown.args == ("17", "hidden", "hidden", "hidden")
        assert clean(clean(slipped, Content.META, KEY), content, KEY) == shown


def test_a_personal_message_is_shown_only_at_full() -> None:
    body = Presence(**IM, account=ALICE, status="busy", personal_message="hello")  # type: ignore[arg-type]
    for content, expected in ((Content.FULL, "hello"), (Content.META, None), (Content.NONE, None)):
        shown = clean(body, content, KEY)
        assert isinstance(shown, Presence)
        assert shown.personal_message == expected


def test_plain_content_is_shown_only_at_full() -> None:
    data = Data(offset=0, length=9, protocol="opaque", bytes=9, content="hello")
    for content, expected in ((Content.FULL, "hello"), (Content.META, None), (Content.NONE, None)):
        shown = clean(data, content, KEY)
        assert isinstance(shown, Data)
        assert shown.content == expected


GOLDEN = sorted((Path(__file__).parent.parent / "golden" / "msnp").glob("*.transcript"))
STEPS = [
    (Content.FULL, Content.META),
    (Content.FULL, Content.NONE),
    (Content.META, Content.NONE),
]


def check_composes(body: Body) -> None:
    for higher, lower in STEPS:
        assert clean(clean(body, higher, KEY), lower, KEY) == clean(body, lower, KEY)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_cleaning_again_for_a_lower_level_gives_what_that_level_gives(path: Path) -> None:
    for told in play(read(path), Content.FULL):
        check_composes(told.body)


@pytest.mark.parametrize("body", NAMED, ids=lambda body: type(body).__name__)
def test_every_kind_can_be_cleaned_again_for_a_lower_level(body: Body) -> None:
    check_composes(body)


# What targets are made of, with a mark that another one follows.
PARTS = ["/", "?", "#", "&", ";", "=", "a", " ", ":", ":00c0ffee", "redacted", "200", "h.example"]
TARGETS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


@given(target=TARGETS, field=st.sampled_from(["Referer", "Location", "Host", "X-User"]))
def test_any_target_can_be_cleaned_again_for_a_lower_level(target: str, field: str) -> None:
    headers = ((field, target),)
    check_composes(
        HttpRequest(offset=0, length=9, method="GET", target=target, version="1.1", headers=headers)
    )
    for protocol in ("http", "msnp"):
        for summary in (target, f"GET {target}"):
            check_composes(Data(offset=0, length=9, protocol=protocol, bytes=9, summary=summary))
