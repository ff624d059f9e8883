"""The fallback tells how much came which way, and nothing of what it was."""

import msgspec

from helpers.streams import assert_tiles, run
from streamtap.model import Direction
from streamtap.protocols.opaque import OpaqueData, OpaqueParser

C, S = Direction


def test_each_arrival_is_one_event_with_its_place_and_length() -> None:
    trace = run(OpaqueParser, [(C, b"abc"), (S, b"12"), (C, b"de")])
    assert trace.of(C) == [OpaqueData(offset=0, length=3), OpaqueData(offset=3, length=2)]
    assert trace.of(S) == [OpaqueData(offset=0, length=2)]


def test_no_byte_is_kept() -> None:
    trace = run(OpaqueParser, [(C, b"PASS hunter2")] * 100)
    assert trace.held == 0
    assert b"hunter2" not in msgspec.json.encode(trace.of(C))


def test_a_gap_only_moves_the_offsets() -> None:
    trace = run(OpaqueParser, [(S, b"abc"), (S, 100), (S, b"d")])
    assert_tiles(trace)
    assert [(event.offset, event.length) for event in trace.of(S)] == [(0, 3), (103, 1)]


def test_an_empty_arrival_is_no_event() -> None:
    assert run(OpaqueParser, [(C, b"")]).of(C) == []
