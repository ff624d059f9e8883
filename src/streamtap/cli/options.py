"""The options of monitor and demo, and what is wrong between them. Nothing here is heavy."""

import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable

from streamtap.cli.parsing import Arguments, Parser, UsageError

TYPE_CHECKING = False  # as `typing` has it, which is not imported: programs start faster
if TYPE_CHECKING:
    from streamtap.model import Flow

SCOPES = (
    ("exe", "PATH", "an executable; a glob is allowed"),
    ("comm", "NAME", "processes with this name"),
    ("cmdline", "REGEX", "processes whose command line it is found in"),
    ("pid", "N", "a process"),
    ("uid", "USER", "processes of a user, by name or number"),
    ("cgroup", "PATH", "processes in a cgroup, or below it"),
    ("unit", "NAME.service", "processes of a systemd unit"),
)
LATER = {"wine": "--wine", "container": "--container"}
STANDARD = ("line", "json", "wpp")  # what goes to standard output


def add_scopes(parser: Parser) -> None:
    group = parser.add_argument_group(
        "scopes", "Which applications; several are alternatives. Each may be repeated."
    )
    add = group.add_argument
    add_scope_words(add, "PATH", "the same as --exe PATH")
    add("-f", "--follow-forks", action="store_true", help="with --pid: its descendants too")
    add("--new-only", action="store_true", help="leave out connections that are open already")
    add(
        "--both-ends",
        action="store_true",
        help="what two watched applications say to each other, at both of them",
    )


def add_scope_words(add: Callable[..., object], metavar: str, positional: str) -> None:
    """The ways to name applications, which `scopes_given` understands."""
    add("paths", nargs="*", metavar=metavar, help=positional)
    for name, value, text in SCOPES:
        add(f"--{name}", action="append", default=[], metavar=value, help=text)
    add("--wine", metavar="NAME.exe", help="not available yet")
    add("--container", metavar="ID", help="not available yet")


def add_output(parser: Parser) -> None:
    add = parser.add_argument_group("output").add_argument
    add_sinks(add)
    add(
        "-w",
        dest="write",
        metavar="FILE",
        help="packets to a pcapng file, - for standard output, instead of lines; live, what was "
        "said is left out without --content full",
    )
    add(
        "--extract",
        metavar="DIR",
        help="write the ordered bytes to a new folder: a file for each connection and direction, "
        "and index.jsonl; live with --content full only",
    )

    add = parser.add_argument_group("what is shown").add_argument
    add_content(add, "full: message text, and a record of who asked for it")
    add_choice(add)
    add_connections(add)
    add("--protocol", metavar="NAME", help="the parser for every connection")
    add = parser.add_argument_group("end").add_argument
    add_count(
        add,
        "; those about streamtap itself are left out, unless --provider or --flag asks for them",
    )
    add(
        "--duration",
        type=seconds,
        metavar="S",
        help="end after so many seconds; exit 124 if no connection was seen",
    )
    add("--strict", action="store_true", help="exit 8 if any data was lost")


def add_sinks(add: Callable[..., object]) -> None:
    """Where records go, and how lines look."""
    add(
        *("-o", "--output"),
        action="append",
        default=[],
        metavar="SINK",
        help="line (the default), json or wpp on standard output; FILE.jsonl or FILE.sqlite; "
        "may be repeated",
    )
    add("--json", action="store_true", help="-o json: one JSON object a line")
    add("-l", dest="line_buffered", action="store_true", help="write each record at once")
    add("-n", dest="numeric", action="store_true", help="accepted: no address is made a name")
    add("-q", dest="quiet", action="store_true", help="shorter lines")
    add("-v", dest="verbose", action="store_true", help="longer lines; streamtap itself too")
    add("-A", dest="as_text", action="store_true", help="content as text; with --content full")
    add("-X", dest="as_hex", action="store_true", help="content as hex; with --content full")


def add_choice(add: Callable[..., object], default: str = "the default") -> None:
    """--provider, --flag and --level; default: when flags are not chosen one by one."""
    add(
        "--provider",
        action="append",
        default=[],
        metavar="NAME",
        help="records of monitor, notify, control, init or stream; may be repeated",
    )
    add(
        "--flag",
        action="append",
        default=[],
        metavar="NAME",
        help=f"records of this flag, or all; {default} is every flag but all_traffic",
    )
    add("--level", metavar="NAME", help="error, warn, info or verbose, and what is graver")


def add_count(add: Callable[..., object], more: str = "") -> None:
    """-c; more: what is to be said beside that."""
    add(
        "-c",
        dest="count",
        type=_count,
        metavar="COUNT",
        help="end after so many records" + more,
    )


def add_content(add: Callable[..., object], full: str) -> None:
    """--content; full: what that level gives here."""
    add(
        "--content",
        choices=("none", "meta", "full"),
        default="meta",
        metavar="LEVEL",
        help="none: accounts and file names as hashes; meta (the default): no message text; "
        + full,
    )


def add_connections(add: Callable[..., object]) -> None:
    """--port and --host, which `wanted_flows` understands."""
    add(
        "--port",
        action="append",
        default=[],
        type=_port,
        metavar="N",
        help="connections with this port at either end; may be repeated",
    )
    add(
        "--host",
        action="append",
        default=[],
        type=_address,
        metavar="ADDR",
        help="connections with this address at either end; may be repeated",
    )


def check_output(arguments: Arguments) -> None:
    """Raises UsageError for options that contradict each other, or come with a later version."""
    check_later(arguments)
    if arguments.quiet and arguments.verbose:
        raise UsageError("-q and -v contradict each other")
    if arguments.as_text and arguments.as_hex:
        raise UsageError("-A and -X contradict each other")
    if (arguments.as_text or arguments.as_hex) and arguments.content != "full":
        raise UsageError(f"{'-A' if arguments.as_text else '-X'} needs --content full")
    if len(standard_sinks(arguments)) > 1:
        raise UsageError("only one of -o line, json and wpp can have standard output")
    if arguments.write == "-":
        if standard_sinks(arguments):
            raise UsageError(f"-w - and -o {standard_sinks(arguments)[0]} contradict each other")
        if sys.stdout is not None and sys.stdout.isatty():
            raise UsageError(
                "-w - writes packets, and standard output is a terminal",
                "-w FILE, or: streamtap monitor ... -w - | wireshark -k -i -",
            )
    if arguments.write == "":
        raise UsageError("-w needs the name of a file")
    if arguments.extract == "":
        raise UsageError("--extract needs the name of a folder")


def check_later(arguments: Arguments) -> None:
    """Raises UsageError for options that come with a later version."""
    for name, option in LATER.items():
        if getattr(arguments, name, None) is not None:
            raise UsageError(f"{option} is not available yet")


def check_scopes(arguments: Arguments) -> None:
    """Raises UsageError for scopes that contradict each other."""
    command = arguments.command
    if command is not None and not (command and command[0]):
        raise UsageError("-- needs a command")
    if arguments.pid and command is not None:
        raise UsageError("--pid and -- COMMAND contradict each other")
    if arguments.follow_forks and not arguments.pid and command is None:
        raise UsageError("--follow-forks needs --pid")


def scopes_given(arguments: Arguments) -> list[tuple[str, str]]:
    """Kind and text of each scope, PATHs first."""
    given = [("exe", path) for path in arguments.paths]
    return given + [(name, text) for name, _, _ in SCOPES for text in getattr(arguments, name)]


def sinks(arguments: Arguments) -> list[str]:
    """What -o and --json ask for, each once; lines where nothing is asked for, neither -w nor
    --extract."""
    asked = [*arguments.output, *(["json"] if arguments.json else [])]
    return list(dict.fromkeys(asked)) or ([] if arguments.write or arguments.extract else ["line"])


def standard_sinks(arguments: Arguments) -> list[str]:
    return [sink for sink in sinks(arguments) if sink in STANDARD]


def takes_stdout(arguments: Arguments) -> bool:
    """Whether what we write goes to standard output: nothing else may."""
    return bool(standard_sinks(arguments)) or arguments.write == "-"


def seconds(text: str) -> float:
    """A time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not (math.isfinite(value) and value >= 0):
        raise ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is no number of records")
    return int(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)


def _address(text: str) -> str:
    """An address in the form that `plain_address` gives."""
    try:
        return plain_address(text.strip("[]"))
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is no IPv4 or IPv6 address (names are not looked up)"
        ) from None


def wanted_flows(arguments: Arguments) -> "Callable[[Flow], bool] | None":
    """The test of --port and --host, which must both hold; None without them."""
    ports, hosts = frozenset(arguments.port), frozenset(arguments.host)
    if not ports and not hosts:
        return None

    def wanted(flow: "Flow") -> bool:
        ends = (flow.local, flow.remote)
        return (not ports or any(end.port in ports for end in ends)) and (
            not hosts or any(plain_address(end.address) in hosts for end in ends)
        )

    return wanted


def plain_address(text: str) -> str:
    """One form for each address: shortest, IPv4 never mapped into IPv6. Raises ValueError."""
    from ipaddress import IPv6Address, ip_address

    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
