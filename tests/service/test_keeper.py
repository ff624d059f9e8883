"""What the keeper tells the others of filters."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from streamtap.flows import Scope
from streamtap.service.keeper import Keeper
from streamtap.service.protocol import AddFilters, NewFilter
from streamtap.service.state import Filter


def a_filter(name: str, bit: int) -> Filter:
    return Filter(name=name, scope=Scope("comm", name), bit=bit, protocol=None, content=None)


class Disk:
    """A registry that cannot write down what was prepared."""

    mask = 1

    def all_filters(self) -> list[Filter]:
        return [a_filter("old", 0)]

    def add(
        self,
        asked: Sequence[NewFilter],
        *,
        temporary: bool,
        prepared: Callable[[Sequence[Filter]], None],
    ) -> Sequence[Filter]:
        prepared([a_filter(one.given, 1 + at) for at, one in enumerate(asked)])
        raise OSError("no space left")


def test_filters_that_could_not_be_added_are_taken_back_from_parser_and_sessions() -> None:
    told: list[tuple[list[str], int]] = []
    coming: list[list[str]] = []
    keeper: Any = Keeper.__new__(Keeper)
    keeper._registry = Disk()
    keeper._parser = SimpleNamespace(
        set_filters=lambda filters, mask: told.append(([one.name for one in filters], mask))
    )
    keeper._tracing = SimpleNamespace(
        follow=lambda filters: coming.append([one.name for one in filters])
    )
    request = AddFilters(id=1, filters=(NewFilter(kind="comm", given="new"),))
    with pytest.raises(OSError, match="no space"):
        keeper._add(request, SimpleNamespace())
    assert told == [(["old", "new"], 3), (["old"], 1)]
    assert coming == [["new"], []]
