"""Which parser a flow gets: by its first bytes, never by its port.

The folder is the registry: every module or package in it without a leading underscore that defines
a `Parser` is one. They are imported when somebody first asks, not before.
"""

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from streamtap.events import Event
from streamtap.model import Direction
from streamtap.protocols._base import Limits, Parser, Verdict

_FALLBACK = "opaque"
_MEMBERS = ("name", "events", "probe", "speaks", "receive", "gap", "end", "held")


@cache
def parsers() -> tuple[type[Parser], ...]:
    """All parsers in order of their names, which is the order in which they are asked."""
    package = importlib.import_module(__name__.rpartition(".")[0])
    found: dict[str, type[Parser]] = {}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name.rpartition(".")[2].startswith("_"):
            continue
        for parser in _defined_in(importlib.import_module(module.name)):
            found[parser.name] = parser
    return tuple(found[name] for name in sorted(found))


def _defined_in(module: ModuleType) -> list[type[Parser]]:
    # A package may define its parser in a module of its own; what was imported from elsewhere
    # belongs to another.
    return [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type)
        and f"{thing.__module__}.".startswith(f"{module.__name__}.")
        and all(hasattr(thing, member) for member in _MEMBERS)
    ]


@cache
def event_types() -> tuple[type[Event], ...]:
    """All events that parsers define, for decoders and documentation."""
    return tuple(dict.fromkeys(event for parser in parsers() for event in parser.events))


def by_name(name: str) -> type[Parser]:
    """The parser of that name; ValueError names the known ones."""
    for parser in parsers():
        if parser.name == name:
            return parser
    known = ", ".join(parser.name for parser in parsers())
    raise ValueError(f"unknown protocol {name!r}; known are: {known}")


def way_of(data: bytes) -> Direction | None:
    """Which way these bytes of a flow went, as far as what they say is certain; None if no parser
    can tell, or if two do not agree."""
    told = {way for parser in parsers() if (way := parser.speaks(data)) is not None}
    return told.pop() if len(told) == 1 else None


def detect(
    to_server: bytes, to_client: bytes, *, final: bool = False, limits: Limits | None = None
) -> type[Parser] | None:
    """The parser for a flow that begins with these bytes, or None while they do not decide.

    A parser that says yes has it, the first by name if there are several. If none may still say
    yes, if `final` (no more bytes will come), or once a direction has given `limits.probe` bytes,
    the flow is opaque.
    """
    bound = (limits or Limits()).probe
    exhausted = final or len(to_server) >= bound or len(to_client) >= bound
    to_server, to_client = bytes(to_server[:bound]), bytes(to_client[:bound])
    undecided = False
    for parser in parsers():
        verdict = parser.probe(to_server, to_client)
        if verdict is Verdict.YES:
            return parser
        undecided = undecided or verdict is Verdict.MORE
    if undecided and not exhausted:
        return None
    return by_name(_FALLBACK)
