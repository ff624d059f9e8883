"""The way of the data in memory: what each stage costs for a message of a chat, without a kernel.

A batch holds as many records as a poll finds when the callouts wake their reader every 10 ms at
fifty thousand round trips a second.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.rounds import Plan, line, per_item, spread
from bench.spans import Span, Words
from streamtap.events import Record
from streamtap.model import Content, Direction, Segment
from streamtap.pipeline import Pipeline, Places
from streamtap.streams import Reassembler
from streamtap.trace import JsonLines, Output, Recording, choose
from streamtap.trace.pcapng import Pcapng

CONNECTIONS = 100
TURNS = 100
BATCH = 1000
SOCKET = 64 << 10  # bytes that a recorder reads at once
NOTHING: Places = frozenset()
CHAT: Words = (b"\xe7" * 100, b"\xe7" * 100)
BULK: Words = (b"\xe7" * 65_000, b"\xe7" * 65_000)


@contextmanager
def _span(*turns: Words) -> Iterator[Span]:
    span = Span(CONNECTIONS, turns)
    try:
        yield span
    finally:
        span.close()


def _nanoseconds(name: str, action: Callable[[], int], plan: Plan) -> None:
    line(name, spread(per_item(action, plan), "{:.0f}") + " ns")


def ring(plan: Plan) -> None:
    """Walking the ring, and its headers to segments."""
    with _span(*[CHAT] * TURNS) as span:

        def walk() -> int:
            return len(span.find())

        def segments() -> int:
            found = span.find()
            for at in range(0, len(found), BATCH):
                span.segments(found[at : at + BATCH])
            return len(found)

        _nanoseconds("ring: walk, per record", walk, plan)
        _nanoseconds("ring: walk, decode, join, per record", segments, plan)


def reassembler(plan: Plan) -> None:
    """Segments in order, one by one and joined."""
    with _span(*[CHAT] * TURNS) as span:
        joined = [segment for batch in span.batches(BATCH) for segment in batch]
        single = [segment for batch in span.batches(CONNECTIONS) for segment in batch]
        for name, segments in (("joined", joined), ("single", single)):

            def push(segments: list[Segment] = segments) -> int:
                streams = {
                    (flow, side): Reassembler(0, 0) for flow in span.flows for side in Direction
                }
                for segment in segments:
                    streams[segment.flow_id, segment.direction].push(segment)
                return len(segments)

            _nanoseconds(f"reassembler: {name} segments, each", push, plan)


def _feed(span: Span, places: Places | None, take: Callable[[list[Record]], object]) -> int:
    pipeline = Pipeline(places=places, content=Content.META)
    take(pipeline.feed(span.openings()))
    for batch in span.batches(BATCH):
        take(pipeline.feed(batch))
    return span.messages


def _ignore(records: list[Record]) -> None:
    return None


def opaque(plan: Plan) -> None:
    """From the ring to the opaque parser, and on to bursts that somebody wants."""
    with _span(*[CHAT] * TURNS) as span:
        wanted = choose().places
        _nanoseconds(
            "opaque: nothing wanted, per message", lambda: _feed(span, NOTHING, _ignore), plan
        )
        _nanoseconds("opaque: to records, per message", lambda: _feed(span, wanted, _ignore), plan)
        _nanoseconds("opaque: to JSON, per message", lambda: _feed_json(span, wanted), plan)


def _feed_json(span: Span, places: Places) -> int:
    with open(os.devnull, "wb", buffering=0) as null:
        sink = JsonLines(Output(null))
        sink.open()

        def write(records: list[Record]) -> None:
            sink.write(1, records)
            sink.flush()

        return _feed(span, places, write)


def sinks(plan: Plan) -> None:
    """Records to JSON lines and recordings, segments to packets."""
    records: list[Record] = []
    with _span(*[CHAT] * TURNS) as span:
        _feed(span, choose().places, records.extend)
    with open(os.devnull, "wb", buffering=0) as null:
        sink = JsonLines(Output(null))

        def write() -> int:
            sink.write(1, records)
            sink.flush()
            return len(records)

        _nanoseconds("sinks: JSON line, per record", write, plan)
    _recordings(records, plan)
    for name, words, turns in (("messages", CHAT, TURNS), ("64 KiB", BULK, 2)):
        with _span(*[words] * turns) as span:
            _packets(name, span, plan)


def _recordings(records: list[Record], plan: Plan) -> None:
    """What the lines of a session cost on their way into files that rotate, on this machine's
    disk; they come as a socket gives them."""
    types = {type(record.body) for record in records}
    lines = io.BytesIO()
    sink = JsonLines(Output(lines))
    sink.write(1, records)
    sink.flush()
    pieces = []
    lines.seek(0)
    while piece := lines.read(SOCKET):
        pieces.append(piece + lines.readline())
    with TemporaryDirectory() as folder:
        for ending in ("jsonl", "sqlite"):

            def write(path: Path = Path(folder, f"bench.{ending}")) -> int:
                recording = Recording(path, types, keep=0)
                recording.open()
                for piece in pieces:
                    recording.take(piece)
                recording.close()
                return len(records)

            _nanoseconds(f"sinks: recording, {ending}, per record", write, plan)


def _packets(name: str, span: Span, plan: Plan) -> None:
    """What joined segments cost on their way into a pcapng."""
    flows = {opened.flow.flow_id: opened.flow for opened in span.openings()}
    batches = list(span.batches(BATCH if name == "messages" else 32))
    with open(os.devnull, "wb", buffering=0) as null:
        tap = Pcapng(Output(null), payload=True, application="bench")
        tap.open()
        for opened in span.openings():
            tap.opened(opened, None)

        def write() -> int:
            for batch in batches:
                for segment in batch:
                    tap.segment(flows[segment.flow_id], segment)
                tap.flush()
            return span.messages

        _nanoseconds(f"sinks: pcapng, {name}, per packet", write, plan)
        tap.close()
        batches.clear()  # they hold views of the span
