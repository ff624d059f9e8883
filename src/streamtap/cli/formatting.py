"""Recordings printed anew."""

import gc
import os
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path

from streamtap.capture.identity import host_key
from streamtap.cli.ending import FAILED, SIGINT, SIGNALLED
from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import Arguments, say
from streamtap.cli.reading import GARBAGE_AFTER
from streamtap.cli.recordings import cleaned, in_sets, of_wanted_flows, records_of
from streamtap.cli.signals import Stop
from streamtap.errors import NotFound
from streamtap.events import Record
from streamtap.model import Content
from streamtap.trace import parse
from streamtap.trace.text import counted, printable

BATCH = 500  # records between two looks at whether somebody still wants them


def show_records(
    arguments: Arguments, names: Sequence[str], components: Sequence[str], stop: Stop
) -> int:
    """Prints all files, or until a signal; the exit code. Raises NotFound for a missing file."""
    paths = [Path(name) for name in names]
    for path in paths:
        if not path.exists():
            raise NotFound(f"no file {path}")
    gc.set_threshold(GARBAGE_AFTER)
    problems: list[str] = []
    sets = in_sets(paths)
    chosen = components or not (arguments.provider or arguments.flag or arguments.level)
    outputs = Outputs(
        arguments,
        live=False,
        selection=parse(components or ["all@all"]) if chosen else None,
        keep_numbers=len(sets) == 1,
    )
    records = _wanted(arguments, _records(sets, problems))
    with outputs:
        while not (stop.number or outputs.over) and (batch := list(islice(records, BATCH))):
            outputs.take(batch)
    for problem in problems:
        say(f"streamtap: error: {printable(problem, 1000)}")
    say(f"streamtap: {counted(outputs.records, 'record')}")
    if outputs.dropped:
        say(f"streamtap: lost: {counted(outputs.dropped, 'record')} that could not be written")
    if stop.number and stop.number != SIGINT:
        return SIGNALLED + stop.number
    return FAILED if problems or outputs.failed else 0


def _records(sets: Sequence[Sequence[Path]], problems: list[str]) -> Iterator[Record]:
    """Of the files of each recording one after the other, of several recordings by time."""
    readers = [chain.from_iterable(records_of(path, problems) for path in files) for files in sets]
    return iter(readers[0] if len(readers) == 1 else merge(*readers, key=attrgetter("time_ns")))


def _wanted(arguments: Arguments, records: Iterator[Record]) -> Iterator[Record]:
    """Those of the flows that are asked for, with no more than is to be told."""
    content, key = Content.named(arguments.content), host_key() or os.urandom(16)
    wanted = of_wanted_flows(arguments)
    for record in records:
        if wanted is None or (record.flow is not None and wanted(record.flow)):
            yield cleaned(record, content, key)
