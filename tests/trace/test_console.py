"""The lines that people read."""

import re
from typing import ClassVar

import pytest

from helpers.records import (
    ABSTRACT,
    ALICE,
    CAPTURED,
    FLOW,
    KINDS,
    PAIRED,
    TIME,
    Kept,
    body,
    closed,
    every_kind,
    message,
    opened,
    record,
)
from streamtap.events import Event, Record
from streamtap.trace.console import Console, Show
from streamtap.trace.sink import Output
from streamtap.trace.text import Clock, duration, printable, size


class Ping(Event, frozen=True, kw_only=True, tag="test.ping"):
    """An event of a protocol that has no words of its own."""

    level: ClassVar[str] = "verbose"
    verb: str
    args: tuple[str, ...] = ()
    payload: bytes = b""


def lines(
    *records: Record,
    color: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    show: Show | None = None,
) -> list[str]:
    kept = Kept()
    console = Console(Output(kept), color=color, quiet=quiet, verbose=verbose, show=show)
    for number, each in enumerate(records, 1):
        console.write(number, [each])
    console.close()
    return kept.lines


@pytest.mark.parametrize(
    ("each", "expected"), [pytest.param(*pair, id=pair[1][:30]) for pair in every_kind()]
)
def test_every_event_has_a_line_made_to_be_read(each: Record, expected: str) -> None:
    who = "pidgin[4121]" if each.flow is FLOW else "[::1]:50000 " if each.flow else "streamtap   "
    assert lines(each) == [f"23:01:16.043 {who} {expected}"]


def test_every_event_that_any_flow_may_give_is_among_those_lines() -> None:
    told = {type(each.body) for each, _ in every_kind()}
    assert told == set(KINDS.values()) - set(ABSTRACT)


def test_a_flow_is_tagged_with_the_service_it_connected_to() -> None:
    connect = body("im.connect", service="switchboard", protocol_version="MSNP15", client="Pidgin")
    sign_in = body("im.sign_in", account=ALICE)
    shown = lines(record(connect, "sent"), record(sign_in, "sent"), record(message(), "received"))
    assert [line[26:] for line in shown] == [
        "> SB  connect   switchboard (MSNP15, Pidgin)",
        "> SB  sign-in   alice@example.com (MSNP15, Pidgin)",
        "< SB  message   bob@example.com -> alice@example.com  text, 11 bytes",
    ]


def test_a_closed_flow_is_forgotten() -> None:
    http = body("flow.identified", protocol="http", confidence="content")
    shown = lines(record(http), record(closed()), record(opened()))
    assert [line.split()[3] for line in shown] == ["HTTP", "HTTP", "-"]


def test_columns_stay_aligned_when_a_longer_name_comes() -> None:
    both = record(message(), "received", PAIRED)
    alone = record(message(), "received")
    shown = lines(alone, both, alone, both, verbose=True)
    assert "pidgin[4121] <-> server[77] < " in shown[1]
    assert len({line.index(" message ") for line in shown[1:]}) == 1


def test_the_peer_is_named_where_a_flow_opens() -> None:
    (line,) = lines(record(opened(), flow=PAIRED))
    assert line.endswith("  peer server[77]")


def test_quiet_leaves_out_the_service_and_details() -> None:
    assert lines(record(message(), "received"), quiet=True) == [
        "23:01:16.043 pidgin[4121] < message   bob@example.com -> alice@example.com"
    ]


def test_verbose_adds_the_date_the_flow_and_its_ends() -> None:
    [line] = lines(record(message(), "received"), verbose=True)
    assert line.startswith("2008-11-24 23:01:16.043 ")
    assert line.endswith("  [flow 12 10.0.0.1:50000 -> 1.2.3.4:1863]")


def test_a_protocol_event_without_words_tells_its_fields_and_cuts_long_ones() -> None:
    ping = Ping(offset=0, length=9, verb="PNG", args=("a b", "c"), payload=b"x" * 200)
    [line] = lines(record(ping, "sent"))
    assert line.startswith('23:01:16.043 pidgin[4121] > -   test.ping verb=PNG args="a b c" ')
    assert line.endswith("…")
    assert len(line) < 200


def test_content_is_shown_as_text_below_the_line() -> None:
    said = message(content="hi\r\nthere\n\x1b]0;owned\x07")
    assert lines(record(said, "received"), show="text")[1:] == [
        "    hi",
        "    there",
        r"    \x1b]0;owned\x07",
    ]


def test_content_is_shown_as_hex_below_the_line() -> None:
    data = body("data", bytes=18, content_base64="AAECAwQFBgcICQoLDA0OD0FC")
    assert lines(record(data, "sent"), show="hex")[1:] == [
        "    0x0000:  0001 0203 0405 0607 0809 0a0b 0c0d 0e0f  ................",
        "    0x0010:  4142                                     AB",
    ]


def test_content_that_is_no_base64_is_not_shown() -> None:
    data = body("data", bytes=18, content_base64="?")
    assert len(lines(record(data, "sent"), show="hex")) == 1


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[2J",
        "\r\nforged line",
        "\x9b31m",
        "\u202egnp.exe",
        "\u2028",
        "\x7f",
        "\ud800",
        "\u200b",
    ],
)
def test_nothing_from_the_wire_reaches_the_terminal_unescaped(hostile: str) -> None:
    said = message(
        sender=hostile, recipients=(hostile,), kind=hostile, content=hostile, protocol=hostile
    )
    ping = Ping(
        offset=0,
        length=9,
        verb=hostile,
        args=(hostile,),
        payload=hostile.encode("utf-16", "replace"),
    )
    for show in (None, "text", "hex"):
        for each in (record(said, "sent"), record(ping, "sent", CAPTURED)):
            shown = lines(each, show=show, verbose=True)
            assert len(shown) == 1 or show is not None
            assert all(line.isprintable() for line in shown)


def test_colour_is_only_there_when_asked_and_changes_nothing_else() -> None:
    every = [each for each, _ in every_kind()]
    plain, painted = lines(*every), lines(*every, color=True)
    assert not any("\x1b" in line for line in plain)
    assert all("\x1b[" in line for line in painted)
    assert [re.sub(r"\x1b\[[0-9]+m", "", line) for line in painted] == plain


def test_what_is_cut_says_so() -> None:
    assert printable("x" * 500, 10) == "xxxxxxxxx…"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (9_999, "9999 bytes"),
        (10_000, "10.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (10**400, "1000 PB"),
    ],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (59.9, "59.9 s"),
        (72, "1 min 12 s"),
        (3720, "1 h 2 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(int(seconds * 1e9)) == text


def test_a_time_that_no_calendar_knows_is_still_told() -> None:
    assert Clock("%H:%M:%S").second(10**40) == f"@{10**31}"
    assert Clock("%H:%M:%S").second(TIME) == "23:01:16"
