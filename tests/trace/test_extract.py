"""The ordered bytes in files, and the index that tells whose they are."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamtap.errors import AlreadyExists
from streamtap.model import Chunk, Closed, Direction, Endpoint, Flow, Gap, Opened, Role
from streamtap.trace import extract
from streamtap.trace.extract import INDEX, Extract

CLIENT, SERVER = Endpoint("10.0.0.1", 40000), Endpoint("fe80::1", 1863)
TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def flow(number: int, role: Role = Role.CLIENT) -> Flow:
    ends = (CLIENT, SERVER) if role is Role.CLIENT else (SERVER, CLIENT)
    return Flow(number, None, *ends, role, 0)


def chunk(offset: int, data: bytes | memoryview | None, length: int = 0) -> Chunk:
    return Chunk(offset, data, (offset + (length or len(data or b"")),), (0,))


def index_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]


def test_each_direction_has_a_file_and_a_line_when_its_flow_ends(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    sink = Extract(folder)
    sink.open()
    sink.opened(Opened(flow(17), (None, None)), None)
    sink.item(flow(17), TO_SERVER, chunk(0, b"hello "))
    sink.item(flow(17), TO_CLIENT, chunk(0, memoryview(b"yes")))
    sink.item(flow(17), TO_SERVER, chunk(6, b"world"))
    sink.flush()
    assert index_of(folder) == []
    sink.closed(flow(17), Closed(17, 0, "fin"))
    sink.flush()
    sent, received = index_of(folder)
    assert sent == {
        "file": sent["file"],
        "flow": "11",
        "src": str(CLIENT),
        "dst": str(SERVER),
        "role": "client",
        "length": 11,
        "sha256": hashlib.sha256(b"hello world").hexdigest(),
        "gaps": [],
    }
    assert (folder / sent["file"]).read_bytes() == b"hello world"
    assert (received["src"], received["role"]) == (str(SERVER), "server")
    assert (folder / received["file"]).read_bytes() == b"yes"
    sink.close()
    assert (folder / INDEX).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_is_missing_is_left_out_and_listed(tmp_path: Path) -> None:
    sink = Extract(tmp_path / "out")
    sink.open()
    sink.opened(Opened(flow(1), (None, None), (100, 0)), None)
    sink.item(flow(1), TO_SERVER, chunk(100, b"abc"))
    sink.item(flow(1), TO_SERVER, Gap(103, 7, "unseen", 0))
    sink.item(flow(1), TO_SERVER, chunk(110, None, 40))  # counted, not copied
    sink.item(flow(1), TO_SERVER, chunk(150, b"def"))
    sink.close()
    (line,) = index_of(tmp_path / "out")
    assert line["gaps"] == [[0, 100], [103, 47]]
    assert line["length"] == 6
    assert (tmp_path / "out" / line["file"]).read_bytes() == b"abcdef"


def test_streams_are_whole_however_little_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "PIECE", 64)
    monkeypatch.setattr(extract, "HELD", 200)
    sink = Extract(tmp_path / "out")
    sink.open()
    flows = [flow(number) for number in range(20)]
    for one in flows:
        sink.opened(Opened(one, (None, None)), None)
    for turn in range(30):
        for one in flows:
            data = b"%d:%d;" % (one.flow_id, turn)
            at = sum(len(b"%d:%d;" % (one.flow_id, before)) for before in range(turn))
            sink.item(one, TO_SERVER, chunk(at, data))
    sink.close()
    for line in index_of(tmp_path / "out"):
        number = int(line["flow"], 16)
        expected = b"".join(b"%d:%d;" % (number, turn) for turn in range(30))
        assert (tmp_path / "out" / line["file"]).read_bytes() == expected
        assert line["sha256"] == hashlib.sha256(expected).hexdigest()
    assert len(index_of(tmp_path / "out")) == 20


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(AlreadyExists, match="is not empty"):
        Extract(tmp_path).open()
    assert os.listdir(tmp_path) == ["mine"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("precious")
    sink = Extract(folder)
    sink.open()
    sink.opened(Opened(flow(1), (None, None)), None)
    sink.item(flow(1), TO_SERVER, chunk(0, b"overwritten"))
    name = "1_10.0.0.1.40000_fe80--1.1863"
    (folder / name).symlink_to(victim)
    sink.closed(flow(1), Closed(1, 0, "fin"))
    with pytest.raises(FileExistsError):
        sink.flush()
    sink.close()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("both_ends", [False, True])
def test_the_other_end_of_a_connection_has_files_only_where_both_are_asked_for(
    tmp_path: Path, both_ends: bool
) -> None:
    sink = Extract(tmp_path / "out", both_ends=both_ends)
    sink.open()
    here, there = flow(1), flow(2, Role.SERVER)
    sink.opened(Opened(here, (None, None)), None)
    sink.opened(Opened(there, (None, None)), here)
    for one in (here, there):
        sink.item(one, TO_SERVER, chunk(0, b"hello"))
        sink.item(one, TO_SERVER, Gap(5, 7, "unseen", 0))
        sink.closed(one, Closed(one.flow_id, 0, "fin"))
    sink.close()
    assert [line["flow"] for line in index_of(tmp_path / "out")] == ["1", "2"][: 1 + both_ends]
    assert len(list((tmp_path / "out").iterdir())) == 2 + both_ends


@pytest.mark.parametrize("role", list(Role))
def test_the_role_is_that_of_who_sends(tmp_path: Path, role: Role) -> None:
    sink = Extract(tmp_path / "out")
    sink.open()
    sink.opened(Opened(flow(1, role), (None, None)), None)
    sink.item(flow(1, role), TO_SERVER, chunk(0, b"from the client"))
    sink.close()
    (line,) = index_of(tmp_path / "out")
    assert (line["src"], line["dst"], line["role"]) == (str(CLIENT), str(SERVER), "client")


# Fills a small disk with extracted streams; or with something else, before the index is written.
FULL_DISK = """
import os, sys
from pathlib import Path
from test_extract import TO_CLIENT, TO_SERVER, chunk, flow
from streamtap.model import Closed, Opened
from streamtap.trace.extract import Extract

root, fills = Path(sys.argv[1]), sys.argv[2]
sink = Extract(root / "out")
sink.open()
failed = 0

def flush():
    global failed
    try:
        sink.flush()
    except OSError:
        failed += 1

for number in range(1, 301):
    sink.opened(Opened(flow(number), (None, None)), None)
    sink.item(flow(number), TO_SERVER, chunk(0, b"short"))
    if number % 100 == 0:
        sink.item(flow(number), TO_CLIENT, chunk(0, b"long" * 100_000))
        sink.item(flow(number), TO_CLIENT, chunk(400_000, b"more"))
    else:
        sink.closed(flow(number), Closed(number, 0, "fin"))
if fills == "lines":
    with open(root / "mine", "wb", buffering=0) as mine:
        try:
            while mine.write(bytes(4096)):
                pass
        except OSError:
            pass
flush()
for at in range(400_004, 8_000_000, 65_536):
    sink.item(flow(300), TO_CLIENT, chunk(at, b"l" * 65_536))
flush()
try:
    sink.close()
except OSError:
    failed += 1
assert failed == 1, failed
"""


@pytest.mark.root
@pytest.mark.parametrize("fills", ["data", "lines"])
def test_on_a_full_disk_the_index_lists_what_is_there(tmp_path: Path, fills: str) -> None:
    copy = tmp_path / "copy"
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=4m tmpfs "$1" && "$2" -c "$3" "$1" "$4" && cp -r "$1/out" "$5"'
    words = [str(disk), sys.executable, FULL_DISK, fills, str(copy)]
    subprocess.run(
        ["unshare", "-m", "sh", "-ec", mount, "sh", *words],
        check=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )
    lines = index_of(copy)
    assert {line["file"] for line in lines} | {INDEX} == {path.name for path in copy.iterdir()}
    assert len(lines) > 297
    for line in lines:
        data = (copy / line["file"]).read_bytes()
        assert line["length"] == len(data)
        assert line["sha256"] == hashlib.sha256(data).hexdigest()
        assert line.get("cut", False) is (line["role"] == "server")
