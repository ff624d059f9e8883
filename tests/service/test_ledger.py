"""The ledger of open flows: what the next parser reads of it, and what it makes of nonsense."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.rings import closed_record, opened_record
from streamtap.capture.layout import CLOSED_RECORD, OPENED_RECORD, Row
from streamtap.capture.resume import Remembered
from streamtap.errors import StreamtapError
from streamtap.model import App, Endpoint, Flow, Role
from streamtap.service.ledger import HEADER, SIZE, SLOT, SLOTS, Ledger, open_ledger, prepare

NAMES = {0: "chat", 1: "web"}
_opened, _closed = Row(OPENED_RECORD), Row(CLOSED_RECORD)


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("flows")
    prepare(made)
    yield made
    os.close(made)


def ledger(fd: int, names: dict[int, str] = NAMES) -> tuple[Ledger, dict[int, Remembered]]:
    """That of the next parser, and what it finds."""
    made = Ledger(fd)
    made.name(names)
    return made, {one.opened["flow_id"]: one for one in made.recover()}


def flow(flow_id: int = 1, filters: int = 1, path: str = "/bin/chat") -> Flow:
    app = App(path, 42, "chat", 0, "user.slice", "chat")
    ends = Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2)
    return Flow(flow_id, app, *ends, Role.CLIENT, 0, False, 0, filters)


def tell(to: Ledger, flow_id: int = 1, filters: int = 1, time_ns: int = 0, **more: Any) -> None:
    record = _opened.read(opened_record(flow_id, filters=0, candidates=7, time_ns=time_ns))
    to.opened(record, flow(flow_id, filters, **more))


def test_flows_are_remembered_until_their_end_was_told(fd: int) -> None:
    first, found = ledger(fd)
    assert found == {}
    for flow_id in (1, 2, 3):
        tell(first, flow_id)
    first.scoped(1, 3)
    first.ending(_closed.read(closed_record(2, sent=5, time_ns=7)))
    for flow_id in (2, 3):
        first.closed(flow_id)
    _, found = ledger(fd)
    assert found.keys() == {1, 2, 3}
    assert (found[1].path, found[1].cgroup) == ("/bin/chat", "user.slice")
    assert (found[1].opened["filters"], found[1].opened["candidates"]) == (3, 0)
    assert found[2].closed is not None
    assert found[2].closed["bytes_acked"] == 5
    assert found[3].closed is None
    first.settle()
    assert ledger(fd)[1].keys() == {1}
    tell(first, 4)  # in a slot that is free again
    assert ledger(fd)[1].keys() == {1, 4}


def test_the_next_parser_goes_on_with_what_it_found(fd: int) -> None:
    first, _ = ledger(fd)
    for flow_id in range(1, 201):
        tell(first, flow_id)
    second, found = ledger(fd)
    assert len(found) == 200
    tell(second, 7, filters=2)
    tell(second, 201)
    for flow_id in range(100, 201):
        second.closed(flow_id)
    second.settle()
    _, found = ledger(fd)
    assert found.keys() == {*range(1, 100), 201}
    assert found[7].opened["filters"] == 2


def test_of_two_lives_of_a_socket_the_later_one_is_remembered(fd: int) -> None:
    first, _ = ledger(fd)
    tell(first, time_ns=1)
    first.closed(1)  # not told yet
    tell(first, time_ns=2)
    second, found = ledger(fd)
    assert found[1].opened["time_ns"] == 2
    first.settle()
    assert ledger(fd)[1][1].opened["time_ns"] == 2
    second.clear()
    assert ledger(fd)[1] == {}


def test_a_filter_that_has_the_bit_of_another_gets_none_of_its_flows(fd: int) -> None:
    first, _ = ledger(fd)
    tell(first, 1, filters=1)
    tell(first, 2, filters=3)
    _, found = ledger(fd, {1: "web"})  # nobody has the bit: whose flow it is can be told still
    assert {flow_id: one.opened["filters"] for flow_id, one in found.items()} == {1: 1, 2: 3}
    _, found = ledger(fd, {0: "mail", 1: "web"})
    assert {flow_id: one.opened["filters"] for flow_id, one in found.items()} == {2: 2}


def test_texts_that_are_too_long_are_left_out(fd: int) -> None:
    first, _ = ledger(fd)
    tell(first, 1, path="/" + "x" * 700)
    tell(first, 2, path="/\udcff" + "x" * 600)
    _, found = ledger(fd)
    assert (found[1].path, found[1].cgroup) == ("", "")
    assert found[2].path == "/\udcff" + "x" * 600


def test_more_flows_than_there_are_slots_are_not_remembered(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtap.service.ledger.SLOTS", 100)
    first, _ = ledger(fd)
    for flow_id in range(1, 103):
        tell(first, flow_id)
    first.scoped(101, 3)
    first.ending(_closed.read(closed_record(101)))
    first.closed(101)
    first.closed(1)
    first.settle()
    tell(first, 103)
    assert ledger(fd)[1].keys() == {*range(2, 101), 103}


def test_a_full_file_system_is_said_once_and_ends_nothing(
    fd: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = ledger(fd)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("streamtap.service.ledger.os.pwrite", full)
    tell(first, 1)
    tell(first, 2)
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    monkeypatch.undo()
    assert ledger(fd)[1] == {}


@pytest.mark.parametrize(
    "values",
    [
        {"state": 3},
        {"path_length": 600, "cgroup_length": 600},
        {"opened": {"kind": 4}},
        {"opened": {"family": 5}},
        {"opened": {"flow_id": 0}},
        {"opened": {"flow_id": 1 << 63}},
        {"opened": {"pid": 1 << 31}},
        {"opened": {"time_ns": 1 << 63}},
        {"opened": {"passed": 1 << 62}},
        {"state": 2, "closed": {"flow_id": 2}},
        {"state": 2, "closed": {"kind": 1}},
        {"state": 2, "closed": {"time_ns": 0}},
        {"state": 2, "closed": {"bytes_received": (1 << 64) - 1}},
    ],
)
def test_what_no_callouts_wrote_is_passed_over(fd: int, values: dict[str, Any]) -> None:
    first, _ = ledger(fd)
    tell(first, 1, time_ns=1)
    tell(first, 5)
    row = np.frombuffer(os.pread(fd, SLOT.itemsize, HEADER.itemsize), SLOT).copy()
    row["closed"] = np.frombuffer(closed_record(1, time_ns=2), CLOSED_RECORD)
    for name, value in values.items():
        if isinstance(value, dict):
            for field, number in value.items():
                row[name][field] = number
        else:
            row[name] = value
    os.pwrite(fd, row.tobytes(), HEADER.itemsize)
    second, found = ledger(fd)
    assert found.keys() == {5}
    tell(second, 6)
    assert ledger(fd)[1].keys() == {5, 6}


@pytest.mark.parametrize("seed", range(5))
def test_no_bytes_end_who_reads_them(fd: int, seed: int) -> None:
    noise = np.random.default_rng(seed)
    os.pwrite(fd, noise.bytes(200 * SLOT.itemsize), HEADER.itemsize)
    os.pwrite(fd, noise.bytes(HEADER.itemsize - 32), 32)
    rows = np.frombuffer(os.pread(fd, 200 * SLOT.itemsize, HEADER.itemsize), SLOT).copy()
    rows["state"] = noise.integers(0, 4, len(rows))
    os.pwrite(fd, rows.tobytes(), HEADER.itemsize)
    made, _ = ledger(fd)
    for flow_id in range(1, 300):
        tell(made, flow_id)
    assert ledger(fd)[1].keys() >= set(range(1, 300))


def test_the_file_is_private_and_of_this_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flows"
    fd = open_ledger(path)
    tell(ledger(fd)[0])
    os.close(fd)
    assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, SIZE)
    assert path.stat().st_blocks * 512 < 1 << 20, "what is not used takes no room"
    fd = open_ledger(path)
    assert ledger(fd)[1].keys() == {1}
    os.close(fd)
    other = tmp_path / "boot_id"
    other.write_text("another\n")
    monkeypatch.setattr("streamtap.service.ledger._BOOT_ID", other)
    fd = open_ledger(path)
    assert ledger(fd)[1] == {}
    os.close(fd)
    path.write_bytes(b"what?")
    fd = open_ledger(path)
    assert ledger(fd)[1] == {}
    os.close(fd)
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(StreamtapError, match="flows"):
        open_ledger(path)
    assert SLOTS * SLOT.itemsize < SIZE
