"""The verbs, and parsers of their options that complain in one line."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NoReturn

from streamtap.errors import StreamtapError

TYPE_CHECKING = False  # as `typing` has it, which is not imported: programs start faster
if TYPE_CHECKING:
    from streamtap.flows.scope import Scope

EXIT_CODES = (
    ("0", "done; for monitor also: ended by Ctrl-C, or its reader closed the pipe"),
    ("1", "failed, for example an output that cannot be written"),
    ("2", "wrong usage"),
    ("3", "the service, or what was asked for, is not running"),
    ("4", "not permitted: the message names the missing right"),
    ("5", "the kernel or a library lacks something: streamtap doctor explains"),
    ("6", "no such filter, session, program, process, user, cgroup or file"),
    ("7", "it is there already: a filter, a session, the service, the folder of --extract"),
    ("8", "data was lost, and --strict was given"),
    ("124", "--duration ended and no connection was seen"),
    ("126, 127", "the command could not be launched"),
    ("128+n", "ended by signal n; with -- COMMAND, otherwise, the command's own code"),
)


class UsageError(StreamtapError):
    """The command was written in a way that cannot be meant."""

    exit_code = 2


class Verb(NamedTuple):
    """A verb: what help says of it, and the module that does it, by the function of its name."""

    name: str
    summary: str
    module: str


VERBS = (
    Verb("monitor", "watch now, until interrupted", "live"),
    Verb("read", "the same records from captures: pcap, pcapng", "offline"),
    Verb("conv", "the conversations of captures and recordings", "conv"),
    Verb("addcallouts", "install the callouts, and filters that persist", "callouts"),
    Verb("delcallouts", "remove a filter, or filters and callouts", "callouts"),
    Verb("list", "the filters that persist", "callouts"),
    Verb("enable", "enable a filter, or all", "callouts"),
    Verb("disable", "disable a filter, or all; connections go on", "callouts"),
    Verb("start", "start the service that parses and traces", "service"),
    Verb("stop", "end the service; callouts and filters stay", "service"),
    Verb("restart", "end the service and start it again", "service"),
    Verb("status", "how the service is, and which callouts are attached", "service"),
    Verb("trace", "sessions that record or follow, and recordings printed", "trace"),
    Verb("query", "ask a recording in SQL", "query"),
    Verb("flows", "the connections that are watched now", "kernel"),
    Verb("protocols", "the protocols that are understood", "upkeep"),
    Verb("doctor", "whether this machine has what streamtap needs", "doctor"),
    Verb("cleanup", "remove what streamtap left behind", "upkeep"),
    Verb("demo", "a chat between small programs, watched live", "live"),
)
# The words that may follow a verb, each with options of its own.
SUBVERBS: dict[str, tuple[Verb, ...]] = {
    "trace": (
        Verb("trace start", "record, now and whenever the service runs", "sessions"),
        Verb("trace stop", "end a session that records", "sessions"),
        Verb("trace list", "the sessions that there are", "sessions"),
        Verb("trace rt", "follow what the service traces", "sessions"),
        Verb("trace fmt", "print recordings in any form of output", "trace"),
    ),
}


class Arguments(argparse.Namespace):
    """The options of a verb. command: what followed `--`, None if there was no `--`. registered:
    scopes of filters that persist, where they are to be watched."""

    command: list[str] | None = None
    registered: "Sequence[Scope]" = ()


# Before a word that is none, although it begins with a dash: parse_intermixed_args forgets which
# words stood behind `--`. No word that anybody writes can have it.
_NO_OPTION = "\0"


class Parser(argparse.ArgumentParser):
    """A verb's parser. takes_command: `-- COMMAND ARG…` may follow the options."""

    takes_command = False

    def parse(self, words: Sequence[str]) -> Arguments:
        """The options; raises UsageError, or SystemExit when help was asked for."""
        arguments = Arguments()
        own = list(words)
        if "--" in own:
            at = own.index("--")
            rest = own[at + 1 :]
            del own[at:]
            if self.takes_command:
                arguments.command = rest
            else:
                own += [_NO_OPTION + word if word.startswith("-") else word for word in rest]
        parsed = self.parse_intermixed_args(own, arguments)
        for name, value in vars(parsed).items():
            setattr(parsed, name, _as_written(value))
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


def _as_written(value: object) -> object:
    if isinstance(value, list):
        return [_as_written(one) for one in value]
    return value.removeprefix(_NO_OPTION) if isinstance(value, str) else value


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions; of an option with two names, the metavar is shown once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=96)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {action.metavar or action.dest.upper()}"


def find(name: str) -> Verb | None:
    return next((verb for verb in VERBS if verb.name == name), None)


def every_verb() -> Iterator[Verb]:
    """All of them, those of two words behind their first."""
    for verb in VERBS:
        yield verb
        yield from SUBVERBS.get(verb.name, ())


def resolve(words: Sequence[str]) -> tuple[Verb, Sequence[str]]:
    """The verb that is meant, and what follows it. Raises UsageError where there is none."""
    word = words[0] if words else ""
    verb = find(word)
    if verb is None:
        raise UsageError(_no_verb(word, VERBS))
    rest = words[1:]
    below = SUBVERBS.get(word)
    if below is None or (rest and rest[0] in ("-h", "--help")):
        return verb, rest
    name = f"{word} {rest[0]}" if rest else ""
    for verb in below:
        if verb.name == name:
            return verb, rest[1:]
    raise UsageError(_no_verb(name, below, f" behind {word}"), f"streamtap {word} --help")


def _no_verb(name: str, verbs: Sequence[Verb], where: str = "") -> str:
    what = f"no verb {name!r}" if name else f"a verb is missing{where}"
    return f"{what}: there are {', '.join(verb.name for verb in verbs)}"


def parser_of(verb: Verb) -> Parser:
    """The parser of a verb's options: its module's `VERB_options` adds them."""
    parser = Parser(
        prog=f"streamtap {verb.name}",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add: Callable[[Parser], None] = getattr(_module(verb), f"{_function(verb)}_options")
    add(parser)
    return parser


def run_of(verb: Verb) -> Callable[[Arguments], int]:
    """What does it: its module's function of the verb's name."""
    function: Callable[[Arguments], int] = getattr(_module(verb), _function(verb))
    return function


def _function(verb: Verb) -> str:
    return verb.name.replace(" ", "_")


def _module(verb: Verb) -> object:
    return importlib.import_module(f"streamtap.cli.{verb.module}")


def help_text() -> str:
    """What `streamtap --help` says."""
    lines = ["usage: streamtap VERB [OPTION...]        streamtap VERB --help tells its options", ""]
    lines += ["Shows what one application says over TCP, and to whom, while it runs.", ""]
    lines += [f"  {verb.name:11} {verb.summary}" for verb in VERBS]
    lines += ["", "  --help     this text", "  --version  the version", "", "exit codes:"]
    lines += [f"  {code:9} {meaning}" for code, meaning in EXIT_CODES]
    lines += ["", "example: sudo streamtap monitor /usr/bin/curl"]
    return "\n".join(lines)


def say(text: str) -> None:
    """To standard error, if anybody is there."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        # What is left in its buffer must not fail again, and change the exit code, at the end.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stderr.fileno())
            os.close(null)
    except (ValueError, AttributeError):
        pass
