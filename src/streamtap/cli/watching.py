"""A watch whose records go to the sinks that were asked for, and what is said about it."""

import contextlib
import gc
import sys
from collections.abc import Callable
from typing import cast

from streamtap.api import LOSSES, Run, content_level
from streamtap.capture.callouts import require_rights
from streamtap.capture.identity import Cgroups
from streamtap.cli.options import plain_address, scopes_given, standard_sinks
from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import Arguments, say
from streamtap.cli.signals import Stop
from streamtap.flows.scope import Kind, Scope, launch, resolve
from streamtap.model import Flow
from streamtap.protocols import by_name
from streamtap.trace.text import counted, printable

FAILED, LOST, NOTHING_SEEN, SIGNALLED = 1, 8, 124, 128
SIGINT = 2
GARBAGE_AFTER = 20_000  # objects; Python's own 700 cost an eighth of the time to a record
STDERR = 2


def watch(arguments: Arguments, stop: Stop) -> int:
    """Watches until something ends it; the exit code. Raises what `Run` and `resolve` do."""
    if arguments.protocol is not None:
        by_name(arguments.protocol)
    # Records are made by the thousand and hold no cycles: look for garbage less often.
    gc.set_threshold(GARBAGE_AFTER)
    outputs = Outputs(arguments)
    require_rights()
    scopes = _scopes(arguments)
    command = arguments.command or ()
    with outputs:
        run = Run(
            scopes,
            selection=outputs.selection,
            content=content_level(arguments.content),
            duration_s=arguments.duration,
            stop=lambda: bool(stop.number) or outputs.over,
            command=command,
            command_stdout=STDERR if standard_sinks(arguments) else None,
            protocol=arguments.protocol,
            both_ends=arguments.both_ends,
            new_only=arguments.new_only,
            wanted=_wanted(arguments),
        )
        try:
            announced = False
            for records in run.batches():
                if run.watch.callouts.hooks and not announced:
                    announced = True
                    _announce(scopes)
                outputs.take(records)
                run.records = outputs.records
            status = run.watch.child.status if run.watch.child else None
        finally:
            run.close()
    say(summary(run, outputs))
    return exit_code(arguments, run, outputs, stop.number, status)


def _scopes(arguments: Arguments) -> list[Scope]:
    scopes = []
    with contextlib.ExitStack() as stack:
        options = {}
        if arguments.cgroup or arguments.unit:
            cgroups = Cgroups()
            stack.callback(cgroups.close)
            options["cgroup_root"] = cgroups.root
        for kind, text in scopes_given(arguments):
            follow = kind == "pid" and arguments.follow_forks
            scopes.append(resolve(cast(Kind, kind), text, follow_forks=follow, **options))
    if arguments.command:
        scopes.append(launch(arguments.command))
    return scopes


def _wanted(arguments: Arguments) -> Callable[[Flow], bool] | None:
    """The test of --port and --host, which must both hold; None without them."""
    ports, hosts = frozenset(arguments.port), frozenset(arguments.host)
    if not ports and not hosts:
        return None

    def wanted(flow: Flow) -> bool:
        ends = (flow.local, flow.remote)
        return (not ports or any(end.port in ports for end in ends)) and (
            not hosts or any(plain_address(end.address) in hosts for end in ends)
        )

    return wanted


def _announce(scopes: list[Scope]) -> None:
    end = "; Ctrl-C ends" if sys.stderr is not None and sys.stderr.isatty() else ""
    say(f"streamtap: watching {', '.join(printable(str(scope)) for scope in scopes)}{end}")


def summary(run: Run, outputs: Outputs) -> str:
    """One line of totals, and one of what was lost, where anything was."""
    drops = sum(run.drops.values())
    totals = (
        (run.flows, "flow"),
        (run.bytes, "byte"),
        (outputs.records, "record"),
        (run.gaps.total(), "gap"),
        (drops, "drop"),
    )
    lines = ["streamtap: " + ", ".join(counted(*total) for total in totals)]
    losses = [f"{count} {text}" for text, count in run.drops.items() if count]
    losses += [
        f"{counted(run.gaps[cause], 'gap')} ({cause})" for cause in LOSSES if run.gaps[cause]
    ]
    if run.limits:
        losses.append(f"{counted(run.limits, 'bound')} reached")
    if run.failures:
        losses.append(f"{counted(run.failures, 'parser')} failed")
    if outputs.dropped:
        losses.append(f"{counted(outputs.dropped, 'record')} that could not be written")
    if losses:
        lines.append("streamtap: lost: " + "; ".join(losses))
    return "\n".join(lines)


def exit_code(
    arguments: Arguments, run: Run, outputs: Outputs, signal: int, status: int | None
) -> int:
    if outputs.failed and not outputs.left:
        return FAILED
    if arguments.strict and (run.lost or outputs.dropped):
        return LOST
    if signal and signal != SIGINT:
        return SIGNALLED + signal
    if run.ended == "command" and status:
        return status
    if outputs.failed:
        return FAILED
    if run.ended == "duration" and not run.flows:
        return NOTHING_SEEN
    return 0
