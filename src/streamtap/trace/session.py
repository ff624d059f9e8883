"""A trace session: a selection, its sinks, its counters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from streamtap.events import Record
from streamtap.trace.selection import Selection
from streamtap.trace.sink import Sink

Report = Callable[[Sink, OSError], None]


@dataclass
class Counters:
    """What became of the records of a session.

    records: taken and numbered. dropped: those that did not get here (`Session.miss`), and those
    that a failed sink had not flushed.
    """

    records: int = 0
    dropped: int = 0


@dataclass
class _Outlet:
    sink: Sink
    safe: int = 0  # `Counters.records` when the sink was last flushed


class Session:
    """Numbers the records it wants from 1 and gives them to its sinks.

    line_buffered: what is offered is flushed at once; otherwise the owner calls `flush` after each
    batch that it drained.
    keep_numbers: records keep the numbers they have, as long as these ascend.
    report: called once for each sink that fails, with its error. A sink whose reader went away
    (EPIPE) ends without a report. A failed sink is closed and the others go on.
    """

    def __init__(
        self,
        selection: Selection,
        sinks: Sequence[Sink],
        counters: Counters | None = None,
        *,
        line_buffered: bool = False,
        keep_numbers: bool = False,
        report: Report | None = None,
    ) -> None:
        self.selection = selection
        self.counters = Counters() if counters is None else counters
        self._outlets = [_Outlet(sink, self.counters.records) for sink in sinks]
        self._line_buffered = line_buffered
        self._keep_numbers = keep_numbers
        self._report = report
        self._number = 0
        self._places = selection.places

    @property
    def over(self) -> bool:
        """No sink is left: the owner may stop."""
        return not self._outlets

    def offer(self, records: Sequence[Record]) -> int:
        """Takes those that are wanted; how many. None once the session is over."""
        if not self._outlets:
            return 0
        places = self._places
        wanted = [record for record in records if record.body.place() in places]
        if not wanted:
            return 0
        self.counters.records += len(wanted)
        for first, some in self._numbered(wanted):
            for outlet in self._outlets:
                try:
                    outlet.sink.write(first, some)
                except OSError as error:
                    self._give_up(outlet, error)
        if self._line_buffered:
            self.flush()
        return len(wanted)

    def _numbered(self, records: Sequence[Record]) -> Iterator[tuple[int, Sequence[Record]]]:
        """Those whose numbers follow one another, with the first of these."""
        begin = 0
        if self._keep_numbers:
            number = self._number
            for at, record in enumerate(records):
                number += 1
                if record.number > number:
                    if at > begin:
                        yield number - at + begin, records[begin:at]
                    begin, number = at, record.number
            self._number = number
        else:
            self._number += len(records)
        rest = records[begin:] if begin else records
        yield self._number - len(rest) + 1, rest

    def miss(self, records: int) -> None:
        """So many wanted records were lost on their way here: their numbers are left out, so that
        a reader sees the hole."""
        self._number += records
        self.counters.dropped += records

    def flush(self) -> None:
        for outlet in self._outlets:
            try:
                outlet.sink.flush()
                outlet.safe = self.counters.records
            except OSError as error:
                self._give_up(outlet, error)

    def close(self) -> None:
        for outlet in self._outlets:
            try:
                outlet.sink.close()
            except OSError as error:
                self._give_up(outlet, error)
        self._outlets = []

    def _give_up(self, outlet: _Outlet, error: OSError) -> None:
        # A new list, for a caller may be walking the old one.
        self._outlets = [other for other in self._outlets if other is not outlet]
        with suppress(OSError):
            outlet.sink.close()
        if isinstance(error, BrokenPipeError):
            return  # its reader has seen enough: nobody misses the rest
        self.counters.dropped += self.counters.records - outlet.safe
        if self._report is not None:
            self._report(outlet.sink, error)
