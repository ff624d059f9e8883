"""What the clients of the control socket may take, and how it is measured out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """What clients may take.

    connections: of all users but root; per_user: of one user; root: of root, beside the others.
    idle_s: without a whole request. stall_s: in which a client reads nothing of what waits for it.
    pending: bytes that wait for the clients of one user. rate, burst: requests of one user, in a
    second and at once; what is more waits. root_rate, root_burst: the same of root.
    refused_rate, refused_burst: records of what was not granted, likewise; what is more is counted.
    """

    connections: int = 64
    per_user: int = 16
    root: int = 64
    idle_s: float = 60.0
    stall_s: float = 10.0
    pending: int = 16 << 20
    rate: float = 20.0
    burst: int = 40
    root_rate: float = 200.0
    root_burst: int = 400
    refused_rate: float = 1.0
    refused_burst: int = 20


class Bucket:
    """Tokens that come at a rate, and gather up to a burst."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        self._fill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait_s(self, now: float) -> float:
        """Until there is a token."""
        self._fill(now)
        return max(0.0, (1 - self._tokens) / self._rate)

    def is_full(self, now: float) -> bool:
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
