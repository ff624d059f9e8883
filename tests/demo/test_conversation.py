"""The whole conversation in real processes, judged by what passed on its connections."""

import base64
import hashlib
import json
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from demo.raw import PATIENCE_S, Item, ServerProcess, Stream, items, streams
from streamtap.demo import client_command, environment, run

ALICE, BOB, CAROL = (f"{name}@example.com" for name in ("alice", "bob", "carol"))


class Conversation(NamedTuple):
    ports: tuple[int, int]
    reports: dict[str, dict[str, list[list[object]]]]
    server: list[Stream]
    alice: list[Stream]
    bob: list[Stream]

    def commands(self, who: str, service: str) -> list[Item]:
        """What one client said, and then what it heard, on its last connection to a service."""
        recorded = {"alice": self.alice, "bob": self.bob}[who]
        stream = [stream for stream in recorded if stream.service == service][-1]
        return [*items(stream.sent), *items(stream.received)]


@pytest.fixture(scope="module")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> Conversation:
    """One run, recorded at all three places."""
    directory = tmp_path_factory.mktemp("transcripts")
    paths = {name: directory / f"{name}.jsonl" for name in ("server", "alice", "bob")}
    reports = {}
    with ServerProcess(paths["server"]) as server:
        port = server.notification
        clients = {
            who: subprocess.Popen(
                client_command(who, port, timeout_s=PATIENCE_S, transcript=paths[who]),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(),
            )
            for who in ("alice", "bob")
        }
        for who, client in clients.items():
            output, complaints = client.communicate(timeout=2 * PATIENCE_S)
            assert (client.returncode, complaints) == (0, b"")
            reports[who] = json.loads(output)
        ports = server.notification, server.switchboard
    return Conversation(ports, reports, *(streams(path) for path in paths.values()))


def packets(commands: list[Item]) -> list[tuple[tuple[int, ...], bytes]]:
    """Header fields and data of the peer-to-peer packets among a switchboard's messages."""
    found = []
    for _, payload in commands:
        head, _, body = payload.partition(b"\r\n\r\n")
        if b"application/x-msnmsgrp2p" in head:
            header = struct.unpack_from("<IIQQIIIIQ", body)
            assert len(body) == 48 + header[4] + 4, "header, data and footer fill the message"
            assert header[4] <= 1202
            assert header[2] + header[4] <= header[3]
            assert body[-4:] == (b"\0\0\0\2" if header[0] else b"\0\0\0\0")
            found.append((header, body[48:-4]))
    return found


def dialogue(conversation: Conversation) -> str:
    """All the MSNSLP text that alice sent and received."""
    everything = packets(conversation.commands("alice", "switchboard"))
    return b"".join(data for header, data in everything if header[0] == 0).decode()


def direct(conversation: Conversation) -> tuple[list[bytes], list[bytes]]:
    """The frames of alice's direct connection: sent, received."""
    (stream,) = (stream for stream in conversation.alice if stream.service == "direct")
    directions = []
    for data in (stream.sent, stream.received):
        frames, at = [], 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            frames.append(data[at + 4 : at + 4 + length])
            assert len(frames[-1]) == length
            at += 4 + length
        directions.append(frames)
    sent, received = directions
    return sent, received


def test_both_scripts_end_well_and_the_files_arrive_intact(conversation: Conversation) -> None:
    alice, bob = conversation.reports["alice"], conversation.reports["bob"]
    assert [name for name, *_ in alice["sent"]] == ["Kölner Dom.jpg"]
    assert [name for name, *_ in bob["sent"]] == ["notes.txt"]
    assert alice["sent"] == bob["received"]
    assert bob["sent"] == alice["received"]


def test_every_byte_belongs_to_a_command_or_its_payload(conversation: Conversation) -> None:
    assert len(conversation.server) == 6  # dispatch, notification and switchboard, twice
    for stream in conversation.server:
        assert list(items(stream.sent))
        assert list(items(stream.received))


def test_client_and_server_saw_the_same_bytes(conversation: Conversation) -> None:
    clients = [s for s in conversation.alice + conversation.bob if s.service != "direct"]
    seen_by_clients = sorted((stream.sent, stream.received) for stream in clients)
    assert seen_by_clients == sorted((s.received, s.sent) for s in conversation.server)


def test_the_dispatch_server_sends_each_client_on(conversation: Conversation) -> None:
    address = f"127.0.0.1:{conversation.ports[0]}"
    for who in ("alice", "bob"):
        *_, last = conversation.commands(who, "dispatch")
        assert last.words == ["XFR", "3", "NS", address, "0", address]


def test_sign_in_has_the_steps_of_msnp12(conversation: Conversation) -> None:
    commands = conversation.commands("alice", "notification")
    lines = [" ".join(item.words) for item in commands]
    assert "VER 1 MSNP12" in lines
    assert f"USR 3 TWN I {ALICE}" in lines
    assert f"USR 4 OK {ALICE} 1 0" in lines
    (profile,) = (payload for words, payload in commands if words[:2] == ["MSG", "Hotmail"])
    assert b"text/x-msmsgsprofile" in profile
    assert {line.split()[1] for line in lines if line.startswith("LST ")} == {
        f"N={BOB}",
        f"N={CAROL}",
    }
    assert {words[0] for words, _ in commands} >= {"CHL", "QRY", "PNG", "QNG", "UUX", "UBX", "SBS"}
    assert "OUT" in lines


def test_presence_goes_both_ways_and_ends_offline(conversation: Conversation) -> None:
    seen = [
        words[-5] if words[0] != "FLN" else "FLN"
        for words, _ in conversation.commands("bob", "notification")
        if words[0] in ("ILN", "NLN", "FLN") and ALICE in words
    ]
    assert seen == ["NLN", "BSY", "NLN", "FLN"]


def test_a_contact_who_is_offline_cannot_be_called(conversation: Conversation) -> None:
    lines = [" ".join(item.words) for item in conversation.commands("alice", "switchboard")]
    assert f"CAL 2 {CAROL}" in lines
    assert "217 2" in lines


def test_the_chat_has_text_typing_and_a_nudge(conversation: Conversation) -> None:
    payloads = [payload for _, payload in conversation.commands("bob", "switchboard")]
    texts = [p.partition(b"\r\n\r\n")[2].decode() for p in payloads if b"text/plain" in p]
    assert any("☕ 你好" in text for text in texts)
    assert any(text.count("\r\n") >= 4 and "\r\nBYE " in text for text in texts)
    assert any(b"TypingUser: alice@example.com\r\n" in payload for payload in payloads)
    assert any(b"text/x-msnmsgr-datacast\r\n\r\nID: 1\r\n" in payload for payload in payloads)


def test_files_are_offered_declined_and_accepted(conversation: Conversation) -> None:
    text = dialogue(conversation)
    contexts = [base64.b64decode(found) for found in re.findall(r"Context: (\S+)", text)]
    offers = []
    for context in contexts:
        length, version, size, preview = struct.unpack_from("<IIQI", context)
        assert (len(context), length, version, preview) == (574, 574, 2, 1)
        offers.append((context[20:570].decode("utf-16-le").rstrip("\0"), size))
    assert sorted(offers) == [
        ("Kölner Dom.jpg", 40_000),
        ("notes.txt", 3_000),
        ("party.exe", 70_000),
    ]
    assert text.count("MSNSLP/1.0 603 Decline") == 1
    assert text.count("MSNSLP/1.0 200 OK") == 3
    assert text.count("Listening: true") == 1


def test_each_slp_message_counts_its_body_to_the_nul(conversation: Conversation) -> None:
    everything = packets(conversation.commands("alice", "switchboard"))
    messages: dict[int, bytes] = {}
    for header, data in everything:
        if header[0] == 0 and data:
            messages[header[1]] = messages.get(header[1], b"") + data
            assert header[2] + header[4] == len(messages[header[1]])
    assert len(messages) == 9
    for message in messages.values():
        head, _, body = message.partition(b"\r\n\r\n")
        (length,) = re.findall(rb"Content-Length: (\d+)", head)
        assert int(length) == len(body)
        assert body.endswith(b"\r\n\r\n\0")


def test_every_peer_to_peer_message_is_acknowledged(conversation: Conversation) -> None:
    everything = [header for header, _ in packets(conversation.commands("alice", "switchboard"))]
    complete = {(h[1], h[6], h[3]) for h in everything if h[5] != 2 and h[2] + h[4] == h[3]}
    assert {(h[6], h[7], h[8]) for h in everything if h[5] == 2} == complete


def test_a_small_file_goes_over_the_switchboard(conversation: Conversation) -> None:
    everything = packets(conversation.commands("alice", "switchboard"))
    parts = [(header, data) for header, data in everything if header[0] and data]
    assert [len(data) for _, data in parts] == [1202, 1202, 596]
    assert {header[5] for header, _ in parts} == {0x1000030}
    name, size, digest = conversation.reports["bob"]["sent"][0]
    data = b"".join(data for _, data in parts)
    assert [name, size, digest] == ["notes.txt", len(data), hashlib.sha256(data).hexdigest()]


def test_a_large_file_goes_over_a_direct_connection(conversation: Conversation) -> None:
    sent, received = direct(conversation)
    assert sent[0] == b"foo\0"
    (nonce,) = re.findall(r"Nonce: (\S+)", dialogue(conversation))
    for handshake in (sent[1], received[0]):
        assert len(handshake) == 48
        assert struct.unpack_from("<I", handshake, 28) == (0x100,)
        assert handshake[32:] == UUID(nonce).bytes_le
    parts = [frame for frame in sent[2:] if frame[28:32] == struct.pack("<I", 0x1000030)]
    assert max(map(len, parts)) == 48 + 1352
    data = b"".join(frame[48:] for frame in parts)
    _, size, digest = conversation.reports["alice"]["sent"][0]
    assert [len(data), hashlib.sha256(data).hexdigest()] == [size, digest]
    assert sum(frame[48:].startswith(b"BYE ") for frame in received) == 1


def test_direct_connection_looks_the_same_from_both_ends(conversation: Conversation) -> None:
    (near,) = (stream for stream in conversation.alice if stream.service == "direct")
    (far,) = (stream for stream in conversation.bob if stream.service == "direct")
    assert (near.sent, near.received) == (far.received, far.sent)


def test_run_tells_the_ports_before_any_client_starts(tmp_path: Path) -> None:
    told = []

    def on_ready(ports: list[int]) -> None:
        told.append(ports)
        assert not (tmp_path / "alice.jsonl").exists()
        assert not (tmp_path / "bob.jsonl").exists()

    assert run(on_ready=on_ready, timeout_s=PATIENCE_S, transcripts=tmp_path) == 0
    ((notification, switchboard),) = told
    assert notification != switchboard
    assert {p.name for p in tmp_path.iterdir()} == {"server.jsonl", "alice.jsonl", "bob.jsonl"}


def test_run_cleans_up_when_its_caller_fails() -> None:
    ports: list[int] = []

    def on_ready(told: list[int]) -> None:
        ports.extend(told)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(on_ready=on_ready)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]), PATIENCE_S)


def test_run_out_of_time_fails_with_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(timeout_s=0.0) == 1
    assert "not finished after 0 s" in capfd.readouterr().err


def demo_process(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "streamtap.demo", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def test_runs_at_the_same_time_do_not_meet() -> None:
    runs = [demo_process("--timeout", str(PATIENCE_S)) for _ in range(3)]
    for process in runs:
        output, notes = process.communicate(timeout=3 * PATIENCE_S)
        assert (process.returncode, output) == (0, "")
        assert re.fullmatch(r"demo: server on ports \d+ and \d+\n", notes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_demo_that_is_stopped_leaves_no_process_behind(number: signal.Signals) -> None:
    # a pace, so that it is still at it; a time-out, so that a killed one's clients give up
    process = demo_process("--pace", "0.5", "--timeout", "0.1")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("demo: server on ports ")
    process.send_signal(number)
    # all children write to this pipe: its end is theirs
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
