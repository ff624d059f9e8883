"""Captures to measure with: `python -m bench.captures KIND FILE`, the same for the same seed.

chat: many connections with short messages both ways. bulk: a few that carry much. mix: a tenth of
chat on port 1863, as much on other ports, the rest bulk. switchboards: chat that is MSNP. open:
short connections, all open at once, each of whose ends says 2 KiB; 65,500 of them are 389 MB.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple, TextIO

import numpy as np

from bench import switchboards
from bench.capturefile import Ends, Format, texts, write
from bench.timeline import (
    OPTIONS,
    SEGMENT_BYTES,
    Content,
    Ints,
    Messages,
    Rows,
    Timing,
    packets,
    segments,
)

CHAT_MESSAGES = 137  # of a connection, on average
BULK_FLOWS = 50
CONCURRENT = 1000
BLOCK = 1 << 16  # a write of a bulk sender
OPEN_BYTES, OPEN_MESSAGE = 2048, 512  # of each end; of each of its messages
_POOL = 1 << 23
_HEADERS = 16 + 66  # of a record of a pcap file
_CONTROLS = 6 * _HEADERS + 16  # handshake and farewell
_CHAT_US = 60_000_000  # a connection lives, on average
_HOST_FLOWS = 10  # of one host in a capture
_CLIENTS, _SERVERS = 0x0A000001, 0xC6336401  # 10.0.0.1, 198.51.100.1


class Population(NamedTuple):
    """Flows of one kind: what they say, and how they live."""

    messages: Messages
    timing: Timing
    ends: Ends


class Capture(NamedTuple):
    populations: list[Population]
    content: Content


def chat(size: int, concurrent: int | None, random: np.random.Generator) -> Capture:
    content = _pool(random)
    return Capture([_chat(size, concurrent, 1863, 0, content, random)], content)


def bulk(size: int, concurrent: int | None, random: np.random.Generator) -> Capture:
    del concurrent  # they are always all at once
    content = _pool(random)
    return Capture([_bulk(size, _CHAT_US, content, random)], content)


def mix(size: int, concurrent: int | None, random: np.random.Generator) -> Capture:
    content = _pool(random)
    tenth = size // 10
    chats = [_chat(tenth, concurrent, port, port, content, random) for port in (1863, 5222)]
    longest = max(int((chat.timing.start + chat.timing.duration).max()) for chat in chats)
    return Capture([*chats, _bulk(size - 2 * tenth, longest, content, random)], content)


def sessions(size: int, concurrent: int | None, random: np.random.Generator) -> Capture:
    """Hosts are people: the account that signs in is the host's."""
    plain = Random(int(random.integers(1 << 62)))
    known = switchboards.texts(plain)
    users = max(3, size // 50_000 // _HOST_FLOWS)
    said = [OPTIONS]
    columns: list[tuple[int, int, int]] = []
    cost = number = 0
    while cost < size or not number:
        for direction, data in switchboards.session(number, number % users, users, known, plain):
            columns.append((number, direction, len(data)))
            said.append(data)
            cost += 2 * _HEADERS + len(data)
        cost += _CONTROLS
        number += 1
    content = np.frombuffer(b"".join([*said, bytes(SEGMENT_BYTES)]), np.uint8)
    flow, direction, length = np.array(columns, np.int64).T
    position = len(OPTIONS) + np.cumsum(length) - length
    messages = Messages(flow, direction, length, position)
    timing = _timing(number, concurrent, random)
    ends = _ends(np.arange(number), users, 1863, _SERVERS)
    return Capture(
        [Population(messages, timing, ends)], Content(content, len(content) - SEGMENT_BYTES)
    )


def at_once(size: int, concurrent: int | None, random: np.random.Generator) -> Capture:
    del concurrent  # that is what it is for
    content = _pool(random)
    turns = 2 * OPEN_BYTES // OPEN_MESSAGE
    flows = max(1, round(size / (turns * (2 * _HEADERS + OPEN_MESSAGE) + _CONTROLS)))
    flow = np.repeat(np.arange(flows), turns)
    direction = np.arange(len(flow)) & 1
    length = np.full(len(flow), OPEN_MESSAGE)
    position = _positions(flow, direction, length, content, random)
    messages = Messages(flow, direction, length, position)
    ends = _ends(np.arange(flows), max(1, flows // _HOST_FLOWS), 1863, _SERVERS)
    return Capture([Population(messages, _timing(flows, None, random), ends)], content)


KINDS: dict[str, Callable[[int, int | None, np.random.Generator], Capture]] = {
    "chat": chat,
    "bulk": bulk,
    "mix": mix,
    "switchboards": sessions,
    "open": at_once,
}


def _pool(random: np.random.Generator) -> Content:
    """Letters in lines, which no parser claims."""
    data = random.integers(97, 123, _POOL, np.uint8)
    data[random.integers(0, _POOL, _POOL // 8)] = ord(" ")
    lines = random.integers(0, _POOL - 1, _POOL // 60)
    data[lines], data[lines + 1] = ord("\r"), ord("\n")
    data[: len(OPTIONS)] = np.frombuffer(OPTIONS, np.uint8)
    return Content(np.concatenate([data, data[:SEGMENT_BYTES]]), _POOL)


def _chat(
    size: int,
    concurrent: int | None,
    port: int,
    hosts_from: int,
    content: Content,
    random: np.random.Generator,
) -> Population:
    message = 2 * _HEADERS + 200
    flows = max(1, round(size / (CHAT_MESSAGES * message + _CONTROLS)))
    counts = random.integers(CHAT_MESSAGES // 2, CHAT_MESSAGES * 3 // 2 + 1, flows)
    flow = np.repeat(np.arange(flows), counts)
    direction = random.integers(0, 2, len(flow))
    length = np.minimum(40 + random.exponential(160, len(flow)), 1500).astype(np.int64)
    messages = Messages(
        flow, direction, length, _positions(flow, direction, length, content, random)
    )
    hosts = max(1, flows // _HOST_FLOWS)
    ends = _ends(np.arange(flows), hosts, port, _SERVERS + (hosts_from & 0xFF))
    return Population(messages, _timing(flows, concurrent, random), ends)


def _bulk(size: int, duration: int, content: Content, random: np.random.Generator) -> Population:
    """A request of each client, then blocks from the server."""
    segment = _HEADERS + SEGMENT_BYTES + _HEADERS // 2
    blocks = max(1, round(size / BULK_FLOWS / (BLOCK / SEGMENT_BYTES * segment)))
    flow = np.repeat(np.arange(BULK_FLOWS), blocks + 1)
    first = np.arange(len(flow)) % (blocks + 1) == 0
    direction = np.where(first, 0, 1)
    length = np.where(first, 200, BLOCK)
    messages = Messages(
        flow, direction, length, _positions(flow, direction, length, content, random)
    )
    start = random.integers(0, duration // 20, BULK_FLOWS)
    timing = Timing(start, duration - start, _round_trips(BULK_FLOWS, random), 2, 500)
    return Population(
        messages, timing, _ends(np.arange(BULK_FLOWS), BULK_FLOWS, 8080, _SERVERS - 1)
    )


def _positions(
    flow: Ints, direction: Ints, length: Ints, content: Content, random: np.random.Generator
) -> Ints:
    """Each direction of each flow reads the content from a place of its own."""
    group = 2 * flow + direction
    base = random.integers(len(OPTIONS), content.period, 2 * (int(flow[-1]) + 1))
    order = np.argsort(group, kind="stable")
    before = np.cumsum(length[order]) - length[order]
    first = np.searchsorted(group[order], group[order], "left")
    position = np.empty_like(length)
    position[order] = base[group[order]] + before - before[first]
    return position


def _round_trips(flows: int, random: np.random.Generator) -> Ints:
    return random.integers(10_000, 60_000, flows)


def _timing(flows: int, concurrent: int | None, random: np.random.Generator) -> Timing:
    """Flows begin one after the other so that `concurrent` of them live at a time; None: all."""
    together = min(flows, concurrent or flows)
    duration = random.integers(_CHAT_US // 2, _CHAT_US * 3 // 2, flows)
    step = _CHAT_US / together if together < flows else 100
    start = (np.arange(flows) * step).astype(np.int64)
    return Timing(start, duration, _round_trips(flows, random), 1, 40_000)


def _ends(number: Ints, hosts: int, port: int, server: int) -> Ends:
    """Hosts take turns; each counts its ports up."""
    return Ends(
        _CLIENTS + number % hosts,
        49_152 + number // hosts % 16_384,
        np.full(len(number), server),
        np.full(len(number), port),
    )


def build(capture: Capture, random: np.random.Generator) -> tuple[Rows, Ends]:
    """The packets of all populations, by time, and the ends of all flows."""
    parts = []
    flows = 0
    for messages, timing, ends in capture.populations:
        rows = packets(messages, timing, capture.content.period, random)
        rows["group"] += 2 * flows
        flows += len(ends.client)
        parts.append(rows)
    rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if len(parts) > 1:
        rows = rows[np.argsort(rows["time"], kind="stable")]
    columns = zip(*(population.ends for population in capture.populations), strict=True)
    return rows, Ends(*(np.concatenate(column) for column in columns))


def truth(capture: Capture, file: TextIO) -> None:
    """A JSON line for each flow and direction: `src`, `dst`, `role` of src, `length`, `sha256`."""
    content = memoryview(capture.content.data.data)
    for messages, _, ends in capture.populations:
        said = segments(messages, capture.content.period)
        said = said[np.argsort(said["group"], kind="stable")]
        hashes = [hashlib.sha256() for _ in range(2 * len(ends.client))]
        lengths = np.zeros(len(hashes), np.int64)
        np.add.at(lengths, said["group"], said["length"])
        for group, position, length in zip(
            said["group"].tolist(),
            said["position"].tolist(),
            said["length"].tolist(),
            strict=True,
        ):
            hashes[group].update(content[position : position + length])
        clients = texts(ends.client, ends.client_port)
        servers = texts(ends.server, ends.server_port)
        for flow, pair in enumerate(zip(clients, servers, strict=True)):
            for direction, role in enumerate(("client", "server")):
                line = {
                    "src": pair[direction],
                    "dst": pair[1 - direction],
                    "role": role,
                    "length": int(lengths[2 * flow + direction]),
                    "sha256": hashes[2 * flow + direction].hexdigest(),
                }
                file.write(json.dumps(line) + "\n")


def generate(
    kind: str,
    path: Path,
    *,
    size: int,
    seed: int = 1,
    concurrent: int | None = CONCURRENT,
    form: Format = "pcap",
    truth_path: Path | None = None,
) -> tuple[int, int, int]:
    """Writes the capture; gives its flows, packets and bytes."""
    random = np.random.default_rng(seed)
    capture = KINDS[kind](size, concurrent, random)
    rows, ends = build(capture, random)
    with path.open("wb") as file:
        written = write(file, rows, ends, capture.content, form, random)
    if truth_path is not None:
        with truth_path.open("w", encoding="ascii") as text:
            truth(capture, text)
    return len(ends.client), len(rows), written


def _size(text: str) -> int:
    """1000000, 100k, 50M, 1G."""
    factor = {"k": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:], 1)
    return int(float(text.rstrip("kMG")) * factor)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.captures", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bytes", type=_size, default=10**9, help="about; 1G unless given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--concurrent",
        type=lambda text: None if text == "all" else int(text),
        default=CONCURRENT,
        metavar="N|all",
        help=f"chat connections that live at the same time; {CONCURRENT} unless given",
    )
    parser.add_argument("--format", choices=("pcap", "pcapng"), default="pcap")
    parser.add_argument(
        "--truth", type=Path, metavar="FILE", help="length and sha256 of each stream, JSON lines"
    )
    given = parser.parse_args()
    flows, number, written = generate(
        given.kind,
        given.file,
        size=given.bytes,
        seed=given.seed,
        concurrent=given.concurrent,
        form=given.format,
        truth_path=given.truth,
    )
    print(f"{given.file}: {flows} flows, {number} packets, {written} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
