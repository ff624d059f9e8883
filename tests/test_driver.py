"""What the driver guards itself against, without the kernel."""

import signal

import pytest

from streamtap.driver import time_limit
from streamtap.flows.scope import matches_cmdline, resolve


def test_a_pattern_that_would_take_for_ever_is_given_up() -> None:
    scope = resolve("cmdline", r"(a+)+$")
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError), time_limit(0.05):
        matches_cmdline(scope, b"program\0" + b"a" * 64 + b"b\0")
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_sound_pattern_is_not_disturbed() -> None:
    with time_limit(5):
        assert matches_cmdline(resolve("cmdline", r"fetch\.py"), b"python3\0fetch.py\0")
