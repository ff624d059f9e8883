"""`conv`, from captures and recordings to what is printed."""

import json
import os
import re
import struct
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamtap
from helpers import transcripts
from helpers.commands import DEADLINE_S, STREAMTAP, run
from helpers.records import ALICE, BOB, Kept, body, message, record
from streamtap.capture.identity import host_key
from streamtap.cli.tables import table_lines
from streamtap.events import Record, tag_of
from streamtap.model import Direction, Endpoint
from streamtap.patterns import Pattern
from streamtap.trace import Session, open_sink, parse

CAPTURES = Path(__file__).parent.parent / "captures"
GOLDEN = Path(__file__).parent.parent / "golden" / "msnp"
RAW_IP = 101  # link type
SYN, ACK = 2, 16


def capture(name: str, tick_ns: int = 1000) -> bytes:
    """A golden transcript as a pcap file; bytes that it says were lost are acknowledged. tick_ns:
    of the clock of who captured it."""
    transcript = transcripts.read(GOLDEN / f"{name}.transcript")
    packets = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, RAW_IP)]
    passed: dict[str, list[int]] = {}

    def add(flow: str, side: Direction, time_ns: int, data: bytes, flags: int) -> None:
        known = transcript.flows[flow]
        ends = (known.local, known.remote)
        source, target = ends if side is known.sent else ends[::-1]
        here, there = passed[flow][side], passed[flow][side.opposite]
        packet = ipv4(source, target, here, there, flags, data)
        seconds, rest_ns = divmod(time_ns // tick_ns * tick_ns, 1_000_000_000)
        size = len(packet)
        packets.append(struct.pack("<4I", seconds, rest_ns // 1000, size, size) + packet)
        passed[flow][side] += len(data) + (flags & SYN) // SYN

    for step in transcript.steps:
        if step.flow not in passed:
            passed[step.flow] = [1000, 5000]
            for side, flags in ((Direction.TO_SERVER, SYN), (Direction.TO_CLIENT, SYN | ACK)):
                add(step.flow, side, step.time_ns, b"", flags)
        if isinstance(step.data, int):
            passed[step.flow][step.direction] += step.data
            add(step.flow, step.direction.opposite, step.time_ns, b"", ACK)
        elif step.data is not None:
            add(step.flow, step.direction, step.time_ns, step.data, ACK)
    return b"".join(packets)


def ipv4(source: Endpoint, target: Endpoint, seq: int, ack: int, flags: int, data: bytes) -> bytes:
    """A packet; nobody looks at its checksums."""
    tcp = struct.pack(">HHIIBBHHH", source.port, target.port, seq, ack, 80, flags, 9000, 0, 0)
    head = struct.pack(">BBHHHBBH", 69, 0, 40 + len(data), 0, 0, 64, 6, 0)
    addresses = ip_address(source.address).packed + ip_address(target.address).packed
    return head + addresses + tcp + data


def recording(path: Path, *records: Record) -> str:
    session = Session(parse(["all@all"]), [open_sink(str(path), stdout=Kept())])
    for each in records:
        session.offer([each])
    session.close()
    return str(path)


@pytest.fixture
def chat(tmp_path: Path) -> str:
    path = tmp_path / "a name that says nothing"
    path.write_bytes(capture("chat-caller"))
    return str(path)


def objects(*words: str) -> list[dict[str, Any]]:
    result = run("conv", "--json", *words)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_capture_is_told_in_a_table_a_line_for_each_conversation(chat: str) -> None:
    result = run("conv", chat, env={**os.environ, "TZ": "UTC"})
    assert result.returncode == 0, result.stderr
    head, row = result.stdout.splitlines()
    assert head.split() == ["BEGAN", "LASTED", "MESSAGES", "FILES", "WHO"]
    assert row.startswith("2008-11-24 23:01:16  ")
    assert row.endswith(f"  6         {ALICE} 2, {BOB} 3, carol@example.com 1")
    assert row.index(ALICE) == head.index("WHO")
    assert result.stderr.startswith("streamtap: 1 conversation, ")


@pytest.mark.parametrize("name", ["chat-caller", "worked-file", "kinds", "group", "file-msnftp"])
@pytest.mark.parametrize("form", ["run.jsonl", "run.sqlite"])
def test_a_capture_and_the_recording_of_reading_it_tell_the_same(
    name: str, form: str, tmp_path: Path
) -> None:
    pcap, recorded = tmp_path / "x", tmp_path / form
    pcap.write_bytes(capture(name))
    assert run("read", str(pcap), "-o", str(recorded)).returncode == 0
    unnamed = recorded.rename(tmp_path / "y")
    assert objects(str(pcap)) == objects(str(unnamed)) != []


def test_standard_input_is_a_capture(chat: str) -> None:
    with open(chat, "rb") as file:
        result = subprocess.run(
            [*STREAMTAP, "conv", "-"], stdin=file, capture_output=True, timeout=DEADLINE_S
        )
    assert result.returncode == 0
    assert BOB.encode() in result.stdout


def test_several_files_are_one_set(chat: str, tmp_path: Path) -> None:
    first = recording(tmp_path / "1.jsonl", record(message(conversation="x")))
    second = recording(tmp_path / "2.sqlite", record(message(conversation="x", size=1)))
    found = objects(second, chat, first)
    assert sorted(each["messages"] for each in found if each["conversation"] == "x") == [2]
    assert len(found) == 2


@pytest.mark.parametrize("name", ["chat-caller", "kinds", "group", "lost-bytes"])
def test_what_several_files_hold_counts_once(name: str, tmp_path: Path) -> None:
    pcap, one, two = (tmp_path / name for name in ("x", "x.jsonl", "x.sqlite"))
    pcap.write_bytes(capture(name))
    for path in (one, two):
        assert run("read", str(pcap), "-o", str(path)).returncode == 0
    copied, linked, hashed = tmp_path / "c", tmp_path / "l", tmp_path / "h.jsonl"
    copied.write_bytes(one.read_bytes())
    linked.symlink_to(one)
    assert run("read", str(pcap), "--content", "none", "-o", str(hashed)).returncode == 0
    for files in (
        (one, one),
        (two, two),
        (one, copied, linked),
        (one, two),
        (two, pcap),
        (pcap, pcap, one),
        (one, hashed),
    ):
        result = run("conv", "--json", *map(str, files))
        assert result.returncode == 0
        told = [json.loads(line) for line in result.stdout.splitlines()]
        assert told == objects(str(pcap))
        assert re.search(r"streamtap: passed over \d+ records that another", result.stderr)
    assert "passed over" not in run("conv", str(pcap), str(pcap)).stderr


def test_what_is_said_in_several_files_at_one_time_is_not_the_same(tmp_path: Path) -> None:
    first = recording(tmp_path / "1.jsonl", record(message(size=1)), record(message(size=1)))
    other = recording(tmp_path / "2.jsonl", record(message(size=2)), record(message(size=1)))
    assert [each["messages"] for each in objects(first, other)] == [3]


def test_an_account_chooses_conversations_whatever_its_case_also_hashed(tmp_path: Path) -> None:
    path = recording(
        tmp_path / "x.jsonl",
        record(message(conversation="c1")),
        record(message(conversation="c2", sender="carol@example.com", recipients=())),
    )
    words = (path, "--account", "Carol@Example.com")
    assert [each["conversation"] for each in objects(*words)] == ["c2"]
    hidden = run("conv", "--json", "--content", "none", *words)
    assert [json.loads(line)["conversation"] for line in hidden.stdout.splitlines()] == ["c2"]
    assert "carol" not in hidden.stdout + hidden.stderr
    assert hidden.stderr == "streamtap: 1 conversation of 2, 1 message\n"


@pytest.mark.skipif(host_key() is None, reason="the host has no machine-id")
def test_hashed_names_are_the_same_in_every_run_and_in_records() -> None:
    path = str(CAPTURES / "switchboard.pcap")
    words = ("conv", "--json", "--content", "none", path)
    once, again = (json.loads(run(*words).stdout.splitlines()[0]) for _ in range(2))
    assert once == again
    told = run("read", "--json", "--content", "none", path).stdout
    assert once["participants"]
    assert all(f'"{name}"' in told for name in once["participants"])


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--port", "1863"), 1),
        (("--port", "1"), 0),
        (("--host", "1.2.3.4"), 1),
        (("--host", "1.2.3.5"), 0),
    ],
)
def test_ports_and_addresses_choose_connections_of_recordings_too(
    words: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    path = recording(tmp_path / "x.sqlite", record(message()))
    assert len(objects(path, *words)) == count


def test_none_shows_neither_accounts_nor_names_of_files(tmp_path: Path) -> None:
    offer = body(
        "im.file", action="offer", sender=ALICE, recipients=(BOB,), name="plan.pdf",
        conversation="c1",
    )  # fmt: skip
    path = recording(tmp_path / "x.jsonl", record(offer), record(message(content="hello")))
    told = run("conv", "-v", "--content", "none", path).stdout
    assert "file-" in told
    assert not any(word in told for word in ("alice", "bob", "plan", "hello"))


def test_text_is_shown_by_a_transcript_only_and_cannot_command_the_terminal(
    tmp_path: Path,
) -> None:
    said = message(content="one\x1b[2J\r\ntwo", sender="bob\x1b]0;x\x07@example.com")
    path = recording(tmp_path / "x.jsonl", record(said))
    assert "one" not in run("conv", "-v", "--content", "full", path).stdout
    assert "one" not in run("conv", "--json", "--content", "full", path).stdout
    told = run("conv", "-v", "--content", "full", "--transcript", path).stdout
    assert "\x1b" not in told
    assert r": one\x1b[2J" + "\n              two\n" in told
    (found,) = objects("--content", "full", "--transcript", path)
    assert [line["content"] for line in found["transcript"]] == ["one\x1b[2J\r\ntwo"]


def test_a_capture_gives_its_text_to_a_transcript(chat: str) -> None:
    told = run("conv", "--content", "full", "--transcript", chat).stdout
    assert f"  {ALICE}: Hej Bob, fika? ☕\n" in told
    assert f"  {BOB} (nudge, " in told


def test_details_name_all_that_is_known(tmp_path: Path) -> None:
    pcap = tmp_path / "x"
    pcap.write_bytes(capture("file-msnftp"))
    told = run("conv", "-v", str(pcap)).stdout
    assert re.search(rf'  file +{ALICE} -> {BOB}  complete "notes.txt" 11 bytes\n', told)
    assert "  10.0.0.2:6891 of " in told
    assert "connection" in told


def test_a_conversation_of_which_nobody_is_known_says_so(tmp_path: Path) -> None:
    path = tmp_path / "offer.pcap"
    path.write_bytes(capture("joined-before-redirect").partition(b"USR 1")[0])
    shown = run("conv", str(path)).stdout.splitlines()
    assert shown[1].split()[-2:] == ["0", "?"]


def test_an_error_without_number_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "lost.pcap"
    path.write_bytes(capture("not-delivered"))
    assert "  not delivered in answer to MSG" in run("conv", "-v", str(path)).stdout


def test_what_may_be_missing_is_marked(tmp_path: Path) -> None:
    gap = body("stream.gap", cause="lost")
    path = recording(tmp_path / "x.jsonl", record(gap), record(message()))
    told = run("conv", "-v", path).stdout
    assert "  1+  " in told
    assert "1448 bytes of its connections were not seen" in told


def test_many_participants_are_told_by_their_number(tmp_path: Path) -> None:
    people = tuple(f"user{number}@example.com" for number in range(20))
    path = recording(tmp_path / "x.jsonl", record(message(recipients=people)))
    assert run("conv", path).stdout.endswith(" and 17 more\n")
    assert len(objects(path)[0]["participants"]) == 21


def test_what_can_be_read_of_a_damaged_file_is_shown_and_the_exit_code_is_1(
    chat: str, tmp_path: Path
) -> None:
    whole = recording(tmp_path / "x.jsonl", record(message()), record(message(size=1)))
    cut = tmp_path / "cut"
    cut.write_bytes(Path(whole).read_bytes()[:-9] + b"\n{\n{\n")
    broken = tmp_path / "broken"
    broken.write_bytes(Path(chat).read_bytes()[:-9])
    result = run("conv", str(cut), str(broken))
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == 3
    errors = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(errors) == 2
    assert any("record 2 cannot be read" in line and "(and 2 more)" in line for line in errors)


@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        (None, 6, "no such file"),
        (b"", 1, "empty"),
        (b"hello\n", 1, "not a capture"),
        (b'{"a": 1}\n', 1, "cannot be read"),
        (b"SQLite format 3\0", 1, "cannot be read"),
    ],
)
def test_what_is_neither_capture_nor_recording_is_told_in_one_line(
    content: bytes | None, code: int, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    result = run("conv", str(path))
    assert (result.returncode, result.stdout) == (code, "")
    assert text in result.stderr.splitlines()[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words", [(), ("-", "-"), ("--transcript", "x"), ("--transcript", "--content", "meta", "x")]
)
def test_wrong_usage_is_told_in_one_line(words: tuple[str, ...]) -> None:
    result = run("conv", *words)
    assert result.returncode == 2
    assert result.stderr.startswith("streamtap: error: ")


def test_a_reader_that_goes_away_is_no_error(chat: str) -> None:
    command = '"$@" | true; echo "${PIPESTATUS[0]}"'
    words = ["bash", "-c", command, "bash", sys.executable, "-m", "streamtap", "conv", chat]
    result = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S)
    assert result.stdout == "0\n"
    assert "Traceback" not in result.stderr


def test_numbers_stand_at_the_right_of_their_column() -> None:
    lines = table_lines(("A", "NUMBER", "B"), [("x", 1, "y"), ("longer", 22, "z")], numbers=(1,))
    assert lines == ["A       NUMBER  B", "x            1  y", "longer      22  z"]


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.transcript")))
def test_what_was_said_in_one_tick_of_a_coarse_clock_keeps_its_order(
    name: str, tmp_path: Path
) -> None:
    told = []
    for tick_ns in (1000, 200_000_000):
        path = tmp_path / f"{tick_ns}.pcap"
        path.write_bytes(capture(name, tick_ns))
        with streamtap.read(path, flags=["client_server", "peer_to_peer"]) as records:
            patterns = [one.body for one in records if tag_of(one.body).startswith("im.")]
        # A conversation is called by when it began.
        told.append(
            [
                msgspec.structs.replace(one, conversation=None)
                for one in patterns
                if isinstance(one, Pattern)
            ]
        )
    assert told[0] == told[1]
