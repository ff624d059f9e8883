"""Headers taken off by column, one layer at a time, until a TCP header shows.

Each packet is at some kind of header. In a round, all packets at the same kind are taken off that
header together, which tells where the next one begins and of what kind it is. A packet that can't
be taken further is passed over, and counted by the reason.

Kinds below 0x10000 are EtherTypes. Sources: IEEE 802.3, 802.1Q; RFC 791, 8200, 2784 and 2890 (GRE),
7348 (VXLAN), 2516 (PPPoE), 3032 (MPLS); the list of link types of tcpdump.org.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.container import UNKNOWN_LINK, Packets

ROUNDS = 24  # headers on the way to TCP; more is a packet made to be looked at for ever
_IPV4, _IPV6 = 0x0800, 0x86DD
_LINK = 0x1_0000  # kinds of link types, by their number
_PROTOCOL = 0x10_0000  # kinds of what IP carries, by its number
_TCP = _PROTOCOL + 6
_DONE = 0x20_0000
_FRAGMENT = _DONE + 1
_LLC, _PPP = 0x2_0000, 0x2_0001  # what link headers lead to
_VERSION = 0x2_0002  # IPv4 or IPv6, told by its first digit
_PASSED = _DONE + 16
MALFORMED = "malformed headers"
_REASONS = ("other protocols", "cut headers", MALFORMED, "headers nested too deeply")
_OTHER, _CUT, _MALFORMED, _DEEP, _UNREAD = range(_PASSED, _PASSED + 5)

_U8 = np.dtype("u1")
_U16 = np.dtype(">u2")
_U32 = np.dtype(">u4")
_U64 = np.dtype(">u8")
_Column = NDArray[np.int64]


class Cut(NamedTuple):
    """A fragment of an IP packet, as it came: number of its packet in the batch, the offset of
    its IP header and where the packet ends in the data, IP version."""

    packet: int
    ip: int
    end: int
    version: int


class Peeled(NamedTuple):
    """Where the TCP headers are. packet, tcp, ip, stop: (n,) int64: number in the batch, offsets
    of the headers, and of the end of the segment on the wire. version: (n,) uint8, of IP.

    fragments: of TCP. passed: packets that hold no TCP segment that can be read, by reason.
    """

    packet: _Column
    tcp: _Column
    ip: _Column
    stop: _Column
    version: NDArray[np.uint8]
    fragments: tuple[Cut, ...]
    passed: Counter[str]

    @classmethod
    def empty(cls) -> "Peeled":
        none = np.empty(0, np.int64)
        return cls(none, none, none, none, np.empty(0, np.uint8), (), Counter())


def gather(data: NDArray[np.uint8], offsets: _Column, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The records at byte offsets of the data: (n,) of the dtype, which must have no gaps."""
    size = dtype.itemsize
    # A row at each byte, overlapping, and without fields: those are gathered fastest.
    rows: NDArray[Any] = np.ndarray((max(len(data) - size + 1, 0),), f"V{size}", data, 0, (1,))
    found: NDArray[Any] = rows[offsets].view(dtype)
    return found


def address_words(
    data: NDArray[np.uint8], ip: _Column, version: NDArray[np.uint8]
) -> list[NDArray[np.uint64]]:
    """Source and destination of IP headers, each as a high and a low word of 64 bits: (n,) uint64.
    The high word of IPv4 is zero."""
    four = version == 4
    words = []
    for at_four, at_six in ((12, 8), (16, 24)):
        high = gather(data, ip + at_six, _U64).astype(np.uint64)
        low = gather(data, ip + at_six + 8, _U64).astype(np.uint64)
        short = gather(data, ip + at_four, _U32).astype(np.uint64)
        words += [np.where(four, np.uint64(0), high), np.where(four, short, low)]
    return words


class _State:
    """The packets on the way. Columns are (n,); `end` is where the bytes end that are there,
    `stop` where the packet ended on the wire, by what the headers so far say."""

    def __init__(self, packets: Packets, chosen: _Column, *, tunnels: bool) -> None:
        self.data = packets.data
        self.tunnels = tunnels
        self.at = packets.offsets[chosen]
        self.end = self.at + packets.captured[chosen]
        self.stop = self.at + np.maximum(packets.lengths[chosen], packets.captured[chosen])
        links = packets.links
        if isinstance(links, int):
            self.kind = np.full(len(chosen), _LINK + links, np.int64)
        else:
            self.kind = _LINK + links[chosen].astype(np.int64)
        self.ip = self.at.copy()
        self.version = np.zeros(len(chosen), np.uint8)
        self.fragment = np.zeros(len(chosen), bool)

    def there(self, rows: _Column, size: int) -> _Column:
        """Those of the rows that have `size` bytes of header; the others were cut."""
        enough = self.end[rows] - self.at[rows] >= size
        if enough.all():
            return rows
        self.kind[rows[~enough]] = _CUT
        return rows[enough]

    def keep(self, rows: _Column, good: NDArray[np.bool_], otherwise: int) -> _Column:
        """Those of the rows that are good."""
        if good.all():
            return rows
        self.kind[rows[~good]] = otherwise
        return rows[good]

    def read(self, rows: _Column, offset: int, dtype: np.dtype[Any]) -> _Column:
        """A field of each row's header, as int64."""
        return gather(self.data, self.at[rows] + offset, dtype).astype(np.int64)

    def go(self, rows: _Column, size: _Column | int, kind: _Column | int) -> None:
        """Past `size` bytes there is a header of this kind."""
        self.at[rows] += size
        self.kind[rows] = kind


def peel(packets: Packets, chosen: _Column, *, tunnels: bool) -> Peeled:
    """Finds the TCP headers of the chosen packets, (n,) numbers in the batch.

    `packets.data` has bytes behind the last packet: some fields are read before it is known that
    they are there.
    """
    if not len(chosen):
        return Peeled.empty()
    state = _State(packets, chosen, tunnels=tunnels)
    unread = _leave_unread(state)
    for _ in range(ROUNDS):
        going = np.flatnonzero(state.kind < _DONE)
        if not len(going):
            break
        kinds = state.kind[going]
        for kind in np.unique(kinds).tolist():
            take = _HEADERS.get(kind, _other)
            take(state, going[kinds == kind])
    state.kind[state.kind < _DONE] = _DEEP
    found = np.flatnonzero(state.kind == _DONE)
    cut = np.flatnonzero(state.kind == _FRAGMENT)
    passed = unread + Counter(
        {
            reason: int(np.count_nonzero(state.kind == kind))
            for kind, reason in enumerate(_REASONS, _PASSED)
        }
    )
    fragments = tuple(
        Cut(*row)
        for row in zip(
            chosen[cut].tolist(),
            state.ip[cut].tolist(),
            np.minimum(state.stop, state.end)[cut].tolist(),
            state.version[cut].tolist(),
            strict=True,
        )
    )
    return Peeled(
        packet=chosen[found],
        tcp=state.at[found],
        ip=state.ip[found],
        stop=state.stop[found],
        version=state.version[found],
        fragments=fragments,
        passed=+passed,
    )


def _leave_unread(state: _State) -> Counter[str]:
    """Packets of link types that nothing here reads, counted by the type."""
    links, counts = np.unique(state.kind - _LINK, return_counts=True)
    found = dict(zip(links.tolist(), counts.tolist(), strict=True))
    unread = Counter({_unread(link): n for link, n in found.items() if link not in LINKS})
    if unread:
        state.kind[~np.isin(state.kind - _LINK, list(LINKS))] = _UNREAD
    return unread


def _unread(link: int) -> str:
    if link == UNKNOWN_LINK:
        return "of an interface that the capture does not describe"
    return f"of link type {link}, which is not read"


def _other(state: _State, rows: _Column) -> None:
    state.kind[rows] = _OTHER


# --- links ----------------------------------------------------------------------------------------


def _ethernet(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 14)
    state.go(rows, 14, _ethertype(state.read(rows, 12, _U16)))


def _ethertype(kind: _Column) -> _Column:
    """A number too small for a type is a length: IEEE 802.2 follows."""
    return np.where(kind < 0x0600, _LLC, kind)


def _llc(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 8)
    snap = state.read(rows, 0, _U32) == 0xAAAA_0300
    rows = state.keep(rows, snap, _OTHER)
    state.go(rows, 8, state.read(rows, 6, _U16))


def _vlan(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 4)
    state.go(rows, 4, _ethertype(state.read(rows, 2, _U16)))


def _cooked(state: _State, rows: _Column) -> None:
    """LINKTYPE_LINUX_SLL."""
    rows = state.there(rows, 16)
    state.go(rows, 16, _ethertype(state.read(rows, 14, _U16)))


def _cooked_2(state: _State, rows: _Column) -> None:
    """LINKTYPE_LINUX_SLL2."""
    rows = state.there(rows, 20)
    state.go(rows, 20, _ethertype(state.read(rows, 0, _U16)))


def _loopback(state: _State, rows: _Column) -> None:
    """LINKTYPE_NULL, in the byte order of the host that wrote it, and LINKTYPE_LOOP."""
    rows = state.there(rows, 4)
    family = state.read(rows, 0, _U32)
    family = np.where(family > 0xFFFF, family >> 24, family)
    state.go(rows, 4, _by(family, {2: _IPV4, 24: _IPV6, 28: _IPV6, 30: _IPV6, 10: _IPV6}))


def _raw(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 1)
    state.go(rows, 0, _by(state.read(rows, 0, _U8) >> 4, {4: _IPV4, 6: _IPV6}))


def _pppoe(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 8)
    rows = state.keep(rows, state.read(rows, 0, _U16) == 0x1100, _OTHER)
    length = state.read(rows, 4, _U16)
    state.stop[rows] = np.minimum(state.stop[rows], state.at[rows] + 6 + length)
    state.go(rows, 6, _PPP)


def _framed_ppp(state: _State, rows: _Column) -> None:
    """LINKTYPE_PPP and PPP_HDLC: address and control may be left out, or be those of Cisco HDLC
    (for one, or for all)."""
    rows = state.there(rows, 4)
    begin = state.read(rows, 0, _U16)
    cisco = (begin == 0x0F00) | (begin == 0x8F00)
    state.go(rows, np.where(begin == 0xFF03, 2, 0), np.where(cisco, _LINK + 104, _PPP))


def _ppp(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 2)
    protocol = state.read(rows, 0, _U16)
    short = (protocol >> 8) & 1  # compressed to one byte
    protocol = np.where(short == 1, protocol >> 8, protocol)
    kinds = {0x21: _IPV4, 0x57: _IPV6, 0x281: 0x8847}
    state.go(rows, 2 - short, _by(protocol, kinds))


def _cisco(state: _State, rows: _Column) -> None:
    """LINKTYPE_C_HDLC."""
    rows = state.there(rows, 4)
    state.go(rows, 4, state.read(rows, 2, _U16))


def _mpls(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 4)
    bottom = (state.read(rows, 0, _U32) >> 8) & 1
    state.go(rows, 4, np.where(bottom == 1, _VERSION, state.kind[rows]))


def _by(values: _Column, kinds: dict[int, int]) -> _Column:
    """The kind for each value; what is not known is another protocol."""
    found = np.full(len(values), _OTHER, np.int64)
    for value, kind in kinds.items():
        found[values == value] = kind
    return found


# --- IP -------------------------------------------------------------------------------------------


def _ipv4(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 20)
    first = state.read(rows, 0, _U8)
    size = (first & 15) * 4
    rows_size = (first >> 4 == 4) & (size >= 20)
    rows, size = state.keep(rows, rows_size, _MALFORMED), size[rows_size]
    enough = state.end[rows] - state.at[rows] >= size
    rows, size = state.keep(rows, enough, _CUT), size[enough]
    total = state.read(rows, 2, _U16)
    at = state.at[rows]
    # Zero: left to the network card (segmentation offload); the packet is as long as its frame.
    stop = np.where(total == 0, state.stop[rows], np.minimum(at + total, state.stop[rows]))
    state.stop[rows] = stop
    good = stop - at >= size
    rows, size = state.keep(rows, good, _MALFORMED), size[good]
    state.ip[rows] = state.at[rows]
    state.version[rows] = 4
    state.fragment[rows] = (state.read(rows, 6, _U16) & 0x3FFF) != 0
    _carried(state, rows, size, state.read(rows, 9, _U8))


def _ipv6(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 40)
    rows = state.keep(rows, state.read(rows, 0, _U8) >> 4 == 6, _MALFORMED)
    length = state.read(rows, 4, _U16)
    at = state.at[rows]
    total = np.where(length == 0, state.stop[rows], np.minimum(at + 40 + length, state.stop[rows]))
    state.stop[rows] = total
    state.ip[rows] = at
    state.version[rows] = 6
    state.fragment[rows] = False
    _carried(state, rows, 40, state.read(rows, 6, _U8))


def _carried(state: _State, rows: _Column, size: _Column | int, protocol: _Column) -> None:
    """What IP carries: of a fragment that may be TCP, or anything, there is no telling more."""
    fragment = state.fragment[rows]
    state.go(rows, size, _PROTOCOL + protocol)
    if fragment.any():
        state.kind[rows[fragment]] = np.where(protocol[fragment] == 6, _FRAGMENT, _OTHER)


def _extension(state: _State, rows: _Column) -> None:
    """Hop-by-hop, routing and destination options, mobility, HIP, shim6."""
    rows = state.there(rows, 8)
    size = (state.read(rows, 1, _U8) + 1) * 8
    state.go(rows, size, _PROTOCOL + state.read(rows, 0, _U8))


def _authentication(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 8)
    size = (state.read(rows, 1, _U8) + 2) * 4
    state.go(rows, size, _PROTOCOL + state.read(rows, 0, _U8))


_MAY_HOLD_TCP = (0, 6, 43, 51, 60, 135, 139, 140)


def _fragment_header(state: _State, rows: _Column) -> None:
    rows = state.there(rows, 8)
    rows = state.keep(rows, state.version[rows] == 6, _OTHER)
    whole = (state.read(rows, 2, _U16) & 0xFFF9) == 0  # an atomic fragment (RFC 6946)
    protocol = state.read(rows, 0, _U8)
    # What the chain holds behind the header is known when the packet is whole again.
    kind = np.where(np.isin(protocol, _MAY_HOLD_TCP), _FRAGMENT, _OTHER)
    state.go(rows, 8, np.where(whole, _PROTOCOL + protocol, kind))


def _tcp(state: _State, rows: _Column) -> None:
    rows = state.keep(rows, state.stop[rows] - state.at[rows] >= 20, _MALFORMED)
    rows = state.there(rows, 20)
    state.kind[rows] = _DONE


# --- tunnels --------------------------------------------------------------------------------------


def _inside(state: _State, rows: _Column) -> _Column:
    """The rows, if tunnels are to be looked into."""
    if state.tunnels:
        return rows
    state.kind[rows] = _OTHER
    return rows[:0]


def _ip_in_ip(state: _State, rows: _Column) -> None:
    rows = _inside(state, rows)
    state.go(rows, 0, _IPV4)


def _ipv6_in_ip(state: _State, rows: _Column) -> None:
    rows = _inside(state, rows)
    state.go(rows, 0, _IPV6)


def _gre(state: _State, rows: _Column) -> None:
    rows = state.there(_inside(state, rows), 4)
    flags = state.read(rows, 0, _U16)
    rows_good = (flags & 7) == 0  # version 0; 1 is PPTP's
    rows, flags = state.keep(rows, rows_good, _OTHER), flags[rows_good]
    options = (flags >> 15 & 1) + (flags >> 13 & 1) + (flags >> 12 & 1)  # checksum, key, sequence
    state.go(rows, 4 + 4 * options, state.read(rows, 2, _U16))


def _udp(state: _State, rows: _Column) -> None:
    """Of UDP only what carries VXLAN is looked into."""
    rows = state.there(_inside(state, rows), 16)
    vxlan = (state.read(rows, 2, _U16) == 4789) & (state.read(rows, 8, _U8) & 8 != 0)
    rows = state.keep(rows, vxlan, _OTHER)
    state.go(rows, 16, _LINK + 1)


_HEADERS: dict[int, Callable[[_State, _Column], None]] = {
    _LINK + 0: _loopback,
    _LINK + 1: _ethernet,
    _LINK + 9: _framed_ppp,
    _LINK + 12: _raw,
    _LINK + 14: _raw,
    _LINK + 50: _framed_ppp,
    _LINK + 51: _pppoe,
    _LINK + 101: _raw,
    _LINK + 104: _cisco,
    _LINK + 108: _loopback,
    _LINK + 113: _cooked,
    _LINK + 228: _raw,
    _LINK + 229: _raw,
    _LINK + 276: _cooked_2,
    _LLC: _llc,
    _VERSION: _raw,
    _PPP: _ppp,
    _IPV4: _ipv4,
    _IPV6: _ipv6,
    0x8100: _vlan,  # 802.1Q
    0x88A8: _vlan,  # 802.1ad
    0x9100: _vlan,  # QinQ before 802.1ad
    0x8847: _mpls,
    0x8848: _mpls,
    0x8864: _pppoe,
    0x6558: _ethernet,  # transparent Ethernet bridging, in GRE
    _PROTOCOL + 0: _extension,
    _PROTOCOL + 4: _ip_in_ip,
    _PROTOCOL + 6: _tcp,
    _PROTOCOL + 17: _udp,
    _PROTOCOL + 41: _ipv6_in_ip,
    _PROTOCOL + 43: _extension,
    _PROTOCOL + 44: _fragment_header,
    _PROTOCOL + 47: _gre,
    _PROTOCOL + 51: _authentication,
    _PROTOCOL + 60: _extension,
    _PROTOCOL + 135: _extension,
    _PROTOCOL + 139: _extension,
    _PROTOCOL + 140: _extension,
}
LINKS = frozenset(kind - _LINK for kind in _HEADERS if _LINK <= kind < _LLC)
