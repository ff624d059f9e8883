"""`protocols`, `cleanup`, `doctor` and the man page."""

import json
import os
from pathlib import Path

import pytest

from helpers.commands import run
from streamtap.cli.doctor import MISSING, OK, kernel_check
from streamtap.cli.man import page
from streamtap.cli.parsing import every_verb

MAN = Path(__file__).parent.parent.parent / "docs" / "man" / "streamtap.1"


def test_protocols_lists_every_parser_with_its_events_and_what_it_is_for() -> None:
    rows = {row["name"]: row for row in json.loads(run("protocols", "--json").stdout)}
    assert {"http", "msnp", "opaque"} <= rows.keys()
    assert "http.request" in rows["http"]["events"]
    assert all(row["about"] for row in rows.values())
    table = run("protocols").stdout
    assert all(name in table for name in rows)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """An environment in which streamtap's folders are empty ones of the test."""
    folders = {"STREAMTAP_BPF_DIR": tmp_path / "bpf", "STREAMTAP_RUN_DIR": tmp_path / "run"}
    return {**os.environ, **{name: str(path) for name, path in folders.items()}}


def test_cleanup_says_that_there_is_nothing_where_there_is_nothing(places: dict[str, str]) -> None:
    result = run("cleanup", env=places)
    assert (result.returncode, result.stdout) == (0, "nothing to remove\n")


def test_cleanup_removes_what_is_there_and_follows_no_links(
    places: dict[str, str], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    pins = tmp_path / "bpf" / "v1"
    pins.mkdir(parents=True)
    (pins / "program").touch()
    (pins / "link").symlink_to(elsewhere)
    dry = run("cleanup", "--dry-run", env=places)
    assert dry.stdout.count("would remove") == 4
    assert (pins / "program").exists()
    result = run("cleanup", env=places)
    assert result.returncode == 0
    assert not (tmp_path / "bpf").exists()
    assert (elsewhere / "kept").exists()


def test_cleanup_leaves_what_is_not_streamtaps(tmp_path: Path) -> None:
    """One folder for everything, which holds filters and other things too."""
    names = ("STREAMTAP_BPF_DIR", "STREAMTAP_RUN_DIR", "STREAMTAP_STATE_DIR")
    for name in ("lock", "control.sock", "flows", "log"):
        (tmp_path / name).touch()
    for name in ("filters.json", "letter.txt", "recordings/chat.jsonl", "v2x/program"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "v1" / "maps").mkdir(parents=True)
    result = run("cleanup", env={**os.environ, **dict.fromkeys(names, str(tmp_path))})
    assert result.returncode == 0, result.stderr
    left = {one.name for one in tmp_path.iterdir()}
    assert left == {"filters.json", "letter.txt", "recordings", "v2x"}


@pytest.mark.parametrize("folder", ["/", "/sys", "//sys/../"])
def test_cleanup_refuses_a_folder_that_cannot_be_streamtaps(folder: str) -> None:
    result = run("cleanup", "--dry-run", env={**os.environ, "STREAMTAP_BPF_DIR": folder})
    assert result.returncode == 2
    assert "no folder of streamtap's own" in result.stderr


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("5.15.0-101-generic", OK),
        ("6.1.0-18-amd64", OK),
        ("5.14.0-362.el9", MISSING),
        ("4.19.0", MISSING),
        ("strange", OK),
    ],
)
def test_doctor_knows_which_kernels_are_too_old(release: str, status: str) -> None:
    assert kernel_check(release).status == status


@pytest.mark.root
def test_doctor_finds_everything_where_monitoring_works() -> None:
    result = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.returncode == 0, checks
    for name in ("kernel", "architecture", "BTF", "cgroup v2", "libbpf", "capabilities"):
        assert checks[name]["status"] == "ok"
    assert "ok" in {checks[f"callouts {variant}"]["status"] for variant in ("dynptr", "scratch")}
    assert all(check["advice"] for check in checks.values() if check["status"] != "ok")


def test_doctor_names_the_package_where_libbpf_is_missing() -> None:
    result = run("doctor", env={**os.environ, "STREAMTAP_LIBBPF": "libbpf-not-there.so"})
    assert result.returncode == 5
    assert "apt-get install libbpf1" in result.stdout


@pytest.mark.root
def test_without_libbpf_monitor_names_the_package() -> None:
    environment = {**os.environ, "STREAMTAP_LIBBPF": "libbpf-not-there.so"}
    result = run("monitor", "/usr/bin/env", env=environment)
    assert result.returncode == 5
    assert "apt-get install libbpf1" in result.stderr


def test_the_man_page_is_current() -> None:
    assert MAN.read_text() == page(), "python -m streamtap.cli.man > docs/man/streamtap.1"


def test_the_man_page_tells_every_verb() -> None:
    assert all(f".SS {verb.name}\n" in page() for verb in every_verb())
