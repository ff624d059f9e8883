"""Who is at the other end of the control socket, and what they may ask for."""

import os
import pwd
import socket
import struct
from collections.abc import Callable

import msgspec

from streamtap.errors import PermissionMissing
from streamtap.service.protocol import (
    Attach,
    Flows,
    List,
    Request,
    Sessions,
    Status,
    TraceStart,
    TraceStop,
)

GROUP = "streamtap"
ROOT = 0
SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Python has no name for it
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_GROUPS_BYTES = 1024  # the most that Python's getsockopt takes: 256 groups
_LOOKS = (Status, List, Flows, Sessions)
_TRACES = (Attach, TraceStart)


class Peer(msgspec.Struct, frozen=True):
    """A process as it was when it connected. pid: 0 where it is in another pid namespace.
    groups: all of its groups, the effective one among them."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    @property
    def user(self) -> str:
        return user_name(self.uid)


def user_name(uid: int) -> str:
    """The name of a user; the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def peer_of(connection: socket.socket) -> Peer:
    """The kernel's word for it. Raises OSError."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid, gid, frozenset((gid, *_groups(connection, uid, gid))))


def _groups(connection: socket.socket, uid: int, gid: int) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:  # more groups than that: those that the user is listed in
        try:
            return tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
        except (KeyError, OSError):
            return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def refusal(
    peer: Peer, request: Request, group: int | None, owner: Callable[[str], int | None]
) -> PermissionMissing | None:
    """Why this peer may not ask for this; None where it may.

    group: whose members may look; None where there is none. owner: the user of a recorded
    session, None where there is no such session.
    """
    if peer.uid == ROOT:
        return None
    verb = str(request.__struct_config__.tag)
    if group is None or group not in peer.groups:
        return PermissionMissing(
            f"{verb}: only root and members of the group {GROUP} may ask",
            f"run with sudo, or: sudo usermod -aG {GROUP} {peer.user}",
        )
    if isinstance(request, _LOOKS):
        return None
    if isinstance(request, _TRACES):
        if request.content != "full":
            return None
        return PermissionMissing(f"{verb}: only root may ask for content full", "run with sudo")
    if isinstance(request, TraceStop):
        if owner(request.name) in (peer.uid, None):
            return None
        return PermissionMissing(
            f"{verb}: session {request.name} belongs to another user", "run with sudo"
        )
    return PermissionMissing(f"{verb}: only root may ask for it", "run with sudo")
