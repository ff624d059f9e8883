"""A recorder: the process that writes the recordings of one user, with that user's rights.

Over its link to the keeper, a socket that keeps messages apart, it is first told whom to become,
then for each session where to record it, together with the socket that the records come on, as
JSON lines. It answers what becomes of them. When the link is closed it writes what has come and
ends.

What it reads was made by the parser out of what anybody sent, so it is confined: no call but those
for files and for sockets that it has, nothing executed, no device, socket, link or folder made, no
other process reached. It may write wherever its user may. Narrower, the folders of the sessions
that are known, would have to be decided at the beginning, because Landlock takes rights away and
never gives one back; a session that is added later records somewhere else. A file that an attacker
could write as that user is the risk that is left. To root belongs every file of root, but none of
its capabilities: devices, modules, other users' files stay out of reach.

A disk that hangs holds up the sessions of its user, and no others: the sockets fill, and the
parser drops and counts what does not fit.
"""

import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from streamtap import events
from streamtap.events import Body, Event
from streamtap.patterns import PATTERNS
from streamtap.protocols import event_types
from streamtap.service.confine import User, become, close_others, confine, preload
from streamtap.trace.recording import Recording

MAX_MESSAGE = 256 << 10  # bytes on the link: 16 outputs of 4096 letters, each escaped
MAX_LINE = 16 << 20  # bytes; a record with its content is far below
_READ = 256 << 10
_TICK_S = 1.0

_log = logging.getLogger(__name__)


# --- what is said on the link --------------------------------------------------------------------


class Become(msgspec.Struct, frozen=True):
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class Record(msgspec.Struct, frozen=True):
    """A session to record; its stream comes with the message. A session of the same name ends."""

    session: str
    outputs: tuple[str, ...]
    limit_bytes: int
    keep: int


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """From the keeper: one of these."""

    become: Become | None = None
    record: Record | None = None


class Confined(msgspec.Struct, frozen=True):
    """It is who it should be; what of the kernel's means is in force."""

    seccomp: bool
    landlock_abi: int


class Failed(msgspec.Struct, frozen=True):
    """Nothing can be written to an output; it is tried again, and other outputs go on."""

    session: str
    output: str
    error: str


class Recovered(msgspec.Struct, frozen=True):
    """The output that had failed is written again."""

    session: str
    output: str


class Counters(msgspec.Struct, frozen=True):
    """lines: that came. dropped: summed over the outputs, not written. cut: too long to be taken,
    or without an end. damaged: of no known form."""

    session: str
    lines: int = 0
    dropped: int = 0
    cut: int = 0
    damaged: int = 0


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """From the recorder: one of these. counters: of a session, once its outputs were tried, and
    then at most once a second. ended: the last word on a session."""

    confined: Confined | None = None
    failed: Failed | None = None
    recovered: Recovered | None = None
    counters: Counters | None = None
    ended: Counters | None = None


_encode = msgspec.json.encode
_orders = msgspec.json.Decoder(Order)


def receive_order(link: socket.socket) -> tuple[Order, list[int]] | None:
    """The next message, and the descriptors that came with it; None where the link is closed."""
    try:
        message, descriptors, _, _ = socket.recv_fds(link, MAX_MESSAGE, 4)
    except ConnectionResetError:  # closed by a keeper that had not read all of what we said
        return None
    return (_orders.decode(message), descriptors) if message else None


# --- a session -----------------------------------------------------------------------------------


class Session:
    """Lines from a stream to their files."""

    def __init__(
        self, order: Record, stream: socket.socket, types: Iterable[type[Body]], tell: "Tell"
    ) -> None:
        self.name = order.session
        self.stream = stream
        self._tell = tell
        self._types = tuple(types)
        self._recordings: list[Recording] = []
        self._lines = self._cut = self._dropped = self._damaged = 0
        self._given_up = 0  # outputs that nothing is written to any more
        self._rest = b""
        self._skipping = False
        for output in order.outputs:
            self._open(output, order)

    def _open(self, output: str, order: Record) -> None:
        try:
            recording = Recording(
                Path(output),
                self._types,
                limit_bytes=order.limit_bytes,
                keep=order.keep,
                report=lambda error: self._on_output(output, error),
            )
        except ValueError as error:
            self._given_up += 1
            self._on_output(output, error)
            return
        # One that cannot be opened now is tried again with what comes.
        self._recordings.append(recording)
        try:
            recording.open()
        except OSError as error:
            self._on_output(output, error)

    def _on_output(self, output: str, error: Exception | None) -> None:
        if error is None:
            self._tell(Answer(recovered=Recovered(self.name, output)))
        else:
            reason = getattr(error, "strerror", None) or str(error)
            self._tell(Answer(failed=Failed(self.name, output, reason)))

    @property
    def counters(self) -> Counters:
        return Counters(
            self.name,
            self._lines,
            self._dropped + sum(one.dropped for one in self._recordings),
            self._cut,
            self._damaged + sum(one.damaged for one in self._recordings),
        )

    def read(self) -> bool:
        """Takes what has come, at most a little of it; False where nothing more will."""
        try:
            data = self.stream.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:  # reset by the other end
            return False
        self._take(data)
        return bool(data)

    def read_all(self) -> None:
        """Takes all that has come by now."""
        with suppress(OSError):  # BlockingIOError: that was all
            while data := self.stream.recv(_READ, socket.MSG_DONTWAIT):
                self._take(data)

    def _take(self, data: bytes) -> None:
        if self._skipping:
            _, end, data = data.partition(b"\n")
            self._skipping = not end
        data = self._rest + data
        whole = data.rfind(b"\n") + 1
        self._rest = data[whole:]
        if len(self._rest) > MAX_LINE:
            self._rest = b""
            self._skipping = True
            self._cut += 1
        if whole:
            lines, cut = whole_lines(data[:whole])
            self._cut += cut
            count = lines.count(b"\n")
            self._lines += count
            self._dropped += count * self._given_up
            for recording in list(self._recordings):
                try:
                    recording.take(lines)
                except Exception as error:  # of our own: the other outputs go on
                    _log.exception("session %s: %s failed", self.name, recording.name)
                    self._on_output(recording.name, error)
                    self._give_up(recording)

    def _give_up(self, recording: Recording) -> None:
        self._recordings.remove(recording)
        self._given_up += 1
        self._dropped += recording.dropped
        self._damaged += recording.damaged

    def close(self) -> None:
        self.stream.close()
        if self._rest:
            self._cut += 1  # its writer died in the middle of a line
        for recording in list(self._recordings):
            try:
                recording.close()
            except OSError as error:
                self._on_output(recording.name, error)
        self._tell(Answer(ended=self.counters))


def whole_lines(lines: bytes) -> tuple[bytes, int]:
    """The same without those that were cut; how many those are.

    A parser that takes over begins with a line feed, for the one before may have died in the middle
    of a line: so there is an empty line, or one that does not end as JSON objects do.
    """
    if lines.count(b"}\n") == lines.count(b"\n"):
        return lines, 0
    every = lines.splitlines(keepends=True)
    good = [line for line in every if line.endswith(b"}\n")]
    return b"".join(good), len(every) - len(good) - every.count(b"\n")


# --- the process ---------------------------------------------------------------------------------

Tell = Callable[[Answer], None]


class Recorder:
    """Reads the streams of its sessions until its link is closed."""

    def __init__(self, link: socket.socket, types: Iterable[type[Body]]) -> None:
        self._link = link
        self._types = tuple(types)
        self._selector = selectors.DefaultSelector()
        self._sessions: dict[str, Session] = {}
        self._outbox: deque[bytes] = deque()
        self._told: dict[str, Counters] = {}
        self._over = False
        self._selector.register(link, selectors.EVENT_READ, self._on_link)

    def tell(self, answer: Answer) -> None:
        """A keeper that does not read holds nothing up: it gets the answer later."""
        self._outbox.append(_encode(answer))
        self._send()

    def run(self) -> None:
        due = time.monotonic() + _TICK_S
        while not self._over:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data()
            if time.monotonic() >= due:
                due = time.monotonic() + _TICK_S
                self._tick()
        for session in list(self._sessions.values()):
            session.read_all()
            self._end(session)
        self._selector.close()

    def _stop(self) -> None:
        self._over = True

    def _on_link(self) -> None:
        received = receive_order(self._link)
        if received is None:
            self._stop()
            return
        order, descriptors = received
        streams = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if order.record is not None and streams:
            if (same := self._sessions.get(order.record.session)) is not None:
                same.read_all()
                self._end(same)
            session = Session(order.record, streams[0], self._types, self.tell)
            self._sessions[session.name] = session
            self._selector.register(
                session.stream, selectors.EVENT_READ, lambda: self._on_stream(session)
            )
            self.tell(Answer(counters=session.counters))  # each output is open, or has failed

    def _on_stream(self, session: Session) -> None:
        if self._sessions.get(session.name) is not session:
            return  # ended by what was read just before
        if not session.read():
            self._end(session)

    def _end(self, session: Session) -> None:
        self._selector.unregister(session.stream)
        del self._sessions[session.name]
        self._told.pop(session.name, None)
        session.close()

    def _tick(self) -> None:
        for name, session in self._sessions.items():
            counters = session.counters
            if self._told.get(name) != counters:
                self._told[name] = counters
                self.tell(Answer(counters=counters))
        self._send()

    def _send(self) -> None:
        try:
            while self._outbox:
                self._link.send(self._outbox[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()  # the link is closed, as will be read there


def body_types() -> tuple[type[Body], ...]:
    """All that the lines of a session may hold."""
    general = (
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Body) and kind not in (Body, Event)
    )
    return (*general, *PATTERNS, *event_types())


def main(arguments: Sequence[str]) -> int:
    """`recorder FD`: FD is its end of the link."""
    logging.basicConfig(format="streamtap recorder: %(message)s", level=logging.INFO)
    descriptor = int(arguments[0])
    close_others((0, 1, 2, descriptor))
    link = socket.socket(fileno=descriptor)
    # Meant for all of the service: the keeper decides when nothing more will come.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    recorder = Recorder(link, body_types())
    preload()
    received = receive_order(link)
    if received is None or received[0].become is None:
        return 1
    user = received[0].become
    become(User(user.uid, user.gid, user.groups))
    os.umask(0o077)  # what people say to each other is nobody else's business
    recorder.tell(Answer(confined=Confined(*confine(["/"]))))
    recorder.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
