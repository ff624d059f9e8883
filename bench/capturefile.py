"""Packets to a capture file: Ethernet, IPv4, TCP with timestamps, all checksums right.

Headers are rows of one structured array, put into the file's bytes by a view that begins at every
byte; only payloads are copied one by one.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bench.timeline import ACK, SYN, Content, Ints, Rows

Format = Literal["pcap", "pcapng"]

BEGAN_US = 1_700_000_000_000_000
_BATCH = 1 << 16  # packets

_FRAME = np.dtype(
    [
        ("to_mac", "V6"),
        ("from_mac", "V6"),
        ("ethertype", ">u2"),
        ("version", "u1"),
        ("service", "u1"),
        ("total", ">u2"),
        ("identification", ">u2"),
        ("fragment", ">u2"),
        ("lifetime", "u1"),
        ("protocol", "u1"),
        ("ip_checksum", ">u2"),
        ("source", ">u4"),
        ("destination", ">u4"),
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("sequence", ">u4"),
        ("acknowledgment", ">u4"),
        ("header_words", "u1"),
        ("flags", "u1"),
        ("window", ">u2"),
        ("checksum", ">u2"),
        ("urgent", ">u2"),
        ("timestamps", ">u4"),  # two NOP, kind 8, length 10
        ("sent_at", ">u4"),
        ("echoed", ">u4"),
    ]
)
_IP, _TCP = 14, 34  # where the headers begin in a frame
_CHECKSUM = 50
_HEADERS = _FRAME.itemsize
_HEAD: dict[Format, np.dtype[np.void]] = {
    "pcap": np.dtype(
        [("seconds", "<u4"), ("fraction", "<u4"), ("captured", "<u4"), ("original", "<u4")]
    ),
    "pcapng": np.dtype(
        [
            ("block", "<u4"),
            ("size", "<u4"),
            ("interface", "<u4"),
            ("high", "<u4"),
            ("low", "<u4"),
            ("captured", "<u4"),
            ("original", "<u4"),
        ]
    ),
}
_OPENING: dict[Format, bytes] = {
    "pcap": struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1),
    "pcapng": struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    + struct.pack("<IIHHII", 1, 20, 1, 0, 262_144, 20),
}


class Ends(NamedTuple):
    """Addresses and ports of the flows, a row a flow: the client's, the server's."""

    client: Ints
    client_port: Ints
    server: Ints
    server_port: Ints


def write(
    file: BinaryIO,
    packets: Rows,
    ends: Ends,
    content: Content,
    form: Format,
    random: np.random.Generator,
) -> int:
    """The capture; gives its size in bytes."""
    isn = random.integers(0, 1 << 32, 2 * len(ends.client))
    size = file.write(_OPENING[form])
    for at in range(0, len(packets), _BATCH):
        rows = packets[at : at + _BATCH]
        head, frame = _headers(rows, ends, isn, at, form)
        size += file.write(_records(rows, head, frame, content, form))
    return size


def _headers(
    rows: Rows, ends: Ends, isn: Ints, number: int, form: Format
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """What comes before each frame in the file, and its headers without the checksum of TCP."""
    group = rows["group"]
    flow, to_client = group >> 1, (group & 1).astype(bool)
    frame = np.zeros(len(rows), _FRAME)
    stations = np.array([b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"], "V6")
    frame["from_mac"], frame["to_mac"] = stations[group & 1], stations[1 - (group & 1)]
    frame["ethertype"], frame["version"] = 0x0800, 0x45
    frame["total"] = _HEADERS - _IP + rows["length"]
    frame["identification"] = (number + np.arange(len(rows))) & 0xFFFF
    frame["fragment"], frame["lifetime"], frame["protocol"] = 0x4000, 64, 6
    client, server = ends.client[flow], ends.server[flow]
    frame["source"] = np.where(to_client, server, client)
    frame["destination"] = np.where(to_client, client, server)
    words = frame.view(">u2").reshape(len(rows), -1)[:, _IP // 2 : _TCP // 2]
    frame["ip_checksum"] = _fold(words.sum(axis=1, dtype=np.int64))
    client_port, server_port = ends.client_port[flow], ends.server_port[flow]
    frame["source_port"] = np.where(to_client, server_port, client_port)
    frame["destination_port"] = np.where(to_client, client_port, server_port)
    frame["sequence"] = (rows["sequence"] + isn[group]) & 0xFFFFFFFF
    acknowledges = rows["flags"] & ACK != 0
    number_acknowledged = (rows["acknowledgment"] + isn[group ^ 1]) & 0xFFFFFFFF
    frame["acknowledgment"] = np.where(acknowledges, number_acknowledged, 0)
    frame["header_words"] = np.where(rows["flags"] & SYN, 10, 8) << 4
    frame["flags"], frame["window"] = rows["flags"], 0xFFFF
    frame["timestamps"] = 0x0101080A
    frame["sent_at"] = ((isn[group] >> 4) + rows["time"] // 1000) & 0xFFFFFFFF
    frame["echoed"] = np.where(
        acknowledges, ((isn[group ^ 1] >> 4) + rows["time"] // 1000 - 1) & 0xFFFFFFFF, 0
    )
    head = np.zeros(len(rows), _HEAD[form])
    head["captured"] = head["original"] = _HEADERS + rows["length"]
    time = BEGAN_US + rows["time"]
    if form == "pcap":
        head["seconds"], head["fraction"] = time // 1_000_000, time % 1_000_000
    else:
        head["block"] = 6
        head["size"] = _HEAD[form].itemsize + (_HEADERS + rows["length"] + 3) // 4 * 4 + 4
        head["high"], head["low"] = time >> 32, time & 0xFFFFFFFF
    return head, frame


def _records(
    rows: Rows, head: NDArray[np.void], frame: NDArray[np.void], content: Content, form: Format
) -> memoryview:
    sizes = head["size"].astype(np.int64) if form == "pcapng" else None
    if sizes is None:
        sizes = _HEAD[form].itemsize + _HEADERS + rows["length"]
    ends = np.cumsum(sizes)
    starts = ends - sizes
    frames = starts + _HEAD[form].itemsize
    payloads = frames + _HEADERS
    whole = int(ends[-1])
    out = np.zeros(whole + _HEADERS, np.uint8)  # the views need room behind the last record
    _scatter(out, starts, head)
    _scatter(out, frames, frame)
    if form == "pcapng":
        _scatter(out, ends - 4, np.ascontiguousarray(head["size"]))
    _fill(memoryview(out.data), payloads, rows["length"], rows["position"], content)
    pseudo = 6 + frame["total"].astype(np.int64) - 20
    for name in ("source", "destination"):
        pseudo += (frame[name] >> 16).astype(np.int64) + (frame[name] & 0xFFFF)
    summed = _sums(out, frames + _TCP, payloads + rows["length"])
    _scatter(out, frames + _CHECKSUM, _fold(summed + pseudo).astype(">u2"))
    return memoryview(out.data)[:whole]


def _scatter(out: NDArray[np.uint8], at: Ints, values: NDArray[np.generic]) -> None:
    size = values.dtype.itemsize
    views = as_strided(out.view(), (len(out) - size + 1, size), (1, 1)).view(f"V{size}")[:, 0]
    views[at] = values.view(f"V{size}")


def _fill(
    out: memoryview, payloads: Ints, lengths: Ints, positions: Ints, content: Content
) -> None:
    said = memoryview(content.data.data)
    chosen = np.flatnonzero(lengths)
    for at, length, position in zip(
        payloads[chosen].tolist(),
        lengths[chosen].tolist(),
        positions[chosen].tolist(),
        strict=True,
    ):
        out[at : at + length] = said[position : position + length]


def _sums(data: NDArray[np.uint8], begins: Ints, ends: Ints) -> Ints:
    """Of 16-bit big-endian words of each range: its even and its odd bytes are added apart."""
    even = np.empty(2 * len(begins), np.int64)
    odd = np.empty(2 * len(begins), np.int64)
    even[0::2], even[1::2] = (begins + 1) // 2, (ends + 1) // 2
    odd[0::2], odd[1::2] = begins // 2, ends // 2
    at_even = np.add.reduceat(data[0::2], even, dtype=np.int64)[::2]
    at_odd = np.add.reduceat(data[1::2], odd, dtype=np.int64)[::2]
    first, second = (
        np.where(begins & 1, at_odd, at_even),
        np.where(begins & 1, at_even, at_odd),
    )
    summed: Ints = 256 * first + second
    return summed


def _fold(sums: Ints) -> Ints:
    while (sums >> 16).any():
        sums = (sums & 0xFFFF) + (sums >> 16)
    return ~sums & 0xFFFF


def texts(addresses: Ints, ports: Ints) -> Iterator[str]:
    """`address:port` of each row."""
    for address, port in zip(addresses.tolist(), ports.tolist(), strict=True):
        yield f"{'.'.join(str(byte) for byte in address.to_bytes(4, 'big'))}:{port}"
