"""What is known of processes: the programs they run, and the verdicts on those that the kernel
could not decide on."""

import os
from collections import OrderedDict
from typing import Any

from streamtap.capture.kernel import Candidate, Kernel
from streamtap.capture.layout import COMM_LENGTH, ProcessFlag, RecordKind
from streamtap.model import App

REMEMBERED = 16_384  # processes


class Candidates:
    """Asks the holder of the callouts about each candidate once, and remembers the answer."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._paths: OrderedDict[int, str] = OrderedDict()
        self._verdicts: OrderedDict[int, int] = OrderedDict()

    def meet(self, record: dict[str, Any], kind: int) -> None:
        """A process record."""
        process_id = record["process_id"]
        path = _path(record["path"][: record["path_length"]])
        remember(self._paths, process_id, path, REMEMBERED)
        if kind != RecordKind.EXEC:
            return
        self._decide(
            Candidate(
                process_id,
                record["candidates"],
                record["pid"],
                path,
                os.fsdecode(record["filename"][: record["filename_length"]].rstrip(b"\0")),
                record["arguments"][: record["arguments_length"]],
                bool(record["flags"] & ProcessFlag.EXISTING),
            )
        )

    def verdict_of(self, record: dict[str, Any]) -> int:
        """The filters that the process of an OPENED record does match. Where its own record was
        lost, or so many came since that it is forgotten, /proc is asked."""
        known = self._verdicts.get(record["process_id"])
        if known is not None:
            return known & int(record["candidates"])
        path = self.path_of(record)
        return self._decide(
            Candidate(
                record["process_id"], record["candidates"], record["pid"], path, "", b"", True
            )
        )

    def path_of(self, record: dict[str, Any]) -> str:
        """The program of an OPENED record."""
        path = self._paths.get(record["process_id"])
        if path is None:  # its record was lost with the control ring full
            path = self._kernel.program_of(record["pid"])
            if path:
                remember(self._paths, record["process_id"], path, REMEMBERED)
        return path

    def app_of(
        self, record: dict[str, Any], in_filter: str, path: str = "", cgroup: str = ""
    ) -> App:
        """The application of an OPENED record. path, cgroup: what is known already, from when the
        process and its cgroup were there."""
        return App(
            path or self.path_of(record),
            record["pid"],
            record["comm"][:COMM_LENGTH].split(b"\0")[0].decode("utf-8", "backslashreplace"),
            record["uid"],
            cgroup or self._kernel.cgroup_path(record["cgroup_id"]),
            in_filter,
        )

    def _decide(self, candidate: Candidate) -> int:
        verdict = self._kernel.decide(candidate)
        remember(self._verdicts, candidate.process_id, verdict, REMEMBERED)
        return verdict


def remember(table: OrderedDict[int, Any], key: int, value: Any, most: int) -> None:
    """Of more than `most` the oldest is forgotten."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)


def _path(components: bytes) -> str:
    """A path from its components, leaf first, each ended by a zero byte."""
    parts = components.rstrip(b"\0").split(b"\0")
    return os.fsdecode(b"/" + b"/".join(reversed(parts)))
