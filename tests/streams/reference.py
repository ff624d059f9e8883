"""A reassembler that is slow and plain enough to be believed: one entry a byte.

It knows stream offsets only, has no limits, and follows the rules of `Gap` and `Segment` word by
word. `stream` has an entry a byte: the byte itself, or the cause of the gap that it lies in.
"""


class Reference:
    def __init__(self, offset: int) -> None:
        self.begin = offset
        self.stream: list[int | str] = []
        self.held: dict[int, int | str] = {}
        self.acked = offset
        self.unexplained = False
        self.differing: set[int] = set()

    @property
    def offset(self) -> int:
        return self.begin + len(self.stream)

    def push(self, start: int, content: list[int | str], lost: bool) -> None:
        """content: bytes, or "policy" for each byte that was counted; lost: a new count."""
        gaps = self.gaps()
        keep_alive = len(content) == 1 and start + 1 == self.offset
        fresh = {}
        for at, value in enumerate(content, start):
            known = self.held.get(at)
            if known is None and self.begin <= at < self.offset:
                known = self.remembered(at)
            if isinstance(known, int) and isinstance(value, int) and known != value:
                if not keep_alive:
                    self.differing.add(at)
            elif known is None and at >= self.offset:
                fresh[at] = value
        if fresh and lost:
            self.pass_over(min(fresh), "lost")
        elif fresh and min(fresh) <= self.acked:
            self.pass_over(min(fresh), None)
        self.held |= fresh
        self.drain()
        if lost and self.gaps() == gaps:
            self.unexplained = True

    def acknowledge(self, offset: int) -> None:
        self.acked = max(self.acked, offset)
        self.drain()

    def end(self, total: int | None) -> None:
        if total is not None:
            self.held = {at: value for at, value in self.held.items() if at < total}
        if self.held:
            self.pass_over(max(self.held) + 1, None)
        self.pass_over(self.acked - 1 if total is None else total, None)

    def drain(self) -> None:
        while self.held and (first := min(self.held)) <= max(self.acked, self.offset):
            self.pass_over(first + 1, None)

    def pass_over(self, end: int, cause: str | None) -> None:
        """Everything below `end` is given; what is not there is a gap."""
        hole: str | None = None
        while self.offset < end:
            if self.offset in self.held:
                hole = None
                self.stream.append(self.held.pop(self.offset))
            else:
                hole = hole or cause or self.explain()
                self.stream.append(hole)

    def explain(self) -> str:
        if self.unexplained:
            self.unexplained = False
            return "lost"
        return "unseen"

    def remembered(self, at: int) -> int | str | None:
        """What was given at `at`, unless a gap has followed it."""
        after = self.stream[at - self.begin :]
        return None if any(isinstance(value, str) for value in after) else after[0]

    def gaps(self) -> int:
        return sum(value in ("lost", "unseen") for value in self.stream)
