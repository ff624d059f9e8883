"""Records in the style of the lines that tracefmt prints for the sample's WPP providers.

    [0]1019.0000::11/23/2026-14:36:05.0430000 [NOTIFY][PEER_TO_PEER] message bob@example.com -> …

In this order: the processor in brackets, which is not known and always 0; process and thread in
hexadecimal, the thread not known and always 0; month/day/year and the local time in units of 100
nanoseconds; provider and flag; the event in words; at the end the flow and its ends. A record is
always one line.
"""

from collections.abc import Sequence

from streamtap.events import Record
from streamtap.trace.sink import Output
from streamtap.trace.text import Clock, ends, printable
from streamtap.trace.words import tell


class Wpp:
    """The sink of tracefmt lines."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._clock = Clock("%m/%d/%Y-%H:%M:%S")

    @property
    def name(self) -> str:
        return self._output.name

    def open(self) -> None:
        self._output.open()

    def write(self, first: int, records: Sequence[Record]) -> None:
        for record in records:
            self._output.put(self._line(record).encode("utf-8", "replace"))

    def flush(self) -> None:
        self._output.flush()

    def close(self) -> None:
        self._output.close()

    def _line(self, record: Record) -> str:
        provider, flag, _ = record.body.place()
        flow = record.flow
        pid = flow.app.pid if flow is not None and flow.app is not None else 0
        when = f"{self._clock.second(record.time_ns)}.{record.time_ns // 100 % 10_000_000:07}"
        words = tell(record)
        text = f"{words.word} {words.about}{words.detail}".rstrip()
        where = f" {{flow {printable(flow.flow)} {ends(flow)}}}" if flow is not None else ""
        return f"[0]{pid:04X}.0000::{when} [{provider.upper()}][{flag.upper()}] {text}{where}\n"
