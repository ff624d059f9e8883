"""The systemd unit: what is written, and what systemd thinks of it where it is installed."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from streamtap.errors import PermissionMissing, StreamtapError
from streamtap.service import unit

EXECUTABLE = "/opt/streamtap/bin/streamtap"
analyze = shutil.which("systemd-analyze")


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where units go; systemd is not told."""
    folder = tmp_path / "units"
    folder.mkdir()
    monkeypatch.setenv("STREAMTAP_UNIT_DIR", str(folder))
    return folder


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine run by systemd, with a systemctl that only notes what it is asked for."""
    for what in ("UNIT", "STATE", "RUN", "BPF"):
        monkeypatch.delenv(f"STREAMTAP_{what}_DIR", raising=False)
    for name in ("etc", "usr", "run", "bin"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(unit, "MANAGED", tmp_path / "run")
    monkeypatch.setattr(unit, "ADMINISTRATOR", tmp_path / "etc")
    monkeypatch.setattr(unit, "PACKAGED", (tmp_path / "usr",))
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        f'test ! -e {tmp_path}/fails || {{ echo "Failed to do it" >&2; exit 1; }}\n'
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def asked(systemd: Path) -> list[str]:
    path = systemd / "asked"
    return path.read_text().splitlines() if path.exists() else []


def start_of(text: str) -> str:
    (found,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    return found.removeprefix("ExecStart=")


def test_the_unit_starts_the_streamtap_that_wrote_it(units: Path) -> None:
    path = unit.install(EXECUTABLE)
    assert path == units / "streamtap.service"
    assert start_of(path.read_text()) == f"{EXECUTABLE} start --foreground"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert unit.install("/usr/local/bin/streamtap") == path
    assert start_of(path.read_text()) == "/usr/local/bin/streamtap start --foreground"
    assert list(units.iterdir()) == [path]


def test_a_path_is_written_as_systemd_reads_it() -> None:
    text = unit.text('/opt/my "100%" $HOME/streamtap')
    assert start_of(text) == '"/opt/my \\"100%%\\" $$HOME/streamtap" start --foreground'


def test_a_removed_unit_leaves_nothing(units: Path) -> None:
    path = unit.install(EXECUTABLE)
    assert unit.remove() == path
    assert list(units.iterdir()) == []
    assert unit.remove() is None


def test_the_unit_of_somebody_else_is_left_alone(units: Path) -> None:
    path = units / "streamtap.service"
    path.write_text("[Service]\nExecStart=/usr/local/bin/mine\n")
    unit.install(EXECUTABLE)
    assert start_of(path.read_text()) == "/usr/local/bin/mine"
    assert unit.remove() is None
    assert path.exists()


def test_systemd_is_told_of_the_unit_and_of_its_end(systemd: Path) -> None:
    assert unit.install(EXECUTABLE) == systemd / "etc" / "streamtap.service"
    assert asked(systemd) == ["--quiet daemon-reload", "--quiet enable streamtap.service"]
    (systemd / "asked").unlink()
    assert unit.remove() == systemd / "etc" / "streamtap.service"
    assert asked(systemd) == ["--quiet disable streamtap.service", "--quiet daemon-reload"]
    (systemd / "asked").unlink()
    assert unit.remove() is None
    assert asked(systemd) == []


def test_the_unit_of_a_package_is_enabled_as_it_is(systemd: Path) -> None:
    packaged = systemd / "usr" / "streamtap.service"
    packaged.write_text(unit.text("/usr/bin/streamtap"))
    assert unit.install("/usr/bin/streamtap") == packaged
    assert list((systemd / "etc").iterdir()) == []
    assert "--quiet enable streamtap.service" in asked(systemd)
    assert unit.remove() is None
    assert packaged.exists()
    assert "--quiet disable streamtap.service" in asked(systemd)


def test_what_systemd_refuses_is_an_error_in_its_words(systemd: Path) -> None:
    (systemd / "fails").touch()
    with pytest.raises(StreamtapError, match="systemctl daemon-reload: Failed to do it"):
        unit.install(EXECUTABLE)


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMTAP_UNIT_DIR", str(tmp_path / "none"))
    with pytest.raises(StreamtapError, match="cannot be written: No such file"):
        unit.install(EXECUTABLE)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("STREAMTAP_UNIT_DIR", str(tmp_path))
    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(PermissionMissing) as caught:
        unit.install(EXECUTABLE)
    assert caught.value.hint == "run with sudo"
    assert list(tmp_path.iterdir()) == []


def test_without_systemd_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STREAMTAP_UNIT_DIR", raising=False)
    monkeypatch.setattr(unit, "MANAGED", tmp_path / "none")
    monkeypatch.setattr(unit, "ADMINISTRATOR", tmp_path)
    assert unit.install(EXECUTABLE) is None
    assert unit.remove() is None
    assert list(tmp_path.iterdir()) == []
    assert unit.one_line(EXECUTABLE) == f"{EXECUTABLE} start"


@pytest.mark.parametrize("what", ["STATE", "RUN", "BPF"])
def test_beside_another_installation_its_unit_is_left_alone(
    systemd: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = unit.install("/usr/bin/streamtap")
    assert path is not None
    before = path.read_text(), asked(systemd)
    monkeypatch.setenv(f"STREAMTAP_{what}_DIR", str(systemd))
    assert unit.install(EXECUTABLE) is None
    assert unit.remove() is None
    assert (path.read_text(), asked(systemd)) == before


@pytest.mark.skipif(analyze is None, reason="systemd-analyze is not installed")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    assert analyze is not None
    executable = tmp_path / "my tools" / "streamtap"
    executable.parent.mkdir()
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    path = tmp_path / "streamtap.service"
    path.write_text(unit.text(str(executable)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=60
    )
    about_us = [line for line in done.stderr.splitlines() if "streamtap" in line]
    assert about_us == []
