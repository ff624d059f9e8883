"""What the reassemblers of all flows may hold together."""

HOLD_ALL = 64 << 20  # bytes of memory behind holes
HOLD_OWN = 64 << 10  # what a direction may hold whatever the others do: a window without scaling
HOLD_OWN_ALL = 32 << 20  # the same for all: where there are many, each has an equal part of it
REMEMBERED = 2048  # bytes given last, kept to compare retransmissions: a full Ethernet segment
REMEMBERED_ALL = 32 << 20  # the same for all: 8,192 flows remember so much, 65,536 an eighth


class Pool:
    """What the reassemblers of all flows hold together: `held` of at most about `limit` bytes.

    remembered: what each remembers.
    """

    __slots__ = ("_sharers", "held", "limit", "remembered")

    def __init__(self, limit: int = HOLD_ALL) -> None:
        self.held = 0
        self.limit = limit
        self._sharers = 0
        self.share(0)

    def share(self, more: int) -> None:
        """So many more share it, or fewer."""
        self._sharers += more
        remembered = REMEMBERED_ALL // (self._sharers or 1)
        self.remembered = remembered if remembered < REMEMBERED else REMEMBERED

    @property
    def own(self) -> int:
        """What each may hold whatever the others do."""
        return min(HOLD_OWN, HOLD_OWN_ALL // max(1, self._sharers))
