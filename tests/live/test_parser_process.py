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
