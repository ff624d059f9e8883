"""Every input that ever broke us, and those that fuzzing begins with."""

from pathlib import Path

import pytest

from fuzz.targets import TARGETS, bytes_of, seeds, steps_of
from protocols.samples import MSNP

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.bin"))


def test_what_broke_us_once_does_not_again() -> None:
    for path in CORPUS:
        TARGETS[path.name.partition("-")[0]](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_begins_with_is_sound(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)


def test_steps_are_read_as_they_were_written() -> None:
    steps = [*MSNP[0], (MSNP[0][0][0], 7)]
    assert list(steps_of(bytes_of(0, steps)[1:])) == steps
