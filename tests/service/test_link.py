"""Keeper and parser: what each may ask, what is bounded, and who waits for whom."""

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from helpers.kernels import SIZE, FakeKernel
from helpers.live import eventually
from helpers.rings import listing, segment_record
from streamtap.capture.kernel import Candidate
from streamtap.model import Policy
from streamtap.service import link, messages
from streamtap.service.link import LinkError, ParserEnd, RemoteKernel

SETUP = messages.Setup(SIZE, SIZE, b"k" * 16)
FILTERS = messages.SetFilters({0: messages.FilterTerms("chat", None, "meta")}, 0b101)


class Heard:
    """What the parser told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def ready(self, ready: messages.Ready) -> None:
        self.told.append(ready)

    def gone(self, session: str) -> None:
        self.told.append(session)


class Pair:
    """Both ends; the keeper's is served by a thread while the parser's is asked."""

    def __init__(self, kernel: FakeKernel) -> None:
        ours, self.theirs = link.make()
        self.heard = Heard()
        self.kernel = kernel
        self.end = ParserEnd(ours, self.heard)
        self.end.order(SETUP)
        self.end.order(FILTERS)
        self.remote = RemoteKernel(self.theirs, kernel.data.fd, kernel.control.fd)
        self.failed: list[LinkError] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()  # an end is one thread's
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                with self._lock:
                    self.end.serve(self.kernel)
            except LinkError as error:
                self.failed.append(error)
                return

    def order(self, order: messages.Order, fd: int | None = None) -> None:
        with self._lock:
            self.end.order(order, fd)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.end.close()
        self.theirs.close()


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    made = FakeKernel()
    yield made
    made.close()


@pytest.fixture
def pair(kernel: FakeKernel) -> Iterator[Pair]:
    made = Pair(kernel)
    yield made
    made.close()


def test_everything_that_the_source_asks_is_answered_over_the_link(pair: Pair) -> None:
    kernel, remote = pair.kernel, pair.remote
    kernel.numbers = {"control_lost": 3, "segments": 1 << 63}
    assert remote.counters() == {"control_lost": 3, "segments": 1 << 63}
    assert remote.cgroup_path((1 << 64) - 1) == f"/group-{(1 << 64) - 1}-\udcff"
    assert remote.program_of(42) == "/proc/42/exe"
    candidate = Candidate((1 << 64) - 1, 0b100, 7, "/bin/\udcfe", "x\udcff", b"\xff\0", True)
    assert remote.decide(candidate) == 0b100
    assert kernel.asked == [candidate]
    kernel.data.write(segment_record(data=b"hello"))
    data, control = remote.rings()
    assert len(data.read(data.produced, SIZE)) == 1
    data.close()
    control.close()


def test_ten_thousand_flows_are_listed(pair: Pair) -> None:
    pair.kernel.rows = np.repeat(listing(), 10_000)
    pair.kernel.rows["opened"]["flow_id"] = np.arange(10_000)
    listed = pair.remote.list_flows()
    assert listed.tobytes() == pair.kernel.rows.tobytes()
    pair.kernel.rows = pair.kernel.rows[:0]
    assert len(pair.remote.list_flows()) == 0


def test_a_verdict_is_given_only_on_filters_that_are_in_force(pair: Pair) -> None:
    asked = Candidate(1, 0b111, 7, "/bin/x", "", b"", False)
    assert pair.remote.decide(asked) == 0b101
    assert pair.kernel.asked == [asked._replace(filters=0b101)]


def test_policies_are_told_together_whatever_their_number(pair: Pair) -> None:
    for flow_id in range(10_000):
        pair.remote.set_flow_policy(flow_id, Policy.COUNT)
    pair.remote.set_flow_policy(3, Policy.FULL)
    pair.remote.flush()
    eventually(lambda: len(pair.kernel.policies) == 10_000, "the policies are told")
    assert dict(pair.kernel.policies)[3] is Policy.FULL


def test_orders_that_come_while_an_answer_is_awaited_are_kept_in_their_order(pair: Pair) -> None:
    ours, theirs = socket.socketpair()
    pair.order(messages.Attach("one", 0), theirs.fileno())
    theirs.close()
    pair.order(messages.Detach("one"))
    assert pair.remote.counters() == {"control_lost": 0}
    filters, attach, detach = pair.remote.receive()
    assert filters.order == FILTERS
    assert detach.order == messages.Detach("one")
    with attach.take_socket() as given:
        given.sendall(b"mine")
    assert ours.recv(4) == b"mine"
    ours.close()
    assert pair.remote.receive() == []


def test_what_the_parser_tells_is_heard(pair: Pair) -> None:
    pair.remote.tell(messages.Ready(True, 4))
    pair.remote.tell(messages.Gone("one"))
    eventually(lambda: len(pair.heard.told) == 2, "it is heard")
    assert pair.heard.told == [messages.Ready(True, 4), "one"]


WRONG = [
    b"",
    b"\xff" * 100,
    b"x" * (messages.MOST_BYTES + 1),
    msgspec.msgpack.encode({"is": "shut_down"}),
    msgspec.msgpack.encode({"is": "counters"}),
    msgspec.msgpack.encode({"is": "counters", "call": -1}),
    msgspec.msgpack.encode({"is": "counters", "call": 1, "more": 1}),
    msgspec.msgpack.encode({"is": "cgroup_path", "call": 1, "cgroup_id": "/etc"}),
    msgspec.msgpack.encode({"is": "program_of", "call": 1, "pid": 1 << 40}),
    msgspec.msgpack.encode({"is": "policies", "policies": [[1, 9]]}),
    msgspec.msgpack.encode({"is": "policies", "policies": [[1, 1]] * 5000}),
    msgspec.msgpack.encode({"is": "gone", "session": "n" * 300}),
    msgspec.msgpack.encode({"is": "verdict", "call": 1, "filters": 1}),
]


@pytest.mark.parametrize("data", WRONG, ids=range(len(WRONG)))
def test_a_parser_that_says_anything_else_is_to_be_started_anew(
    kernel: FakeKernel, data: bytes
) -> None:
    ours, theirs = link.make()
    end = ParserEnd(ours, Heard())
    if data:
        theirs.send(data)
    theirs.close()
    with pytest.raises(LinkError):
        end.serve(kernel)
    assert not kernel.asked
    assert not kernel.policies
    end.close()


def test_descriptors_that_a_parser_sends_are_not_kept(kernel: FakeKernel) -> None:
    ours, theirs = link.make()
    end = ParserEnd(ours, Heard())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        socket.send_fds(theirs, [messages.encode(messages.Gone("x"))], [0, 1, 2])
    end.serve(kernel)
    assert len(os.listdir("/proc/self/fd")) == before
    theirs.close()
    end.close()


def test_orders_to_a_parser_that_takes_nothing_wait_without_blocking_and_then_fail(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = link.make()
    end = ParserEnd(ours, Heard())
    orders = 0
    while not end.waiting:
        end.order(messages.Detach(f"session-{orders}"))
        orders += 1
    end.order(messages.Detach("last"))
    for _ in range(orders - 1):
        theirs.recv(messages.MOST_BYTES)
    end.serve(kernel)
    assert not end.waiting
    assert f"session-{orders - 1}".encode() in theirs.recv(messages.MOST_BYTES)
    assert b"last" in theirs.recv(messages.MOST_BYTES)
    while not end.waiting:
        end.order(messages.Detach("more"))
    monkeypatch.setattr(link, "STALLED_S", 0.0)
    with pytest.raises(LinkError, match="takes no orders"):
        end.serve(kernel)
    end.close()
    theirs.close()


def test_too_many_orders_that_wait_fail_at_once(kernel: FakeKernel) -> None:
    ours, theirs = link.make()
    end = ParserEnd(ours, Heard())

    def order() -> None:
        for _ in range(100_000):
            end.order(messages.Detach("one"))

    with pytest.raises(LinkError, match="takes no orders"):
        order()
    end.close()
    theirs.close()


def test_a_parser_that_lists_flows_without_end_is_stopped(kernel: FakeKernel) -> None:
    ours, theirs = link.make()
    end = ParserEnd(ours, Heard())

    def ask() -> None:
        for call in range(link.MOST_LISTS + 1):
            theirs.send(messages.encode(messages.ListFlows(call)))
            end.serve(kernel)

    with pytest.raises(LinkError, match="asks for too much"):
        ask()
    end.close()
    theirs.close()


def test_a_parser_whose_keeper_is_gone_hears_of_it(pair: Pair) -> None:
    pair.close()
    with pytest.raises(LinkError):
        pair.remote.counters()
