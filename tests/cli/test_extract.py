"""`--extract`: the files of captures; live it is asked for with the content."""

import json
from pathlib import Path

from helpers.commands import run

CAPTURES = Path(__file__).parent.parent / "captures"


def test_the_streams_of_a_capture_are_files(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = run("read", str(CAPTURES / "reordering.pcap"), "--extract", str(folder))
    assert (result.returncode, result.stdout) == (0, "")
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert lines
    assert {line["file"] for line in lines} | {"index.jsonl"} == {
        path.name for path in folder.iterdir()
    }
    for line in lines:
        assert (folder / line["file"]).stat().st_size == line["length"]


def test_a_folder_in_use_is_exit_code_7(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = run("read", str(CAPTURES / "reordering.pcap"), "--extract", str(tmp_path))
    assert result.returncode == 7
    assert result.stderr.splitlines()[0] == f"streamtap: error: {tmp_path} is not empty"
