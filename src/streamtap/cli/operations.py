"""Filters and stored sessions, by the service where it runs, or on the state itself."""

import contextlib
import time
from collections.abc import Iterator

from streamtap.errors import Busy, NotRunning
from streamtap.service.client import Client
from streamtap.service.paths import Paths
from streamtap.service.protocol import Operations
from streamtap.service.registry import Registry

WAIT_S = 10.0  # for a verb that holds the state, or a service that just begins


@contextlib.contextmanager
def operations() -> Iterator[Operations]:
    """Whichever it is, it stays the one until the end: who holds the state keeps others from it,
    a service that starts too. Raises Busy, PermissionMissing and what the two raise."""
    with _either() as chosen:
        yield chosen


def _either() -> Client | Registry:
    until = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(NotRunning):
            return Client()
        try:
            return Registry(Paths.of_environment())
        except Busy:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def running() -> Client | None:
    """The service, if it runs. Raises PermissionMissing where it may not be asked."""
    try:
        return Client()
    except NotRunning:
        return None
