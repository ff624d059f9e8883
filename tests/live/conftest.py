"""Programs and watches that are gone after the test, however it went."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.live import Puppet, Watcher, close_all, copy_interpreter
from streamtap.flows.scope import Scope


@pytest.fixture
def puppet() -> Iterator[Callable[..., Puppet]]:
    """Starts a program to be told what to do; arguments as for `Puppet`."""
    made: list[Puppet] = []

    def start(*arguments: Any, **options: Any) -> Puppet:
        made.append(Puppet(*arguments, **options))
        return made[-1]

    yield start
    close_all(made)


@pytest.fixture
def client(puppet: Callable[..., Puppet]) -> Puppet:
    return puppet()


@pytest.fixture
def server(puppet: Callable[..., Puppet]) -> Puppet:
    return puppet()


@pytest.fixture
def watching() -> Iterator[Callable[..., Watcher]]:
    """Starts a watch on scopes; options as for `Watch`."""
    made: list[Watcher] = []

    def start(*scopes: Scope, keep_bytes: bool = False, **options: Any) -> Watcher:
        made.append(Watcher(*scopes, **options))
        if keep_bytes:
            made[-1].keep_bytes()
        return made[-1].start()

    yield start
    close_all(made)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The file of a program that nobody else on the machine runs."""
    return copy_interpreter(tmp_path / "chatter")
