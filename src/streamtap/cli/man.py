"""The man page, from the parsers: `python -m streamtap.cli.man > docs/man/streamtap.1`."""

import argparse
import sys
from collections.abc import Iterator

from streamtap.cli.parsing import EXIT_CODES, Parser, every_verb, parser_of

_ABOUT = """streamtap shows what one application says over TCP, and to whom, while it runs. It marks
the sockets of that application in the kernel, by eBPF, and leaves all other traffic alone. The
command monitor is the same as streamtap monitor. The command monitor_trace COMPONENT LEVEL VERB has
the arguments in the order of the trace script of the WFP sample: start, stop, rt and fmt are those
of streamtap trace, and each component is a session of its own."""
_ENVIRONMENT = (
    ("NO_COLOR", "no colour, on a terminal too"),
    ("STREAMTAP_LIBBPF", "the library to use instead of libbpf.so.1"),
    ("STREAMTAP_CALLOUTS", "dynptr or scratch: the variant of the callouts to load"),
    ("STREAMTAP_STATE_DIR", "for filters, sessions and recordings, instead of /var/lib/streamtap"),
    ("STREAMTAP_RUN_DIR", "for the control socket, instead of /run/streamtap"),
    ("STREAMTAP_BPF_DIR", "for pinned callouts, instead of /sys/fs/bpf/streamtap"),
    ("STREAMTAP_UNIT_DIR", "for the unit, instead of /etc/systemd/system"),
)
_EXAMPLES = (
    ("sudo streamtap monitor /usr/bin/curl", "what every curl says, from now on"),
    ("sudo streamtap monitor --pid 4121 -f --json", "a process and its descendants, as JSON"),
    ("sudo streamtap monitor -o chat.sqlite -- pidgin", "a program from its first instruction on"),
)


def page() -> str:
    """The whole page, as roff."""
    lines = ['.TH STREAMTAP 1 "" "streamtap" "User Commands"', ".SH NAME"]
    lines += ["streamtap, monitor \\- show what one application says over TCP", ".SH SYNOPSIS"]
    for verb in every_verb():
        lines += [_text(f"{_usage(parser_of(verb))}"), ".br"]
    lines += [".SH DESCRIPTION", _text(_ABOUT), ".SH VERBS"]
    for verb in every_verb():
        parser = parser_of(verb)
        lines += [f".SS {_text(verb.name)}"]
        lines += [_text(" ".join((parser.description or "").split()))]
        lines += _options(parser)
        if parser.epilog:
            lines += [".PP", _text(parser.epilog[0].upper() + parser.epilog[1:])]
    lines += [".SH EXIT STATUS", *_terms(EXIT_CODES)]
    lines += [".SH ENVIRONMENT", *_terms(_ENVIRONMENT)]
    lines += [".SH EXAMPLES", *_terms(_EXAMPLES)]
    return "\n".join(lines) + "\n"


def _usage(parser: Parser) -> str:
    usage = parser.usage or parser.format_usage().removeprefix("usage: ")
    return " ".join(usage.split())


def _options(parser: Parser) -> Iterator[str]:
    # argparse has no public way to ask for what it was told.
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if not isinstance(one, argparse._HelpAction)]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            yield ".PP"
            yield f"\\fB{_text(str(group.title))}\\fR" + (
                f": {_text(group.description)}" if group.description else ""
            )
        yield from _terms((_invocation(one), one.help or "") for one in actions)


def _invocation(action: argparse.Action) -> str:
    metavar = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    return f"{', '.join(action.option_strings)} {metavar}".strip()


def _terms(terms: "Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]") -> Iterator[str]:
    for term, meaning in terms:
        yield ".TP"
        yield f"\\fB{_text(term)}\\fR"
        yield _text(meaning)


def _text(text: str) -> str:
    """Text that roff takes as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(
        f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n")
    )


if __name__ == "__main__":
    sys.stdout.write(page())
