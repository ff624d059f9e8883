"""TCP segments as packets, and packets as Enhanced Packet Blocks, a batch at a time.

What differs from packet to packet is kept by column, and turned into headers by NumPy when the
batch is taken. A payload is copied once, into the blocks; checksums are added there, where every
packet and every payload begins at a multiple of four bytes and is filled up with zeros.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtap.model import Endpoint

PACKET = 6  # type of an Enhanced Packet Block (draft-ietf-opsawg-pcapng §4.3)
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
LARGEST = 0xFFFF  # bytes of a packet, so that both versions of IP can tell its length

# A time has no sign in a file. Those before 1970, which a capture may tell, are of an interface of
# their own, whose times begin so much earlier: in 1677, within a second of the first that 64 bits
# of nanoseconds can hold.
EARLY_S = -9_223_372_036

PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # behind what has this length modulo 4
_TCP = 6  # protocol number
_HOPS = 64
_WINDOW = 0xFFFF
_DONT_FRAGMENT = 0x4000  # such a packet needs no identification (RFC 6864 §4.1)
_OFFSET = 5 << 12  # of the data in a TCP header without options, in words of 4 bytes
_SUM = 0xFFFF  # modulus of the checksum (RFC 1071): 2**16 counts as 1, so larger words may be added
_SWAP = 256  # swaps the bytes of such a sum

_BLOCK = [
    (name, "<u4") for name in ("type", "total", "interface", "high", "low", "captured", "original")
]
_PORTS_AND_ON = [  # RFC 9293 §3.1, without the ports: these stand with the addresses
    *(("sequence", ">u4"), ("acknowledgment", ">u4"), ("word", ">u2"), ("window", ">u2")),
    *(("checksum", ">u2"), ("urgent", ">u2")),
]
_IPV4 = np.dtype([  # RFC 791 §3.1
    *_BLOCK, ("version", ">u2"), ("size", ">u2"), ("identification", ">u2"), ("fragment", ">u2"),
    ("hops", "u1"), ("protocol", "u1"), ("ip_checksum", ">u2"), ("ends", "V12"), *_PORTS_AND_ON,
])  # fmt: skip
_IPV6 = np.dtype([  # RFC 8200 §3
    *_BLOCK, ("version", ">u4"), ("size", ">u2"), ("protocol", "u1"), ("hops", "u1"),
    ("ends", "V36"), *_PORTS_AND_ON,
])  # fmt: skip
_BLOCK_SIZE = 28
_MAPPED = b"\0" * 10 + b"\xff\xff"


class Way:
    """One direction of a connection.

    most: bytes of payload that a packet can have. syn_options: what its SYN has for a payload: the
    largest segment, and a window so wide (RFC 7323 §2.2) that no analysis finds it full, for the
    true one is not known.
    """

    __slots__ = ("ends", "is_ipv4", "most", "syn_options", "tails")

    def __init__(self, source: Endpoint, destination: Endpoint) -> None:
        addresses, self.is_ipv4 = _addresses(source.address, destination.address)
        ports = source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")
        self.ends = addresses + ports
        self.most = LARGEST - (40 if self.is_ipv4 else 60)
        # Options of kind 2 and 3, with a no-operation before the latter.
        self.syn_options = b"\x02\x04" + self.most.to_bytes(2, "big") + b"\x01\x03\x03\x0e"
        self.set_options(b"")

    def set_options(self, options: bytes) -> None:
        """What each of its blocks ends with from now on."""
        self.tails = tuple(padding + options for padding in PADDING)


class Packets:
    """The packets of a batch."""

    def __init__(self) -> None:
        self._ways: list[Way] = []
        self._times_ns: list[int] = []
        self._sequences: list[int] = []
        self._acknowledgments: list[int] = []
        self._words: list[int] = []
        self._lengths: list[int] = []
        self._payloads: list[bytes] = []
        self._tails: list[bytes] = []

    def __len__(self) -> int:
        return len(self._lengths)

    def put_first(self, others: "Packets") -> None:
        """Those of another batch before all that are in this one."""
        for name, column in vars(others).items():
            getattr(self, name)[:0] = column

    def add(
        self,
        way: Way,
        time_ns: int,
        sequence: int,
        acknowledgment: int | None,
        flags: int,
        payload: bytes = b"",
        length: int = 0,
        options: bytes = b"",
    ) -> None:
        """A packet.

        acknowledgment: None for nothing. length: of the payload, which is shorter where it is not
            to be had, or not to be told. options: of its block, before those of its way.
        """
        if flags & SYN:
            payload = way.syn_options
            length = len(payload)
            flags += length << 10
        self._ways.append(way)
        self._times_ns.append(time_ns)
        self._sequences.append(sequence)
        self._lengths.append(length)
        self._payloads.append(payload)
        self._acknowledgments.append(acknowledgment or 0)
        self._words.append(_OFFSET | flags | (0 if acknowledgment is None else ACK))
        tail = way.tails[len(payload) & 3]
        if options:
            at = -len(payload) & 3
            tail = tail[:at] + options + tail[at:]
        self._tails.append(tail)

    def add_run(
        self,
        way: Way,
        times_ns: Sequence[int],
        sequence: int,
        acknowledgment: int | None,
        flags: int,
        data: bytes,
        ends: Sequence[int],
    ) -> None:
        """Packets that follow one another in sequence; as for `add`.

        data: begins with the byte at `sequence`, and is empty where it is not to be had.
        ends: one more than there are packets: each is of the bytes between two of them.
        """
        count = len(ends) - 1
        begins, stops = ends[:-1], ends[1:]
        payloads = [data[begin:end] for begin, end in zip(begins, stops, strict=True)]
        self._ways += [way] * count
        self._times_ns += times_ns
        self._sequences += [sequence + begin for begin in begins]
        self._lengths += [end - begin for begin, end in zip(begins, stops, strict=True)]
        self._payloads += payloads
        self._acknowledgments += [acknowledgment or 0] * count
        self._words += [_OFFSET | flags | (0 if acknowledgment is None else ACK)] * count
        tails = way.tails
        self._tails += [tails[len(payload) & 3] for payload in payloads]

    def blocks(self) -> tuple[bytearray, int, int]:
        """The blocks in order of time, those of one time as they came; the first and last time.
        To be asked for once, of a batch that is not empty."""
        times_ns = np.array(self._times_ns, np.int64)
        order = np.argsort(times_ns, kind="stable")
        number_of = {way: number for number, way in enumerate(dict.fromkeys(self._ways))}
        ways = list(number_of)
        numbers = np.array([number_of[way] for way in self._ways])[order]
        payloads, tails = self._payloads, self._tails
        if (order[1:] < order[:-1]).any():
            payloads = [payloads[at] for at in order.tolist()]
            tails = [tails[at] for at in order.tolist()]
        is_ipv4 = np.array([way.is_ipv4 for way in ways])[numbers]
        captured = np.array([len(payload) for payload in payloads])
        columns = {
            "time_ns": times_ns[order],
            "number": numbers,
            "sequence": np.array(self._sequences)[order],
            "acknowledgment": np.array(self._acknowledgments)[order],
            "word": np.array(self._words, np.uint16)[order],
            "length": np.array(self._lengths)[order],
            "captured": captured,
            "tail": np.array([len(tail) for tail in tails]),
        }
        heads: list[bytes] = [b""] * len(order)
        total = np.empty(len(order), "<u4")
        for which, layout in ((is_ipv4, _IPV4), (~is_ipv4, _IPV6)):
            at = np.flatnonzero(which)
            if len(at):
                rows = _rows(layout, ways, {name: column[at] for name, column in columns.items()})
                total[at] = rows["total"]
                made = rows.view(np.dtype((np.void, layout.itemsize))).tolist()
                if len(at) == len(heads):
                    heads = made
                else:
                    for place, head in zip(at.tolist(), made, strict=True):
                        heads[place] = head
        parts: list[Any] = [b""] * (4 * len(heads))
        parts[0::4], parts[1::4], parts[2::4] = heads, payloads, tails
        parts[3::4] = total.view("V4").tolist()
        blocks = bytearray().join(parts)
        _add_checksums(blocks, total, is_ipv4, captured, columns["length"])
        return blocks, int(times_ns[order[0]]), int(times_ns[order[-1]])


def _rows(
    layout: "np.dtype[Any]", ways: Sequence[Way], columns: dict[str, NDArray[Any]]
) -> NDArray[Any]:
    """The beginning of each block, up to the payload; the checksum of TCP is 0."""
    size = layout.itemsize - _BLOCK_SIZE
    rows = np.zeros(len(columns["number"]), layout)
    early = columns["time_ns"] < 0
    times_ns = (columns["time_ns"] - early * (EARLY_S * 1_000_000_000)).clip(0).view(np.uint64)
    ends = np.zeros(len(ways), layout["ends"])
    for number, way in enumerate(ways):
        if len(way.ends) == ends.itemsize:
            ends[number] = way.ends
    rows["type"] = PACKET
    rows["total"] = layout.itemsize + columns["captured"] + columns["tail"] + 4
    rows["interface"] = early
    rows["high"] = times_ns >> np.uint64(32)
    rows["low"] = times_ns & np.uint64(0xFFFFFFFF)
    rows["captured"] = size + columns["captured"]
    rows["original"] = size + columns["length"]
    rows["hops"] = _HOPS
    rows["protocol"] = _TCP
    rows["ends"] = ends[columns["number"]]
    rows["sequence"] = columns["sequence"] & 0xFFFFFFFF
    rows["acknowledgment"] = columns["acknowledgment"] & 0xFFFFFFFF
    rows["word"] = columns["word"]
    rows["window"] = _WINDOW
    if layout is _IPV6:
        rows["version"] = 6 << 28
        rows["size"] = 20 + columns["length"]
        return rows
    rows["version"] = 0x4500  # 5 words of 4 bytes
    rows["size"] = 40 + columns["length"]
    rows["fragment"] = _DONT_FRAGMENT
    words = rows.view("<u2").reshape(len(rows), -1)[:, _BLOCK_SIZE // 2 :][:, :10]
    rows["ip_checksum"] = -words.sum(axis=1, dtype=np.int64) * _SWAP % _SUM
    return rows


def _add_checksums(
    blocks: bytearray,
    total: NDArray[Any],
    is_ipv4: NDArray[np.bool_],
    captured: NDArray[Any],
    length: NDArray[Any],
) -> None:
    """Of TCP, where the payload is whole: that of a short one that was cut would tell what it is.

    From the addresses to the padding: all that is added, but for two numbers.
    """
    begin = np.cumsum(total, dtype=np.int64) - total
    tcp = begin + np.where(is_ipv4, _IPV4.itemsize, _IPV6.itemsize) - 20
    addresses = tcp - np.where(is_ipv4, 8, 32)
    padded = tcp + 20 + captured + (-captured & 3)
    bounds = np.stack((addresses >> 2, padded >> 2), axis=1).ravel()
    sums = np.add.reduceat(np.frombuffer(blocks, "<u4"), bounds, dtype=np.uint64)[::2]
    pseudo = _TCP + 20 + length
    checksums = -(sums.astype(np.int64) % _SUM * _SWAP + pseudo) % _SUM
    checksums[captured < length] = 0
    np.frombuffer(blocks, ">u2")[(tcp >> 1) + 8] = checksums


def _addresses(*texts: str) -> tuple[bytes, bool]:
    """The addresses as they stand in a header, and whether that is one of IPv4: an IPv4 address may
    be written as the one that is mapped into IPv6 (RFC 4291 §2.5.5.2)."""
    found = [ip_address(text) for text in texts]
    plain = [(one.version == 6 and one.ipv4_mapped) or one for one in found]
    if all(one.version == 4 for one in plain):
        return b"".join(one.packed for one in plain), True
    return b"".join(_MAPPED * (one.version == 4) + one.packed for one in plain), False
