"""What a live source asks of the callouts, answered by a test over rings in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.rings import FakeRing
from streamtap.capture.kernel import Candidate
from streamtap.capture.layout import FLOW_LISTING
from streamtap.capture.ring import Ring
from streamtap.model import Policy

SIZE = 1 << 16


class FakeKernel:
    """rows: what `list_flows` gives. asked: candidates, all of which are in all filters."""

    def __init__(self) -> None:
        self.data, self.control = FakeRing(SIZE), FakeRing(SIZE)
        self.numbers: Mapping[str, int] = {"control_lost": 0}
        self.rows: NDArray[Any] = np.zeros(0, FLOW_LISTING)
        self.asked: list[Candidate] = []
        self.policies: list[tuple[int, Policy]] = []

    def rings(self) -> tuple[Ring, Ring]:
        return Ring(self.data.fd, SIZE), Ring(self.control.fd, SIZE)

    def decide(self, candidate: Candidate) -> int:
        self.asked.append(candidate)
        return (1 << 64) - 1

    def set_flow_policy(self, flow_id: int, policy: Policy) -> None:
        self.policies.append((flow_id, policy))

    def counters(self) -> dict[str, int]:
        return dict(self.numbers)

    def list_flows(self) -> NDArray[Any]:
        return self.rows

    def cgroup_path(self, cgroup_id: int) -> str:
        return f"/group-{cgroup_id}-\udcff"

    def program_of(self, pid: int) -> str:
        return f"/proc/{pid}/exe"

    def close(self) -> None:
        self.data.close()
        self.control.close()
