"""`addcallouts`, `delcallouts`, `list`, `enable`, `disable`: filters that persist."""

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence

from streamtap.cli.options import add_scope_words, check_later, scopes_given
from streamtap.cli.parsing import Arguments, Parser, UsageError, say
from streamtap.cli.tables import add_json, print_json, print_table

TYPE_CHECKING = False  # as `typing` has it, which is not imported: programs start faster
if TYPE_CHECKING:
    from streamtap.service.protocol import Operations
    from streamtap.service.state import Filter

_COLUMNS = ("NAME", "STATE", "SCOPE", "PROTOCOL", "CONTENT", "ADDED")
_DISABLED = "streamtap: everything is disabled; streamtap enable"
_ADD = """
Installs the callouts, which stay until delcallouts removes them: when this command has ended,
while no service runs, and, where systemd runs the machine, after a reboot. With scopes, each
becomes a filter that stays as long. Without any, the callouts are installed and watch nothing."""
_DELETE = """
Removes the filters that are named, or whose scope is given as it was for addcallouts. Without
arguments, or with --all, removes everything: filters, callouts, and the service if it runs.
Connections that are open are not touched. Recordings and trace sessions stay."""


# --- options ---------------------------------------------------------------------------------


def addcallouts_options(parser: Parser) -> None:
    parser.usage = "streamtap addcallouts [SCOPE...] [--name NAME] [OPTION...]"
    parser.description = _ADD.strip()
    parser.epilog = "example: sudo streamtap addcallouts /usr/bin/pidgin --name chat"
    add = parser.add_argument_group(
        "scopes", "Which applications; each becomes a filter. Each may be repeated."
    ).add_argument
    add_scope_words(add, "PATH", "the same as --exe PATH")
    add("-f", "--follow-forks", action="store_true", help="with --pid: its descendants too")
    add = parser.add_argument_group("filter").add_argument
    add("--name", metavar="NAME", help="of the filter; the default is that of the program")
    add("--protocol", metavar="NAME", help="the parser for every connection")
    add(
        "--content",
        choices=("none", "meta", "full"),
        metavar="LEVEL",
        help="the most that any session is told: none, meta or full; the default is what the "
        "session asks for",
    )
    add_json(parser)


def delcallouts_options(parser: Parser) -> None:
    parser.usage = "streamtap delcallouts [NAME|SCOPE...] [--all]"
    parser.description = _DELETE.strip()
    parser.epilog = "example: sudo streamtap delcallouts chat"
    add = parser.add_argument_group("filters").add_argument
    add_scope_words(add, "NAME", "the name of a filter, or its PATH")
    add("--all", action="store_true", help="everything: filters, callouts, the service")


def list_options(parser: Parser) -> None:
    parser.description = "Lists the filters that persist, whether the service runs or not."
    add_json(parser)


def enable_options(parser: Parser) -> None:
    parser.description = "Enables one filter, or everything that was disabled at once."
    _add_name(parser)


def disable_options(parser: Parser) -> None:
    parser.description = (
        "Disables one filter, or everything at once: what is said then is not seen. "
        "Filters stay, and connections go on untouched."
    )
    _add_name(parser)


def _add_name(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a filter; all without it")


# --- what they do ----------------------------------------------------------------------------


def addcallouts(arguments: Arguments) -> int:
    check_later(arguments)
    given = scopes_given(arguments)
    if arguments.follow_forks and not arguments.pid:
        raise UsageError("--follow-forks needs --pid")
    if arguments.name is not None and len(given) != 1:
        raise UsageError("--name needs one scope")
    if arguments.name is not None and not arguments.name.strip():
        raise UsageError("--name needs a name")
    if not given and (arguments.protocol or arguments.content):
        raise UsageError("--protocol and --content need a scope")

    from streamtap.cli.operations import operations
    from streamtap.service.client import new_filter
    from streamtap.trace.text import printable

    asked = [
        new_filter(
            kind,
            text,
            name=arguments.name or "",
            follow_forks=kind == "pid" and arguments.follow_forks,
            protocol=arguments.protocol,
            content=arguments.content,
        )
        for kind, text in given
    ]
    with operations() as chosen:
        added = chosen.add(asked)
        if added:
            _tell_if_disabled(chosen)
    _install_unit()
    if arguments.json:
        print_json([_row(one) for one in added])
        return 0
    for one in added:
        print(f"added {printable(one.name)}: {printable(str(one.scope))}")
    if not asked:
        print("the callouts are installed")
    return 0


def delcallouts(arguments: Arguments) -> int:
    check_later(arguments)
    given = scopes_given(arguments)
    if arguments.all and given:
        raise UsageError("--all and the name or scope of a filter contradict each other")

    from streamtap.cli.operations import operations
    from streamtap.trace.text import printable

    if not given:
        return _remove_all()
    with operations() as chosen:
        names = _named(chosen.filters(), given)
        gone = chosen.delete(names)
    for one in gone:
        print(f"removed {printable(one.name)}: {printable(str(one.scope))}")
    return 0


def _named(filters: "Sequence[Filter]", given: Sequence[tuple[str, str]]) -> Sequence[str]:
    """The filters that are meant, each once. Raises NotFound."""
    from streamtap.errors import NotFound
    from streamtap.trace.text import printable

    found: dict[str, None] = {}
    for kind, text in given:
        names = [one.name for one in filters if kind == "exe" and one.name == text]
        names = names or [one.name for one in filters if _is_meant(one, kind, text)]
        if not names:
            what = f"no filter {text}" if kind == "exe" else f"no filter with --{kind} {text}"
            raise NotFound(printable(what), "streamtap list shows what there is")
        found |= dict.fromkeys(names)
    return tuple(found)


def _is_meant(one: "Filter", kind: str, text: str) -> bool:
    scope = one.scope
    if scope.kind != kind:
        return False
    if text in (scope.given, scope.value):
        return True
    return kind == "exe" and "/" in text and os.path.abspath(text) in (scope.path, scope.value)


def _remove_all() -> int:
    from streamtap.cli.operations import operations
    from streamtap.errors import StreamtapError
    from streamtap.service.client import Client
    from streamtap.service.paths import Paths
    from streamtap.service.unit import remove

    with operations() as chosen:
        chosen.remove()
        if isinstance(chosen, Client):
            chosen.wait_until_ended()
            if Paths.of_environment().pins.exists():
                raise StreamtapError("the callouts are there still", "streamtap delcallouts")
    if (unit := remove()) is not None:
        print(f"removed {unit}")
    print("removed filters and callouts")
    return 0


def list(arguments: Arguments) -> int:
    from streamtap.cli.operations import operations
    from streamtap.trace.text import printable

    with operations() as chosen:
        filters, enabled = chosen.filters(), chosen.enabled
    if arguments.json:
        print_json([_row(one) for one in filters])
    elif filters:
        print_table(
            _COLUMNS,
            (
                (
                    printable(one.name),
                    "enabled" if one.enabled else "disabled",
                    printable(str(one.scope)),
                    one.protocol or "-",
                    one.content or "-",
                    _when(one.added_ns),
                )
                for one in filters
            ),
        )
    if not filters:
        say("streamtap: no filters")
    elif not enabled:
        say(_DISABLED)
    return 0


def enable(arguments: Arguments) -> int:
    return _switch(arguments, True)


def disable(arguments: Arguments) -> int:
    return _switch(arguments, False)


def _switch(arguments: Arguments, to: bool) -> int:
    from streamtap.cli.operations import operations
    from streamtap.trace.text import printable

    with operations() as chosen:
        (chosen.enable if to else chosen.disable)(arguments.name)
        if to and arguments.name is not None:
            _tell_if_disabled(chosen)
    what = "everything" if arguments.name is None else printable(arguments.name)
    print(f"{'enabled' if to else 'disabled'} {what}")
    return 0


def _tell_if_disabled(chosen: "Operations") -> None:
    """A filter that was added or enabled is not in force yet. What was asked for is done: that the
    service cannot be asked any more is no failure of it."""
    from streamtap.errors import StreamtapError

    with contextlib.suppress(StreamtapError):
        if not chosen.enabled:
            say(_DISABLED)


# --- how they look ---------------------------------------------------------------------------


def _row(one: "Filter") -> dict[str, object]:
    return {
        "name": one.name,
        "enabled": one.enabled,
        "kind": one.scope.kind,
        "value": one.scope.value,
        "given": one.scope.given,
        "follow_forks": one.scope.follow_forks,
        "scope": str(one.scope),
        "protocol": one.protocol,
        "content": one.content,
        "added_ns": one.added_ns,
    }


def _when(time_ns: int) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ns / 1e9))


def _install_unit() -> None:
    """Where systemd runs the machine, the filters are back after a reboot. That it fails is told,
    and the filters are there all the same."""
    from streamtap.errors import StreamtapError
    from streamtap.service.unit import install

    executable = _executable()
    try:
        if executable is not None:
            install(executable)
    except StreamtapError as error:
        say(f"streamtap: filters will not be back after a reboot: {error}")


def _executable() -> str | None:
    """The command streamtap that goes with this Python."""
    beside = os.path.join(os.path.dirname(sys.executable), "streamtap")
    return beside if os.access(beside, os.X_OK) else shutil.which("streamtap")
