"""A live session of the service, shown as a monitor shows its records."""

import gc
import time

from streamtap.cli.ending import FAILED, LOST, NOTHING_SEEN, SIGINT, SIGNALLED
from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import Arguments, say
from streamtap.cli.recordings import of_wanted_flows
from streamtap.cli.signals import Stop
from streamtap.cli.watching import GARBAGE_AFTER
from streamtap.errors import ServiceError
from streamtap.service.client import Client
from streamtap.trace import parse
from streamtap.trace.text import counted

TURN_S = 0.2  # the longest wait: how late a stop is noticed


def follow(arguments: Arguments, stop: Stop) -> int:
    """Shows records until something ends it; the exit code. Raises NotRunning, PermissionMissing,
    NotFound for a filter, ServiceError where the service ends first."""
    gc.set_threshold(GARBAGE_AFTER)
    selection = parse(arguments.words) if arguments.words else None
    outputs = Outputs(arguments, live=False, selection=selection, keep_numbers=True)
    wanted = of_wanted_flows(arguments)
    began = time.monotonic()
    until = float("inf") if arguments.duration is None else began + arguments.duration
    with (
        Client() as client,
        client.records(
            *str(outputs.selection).split(),
            content=arguments.content,
            filters=arguments.filter,
            last=arguments.last,
        ) as records,
        outputs,
    ):
        client.close()  # what was to be asked is asked
        while not (stop.number or outputs.over or records.ended):
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            batch = records.wait(min(TURN_S, left_s))
            if wanted is not None:
                batch = [one for one in batch if one.flow is not None and wanted(one.flow)]
            outputs.take(batch)
        abandoned = records.ended and not (stop.number or outputs.over)
        elapsed = time.monotonic() >= until
    say(f"streamtap: {counted(outputs.records, 'record')}")
    losses = [
        (records.missed, "record", "that did not come in time"),
        (records.damaged, "line", "that could not be read"),
        (outputs.dropped, "record", "that could not be written"),
    ]
    told = [f"{counted(count, what)} {why}" for count, what, why in losses if count]
    if told:
        say(f"streamtap: lost: {'; '.join(told)}")
    if outputs.failed and not outputs.left:
        return FAILED
    if arguments.strict and told:
        return LOST
    if stop.number and stop.number != SIGINT:
        return SIGNALLED + stop.number
    if outputs.failed:
        return FAILED
    if abandoned:
        raise ServiceError("the service has ended the session", "see: streamtap status")
    if elapsed and not outputs.records:
        return NOTHING_SEEN
    return 0
