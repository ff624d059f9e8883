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


def make_room(path: Path, keep: int) -> Path | None:
    """Where the growing file is to go: the name with number 1, which is free now. Files beyond
    `keep` are gone. None where none is kept. Raises OSError."""
    beyond = keep + 1
    while numbered(path, beyond).exists():
        remove(numbered(path, beyond))
        beyond += 1
    if keep == 0:
        return None
    free = next((n for n in range(1, keep + 1) if not numbered(path, n).exists()), keep)
    for number in range(free - 1, 0, -1):
        os.replace(numbered(path, number), numbered(path, number + 1))
    return numbered(path, 1)
