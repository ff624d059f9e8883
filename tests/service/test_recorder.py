"""The recorder: as the real process with a user's rights, and its loop alone."""

import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamtap
from streamtap.service import recorder as module
from streamtap.service.confine import ENVIRONMENT, User
from streamtap.service.recorder import Answer, Become, Order, Record, Recorder, body_types
from streamtap.trace.recording import Recording

SRC = Path(streamtap.__file__).parent.parent
TIMEOUT_S = 30.0
NOBODY = User(65534, 65534, (65533,))
LIMIT, KEEP = 1 << 20, 2


def line(number: int, **fields: Any) -> bytes:
    body = {"provider": "init", "flag": "init", "level": "info", "event": "init.started"}
    body |= {"version": "1", "source": "test", **fields}
    return json.dumps({"number": number, "time_ns": number, **body}).encode() + b"\n"


class Link:
    """The keeper's end."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        end.settimeout(TIMEOUT_S)

    def record(self, session: str, *outputs: Path, **options: int) -> socket.socket:
        """Orders a recording; gives the end that lines are written to."""
        ours, theirs = socket.socketpair()
        ours.settimeout(TIMEOUT_S)
        bounds = {"limit_bytes": LIMIT, "keep": KEEP, **options}
        order = Record(session, tuple(map(str, outputs)), **bounds)
        self.order(Order(record=order), theirs)
        return ours

    def order(self, order: Order, *passed: socket.socket) -> None:
        socket.send_fds(self.end, [msgspec.json.encode(order)], [one.fileno() for one in passed])
        for one in passed:
            one.close()

    def answers(self) -> Iterator[Answer]:
        while message := self.end.recv(1 << 20):
            yield msgspec.json.decode(message, type=Answer)

    def answer(self, kind: str) -> Any:
        """The next answer of a kind; those before it are passed over."""
        for answer in self.answers():
            if (found := getattr(answer, kind)) is not None:
                return found
        raise AssertionError(f"the link is closed, and no answer {kind}")


# --- the loop ------------------------------------------------------------------------------------


@pytest.fixture
def link() -> Iterator[Link]:
    """To a recorder that runs in a thread of the test, with the test's rights."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    recorder = Recorder(theirs, body_types())
    thread = threading.Thread(target=recorder.run)
    thread.start()
    try:
        yield Link(ours)
    finally:
        ours.close()
        thread.join(TIMEOUT_S)
        theirs.close()
        assert not thread.is_alive()


def test_lines_come_into_the_files_whole_however_they_are_cut(link: Link, tmp_path: Path) -> None:
    stream = link.record("chat", tmp_path / "a.jsonl", tmp_path / "a.sqlite")
    lines = b"".join(line(number) for number in range(1, 200))
    for at in range(0, len(lines), 97):
        stream.sendall(lines[at : at + 97])
    stream.close()
    ended = link.answer("ended")
    assert (ended.session, ended.lines, ended.dropped, ended.cut) == ("chat", 199, 0, 0)
    assert (tmp_path / "a.jsonl").read_bytes() == lines
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        assert database.execute("SELECT count(*) FROM records").fetchone() == (199,)
    database.close()


def test_a_session_goes_on_in_the_files_it_left(link: Link, tmp_path: Path) -> None:
    for number in (1, 2):
        with link.record("chat", tmp_path / "a.jsonl") as stream:
            stream.sendall(line(number))
        link.answer("ended")
    assert (tmp_path / "a.jsonl").read_bytes() == line(1) + line(2)


def test_a_session_that_is_ordered_anew_ends_the_old_one(link: Link, tmp_path: Path) -> None:
    first = link.record("chat", tmp_path / "a.jsonl")
    first.sendall(line(1))
    second = link.record("chat", tmp_path / "b.jsonl")
    assert link.answer("ended").lines == 1
    assert first.recv(1) == b""
    second.sendall(line(2))
    second.close()
    assert link.answer("ended").lines == 1
    assert (tmp_path / "b.jsonl").read_bytes() == line(2)
    first.close()


def test_a_full_file_is_rotated(link: Link, tmp_path: Path) -> None:
    with link.record("chat", tmp_path / "a.jsonl", keep=1) as stream:
        for number in range(1, 400):
            stream.sendall(line(number, source="x" * 10_000))
    assert link.answer("ended").dropped == 0
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"a.jsonl", "a.1.jsonl"}
    assert max(sizes.values()) <= LIMIT


def test_an_output_that_fails_is_told_and_the_others_go_on(link: Link, tmp_path: Path) -> None:
    outputs = (tmp_path / "none" / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.pcap")
    with link.record("chat", *outputs) as stream:
        assert link.answer("failed").error == "No such file or directory"
        assert "FILE.sqlite" in link.answer("failed").error
        stream.sendall(line(1) + line(2))
    for answer in link.answers():
        assert answer.failed is None  # told once, and not again
        if answer.ended is not None:
            assert answer.ended.dropped == 4
            break
    assert (tmp_path / "b.jsonl").read_bytes() == line(1) + line(2)


def test_a_bug_of_one_output_does_not_end_the_recorder(
    link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Recording.take

    def failing(self: Any, lines: bytes) -> None:
        if self.name.endswith("a.jsonl"):
            raise ZeroDivisionError("a bug")
        take(self, lines)

    monkeypatch.setattr(Recording, "take", failing)
    with link.record("chat", tmp_path / "a.jsonl", tmp_path / "b.jsonl") as stream:
        stream.sendall(line(1))
    failed = link.answer("failed")
    assert (failed.output, failed.error) == (str(tmp_path / "a.jsonl"), "a bug")
    assert link.answer("ended").lines == 1
    assert (tmp_path / "b.jsonl").read_bytes() == line(1)


def test_a_line_without_an_end_is_not_held_for_ever(
    link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 1000)
    with link.record("chat", tmp_path / "a.jsonl") as stream:
        stream.sendall(line(1))
        for _ in range(100):
            stream.sendall(b"x" * 100)
        stream.sendall(b"\n" + line(2) + b'{"half')
    ended = link.answer("ended")
    assert ended.cut == 2
    assert (tmp_path / "a.jsonl").read_bytes() == line(1) + line(2)


def test_counters_are_told_while_it_runs(link: Link, tmp_path: Path) -> None:
    with link.record("chat", tmp_path / "a.jsonl") as stream:
        assert link.answer("counters").lines == 0, "once its outputs were tried"
        stream.sendall(line(1) + line(2))
        assert link.answer("counters").lines == 2


def test_a_keeper_that_does_not_read_holds_nothing_up(link: Link, tmp_path: Path) -> None:
    link.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    streams = [link.record(f"s{number}", tmp_path / f"{number}.jsonl") for number in range(600)]
    for stream in streams:
        stream.sendall(line(1))
        stream.close()
    ended = [answer.ended for answer in take(link.answers(), 600, lambda one: one.ended)]
    assert len({one.session for one in ended if one}) == 600
    assert all((tmp_path / f"{number}.jsonl").read_bytes() == line(1) for number in range(600))


def take(answers: Iterator[Answer], count: int, wanted: Callable[[Answer], object]) -> list[Answer]:
    found: list[Answer] = []
    while len(found) < count:
        answer = next(answers)
        if wanted(answer):
            found.append(answer)
    return found


# --- the process ---------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of user nobody; that of a test lies below one that only root may enter."""
    path = Path(tempfile.mkdtemp(prefix="streamtap-"))
    os.chown(path, NOBODY.uid, NOBODY.gid)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[subprocess.Popen[str], Link]]]:
    """Starts a recorder for a user."""
    made: list[tuple[subprocess.Popen[str], Link]] = []

    def start(user: User = NOBODY) -> tuple[subprocess.Popen[str], Link]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "streamtap.service.recorder", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(SRC)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        link = Link(ours)
        made.append((process, link))
        link.order(Order(become=Become(*user)))
        return process, link

    yield start
    for process, link in made:
        link.end.close()
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(row.split(":\t", 1) for row in text.splitlines())


@pytest.mark.root
@pytest.mark.parametrize("user", [NOBODY, User(0, 0, ())], ids=["nobody", "root"])
def test_it_is_the_user_without_rights_and_records(
    user: User, start: Callable[..., Any], place: Path
) -> None:
    process, link = start(user)
    os.chown(place, user.uid, user.gid)
    confined = link.answer("confined")
    status = status_of(process.pid)
    assert status["Uid"].split() == [str(user.uid)] * 4
    assert status["Gid"].split() == [str(user.gid)] * 4
    assert status["Groups"].split() == [str(group) for group in user.groups]
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert int(status[f"Cap{kind}"], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert (status["Seccomp"] == "2") == confined.seccomp
    with link.record("chat", place / "a.jsonl", place / "a.sqlite") as stream:
        for number in range(1, 6001):  # several rotations of both
            stream.sendall(line(number, source="x" * 1000))
    ended = link.answer("ended")
    assert (ended.lines, ended.dropped, ended.damaged) == (6000, 0, 0)
    names = {path.name for path in place.iterdir()}
    assert names == {f"a{n}.{kind}" for n in ("", ".1", ".2") for kind in ("jsonl", "sqlite")}
    for path in place.iterdir():
        assert path.stat().st_uid == user.uid
        assert path.stat().st_mode & 0o777 == 0o600
    link.end.close()
    assert process.wait(TIMEOUT_S) == 0
    assert process.stderr.read() == ""


@pytest.mark.root
def test_it_writes_where_the_user_may_and_nowhere_else(
    start: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    _, link = start()
    (place / "link.jsonl").symlink_to(tmp_path / "b.jsonl")
    with link.record("chat", tmp_path / "a.jsonl", place / "link.jsonl", place / "c.jsonl"):
        assert link.answer("failed").error == "Permission denied"
        assert link.answer("failed").output == str(place / "link.jsonl")
    link.answer("ended")
    assert list(tmp_path.iterdir()) == []
    assert (place / "c.jsonl").exists()


@pytest.mark.root
def test_root_without_rights_does_not_write_as_others(
    start: Callable[..., Any], place: Path
) -> None:
    _, link = start(User(0, 0, ()))
    place.chmod(0o700)  # nobody's
    with link.record("chat", place / "a.jsonl"):
        assert link.answer("failed").error == "Permission denied"


@pytest.mark.root
def test_what_has_come_is_written_before_it_ends(start: Callable[..., Any], place: Path) -> None:
    process, link = start()
    link.answer("confined")
    stream = link.record("chat", place / "a.jsonl", place / "a.sqlite")
    stream.sendall(b"".join(line(number) for number in range(1, 1001)))
    # A terminal's and a manager's signals to a whole group are not meant for it.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    link.end.shutdown(socket.SHUT_WR)
    assert link.answer("ended").lines == 1000
    assert process.wait(TIMEOUT_S) == 0
    stream.close()
    assert (place / "a.jsonl").read_bytes().count(b"\n") == 1000
    with sqlite3.connect(place / "a.sqlite") as database:
        assert database.execute("SELECT count(*) FROM records").fetchone() == (1000,)
    database.close()


@pytest.mark.root
@pytest.mark.parametrize("unread", [False, True], ids=["read", "unread"])
def test_a_link_that_is_closed_ends_it(unread: bool, start: Callable[..., Any]) -> None:
    process, link = start()
    if unread:
        select.select([link.end], [], [], TIMEOUT_S)
    else:
        link.answer("confined")
    link.end.close()
    assert process.wait(TIMEOUT_S) == 0
    assert process.stderr.read() == ""
