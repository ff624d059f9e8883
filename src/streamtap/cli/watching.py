"""A watch whose records go to the sinks that were asked for, and what is said about it."""

import contextlib
import gc
import sys
from typing import cast

from streamtap.api import Run, content_level
from streamtap.capture.callouts import require_rights
from streamtap.capture.identity import Cgroups
from streamtap.cli.ending import exit_code, summary
from streamtap.cli.options import scopes_given, takes_stdout, wanted_flows
from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import Arguments, say
from streamtap.cli.signals import Stop
from streamtap.flows.scope import Kind, Scope, launch, resolve
from streamtap.protocols import by_name
from streamtap.trace.text import printable

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
            command_stdout=STDERR if takes_stdout(arguments) else None,
            protocol=arguments.protocol,
            both_ends=arguments.both_ends,
            new_only=arguments.new_only,
            wanted=wanted_flows(arguments),
            taps=outputs.taps,
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
    scopes = list(arguments.registered)
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


def _announce(scopes: list[Scope]) -> None:
    end = "; Ctrl-C ends" if sys.stderr is not None and sys.stderr.isatty() else ""
    say(f"streamtap: watching {', '.join(printable(str(scope)) for scope in scopes)}{end}")
