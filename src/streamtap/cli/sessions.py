"""`trace start`, `stop`, `list` and `rt`: their options. What rt does is in `following`."""

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable

from streamtap.cli.options import (
    add_choice,
    add_connections,
    add_content,
    add_count,
    add_sinks,
    check_output,
    seconds,
)
from streamtap.cli.parsing import Arguments, Parser, UsageError, say
from streamtap.cli.signals import Stop
from streamtap.cli.tables import add_json, print_json, print_table
from streamtap.errors import StreamtapError

_WORDS = "COMPONENT[:FLAG,...][@LEVEL]"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIZE = re.compile(r"([0-9]{1,15})(k|M|G|T)?(i?B)?")
_POWERS = {None: 0, "k": 1, "M": 2, "G": 3, "T": 4}
_LAST = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)?")
_UNITS = {None: 1, "s": 1, "m": 60, "h": 3600}
_COLUMNS = (
    *("NAME", "KIND", "STATE", "USER", "RECORDS", "DROPPED", "CONTENT", "FILTERS"),
    *("SELECTION", "OUTPUTS"),
)
_START = """
Starts a session that records: now, if the service runs, and again whenever it runs, until trace
stop. Words choose what is recorded; without any it is everything but all_traffic. Files are written
with the rights of who starts it. Without -o the file is NAME.jsonl in the folder recordings of the
service's state, which is root's."""
_RT = """
Follows what the service traces, until interrupted. Words choose what is shown, without any
everything but all_traffic. A reader that is too slow misses records, which is told at the end, and
delays nobody."""


def trace_start_options(parser: Parser) -> None:
    parser.usage = f"streamtap trace start NAME [{_WORDS}...] [OPTION...]"
    parser.description = _START.strip()
    parser.epilog = "example: sudo streamtap trace start chat notify:peer_to_peer --keep 10"
    add = parser.add_argument
    add("name", metavar="NAME", type=_session, help="of the session")
    add("words", nargs="*", default=[], metavar="COMPONENT", help=_WORDS)
    add = parser.add_argument_group("recording").add_argument
    add(
        *("-o", "--output"),
        action="append",
        default=[],
        metavar="FILE",
        help="FILE.jsonl or FILE.sqlite; may be repeated",
    )
    add(
        "--limit",
        type=_size,
        metavar="SIZE",
        help="begin a new file at this size: bytes, or with k, M, G (KiB, MiB, GiB are powers of "
        "1024); the default is 256MiB",
    )
    add("--keep", type=_keep, metavar="N", help="full files that are kept; the default is 4")
    add = parser.add_argument_group("what is recorded").add_argument
    add_content(add, "full: message text, and a record of who asked for it; root only")
    _add_filters(add)


def trace_stop_options(parser: Parser) -> None:
    parser.description = "Ends a session and forgets it. What it has recorded stays."
    parser.add_argument("name", metavar="NAME", type=_session, help="of the session")


def trace_list_options(parser: Parser) -> None:
    parser.description = "Lists the sessions that record, and those that are followed now."
    add_json(parser)


def trace_rt_options(parser: Parser) -> None:
    parser.usage = f"streamtap trace rt [{_WORDS}...] [OPTION...]"
    parser.description = _RT.strip()
    parser.epilog = "example: streamtap trace rt notify:peer_to_peer --last 60s"
    parser.add_argument("words", nargs="*", metavar="COMPONENT", help=_WORDS)
    add_sinks(parser.add_argument_group("output").add_argument)
    add = parser.add_argument_group("what is shown").add_argument
    add(
        "--last",
        type=_last,
        metavar="TIME",
        help="begin with the records of so many seconds before, as 60s, 5m; at most 1h",
    )
    add_content(add, "full: message text, and a record of who asked for it; root only")
    _add_filters(add)
    add_choice(add)
    add_connections(add)
    add = parser.add_argument_group("end").add_argument
    add_count(add, "; those about streamtap itself are left out, unless words choose them")
    add("--duration", type=seconds, metavar="S", help="end after so many seconds")
    add("--strict", action="store_true", help="exit 8 if any records were missed")
    parser.set_defaults(write=None, extract=None)


def _add_filters(add: Callable[..., object]) -> None:
    add(
        "--filter",
        action="append",
        default=[],
        metavar="NAME",
        help="only connections of this filter; may be repeated",
    )


def trace_start(arguments: Arguments) -> int:
    from streamtap.trace.selection import parse

    parse(arguments.words)
    for path in arguments.output:
        if os.path.splitext(path)[1].lower() not in (".jsonl", ".sqlite"):
            raise UsageError(f"no output {path!r}: there are FILE.jsonl and FILE.sqlite")
    if not arguments.output and os.getuid() != 0:
        raise UsageError(
            "a file is needed: without one, recordings are root's",
            f"streamtap trace start {arguments.name} -o {arguments.name}.jsonl",
        )

    import time

    from streamtap.cli.operations import operations
    from streamtap.service.client import file_of, own_recording
    from streamtap.service.peers import user_name
    from streamtap.service.state import KEEP, LIMIT_BYTES, Recorded
    from streamtap.trace.text import printable

    with operations() as chosen:
        outputs = [file_of(path) for path in arguments.output]
        session = chosen.add_session(
            Recorded(
                name=arguments.name,
                selection=tuple(arguments.words),
                outputs=tuple(outputs or [str(own_recording(arguments.name))]),
                content=arguments.content,
                uid=os.getuid(),
                user=user_name(os.getuid()),
                filters=tuple(arguments.filter),
                limit_bytes=LIMIT_BYTES if arguments.limit is None else arguments.limit,
                keep=KEEP if arguments.keep is None else arguments.keep,
                started_ns=time.time_ns(),
            )
        )
        now = next((one for one in chosen.sessions() if one.name == session.name), None)
    if now is not None and now.error:
        raise StreamtapError(
            f"session {session.name} does not record: {printable(now.error)}",
            f"it is tried again and again; to give it up: streamtap trace stop {session.name}",
        )
    files = ", ".join(printable(path) for path in session.outputs)
    print(f"session {session.name}: {files}")
    if now is None or not now.running:
        say("streamtap: it records as soon as the service runs: sudo streamtap start")
    return 0


def trace_stop(arguments: Arguments) -> int:
    from streamtap.cli.operations import operations
    from streamtap.trace.text import printable

    with operations() as chosen:
        session = chosen.remove_session(arguments.name)
    files = ", ".join(printable(path) for path in session.outputs)
    print(f"session {session.name} has ended: {files}")
    return 0


def trace_list(arguments: Arguments) -> int:
    import msgspec

    from streamtap.cli.operations import operations
    from streamtap.trace.text import printable

    with operations() as chosen:
        sessions = chosen.sessions()
    if arguments.json:
        print_json([msgspec.to_builtins(one) for one in sessions])
    elif sessions:
        print_table(
            _COLUMNS,
            (
                (
                    printable(one.name),
                    one.kind,
                    "failed" if one.error else "running" if one.running else "stopped",
                    printable(one.user),
                    *(one.records, one.dropped, one.content),
                    printable(",".join(one.filters)) or "all",
                    printable(" ".join(one.selection)) or "-",
                    printable(" ".join(one.outputs)) or "-",
                )
                for one in sessions
            ),
        )
    for one in sessions:
        if one.error:
            say(f"streamtap: session {one.name}: {printable(one.error)}")
    if not sessions:
        say("streamtap: no sessions")
    return 0


def trace_rt(arguments: Arguments) -> int:
    check_output(arguments)
    if arguments.words and (arguments.provider or arguments.flag or arguments.level):
        raise UsageError(
            f"{arguments.words[0]} and --provider, --flag or --level are two ways to choose: "
            "take one"
        )
    with Stop() as stop:
        try:
            from streamtap.cli.following import follow

            return follow(arguments, stop)
        except KeyboardInterrupt:  # the second signal: something blocked
            return 128 + stop.number


# --- types of values -------------------------------------------------------------------------


def _session(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ArgumentTypeError(
            f"{text!r} is no name of a session: letters, digits, '.', '_' and '-', at most 64"
        )
    return text


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no size: write 64M, or 64MiB")
    base = 1024 if found[3] == "iB" else 1000
    return int(found[1]) * int(base ** _POWERS[found[2]])


def _keep(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ArgumentTypeError(f"{text!r} is no number of files")
    return int(text)


def _last(text: str) -> float:
    found = _LAST.fullmatch(text)
    value = float(found[1]) * _UNITS[found[2]] if found is not None else -1
    if not 0 <= value <= _UNITS["h"]:
        raise ArgumentTypeError(f"{text!r} is no time up to an hour: write 60s, or 5m")
    return value
