"""The flight recorder: what was told lately, for sessions that begin later."""

from collections import deque

from streamtap.events import Record

# A record counts as the length of its line. In memory it takes 0.65 to 1 times that in chats (340
# to 520 bytes), and 1.3 times where a flow has no more than two records: 42 MiB at most.
KEEP_BYTES = 32 * 1024 * 1024  # about 64 000 records of chats
KEEP_S = 300.0

Kept = tuple[Record, int]  # a record, and the length of its line
_SECOND_NS = 1_000_000_000


class Recall:
    """Records in the order in which they were given, bounded in bytes and in time.

    keep_bytes: what the lines of the kept records come to; the oldest go first.
    keep_s: seconds after which a record goes whether there is room or not.
    """

    def __init__(self, keep_bytes: int, keep_s: float) -> None:
        self.keep_bytes = keep_bytes
        self._keep_ns = round(keep_s * _SECOND_NS)
        self._kept: deque[Kept] = deque()
        self._bytes = 0
        # Those that went for want of room: by the second of their time, how many.
        self._crowded_out: deque[tuple[int, int]] = deque()

    def add(self, record: Record, length: int) -> None:
        self._kept.append((record, length))
        self._bytes += length
        while self._bytes > self.keep_bytes:
            self._note(self._drop_oldest().time_ns // _SECOND_NS)

    def forget(self, now_ns: int) -> None:
        """Drops what is too old at `now_ns`."""
        limit_ns = now_ns - self._keep_ns
        while self._kept and self._kept[0][0].time_ns < limit_ns:
            self._drop_oldest()
        while self._crowded_out and self._crowded_out[0][0] < limit_ns // _SECOND_NS:
            self._crowded_out.popleft()

    def since(self, time_ns: int) -> list[Kept]:
        """What is remembered and not older than `time_ns`."""
        return [kept for kept in self._kept if kept[0].time_ns >= time_ns]

    def missing_since(self, time_ns: int) -> int:
        """How many records of `time_ns` and later had to go before their time; those of the second
        in which it lies are all counted."""
        second = time_ns // _SECOND_NS
        return sum(count for of, count in self._crowded_out if of >= second)

    def _drop_oldest(self) -> Record:
        record, length = self._kept.popleft()
        self._bytes -= length
        return record

    def _note(self, second: int) -> None:
        last, count = self._crowded_out[-1] if self._crowded_out else (-1, 0)
        if second > last:
            self._crowded_out.append((second, 1))
        else:
            self._crowded_out[-1] = (last, count + 1)
