"""What a stretch of a capture says, as lists: the columns of `runs` for Python to walk."""

import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from streamtap.capture.payloads import Payload
from streamtap.capture.runs import HEADER_BYTES, Runs, Strands
from streamtap.model import App, Endpoint

# Servers' ports above 1023. Of two ends whose beginning was not seen, the one with such a port, or
# one below 1024, is taken for the server; where both have one, or neither, the lower one.
SERVER_PORTS = frozenset(
    (
        *(1863, 5050, 5190, 5222, 5223, 5269, *range(6660, 6670), 6697, 6891, 6901),
        *(1080, 3128, 5060, 5061, 8000, 8008, 8080, 8081, 8443, 8888, 9050),
        *(1433, 1521, 3306, 3389, 5432, 5900, 6379, 9092, 9200, 11211, 27017),
    )
)
STRANDS = 1 << 14  # of a batch, or a few more
# Of a strand's first packet: whose it is, its way (see `Strands`), its source and destination.
First = tuple[App | None, int, Endpoint, Endpoint]


class Batch:
    """Strands and runs, each column a list; see there what it holds.

    connections: the first strand of each, and that behind its last, in the order in which they
        first spoke: so that a flow has the same number whenever a capture is read.
    controls: beginnings and ends of connections before each strand; one entry more.
    strand: of each run. length: of each run, with what the capture did not keep. following: the
        sequence number behind it. whole: it has bytes, all of them kept, of one packet or without
        boundaries.
    """

    def __init__(self, strands: Strands, runs: Runs, payload: Payload, apps: Sequence[App]) -> None:
        self.apps = apps
        self.payload = payload
        self.low: list[int] = strands.low.tolist()
        self.high: list[int] = strands.high.tolist()
        self.from_high: list[bool] = strands.from_high.tolist()
        self.run: list[int] = strands.run.tolist()
        self.connections = _by_connection(strands)
        self.header = strands.header.tobytes()  # `HEADER_BYTES` of each strand
        self.version: list[int] = strands.version.tolist()
        self.source_port: list[int] = strands.source_port.tolist()
        self.destination_port: list[int] = strands.destination_port.tolist()
        self.process: list[int] = strands.process.tolist()
        self.way: list[int] = strands.way.tolist()
        self.strand_ack: list[int] = strands.acknowledgment.tolist()
        self.last_ns: list[int] = strands.last_ns.tolist()
        self.last_ns_of_all = int(strands.last_ns.max())
        controls: Any = np.concatenate(([0], np.cumsum(runs.flags != 0)))
        self.controls: list[int] = controls[strands.run].tolist()
        self.strand: list[int] = np.repeat(
            np.arange(len(strands.low)), np.diff(strands.run)
        ).tolist()
        self.packet: list[int] = runs.packet.tolist()
        self.sequence: list[int] = runs.sequence.tolist()
        self.flags: list[int] = runs.flags.tolist()
        self.ack: list[int] = runs.acknowledgment.tolist()
        self.data: list[int] = runs.data.tolist()
        self.missing: list[int] = runs.missing.tolist()
        kept = np.diff(runs.data)
        length = kept + runs.missing
        self.length: list[int] = length.tolist()
        self.following: list[int] = (runs.sequence + length & 0xFFFF_FFFF).tolist()
        whole = (kept > 0) & (runs.missing == 0) & (np.diff(runs.piece) < 2)
        self.whole: list[bool] = whole.tolist()
        self.run_first_ns: list[int] = runs.first_ns.tolist()
        self.run_last_ns: list[int] = runs.last_ns.tolist()
        self.piece: list[int] = runs.piece.tolist()
        self.ends: list[int] = runs.ends.tolist()
        self.times_ns: list[int] = runs.times_ns.tolist()

    def first_of(self, strand: int) -> First:
        """What its first packet tells."""
        header = self.header[strand * HEADER_BYTES : (strand + 1) * HEADER_BYTES]
        text = socket.inet_ntop
        if self.version[strand] == 4:
            family = socket.AF_INET
            source, destination = text(family, header[12:16]), text(family, header[16:20])
        else:
            family = socket.AF_INET6
            source, destination = text(family, header[8:24]), text(family, header[24:40])
        process = self.process[strand]
        return (
            self.apps[process] if process else None,
            self.way[strand],
            Endpoint(source, self.source_port[strand]),
            Endpoint(destination, self.destination_port[strand]),
        )

    def is_from_client(self, strand: int) -> bool:
        """By the ports alone."""
        source, destination = self.source_port[strand], self.destination_port[strand]
        return (not _serves(destination), destination) <= (not _serves(source), source)


def batches(strands: Strands, runs: Runs, payload: Payload, apps: Sequence[App]) -> Iterator[Batch]:
    """The same in parts of whole connections, for lists take ten times the memory of columns."""
    first, count = 0, len(strands.low)
    while first < count:
        last = min(first + STRANDS, count)
        while last < count and (
            strands.low[last] == strands.low[last - 1]
            and strands.high[last] == strands.high[last - 1]
        ):
            last += 1
        begin, end = int(strands.run[first]), int(strands.run[last])
        piece, stop = int(runs.piece[begin]), int(runs.piece[end])
        of_strands: Any = slice(first, last)
        of_runs: Any = slice(begin, end)
        yield Batch(
            Strands(*(column[of_strands] for column in strands))._replace(
                run=strands.run[first : last + 1] - begin
            ),
            Runs(*(column[of_runs] for column in runs))._replace(
                data=runs.data[begin : end + 1],
                piece=runs.piece[begin : end + 1] - piece,
                ends=runs.ends[piece:stop],
                times_ns=runs.times_ns[piece:stop],
            ),
            payload,
            apps,
        )
        first = last


def _by_connection(strands: Strands) -> list[tuple[int, int]]:
    low, high = strands.low, strands.high
    changes = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(low)]
    return list(pairwise(bounds)) if len(low) else []


def _serves(port: int) -> bool:
    return port < 1024 or port in SERVER_PORTS
