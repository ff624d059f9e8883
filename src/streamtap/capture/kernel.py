"""What the live source asks of whoever holds the callouts.

That may be an object of the same process, or one behind a socket: who reads the rings needs no
right but to them.
"""

from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from streamtap.capture.ring import Ring
from streamtap.model import Policy


class Candidate(NamedTuple):
    """A process that the kernel could not decide on.

    process_id: as in its records. filters: mask of the filters in question. path: its program as
    the process sees it. filename: what was given to execve, "" if it ran before the callouts.
    arguments: its command line, words ended by zero bytes, possibly cut; empty if it ran before.
    existing: it ran before, or its record was lost: /proc tells the rest.
    """

    process_id: int
    filters: int
    pid: int
    path: str
    filename: str
    arguments: bytes
    existing: bool


class Kernel(Protocol):
    """The callouts, as far as the source needs them."""

    def rings(self) -> tuple[Ring, Ring]:
        """The data ring and the control ring."""

    def decide(self, candidate: Candidate) -> int:
        """The filters in question that the candidate is in; the callouts are told too."""

    def set_flow_policy(self, flow_id: int, policy: Policy) -> None:
        """How much of one flow is copied, from its next segment on."""

    def counters(self) -> dict[str, int]:
        """Totals over all flows; names as in `bpf/callout.h`, and others that the driver adds."""

    def list_flows(self) -> NDArray[Any]:
        """(n,) FLOW_LISTING: the connections that are marked now."""

    def cgroup_path(self, cgroup_id: int) -> str:
        """The path of a cgroup, "" where it is gone."""

    def program_of(self, pid: int) -> str:
        """The path of the program that a process runs, "" where it is gone."""
