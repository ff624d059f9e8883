"""A watch whose records go to the sinks that were asked for, and what is said about it.

Two processes: the holder, which is forked here, keeps the rights and reads no traffic; this one
reads the traffic, and gives up its rights before.
"""

import contextlib
import gc
import sys
from typing import cast

from streamtap.cli.parsing import Arguments, say
from streamtap.cli.signals import Stop
from streamtap.errors import StreamtapError
from streamtap.service.confine import give_up, single_threaded

with single_threaded():  # NumPy, that is: rights belong to a thread
    from streamtap.api import Run, ring_bytes
    from streamtap.capture.identity import Cgroups
    from streamtap.capture.rights import require_rights
    from streamtap.cli.ending import exit_code, summary
    from streamtap.cli.options import scopes_given, takes_stdout, wanted_flows
    from streamtap.cli.outputs import Outputs
    from streamtap.flows.scope import Kind, Scope, launch, resolve
    from streamtap.holding import Local
    from streamtap.model import Content
    from streamtap.pipeline.speech import OPAQUE
    from streamtap.protocols import by_name
    from streamtap.service.holder import Forked, Remote
    from streamtap.service.link import LinkError
    from streamtap.trace.text import printable

GARBAGE_AFTER = 20_000  # objects; Python's own 700 cost an eighth of the time to a record
STDERR = 2


def watch(arguments: Arguments, stop: Stop) -> int:
    """Watches until something ends it; the exit code. Raises what `Run` and `resolve` do, and what
    `Local` does as StreamtapError."""
    by_name(arguments.protocol or OPAQUE)  # also finds the parsers, which are files
    # Records are made by the thousand and hold no cycles: look for garbage less often.
    gc.set_threshold(GARBAGE_AFTER)
    outputs = Outputs(arguments)
    require_rights()
    scopes = _scopes(arguments)
    command = arguments.command or ()
    content = Content.named(arguments.content)

    def hold() -> Local:
        return Local(
            scopes,
            command=command,
            command_stdout=STDERR if takes_stdout(arguments) else None,
            command_dies=True,
            new_only=arguments.new_only,
            ring_bytes=ring_bytes(content),
        )

    with contextlib.closing(Forked(hold)) as forked, outputs:
        try:
            run, status = _run(arguments, stop, outputs, forked, scopes)
        except LinkError as error:
            raise StreamtapError("the process that holds the callouts has ended") from error
    say(summary(run, outputs))
    return exit_code(arguments, run, outputs, stop.number, status)


def _run(
    arguments: Arguments, stop: Stop, outputs: Outputs, forked: Forked, scopes: list[Scope]
) -> tuple[Run, int | None]:
    """From the first record to the last; the exit code of the command, if it has ended."""
    run = Run(
        Remote(forked, scopes),
        selection=outputs.selection,
        content=Content.named(arguments.content),
        duration_s=arguments.duration,
        stop=lambda: bool(stop.number) or outputs.over,
        protocol=arguments.protocol,
        both_ends=arguments.both_ends,
        wanted=wanted_flows(arguments),
        taps=outputs.taps,
        confine=lambda: give_up(outputs.folders),
    )
    try:
        announcement = _announcement(scopes)
        for records in run.batches():
            if run.watch.hooks.attached and announcement:
                say(announcement)
                announcement = ""
            outputs.take(records)
            run.records = outputs.records
        return run, run.watch.holder.status()
    finally:
        run.close()


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


def _announcement(scopes: list[Scope]) -> str:
    end = "; Ctrl-C ends" if sys.stderr is not None and sys.stderr.isatty() else ""
    return f"streamtap: watching {', '.join(printable(str(scope)) for scope in scopes)}{end}"
