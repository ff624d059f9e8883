"""The link between keeper and parser: packets on a pair of sockets, with descriptors beside them.

The parser may wait for the keeper, with a bound; the keeper never waits for the parser. A monitor's
reader and its holder have the same link, with messages of their own (`holder`).
"""

import os
import select
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamtap.capture.kernel import Candidate, Kernel
from streamtap.capture.layout import FLOW_LISTING
from streamtap.capture.ring import Ring
from streamtap.model import Policy
from streamtap.service import messages
from streamtap.service.messages import Message, Order

CALL_S = 30.0  # for an answer: the keeper may be loading callouts
STALLED_S = 10.0  # while which a parser takes no order that waits for it
MOST_WAITING = 4096  # orders that wait for the parser
MOST_AT_ONCE = 256  # messages of the parser that are served before anything else is
MOST_LISTS, LISTS_S = 128, 10.0  # lists of flows in a while: each is memory until it is read
CGROUPS = 4096  # of which the path is remembered
_DESCRIPTORS = 4  # beside one message
_LEAST_BUFFER = 4 * messages.MOST_BYTES
AnswerT = TypeVar("AnswerT", bound=messages.Answer)


class LinkError(Exception):
    """The other end has gone, does not answer, or says what nobody understands."""


def make() -> tuple[socket.socket, socket.socket]:
    """The keeper's end and the parser's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LEAST_BUFFER)
    return ends


def _receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """A packet and the descriptors beside it. Raises BlockingIOError where there is none now,
    and LinkError."""
    try:
        data, descriptors, given, _ = socket.recv_fds(
            end, messages.MOST_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        raise
    except OSError as error:
        raise LinkError(f"the link is broken: {error.strerror}") from error
    if not data or given & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        _close(descriptors)
        raise LinkError("the other end of the link is gone" if not data else "a message too long")
    return data, descriptors


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class Given:
    """An order, with the descriptor that came beside it, if one did."""

    __slots__ = ("_fd", "order")

    def __init__(self, order: Order, descriptors: Sequence[int]) -> None:
        self.order = order
        self._fd = descriptors[0] if descriptors else None
        _close(descriptors[1:])

    def take_socket(self) -> socket.socket:
        """The socket, which is the caller's from here on. Raises LinkError where none came."""
        fd, self._fd = self._fd, None
        if fd is None:
            raise LinkError("a session without a socket")
        return socket.socket(fileno=fd)


class RemoteKernel:
    """The callouts as the parser has them: two rings, and a keeper that can be asked.

    Asking waits for the answer, at most `patience_s`. Orders that come meanwhile are kept for
    `receive`. Raises LinkError where the keeper has gone.
    """

    patience_s: ClassVar[float | None] = CALL_S
    understood: ClassVar[Callable[[bytes], Any]] = messages.decode_from_keeper

    def __init__(self, end: socket.socket, data_fd: int, control_fd: int) -> None:
        self._end = end
        self._fds = data_fd, control_fd
        self._given: deque[Given] = deque()
        self._policies: dict[int, Policy] = {}
        self._cgroups: OrderedDict[int, str] = OrderedDict()
        self._calls = 0
        end.setblocking(False)
        self._poll = select.poll()
        first = self.wait()
        if not isinstance(first.order, messages.Setup):
            raise LinkError("the keeper began with something else")
        self.setup = first.order

    @property
    def fd(self) -> int:
        """Readable when an order has come."""
        return self._end.fileno()

    # --- what the live source asks ---------------------------------------------------------------

    def rings(self) -> tuple[Ring, Ring]:
        data_fd, control_fd = self._fds
        return Ring(data_fd, self.setup.data_bytes), Ring(control_fd, self.setup.control_bytes)

    def decide(self, candidate: Candidate) -> int:
        _, filters, pid, path, filename, arguments, existing = candidate
        texts = os.fsencode(path), os.fsencode(filename), bytes(arguments)
        asked = messages.Decide(
            self._next(), candidate.process_id, filters, pid, *texts, bool(existing)
        )
        return self._ask(asked, messages.Verdict)[0].filters

    def set_flow_policy(self, flow_id: int, policy: Policy) -> None:
        """Told to the keeper by the next `flush`."""
        self._policies[flow_id] = policy

    def counters(self) -> dict[str, int]:
        return self._ask(messages.Counters(self._next()), messages.Numbers)[0].numbers

    def list_flows(self) -> NDArray[Any]:
        rows, descriptors = self._ask(messages.ListFlows(self._next()), messages.Rows)
        try:
            length = rows.count * FLOW_LISTING.itemsize
            listed = os.pread(descriptors[0], length, 0) if descriptors else b""
        finally:
            _close(descriptors)
        if len(listed) != length:
            raise LinkError("the keeper's list of flows is cut short")
        return np.frombuffer(listed, FLOW_LISTING)

    def cgroup_path(self, cgroup_id: int) -> str:
        path = self._cgroups.get(cgroup_id)
        if path is None:
            asked = messages.CgroupPath(self._next(), cgroup_id)
            path = os.fsdecode(self._ask(asked, messages.Text)[0].text)
            self._cgroups[cgroup_id] = path
            if len(self._cgroups) > CGROUPS:
                self._cgroups.popitem(last=False)
        return path

    def program_of(self, pid: int) -> str:
        asked = messages.ProgramOf(self._next(), pid)
        return os.fsdecode(self._ask(asked, messages.Text)[0].text)

    # --- orders, and what is told one way --------------------------------------------------------

    def flush(self) -> None:
        """Tells the policies that were set since."""
        policies = [(flow_id, int(policy)) for flow_id, policy in self._policies.items()]
        self._policies.clear()
        for at in range(0, len(policies), messages.MOST_POLICIES):
            self.tell(messages.SetPolicies(policies[at : at + messages.MOST_POLICIES]))

    def tell(self, message: messages.Told) -> None:
        self._send(message)

    def wait(self) -> Given:
        """The next order."""
        while not self._given:
            message, descriptors = self._receive()
            self._keep(message, descriptors)
        return self._given.popleft()

    def receive(self) -> list[Given]:
        """The orders that came, without waiting."""
        self.look()
        given = list(self._given)
        self._given.clear()
        return given

    def look(self) -> Sequence[Given]:
        """The same, but they stay."""
        while True:
            try:
                message, descriptors = self._receive(wait=False)
            except BlockingIOError:
                return self._given
            self._keep(message, descriptors)

    def _keep(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, messages.Answer):
            _close(descriptors)
            raise LinkError("an answer that nobody waits for")
        self._given.append(Given(message, descriptors))  # type: ignore[arg-type]

    def _next(self) -> int:
        self._calls += 1
        return self._calls

    def _ask(self, question: messages.Call, kind: type[AnswerT]) -> tuple[AnswerT, list[int]]:
        self._send(question)
        while True:
            message, descriptors = self._receive()
            if isinstance(message, kind) and message.call == question.call:
                return message, descriptors
            self._keep(message, descriptors)

    def _send(self, message: Message) -> None:
        data = messages.encode(message)
        while True:
            try:
                self._end.send(data, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                self._wait_for(select.POLLOUT)
            except OSError as error:
                raise LinkError(f"the keeper is gone: {error.strerror}") from error

    def _receive(self, *, wait: bool = True) -> tuple[Message, list[int]]:
        """Raises BlockingIOError where nothing is there and it is not to wait."""
        while True:
            try:
                data, descriptors = _receive(self._end)
                break
            except BlockingIOError:
                if not wait:
                    raise
                self._wait_for(select.POLLIN)
        try:
            return type(self).understood(data), descriptors
        except msgspec.DecodeError as error:
            _close(descriptors)
            raise LinkError("an order that nobody understands") from error

    def _wait_for(self, event: int) -> None:
        self._poll.register(self._end, event)
        if not self._poll.poll(None if self.patience_s is None else self.patience_s * 1000):
            raise LinkError("the keeper does not answer")


class KernelEnd:
    """The end of who has the callouts. Nothing here waits for the other end. What cannot be sent
    now is sent later: with `waiting`, when `fd` can be written, or with the next `serve`.

    Raises LinkError where the other end has gone, breaks the rules, or takes nothing.
    """

    understood: ClassVar[Callable[[bytes], Any]] = messages.decode_from_parser

    def __init__(self, end: socket.socket, enabled: int = 0) -> None:
        """enabled: mask of filters in force: of others nothing is decided."""
        end.setblocking(False)
        self._end = end
        self._enabled = enabled
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._since = 0.0  # when the other end last took something, while messages wait
        self._lists: deque[float] = deque(maxlen=MOST_LISTS)  # when the last ones were asked for

    @property
    def fd(self) -> int:
        return self._end.fileno()

    @property
    def waiting(self) -> int:
        """Messages that wait until the other end takes them."""
        return len(self._queue)

    def serve(self, kernel: Kernel) -> None:
        """Answers what was asked, does what was told; if there is much, a part of it: the rest can
        still be read then."""
        self._push()
        for _ in range(MOST_AT_ONCE):
            try:
                data, descriptors = _receive(self._end)
            except BlockingIOError:
                return
            _close(descriptors)  # it has none to give
            try:
                message = type(self).understood(data)
            except msgspec.DecodeError as error:
                raise LinkError("the parser says what nobody understands") from error
            self._do(kernel, message)

    def close(self) -> None:
        for _, descriptors in self._queue:
            _close(descriptors)
        self._queue.clear()
        self._end.close()

    def _do(self, kernel: Kernel, message: Message) -> None:
        match message:
            case messages.Decide():
                candidate = messages.candidate_of(message, self._enabled)
                verdict = kernel.decide(candidate) & candidate.filters
                self._put(messages.Verdict(message.call, verdict))
            case messages.Counters():
                self._put(messages.Numbers(message.call, kernel.counters()))
            case messages.ListFlows():
                now = time.monotonic()
                if len(self._lists) == MOST_LISTS and now - self._lists[0] < LISTS_S:
                    raise LinkError("the parser asks for too much")
                self._lists.append(now)
                rows = kernel.list_flows()
                self._put(messages.Rows(message.call, len(rows)), [_memory(rows.tobytes())])
            case messages.CgroupPath():
                path = kernel.cgroup_path(message.cgroup_id)
                self._put(messages.Text(message.call, os.fsencode(path)))
            case messages.ProgramOf():
                path = kernel.program_of(message.pid)
                self._put(messages.Text(message.call, os.fsencode(path)))
            case messages.SetPolicies():
                for flow_id, policy in message.policies:
                    kernel.set_flow_policy(flow_id, Policy(policy))

    def _put(self, message: Message, descriptors: list[int] | None = None) -> None:
        if not self._queue:
            self._since = time.monotonic()
        self._queue.append((messages.encode(message), descriptors or []))
        self._push()
        if len(self._queue) > MOST_WAITING:
            raise LinkError("the parser takes no orders")

    def _push(self) -> None:
        while self._queue:
            data, descriptors = self._queue[0]
            try:
                socket.send_fds(self._end, [data], descriptors, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if time.monotonic() - self._since > STALLED_S:
                    raise LinkError("the parser takes no orders") from None
                return
            except OSError as error:
                raise LinkError(f"the parser is gone: {error.strerror}") from error
            self._queue.popleft()
            self._since = time.monotonic()
            _close(descriptors)


class Told(Protocol):
    """Who hears what the parser tells."""

    def ready(self, ready: messages.Ready) -> None: ...
    def gone(self, session: str) -> None: ...


class ParserEnd(KernelEnd):
    """The keeper's end. A parser that it raises LinkError of has to be started anew."""

    def __init__(self, end: socket.socket, told: Told) -> None:
        super().__init__(end)
        self._told = told

    def order(self, order: Order, fd: int | None = None) -> None:
        """Tells the parser. fd: goes beside it, and stays the caller's."""
        if isinstance(order, messages.SetFilters):
            self._enabled = order.enabled
        self._put(order, [] if fd is None else [os.dup(fd)])

    def _do(self, kernel: Kernel, message: Message) -> None:
        match message:
            case messages.Gone():
                self._told.gone(message.session)
            case messages.Ready():
                self._told.ready(message)
            case _:
                super()._do(kernel, message)


def _memory(data: bytes) -> int:
    """A descriptor of memory with these bytes."""
    fd = os.memfd_create("flows", os.MFD_CLOEXEC)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
    return fd
