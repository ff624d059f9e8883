"""What a stretch of a capture says, as lists: the columns of `runs` for Python to walk."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from streamtap.capture.payloads import Payload
from streamtap.capture.runs import HEADER_BYTES, Runs, Strands
from streamtap.model import App


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
        self.last_ns_of_all = int(strands.last_ns.max(initial=0))
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

    def header_of(self, strand: int) -> bytes:
        return self.header[strand * HEADER_BYTES : (strand + 1) * HEADER_BYTES]


def _by_connection(strands: Strands) -> list[tuple[int, int]]:
    low, high = strands.low, strands.high
    changes = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(low)]
    return list(pairwise(bounds)) if len(low) else []
