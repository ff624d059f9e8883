"""The parser process on real callouts, which the test holds as the keeper does."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.live import Puppet, by_pid, join, leave, say
from helpers.parsers import Keeper, Session, descriptors_of, status_of
from streamtap.capture.callouts import CONTROL_BYTES, RING_BYTES, Callouts
from streamtap.driver import Driver
from streamtap.service import messages

pytestmark = pytest.mark.root
FILTERS = {0: messages.FilterTerms("client"), 1: messages.FilterTerms("server")}


class Service:
    """Unpinned callouts with two filters, and parsers on them."""

    def __init__(self, client: Puppet, server: Puppet) -> None:
        self.callouts = Callouts()
        self.driver = Driver(self.callouts)
        self.keepers: list[Keeper] = []
        for bit, scope in enumerate(by_pid(client, server)):
            self.driver.install(bit, scope)

    def attach(self, *, enabled: int) -> None:
        self.callouts.enable(enabled)
        self.callouts.attach()
        self.callouts.adopt()

    def parser(self, **options: Any) -> Keeper:
        rings = self.callouts.rings()
        try:
            fds = [ring.fd for ring in rings]
            self.keepers.append(
                Keeper(
                    self.driver, *fds, sizes=(RING_BYTES, CONTROL_BYTES), filters=FILTERS, **options
                )
            )
        finally:
            for ring in rings:
                ring.close()
        return self.keepers[-1]

    def close(self) -> None:
        for keeper in self.keepers:
            keeper.close()
        self.callouts.close()


@pytest.fixture
def service(client: Puppet, server: Puppet) -> Iterator[Service]:
    made = Service(client, server)
    yield made
    made.close()


def closings(session: Session) -> list[dict[str, Any]]:
    return session.of("flow.closed")


def test_a_conversation_is_told_whole_by_a_process_without_rights(
    client: Puppet, server: Puppet, service: Service
) -> None:
    keeper = service.parser(enabled=1)
    session = keeper.attach("one", content="full")
    service.attach(enabled=1)
    join(client, server)
    say(client, server, b"\0question")
    keeper.until(lambda: session.of("flow.identified"), "the protocol is known")
    say(server, client, b"\0answer")
    leave(client, server)
    keeper.until(lambda: closings(session), "the flow is closed")
    (closed,) = closings(session)
    assert (closed["sent"], closed["received"], closed["complete"]) == (9, 7, True)
    assert closed["app"]["pid"] == client.pid
    assert closed["app"]["path"] == os.path.realpath(f"/proc/{client.pid}/exe")
    assert [record["content"] for record in session.of("data")] == ["\0question", "\0answer"]
    status = status_of(keeper.process.pid)
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status[name], 16) == 0
    assert "0" not in status["Uid"].split()
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    kinds = Counter(what for what, _ in descriptors_of(keeper.process.pid))
    assert {what: n for what, n in kinds.items() if "bpf" in what} == {"anon_inode:bpf-map": 2}
    assert keeper.finish() == 0
    assert [record["number"] for record in session.records] == list(
        range(1, len(session.records) + 1)
    )


@pytest.mark.parametrize("again", [False, True])
def test_a_parser_that_is_killed_is_followed_by_one_that_misses_nothing(
    client: Puppet, server: Puppet, service: Service, again: bool
) -> None:
    keeper = service.parser(enabled=1)
    session = keeper.attach("one", content="full")
    service.attach(enabled=1)
    join(client, server)
    say(client, server, b"\0before ")
    keeper.until(lambda: session.of("data"), "it is told")
    read = closings(session), [record["content"] for record in session.of("data")]
    assert read == ([], ["\0before "])
    os.kill(keeper.process.pid, signal.SIGKILL)
    keeper.until_ended()
    say(client, server, b"meanwhile ")
    join(client, server, name="t")
    say(server, client, b"whole", name="t")
    if again:
        leave(client, server, name="t")
    number, dropped = keeper.board.session(0)
    assert number == session.records[-1]["number"]
    attach = messages.Attach(
        "one", 0, content="full", after=number, dropped=dropped, resumed=True, opening=True
    )
    second = service.parser(enabled=1, board=keeper.board, sessions=[attach])
    resumed = second.sessions["one"]
    say(client, server, b"after")
    leave(client, server)
    if not again:
        leave(client, server, name="t")
    second.until(lambda: len(closings(resumed)) == 2, "both are closed")
    numbers = [record["number"] for record in resumed.records]
    assert numbers == list(range(number + 1, number + 1 + len(numbers)))
    first, other = sorted(closings(resumed), key=lambda closed: -closed["sent"])
    assert (first["sent"], first["sent_total"], first["missing"]) == (15, 23, 8)
    assert first["missing_ranges"] == [["sent", 0, 8]]
    assert (other["received"], other["complete"]) == (5, True)
    said = [
        (record["offset"], record["content"])
        for record in resumed.of("data")
        if record["flow"] == first["flow"]
    ]
    assert "".join(text for _, text in said) == "meanwhile after"
    assert said[0][0] == 8
    opened = {record["flow"]: record["midstream"] for record in resumed.of("flow.opened")}
    assert opened == {first["flow"]: True, other["flow"]: False}


def test_a_filter_that_is_disabled_and_enabled_again_closes_and_opens_its_flows(
    client: Puppet, server: Puppet, service: Service
) -> None:
    keeper = service.parser(enabled=3)
    session = keeper.attach("one", filters=1)
    service.attach(enabled=3)
    join(client, server)
    say(client, server, b"\0one")
    keeper.until(lambda: session.of("flow.identified"), "it is open")
    service.callouts.enable(2)
    keeper.end.order(messages.SetFilters(FILTERS, 2))
    keeper.until(lambda: closings(session), "it is closed")
    (closed,) = closings(session)
    assert (closed["reason"], closed["sent"]) == ("removed", 4)
    say(client, server, b"unseen")
    keeper.end.order(messages.SetFilters(FILTERS, 3))
    service.callouts.enable(3)
    join(client, server, name="t")
    say(client, server, b"\0two", name="t")
    leave(client, server, name="t")
    keeper.until(lambda: len(closings(session)) == 2, "another is seen")
    assert closings(session)[1]["sent"] == 4
    assert keeper.finish() == 0


def test_a_socket_that_connects_again_is_two_flows(
    client: Puppet, server: Puppet, service: Service
) -> None:
    keeper = service.parser(enabled=1)
    session = keeper.attach("one")
    service.attach(enabled=1)
    server.do("listener = listen()")
    address = server.do("listener.getsockname()")
    os.kill(keeper.process.pid, signal.SIGSTOP)  # so that all of it is there at once
    client.do("s = socket.socket()")
    for data in (b"\0first", b"\0the second"):
        client.begin("s.connect(address); s.sendall(data)", address=address, data=data)
        server.do("t = listener.accept()[0]")
        client.result()
        assert server.do("receive(t, length)", length=len(data)) == data
        # AF_UNSPEC ends the connection and lets the socket connect anew.
        client.do("import ctypes; ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)")
        server.do("t.close()")
    os.kill(keeper.process.pid, signal.SIGCONT)
    keeper.until(lambda: len(closings(session)) == 2, "both are closed")
    assert [closed["sent"] for closed in closings(session)] == [6, 11]
    assert len({record["flow"] for record in closings(session)}) == 1
    assert all(closed["complete"] for closed in closings(session))


def test_offsets_stay_true_however_often_a_parser_is_killed_in_the_middle_of_a_stream(
    client: Puppet, server: Puppet, service: Service
) -> None:
    keeper = service.parser(enabled=1, sessions=[messages.Attach("one", 0, content="full")])
    service.attach(enabled=1)
    join(client, server)
    server.begin("discard(s)")
    # Each eight bytes tell where they are.
    client.begin(
        "import select\n"
        "at = 0\n"
        "while not select.select([0], [], [], 0.001)[0]:\n"
        "    s.sendall(b''.join(b'%07d\\n' % n for n in range(at, at + 100)))\n"
        "    at += 100\n"
        "s.close()"
    )
    told: list[dict[str, Any]] = []
    for number in range(6):
        session = keeper.sessions["one"]
        keeper.until(lambda: len(session.of("data")) > 2, "it is told")  # noqa: B023
        if number == 5:
            break
        os.kill(keeper.process.pid, signal.SIGKILL)
        keeper.until_ended()
        told += session.records
        last, dropped = keeper.board.session(0)
        assert last >= session.records[-1]["number"]
        attach = messages.Attach("one", 0, content="full", after=last, dropped=dropped)
        keeper = service.parser(enabled=1, board=keeper.board, sessions=[attach])
    client.begin("at * 8")
    client.result()
    sent = client.result()
    assert server.result() == sent
    session = keeper.sessions["one"]
    keeper.until(lambda: closings(session), "the flow is closed")
    (closed,) = closings(session)
    assert closed["sent_total"] == sent
    assert closed["sent"] + closed["missing"] == sent
    told += session.records
    opened = [record for record in told if record["event"] == "flow.opened"]
    assert [record["midstream"] for record in opened] == [False] + [True] * 5
    gaps = [record for record in told if record["event"] == "stream.gap"]
    assert [(gap["offset"], gap["cause"]) for gap in gaps] == [(0, "midstream")] * 5
    assert [record["number"] for record in told] == sorted({record["number"] for record in told})
    data = [record for record in told if record["event"] == "data"]
    for record in data:
        offset, text = record["offset"], record["content"]
        first = offset // 8
        expected = "".join(f"{n:07d}\n" for n in range(first, first + len(text) // 8 + 2))
        assert expected[offset % 8 :][: len(text)] == text
        assert len(text) == min(record["length"], 65536)
    # Each goes on behind what the one before it had read.
    resumed = [gap["length"] for gap in gaps]
    assert resumed == sorted(resumed)
