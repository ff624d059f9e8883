"""streamtap from Python."""

import gc
import subprocess
import sys

import pytest

import streamtap
from helpers.commands import conversation
from helpers.live import eventually, held_in_kernel, is_in_kernel
from streamtap.errors import NotFound


def test_importing_the_package_is_light() -> None:
    source = (
        "import sys, streamtap; "
        "heavy = {'numpy', 'msgspec', 'argparse', 'typing', 'streamtap.api'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", _with_path(source)], check=True, timeout=20)


def _with_path(source: str) -> str:
    return f"import sys; sys.path[:0] = {sys.path!r}; {source}"


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(streamtap, name) for name in streamtap.__all__)
    assert set(dir(streamtap)) == set(streamtap.__all__)
    with pytest.raises(AttributeError, match="no attribute 'watcher'"):
        _ = streamtap.watcher


def test_a_function_is_not_hidden_by_the_folder_of_its_name() -> None:
    import streamtap.streams.reassembler

    assert streamtap.streams is streamtap.ordered.streams
    assert streamtap.streams.__module__ == "streamtap.ordered"


def test_a_capture_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(NotFound, match=r"no such file: a\.pcap"):
        streamtap.read("a.pcap")
    with pytest.raises(ValueError, match="nothing to read"):
        streamtap.read()


def test_nothing_to_watch_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="nothing to watch"):
        streamtap.monitor()


def test_a_protocol_nobody_knows_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="unknown protocol"):
        streamtap.monitor(command=["true"], protocol="gopher")


def test_a_content_level_nobody_knows_is_told() -> None:
    with pytest.raises(ValueError, match="there are none, meta and full"):
        streamtap.monitor(command=["true"], content="some")  # type: ignore[arg-type]


@pytest.mark.root
def test_the_records_of_a_command_come_typed_and_numbered_to_the_end() -> None:
    with streamtap.monitor(command=conversation()) as records:
        everything = list(records)
    assert [record.number for record in everything] == list(range(1, len(everything) + 1))
    closed = [one.body for one in everything if isinstance(one.body, streamtap.FlowClosed)]
    assert [body.complete for body in closed] == [True, True]


@pytest.mark.root
def test_a_selection_leaves_the_rest_out() -> None:
    bodies = [
        one.body
        for one in streamtap.monitor(
            command=conversation(), providers=["monitor"], flags=["flow_established"]
        )
    ]
    assert bodies
    kinds = (streamtap.FlowOpened, streamtap.FlowIdentified, streamtap.FlowClosed)
    assert all(isinstance(body, kinds) for body in bodies)


@pytest.mark.root
def test_a_scope_is_watched_from_the_moment_the_monitor_is_made() -> None:
    with streamtap.monitor(sys.executable, duration=10, flags=["flow_established"]) as records:
        with subprocess.Popen(conversation(), stdout=subprocess.PIPE) as speaker:
            pid = speaker.pid
        opened = next(
            one for one in records if one.flow and one.flow.app and one.flow.app.pid == pid
        )
    assert isinstance(opened.body, streamtap.FlowOpened)


@pytest.mark.root
def test_left_early_it_detaches_everything_and_ends_its_command() -> None:
    with streamtap.monitor(command=conversation(stay=True)) as records:
        opened = next(one for one in records if isinstance(one.body, streamtap.FlowOpened))
        links = held_in_kernel()["link"]
        assert links
    assert opened.flow
    assert opened.flow.app
    assert list(records) == []
    eventually(lambda: not any(is_in_kernel("link", link) for link in links), "the links are gone")


@pytest.mark.root
def test_forgotten_it_detaches_everything() -> None:
    before = held_in_kernel()["link"]
    records = streamtap.monitor(streamtap.resolve("comm", "no-such-comm"))
    assert held_in_kernel()["link"] > before
    del records
    gc.collect()
    assert held_in_kernel()["link"] == before


@pytest.mark.root
def test_a_time_limit_ends_the_iteration() -> None:
    records = list(streamtap.monitor(streamtap.resolve("comm", "no-such-comm"), duration=0.1))
    assert records[-1].number == len(records)
