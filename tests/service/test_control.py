"""The control socket with real connections, also of clients that mean harm."""

import contextlib
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.control import DEADLINE_S, Served
from streamtap.errors import AlreadyRunning, NotFound
from streamtap.service.bounds import Bounds, Bucket
from streamtap.service.protocol import (
    MAX_LINE,
    Remove,
    Status,
)

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Which other users can look into."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    one = Served(folder / "control.sock", group="nogroup")
    yield one
    one.close()


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., Served]]:
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Served:
            one = Served(folder / "control.sock", **options)
            stack.callback(one.close)
            return one

        yield make


# --- requests and replies ------------------------------------------------------------------------


def test_a_request_is_answered_and_told(served: Served) -> None:
    reply = served.ask(served.connect(), verb="status")
    assert reply["id"] == 1
    assert reply["result"]["pid"] == os.getpid()
    (told,) = served.service.told
    assert (told.request, told.uid, told.pid) == ("status", os.getuid(), os.getpid())
    assert told.result == "granted"


def test_a_failure_has_the_exit_code_and_what_to_do(served: Served) -> None:
    reply = served.ask(served.connect(), id=5, verb="enable", name="curl")
    wanted = {"message": "no filter curl", "hint": "see: streamtap list", "code": 6}
    assert (reply["id"], reply["error"]) == (5, wanted)
    assert served.service.told[0].result == "failed: no filter curl"


def test_a_defect_of_the_service_is_told_without_its_details(served: Served) -> None:
    client = served.connect()
    reply = served.ask(client, verb="enable", name="broken")
    assert reply["error"]["code"] == 1
    assert "secret" not in json.dumps(reply)
    assert "result" in served.ask(client, verb="status")


def test_requests_that_come_at_once_are_answered_in_their_order(served: Served) -> None:
    client = served.connect()
    client.sendall(b"".join(b'{"id":%d,"verb":"status"}\n' % number for number in range(10)))
    assert [served.reply(client)["id"] for _ in range(10)] == list(range(10))


def test_a_request_may_come_in_pieces(served: Served) -> None:
    client = served.connect()
    for letter in b'{"id":1,"verb":"status"}':
        client.send(bytes((letter,)))
        served.settle()
    assert served.service.handled == []
    client.send(b"\n")
    assert "result" in served.reply(client)


def test_who_says_all_at_once_and_ends_its_side_gets_its_reply(served: Served) -> None:
    client = served.connect()
    client.sendall(b'{"id":1,"verb":"status"}\n')
    client.shutdown(socket.SHUT_WR)
    assert "result" in served.reply(client)
    assert served.read(client) == b""
    assert served.server.connections == []


def test_a_reply_may_come_later_and_the_next_request_waits_for_it(served: Served) -> None:
    client = served.connect()
    client.sendall(b'{"id":1,"verb":"enable","name":"later"}\n{"id":2,"verb":"status"}\n')
    served.until(lambda: served.service.handled)
    served.settle()
    assert len(served.service.handled) == 1
    served.service.clients[0].finish(NotFound("gone"))
    assert served.reply(client)["error"]["code"] == 6
    assert served.reply(client)["id"] == 2
    assert [told.result for told in served.service.told] == ["failed: gone", "granted"]


def test_what_was_granted_later_is_told_though_the_client_has_gone(served: Served) -> None:
    client = served.connect()
    client.sendall(b'{"id":1,"verb":"enable","name":"later"}\n')
    served.until(lambda: served.service.handled)
    served.service.clients[0].close()
    served.service.clients[0].finish(None)
    assert [told.result for told in served.service.told] == ["granted"]


def test_a_client_of_another_version_is_told_so_but_may_stop_the_service(served: Served) -> None:
    client = served.connect()
    for verb in ("list", "observe"):
        error = served.ask(client, verb=verb, version="9.9")["error"]
        assert "9.9" in error["message"]
        assert error["hint"] == "sudo streamtap restart"
    assert "result" in served.ask(client, verb="stop", version="9.9")


# --- the socket ----------------------------------------------------------------------------------


def test_without_the_group_only_root_may_connect(serve: Callable[..., Served]) -> None:
    served = serve(group="no-such-group")
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


def test_with_the_group_its_members_may_connect(served: Served) -> None:
    if os.getuid():
        pytest.skip("only root can give a file away")
    status = served.path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, NOBODY)


def test_the_socket_of_a_dead_service_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    source = (
        "import os, sys; from pathlib import Path;"
        "from streamtap.service.listening import Listener;"
        "Listener(Path(sys.argv[1]), None); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", source, path], check=True, timeout=DEADLINE_S)
    assert path.is_socket()
    served = Served(path)
    try:
        assert "result" in served.ask(served.connect(), verb="status")
    finally:
        served.close()
    assert not path.exists()


def test_a_living_service_is_not_replaced(served: Served) -> None:
    # A lock is the process's own: it takes another one to meet it.
    source = (
        "import sys; from pathlib import Path;"
        "from streamtap.errors import AlreadyRunning;"
        "from streamtap.service.listening import Listener\n"
        "try: Listener(Path(sys.argv[1]), None)\n"
        "except AlreadyRunning as error: sys.exit(error.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", source, served.path], timeout=DEADLINE_S)
    assert done.returncode == AlreadyRunning.exit_code == 7
    assert "result" in served.ask(served.connect(), verb="status")


def test_a_folder_with_a_long_path_will_do(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 100) / ("b" * 100) / "control.sock"
    served = Served(path)
    assert path.is_socket()
    served.close()


# --- clients that mean harm ----------------------------------------------------------------------

HARM = {
    "no JSON": b"GET / HTTP/1.1\r\n\r\n",
    "binary": bytes(range(256)) * 8 + b"\n",
    "a megabyte on one line": b"x" * (1 << 20),
    "a megabyte of JSON": b'{"id":1,"verb":"enable","name":"' + b"n" * (1 << 20),
    "an empty line": b"\n",
    "nested without end": b"[" * 60_000 + b"\n",
}


@pytest.mark.parametrize("said", HARM.values(), ids=HARM)
def test_what_is_no_request_ends_that_client_with_an_error_and_no_other(
    served: Served, said: bytes
) -> None:
    harmful, other = served.connect(), served.connect()
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        rest = said
        while rest:
            rest = rest[harmful.send(rest) :]
    reply = served.reply(harmful)
    assert (reply["id"], reply["error"]["code"]) == (None, 2)
    assert served.read(harmful) == b""
    assert "result" in served.ask(other, verb="status")
    assert served.service.told[0].request == "(malformed)"
    assert served.service.told[0].result.startswith("refused: ")
    assert served.service.handled == [Status(id=1)]


def test_half_a_line_and_an_end_is_answered_with_what_is_wrong(served: Served) -> None:
    client = served.connect()
    client.sendall(b'{"id":1,"verb":"sta')
    client.shutdown(socket.SHUT_WR)
    assert "cut short" in served.reply(client)["error"]["message"]
    assert served.read(client) == b""


def test_a_request_of_the_longest_length_is_taken(served: Served) -> None:
    client = served.connect()
    line = b'{"id":1,"verb":"status"' + b" " * (MAX_LINE - 25) + b"}\n"
    assert len(line) == MAX_LINE
    client.sendall(line)
    assert "result" in served.reply(client)


def test_who_goes_away_leaves_nothing_behind(served: Served) -> None:
    for said in (b"", b'{"id":1,', b'{"id":1,"verb":"status"}\n', b'{"id":1,"verb":"flows"}\n'):
        client = served.connect()
        client.sendall(said)
        client.close()
    served.until(lambda: len(served.service.handled) == 2)
    served.until(lambda: not served.server.connections)


def test_who_says_nothing_is_ended_and_so_is_who_dribbles(served: Served) -> None:
    silent, slow, busy = served.connect(), served.connect(), served.connect()
    served.settle()
    for _ in range(6):
        served.clock.now += 10
        slow.send(b" ")
        served.ask(busy, verb="status")
    assert served.read(silent) == b""
    assert served.read(slow) == b""
    assert "result" in served.ask(busy, verb="status")


def test_who_holds_temporary_filters_is_not_ended_for_saying_nothing(served: Served) -> None:
    client = served.connect()
    added = [{"kind": "pid", "given": "1"}]
    served.ask(client, verb="add_filters", filters=added, temporary=True)
    served.clock.now += 3600
    served.settle()
    assert served.service.ended == []
    client.close()
    served.until(lambda: served.service.ended)


def test_who_does_not_read_costs_one_reply_and_is_ended(served: Served) -> None:
    client, other = served.connect(), served.connect()
    with contextlib.suppress(BlockingIOError):
        for _ in range(1000):
            client.send(b'{"id":1,"verb":"flows"}\n' * 10)
    served.settle()
    assert len(served.service.handled) == 1
    assert "result" in served.ask(other, verb="status")
    served.clock.now += 11
    served.settle()
    assert len(served.server.connections) == 1


def test_a_long_reply_arrives_whole(served: Served) -> None:
    client = served.connect()
    client.sendall(b'{"id":1,"verb":"flows"}\n')
    line = b""
    while not line.endswith(b"\n"):
        line += served.read(client) or pytest.fail("it was ended")
        served.clock.now += 5  # as slow as may be: it makes progress
    assert len(json.loads(line)["result"]) == 4000


def test_what_one_user_leaves_unread_is_bounded(serve: Callable[..., Served]) -> None:
    served = serve(bounds=Bounds(pending=10_000_000))
    clients = [served.connect() for _ in range(5)]
    for client in clients:
        client.sendall(b'{"id":1,"verb":"flows"}\n')
    served.until(lambda: len(served.service.handled) == 5)
    assert sum(one.pending for one in served.server.connections) <= 10_000_000
    assert len(served.server.connections) == 2


def test_who_asks_too_fast_waits_and_is_answered_in_the_end(serve: Callable[..., Served]) -> None:
    served = serve(bounds=Bounds(rate=2, burst=3, root_rate=2, root_burst=3))
    client = served.connect()
    client.sendall(b'{"id":1,"verb":"status"}\n' * 5)
    served.until(lambda: len(served.service.handled) == 3)
    served.settle()
    assert len(served.service.handled) == 3
    assert served.turn() == pytest.approx(0.5)
    served.clock.now += 0.5
    served.settle()
    assert len(served.service.handled) == 4
    served.clock.now += 0.5
    served.until(lambda: len(served.service.handled) == 5)
    assert [served.reply(client)["id"] for _ in range(5)] == [1] * 5


def test_who_asks_all_the_time_does_not_keep_the_others_from_being_heard(
    serve: Callable[..., Served],
) -> None:
    served = serve(bounds=Bounds(rate=1, burst=1, root_rate=1, root_burst=1))
    busy = [served.connect() for _ in range(4)]
    for client in busy:
        client.sendall(b'{"id":1,"verb":"status"}\n' * 20)
    served.settle()
    late = served.connect()
    late.sendall(b'{"id":2,"verb":"flows"}\n')
    served.settle()
    for _ in range(len(busy) + 1):
        served.clock.now += 1
        served.settle()
    assert [request.id for request in served.service.handled].count(2) == 1
    busy[0].close()  # who goes while it waits holds up nobody
    served.settle()
    handled = len(served.service.handled)
    for _ in range(4):
        served.clock.now += 1
        served.settle()
    assert len(served.service.handled) == handled + 4


def test_connections_of_a_user_are_bounded_and_the_next_is_told(
    serve: Callable[..., Served],
) -> None:
    bound = Bounds(root=3, per_user=3)
    served = serve(bounds=bound)
    clients = [served.connect() for _ in range(3)]
    served.settle()
    refused = served.connect()
    assert "too many" in served.reply(refused)["error"]["message"]
    assert served.read(refused) == b""
    clients[0].close()
    served.until(lambda: len(served.server.connections) == 2)
    assert "result" in served.ask(served.connect(), verb="status")


def test_for_want_of_descriptors_a_connection_waits(served: Served) -> None:
    client = socket.socket(socket.AF_UNIX)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with client:
        free = os.dup(client.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            client.connect(str(served.path))
            client.sendall(b'{"id":1,"verb":"status"}\n')
            served.turn()
            assert served.turn() == pytest.approx(1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        served.turn()
        assert served.service.handled == []
        served.clock.now += 1
        client.setblocking(False)
        assert "result" in served.reply(client)


def test_descriptors_that_a_client_sends_are_not_taken(served: Served) -> None:
    client = served.connect()
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(client, [b'{"id":1,"verb":"status"}\n'], [0, 1, 2])
    assert "result" in served.reply(client)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the connection


def test_records_of_what_was_refused_are_bounded_and_the_rest_is_counted(
    serve: Callable[..., Served],
) -> None:
    served = serve(
        bounds=Bounds(
            rate=1000,
            burst=1000,
            root_rate=1000,
            root_burst=1000,
            refused_rate=0.1,
            refused_burst=3,
        )
    )
    for _ in range(50):
        client = served.connect()
        client.sendall(b"garbage\n")
        served.reply(client)
    assert len(served.service.told) == 3
    served.clock.now += 10
    served.ask(served.connect(), verb="enable", name="x")
    assert served.service.told[-1].result == "failed: no filter x (47 more before it)"


def test_a_bucket_fills_at_its_rate_up_to_its_burst() -> None:
    bucket = Bucket(2, 2, 0.0)
    assert [bucket.take(0.0), bucket.take(0.0), bucket.take(0.0)] == [True, True, False]
    assert bucket.wait_s(0.25) == pytest.approx(0.25)
    assert bucket.take(0.5)
    assert not bucket.is_full(1.0)
    assert bucket.is_full(100.0)


# --- attached ------------------------------------------------------------------------------------


def test_an_attached_connection_carries_what_the_service_writes(served: Served) -> None:
    client = served.connect()
    assert served.ask(client, verb="attach")["result"] == {"name": "one"}
    (stream,) = served.service.streams
    stream.send(b"record\n")
    assert served.read(client) == b"record\n"
    served.clock.now += 3600
    served.settle()
    assert served.service.ended == []
    client.close()
    served.until(lambda: served.service.ended)


def test_who_goes_on_asking_after_attach_is_ended(served: Served) -> None:
    client = served.connect()
    served.ask(client, verb="attach")
    client.sendall(b'{"id":2,"verb":"status"}\n')
    assert served.read(client) == b""
    assert served.service.ended
    with pytest.raises(BrokenPipeError):
        served.service.streams[0].send(b"record\n")
    assert len(served.service.handled) == 1


def test_a_request_behind_attach_on_the_same_connection_is_an_error(served: Served) -> None:
    client = served.connect()
    client.sendall(b'{"id":1,"verb":"attach"}\n{"id":2,"verb":"status"}\n')
    assert served.reply(client)["error"]["code"] == 2
    assert served.reply(client)["id"] == 2
    assert served.service.streams == []


def test_the_service_ends_a_stream_for_all_who_have_it(served: Served) -> None:
    client = served.connect()
    served.ask(client, verb="attach")
    served.service.clients[0].close()
    assert served.read(client) == b""
    assert served.service.ended


# --- rights --------------------------------------------------------------------------------------

# It becomes another user only when Python runs, which that user may not be able to start.
ASK = """
import encodings.idna, os, socket, sys
group, groups = int(sys.argv.pop(1)), sys.argv.pop(1)
os.setgroups([int(number) for number in groups.split()])
os.setgid(group)
os.setuid(1234)
client = socket.socket(socket.AF_UNIX)
try:
    client.connect(sys.argv[1])
except PermissionError:
    sys.exit("may not connect")
replies = client.makefile("rb")
for line in sys.argv[2:]:
    try:
        client.sendall(line.encode() + b"\\n")
    except BrokenPipeError:
        pass  # it was told why
    print(replies.readline().decode(), end="")
"""
LOOKS: list[dict[str, object]] = [
    {"verb": "status"},
    {"verb": "list"},
    {"verb": "flows"},
    {"verb": "sessions"},
    {"verb": "trace_start", "name": "mine", "outputs": ["/a.jsonl"]},
    {"verb": "trace_stop", "name": "mine"},
    {"verb": "trace_stop", "name": "nobodys"},
    {"verb": "attach", "content": "none"},
]
CHANGES: list[dict[str, object]] = [
    {"verb": "add_filters", "filters": [{"kind": "comm", "given": "curl"}]},
    {"verb": "delete_filters", "names": ["curl"]},
    {"verb": "enable"},
    {"verb": "disable", "name": "curl"},
    {"verb": "remove"},
    {"verb": "stop"},
    {"verb": "trace_start", "name": "mine", "outputs": ["/a.jsonl"], "content": "full"},
    {"verb": "trace_stop", "name": "roots"},
    {"verb": "attach", "content": "full"},
]


def ask_as(served: Served, groups: list[int], requests: list[dict[str, object]]) -> list[Any]:
    """Replies to an unprivileged user in these groups."""
    if os.getuid():
        pytest.skip("only root can become another user")
    served.service.owners = {"mine": 1234, "roots": 0}
    lines = [json.dumps({"id": number, **one}) for number, one in enumerate(requests)]
    ids = ("1234", " ".join(map(str, groups)))
    command = [sys.executable, "-I", "-S", "-c", ASK, *ids, str(served.path), *lines]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        with subprocess.Popen(command, stdout=out, stderr=error) as process:
            try:
                served.until(lambda: process.poll() is not None)
            finally:
                process.kill()
        out.seek(0)
        error.seek(0)
        told = error.read()
        if "may not connect" in told:
            raise PermissionError
        assert told == ""
        return [json.loads(line) for line in out]


def test_a_member_of_the_group_may_look_and_trace_what_is_no_content(served: Served) -> None:
    replies = ask_as(served, [NOBODY], LOOKS)
    assert len(replies) == len(LOOKS)
    assert all("error" not in reply for reply in replies)
    assert {told.uid for told in served.service.told} == {1234}


def test_a_member_of_the_group_may_change_nothing(served: Served) -> None:
    replies = ask_as(served, [NOBODY], CHANGES)
    assert [reply["error"]["code"] for reply in replies] == [4] * len(CHANGES)
    assert all(reply["error"]["hint"] == "run with sudo" for reply in replies)
    assert served.service.handled == []
    assert all(told.result.startswith("refused: ") for told in served.service.told)


def test_others_may_not_even_connect(served: Served) -> None:
    with pytest.raises(PermissionError):
        ask_as(served, [], LOOKS[:1])
    served.path.chmod(0o666)
    replies = ask_as(served, [], [*LOOKS, *CHANGES])
    assert {reply["error"]["code"] for reply in replies} == {4}
    assert "usermod -aG streamtap 1234" in replies[0]["error"]["hint"]


def test_a_user_who_fills_all_connections_does_not_lock_out_root(
    serve: Callable[..., Served],
) -> None:
    served = serve(group="nogroup", bounds=Bounds(connections=1, per_user=1))
    source = ASK + "\nimport time\nclient.recv(1)"
    if os.getuid():
        pytest.skip("only root can become another user")
    words = (str(NOBODY), "", str(served.path), '{"verb":"status"}')
    command = [sys.executable, "-I", "-S", "-c", source, *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as holder:
        try:
            served.until(lambda: served.service.handled)
            assert "result" in served.ask(served.connect(), verb="status")
            assert "error" in ask_as(served, [NOBODY], LOOKS[:1])[0]
        finally:
            holder.kill()


def test_root_may_all(served: Served) -> None:
    if os.getuid():
        pytest.skip("the tests do not run as root")
    for request in CHANGES:
        reply = served.ask(served.connect(), **request)
        assert reply.get("error", {}).get("code") != 4, request
    assert any(isinstance(request, Remove) for request in served.service.handled)
