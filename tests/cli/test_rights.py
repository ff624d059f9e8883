"""Without rights: which one is missing, what to do, exit code 4. These tests drop theirs."""

import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.commands import DEADLINE_S, STREAMTAP, run


@pytest.mark.parametrize(
    "words",
    [
        ["monitor", "/usr/bin/env"],
        ["monitor", "/not/there"],
        ["monitor", "--json", "--", "true"],
        ["status"],
        ["flows", "--json"],
        ["demo"],
    ],
    ids=" ".join,
)
def test_without_rights_the_missing_one_is_named_and_how_to_get_it(words: list[str]) -> None:
    result = run(*words, rights=False)
    assert result.returncode == 4
    error, hint = result.stderr.splitlines()
    assert error.startswith("streamtap: error: ")
    assert "CAP_BPF" in error
    assert hint.startswith("hint: run ")
    assert hint.endswith("with sudo")
    assert result.stdout == ""


def test_root_in_a_user_namespace_is_told_that_it_does_not_count() -> None:
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-Ur", "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    result = subprocess.run(
        [unshare, "-Ur", *STREAMTAP, "monitor", "/usr/bin/env"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == 4
    error, hint = result.stderr.splitlines()
    assert error.endswith("missing outside of this user namespace")
    assert hint == "hint: run on the host with sudo"


def test_doctor_tells_rights_from_a_kernel_that_cannot() -> None:
    result = run("doctor", rights=False)
    assert result.returncode in (4, 5)  # 5: this kernel lacks something besides
    assert "CAP_BPF" in result.stdout
    assert "sudo" in result.stdout


def test_an_output_is_not_touched_before_the_rights_are_there(tmp_path: Path) -> None:
    target = tmp_path / "records.jsonl"
    run("monitor", "-o", str(target), "/usr/bin/env", rights=False)
    assert not target.exists()
