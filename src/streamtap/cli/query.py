"""`query`: its options. What it does is in `querying`."""

from streamtap.cli.options import seconds
from streamtap.cli.parsing import Arguments, Parser, UsageError
from streamtap.cli.signals import Stop

_QUERY = """
Asks a recording in SQL, and prints a table. A recording in SQLite is asked as it is, also while it
is written; one of JSON lines is read into the same tables in memory first. Nothing can be changed:
the recording is opened for reading, and only what reads is allowed. --schema tells the tables; what
their columns mean is in docs/reference/outputs.md."""


def query_options(parser: Parser) -> None:
    parser.usage = "streamtap query FILE {SQL | --schema} [OPTION...]"
    parser.description = _QUERY.strip()
    parser.epilog = (
        "example: streamtap query chat.sqlite "
        "'select account, sum(messages) from participants group by account'"
    )
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="a recording")
    add("sql", nargs="?", metavar="SQL", help="one statement")
    add("--json", action="store_true", help="one JSON object a line, each a row")
    add("--schema", action="store_true", help="print the tables instead")
    add(
        "--timeout",
        type=seconds,
        metavar="S",
        help="give up after so many seconds; without it Ctrl-C ends the query",
    )


def query(arguments: Arguments) -> int:
    if arguments.file is None:
        raise UsageError("nothing to ask: no recording is named", "streamtap query FILE SQL")
    if arguments.schema == (arguments.sql is not None):
        raise UsageError(
            "--schema and SQL contradict each other" if arguments.schema else "SQL is missing",
            f"streamtap query {arguments.file} --schema tells the tables",
        )
    with Stop() as stop:
        try:
            from streamtap.cli.querying import ask

            return ask(arguments, stop)
        except KeyboardInterrupt:  # the second signal: something blocked
            return 128 + stop.number
