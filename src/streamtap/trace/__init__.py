"""Records to somewhere: sessions choose among them, sinks write them."""

from pathlib import Path
from typing import BinaryIO

from streamtap.trace.console import Console, Show
from streamtap.trace.jsonlines import JsonLines, RecordDecoder, decode
from streamtap.trace.recording import Recording
from streamtap.trace.replay import is_recording, read
from streamtap.trace.selection import Selection, choose, parse
from streamtap.trace.session import Counters, Session
from streamtap.trace.sink import Output, Sink
from streamtap.trace.sqlite import Sqlite
from streamtap.trace.wpp import Wpp

__all__ = [
    "Console",
    "Counters",
    "JsonLines",
    "Output",
    "RecordDecoder",
    "Recording",
    "Selection",
    "Session",
    "Sink",
    "Sqlite",
    "Wpp",
    "choose",
    "decode",
    "is_recording",
    "open_sink",
    "parse",
    "read",
]


def open_sink(
    spec: str,
    *,
    stdout: BinaryIO,
    color: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    show: Show | None = None,
) -> Sink:
    """The sink that `-o SPEC` asks for, opened: line, json or wpp on `stdout`, or a new file whose
    ending says its kind. The four settings at the end are those of lines.

    Raises ValueError for another word, OSError where the file cannot be made.
    """
    sink: Sink
    suffix = Path(spec).suffix.lower()
    if spec == "line":
        sink = Console(Output(stdout), color=color, quiet=quiet, verbose=verbose, show=show)
    elif spec == "json":
        sink = JsonLines(Output(stdout))
    elif spec == "wpp":
        sink = Wpp(Output(stdout))
    elif suffix == ".jsonl":
        sink = JsonLines(Output(Path(spec)))
    elif suffix == ".sqlite":
        sink = Sqlite(Path(spec))
    else:
        raise ValueError(f"no output {spec!r}: there are line, json, wpp, FILE.jsonl, FILE.sqlite")
    sink.open()
    return sink
