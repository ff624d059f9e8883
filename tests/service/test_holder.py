"""The holder of a monitor as its reader sees it, where there is no kernel to be held."""

import os
import socket
from collections.abc import Callable

import msgspec
import pytest

from helpers.kernels import SIZE
from helpers.live import eventually
from streamtap.command import LaunchError
from streamtap.errors import KernelUnsupported, PermissionMissing, StreamtapError
from streamtap.holding import Hooks, Local
from streamtap.service import link, messages
from streamtap.service.holder import Forked, HolderEnd, Remote
from streamtap.service.link import LinkError

NOWHERE = FileNotFoundError(2, "No such file or directory", "/not/there")


def failing(error: Exception) -> Callable[[], Local]:
    def make() -> Local:
        raise error

    return make


@pytest.mark.parametrize(
    ("error", "message", "hint", "code"),
    [
        (PermissionMissing("no right", "run with sudo"), "no right", "run with sudo", 4),
        (KernelUnsupported("it", "that"), "it is not available: that", "see: streamtap doctor", 5),
        (LaunchError("x", 2), "cannot run x: No such file or directory", "", 127),
        (NOWHERE, "/not/there: No such file or directory", "", 1),
        (ValueError("too many"), "too many", "", 2),
    ],
)
def test_what_fails_there_is_raised_here(
    error: Exception, message: str, hint: str, code: int
) -> None:
    forked = Forked(failing(error))
    with pytest.raises(StreamtapError) as failure:
        Remote(forked, [])
    assert (str(failure.value), failure.value.hint) == (message, hint)
    assert failure.value.exit_code == code
    forked.close()
    assert not os.path.exists(f"/proc/{forked.pid}")


def test_a_fault_of_ours_is_no_news_for_a_person(capfd: pytest.CaptureFixture[str]) -> None:
    forked = Forked(failing(ZeroDivisionError("a fault")))
    with pytest.raises(LinkError):
        Remote(forked, [])
    forked.close()
    assert "ZeroDivisionError: a fault" in capfd.readouterr().err


def test_a_holder_that_nobody_asks_ends_with_its_link() -> None:
    files = len(os.listdir("/proc/self/fd"))
    forked = Forked(failing(ValueError("nobody hears it")))
    forked.close()
    forked.close()
    eventually(lambda: not os.path.exists(f"/proc/{forked.pid}"), "it is gone")
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize(
    "message", [messages.Hook(1), messages.Unhook(1), messages.RoomMade()], ids=lambda m: str(m)
)
def test_a_parser_may_not_say_what_a_reader_may(message: messages.Message) -> None:
    data = messages.encode(message)
    assert messages.decode_from_reader(data) == message
    with pytest.raises(msgspec.ValidationError):
        messages.decode_from_parser(data)


@pytest.mark.parametrize(
    "message", [messages.Gone("session"), messages.Ready(True, 1), messages.Setup(SIZE, SIZE)]
)
def test_a_reader_may_not_say_what_a_parser_or_a_keeper_may(message: messages.Message) -> None:
    ours, theirs = link.make()
    end = HolderEnd(ours)
    theirs.send(messages.encode(message), socket.MSG_NOSIGNAL)
    with pytest.raises(LinkError, match="nobody understands"):
        end.serve(Local.__new__(Local))
    theirs.close()
    end.close()


def test_the_scopes_are_put_in_force_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = link.make()
    end = HolderEnd(ours)
    local = Local.__new__(Local)
    monkeypatch.setattr(local, "attach", lambda make_room: Hooks())
    theirs.send(messages.encode(messages.Hook(1)))
    theirs.send(messages.encode(messages.Hook(2)))
    with pytest.raises(LinkError, match="twice"):
        end.serve(local)
    theirs.close()
    end.close()
