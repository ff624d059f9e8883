"""The demo's server against clients of every sort, through plain sockets."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from demo.raw import (
    PATIENCE_S,
    RawClient,
    ServerProcess,
    joined,
    policy,
    signed_in,
    switchboard,
)
from streamtap.demo import client_command, environment
from streamtap.demo.credentials import PASSWORD, PRODUCT_ID, ticket

ALICE, BOB, CAROL = (f"{name}@example.com" for name in ("alice", "bob", "carol"))
TEXT = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=UTF-8\r\n\r\nh\xc3\xa9"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One server for all tests here: whatever one does to it, the next finds it well."""
    with ServerProcess() as process:
        yield process


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n" * 3,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n",
        b"VER\r\n",
        b"VER one MSNP12\r\n",
        b"VER 99999999999 MSNP12\r\n",
        b"VER 1 \xff\xfe\r\n",
        b"VER 1 MSNP12\x1b[2J\r\n",
        b"ver 1 MSNP12\r\n",
        b"MSG 1 U\r\n",
        b"MSG 1 U -5\r\n",
        b"MSG 1 U 9999999\r\n",
        "MSG 1 U ٣\r\n".encode(),
        b"QRY 1 PROD 99999999999999999999\r\n",
        b"ANS 1 alice@example.com 1.2.3\r\n",
        b"CAL 1 alice@example.com\r\n",
        b"USR 1\r\n",
        b"ZZZ 1 2 3\r\n",
    ],
)
@pytest.mark.parametrize("service", ["notification", "switchboard"])
def test_garbage_ends_its_own_connection_only(
    server: ServerProcess, service: str, garbage: bytes
) -> None:
    with signed_in(server.notification, ALICE) as bystander:
        with RawClient(getattr(server, service)) as client:
            client.send_bytes(garbage)
            assert client.is_hung_up()
        assert bystander.ask("PNG") == "QNG 50"


@pytest.mark.parametrize("service", ["notification", "switchboard"])
def test_a_line_without_end_is_not_collected(server: ServerProcess, service: str) -> None:
    with RawClient(getattr(server, service)) as client:
        with pytest.raises(ConnectionError):
            client.send_bytes(b"A" * 64_000_000)  # more than every buffer on the way
        assert client.is_hung_up()


def test_version_is_msnp12_or_none(server: ServerProcess) -> None:
    with RawClient(server.notification) as client:
        assert client.ask("VER 1 MSNP15 MSNP12 CVR0") == "VER 1 MSNP12"
    with RawClient(server.notification) as client:
        assert client.ask("VER 1 MSNP21 CVR0") == "VER 1 0"
        assert client.is_hung_up()


def test_nothing_but_sign_in_is_allowed_before_it(server: ServerProcess) -> None:
    with RawClient(server.notification) as client:
        assert client.ask("XFR 1 SB") == "302 1"
        assert client.is_hung_up()


@pytest.mark.parametrize("wrong", ["account", "password", "policy"])
def test_a_wrong_ticket_is_refused(server: ServerProcess, wrong: str) -> None:
    client, text = policy(server.notification, ALICE)
    proof = {
        "account": ticket(BOB, PASSWORD, text),
        "password": ticket(ALICE, "wrong", text),
        "policy": ticket(ALICE, PASSWORD, "of another sign-in"),
    }
    with client:
        assert client.ask(f"USR 2 TWN S {proof[wrong]}") == "911 2"
        assert client.is_hung_up()


def test_an_unknown_account_is_refused(server: ServerProcess) -> None:
    with RawClient(server.notification) as client:
        assert client.ask("USR 1 TWN I mallory@example.com") == "911 1"


def test_a_wrong_challenge_answer_ends_the_sign_in(server: ServerProcess) -> None:
    with signed_in(server.notification, ALICE) as client:
        assert client.ask(f"QRY 9 {PRODUCT_ID} 32", b"0" * 32) == "540 9"
        assert client.is_hung_up()


def test_signing_in_elsewhere_ends_the_first_place(server: ServerProcess) -> None:
    first = signed_in(server.notification, ALICE)
    with first, signed_in(server.notification, ALICE) as second:
        first.until("OUT", "OTH")
        assert first.is_hung_up()
        assert second.ask("PNG") == "QNG 50"


def test_who_appears_offline_is_seen_leaving_and_cannot_call(server: ServerProcess) -> None:
    alice = signed_in(server.notification, ALICE)
    with alice, signed_in(server.notification, BOB) as bob:
        alice.until("NLN", "NLN", BOB)
        assert alice.ask("CHG 7 HDN 0 0") == "CHG 7 HDN 0 0"
        bob.until("FLN", ALICE)
        assert alice.ask("XFR 8 SB") == "913 8"
        assert alice.ask("CHG 9 XXX 0 0") == "201 9"


def test_calls_that_cannot_be_made_are_refused(server: ServerProcess) -> None:
    with signed_in(server.notification, ALICE) as client:
        room, _ = switchboard(client, ALICE)
        with room:
            assert room.ask(f"CAL 2 {CAROL}") == "217 2"
            assert room.ask(f"CAL 3 {ALICE}") == "215 3"
            assert room.ask("CAL 4 mallory@example.com") == "208 4"
            assert room.ask("CAL 5") == "201 5"


def test_a_cookie_opens_one_door_once_for_one_account(server: ServerProcess) -> None:
    with signed_in(server.notification, ALICE) as client:
        room, used = switchboard(client, ALICE)
        client.send("XFR 6 SB")
        fresh = client.until("XFR", "6").words[-1]
        with room:
            for account, cookie in ((ALICE, used), (BOB, fresh), (ALICE, "1.2.3")):
                with RawClient(server.switchboard) as thief:
                    assert thief.ask(f"USR 1 {account} {cookie}") == "911 1"
                    assert thief.is_hung_up()


def test_messages_alone_are_lost_as_their_sender_wished_to_know(server: ServerProcess) -> None:
    with signed_in(server.notification, ALICE) as client:
        room, _ = switchboard(client, ALICE)
        with room:
            room.send(f"MSG 2 U {len(TEXT)}", TEXT)  # silence
            for mode in "NAD":
                assert room.ask(f"MSG 3 {mode} {len(TEXT)}", TEXT) == "NAK 3"
            assert room.ask("MSG 4 A 1665", b"x" * 1665) == "285 4"


def test_messages_reach_the_others_byte_for_byte(server: ServerProcess) -> None:
    alice = signed_in(server.notification, ALICE)
    with alice, signed_in(server.notification, BOB) as bob:
        room, _ = switchboard(alice, ALICE)
        with room, joined(room, bob, BOB) as guest:
            for number, mode in enumerate("UNAD", 3):
                payload = TEXT + f"\r\nBYE {BOB}\r\n{mode}".encode()
                room.send(f"MSG {number} {mode} {len(payload)}", payload)
                heard = guest.next()
                assert heard.words == ["MSG", ALICE, "Alice", str(len(payload))]
                assert heard.payload == payload
            assert room.next().words == ["ACK", "5"]
            assert room.next().words == ["ACK", "6"]
            guest.send("OUT")
            assert guest.is_hung_up()
            assert room.next().words == ["BYE", BOB]


def test_a_connection_that_breaks_is_a_leave(server: ServerProcess) -> None:
    alice = signed_in(server.notification, ALICE)
    with alice, signed_in(server.notification, BOB) as bob:
        room, _ = switchboard(alice, ALICE)
        with room:
            joined(room, bob, BOB).reset()
            assert room.next().words == ["BYE", BOB]
            bob.reset()
            alice.until("FLN", BOB)


def test_who_does_not_read_is_dropped_and_hinders_nobody(server: ServerProcess) -> None:
    alice = signed_in(server.notification, ALICE)
    with alice, signed_in(server.notification, BOB) as bob:
        room, _ = switchboard(alice, ALICE)
        with room, joined(room, bob, BOB):
            message = b"MSG 9 U 1664\r\n" + b"x" * 1664
            for _ in range(1000):  # 16 MB: more than socket buffers and the server's patience
                room.send_bytes(message * 10)
            assert room.next().words == ["BYE", BOB]
            alice.send("PNG")
            alice.until("QNG", "50")


def test_a_killed_client_goes_offline_and_the_next_conversation_goes_well() -> None:
    with ServerProcess() as server:
        with signed_in(server.notification, BOB) as witness:
            client = start_client("alice", server.notification)
            witness.until("NLN", "NLN", ALICE)
            client.kill()
            client.communicate(timeout=PATIENCE_S)
            witness.until("FLN", ALICE)
        clients = [start_client(who, server.notification) for who in ("alice", "bob")]
        for client in clients:
            _, complaints = client.communicate(timeout=2 * PATIENCE_S)
            assert (client.returncode, complaints) == (0, b"")


def test_a_server_that_is_told_to_end_says_goodbye() -> None:
    with ServerProcess() as server, signed_in(server.notification, ALICE) as client:
        room, _ = switchboard(client, ALICE)
        server.process.send_signal(signal.SIGTERM)
        client.until("OUT", "SSD")
        assert client.is_hung_up()
        with room:
            assert room.is_hung_up()
        assert server.process.wait(PATIENCE_S) == 0


def start_client(who: str, port: int, *options: str) -> subprocess.Popen[bytes]:
    command = [*client_command(who, port, timeout_s=PATIENCE_S), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )


def complaint_of(client: subprocess.Popen[bytes]) -> bytes:
    """The one line that a failed client leaves."""
    output, complaints = client.communicate(timeout=2 * PATIENCE_S)
    assert (client.returncode, output) == (1, b"")
    assert complaints.count(b"\n") == 1
    return complaints


def test_a_client_with_a_wrong_password_says_so(server: ServerProcess) -> None:
    client = start_client("alice", server.notification, "--password", "wrong")
    assert b"error 911" in complaint_of(client)


def test_a_client_without_a_friend_gives_up_in_time(server: ServerProcess) -> None:
    client = start_client("bob", server.notification, "--timeout", "0.5")
    assert complaint_of(client) == b"demo client bob: not finished after 0.5 s\n"


def test_a_client_without_a_server_says_so() -> None:
    with ServerProcess() as gone:
        pass
    assert b"demo client bob: " in complaint_of(start_client("bob", gone.notification))
