"""SOCKS before MSNP: the bytes by which a proxy is told where to connect (RFC 1928, RFC 1929).

Each direction can be read by itself. Names and passwords for the proxy are never in an event.
"""

from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple

from streamtap.events import Event, Skipped
from streamtap.model import Direction
from streamtap.protocols.msnp.events import MsnpPrelude

STRING = 256  # longest name in a version 4 request
_ADDRESSES = {1: 4, 4: 16}  # kind of address -> bytes
_GRANTED_4 = range(0x5A, 0x5E)  # answers of version 4


class _Stage(Enum):
    FIRST = 0
    LOGIN = 1  # version 5: after the greeting
    REQUEST = 2
    DONE = 3


class _Unit(NamedTuple):
    """length: 0 while it is not whole."""

    length: int
    proxy: str = ""
    step: str = ""
    target: str | None = None
    then: _Stage = _Stage.DONE


_MORE = _Unit(0)


def _host_port(host: str, port: bytes) -> str:
    number = int.from_bytes(port, "big")
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def _version_4(data: bytes) -> _Unit | None:
    """The request of a client."""
    if data[1:2] not in (b"", b"\x01"):
        return None
    end = data.find(b"\0", 8, 8 + STRING)
    if end < 0:
        return None if len(data) >= 8 + STRING else _MORE
    host = str(ip_address(data[4:8]))
    if data[4:7] == b"\0\0\0" and data[7]:  # version 4a: the name follows
        start, end = end + 1, data.find(b"\0", end + 1, end + 1 + STRING)
        if end < 0:
            return None if len(data) >= start + STRING else _MORE
        host = str(data[start:end], "utf-8", "backslashreplace")
    return _Unit(end + 1, "socks4", "connect", _host_port(host, data[2:4]))


def _version_5(data: bytes, step: str) -> _Unit | None:
    """A request or its answer."""
    if len(data) < 5:
        return _MORE
    start, size = 4, _ADDRESSES.get(data[3])
    if data[3] == 3:
        start, size = 5, data[4]
    if size is None:
        return None
    end = start + size
    if len(data) < end + 2:
        return _MORE
    raw = data[start:end]
    host = str(raw, "utf-8", "backslashreplace") if data[3] == 3 else str(ip_address(raw))
    target = _host_port(host, data[end : end + 2]) if step == "connect" else None
    return _Unit(end + 2, "socks5", step, target)


def _unit(direction: Direction, stage: _Stage, data: bytes) -> _Unit | None:
    """The unit at the front, or None where there is none."""
    first = data[0]
    if direction is Direction.TO_SERVER:
        if stage is _Stage.FIRST and first == 4:
            return _version_4(data)
        if stage is _Stage.FIRST and first == 5:
            if len(data) < 2:
                return _MORE
            length = 2 + data[1]
            if not data[1]:
                return None
            greeting = _Unit(length, "socks5", "greeting", then=_Stage.LOGIN)
            return greeting if len(data) >= length else _MORE
        if stage is _Stage.LOGIN and first == 1:
            if len(data) < 2 or len(data) < 3 + data[1]:
                return _MORE
            length = 3 + data[1] + data[2 + data[1]]
            login = _Unit(length, "socks5", "login", then=_Stage.REQUEST)
            return login if len(data) >= length else _MORE
        if stage in (_Stage.LOGIN, _Stage.REQUEST) and first == 5:
            return _version_5(data, "connect")
        return None
    if stage is _Stage.FIRST and first == 0:
        if len(data) < 2:
            return _MORE
        if data[1] not in _GRANTED_4:
            return None
        return _Unit(8, "socks4", "answer") if len(data) >= 8 else _MORE
    if stage is _Stage.FIRST and first == 5:
        if len(data) < 2:
            return _MORE
        then = _Stage.LOGIN if data[1] == 2 else _Stage.REQUEST
        return _Unit(2, "socks5", "greeting", then=then)
    if stage is _Stage.LOGIN and first == 1:
        return _Unit(2, "socks5", "login", then=_Stage.REQUEST) if len(data) >= 2 else _MORE
    if stage is _Stage.REQUEST and first == 5:
        return _version_5(data, "answer")
    return None


class Prelude:
    """The beginning of one direction, until SOCKS is over or was none.

    offset: where in the stream the next byte stands. finished: what follows is MSNP.
    """

    __slots__ = ("_direction", "_held", "_stage", "finished", "offset")

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._held = b""
        self._stage = _Stage.FIRST
        self.offset = 0
        self.finished = False

    @property
    def held(self) -> int:
        return len(self._held)

    def receive(self, data: bytes) -> tuple[list[Event], bytes]:
        """What is complete, and once it is over the bytes behind it."""
        events: list[Event] = []
        data = self._held + data
        self._held = b""
        while data:
            unit = _unit(self._direction, self._stage, data)
            if unit is None:
                self.finished = True
                break
            if not unit.length:
                self._held = data
                return events, b""
            events.append(
                MsnpPrelude(
                    offset=self.offset,
                    length=unit.length,
                    proxy=unit.proxy,
                    step=unit.step,
                    target=unit.target,
                )
            )
            data = data[unit.length :]
            self.offset += unit.length
            self._stage = unit.then
            if self._stage is _Stage.DONE:
                self.finished = True
                break
        return events, data

    def stop(self) -> list[Event]:
        """No more bytes come, or some were lost: what is held can't be told."""
        self.finished = True
        if not self._held:
            return []
        length, self._held = len(self._held), b""
        self.offset += length
        reason = "ended inside the request to a proxy"
        return [Skipped(offset=self.offset - length, length=length, reason=reason)]


def without_prelude(direction: Direction, data: bytes) -> bytes:
    """The first bytes of a direction without SOCKS, which may be all that came."""
    return Prelude(direction).receive(data)[1]
