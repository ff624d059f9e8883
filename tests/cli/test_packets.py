"""`read -w`: a capture as pcapng, with what was said."""

import json
import shlex
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from helpers import captures, pcapng
from helpers.commands import STREAMTAP, run
from helpers.packets import Talk, ethernet
from streamtap.model import Closed, Direction, Endpoint, Flow, Opened, Role, Segment
from streamtap.trace import Output
from streamtap.trace.pcapng import Pcapng

BEGIN = 1_795_000_000_000_000_000
RAW_IP = 101


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A classic capture, with times in nanoseconds, of one conversation."""
    ours = tmp_path / "ours.pcapng"
    tap = Pcapng(Output(ours), payload=True, application="test")
    tap.open()
    flow = Flow(1, None, Endpoint("10.0.0.1", 40000), Endpoint("10.0.0.2", 80), Role.CLIENT, BEGIN)
    tap.opened(Opened(flow, (10, 20)), None)
    tap.segment(flow, Segment(1, Direction.TO_SERVER, 10, b"question", BEGIN + 5, acknowledged=20))
    tap.segment(flow, Segment(1, Direction.TO_CLIENT, 20, b"answer", BEGIN + 9, acknowledged=18))
    tap.closed(flow, Closed(1, BEGIN + 12, "fin"))
    tap.close()
    data = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, RAW_IP)
    for kind, body in pcapng.blocks(ours.read_bytes()):
        if kind == pcapng.PACKET:
            high, low, captured, original = struct.unpack_from("<4I", body, 4)
            seconds, nanoseconds = divmod(high << 32 | low, 10**9)
            data += struct.pack("<4I", seconds, nanoseconds, captured, original)
            data += body[20 : 20 + captured]
    path = tmp_path / "classic.pcap"
    path.write_bytes(data)
    return path


def test_a_capture_is_written_as_packets_with_what_was_said(capture: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.pcapng"
    result = run("read", str(capture), "-w", str(path))
    assert (result.returncode, result.stdout) == (0, "")
    assert "headers only" not in result.stderr
    before = pcapng.packets((tmp_path / "ours.pcapng").read_bytes())
    after = pcapng.packets(path.read_bytes())
    assert [one[:7] for one in after] == [one[:7] for one in before]


@pytest.mark.parametrize("years", [-100, -30, -1])
def test_times_before_1970_are_written_as_they_are(years: int, tmp_path: Path) -> None:
    """Also where the connection goes on after that."""
    talk = Talk()
    packets = [*talk.opening(), talk.c(0, b"so old"), talk.s(0, b"so what"), *talk.closing(6, 7)]
    offset_s = years * 365 * 86_400 if years < -1 else -4
    blocks = [
        captures.enhanced(captures.Packet(ethernet(one), at * 10**9))
        for at, one in enumerate(packets)
    ]
    old, new = tmp_path / "old.pcapng", tmp_path / "new.pcapng"
    interface = captures.interface(given=[(14, struct.pack("<q", offset_s))])
    old.write_bytes(captures.pcapng(captures.section(), interface, *blocks))
    assert run("read", str(old), "-w", str(new)).returncode == 0
    times = [
        [
            json.loads(line)["time_ns"]
            for line in run("read", "--json", str(path)).stdout.splitlines()
        ]
        for path in (old, new)
    ]
    assert times[0][:-2] == times[1][:-2]  # the last acknowledgement stands at the end it is of
    assert min(times[1]) == offset_s * 10**9
    if not shutil.which("tshark"):
        return
    shown = subprocess.run(
        ["tshark", "-n", "-r", str(new), "-T", "fields", "-e", "frame.time_epoch"],
        capture_output=True,
        text=True,
        check=True,
    )
    whole = [int(float(line)) for line in shown.stdout.split()]
    assert (min(whole), max(whole)) == (offset_s, offset_s + len(packets) - 2)


def test_what_is_read_is_not_overwritten(capture: Path, tmp_path: Path) -> None:
    link = tmp_path / "other-name.pcapng"
    link.symlink_to(capture)
    before = capture.read_bytes()
    result = run("read", str(capture), "-w", str(link))
    assert result.returncode == 2
    assert result.stderr == f"streamtap: error: -w {link} would overwrite what is read\n"
    assert capture.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("read - -w {0} < {0}", "-w {0}"),
        ("read {0} -o {0}", "-o {0}"),
        ("read {0} --json >> {0}", "standard output"),
        ("read - -w - < {0} >> {0}", "standard output"),
    ],
)
def test_nor_is_it_by_another_way(capture: Path, tmp_path: Path, words: str, what: str) -> None:
    path = capture.rename(tmp_path / "same.jsonl")
    before = path.read_bytes()
    command = " ".join((*map(shlex.quote, STREAMTAP), words.format(path)))
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    told = f"streamtap: error: {what.format(path)} would overwrite what is read\n"
    assert (result.returncode, result.stderr) == (2, told)
    assert path.read_bytes() == before


def test_standard_input_that_is_closed_is_told() -> None:
    command = " ".join((*map(shlex.quote, STREAMTAP), "read - <&-"))
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "streamtap: error: standard input: is closed\n" in result.stderr
