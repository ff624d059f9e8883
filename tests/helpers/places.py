"""Folders of its own for a service that a test runs beside whatever this machine has."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamtap.capture.pins import BPF_MOUNT, Pins
from streamtap.service.paths import Paths


@contextmanager
def place(folder: Path) -> Iterator[Paths]:
    """Paths below `folder` and on the BPF file system; all of it is gone afterwards."""
    name = f"streamtap-test-{os.getpid()}-{os.urandom(4).hex()}"
    paths = Paths(folder / "state", folder / "run", Path(BPF_MOUNT) / name)
    try:
        yield paths
    finally:
        if paths.bpf.is_dir():
            for version in paths.bpf.iterdir():
                Pins(version).remove()
            paths.bpf.rmdir()
        for left in (paths.state, paths.run):
            shutil.rmtree(left, ignore_errors=True)


def environment_of(paths: Paths) -> dict[str, str]:
    """The environment in which streamtap uses these."""
    return os.environ | {
        "STREAMTAP_STATE_DIR": str(paths.state),
        "STREAMTAP_RUN_DIR": str(paths.run),
        "STREAMTAP_BPF_DIR": str(paths.bpf),
    }
