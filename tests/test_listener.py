"""Captures heard in another process: what it says is what this one would have heard."""

import mmap
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import pytest

import streamtap
from helpers import transcripts
from streamtap import ordered
from streamtap.capture.connections import Item
from streamtap.errors import CaptureFileError, StreamtapError
from streamtap.events import (
    Body,
    FlowClosed,
    FlowIdentified,
    FlowOpened,
    ParserFailed,
    Record,
)
from streamtap.listener import AHEAD, Listener, Local, Remote
from streamtap.model import Closed, Content, Direction, Opened, Segment
from streamtap.pipeline import (
    Listening,
    Telling,
    Wanted,
    WordReader,
    hearing,
    listening,
    steps,
    wire,
    write_words,
)
from streamtap.pipeline.words import Begun, Note
from streamtap.protocols.msnp import MsnpCommand
from streamtap.protocols.opaque import OpaqueData

GOLDEN = sorted((Path(__file__).parent / "golden").rglob("*.transcript"))
STRETCHES = 5
KEY = b"key"


class Source:
    """Batches as a capture gives them."""

    now_ns = packets = missing = evicted = dropped = 0
    progress = None

    def __init__(self, batches: Sequence[list[Item]], last: Sequence[Item] = ()) -> None:
        self._batches = batches
        self._last = list(last)
        self.passed: Counter[str] = Counter(fragments=3)
        self.problems: list[CaptureFileError] = []
        self.closed = False

    def __iter__(self) -> Iterator[list[Item]]:
        for batch in self._batches:
            self.packets += len(batch)
            self.now_ns = max([self.now_ns, *(i.time_ns for i in batch if type(i) is Segment)])
            yield batch
        self.problems.append(CaptureFileError("old.pcap", 77, "cut short"))

    def finish(self) -> list[Item]:
        return self._last

    def close(self) -> None:
        self.closed = True


def source_of(path: Path) -> Source:
    """The conversation as segments, a fifth of them at a time."""
    transcript = transcripts.read(path)
    items: list[Item] = [Opened(flow, (1, 1)) for flow in transcript.flows.values()]
    sequences = {flow.flow_id: [1, 1] for flow in transcript.flows.values()}
    ended: dict[int, int] = dict.fromkeys(sequences, transcripts.START_NS)
    for step in transcript.steps:
        flow_id = transcript.flows[step.flow].flow_id
        ended[flow_id] = step.time_ns
        side = sequences[flow_id]
        if isinstance(step.data, int):
            side[step.direction] += step.data
        elif step.data is not None:
            at = side[step.direction]
            items.append(Segment(flow_id, step.direction, at, step.data, step.time_ns))
            side[step.direction] += len(step.data)
    size = len(items) // STRETCHES + 1
    batches = [items[at : at + size] for at in range(0, len(items), size)]
    return Source(batches, [Closed(flow_id, at, "fin") for flow_id, at in ended.items()])


def listen(source: Source, *, remote: bool) -> tuple[Listener, Wanted]:
    wanted = Wanted(None, Content.FULL)
    listening = Listening(wanted)
    if remote:
        return Remote(source, listening), wanted  # type: ignore[arg-type]
    return Local(source, listening), wanted  # type: ignore[arg-type]


def records_of(
    source: Source, *, remote: bool, stop: Callable[[], bool] = lambda: False
) -> list[Record]:
    listener, wanted = listen(source, remote=remote)
    telling = Telling(wanted, key=KEY)
    records: list[Record] = []
    try:
        for heard, words in listener.stretches(stop):
            for some in words:
                telling.tell(some)
            telling.tick(heard.now_ns)
            records += telling.flush()
    finally:
        listener.close()
    return records


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_what_another_process_heard_is_what_this_one_hears(path: Path) -> None:
    here = records_of(source_of(path), remote=False)
    assert any(isinstance(record.body, FlowClosed) for record in here)
    assert records_of(source_of(path), remote=True) == here


def test_what_came_of_the_captures_is_told_with_each_stretch() -> None:
    source = source_of(GOLDEN[0])
    listener, _ = listen(source, remote=True)
    states = []
    for heard, words in listener.stretches(lambda: False):
        states.append(heard)
        assert any(list(some) for some in words)
    listener.close()
    assert [state.last for state in states] == [False] * (len(states) - 1) + [True]
    assert states[0].began_ns == transcripts.START_NS
    assert sorted(state.packets for state in states) == [state.packets for state in states]
    assert states[-1].passed == {"fragments": 3}
    (problem,) = states[-1].problems
    assert (problem.path, problem.offset, str(problem)) == (
        "old.pcap", 77, "old.pcap: cut short at offset 77",
    )  # fmt: skip


class Endless(Source):
    """Always one more stretch; the first opens a flow. given: how many there were, in whichever
    process."""

    def __init__(self) -> None:
        flow = next(iter(transcripts.read(GOLDEN[0]).flows.values()))
        super().__init__(([Opened(flow, (1, 1))],), [Closed(flow.flow_id, flow.opened_ns, "end")])
        self.given = mmap.mmap(-1, 8)

    def __iter__(self) -> Iterator[list[Item]]:
        for number in count(1):
            self.given[:] = number.to_bytes(8)
            yield self._batches[0] if number == 1 else []


def test_who_stops_is_told_how_the_open_flows_end() -> None:
    stops = iter([False, False, True])
    records = records_of(Endless(), remote=True, stop=lambda: next(stops))
    kinds = [type(record.body) for record in records]
    assert kinds.count(FlowOpened) == kinds.count(FlowClosed) == 1


def test_it_does_not_run_ahead_without_bound() -> None:
    source = Endless()
    listener, _ = listen(source, remote=True)
    for told, _ in enumerate(islice(listener.stretches(lambda: False), 50)):
        assert int.from_bytes(source.given) <= told + AHEAD + 1
    listener.close()


def test_nothing_stays_when_reading_ends_early() -> None:
    before = os.listdir("/proc/self/fd")
    listener, _ = listen(Endless(), remote=True)
    assert isinstance(listener, Remote)
    next(listener.stretches(lambda: False))
    pid = listener.pid
    listener.close()
    assert not os.path.exists(f"/proc/{pid}")
    assert os.listdir("/proc/self/fd") == before


def test_that_it_was_killed_is_an_error_of_ours() -> None:
    listener, _ = listen(Endless(), remote=True)
    assert isinstance(listener, Remote)
    heard = listener.stretches(lambda: False)
    next(heard)
    os.kill(listener.pid, signal.SIGKILL)
    with pytest.raises(StreamtapError, match="process that reads the capture has ended"):
        deque(islice(heard, 3 * AHEAD), maxlen=0)
    listener.close()


def test_what_cannot_be_written_is_told_as_plain_bytes() -> None:
    (flow,) = list(transcripts.read(GOLDEN[0]).flows.values())[:1]
    way = Direction.TO_SERVER
    event = MsnpCommand(
        offset=7, length=9, verb="XYZ", transaction=2**70, args=(), payload_length=0
    )
    begun = (1, flow.flow_id, way, Begun(flow))
    (((piece,), _),) = write_words([[begun, (2, flow.flow_id, way, event)]])
    first, failed, plain = WordReader().read(piece)
    assert first == begun
    assert isinstance(failed[3], Note)
    assert isinstance(failed[3].body, ParserFailed)
    assert plain == (2, flow.flow_id, way, OpaqueData(offset=7, length=9))


@pytest.mark.parametrize("flags", [(), ("all",)])
@pytest.mark.parametrize(
    "name",
    [
        "switchboard",
        "switchboard-with-gap",
        "port-reuse",
        "interleaved",
        "snap",
        "fragments-crossed",
    ],
)
def test_a_long_capture_is_read_as_a_short_one(
    name: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (Path(__file__).parent / "captures").glob(f"{name}.pcap")
    with streamtap.read(path, flags=flags) as short:
        expected = list(short)
    monkeypatch.setattr(ordered, "PAYS", 0)
    with streamtap.read(path, flags=flags) as long:
        assert list(long) == expected


@pytest.mark.parametrize("content", [Content.META, Content.FULL])
@pytest.mark.parametrize(("names", "pays"), [("*", 1 << 30), ("switchboard*", 0)])
def test_what_is_heard_in_parts_is_told_as_what_is_heard_at_once(
    names: str, pays: int, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "PAYS", pays)
    paths = sorted(Path(__file__).parent.glob(f"captures/{names}.pcap"))
    assert paths
    for path in paths:
        with streamtap.read(path, flags=["all"], content=content) as records:
            whole = list(records)
        with monkeypatch.context() as patch:
            for module, name in (
                *((steps, "PART_BYTES"), (steps, "PART_SEGMENTS"), (hearing, "SOME")),
                *((listening, "MOST"), (wire, "MOST")),
            ):
                patch.setattr(module, name, 1)
            with streamtap.read(path, flags=["all"], content=content) as records:
                parts = list(records)
        assert len(parts) == len(whole)
        assert by_flow(parts) == by_flow(whole), path


def by_flow(records: list[Record]) -> dict[str, list[tuple[int, str | None, Body]]]:
    """What each flow said. Not when it was known what it speaks: in parts, that is sooner."""
    flows: dict[str, list[tuple[int, str | None, Body]]] = {}
    for record in records:
        if record.flow is not None and not isinstance(record.body, FlowIdentified):
            told = record.time_ns, record.direction, record.body
            flows.setdefault(record.flow.flow, []).append(told)
    return flows
