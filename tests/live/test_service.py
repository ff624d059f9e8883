"""The service for real: its processes, their rights, and what becomes of what they watch."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from helpers.live import Puppet, copy_interpreter, eventually, join, leave, say
from helpers.places import environment_of, place
from helpers.services import RUN, Service, is_alive, open_bpf
from streamtap.capture.pins import Pins
from streamtap.errors import Busy, StreamtapError
from streamtap.events import FlowClosed, FlowOpened, Record, StreamGap
from streamtap.service.client import new_filter
from streamtap.service.paths import Paths
from streamtap.service.registry import Registry
from streamtap.service.state import Recorded
from streamtap.service.stream import Records

pytestmark = pytest.mark.root


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    with place(tmp_path) as made:
        yield made


@pytest.fixture
def service(paths: Paths) -> Iterator[Service]:
    with Service(paths) as made:
        yield made


@pytest.fixture
def speaker(program: Path, puppet: Callable[..., Puppet]) -> Puppet:
    """A program that filters of these tests are about."""
    return puppet(program)


def until(records: Records, kind: type, count: int = 1) -> list[Record]:
    """Reads until so many of a kind have come; all that came."""
    found: list[Record] = []

    def came() -> bool:
        found.extend(records.wait(0.2))
        assert not records.ended, f"the session ended: {found}"
        return sum(isinstance(record.body, kind) for record in found) >= count

    eventually(came, f"{count} {kind.__name__}, but {found}")
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def told(recording: Path, event: bytes) -> int:
    """How many records of a kind are written."""
    return recording.read_bytes().count(b'"%s"' % event) if recording.exists() else 0


def test_a_filter_and_a_session_give_the_records_of_a_connection(
    service: Service, program: Path, speaker: Puppet, server: Puppet, tmp_path: Path
) -> None:
    with service.client() as client:
        client.add([str(program)])
        client.start_trace("chat", outputs=[tmp_path / "chat.jsonl"])
        with client.records() as records:
            join(speaker, server)
            say(speaker, server, b"hello")
            leave(speaker, server)
            came = until(records, FlowClosed)
        (closed,) = [one.body for one in came if isinstance(one.body, FlowClosed)]
        assert (closed.complete, closed.sent_total) == (True, 5)
        assert [one.number for one in came] == list(range(1, len(came) + 1))
    assert service.stop() == 0
    events = [line["event"] for line in lines_of(tmp_path / "chat.jsonl")]
    assert {"flow.opened", "flow.closed", "control.request", "init.stopped"} <= set(events)
    assert not service.log.replace("streamtap: ", "").strip(), service.log


def test_the_parser_has_no_right_and_the_others_no_more_than_they_need(
    service: Service, program: Path, tmp_path: Path
) -> None:
    with service.client() as client:
        client.add([str(program)])
        client.start_trace("chat", outputs=[tmp_path / "chat.jsonl"])
        eventually(lambda: client.status().recorder_pids, "a recorder")
        (recorder,) = client.status().recorder_pids

    def status(pid: int) -> dict[str, list[str]]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}

    def is_confined() -> bool:
        return status(recorder)["Seccomp"] == ["2"]

    eventually(is_confined, "the recorder is confined")
    for pid in (service.parser_pid, recorder):
        about = status(pid)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(about[name][0], 16) == 0, (pid, name)
        assert about["NoNewPrivs"] == ["1"]
        assert about["Seccomp"] == ["2"]
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        assert not {"PATH", "HOME"} & {one.partition("=")[0] for one in environment}
    assert "0" not in status(service.parser_pid)["Uid"] + status(service.parser_pid)["Gid"]
    assert len(set(open_bpf(service.parser_pid))) == 2, "the two rings"
    assert all(one.startswith("map_id") for one in open_bpf(service.parser_pid))
    assert open_bpf(recorder) == []


def test_stopping_disturbs_no_connection_and_the_next_start_states_what_passed_unseen(
    service: Service, program: Path, speaker: Puppet, server: Puppet
) -> None:
    with service.client() as client:
        client.add([str(program)])
    join(speaker, server)
    say(speaker, server, b"seen")
    assert service.stop() == 0
    say(speaker, server, b"nobody saw this")
    service.again()
    with service.client() as client:
        assert client.status().unseen_bytes == len(b"nobody saw this")
        with client.records() as records:
            say(speaker, server, b"seen again")
            leave(speaker, server)
            came = until(records, FlowClosed)
    assert [one.body.midstream for one in came if isinstance(one.body, FlowOpened)] == [True]
    gaps = [one.body for one in came if isinstance(one.body, StreamGap)]
    assert [(gap.offset, gap.length, gap.cause) for gap in gaps] == [(0, 19, "midstream")]
    (closed,) = [one.body for one in came if isinstance(one.body, FlowClosed)]
    assert (closed.sent_total, closed.missing) == (29, 19)


def test_a_session_that_is_defined_while_the_service_is_stopped_records_from_its_first_moment(
    paths: Paths, program: Path, speaker: Puppet, server: Puppet, tmp_path: Path
) -> None:
    from streamtap.service.protocol import NewFilter

    output = tmp_path / "early.jsonl"
    with Registry(paths) as registry:
        registry.add([NewFilter(kind="exe", given=str(program))])
        registry.add_session(Recorded(name="early", selection=(), outputs=(str(output),)))
    with Service(paths) as service:
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        eventually(lambda: b"flow.closed" in output.read_bytes(), "it is recorded")
        assert service.stop() == 0
    lines = lines_of(output)
    assert lines[0]["event"] == "init.started"
    assert lines[-1]["event"] == "init.stopped"
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))


def test_what_is_said_is_never_recorded_without_a_record_of_who_asked_for_it(
    paths: Paths, tmp_path: Path
) -> None:
    meta, full = tmp_path / "meta.jsonl", tmp_path / "full.jsonl"
    with Registry(paths) as registry:  # while no service could record it
        registry.add_session(Recorded(name="meta", selection=(), outputs=(str(meta),)))
        registry.add_session(
            Recorded(name="full", selection=(), outputs=(str(full),), content="full")
        )
    with Service(paths) as service:
        assert service.stop() == 0
    for output in (meta, full):
        asked = [line for line in lines_of(output) if line["event"] == "control.request"]
        told = [(one["request"], one["user"], one["uid"]) for one in asked]
        assert ("trace_start full, content full", "root", 0) in told
        assert not any("trace_start meta" in request for request, _, _ in told)


def test_a_parser_that_is_killed_is_replaced_and_every_session_goes_on(
    service: Service, program: Path, speaker: Puppet, server: Puppet, tmp_path: Path
) -> None:
    recording = tmp_path / "chat.jsonl"
    with service.client() as client:
        client.add([str(program)])
        client.start_trace("chat", outputs=[recording])
        join(speaker, server)
        with client.records() as records:
            say(speaker, server, b"one")
            until(records, FlowOpened)
            os.kill(service.parser_pid, 9)
            say(speaker, server, b"two")
            leave(speaker, server)
            came = until(records, FlowClosed)
            eventually(lambda: client.status().parser_restarts == 1, "it is counted")
            eventually(lambda: client.status().confined, "the new one is confined")
    (closed,) = [one.body for one in came if isinstance(one.body, FlowClosed)]
    assert (closed.reason, closed.sent_total, closed.received_total) == ("fin", 6, 0)
    assert closed.sent + closed.sent_counted + (closed.missing or 0) == 6
    assert not is_alive(service.parser_pid)
    assert service.stop() == 0
    numbers = [line["number"] for line in lines_of(recording)]
    assert numbers == sorted(set(numbers)), "no number is given twice"


def test_a_service_that_is_killed_leaves_callouts_that_the_next_one_adopts(
    service: Service, program: Path, speaker: Puppet, server: Puppet, tmp_path: Path
) -> None:
    with service.client() as client:
        client.add([str(program)])
        client.start_trace("chat", outputs=[tmp_path / "chat.jsonl"])
    join(speaker, server)
    say(speaker, server, b"one")
    service.kill()
    say(speaker, server, b"two")  # nobody reads, but there is room for it
    service.again()
    say(speaker, server, b"three")
    leave(speaker, server)
    recording = tmp_path / "chat.jsonl"
    eventually(lambda: b"flow.closed" in recording.read_bytes(), "it is recorded")
    closed = next(line for line in lines_of(recording) if line["event"] == "flow.closed")
    assert closed["sent_total"] == 11
    # What the dead one had read is missing from what the next one knows, and stated.
    assert closed["sent"] + closed.get("sent_counted", 0) + closed["missing"] == 11
    assert closed["missing"] <= 3
    with service.client() as client:
        assert client.status().unseen_bytes == 0
        assert [one.name for one in client.filters()] == [program.name]


def test_connections_that_end_while_no_service_runs_are_closed_by_the_next_one(
    service: Service, program: Path, speaker: Puppet, server: Puppet, tmp_path: Path
) -> None:
    recording = tmp_path / "chat.jsonl"
    with service.client() as client:
        client.add([str(program)])
        client.start_trace("chat", outputs=[recording])
    for name in ("s", "t"):
        join(speaker, server, name=name)
        say(speaker, server, b"one", name=name)
    eventually(lambda: told(recording, b"flow.opened") == 2, "they are told")
    service.kill()
    say(speaker, server, b"unread")
    leave(speaker, server)
    service.again()
    eventually(lambda: told(recording, b"flow.closed") == 1, "its end is told")
    leave(speaker, server, name="t")
    eventually(lambda: told(recording, b"flow.closed") == 2, "that of the other too")
    assert service.stop() == 0
    lines = lines_of(recording)
    first, second = (line for line in lines if line["event"] == "flow.closed")
    assert (first["reason"], first["sent_total"], second["sent_total"]) == ("fin", 9, 3)
    for closed in (first, second):
        seen = closed["sent"] + closed.get("sent_counted", 0)
        assert seen + closed["missing"] == closed["sent_total"]
    assert first["missing"] <= 3
    apps = {json.dumps(line["app"]) for line in lines if "flow" in line}
    assert len(apps) == 1, "the second service knows whose they are"


def test_there_is_one_service_at_a_time(service: Service) -> None:
    second = subprocess.run(
        [sys.executable, "-P", "-c", RUN],
        env=environment_of(service.paths),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "AlreadyRunning" in second.stderr
    with service.client() as client:
        assert client.status().pid == service.process.pid


def test_a_service_whose_folder_is_removed_can_be_reached_again(
    service: Service, program: Path
) -> None:
    with service.client() as client:
        client.add([str(program)])
    for swept in (service.paths.run, service.paths.control):
        shutil.rmtree(swept) if swept.is_dir() else swept.unlink()
        eventually(service.paths.control.is_socket, "it is there again")
        with service.client() as client:
            assert client.status().pid == service.process.pid
        with pytest.raises(Busy):
            Registry(service.paths)


def test_a_verb_that_holds_the_lock_for_a_moment_ends_no_service(service: Service) -> None:
    with service.client() as client:
        service.paths.lock.unlink()
        with open(service.paths.lock, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = client.status().uptime_s
            eventually(lambda: client.status().uptime_s > before + 2.5, "it looked twice")
        with service.paths.lock.open() as lock:
            eventually(lambda: not is_free(lock), "it has the lock again")
        assert client.status().pid == service.process.pid


def is_free(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def test_nobody_takes_the_callouts_of_a_service_that_is_only_stopped(
    service: Service, program: Path
) -> None:
    """With its folder removed another one finds neither lock nor socket."""
    service.process.send_signal(signal.SIGSTOP)
    shutil.rmtree(service.paths.run)
    with Registry(service.paths) as second, pytest.raises(Busy, match="another service"):
        second.add([new_filter("exe", str(program))])
    service.process.send_signal(signal.SIGCONT)
    eventually(service.paths.control.is_socket, "it is there again")
    with service.client() as client:
        client.add([str(program)])
        assert client.status().pid == service.process.pid


def test_a_removal_that_cannot_be_written_down_is_refused_and_all_goes_on(
    service: Service, program: Path
) -> None:
    with service.client() as client:
        client.add([str(program)])
        (service.paths.state / ".filters.json.new").mkdir()  # where it would be written first
        with pytest.raises(StreamtapError, match="cannot be written"):
            client.remove()
        assert [one.scope.given for one in client.filters()] == [str(program)]
        assert client.status().filters == 1
    assert Pins(service.paths.pins).links


def test_disabling_one_filter_ends_its_flows_and_enabling_begins_them_anew(
    service: Service, program: Path, speaker: Puppet, server: Puppet
) -> None:
    with service.client() as client:
        (added,) = client.add([str(program)])
        with client.records() as records:
            join(speaker, server)
            say(speaker, server, b"one")
            until(records, FlowOpened)
            client.disable(added.name)
            came = until(records, FlowClosed)
            assert [x.body.reason for x in came if isinstance(x.body, FlowClosed)] == ["removed"]
            say(speaker, server, b"not seen")
            client.enable(added.name)
            came = until(records, FlowOpened)
            assert [x.body.midstream for x in came if isinstance(x.body, FlowOpened)] == [True]
            leave(speaker, server)
            until(records, FlowClosed)


def test_a_reader_that_stalls_loses_its_own_records_and_sees_how_many(
    service: Service, program: Path, speaker: Puppet, server: Puppet
) -> None:
    with service.client() as client:
        client.add([str(program)])
        with client.records("all:all") as stalled, client.records("all:all") as quick:
            join(speaker, server)
            server.begin("discard(s)")
            speaker.begin("for _ in range(20000): s.sendall(b'x'); receive(s, 0)")
            speaker.result()
            speaker.do("s.shutdown(socket.SHUT_WR)")
            server.result()
            leave_quietly(speaker, server)
            came = until(quick, FlowClosed)
            assert quick.missed == 0
            assert [one.number for one in came] == list(range(1, len(came) + 1))
            assert until(stalled, FlowClosed)
            assert stalled.missed >= 0


def leave_quietly(speaker: Puppet, server: Puppet) -> None:
    server.do("s.close()")
    speaker.do("s.close()")


def test_two_hundred_sessions_at_once(
    service: Service, program: Path, speaker: Puppet, server: Puppet, tmp_path: Path
) -> None:
    with service.client() as client:
        client.add([str(program)])
        for number in range(200):
            client.start_trace(f"s{number}", "notify", outputs=[tmp_path / f"{number}.jsonl"])
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        # The last record of the flow that they want.
        eventually(
            lambda: all((tmp_path / f"{number}.jsonl").stat().st_size for number in range(200)),
            "all have it",
        )
        assert len(client.sessions()) == 200
        assert sum(one.dropped for one in client.sessions()) == 0
        began = time.monotonic()
        for number in range(200):
            client.stop_trace(f"s{number}")
        assert client.sessions() == ()
        assert time.monotonic() - began < 60
    texts = {(tmp_path / f"{number}.jsonl").read_bytes() for number in range(200)}
    assert len(texts) == 1


def test_a_restart_loses_no_byte_of_what_is_said_meanwhile(
    service: Service, program: Path, speaker: Puppet, server: Puppet, tmp_path: Path
) -> None:
    recording = tmp_path / "chat.jsonl"
    with service.client() as client:
        client.add([str(program)])
        client.start_trace("chat", outputs=[recording])
    join(speaker, server)
    server.begin("discard(s)")
    # About a second; the ring has room for what passes between two services.
    speaker.begin("import time\nfor _ in range(1000): s.sendall(b'x' * 1000); time.sleep(0.001)")
    with service.client() as client:
        eventually(lambda: client.status().records > 10, "it is seen")
        client.stop(hold=True)
        client.wait_until_ended()
    assert service.process.wait(20) == 0
    service.again()
    speaker.result()
    speaker.do("s.shutdown(socket.SHUT_WR)")
    assert server.result() == 1_000_000
    server.do("s.close()")
    speaker.do("s.close()")
    eventually(lambda: b'"reason":"fin"' in recording.read_bytes(), "it is told")
    with service.client() as client:
        assert client.status().unseen_bytes == 0
    first, last = [line for line in lines_of(recording) if line["event"] == "flow.closed"]
    assert (first["reason"], last["reason"]) == ("end", "fin")
    told = [line["sent"] + line.get("sent_counted", 0) for line in (first, last)]
    assert last["sent_total"] == 1_000_000
    # A range that the callouts were counting is told by both.
    assert sum(told) >= 1_000_000
    assert last["missing"] == 1_000_000 - told[1] <= told[0], "what the first one saw"


def test_after_a_reboot_the_filters_are_in_force_again(
    service: Service, program: Path, speaker: Puppet, server: Puppet
) -> None:
    """A reboot takes what the kernel had, and the folder of what runs."""
    with service.client() as client:
        client.add([str(program)])
    assert service.stop() == 0
    Pins(service.paths.pins).remove()
    for left in service.paths.run.iterdir():
        left.unlink()
    service.again()
    with service.client() as client, client.records() as records:
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        until(records, FlowClosed)
        assert client.status().unseen_bytes == 0


def test_a_program_whose_file_is_replaced_stays_in_its_filter(
    service: Service, program: Path, puppet: Callable[..., Puppet], server: Puppet
) -> None:
    def replace() -> None:
        new = copy_interpreter(program.with_name("new"))
        new.replace(program)

    def is_seen() -> None:
        with service.client() as client, client.records() as records:
            speaker = puppet(program)
            join(speaker, server)
            say(speaker, server, b"hello")
            leave(speaker, server)
            until(records, FlowClosed)

    with service.client() as client:
        client.add([str(program)])
    replace()  # while it runs
    is_seen()
    assert service.stop() == 0
    replace()  # while it does not
    speaker = puppet(program)
    service.again()
    is_seen()
    with service.client() as client, client.records() as records:
        join(speaker, server)
        leave(speaker, server)
        until(records, FlowClosed)


def test_a_filter_may_forbid_what_a_session_asks_for(
    service: Service, program: Path, speaker: Puppet, server: Puppet
) -> None:
    asked = [new_filter("exe", str(program), content="meta", protocol="http")]
    with service.client() as client:
        client.add(asked)
        with client.records(content="full") as records:
            join(speaker, server)
            say(speaker, server, b"GET /plan?key=hushhush HTTP/1.1\r\nHost: here\r\n\r\n")
            leave(speaker, server)
            came = until(records, FlowClosed)
    text = str([one.body for one in came])
    assert "forced" in text
    assert "hushhush" not in text


@pytest.mark.parametrize("restarted", [False, True])
def test_a_session_of_a_filter_that_is_gone_records_again_once_the_filter_is_there(
    service: Service,
    program: Path,
    speaker: Puppet,
    server: Puppet,
    tmp_path: Path,
    restarted: bool,
) -> None:
    recording = tmp_path / "chat.jsonl"
    mine = [new_filter("exe", str(program), name="mine")]
    with service.client() as client:
        client.add(mine)
        client.start_trace("chat", outputs=[recording], filters=["mine"])
        client.delete(["mine"])
    if restarted:
        assert service.stop() == 0
        service.again()
    with service.client() as client:
        client.add(mine)
        join(speaker, server)
        say(speaker, server, b"hello")
        leave(speaker, server)
        eventually(lambda: told(recording, b"flow.closed"), f"it records: {service.log}")


FAILS_ONCE = """
import errno, os
from streamtap.driver import Driver
from streamtap.service import tracing
from streamtap.service.registry import Registry
def failing(function):
    def once(*arguments, **named):
        if os.path.exists({at!r}):
            os.unlink({at!r})
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return function(*arguments, **named)
    return once
{owner}.{name} = failing({owner}.{name})
"""


@pytest.mark.parametrize(
    ("owner", "name", "ended"),
    [
        ("os", "pidfd_open", "parser"),
        ("os", "dup", "parser"),
        ("Driver", "list_flows", "parser"),
        ("tracing", "_stream", "recorder"),
        ("os", "dup", "recorder"),
        ("Registry", "refresh", ""),
    ],
)
def test_a_service_that_lacks_descriptors_for_a_moment_goes_on_with_all_it_has(
    paths: Paths,
    program: Path,
    speaker: Puppet,
    server: Puppet,
    tmp_path: Path,
    owner: str,
    name: str,
    ended: str,
) -> None:
    full, recording = tmp_path / "full", tmp_path / "chat.jsonl"
    with Service(paths, FAILS_ONCE.format(at=str(full), owner=owner, name=name)) as service:
        with service.client() as client:
            client.add([str(program)])
            client.start_trace("chat", outputs=[recording])
            (recorder,) = client.status().recorder_pids
        full.touch()
        if ended:
            os.kill(service.parser_pid if ended == "parser" else recorder, signal.SIGKILL)
        eventually(lambda: not full.exists(), "it has failed")

        def records() -> bool:
            join(speaker, server)
            leave(speaker, server)
            assert service.process.poll() is None, service.log
            return told(recording, b"flow.closed") > 0

        eventually(records, f"it records again: {service.log}", pause_s=0.5)


NO_PROCESS = """
import errno, os
from streamtap.service import parsing
start = parsing.start_parser
def refused(*arguments):
    if os.path.exists({at!r}):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return start(*arguments)
parsing.start_parser = refused
parsing.CALM_S = 0.5
"""


def test_a_parser_that_cannot_be_started_for_long_is_started_when_it_can(
    paths: Paths, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    with Service(paths, NO_PROCESS.format(at=str(full))) as service, service.client() as client:
        eventually(lambda: client.status().uptime_s > 1, "it has run for a while", pause_s=0.1)
        full.touch()
        os.kill(service.parser_pid, signal.SIGKILL)
        eventually(lambda: client.status().parser_restarts > 1, "it is tried again", pause_s=0.1)
        assert client.status().parser_pid is None
        full.unlink()
        eventually(lambda: client.status().confined, "it runs again", pause_s=0.1)
        assert service.log.count("cannot be started") < 10, "it is not tried all the time"
