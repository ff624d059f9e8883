"""`monitor` and `demo`: their options. What they do is in `watching`."""

import sys

from streamtap.cli.options import (
    SCOPES,
    add_output,
    add_scopes,
    check_output,
    check_scopes,
    scopes_given,
    seconds,
)
from streamtap.cli.parsing import Arguments, Parser, UsageError
from streamtap.cli.signals import Stop

TYPE_CHECKING = False  # as `typing` has it, which is not imported: programs start faster
if TYPE_CHECKING:
    from streamtap.flows.scope import Scope

PACE_S = 0.15  # of the demo: a person can follow
_MONITOR = """
Watches applications now, until interrupted (Ctrl-C), or until COMMAND has ended. Nothing is left
behind. Records go to standard output, everything else to standard error. With -- COMMAND the
command is started, and watched with its descendants from its first instruction; if monitoring
ends first, it is ended too. Where our records have standard output, the command's output goes to
standard error."""
_DEMO = """
Starts a small MSN server and two chat clients on loopback, each its own process, and watches them
through the real callouts: sign-in, presence, messages, files, a direct connection, sign-out."""


def monitor_options(parser: Parser) -> None:
    parser.takes_command = True
    parser.usage = "streamtap monitor [SCOPE...] [OPTION...] [-- COMMAND ARG...]"
    parser.description = _MONITOR.strip()
    parser.epilog = "example: streamtap monitor --json -- curl http://example.com/"
    add_scopes(parser)
    add_output(parser)


def demo_options(parser: Parser) -> None:
    parser.usage = "streamtap demo [--pace S] [OPTION...]"
    parser.description = _DEMO.strip()
    parser.add_argument(
        "--pace",
        type=seconds,
        default=PACE_S,
        metavar="S",
        help=f"seconds between the steps (default {PACE_S})",
    )
    add_output(parser)
    no_scopes: dict[str, object] = {name: [] for name, _, _ in SCOPES}
    parser.set_defaults(paths=[], new_only=False, both_ends=False, follow_forks=False, **no_scopes)


def monitor(arguments: Arguments) -> int:
    _check_live(arguments)
    check_scopes(arguments)
    with Stop() as stop:
        try:
            from streamtap.cli.attached import attach, can_attach
            from streamtap.cli.operations import running

            client = running() if can_attach(arguments) else None
            if client is not None:
                return attach(arguments, stop, client)
            if arguments.command is None and not scopes_given(arguments):
                arguments.registered = _registered()
            from streamtap.cli.watching import watch

            return watch(arguments, stop)
        except KeyboardInterrupt:  # the second signal: something blocked
            return 128 + stop.number


def _registered() -> "list[Scope]":
    """The scopes of the filters that persist, where no service watches them. Raises UsageError
    where there are none, PermissionMissing where they may not be read."""
    from streamtap.service.paths import Paths
    from streamtap.service.state import Filters, load

    filters = load(Paths.of_environment().filters, Filters)
    scopes = [one.scope for one in filters.filters if one.enabled and filters.enabled]
    if not scopes:
        raise UsageError(
            "nothing to watch: no program is named, and no filters are registered",
            "streamtap monitor /usr/bin/curl    or: streamtap addcallouts /usr/bin/curl",
        )
    return scopes


def demo(arguments: Arguments) -> int:
    _check_live(arguments)
    # -P: modules of the directory that it happens to be started in are not ours.
    arguments.command = [
        sys.executable,
        "-P",
        "-m",
        "streamtap.demo",
        "--pace",
        str(arguments.pace),
    ]
    return _watch(arguments)


def _check_live(arguments: Arguments) -> None:
    check_output(arguments)
    if arguments.extract is not None and arguments.content != "full":
        raise UsageError("--extract needs --content full: the files hold what was said")


def _watch(arguments: Arguments) -> int:
    with Stop() as stop:
        try:
            # Only now what takes its time: a signal finds its handler.
            from streamtap.cli.watching import watch

            return watch(arguments, stop)
        except KeyboardInterrupt:  # the second signal: something blocked
            return 128 + stop.number
