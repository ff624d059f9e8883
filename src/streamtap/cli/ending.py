"""How a run ends: the last words on standard error, and the exit code."""

from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import Arguments
from streamtap.tally import LOSSES, Tally
from streamtap.trace.text import counted

FAILED, LOST, NOTHING_SEEN, SIGNALLED = 1, 8, 124, 128
SIGINT = 2


def summary(run: Tally, outputs: Outputs) -> str:
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
    losses = losses_of(run)
    if outputs.dropped:
        losses.append(f"{counted(outputs.dropped, 'record')} that could not be written")
    if losses:
        lines.append("streamtap: lost: " + "; ".join(losses))
    return "\n".join(lines)


def losses_of(run: Tally) -> list[str]:
    """What was lost, in words; nothing where nothing was."""
    losses = [f"{count} {text}" for text, count in run.drops.items() if count]
    losses += [
        f"{counted(run.gaps[cause], 'gap')} ({cause})" for cause in LOSSES if run.gaps[cause]
    ]
    if run.limits:
        losses.append(f"{counted(run.limits, 'bound')} reached")
    if run.failures:
        losses.append(f"{counted(run.failures, 'parser')} failed")
    return losses


def exit_code(
    arguments: Arguments, run: Tally, outputs: Outputs, signal: int, status: int | None
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
