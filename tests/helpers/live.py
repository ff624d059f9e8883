"""Live tests: programs to be watched, and a watch on them.

A `Puppet` is a separate real process that a test tells what to do, step by step. A `Watcher` runs
a `Watch` inside the test. Nothing here sleeps for a fixed time: all waiting is for a condition,
with a deadline.
"""

import contextlib
import ctypes
import hashlib
import marshal
import os
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import streamtap
from streamtap.capture.live import Item
from streamtap.capture.rights import missing_capabilities
from streamtap.events import Body, FlowClosed, FlowOpened, Record
from streamtap.flows.scope import Scope, resolve
from streamtap.holding import Local
from streamtap.model import App, Chunk, Closed, Direction, Opened, Segment
from streamtap.patterns.model import Data
from streamtap.streams import Reassembler
from streamtap.watch import Watch

DEADLINE_S = 20.0
KERNEL = (5, 15)
PROGRAMS = Path(__file__).parent.parent / "live" / "programs"
PUPPET = PROGRAMS / "puppet.py"
SRC = Path(streamtap.__file__).parent.parent
BodyT = TypeVar("BodyT", bound=Body)


def kernel_version() -> tuple[int, int]:
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return int(major), int(minor)


def missing_right() -> str:
    """Why a test through the real kernel cannot run here; "" if it can."""
    if kernel_version() < KERNEL:
        return f"kernel {os.uname().release} is older than {KERNEL[0]}.{KERNEL[1]}"
    if missing := missing_capabilities():
        return f"{', '.join(missing)} missing"
    return ""


def eventually(
    condition: Callable[[], object],
    what: str,
    timeout_s: float = DEADLINE_S,
    *,
    pause_s: float = 0.002,
) -> None:
    """Waits until the condition holds; fails when it does not in time. pause_s: between two looks;
    who asks a service may not ask often."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(pause_s)


# --- programs ------------------------------------------------------------------------------------


def interpreter() -> str:
    """The file of the Python that runs us, behind all links."""
    return os.path.realpath(sys.executable)


def copy_interpreter(to: Path) -> Path:
    """A program of one's own, to be watched by its path: the interpreter under another name."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(interpreter(), to)
    return to


def environment() -> dict[str, str]:
    """Lets a copy of the interpreter find its library, wherever the copy is."""
    return {
        **os.environ,
        "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR") or ""),
    }


class Puppet:
    """A process that does what the test says.

    program: an executable that runs `puppet.py` when it is given as an argument; a script that is
        one itself comes with an empty `arguments`. home: False for the interpreter that runs us,
        which knows its library, and has those installed beside it.
    """

    def __init__(
        self,
        program: str | Path = "",
        arguments: Sequence[str] = ("-s", "-S", "-P", str(PUPPET)),
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        arg0: str = "",
        home: bool = True,
    ) -> None:
        path = str(program or interpreter())
        self._process = subprocess.Popen(
            [arg0 or path, *arguments],
            executable=path if arg0 else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**(environment() if home else os.environ), **(env or {})},
            pass_fds=pass_fds,
            cwd=cwd,
        )
        self.pid = self._process.pid

    def do(self, source: str, /, **values: object) -> Any:
        """Runs statements in the program, or gives the value of an expression there."""
        self.begin(source, **values)
        return self.result()

    def begin(self, source: str, /, **values: object) -> None:
        """As `do`, but does not wait for the end; `result` does."""
        request = marshal.dumps((source, values))
        assert self._process.stdin
        self._process.stdin.write(len(request).to_bytes(4, "little") + request)

    @property
    def is_done(self) -> bool:
        """The result of what was begun is there."""
        assert self._process.stdout
        return bool(select.select([self._process.stdout.fileno()], [], [], 0)[0])

    def result(self, timeout_s: float = DEADLINE_S * 2) -> Any:
        size = int.from_bytes(self._read(4, timeout_s), "little")
        good, value = marshal.loads(self._read(size, timeout_s))
        assert good, f"the program failed: {value}"
        return value

    def _read(self, length: int, timeout_s: float) -> bytes:
        assert self._process.stdout
        data = b""
        while len(data) < length:
            fd = self._process.stdout.fileno()
            ready = select.select([fd], [], [], timeout_s)[0]
            assert ready, "the program does not answer"
            more = os.read(fd, length - len(data))
            assert more, f"the program ended with {self._process.wait(timeout_s)}"
            data += more
        return data

    def kill(self) -> None:
        """Ends it with no chance to clean up."""
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._process.stdout:
            self._process.stdout.close()


def join(client: Puppet, server: Puppet, host: str = "127.0.0.1", name: str = "s") -> None:
    """Connects two programs; at both the socket is called `name`."""
    server.do("listener = listen(host)", host=host)
    address = server.do("listener.getsockname()")
    client.do(f"{name} = connect(address)", address=address)
    server.do(f"{name} = listener.accept()[0]; listener.close()")


def leave(client: Puppet, server: Puppet, name: str = "s") -> None:
    """Closes a connection from both sides, the client first."""
    client.do(f"{name}.shutdown(socket.SHUT_WR)")
    assert server.do(f"discard({name})") == 0
    server.do(f"{name}.close()")
    assert client.do(f"discard({name})") == 0
    client.do(f"{name}.close()")


def say(sender: Puppet, receiver: Puppet, data: bytes, name: str = "s") -> None:
    """Sends, and waits until it arrived."""
    sender.do(f"{name}.sendall(data)", data=data)
    assert receiver.do(f"receive({name}, length)", length=len(data)) == data


# --- the watch -----------------------------------------------------------------------------------


class Bytes:
    """What came of one flow, in order: a second opinion beside the pipeline's.

    Both indexed by `Direction`: hashes of the bytes, gaps left out, and how many they are.
    """

    def __init__(self, opened: Opened) -> None:
        starts = zip(opened.sequences, opened.offsets, strict=True)
        self.flow = opened.flow
        self.streams = tuple(Reassembler(*start) for start in starts)
        self.hashes = (hashlib.sha256(), hashlib.sha256())
        self.lengths = [0, 0]

    def push(self, segment: Segment) -> None:
        for item in self.streams[segment.direction].push(segment):
            self._take(segment.direction, item)

    def end(self, closed: Closed) -> None:
        for side in Direction:
            total = closed.totals[side] if closed.totals else None
            for item in self.streams[side].end(closed.time_ns, total, closed.lost[side]):
                self._take(side, item)

    def _take(self, direction: Direction, item: object) -> None:
        if isinstance(item, Chunk) and item.data is not None:
            self.hashes[direction].update(item.data)
            self.lengths[direction] += len(item.data)

    def sent(self) -> str:
        return self.hashes[self.flow.sent].hexdigest()

    def received(self) -> str:
        return self.hashes[self.flow.sent.opposite].hexdigest()


class Watcher:
    """A watch, run by the test; `records` are those that came so far."""

    def __init__(self, *scopes: Scope, **options: Any) -> None:
        self.records: list[Record] = []
        self.bytes: dict[int, Bytes] = {}
        self.finished = False
        loading = {"command", "new_only", "ring_bytes", "variant"} & options.keys()
        self.holder = Local(scopes, **{name: options.pop(name) for name in loading})
        self.watch = Watch(self.holder, **options)
        self._poll = self.watch.source.poll

    def start(self) -> Self:
        """Attaches. Not done by the constructor: a test may have things to do in between."""
        self.watch.start()
        return self

    def keep_bytes(self) -> Self:
        """Puts the bytes of every flow together, in `bytes`, by flow."""
        self.watch.source.poll = self._poll_and_keep  # type: ignore[method-assign]
        return self

    def _poll_and_keep(self, timeout_s: float = 0.5) -> list[Item]:
        items = self._poll(timeout_s)
        for opened in items:
            if isinstance(opened, Opened):
                self.bytes[opened.flow.flow_id] = Bytes(opened)
        for item in items:
            if isinstance(item, Segment) and item.flow_id in self.bytes:
                self.bytes[item.flow_id].push(item)
            elif isinstance(item, Closed):
                self.bytes[item.flow_id].end(item)
        return items

    def poll(self) -> None:
        self.records += self.watch.poll(0.02)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Watches until the condition holds; fails when it does not in time."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}; records:\n{self}"
            self.poll()

    def until_closed(self, flows: int = 1) -> list[FlowClosed]:
        """Watches until so many flows have ended; their certificates."""
        self.until(lambda: len(self.all(FlowClosed)) >= flows, f"{flows} flows closed")
        return self.all(FlowClosed)

    def until_opened(self, flows: int = 1) -> list[Record]:
        self.until(lambda: len(self.all(FlowOpened)) >= flows, f"{flows} flows opened")
        return self.of(FlowOpened)

    def finish(self) -> list[Record]:
        """Detaches and reads what is left; all records."""
        if not self.finished:
            self.finished = True
            for records in self.watch.finish():
                self.records += records
        return self.records

    def close(self) -> None:
        self.watch.close()

    def of(self, kind: type[Body]) -> list[Record]:
        return [record for record in self.records if isinstance(record.body, kind)]

    def all(self, kind: type[BodyT], direction: str = "") -> list[BodyT]:
        """Bodies of one kind, in their order; of one direction if it is given."""
        return [
            record.body
            for record in self.records
            if isinstance(record.body, kind)
            and record.direction in (direction or record.direction,)
        ]

    def one(self) -> tuple[Record, FlowClosed]:
        """The only flow: the record of its opening and its certificate, once it has ended."""
        self.until_closed()
        (opened,), (closed,) = self.of(FlowOpened), self.all(FlowClosed)
        return opened, closed

    def said(self, direction: str) -> str:
        """The text of all data of a direction (with `Content.FULL`, up to 64 KiB a burst)."""
        return "".join(data.content or "" for data in self.all(Data, direction))

    def __str__(self) -> str:
        return "\n".join(str(record) for record in self.records[-40:])


def by_pid(*puppets: Puppet, follow_forks: bool = False) -> list[Scope]:
    return [resolve("pid", str(one.pid), follow_forks=follow_forks) for one in puppets]


def whole(closed: FlowClosed, sent: int, received: int) -> None:
    """The certificate of a flow of which nothing is missing, with exactly so many bytes."""
    assert (closed.sent_total, closed.received_total) == (sent, received), closed
    assert closed.sent + closed.sent_counted == sent, closed
    assert closed.received + closed.received_counted == received, closed
    assert closed.missing == 0, closed
    assert closed.complete is True, closed
    assert closed.missing_ranges == ()


def tell(speaker: Puppet, server: Puppet, data: bytes = b"it is me") -> None:
    """A connection with one message, from its beginning to its end."""
    join(speaker, server)
    say(speaker, server, data)
    leave(speaker, server)


def told(watch: Watcher, flows: int = 1) -> list[App]:
    """The applications of the flows, once so many have ended, each whole with `it is me`."""
    for closed in watch.until_closed(flows):
        whole(closed, sent=8, received=0)
    watch.finish()
    assert len(watch.all(FlowClosed)) == flows
    apps = [record.flow.app for record in watch.of(FlowOpened) if record.flow and record.flow.app]
    assert len(apps) == flows
    return apps


# --- what the kernel holds -----------------------------------------------------------------------


def held_in_kernel() -> dict[str, set[int]]:
    """Ids of the programs, maps and links that this process holds by descriptors."""
    found: dict[str, set[int]] = {"prog": set(), "map": set(), "link": set()}
    for fd in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
            for kind, number in re.findall(r"^(prog|map|link)_id:\s*(\d+)$", text, re.MULTILINE):
                found[kind].add(int(number))
    return found


def is_in_kernel(kind: str, number: int) -> bool:
    """Whether the kernel still has the program, map or link with this id."""
    libbpf = ctypes.CDLL("libbpf.so.1")
    fd: int = getattr(libbpf, f"bpf_{kind}_get_fd_by_id")(number)
    if fd < 0:
        return False
    os.close(fd)
    return True


def open_files() -> list[str]:
    """What the descriptors of this process are of."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def close_all(things: Iterable[Puppet | Watcher]) -> None:
    """Closes everything, also where closing one thing fails."""
    with contextlib.ExitStack() as stack:
        for thing in things:
            stack.callback(thing.close)
