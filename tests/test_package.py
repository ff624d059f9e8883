"""The package as it is handed out: what is in it, and that it runs where nothing else is."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("src", "bpf", "tests", "hatch_build.py", "pyproject.toml")
TEXTS = ("README.md", "LICENSE", "CHANGELOG.md", ".gitignore")
CALLOUTS = {
    "streamtap/capture/callout.bpf.o",
    "streamtap/capture/callout_scratch.bpf.o",
}
EM_BPF = 247  # e_machine of a BPF object
RUNTIME = ("msgspec", "numpy")
ZSTD = "backports-zstd"  # before Python 3.14, and imported only for a file that needs it


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Its output; fails with all that it said."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def pip_wheel(source: Path, out: Path) -> Path:
    """Builds a wheel as `pip install` does, with the tools of this environment if it has them."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--wheel-dir", str(out), str(source)]
    if all(map(find_spec, ("hatchling", "ziglang"))):
        command.append("--no-build-isolation")
    run(*command, cwd=out)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without anything that was built: building leaves the tree alone."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("*.bpf.o", "__pycache__", "*.egg-info")
    for name in (*SOURCES, *TEXTS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pip_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked."""
    out = tmp_path_factory.mktemp("sdist")
    path = ""
    if find_spec("hatchling") is None:  # pip fetches it for wheels, but makes no source archives
        path = str(tmp_path_factory.mktemp("tools"))
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--target", path, "hatchling", cwd=out)
    command = (sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out)
    run(*command, cwd=checkout, **({"PYTHONPATH": path} if path else {}))
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data")
    (unpacked,) = (path for path in out.iterdir() if path.is_dir())
    return unpacked


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_both_callout_objects_freshly_compiled_for_bpf(wheel: Path) -> None:
    assert names_in(wheel) >= CALLOUTS
    with zipfile.ZipFile(wheel) as archive:
        for name in CALLOUTS:
            head = archive.read(name)[:20]
            assert head[:6] == b"\x7fELF\x02\x01", f"{name} is no 64-bit little-endian object"
            assert int.from_bytes(head[18:20], "little") == EM_BPF


def test_the_wheel_holds_the_package_its_types_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    assert "streamtap/py.typed" in names
    assert "streamtap/demo/__main__.py" in names
    assert "streamtap/service/streamtap.service" in names
    folders = {name.split("/")[0] for name in names}
    assert folders - {"streamtap"} == {name for name in folders if name.endswith(".dist-info")}
    wanted = {path.relative_to(ROOT / "src").as_posix() for path in sources()}
    assert {name for name in names if name.endswith(".py")} == wanted


def sources() -> list[Path]:
    return [path for path in (ROOT / "src").rglob("*.py") if "__pycache__" not in path.parts]


def test_the_wheel_asks_for_its_runtime_dependencies_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert sorted(line.partition(">")[0] for line in required) == sorted((*RUNTIME, ZSTD))
    assert "Requires-Python: >=3.11" in metadata


def test_a_wheel_can_be_built_from_the_source_archive(sdist: Path, tmp_path: Path) -> None:
    assert (sdist / "bpf" / "callout.bpf.c").exists()
    assert not list(sdist.rglob("*.bpf.o")), "the source archive holds a built object"
    assert names_in(pip_wheel(sdist, tmp_path)) >= CALLOUTS


def test_the_commands_run_in_a_fresh_environment_without_development_packages(
    wheel: Path, tmp_path: Path
) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    (site,) = (home / "lib").glob("python*/site-packages")
    # The dependencies that it starts with are lent from here, so that no registry is asked.
    lend(site)
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"),
        *("--disable-pip-version-check", "--no-index", wheel),
        cwd=tmp_path,
    )
    assert "monitor" in run(home / "bin" / "streamtap", "--help", cwd=tmp_path)
    assert "monitor" in run(home / "bin" / "monitor", "--help", cwd=tmp_path)
    protocols = run(home / "bin" / "streamtap", "protocols", cwd=tmp_path)
    assert {"http", "msnp", "opaque"} <= set(protocols.split())
    where = run(python, "-c", "import streamtap; print(streamtap.__file__)", cwd=tmp_path)
    assert where.startswith(str(site))
    absent = "import importlib.util as u; print(u.find_spec('pytest'), u.find_spec('ziglang'))"
    assert run(python, "-c", absent, cwd=tmp_path).split() == ["None", "None"]


def lend(site: Path) -> None:
    """Links the runtime dependencies of this environment, and nothing else, into another."""
    for name in RUNTIME:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        for path in package.parent.glob(f"{name}*"):
            if path.name.split("-")[0].removesuffix(".libs") == name:
                (site / path.name).symlink_to(path)
