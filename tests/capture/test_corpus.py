"""The captures of tests/captures: what is understood of each is what its script meant."""

import gzip
import importlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamtap
from helpers.corpus import Case, Counted, Heard, Hole, Part, compressed, contents
from streamtap import api
from streamtap.events import FlowClosed, FlowOpened, StreamGap, StreamLimit, StreamOverlap
from streamtap.model import Closed, Direction, Flow, Gap, Limit, Overlap, StreamItem

FOLDER = Path(__file__).parent.parent / "captures"
SCRIPTS = ("order", "life", "links", "networks", "messages")
CASES: list[Case] = [
    case for name in SCRIPTS for case in importlib.import_module(f"captures.{name}").CASES
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def joined(parts: Iterable[Part]) -> list[Part]:
    """With neighbours of one kind in one: how the bytes were cut makes no difference."""
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, bytes) and isinstance(last, bytes):
            out[-1] = last + part
        elif isinstance(part, Counted) and isinstance(last, Counted):
            out[-1] = Counted(last.length + part.length)
        else:
            out.append(part)
    return out


class Told:
    """What `streams` gave of a flow."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.parts: tuple[list[Part], list[Part]] = ([], [])
        self.positions = [0, 0]
        self.overlaps: list[tuple[Direction, int, int]] = []
        self.limits: list[str] = []
        self.reason = ""

    def take(self, direction: Direction, item: StreamItem | Closed) -> None:
        """Chunks and gaps tile the stream; nothing comes behind its end."""
        assert not self.reason
        if isinstance(item, Closed):
            self.reason = item.reason
            return
        if isinstance(item, Overlap):
            self.overlaps.append((direction, item.offset, item.length))
            return
        if isinstance(item, Limit):
            self.limits.append(item.limit)
            return
        assert item.offset == self.positions[direction]
        part: Part
        if isinstance(item, Gap):
            part, end = Hole(item.length, item.cause), item.offset + item.length
        else:
            end = item.ends[-1]
            length = end - item.offset
            part = Counted(length) if item.data is None else bytes(item.data)
            assert item.data is None or len(item.data) == length
            assert len(item.ends) == len(item.times_ns)
        self.parts[direction].append(part)
        self.positions[direction] = end

    def heard(self) -> Heard:
        return Heard(
            joined(self.parts[Direction.TO_SERVER]),
            joined(self.parts[Direction.TO_CLIENT]),
            client=str(self.flow.local),
            server=str(self.flow.remote),
            midstream=self.flow.midstream,
            reason=self.reason,
            overlaps=self.overlaps,
            limits=self.limits,
        )


def flows_of(case: Case) -> list[Told]:
    """In the order in which they begin."""
    found: dict[int, Told] = {}
    for said in api.streams(FOLDER / case.file_name, tunnels=case.tunnels):
        told = found.setdefault(said.flow.flow_id, Told(said.flow))
        told.take(said.direction, said.item)
    return sorted(found.values(), key=lambda told: told.flow.opened_ns)


def length(parts: Sequence[Part], kind: type) -> int:
    sizes = [len(part) if isinstance(part, bytes) else part.length for part in parts]
    return sum(size for size, part in zip(sizes, parts, strict=True) if isinstance(part, kind))


@every_case
def test_a_capture_is_what_its_script_makes(case: Case, request: pytest.FixtureRequest) -> None:
    path = FOLDER / case.file_name
    if request.config.getoption("--update-golden"):
        path.write_bytes(compressed(case))
    stored = path.read_bytes()
    assert (gzip.decompress(stored) if path.suffix == ".gz" else stored) == contents(case)


def test_no_capture_is_without_its_script() -> None:
    stored = {path.name for path in FOLDER.iterdir() if path.suffix in (".pcap", ".pcapng", ".gz")}
    assert stored == {case.file_name for case in CASES}
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SCRIPTS)


@every_case
def test_streams_of_a_capture_are_what_was_said(case: Case) -> None:
    meant = [
        flow._replace(
            to_server=joined(flow.to_server),
            to_client=joined(flow.to_client),
            overlaps=list(flow.overlaps),
            limits=list(flow.limits),
        )
        for flow in case.flows
    ]
    assert [told.heard() for told in flows_of(case)] == meant


@every_case
def test_records_of_a_capture_tell_of_its_flows(case: Case) -> None:
    """Each flow has its opening, its gaps, and a closing that counts its bytes."""
    by_flow: dict[str, list[streamtap.Record]] = defaultdict(list)
    for record in streamtap.read(FOLDER / case.file_name, tunnels=case.tunnels):
        if record.flow is not None:
            by_flow[record.flow.flow].append(record)
    for flow, records in zip(case.flows, by_flow.values(), strict=True):
        first, last = records[0].body, records[-1].body
        assert isinstance(first, FlowOpened)
        assert isinstance(last, FlowClosed)
        ends = records[0].flow
        assert ends is not None
        assert (ends.local, ends.remote) == (flow.client, flow.server)
        assert first.midstream is flow.midstream
        assert last.reason == flow.reason
        assert last.sent == length(flow.to_server, bytes)
        assert last.received == length(flow.to_client, bytes)
        assert last.sent_counted == length(flow.to_server, Counted)
        assert last.received_counted == length(flow.to_client, Counted)
        bodies = [record.body for record in records]
        gaps = sum(body.length for body in bodies if isinstance(body, StreamGap))
        assert gaps == length(flow.to_server, Hole) + length(flow.to_client, Hole)
        assert sum(isinstance(body, StreamOverlap) for body in bodies) == len(flow.overlaps)
        limits = [body.limit for body in bodies if isinstance(body, StreamLimit)]
        assert limits == list(flow.limits)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.records], ids=lambda case: case.name
)
def test_records_of_a_conversation_tell_what_was_meant(case: Case) -> None:
    told = [fields_of(record) for record in streamtap.read(FOLDER / case.file_name)]
    position = 0
    for event, fields in case.records:
        meant = {"event": event, **fields}
        for at in range(position, len(told)):
            if meant.items() <= told[at].items():
                position = at + 1
                break
        else:
            pytest.fail(f"{meant} is not among the records behind number {position}")


def fields_of(record: streamtap.Record) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(record.body)
    if record.flow is not None:
        fields |= msgspec.to_builtins(record.flow)
    return fields | {"direction": record.direction}
