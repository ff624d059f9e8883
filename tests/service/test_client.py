"""The Python interface to the service, against a real control socket."""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import streamtap
from helpers.control import DEADLINE_S, Running, lines_of
from helpers.records import message, opened, record
from streamtap.capture.inspect import LiveFlow
from streamtap.errors import NotFound, NotRunning, PermissionMissing, ServiceError
from streamtap.flows.scope import Scope
from streamtap.service.client import Client, new_filter
from streamtap.service.protocol import AddFilters, Attach, SessionInfo, TraceStart, TraceStop
from streamtap.service.state import Filter, Recorded

FILTER = Filter(name="curl", scope=Scope("exe", "/usr/bin/curl", path="/usr/bin/curl"), bit=3)
SESSION = Recorded(name="chat", selection=("notify",), outputs=("/var/tmp/chat.jsonl",))
FLOW = LiveFlow(
    flow="1f",
    pid=7,
    comm="curl",
    uid=0,
    local="127.0.0.1:1",
    remote="127.0.0.1:2",
    role="client",
    state="established",
    policy="full",
    sent=1,
    received=2,
    lost=0,
    midstream=False,
    monitor=None,
)


@pytest.fixture
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        one = Running(Path(folder) / "control.sock")
        try:
            yield one
        finally:
            one.close()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with streamtap.connect(running.served.path) as one:
        yield one


@pytest.mark.parametrize("there_is_a_group", [True, False])
def test_who_may_not_ask_is_told_of_a_group_only_where_there_is_one(
    there_is_a_group: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    def group(name: str) -> None:
        if not there_is_a_group:
            raise KeyError(name)

    monkeypatch.setattr("streamtap.service.client.connect_to", connect)
    monkeypatch.setattr("grp.getgrnam", group)
    with pytest.raises(PermissionMissing) as raised:
        streamtap.connect(tmp_path / "control.sock")
    assert ("usermod" in raised.value.hint) == there_is_a_group


def test_without_a_service_it_is_said_and_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NotRunning) as raised:
        streamtap.connect(tmp_path / "control.sock")
    assert raised.value.exit_code == 3
    assert raised.value.hint == "sudo streamtap start"


def test_the_socket_of_a_dead_service_is_no_service(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunning):
        streamtap.connect(path)


def test_what_there_is_comes_typed(running: Running, client: Client) -> None:
    info = SessionInfo(name="chat", kind="recorded", running=True, user="root", uid=0)
    running.service.answers = {"list": [FILTER], "sessions": [info]}
    running.service.flows = [FLOW]
    assert client.status().pid == os.getpid()
    assert client.filters() == (FILTER,)
    assert client.flows() == (FLOW,)
    assert client.sessions() == (info,)


def test_filters_are_added_with_what_was_written_and_its_whole_path(
    running: Running, client: Client
) -> None:
    running.service.answers = {"add_filters": [FILTER]}
    assert client.add(["./curl", new_filter("pid", "7", follow_forks=True)]) == (FILTER,)
    (asked,) = running.service.handled
    assert isinstance(asked, AddFilters)
    assert (asked.filters[0].given, asked.filters[0].path) == ("./curl", os.path.abspath("curl"))
    assert (asked.filters[1].path, asked.filters[1].follow_forks) == ("", True)


@pytest.mark.parametrize(
    ("given", "path"), [("*/curl", ""), ("sh", None), ("not-on-path", ""), ("/a/../b", "/b")]
)
def test_a_path_is_made_whole_as_a_shell_would(given: str, path: str | None) -> None:
    found = new_filter("exe", given).path
    assert found == path if path is not None else found.endswith("/sh")


@pytest.mark.parametrize(
    ("kind", "given"), [("launch", "ls"), ("exe", ""), ("comm", "x" * 5000), ("exe", "/b\udcff")]
)
def test_a_filter_that_cannot_be_meant_is_refused_at_once(kind: str, given: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        new_filter(kind, given)


def test_one_path_is_not_taken_for_one_of_each_letter(client: Client) -> None:
    with pytest.raises(TypeError, match="a sequence"):
        client.add("/usr/bin/curl")


def test_a_path_that_is_no_text_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"/b\\udcff is not UTF-8"):
        new_filter("exe", "/b\udcff")


def test_errors_are_those_of_the_service(client: Client) -> None:
    with pytest.raises(NotFound, match="no filter curl") as raised:
        client.enable("curl")
    assert raised.value.hint == "see: streamtap list"
    assert client.status()  # it goes on


def test_wrong_words_are_a_value_error(client: Client) -> None:
    with pytest.raises(ValueError, match="name"):
        client.stop_trace("../passwd")


def test_a_session_is_started_and_stopped(running: Running, client: Client) -> None:
    running.service.answers = {"trace_start": SESSION, "trace_stop": SESSION}
    assert client.start_trace("chat", "notify", outputs=["chat.jsonl"], keep=2) == SESSION
    assert client.stop_trace("chat") == SESSION
    start, stop = running.service.handled
    assert isinstance(start, TraceStart)
    assert (start.outputs, start.keep) == ((os.path.abspath("chat.jsonl"),), 2)
    assert isinstance(stop, TraceStop)


def test_a_session_without_a_file_has_one_in_the_state(
    running: Running, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STREAMTAP_STATE_DIR", str(tmp_path))
    running.service.answers = {"trace_start": SESSION}
    client.start_trace("chat")
    (start,) = running.service.handled
    assert isinstance(start, TraceStart)
    assert start.outputs == (str(tmp_path / "recordings" / "chat.jsonl"),)


def test_records_come_typed_with_what_was_missed_and_damaged(
    running: Running, client: Client
) -> None:
    first, second = record(opened()), record(message())
    with client.records("all", content="none", last=5, filters=["curl"]) as records:
        assert records.name == "one"
        stream = running.stream
        stream.sendall(lines_of((1, first), (4, second)) + b'{"number":5,"nonsense":1}\n')
        stream.sendall(lines_of((6, first)))
        got = [next(records) for _ in range(3)]
        assert [one.number for one in got] == [1, 4, 6]
        assert got[1] == msgspec.structs.replace(second, number=4)
        assert (records.missed, records.damaged) == (2, 1)
        assert client.status()  # on another connection
        running.service.clients[0].close()
        assert list(records) == []
        assert records.ended
    asked = running.service.handled[0]
    assert isinstance(asked, Attach)
    assert (asked.content, asked.last_s, asked.filters) == ("none", 5, ("curl",))


def test_waiting_for_records_ends_in_time(running: Running, client: Client) -> None:
    with client.records() as records:
        assert records.wait(0) == []
        assert not records.ended
        running.stream.sendall(lines_of((1, record(opened())))[:-1])
        assert records.wait(0.01) == []  # half a line
        running.stream.sendall(b"\n")
        assert len(records.wait(DEADLINE_S)) == 1


def test_leaving_a_session_ends_it_in_the_service(running: Running, client: Client) -> None:
    with client.records():
        pass
    running.until(lambda: running.service.ended)


def test_a_connection_that_was_ended_for_its_silence_is_made_again(
    running: Running, client: Client
) -> None:
    client.status()
    running.service.clients[0].close()
    assert client.status()


def test_one_that_holds_filters_is_not(running: Running, client: Client) -> None:
    running.service.answers = {"add_filters": [FILTER]}
    client.add(["/bin/true"], temporary=True)
    running.service.clients[0].close()
    with pytest.raises(ServiceError, match="ended the connection"):
        client.status()


def test_the_end_of_the_service_can_be_waited_for(running: Running, client: Client) -> None:
    client.stop()
    with pytest.raises(ServiceError, match="has not ended"):
        client.wait_until_ended(0)
    running.service.clients[0].close()
    client.wait_until_ended(DEADLINE_S)


@pytest.mark.parametrize("said", [b"hello\n", b'{"id":1,"result":[1]}\n', b""])
def test_what_is_no_reply_is_told_so(tmp_path: Path, said: bytes) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(1 << 16)
                accepted.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with streamtap.connect(path) as client, pytest.raises(ServiceError):
            client.status()
        thread.join(DEADLINE_S)
