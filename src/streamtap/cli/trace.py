"""`trace` and its words: the options of `fmt`. What that does is in `formatting`."""

import os

from streamtap.cli.options import (
    STANDARD,
    add_choice,
    add_connections,
    add_content,
    add_count,
    add_sinks,
    check_output,
    sinks,
)
from streamtap.cli.parsing import SUBVERBS, Arguments, Parser, UsageError
from streamtap.cli.signals import Stop

_FMT = """
Prints recordings, which -o FILE.jsonl or -o FILE.sqlite wrote, in any form of output; which they
are, is told by their content. The files of one recording, chat.sqlite, chat.1.sqlite and so on, may
be given in any order; records of several recordings are merged by time, and numbered anew. Without
a choice all records are printed. COMPONENT[:FLAG,...][@LEVEL] chooses those of monitor, notify,
control, init, stream or all; a file of such a name is written ./notify. What cannot be read is left
out and told, and the exit code is 1."""


def trace_options(parser: Parser) -> None:
    words = SUBVERBS["trace"]
    parser.usage = "streamtap trace VERB [OPTION...]"
    parser.description = "\n".join(
        [
            "Trace sessions: what records, what is followed, what was recorded.",
            "",
            *(f"  {verb.name:14} {verb.summary}" for verb in words),
        ]
    )
    parser.epilog = "streamtap trace VERB --help tells the options of one"


def trace_fmt_options(parser: Parser) -> None:
    parser.usage = "streamtap trace fmt FILE... [COMPONENT[:FLAG,...][@LEVEL]...] [OPTION...]"
    parser.description = _FMT.strip()
    parser.epilog = "example: streamtap trace fmt chat*.jsonl notify:peer_to_peer -o wpp"
    add = parser.add_argument
    add("words", nargs="*", metavar="FILE", help="a recording, or a COMPONENT as above")
    add_sinks(parser.add_argument_group("output").add_argument)
    add = parser.add_argument_group("what is shown").add_argument
    add_content(add, "full: message text, where it was recorded")
    add_choice(add, "with --provider or --level, the default")
    add_connections(add)
    add_count(parser.add_argument_group("end").add_argument)
    parser.set_defaults(write=None, extract=None)


def trace_fmt(arguments: Arguments) -> int:
    check_output(arguments)
    names = [word for word in arguments.words if not _is_component(word)]
    components = [word for word in arguments.words if _is_component(word)]
    if not names:
        raise UsageError("nothing to print: no recording is named", "streamtap trace fmt FILE")
    if components and (arguments.provider or arguments.flag or arguments.level):
        raise UsageError(
            f"{components[0]} and --provider, --flag or --level are two ways to choose: take one"
        )
    for sink in sinks(arguments):
        if sink not in STANDARD and any(_is_same(sink, name) for name in names):
            raise UsageError(f"-o {sink} would overwrite what is read")
    with Stop() as stop:
        try:
            from streamtap.cli.formatting import show_records

            return show_records(arguments, names, components, stop)
        except KeyboardInterrupt:  # the second signal: something blocked
            return 128 + stop.number


def _is_component(word: str) -> bool:
    """Whether it is one by how it is written, whatever files there are."""
    from streamtap.events import PROVIDERS

    name = word.partition("@")[0].partition(":")[0].strip().lower().removeprefix("trace_")
    return name in PROVIDERS or name in ("all", "9")


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
