"""`read`: what is chosen, and how it ends."""

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import captures
from helpers.captures import Packet
from helpers.commands import STREAMTAP, run
from helpers.live import eventually
from helpers.packets import Talk, ethernet, ipv4, tcp

CAPTURES = Path(__file__).parent.parent / "captures"
ACK = 16
APPS = {71: ("curl", "/usr/bin/curl"), 72: ("wget", "/usr/bin/wget")}
NAME, PATH = 2, 3  # options of a process block


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Two programs, each with a connection."""
    blocks = [captures.section(), captures.interface()]
    for pid, (name, program) in APPS.items():
        blocks.append(captures.process(pid, [(NAME, name.encode()), (PATH, program.encode())]))
        segment = tcp((40_000 + pid, 7000), 1, 1, ACK, b"I am %d" % pid)
        packet = Packet(ethernet(ipv4("10.0.0.1", "192.0.2.1", segment)), pid)
        blocks.append(captures.enhanced(packet, given=[captures.pid_option(pid)]))
    path = tmp_path / "apps.pcapng"
    path.write_bytes(captures.pcapng(*blocks))
    return path


def pids(*words: str) -> set[int]:
    result = run("read", "--json", *words)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    return {record["app"]["pid"] for record in records if record.get("app")}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {71, 72}),
        (("--comm", "curl"), {71}),
        (("--exe", "/usr/bin/w*"), {72}),
        (("--pid", "71", "--comm", "wget"), {71, 72}),
        (("--pid", "5"), set()),
        (("--comm", "curl", "--port", "40072"), set()),
        (("--flow", "2"), {72}),
    ],
)
def test_scopes_choose_by_the_process_of_the_capture(
    capture: Path, words: tuple[str, ...], expected: set[int]
) -> None:
    assert pids(str(capture), *words) == expected


@pytest.mark.parametrize("word", ["--pid=-3", "--pid=x", "--flow=-1", "--flow=x"])
def test_what_no_connection_can_have_is_refused(word: str, capture: Path) -> None:
    result = run("read", word, str(capture))
    assert result.returncode == 2
    assert result.stderr.startswith(f"streamtap: error: argument {word.partition('=')[0]}: ")


def test_a_capture_without_connections_has_a_time() -> None:
    result = run("read", "--json", "--flag", "all", str(CAPTURES / "no-tcp.pcap"))
    times = [json.loads(line)["time_ns"] for line in result.stdout.splitlines()]
    assert len(times) == 2
    assert all(time_ns > 10**18 for time_ns in times)


def test_a_connection_of_before_1970_ends_when_it_was_last_seen(tmp_path: Path) -> None:
    offset_s = -(10**9)
    talk = Talk()
    packets = [*talk.opening(), talk.c(0, b"so old")]
    path = tmp_path / "old.pcapng"
    interface = captures.interface(given=[(14, struct.pack("<q", offset_s))])
    blocks = (captures.enhanced(Packet(ethernet(one), 10**9)) for one in packets)
    path.write_bytes(captures.pcapng(captures.section(), interface, *blocks))
    result = run("read", "--json", str(path))
    times = {json.loads(line)["time_ns"] // 10**9 for line in result.stdout.splitlines()}
    assert times == {offset_s + 1}


def test_a_cut_capture_is_read_and_then_told(capture: Path) -> None:
    capture.write_bytes(capture.read_bytes()[:-3])
    result = run("read", str(capture), "--json")
    assert result.returncode == 1
    assert '"pid":71' in result.stdout
    error, summary = result.stderr.splitlines()
    assert error.startswith(f"streamtap: error: {capture}: ")
    assert " at offset " in error
    assert summary.startswith("streamtap: 1 flow")


# Runs a command, and tells the most memory that one of its processes had. A process of its own, for
# what is started counts what the one that started it has, and these tests may have much.
MEASURED = (
    "import resource, subprocess, sys\n"
    "code = subprocess.run(sys.argv[1:]).returncode\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    "sys.exit(code)"
)
PCAP = captures.pcap([Packet(b"a packet", 10**18)])
PCAPNG = captures.pcapng(captures.section(), captures.interface(), captures.enhanced(Packet(b"")))


@pytest.mark.parametrize(
    ("head", "place"),
    [
        (PCAP, len(PCAP)),
        (PCAPNG, len(PCAPNG)),
        (PCAP + struct.pack("<4I", 10**9, 0, 0xFFFF_FFF0, 60), len(PCAP)),
        (PCAPNG + struct.pack("<2I", 6, 0xFFFF_FFFC), len(PCAPNG)),
        (struct.pack("<3I", 0x0A0D_0D0A, 0xFFFF_FFFC, 0x1A2B_3C4D), 0),
    ],
    ids=["zeros", "zeros in pcapng", "a record of 4 GB", "a block of 4 GB", "a section of 4 GB"],
)
def test_ten_gigabytes_of_claims_are_refused_at_their_place(
    head: bytes, place: int, tmp_path: Path
) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(head)
    os.truncate(path, 10_000_000_000)
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *STREAMTAP, "read", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 1
    error = result.stderr.splitlines()[0]
    assert error.startswith(f"streamtap: error: {path}: ")
    assert error.endswith(f" at offset {place}")
    assert int(result.stdout.splitlines()[-1]) < 250 * 1024  # KiB


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("size", "times"), [(60_000, 1), (5_000, 2)], ids=["once", "twice"])
@pytest.mark.parametrize("word", [b"PNG\r\n", b"GET / HTTP/1.0\r\n\r\n"], ids=["msnp", "http"])
def test_shortest_words_do_not_fill_the_memory(
    word: bytes, size: int, times: int, both: bool, tmp_path: Path
) -> None:
    """Also where each segment comes again, so that none is joined to the next."""
    talk, data = Talk(), word * (size // len(word))
    said = range(0, 5_000_000, len(data))
    packets = talk.opening()
    for at in said:
        packets += [talk.c(at, data)] * times
        if both:
            packets += [talk.s(at, data)] * times
    path = tmp_path / "short.pcap"
    path.write_bytes(captures.pcap(Packet(ethernet(one), 10**18) for one in packets))
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *STREAMTAP, "read", str(path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    told = len(data) * len(said) * (1 + both)
    assert result.stderr.startswith(f"streamtap: 1 flow, {told} bytes, ")
    assert int(result.stdout.splitlines()[-1]) < 250 * 1024  # KiB


def test_what_the_capture_says_it_lost_is_told_and_counts_for_strict(capture: Path) -> None:
    lost = captures.enhanced(Packet(b""), given=[(4, (3).to_bytes(8, "little"))])
    capture.write_bytes(capture.read_bytes() + lost + captures.statistics(ifdrop=2, osdrop=5))
    result = run("read", str(capture), "--strict")
    assert result.returncode == 8
    told = "streamtap: lost: 7 packets that the capture itself dropped"
    assert result.stderr.splitlines()[-1] == told


def test_what_is_no_capture_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are only notes, nothing more")
    result = run("read", str(path))
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == (f"streamtap: error: {path}: is text, not a capture")


def test_why_there_is_nothing_in_a_capture_is_told(tmp_path: Path) -> None:
    path = tmp_path / "wireless.pcap"
    packets = [Packet(bytes(80)), Packet(bytes(90))]
    path.write_bytes(captures.pcap(packets, link=127))
    result = run("read", str(path))
    assert (result.returncode, result.stdout) == (0, "")
    assert "of 2 packets: 2 of link type 127, which is not read\n" in result.stderr


def test_packets_of_an_interface_that_was_never_described_are_not_guessed_at(
    tmp_path: Path,
) -> None:
    """Though they look as what a link header may lead to."""
    packet = Packet(ipv4("10.0.0.1", "192.0.2.1", tcp((40_000, 7000), 1, 1, ACK, b"hidden")))
    llc = packet._replace(data=bytes.fromhex("aaaa030000000800") + packet.data)
    path = tmp_path / "undescribed.pcapng"
    path.write_bytes(captures.pcapng(captures.section(), captures.enhanced(llc, interface=3)))
    result = run("read", str(path))
    assert result.stdout == ""
    assert "1 of an interface that the capture does not describe\n" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"), [(("--extract", "folder"), True), (("-o", "x.jsonl"), True), ((), False)]
)
def test_a_terminal_that_shows_nothing_else_tells_how_far_a_long_file_was_read(
    tmp_path: Path, words: tuple[str, ...], told: bool
) -> None:
    talk = Talk()
    one = Packet(ethernet(talk.c(0, bytes(60_000))))
    path = tmp_path / "long.pcap"
    with path.open("wb") as file:
        file.write(captures.pcap([]))
        record = captures.pcap([one])[24:]
        for _ in range(10):
            file.write(record * 50)
    ours, theirs = os.openpty()
    command = [*STREAMTAP, "read", str(path), *words]
    # Told each half of a second: what comes in between is as if nothing were read.
    script = "import streamtap.cli.reading as r, sys; r.PROGRESS_S = 0; sys.argv = sys.argv[1:]; "
    command[1:3] = ["-c", script + "from streamtap.cli import main; sys.exit(main())", "streamtap"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=tmp_path) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while piece := os.read(ours, 1 << 16):
                shown += piece
    os.close(ours)
    assert process.returncode == 0, shown
    assert (re.search(rb"\r *\d+%", shown) is not None) is told


@pytest.mark.parametrize("kept", [0, 10, -5], ids=["nothing", "part of the header", "part of it"])
def test_a_pipe_that_nobody_wants_to_read_further_is_not_damaged(
    capture: Path, tmp_path: Path, kept: int
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = [*STREAMTAP, "read", str(fifo)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        fifo.open("wb", buffering=0) as writer,
    ):
        writer.write(capture.read_bytes()[:kept])
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert (process.returncode, b"error" in told) == (0, False), told


@pytest.mark.parametrize("before", [0, 1, 30], ids=["nothing", "a byte", "part of the header"])
def test_a_pipe_whose_bytes_come_late_is_read(capture: Path, before: int) -> None:
    """As from `tcpdump -w -` on a host where nothing happens yet."""
    command = [*STREAMTAP, "read", "--json", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(capture.read_bytes()[:before])
        process.stdin.flush()
        status = Path(f"/proc/{process.pid}/status")

        def waits() -> int:
            """How often it has waited; 0 while it does something, or once it has ended."""
            text = status.read_text()
            count = re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", text)
            return int(count[1]) if count and "State:\tS" in text else 0

        maps = Path(f"/proc/{process.pid}/maps")
        eventually(lambda: "multiarray" in maps.read_text() and waits(), "it waits for its input")
        first = waits()
        # Each look at an input that has nothing gives up the processor once.
        eventually(lambda: process.poll() is not None or waits() > first + 2, "it looked again")
        told, said = process.communicate(capture.read_bytes()[before:], timeout=30)
    assert process.returncode == 0, said
    apps = [json.loads(line).get("app") for line in told.splitlines()]
    assert {app["pid"] for app in apps if app} == {71, 72}
