"""A message that is relayed passes on several flows, and a record may stand in several files: which
of them are the same one."""

from collections import deque

import msgspec

RELAY_NS = 10_000_000_000  # the longest that a message takes to its receivers, and clocks differ
RECENT = 16_384  # messages that copies of may be still to come
WATCHED = 64  # flows that one message is followed on, or files


class _Said(msgspec.Struct):
    """The same thing said again and again, a moment ago.

    first, end: which of those times are remembered. seen: how far each flow has them.
    """

    first: int = 0
    end: int = 0
    seen: dict[str, int] = msgspec.field(default_factory=dict)


class Copies:
    """Knows messages again that passed on another flow a moment ago; records, of another file.

    Those of one flow are never copies of each other: who says the same twice has said it twice.
    """

    def __init__(self) -> None:
        self._said: dict[object, _Said] = {}
        self._order: deque[tuple[int, object]] = deque()

    def has(self, what: object, flow: str, time_ns: int) -> bool:
        """Whether this was seen on another flow; it is noted."""
        order = self._order
        while order and (order[0][0] < time_ns - RELAY_NS or len(order) >= RECENT):
            _, old = order.popleft()
            said = self._said[old]
            said.first += 1
            if said.first == said.end:
                del self._said[old]
        known = self._said.get(what)
        if known is None:
            known = self._said[what] = _Said()
        number = max(known.first, known.seen.get(flow, 0))
        is_copy = number < known.end
        if not is_copy:
            known.end += 1
            order.append((time_ns, what))
        if flow in known.seen or len(known.seen) < WATCHED:
            known.seen[flow] = number + 1
        return is_copy
