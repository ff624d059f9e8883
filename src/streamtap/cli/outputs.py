"""The sinks that were asked for, as one: what they are given, and what became of them."""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from streamtap import __version__
from streamtap.cli.options import sinks, takes_stdout
from streamtap.cli.parsing import Arguments, say
from streamtap.events import (
    ControlOpened,
    ControlRequest,
    ControlState,
    FilterChanged,
    Record,
    Started,
    Stopped,
)
from streamtap.trace import Output, Selection, Session, Sink, choose, open_sink
from streamtap.trace.console import Show
from streamtap.trace.extract import Extract
from streamtap.trace.pcapng import Pcapng

STDOUT = 1
# Where it is told that somebody asked for content, which is never hidden.
ASKED = Selection(frozenset({(ControlRequest.provider, ControlRequest.flag, ControlRequest.level)}))
STANDARD_OUTPUT = "standard output"
_ROUTINE = frozenset({Started, Stopped, FilterChanged, ControlOpened})


class Outputs:
    """A session and its sinks. Entering it opens them; leaving it closes them.

    selection: what they want. failed: names of sinks that could not go on.
    taps: sinks that are to be shown segments too. only_files: the ordered bytes are all that is
    asked for.
    """

    def __init__(
        self,
        arguments: Arguments,
        *,
        live: bool = True,
        selection: Selection | None = None,
        keep_numbers: bool = False,
    ) -> None:
        """live: what was said is written with --content full only; a capture holds it anyway.
        selection: instead of what --provider, --flag and --level say, and of what is usual.
        keep_numbers: as in `Session`.

        Raises ValueError for words that no selection knows, OSError where there is no stdout.
        """
        self._arguments = arguments
        self._chosen = bool(selection or arguments.provider or arguments.flag or arguments.level)
        self._keep_numbers = keep_numbers
        if selection is not None:
            self.selection = selection
        else:
            self.selection = choose(arguments.provider, arguments.flag, arguments.level)
            if arguments.count is not None and not self._chosen:
                self.selection = without_ours(self.selection)
        # That somebody asked is told always; it counts for -c where it was chosen.
        self._counts_asking = self._chosen and self.selection.wants(
            ControlRequest.provider, ControlRequest.flag, ControlRequest.level
        )
        self._still: int | None = arguments.count
        self._specs = sinks(arguments)
        self._calm = not (self._chosen or arguments.verbose)
        self._only_calm = self._calm and self._specs in (["line"], [])
        self._standard = takes_stdout(arguments)
        self._payload = not live or arguments.content == "full"
        self._session: Session | None = None
        self._reader: select.poll | None = None
        self.failed: list[str] = []
        self.only_files = not self._specs and not arguments.write
        if not self._specs and arguments.count is None:
            self.selection = Selection(frozenset())  # nobody would see a record
        elif arguments.content == "full" and selection is None:  # whatever else was chosen
            self.selection |= ASKED
        self._packets = self._pcapng() if arguments.write else None
        self._files = self._extract() if arguments.extract else None
        self.taps: Sequence[Pcapng | Extract] = [
            tap for tap in (self._packets, self._files) if tap is not None
        ]

    def __enter__(self) -> Self:
        """Raises OSError naming the output that cannot be written."""
        with contextlib.ExitStack() as stack:
            opened: list[Sink] = []
            stdout: BinaryIO = _stdout() if self._standard else io.BytesIO()
            for spec in self._specs:
                opened.append(sink := self._open(spec, stdout))
                stack.callback(sink.close)
            if self._packets is not None:
                self._open_pcapng(self._packets)
                stack.callback(self._packets.close)
            if self._files is not None:
                self._files.open()
            stack.pop_all()
        opened += self.taps
        if self._standard:
            self._reader = select.poll()
            self._reader.register(STDOUT, 0)  # errors and hang-ups are told without asking
        self._session = Session(
            self.selection,
            opened,
            line_buffered=self._arguments.line_buffered,
            keep_numbers=self._keep_numbers,
            report=self._report,
        )
        return self

    def _open(self, spec: str, stdout: BinaryIO) -> Sink:
        arguments = self._arguments
        show: Show | None = "text" if arguments.as_text else "hex" if arguments.as_hex else None
        try:
            sink = open_sink(
                spec,
                stdout=stdout,
                color=self._standard and wants_color(stdout),
                quiet=arguments.quiet,
                verbose=arguments.verbose,
                show=show,
            )
        except OSError as error:
            raise OSError(error.errno, error.strerror, spec) from error
        return Calm(sink) if spec == "line" and self._calm else sink

    def _pcapng(self) -> Pcapng:
        target = self._arguments.write
        output = Output(_stdout() if target == "-" else Path(target))
        return Pcapng(output, payload=self._payload, application=f"streamtap {__version__}")

    def _extract(self) -> Extract:
        both_ends = getattr(self._arguments, "both_ends", False)  # of a capture every flow is one
        return Extract(Path(self._arguments.extract), both_ends=both_ends)

    def _open_pcapng(self, tap: Pcapng) -> None:
        target = self._arguments.write
        try:
            tap.open()
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from error
        if not self._payload:
            name = STANDARD_OUTPUT if target == "-" else target
            say(f"streamtap: {name}: headers only; --content full writes what was said too")

    def _report(self, sink: Sink, error: OSError) -> None:
        name = STANDARD_OUTPUT if sink.name == str(STDOUT) else sink.name
        self.failed.append(name)
        more = "; the rest goes on" if self.left else ""
        say(f"streamtap: error: {name}: {error.strerror or error}{more}")

    @property
    def folders(self) -> list[str]:
        """Where files are made after the outputs were opened: logs of databases, extracted bytes.
        They exist once they are."""
        databases = [spec for spec in self._specs if spec.lower().endswith(".sqlite")]
        folders = [os.path.dirname(os.path.realpath(spec)) for spec in databases]
        return folders + ([os.path.realpath(self._files.name)] if self._files else [])

    @property
    def left(self) -> bool:
        """Some sink still takes records, or will once they are open."""
        return self._session is None or not self._session.over

    @property
    def over(self) -> bool:
        """Nobody wants more."""
        return not self.left or self._still == 0 or self._is_reader_gone()

    def _is_reader_gone(self) -> bool:
        """The pipe on standard output was closed, and there is no other sink. Told without a
        write, so that a monitor that has nothing to say does not stay behind."""
        if self._reader is None or len(self._specs) + len(self.taps) > 1:  # one at most has it
            return False
        gone = select.POLLERR | select.POLLHUP
        return any(event & gone for _, event in self._reader.poll(0))

    @property
    def records(self) -> int:
        return self._session.counters.records if self._session else 0

    @property
    def dropped(self) -> int:
        """Records that a sink was given and could not write."""
        return self._session.counters.dropped if self._session else 0

    def take(self, records: list[Record]) -> None:
        session = self._session
        assert session is not None
        if not records and not self.taps:
            return
        if self._only_calm:  # not numbered and not counted either: nobody would see them
            records = [record for record in records if not is_routine(record)]
        session.offer(records if self._still is None else self._first(records, self._still))
        session.flush()

    def _first(self, records: list[Record], still: int) -> list[Record]:
        """As many as hold what is still asked for."""
        places = self.selection.places
        for number, record in enumerate(records):
            if still == 0:
                records = records[:number]
                break
            if record.body.place() in places and (
                self._counts_asking or type(record.body) is not ControlRequest
            ):
                still -= 1
        self._still = still
        return records

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            self._session.close()


class Calm:
    """Lines for a person, without what is routine."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    @property
    def name(self) -> str:
        return self._sink.name

    def open(self) -> None:
        self._sink.open()

    def write(self, first: int, records: Sequence[Record]) -> None:
        self._sink.write(first, [record for record in records if not is_routine(record)])

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        self._sink.close()


def is_routine(record: Record) -> bool:
    """It is about streamtap itself, and nothing is amiss: what the first and the last words on
    standard error tell a person too."""
    body = record.body
    if type(body) is ControlState:
        return not body.missing
    return type(body) in _ROUTINE


def without_ours(selection: Selection) -> Selection:
    """Only records of connections."""
    return Selection(
        frozenset(
            (provider, flag, level)
            for provider, flag, level in selection.places
            if provider not in ("init", "control") and flag not in ("state_change", "layer_notify")
        )
    )


def wants_color(stream: BinaryIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _stdout() -> BinaryIO:
    if sys.stdout is None:  # it was closed before we came; its number may be another's by now
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), STANDARD_OUTPUT)
    return open(STDOUT, "wb", buffering=0, closefd=False)
