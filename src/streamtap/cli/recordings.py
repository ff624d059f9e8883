"""What was recorded, for the verbs that read it: its records, in order, and no more of them than
is to be told."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from streamtap import events
from streamtap.cli.options import wanted_flows
from streamtap.cli.parsing import Arguments
from streamtap.errors import StreamtapError
from streamtap.events import Body, Event, FlowInfo, Record
from streamtap.model import Content, Endpoint, Flow, Role
from streamtap.patterns import PATTERNS, clean
from streamtap.protocols import event_types
from streamtap.trace import read
from streamtap.trace.rotation import name_of

ENDS = 4096  # pairs of addresses of which it is remembered whether they are wanted


def body_types() -> list[type[Body]]:
    """All that a recording may hold."""
    general = [
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Body) and kind not in (Body, Event)
    ]
    return [*general, *PATTERNS, *event_types()]


def records_of(path: Path, problems: list[str]) -> Iterator[Record]:
    """All records of a recording that can be read; what cannot be is added to the problems."""
    first = ""
    more = -1  # not each is told: a file may be anything

    def damaged(place: int, error: ValueError) -> None:
        nonlocal first, more
        first = first or f"{path}: record {place} cannot be read: {error}"
        more += 1

    try:
        yield from read(path, body_types(), damaged)
    except StreamtapError as error:
        problems.append(str(error))
    if first:
        problems.append(first + (f" (and {more} more)" if more else ""))


def in_sets(paths: Sequence[Path]) -> list[list[Path]]:
    """The files of each recording, those of a rotation the oldest first; each once."""
    sets: dict[Path, list[Path]] = {}
    seen: set[Path] = set()
    for path in paths:
        where = path.resolve()
        if where not in seen:
            seen.add(where)
            sets.setdefault(name_of(where)[0], []).append(path)
    return [sorted(files, key=_beginning) if len(files) > 1 else files for files in sets.values()]


def _beginning(path: Path) -> tuple[float, int]:
    """Time and number of the first record; where there is none, of the end of all times."""
    records = records_of(path, [])
    for record in records:
        return record.time_ns, record.number
    return float("inf"), 0


def cleaned(record: Record, content: Content, key: bytes) -> Record:
    """The record with no more than is to be told, whatever it was recorded with."""
    if content is Content.FULL:
        return record
    body = clean(record.body, content, key)
    if body is record.body:
        return record
    return Record(
        number=record.number,
        time_ns=record.time_ns,
        body=body,
        flow=record.flow,
        direction=record.direction,
    )


def of_wanted_flows(arguments: Arguments) -> Callable[[FlowInfo], bool] | None:
    """The test of --port and --host for flows of a recording; None without them."""
    wanted = wanted_flows(arguments)
    if wanted is None:
        return None

    @lru_cache(ENDS)
    def test(local: str, remote: str) -> bool:
        try:
            ends = _endpoint(local), _endpoint(remote)
        except ValueError:  # nobody knows what wrote it
            return False
        return wanted(Flow(0, None, *ends, Role.CLIENT, 0))

    return lambda flow: test(flow.local, flow.remote)


def _endpoint(text: str) -> Endpoint:
    address, _, port = text.rpartition(":")
    return Endpoint(address.strip("[]"), int(port))
