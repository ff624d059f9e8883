"""Memory that many share, and of which each has some of its own."""


class Room:
    """`held` bytes, of which about `limit` are allowed for all together.

    own: what each may hold whatever the others do: `most`, or where there are many an equal part of
        `together`, but not less than `least`.
    """

    __slots__ = ("_least", "_most", "_sharers", "_together", "held", "limit")

    def __init__(self, limit: int, *, most: int, together: int, least: int = 0) -> None:
        self.held = 0
        self.limit = limit
        self._most = most
        self._together = together
        self._least = least
        self._sharers = 0

    def share(self, more: int) -> None:
        """So many more share it, or fewer."""
        self._sharers += more

    @property
    def own(self) -> int:
        return max(self._least, min(self._most, self.part(self._together)))

    def part(self, of: int) -> int:
        """What each has of so much."""
        return of // max(1, self._sharers)

    def refuses(self, held: int, more: int = 0) -> bool:
        """Whether one that holds so much may not, where `more` of it is not counted yet."""
        return self.held + more > self.limit and held > self.own
