"""Feed a parser a conversation, cut any way, and look at what it gave."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from streamtap.events import Event, StreamGap
from streamtap.model import Direction
from streamtap.protocols import Limits, Parser

# What one direction does next: bytes that come, or the number of bytes that never will.
Step = tuple[Direction, bytes | int]
Script = Sequence[Step]

_SUMMED = ("length", "payload_length")
_LATER = ("final", "truncated")


class Trace(msgspec.Struct):
    """What a parser gave for each direction, gaps included, and how much went in.

    held: the greatest number of bytes that the parser held after a step.
    """

    events: tuple[list[Event], list[Event]]
    fed: list[int]
    held: int = 0

    def of(self, direction: Direction) -> list[Event]:
        """The parser's own events of a direction."""
        return [event for event in self.events[direction] if not isinstance(event, StreamGap)]

    def merged(self) -> tuple[list[Event], list[Event]]:
        """Both directions with adjacent mergeable events joined: the same for every cutting."""
        return list(merge(self.events[0])), list(merge(self.events[1]))


def run(
    parser: type[Parser],
    script: Iterable[Step],
    *,
    midstream: bool = False,
    limits: Limits | None = None,
    end: bool = True,
) -> Trace:
    """Feed a new parser; gaps appear among the events as the pipeline would tell them."""
    instance = parser(limits=limits or Limits(), midstream=midstream)
    trace = Trace(([], []), [0, 0])
    for direction, data in script:
        events = trace.events[direction]
        if isinstance(data, int):
            events += instance.gap(direction, data)
            offset = trace.fed[direction]
            events.append(StreamGap(offset=offset, length=data, cause="lost"))
            trace.fed[direction] += data
        else:
            # A view that dies with the call, as the live source gives it.
            copy = bytearray(data)
            with memoryview(copy) as view:
                iterator = instance.receive(direction, view)
            copy[:] = bytes(len(copy))
            events += iterator
            trace.fed[direction] += len(data)
        trace.held = max(trace.held, instance.held)
    if end:
        for direction in Direction:
            trace.events[direction].extend(instance.end(direction))
    return trace


def bytewise(script: Iterable[Step]) -> Iterator[Step]:
    """The same conversation, byte by byte."""
    for direction, data in script:
        if isinstance(data, int):
            yield direction, data
        else:
            yield from ((direction, data[i : i + 1]) for i in range(len(data)))


def split(script: Iterable[Step], sizes: Sequence[int]) -> Iterator[Step]:
    """The same conversation in pieces of the given sizes, which are used in turn."""
    count = 0
    for direction, data in script:
        if isinstance(data, int):
            yield direction, data
            continue
        start = 0
        while start < len(data):
            size = sizes[count % len(sizes)]
            count += 1
            yield direction, data[start : start + size]
            start += size


def merge(events: Iterable[Event]) -> Iterator[Event]:
    """Events of one direction with adjacent ones of a mergeable type joined."""
    last: Event | None = None
    for event in events:
        if last is None:
            last = event
        elif _joins(last, event):
            last = msgspec.structs.replace(
                event,
                offset=last.offset,
                **{
                    name: getattr(last, name) + getattr(event, name)
                    for name in _SUMMED
                    if hasattr(event, name)
                },
            )
        else:
            yield last
            last = event
    if last is not None:
        yield last


def _joins(last: Event, event: Event) -> bool:
    if type(last) is not type(event) or not event.mergeable or getattr(last, "final", False):
        return False
    if last.offset + last.length != event.offset:
        return False
    fixed = (name for name in event.__struct_fields__ if name not in ("offset", *_SUMMED, *_LATER))
    return all(getattr(last, name) == getattr(event, name) for name in fixed)


def assert_tiles(trace: Trace) -> None:
    """Every byte of both directions belongs to exactly one event or gap, in order."""
    for direction in Direction:
        position = 0
        for event in trace.events[direction]:
            assert event.offset == position, f"{direction.name} at {position}: {event!r}"
            assert event.length >= 0
            position += event.length
        assert position == trace.fed[direction], f"{direction.name} ends at {position}"
