"""`scripts/compare-captures FOLDER`: the ordered bytes of all captures in a folder, as streamtap,
tshark and tcpflow give them, compared for each flow and direction.

A line for each difference, then a table. What can't be compared is left out on both sides: captures
that a tool does not open at all. tshark marks missing bytes by a sentence, tcpflow by zeros; where
all agree on the bytes and on the gaps, that is equal.
"""

import argparse
import contextlib
import gzip
import hashlib
import ipaddress
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from streamtap.api import streams
from streamtap.errors import StreamtapError
from streamtap.model import Chunk, Gap

SUFFIXES = re.compile(r"\.(pcap|pcapng|cap|ntar|dmp|trace)\d*(\.gz|\.zst)?$", re.IGNORECASE)
TOOLS = ("tshark", "tcpflow")
FOLLOWED = 100  # streams that tshark follows in one run
PATIENCE_S = 300
PADDING = 6  # bytes that fill an Ethernet frame behind headers without options
_NODE = re.compile(rb"Node ([01]): (.*):(\d+)$")
_FLOW_FILE = re.compile(r"^(.+)\.(\d{5})-(.+)\.(\d{5})(?:--\d+)?(?:c(\d+))?$")
_MISSING = re.compile(rb"\[\d+ bytes missing in capture file\]\0")

Key = tuple[str, str]  # from, to
Part = bytes | int  # bytes, or the length of what is missing
Found = dict[Key, list[bytes]]


class Difference(NamedTuple):
    """One direction between two ends that is told differently."""

    tool: str
    key: Key
    kind: str
    ours: list[int]
    theirs: list[int]


class Outcome(NamedTuple):
    """Of one capture: how many directions were told how, by tool; and those told differently."""

    path: Path
    counts: dict[str, Counter[str]]
    differences: list[Difference]
    error: str


def end(address: str, port: str | int) -> str:
    return f"{ipaddress.ip_address(address.strip('[]'))} {int(port)}"


def ours(path: Path, *, tunnels: bool) -> tuple[dict[Key, list[list[Part]]], str]:
    """The streams by streamtap, and what is wrong with the file."""
    found: dict[tuple[int, Key], list[Part]] = {}
    error = ""
    try:
        for flow, direction, item in streams(path, tunnels=tunnels):
            ends = flow.local, flow.remote
            source, target = ends if direction is flow.sent else ends[::-1]
            key = end(source.address, source.port), end(target.address, target.port)
            parts = found.setdefault((flow.flow_id, key), [])
            if isinstance(item, Gap):
                parts.append(item.length)
            elif isinstance(item, Chunk):
                length = item.ends[-1] - item.offset
                parts.append(length if item.data is None else bytes(item.data))
    except StreamtapError as failure:
        error = str(failure)
    except Exception as failure:  # a defect of ours is a finding, the others are still compared
        error = f"defect: {failure!r}"
    by_key: dict[Key, list[list[Part]]] = defaultdict(list)
    for (_, key), parts in found.items():
        if any(isinstance(part, bytes) for part in parts):
            by_key[key].append(parts)
    return by_key, error


def joined(parts: Iterable[Part]) -> Iterator[Part]:
    """With neighbouring gaps in one."""
    hole = 0
    for part in parts:
        if isinstance(part, int):
            hole += part
            continue
        if hole:
            yield hole
            hole = 0
        yield part
    if hole:
        yield hole


def as_tshark(parts: Iterable[Part]) -> bytes:
    return b"".join(
        b"[%d bytes missing in capture file]\0" % part if isinstance(part, int) else part
        for part in joined(parts)
    )


def as_tcpflow(parts: Iterable[Part]) -> bytes:
    """What is missing at the end makes no zeros."""
    told = list(joined(parts))
    if told and isinstance(told[-1], int):
        told.pop()
    return b"".join(bytes(part) if isinstance(part, int) else part for part in told)


def by_tshark(path: Path) -> Found | None:
    """None where it can't open the file."""
    shown = ["tshark", "-n", "-r", str(path)]
    listing = [*shown, "-T", "fields", "-e", "tcp.stream"]
    numbers = _run(listing).stdout.replace(b",", b"\n").split()
    streams = max(map(int, numbers), default=-1) + 1
    found: Found = defaultdict(list)
    for first in range(0, max(streams, 1), FOLLOWED):
        command = [*shown, "-q"]
        for stream in range(first, min(first + FOLLOWED, max(streams, 1))):
            command += ["-z", f"follow,tcp,raw,{stream}"]
        blocks = _run(command).stdout.split(b"Follow: tcp,raw\n")[1:]
        if not blocks:
            return None
        # tshark tells them in the reverse order
        for block in sorted(blocks, key=_stream_number):
            for key, data in _of_block(block):
                if data:
                    found[key].append(data)
    return found


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, timeout=PATIENCE_S)


def _stream_number(block: bytes) -> int:
    return int(block.split(b"tcp.stream eq ", 1)[1].split(b"\n", 1)[0])


def _of_block(block: bytes) -> Iterator[tuple[Key, bytes]]:
    nodes: list[str] = []
    said: tuple[list[bytes], list[bytes]] = ([], [])
    for line in block.splitlines():
        node = _NODE.match(line)
        if node and node[2]:  # without an address there is no such stream, or it says nothing
            nodes.append(end(node[2].decode(), node[3].decode()))
        elif len(nodes) == 2 and line[:1] in b"\t0123456789abcdef" and line.strip():
            said[line.startswith(b"\t")].append(bytes.fromhex(line.strip().decode()))
    if len(nodes) == 2:
        yield (nodes[0], nodes[1]), b"".join(said[0])
        yield (nodes[1], nodes[0]), b"".join(said[1])


def by_tcpflow(path: Path) -> Found | None:
    """None where it can't open the file."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["tcpflow", "-q", "-r", str(path), "-o", folder]
        done = _run(command)
        if done.returncode or b"DLT" in done.stderr:
            return None
        numbered: dict[Key, dict[int, bytes]] = defaultdict(dict)
        for file in Path(folder).iterdir():
            name = _FLOW_FILE.match(file.name)
            if not name or not file.stat().st_size:
                continue
            source, source_port, target, target_port, count = name.groups()
            key = end(_plain(source), source_port), end(_plain(target), target_port)
            numbered[key][int(count or 0)] = file.read_bytes()
    return {key: [files[at] for at in sorted(files)] for key, files in numbered.items()}


def _plain(address: str) -> str:
    """Without the zeros that tcpflow puts before the bytes of an IPv4 address."""
    if ":" in address:
        return address
    return ".".join(str(int(byte)) for byte in address.split("."))


def _same_beginnings(mine: Sequence[bytes], theirs: Sequence[bytes]) -> bool:
    """Ours, with a few bytes behind; and a few bytes alone."""
    rest = [other for other in theirs if len(other) > PADDING or other in mine]
    return len(rest) == len(mine) and all(
        other.startswith(one) and len(other) - len(one) <= PADDING
        for one, other in zip(mine, rest, strict=True)
    )


def kind_of(
    mine: Sequence[bytes], theirs: Sequence[bytes], *, bare: bytes, before_gaps: set[int]
) -> str:
    """How two tellings of one direction differ. bare: ours without its gaps; before_gaps: where in
    ours a gap begins."""
    if not theirs:
        return "only streamtap"
    if not mine:
        few = all(len(other) <= PADDING for other in theirs)
        return "the other has padding" if few else "only the other"
    one, other = b"".join(mine), b"".join(theirs)
    if one == other:
        return "split otherwise"
    if bare == _MISSING.sub(b"", other):
        return "same bytes, gaps otherwise"
    if one.startswith(other):
        at_gap = len(other) in before_gaps
        return "the other stops at a gap" if at_gap else "the other has less"
    if _same_beginnings(mine, theirs):
        return "the other has padding"
    if other.startswith(one):
        return "the other has more"
    return "differs"


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The capture, without the compression that not every tool reads."""
    if path.suffix != ".gz":
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=path.stem) as plain:
        with contextlib.suppress(EOFError, OSError), gzip.open(path) as packed:
            shutil.copyfileobj(packed, plain)
        plain.flush()
        yield Path(plain.name)


def compare(path: Path, *, tunnels: bool) -> Outcome:
    mine, error = ours(path, tunnels=tunnels)
    outcome = Outcome(path, {tool: Counter() for tool in TOOLS}, [], error)
    tools = {"tshark": (by_tshark, as_tshark), "tcpflow": (by_tcpflow, as_tcpflow)}
    with unpacked(path) as opened:
        for tool, (read, render) in tools.items():
            try:
                theirs = read(opened)
            except (subprocess.TimeoutExpired, OSError, ValueError) as failure:
                outcome.counts[tool][f"failed: {type(failure).__name__}"] += 1
                continue
            if theirs is None:
                outcome.counts[tool]["not opened"] += 1
                continue
            for difference in differences(tool, mine, theirs, render):
                outcome.counts[tool][difference.kind] += 1
                if not difference.kind.startswith("equal"):
                    outcome.differences.append(difference)
    return outcome


def differences(
    tool: str,
    mine: dict[Key, list[list[Part]]],
    theirs: Found,
    render: Callable[[Iterable[Part]], bytes],
) -> Iterator[Difference]:
    """Each direction, and how its two tellings compare; the equal ones too."""
    for key in sorted({*mine, *theirs}):
        streams_of = mine.get(key, [])
        told, other = [render(parts) for parts in streams_of], theirs.get(key, [])
        parts = [part for parts in streams_of for part in parts]
        if told == other:
            kind = "equal, with gaps" if any(isinstance(part, int) for part in parts) else "equal"
        else:
            bare = b"".join(part for part in parts if isinstance(part, bytes))
            before_gaps = {
                len(render(parts[:at])) for at, part in enumerate(parts) if isinstance(part, int)
            }
            kind = kind_of(told, other, bare=bare, before_gaps=before_gaps)
        yield Difference(tool, key, kind, [len(one) for one in told], [len(one) for one in other])


def captures(folder: Path) -> list[Path]:
    """Those in the folder; of equal ones the first."""
    seen: set[bytes] = set()
    chosen = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and SUFFIXES.search(path.name):
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest not in seen:
                seen.add(digest)
                chosen.append(path)
    return chosen


def table(outcomes: Iterable[Outcome]) -> Iterator[str]:
    total: dict[str, Counter[str]] = {tool: Counter() for tool in TOOLS}
    for outcome in outcomes:
        for tool, counts in outcome.counts.items():
            total[tool] += counts
    kinds = sorted({kind for counts in total.values() for kind in counts})
    yield f"{'flow directions':36}" + "".join(f"{tool:>10}" for tool in TOOLS)
    for kind in kinds:
        yield f"{kind:36}" + "".join(f"{total[tool][kind]:10}" for tool in TOOLS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="compare-captures", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-j", type=int, default=2, metavar="N", help="captures at a time")
    parser.add_argument("--tunnels", action="store_true", help="let streamtap look into tunnels")
    parser.add_argument("--details", type=Path, metavar="FILE", help="differences as JSON lines")
    given = parser.parse_args()
    for tool in TOOLS:
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not installed")
    chosen = captures(given.folder)
    outcomes = []
    with ProcessPoolExecutor(given.j) as pool:
        for outcome in pool.map(partial(compare, tunnels=given.tunnels), chosen):
            outcomes.append(outcome)
            name = outcome.path.relative_to(given.folder)
            for difference in outcome.differences:
                print(name, *difference, sep="\t")
            if outcome.error:
                print(name, "streamtap", outcome.error, sep="\t")
    if given.details:
        with given.details.open("w") as file:
            for outcome in outcomes:
                relative = str(outcome.path.relative_to(given.folder))
                for difference in outcome.differences:
                    file.write(json.dumps({"file": relative, **difference._asdict()}) + "\n")
    print(f"{len(chosen)} captures", file=sys.stderr)
    print("\n".join(table(outcomes)))


if __name__ == "__main__":
    main()
