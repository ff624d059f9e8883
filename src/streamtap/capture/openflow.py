"""The connections that were opened and have not ended: what the live source keeps of them, and how
the callouts' records are put into the words of `model`."""

import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from streamtap.capture.layout import FlowFlag
from streamtap.capture.orphans import MAPPED, Ends
from streamtap.capture.totals import kernel_totals
from streamtap.model import App, Closed, Direction, Endpoint, Flow, Role, Segment


class OpenFlow(NamedTuple):
    """sent: the direction in which the local end sends. passed: payload that was over before it was
    marked, sent and received. time_ns: by the kernel's clock, when it opened."""

    flow_id: int
    sent: Direction
    passed: tuple[int, int]
    ends: Ends
    filters: int
    time_ns: int

    def ranges(self, record: dict[str, Any], time_ns: int) -> list[Segment]:
        """The counted ranges that grow in the flow's context still, of a CLOSED_RECORD or a
        listing."""
        return [
            Segment(
                self.flow_id,
                self.sent if side == 0 else self.sent.opposite,
                record["range_sequence"][side],
                b"",
                time_ns,
                counted=record["range_length"][side],
                lost=record["lost_segments"][side],
            )
            for side in (0, 1)
            if record["range_length"][side]
        ]

    def closed(self, record: dict[str, Any], time_ns: int) -> Closed:
        """Its end, by a CLOSED_RECORD."""
        flags = record["flags"]
        finished = flags & FlowFlag.FIN_SENT and flags & FlowFlag.FIN_RECEIVED
        return Closed(
            self.flow_id,
            time_ns,
            "fin" if finished else "rst",
            self._by_direction(kernel_totals(record, self.passed)),
            self._by_direction(record["lost_segments"]),
        )

    def left(self, standing: dict[str, Any], time_ns: int) -> Closed:
        """Its end for who reads no further: as it stands, by a listing."""
        totals, lost = standing["totals"], standing["lost_segments"]
        return Closed(
            self.flow_id, time_ns, "end", self._by_direction(totals), self._by_direction(lost)
        )

    def _by_direction(self, sent_received: tuple[int, int]) -> tuple[int, int]:
        sent, received = sent_received
        return (sent, received) if self.sent is Direction.TO_SERVER else (received, sent)


class OpenFlows:
    """By flow id. sent: the same as directions alone, for who asks for nothing else."""

    def __init__(self) -> None:
        self._flows: dict[int, OpenFlow] = {}
        self.sent: dict[int, Direction] = {}

    def __contains__(self, flow_id: int) -> bool:
        return flow_id in self._flows

    def __iter__(self) -> Iterator[OpenFlow]:
        return iter(self._flows.values())

    def get(self, flow_id: int) -> OpenFlow | None:
        return self._flows.get(flow_id)

    def put(self, flow: OpenFlow) -> None:
        """It was opened, or is another."""
        self._flows[flow.flow_id] = flow
        self.sent[flow.flow_id] = flow.sent

    def take(self, flow_id: int) -> OpenFlow | None:
        """It has ended."""
        self.sent.pop(flow_id, None)
        return self._flows.pop(flow_id, None)


def flow_of(
    record: dict[str, Any], app: App, filters: int, opened_ns: int, *, midstream: bool
) -> Flow:
    """Of an OPENED_RECORD. opened_ns: Unix time. midstream: although the record may not say so."""
    flags = record["flags"]
    return Flow(
        record["flow_id"],
        app,
        Endpoint(_address(record["local"], record["family"]), record["local_port"]),
        Endpoint(_address(record["remote"], record["family"]), record["remote_port"]),
        Role.CLIENT if flags & FlowFlag.ACTIVE else Role.SERVER,
        opened_ns,
        midstream or bool(flags & FlowFlag.MIDSTREAM),
        record["space"],
        filters,
    )


def _address(raw: bytes, family: int) -> str:
    """As text; the mapped address of an IPv4 peer as IPv4, which is what went over the wire."""
    if family == 6 and not raw.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET6, raw)
    return socket.inet_ntop(socket.AF_INET, raw[:4] if family == 4 else raw[-4:])
