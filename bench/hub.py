"""Records to several sessions at once, beside the sink of JSON lines that writes to /dev/null.

The records are those of switchboard sessions. Readers are another process that only counts. A leg
ends when the sockets have taken everything.
"""

import os
import select
import selectors
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

from bench.msnp import CONNECTIONS, TURNS, feed, load
from bench.rounds import Plan, interleave, line, ratios, spread
from streamtap.events import Body, Record
from streamtap.model import Content
from streamtap.trace import JsonLines, Output, Session, choose
from streamtap.trace.hub import Hub
from streamtap.trace.jsonlines import LineEncoder

Batches = Sequence[Sequence[Record]]
MANY = 10
ENOUGH = 256 * 1024 * 1024  # bytes a session may wait for: a leg loses nothing


def hub(plan: Plan) -> None:
    """What giving costs for no session, one and ten, and what one more costs."""
    batches: list[list[Record]] = []
    feed(load(CONNECTIONS, TURNS, 1), batches.append)
    times: dict[str, Callable[[], float]] = {"sink": partial(_sink, batches)}
    for count in (0, 1, MANY):
        times[f"{count} session{'' if count == 1 else 's'}"] = partial(_give, batches, count)
    # Without the time that readers take of the same machine.
    costs: dict[str, Callable[[], float]] = {"encoding": partial(_encoding, batches)}
    for name, count in (("one", 1), ("many", MANY)):
        costs[name] = partial(_give, batches, count, time.process_time_ns)
    legs = times | costs
    for leg in legs.values():
        leg()  # the first run fills caches
    repeats = max(1, round(plan.seconds))
    taken = interleave(plan, {name: partial(_median, leg, repeats) for name, leg in legs.items()})
    for name in times:
        rates = spread([1e9 / spent for spent in taken[name]], "{:,.0f}")
        of_sink = spread(ratios(taken[name], taken["sink"]))
        line(f"hub: {name}", f"{rates} records/s; {of_sink} times the time of the sink")
    more = [(b - a) / (MANY - 1) for a, b in zip(taken["one"], taken["many"], strict=True)]
    line("hub: one more session, CPU time per record", spread(more, "{:.0f}") + " ns")
    of_encoding = spread(ratios(more, taken["encoding"]))
    line("hub: one more session, of a first encoding", of_encoding)


def _median(leg: Callable[[], float], repeats: int) -> float:
    return statistics.median(leg() for _ in range(repeats))


def _sink(batches: Batches) -> float:
    """Nanoseconds a record, through a session with the sink of JSON lines."""
    with open(os.devnull, "wb", buffering=0) as null:
        sink = JsonLines(Output(null))
        sink.open()
        session = Session(choose(), [sink])
        begin = time.perf_counter_ns()
        for batch in batches:
            session.offer(batch)
            session.flush()
        return _each(time.perf_counter_ns() - begin, batches)


def _encoding(batches: Batches) -> float:
    """Nanoseconds of CPU time a record, for its line alone."""
    encode = LineEncoder().encode
    begin = time.process_time_ns()
    for batch in batches:
        for _ in encode(batch):
            pass
    return _each(time.process_time_ns() - begin, batches)


def _give(
    batches: Batches, sessions: int, clock: Callable[[], int] = time.perf_counter_ns
) -> float:
    """Nanoseconds a record, through the hub to so many sessions, until the sockets have all."""
    giver = Hub(clean=_as_it_is, queue_bytes=ENOUGH)
    with _readers(sessions) as ends:
        for number, end in enumerate(ends):
            giver.attach(str(number), end, choose(), content=Content.META)
        giver.flush()
        begin = clock()
        for batch in batches:
            giver.give(batch)
            giver.flush()
        while any(session.queued for session in giver.sessions.values()):
            select.select([giver.fd], [], [])
            giver.flush()
        spent = _each(clock() - begin, batches)
        assert not any(session.dropped for session in giver.sessions.values())
        giver.close()
    return spent


def _as_it_is(body: Body, content: Content) -> Body:
    return body


def _each(spent: int, batches: Batches) -> float:
    return spent / sum(map(len, batches))


@contextmanager
def _readers(count: int) -> Iterator[list[socket.socket]]:
    """The ends to write to; a process counts what comes at the others, until they are closed."""
    pairs = [socket.socketpair() for _ in range(count)]
    process = get_context("fork").Process(target=_count, args=(pairs,))
    process.start()
    for _, there in pairs:
        there.close()
    try:
        yield [here for here, _ in pairs]
    finally:
        for here, _ in pairs:
            here.close()
        process.join()


def _count(pairs: Sequence[tuple[socket.socket, socket.socket]]) -> None:
    total = 0
    with selectors.DefaultSelector() as selector:
        for here, there in pairs:
            here.close()
            selector.register(there, selectors.EVENT_READ)
        buffer = bytearray(1 << 20)
        while selector.get_map():
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                count = key.fileobj.recv_into(buffer)
                total += count
                if not count:
                    selector.unregister(key.fileobj)
