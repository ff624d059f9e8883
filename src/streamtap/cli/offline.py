"""`read`: its options. What it does is in `reading`."""

import os
import stat
from argparse import ArgumentTypeError

from streamtap.cli.options import add_output, check_output
from streamtap.cli.parsing import Arguments, Parser, UsageError
from streamtap.cli.signals import Stop

_READ = """
Reads captures through the same parsers as live traffic: pcap and pcapng, also compressed by gzip
or zstd; - is standard input. Several captures are read as one, in the order of time. What can be
read of a damaged file is read; then it is told what is wrong and where, and the exit code is 1.
In a capture, local is the client's end, and sent is what the client sends."""


def read_options(parser: Parser) -> None:
    parser.usage = "streamtap read FILE... [OPTION...]"
    parser.description = _READ.strip()
    parser.epilog = "example: streamtap read --port 1863 old.pcap.gz"
    add = parser.add_argument_group("captures").add_argument
    add("files", nargs="*", metavar="FILE", help="a capture; - is standard input")
    add(
        *("-f", "--follow"),
        action="store_true",
        help="at the end of a file wait for more, as tail -f does",
    )
    add("--tunnels", action="store_true", help="look into GRE, VXLAN and IP in IP too")
    add(
        "--flow",
        action="append",
        default=[],
        type=_flow,
        metavar="ID",
        help="connections with this name in the records; may be repeated",
    )
    add = parser.add_argument_group(
        "scopes",
        "Which applications, where the capture tells the processes; several are alternatives.",
    ).add_argument
    add("--exe", action="append", default=[], metavar="PATH", help="a program; a glob is allowed")
    add("--comm", action="append", default=[], metavar="NAME", help="processes with this name")
    add("--pid", action="append", default=[], type=_pid, metavar="N", help="a process")
    add_output(parser)


def read(arguments: Arguments) -> int:
    check_output(arguments)
    if not arguments.files:
        raise UsageError("nothing to read: no capture is named", "streamtap read FILE.pcap")
    _spare_what_is_read(arguments)
    if arguments.follow and len(arguments.files) > 1:
        raise UsageError("--follow takes one FILE")
    if arguments.files.count("-") > 1:
        raise UsageError("standard input can be read only once")
    with Stop() as stop:
        try:
            from streamtap.service.confine import single_threaded

            with single_threaded():  # NumPy, that is, which starts as many as there are processors
                from streamtap.cli.reading import read_captures

            return read_captures(arguments, stop)
        except KeyboardInterrupt:  # the second signal: something blocked
            return 128 + stop.number


def _spare_what_is_read(arguments: Arguments) -> None:
    """Raises UsageError where an output is a file that is read, by whatever name."""
    outputs = [(f"-o {name}", _regular(name)) for name in arguments.output]
    if arguments.write not in (None, "-"):
        outputs.append((f"-w {arguments.write}", _regular(arguments.write)))
    outputs.append(("standard output", _regular(1)))
    for file in arguments.files:
        status = _regular(0 if file == "-" else file)
        for output, other in outputs:
            if status and other and os.path.samestat(status, other):
                raise UsageError(f"{output} would overwrite what is read")


def _regular(file: str | int) -> os.stat_result | None:
    """The status of a regular file, by its name or descriptor; None of anything else."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is no process id")
    return int(text)


def _flow(text: str) -> int:
    """The number that a flow's name stands for."""
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if number < 0:
        raise ArgumentTypeError(f"{text!r} is no name of a flow: a hexadecimal number")
    return number
