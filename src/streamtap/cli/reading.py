"""Captures whose records go to the sinks that were asked for, and what is said about them."""

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase

from streamtap.cli.ending import FAILED, exit_code, summary
from streamtap.cli.options import takes_stdout, wanted_flows
from streamtap.cli.outputs import Outputs
from streamtap.cli.parsing import Arguments, say
from streamtap.cli.signals import Stop
from streamtap.model import App, Content, Flow
from streamtap.ordered import choose
from streamtap.protocols import by_name
from streamtap.reading import Keeping, Reading
from streamtap.trace.text import counted, printable

PROGRESS_S = 0.5
REASONS = 16  # why packets told nothing: there are fewer, but for a file made to have many
GARBAGE_AFTER = 1_000_000  # objects: several stretches make as many, and they hold no cycles


def read_captures(arguments: Arguments, stop: Stop) -> int:
    """Reads them to their end, or until something ends it; the exit code."""
    if arguments.protocol is not None:
        by_name(arguments.protocol)
    gc.set_threshold(GARBAGE_AFTER)
    outputs = Outputs(arguments, live=False)
    until = time.monotonic() + arguments.duration if arguments.duration is not None else None

    def over() -> bool:
        return bool(stop.number) or outputs.over or (until is not None and time.monotonic() > until)

    def wait(seconds: float) -> bool:
        if not over():
            time.sleep(seconds)
        return over()

    chosen = choose(
        arguments.port,
        arguments.host,
        tunnels=arguments.tunnels,
        boundaries=not outputs.only_files,
    )
    reading: Reading | Keeping
    if outputs.only_files and not outputs.selection.places:
        reading = Keeping(
            arguments.files,
            chosen=chosen,
            taps=outputs.taps,
            wanted=_wanted(arguments),
            follow=arguments.follow,
            stop=over,
            wait=wait,
        )
    else:
        reading = Reading(
            arguments.files,
            selection=outputs.selection,
            chosen=chosen,
            content=Content.named(arguments.content),
            # For bytes alone nothing need be understood.
            protocol="opaque" if outputs.only_files else arguments.protocol,
            wanted=_wanted(arguments),
            taps=outputs.taps,
            follow=arguments.follow,
            stop=over,
            wait=wait,
        )
    progress = Progress(takes_stdout(arguments))
    try:
        with outputs:
            for records in reading.batches():
                outputs.take(records)
                reading.records = outputs.records
                progress.show(reading.heard.progress)
    finally:
        progress.clear()
        reading.close()
    for problem in reading.problems:
        say(f"streamtap: error: {printable(str(problem), 1000)}")
    say(summary(reading, outputs))
    passed = Counter(reading.heard.passed)
    if passed and (arguments.verbose or not (reading.flows or stop.number)):
        texts = (f"{count} {text}" for text, count in sorted(passed.most_common(REASONS)))
        say(f"streamtap: of {counted(reading.heard.packets, 'packet')}: {'; '.join(texts)}")
    code = exit_code(arguments, reading, outputs, stop.number, None)
    return code or (FAILED if reading.problems else 0)


class Progress:
    """How far a long file was read, on a terminal that shows nothing else.

    shows: records are written to standard output.
    """

    def __init__(self, shows: bool) -> None:
        stdout, stderr = sys.stdout, sys.stderr
        alone = not shows or stdout is None or not stdout.isatty()
        self._stream = stderr if alone and stderr is not None and stderr.isatty() else None
        self._due = time.monotonic() + PROGRESS_S
        self._shown = False

    def show(self, share: float | None) -> None:
        if self._stream is not None and share is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + PROGRESS_S
            self._shown = True
            self._stream.write(f"\r{share:4.0%}")
            self._stream.flush()

    def clear(self) -> None:
        if self._stream is not None and self._shown:
            self._stream.write("\r    \r")
            self._stream.flush()


def _wanted(arguments: Arguments) -> Callable[[Flow], bool] | None:
    """The tests of --flow and of the scopes, beside that of --port and --host, which must all
    hold; None without them."""
    flows, scoped = frozenset(arguments.flow), arguments.exe or arguments.comm or arguments.pid
    tests = [wanted_flows(arguments)]
    tests += [lambda flow: flow.flow_id in flows] if flows else []
    tests += [lambda flow: flow.app is not None and _is_in(flow.app, arguments)] if scoped else []
    asked = [test for test in tests if test is not None]
    return (lambda flow: all(test(flow) for test in asked)) if asked else None


def _is_in(app: App, arguments: Arguments) -> bool:
    """Whether the application is in one of the scopes."""
    return (
        app.pid in arguments.pid
        or app.comm in arguments.comm
        or any(fnmatchcase(app.path, pattern) for pattern in arguments.exe)
    )
