"""The files of a recording that is bounded: `chat.jsonl`, `chat.1.jsonl`, `chat.2.jsonl` …

The file without a number is the one that grows; 1 is the newest of the others. The number stands
before the ending, so that each keeps its kind for whoever goes by names, as we do ourselves.

Each step is one renaming. Where a crash comes between two of them a number is missing, and the next
rotation fills it: no file is lost, and none is renamed further than it has to be.
"""

import os
import re
from pathlib import Path

from streamtap.trace.sqlite import remove

MOST = 1000  # files that are kept because they are small

_NUMBERED = re.compile(r"(.+)\.([1-9][0-9]{0,8})")


def numbered(path: Path, number: int) -> Path:
    """The name of the file that `number` rotations ago was `path`."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def name_of(path: Path) -> tuple[Path, int]:
    """The name without the number, and the number; 0 where there is none."""
    found = _NUMBERED.fullmatch(path.stem)
    if found is None:
        return path, 0
    return path.with_name(found[1] + path.suffix), int(found[2])


def _numbers(path: Path) -> list[int]:
    """Of the files that are there, the newest first. One may be missing, of a crash."""
    found: list[int] = []
    number = 1
    while len(found) >= number - 2:
        if numbered(path, number).exists():
            found.append(number)
        number += 1
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def make_room(path: Path, keep: int, limit_bytes: int) -> Path | None:
    """Where the growing file is to go: the name with number 1, which is free now. None where none
    is kept. Raises OSError.

    Of the others as many are kept as there may be: `keep`, and more where they are not full, as
    after each start of the service, as long as all of them take no more room than `keep` full ones.
    """
    if keep == 0:
        for number in _numbers(path):
            remove(numbered(path, number))
        return None
    full, total = 0, 0
    free = 1
    for place, number in enumerate([0, *_numbers(path)], 1):  # where each is to be
        size = _size(numbered(path, number))
        full += size >= limit_bytes // 2
        total += size
        beyond = full > keep or total > keep * limit_bytes or place > MOST
        if place > keep and beyond:
            remove(numbered(path, number))
        elif number == free:
            free += 1
    for number in range(free - 1, 0, -1):
        os.replace(numbered(path, number), numbered(path, number + 1))
    return numbered(path, 1)
