"""What ties flows together: announced addresses, cookies, session ids, nonces, dialogues.

Bounded by count, and by age in the time of the data, so that a file gives what live gave.
"""

from collections import OrderedDict
from collections.abc import Hashable

from streamtap.model import Flow, Role

MINUTE_NS = 60_000_000_000
AWAITED_NS = 2 * MINUTE_NS  # an announced connection is opened within seconds
LASTING_NS = 60 * MINUTE_NS  # sessions, dialogues and accounts are referred to while they live
LONG = 512
MOST = 16_384  # entries of each kind of lifetime


Key = tuple[Hashable, ...]  # what kind of key, whose, and the thing itself


class _Aging:
    """Values by key, in the order in which they were last put."""

    def __init__(self, lifetime_ns: int) -> None:
        self._lifetime_ns = lifetime_ns
        # A plain dict would look for its first entry among all that were deleted before it.
        self._values: OrderedDict[Key, tuple[int, object]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: Key, value: object, time_ns: int) -> None:
        if any(isinstance(part, str) and len(part) > LONG for part in key):
            return  # no account, cookie or address is as long: nothing will ask for it
        self._values.pop(key, None)
        self._values[key] = time_ns, value
        if len(self._values) > MOST:
            self._values.popitem(last=False)

    def get(self, key: Key, time_ns: int) -> object:
        found = self._values.get(key)
        return found[1] if found and time_ns - found[0] <= self._lifetime_ns else None

    def drop(self, key: Key) -> None:
        self._values.pop(key, None)

    def expire(self, now_ns: int) -> None:
        while self._values:
            key = next(iter(self._values))
            if now_ns - self._values[key][0] <= self._lifetime_ns:
                return
            del self._values[key]


class Links:
    """The memory shared by all flows."""

    def __init__(self) -> None:
        self._awaited = _Aging(AWAITED_NS)
        self._lasting = _Aging(LASTING_NS)
        self._conversations = 0

    def __len__(self) -> int:
        return len(self._awaited) + len(self._lasting)

    def new_conversation(self, time_ns: int) -> str:
        """A name that no other conversation has: its time and a running number."""
        self._conversations += 1
        return f"c{time_ns // 1_000_000:x}-{self._conversations}"

    def await_(self, key: Key, value: object, time_ns: int) -> None:
        """Keep for a connection that should come soon."""
        self._awaited.put(key, value, time_ns)

    def keep(self, key: Key, value: object, time_ns: int) -> None:
        """Keep for as long as a session may live."""
        self._lasting.put(key, value, time_ns)

    def find(self, key: Key, time_ns: int) -> object:
        found = self._awaited.get(key, time_ns)
        return self._lasting.get(key, time_ns) if found is None else found

    def drop(self, key: Key) -> None:
        """What was awaited has come."""
        self._awaited.drop(key)

    def expire(self, now_ns: int) -> None:
        self._awaited.expire(now_ns)
        self._lasting.expire(now_ns)


def scope_of(flow: Flow) -> str:
    """Flows of one application may be linked: its path, or "" where there is no process data."""
    return flow.app.path if flow.app else ""


def user_of(flow: Flow) -> tuple[str, str]:
    """One user of one application: the process, or for servers and captures the client's host."""
    if flow.app and flow.role is Role.CLIENT:
        return flow.app.path, str(flow.app.pid)
    client = flow.local if flow.role is Role.CLIENT else flow.remote
    return scope_of(flow), client.address


def server_of(flow: Flow) -> str:
    """host:port of the end that was connected to."""
    return str(flow.remote if flow.role is Role.CLIENT else flow.local)
