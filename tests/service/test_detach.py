"""A process in the background, started by a real program that waits for it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import streamtap

SRC = Path(streamtap.__file__).parent.parent
TIMEOUT_S = 30.0
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
from streamtap.errors import *
from streamtap.service.detach import detach

here = Path(sys.argv[1])
def note(**facts):
    (here / "new").write_text(json.dumps({"pid": os.getpid(), **facts}))
    (here / "new").rename(here / "facts")

def wait_for_end():
    signal.pause()
    return 0
"""


def eventually(path: Path) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.002)
    return json.loads(path.read_text())


def gone(pid: int) -> bool:
    """Whether a process ends in time. One that nobody reaped yet has ended too."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.002)
    return False


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """Where the process in the background notes who it is; it is gone after the test."""
    yield tmp_path
    if (tmp_path / "facts").exists():
        with suppress(ProcessLookupError):
            os.kill(json.loads((tmp_path / "facts").read_text())["pid"], signal.SIGKILL)


def start(code: str, here: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PRELUDE + textwrap.dedent(code), str(here)],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
        **options,
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return out


REPORT = """
try:
    print(detach(run, **options))
except StreamtapError as error:
    print(json.dumps([type(error).__name__, str(error), error.hint, error.exit_code]))
"""


def failure(code: str, here: Path, options: str = "") -> list[Any]:
    code = textwrap.dedent(code) + f"options = dict({options})\n" + REPORT
    told: list[Any] = json.loads(output(start(code, here)))
    return told


def test_who_starts_it_waits_until_it_is_ready_and_no_longer(here: Path) -> None:
    # An end of the starter's output is inherited, as by `streamtap start 3>&1 | cat`.
    told = output(
        start(
            """
            os.set_inheritable(os.dup2(1, 9), True)
            def run(ready):
                note(sid=os.getsid(0), cwd=os.getcwd(), parent=os.getppid(),
                     files=[os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)])
                print("a word for the log")
                sys.stdout.flush()
                ready("2 filters")
                return wait_for_end()
            pid, status = detach(run, log=here / "log")
            print(json.dumps([pid, status, os.getsid(0)]))
            """,
            here,
        )
    )
    pid, status, session = json.loads(told)
    facts = eventually(here / "facts")
    assert status == "2 filters"
    assert facts["pid"] == pid
    assert facts["sid"] not in (session, pid)  # its own session, and no leader that gets a terminal
    assert facts["cwd"] == "/"
    assert facts["files"] == ["/dev/null", str(here / "log"), str(here / "log")]
    assert (here / "log").read_text() == "a word for the log\n"
    assert (here / "log").stat().st_mode & 0o777 == 0o600
    os.kill(pid, 0)
    os.kill(pid, signal.SIGTERM)
    assert gone(pid)


def test_an_error_before_it_is_ready_is_raised_where_it_was_started(here: Path) -> None:
    told = failure(
        """
        def run(ready):
            note()
            raise PermissionMissing("CAP_BPF is missing", "run with sudo")
        """,
        here,
    )
    assert told == ["StreamtapError", "CAP_BPF is missing", "run with sudo", 4]
    assert gone(eventually(here / "facts")["pid"])


def test_an_error_of_our_own_is_raised_too_and_its_traceback_logged(here: Path) -> None:
    told = failure(
        """
        def run(ready):
            return 1 // 0
        """,
        here,
        "log=here / 'log'",
    )
    assert told[1].startswith("the service failed: ZeroDivisionError")
    assert told[3] == 1
    assert "return 1 // 0" in (here / "log").read_text() or "in run" in (here / "log").read_text()


@pytest.mark.parametrize(
    "end", ["return 3", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)"]
)
def test_an_end_without_a_word_is_an_error(end: str, here: Path) -> None:
    told = failure(f"def run(ready):\n    {end}\n", here)
    assert told[:2] == ["ServiceError", "the service ended before it was ready"]
    assert "--foreground" in told[2]


def test_one_that_does_not_get_ready_is_ended(here: Path) -> None:
    told = failure(
        """
        def run(ready):
            note()
            return wait_for_end()
        """,
        here,
        "timeout_s=0.5",
    )
    assert told[:2] == ["ServiceError", "the service was not ready within 0.5 s"]
    assert gone(eventually(here / "facts")["pid"])


def test_one_that_does_not_stop_either_is_killed(here: Path) -> None:
    told = failure(
        """
        from streamtap.service import detach as module
        module.GRACE_S = 0.2
        def run(ready):
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
            note()
            return wait_for_end()
        """,
        here,
        "timeout_s=0.5",
    )
    assert told[0] == "ServiceError"
    assert gone(eventually(here / "facts")["pid"])


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_waiting_one_is_killed(by: signal.Signals, here: Path) -> None:
    starter = start(
        """
        def run(ready):
            try:
                note()
                return wait_for_end()
            finally:
                (here / "cleaned").write_text("true")
        detach(run)
        """,
        here,
    )
    pid = eventually(here / "facts")["pid"]
    starter.send_signal(by)
    starter.communicate(timeout=TIMEOUT_S)
    assert gone(pid)
    assert eventually(here / "cleaned")


def test_once_ready_it_outlives_who_started_it(here: Path) -> None:
    starter = start(
        """
        def run(ready):
            ready("")
            note()
            return wait_for_end()
        detach(run)
        signal.pause()
        """,
        here,
    )
    pid = eventually(here / "facts")["pid"]
    starter.kill()
    starter.communicate(timeout=TIMEOUT_S)
    os.kill(pid, 0)
    os.kill(pid, signal.SIGTERM)
    assert gone(pid)


def test_standard_streams_may_be_closed(here: Path) -> None:
    code = """
        import subprocess
        def run(ready):
            print("logged", flush=True)
            ready("")
            note()
            return 0
        for fd in (0, 1, 2):
            os.close(fd)
        sys.stdin = sys.stdout = sys.stderr = None
        detach(run, log=here / "log")
    """
    process = start(code, here)
    process.communicate(timeout=TIMEOUT_S)
    assert gone(eventually(here / "facts")["pid"])
