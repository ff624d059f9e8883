"""One session that is told over a socket: what waits for it, and what it lost.

What waits are batches of lines without numbers, which all sessions share; numbers are put in front
when batches are joined for a send. What was joined is sent to its end before more is, so no line is
cut.

A reader that stalls fills its queue. From the first record on that finds no room, all are lost
until the queue is empty, for one hole is easier to understand than many. Numbers go on meanwhile.
"""

import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, takewhile

from streamtap.events import Record, StreamLimit
from streamtap.model import Content
from streamtap.trace.jsonlines import numbered
from streamtap.trace.recall import Kept

# Of lines that wait for a reader: about 8000 records of chats. Lines are shared, so what many wait
# for costs once.
QUEUE_BYTES = 4 * 1024 * 1024
_JOINED = 256 * 1024  # bytes to be sent at once: as much as a socket takes with its usual buffer
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_NOTHING = memoryview(b"")

Encode = Callable[[Record, Content], bytes]


class Subscriber:
    """A socket and the queue in front of it.

    number: of the last record that was given or left out. dropped: those left out.
    sent: bytes that the socket took. gone: the reader went away, or the socket failed.
    content: the level that `encode` is asked for.
    resumed: a line feed comes first.
    first: records to be told before those that `take` gets.
    queue_bytes: bound of what waits; of `first`, only what is joined counts.
    """

    def __init__(
        self,
        out: socket.socket,
        encode: Encode,
        *,
        content: Content,
        queue_bytes: int,
        after: int = 0,
        dropped: int = 0,
        resumed: bool = False,
        first: Sequence[Kept] = (),
    ) -> None:
        out.setblocking(False)
        self.socket = out
        self.content = content
        self.number = after + len(first)
        self.dropped = dropped
        self.sent = 0
        self.gone = False
        self._encode = encode
        self._bound = queue_bytes
        self._at_once = min(_JOINED, queue_bytes // 4)
        self._number = after  # of the last line that was joined
        self._begin = b"\n" if resumed else b""
        self._joined = _NOTHING
        self._first = deque(first)
        self._first_bytes = sum(length for _, length in first)
        self._queue: deque[tuple[Sequence[bytes], int]] = deque()  # a batch, and its bytes
        self._queue_bytes = 0
        self._lost = 0
        self._lost_ns = 0

    @property
    def queued(self) -> int:
        """Bytes that wait, but for the numbers of lines that are not joined yet."""
        return len(self._joined) + self._first_bytes + self._queue_bytes

    def take(self, lines: Sequence[bytes], length: int, time_ns: int) -> None:
        """Lines to be told, as `LineEncoder` gives them; their length together, and the time of
        the last of them."""
        self.number += len(lines)
        room = self._bound - len(self._joined) - self._queue_bytes
        if self._lost or length > room:
            fit = 0 if self._lost else _fitting(lines, room)
            self._lost += len(lines) - fit
            self._lost_ns = time_ns
            self.dropped += len(lines) - fit
            lines = lines[:fit]
            length = sum(map(len, lines))
        if lines:
            self._queue.append((lines, length))
            self._queue_bytes += length

    def push(self) -> bool:
        """Sends once what the socket takes. True where there is more for when it takes again."""
        if not self._joined:
            self._joined = memoryview(self._join())
        if self._joined:
            try:
                count = self.socket.send(self._joined, _FLAGS)
            except BlockingIOError:
                return True
            except OSError:
                self.gone = True
                return False
            self.sent += count
            self._joined = self._joined[count:] if count < len(self._joined) else _NOTHING
        return bool(self._joined or self._first or self._queue or self._lost)

    def drain(self) -> bool:
        """Sends as long as the socket takes something. True where there is more."""
        before = -1
        while self.sent > before:
            before = self.sent
            if not self.push():
                return False
        return True

    def close(self) -> None:
        """Closes the socket. What still waited counts as dropped: its numbers are given."""
        # A line feed in front is the end of somebody else's line.
        unsent = bytes(self._joined).lstrip(b"\n").count(b"\n")
        self.dropped += unsent + len(self._first) + sum(len(lines) for lines, _ in self._queue)
        self._joined = _NOTHING
        self._first.clear()
        self._queue.clear()
        self._first_bytes = self._queue_bytes = 0
        self.socket.close()

    def _join(self) -> bytes:
        lines: list[bytes] = []
        length = 0
        while self._first and length <= self._at_once:
            record, kept = self._first.popleft()
            self._first_bytes -= kept
            lines.append(self._encode(record, self.content))
            length += len(lines[-1])
        while self._queue and length <= self._at_once:
            batch, size = self._queue.popleft()
            self._queue_bytes -= size
            lines += batch
            length += size
        joined = self._begin + numbered(self._number + 1, lines)
        self._begin = b""
        self._number += len(lines)
        if self._lost and not self._first and not self._queue:
            joined += self._tell_loss()
        return joined

    def _tell_loss(self) -> bytes:
        """The hole in the numbers, and the line that says what it was."""
        limit = StreamLimit(limit="session queue", value=self._bound, count=self._lost)
        self._number += self._lost + 1
        self.number += 1
        self._lost = 0
        line = self._encode(Record(time_ns=self._lost_ns, body=limit), self.content)
        return numbered(self._number, [line])


def _fitting(lines: Sequence[bytes], room: int) -> int:
    """How many lines, from the first on, fit into `room` bytes."""
    ends = accumulate(map(len, lines))
    return sum(1 for _ in takewhile(lambda end: end <= room, ends))
