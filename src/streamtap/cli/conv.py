"""`conv`: its options. What it does is in `conversations`."""

from streamtap.cli.options import add_connections, add_content
from streamtap.cli.parsing import Arguments, Parser, UsageError
from streamtap.cli.signals import Stop

_CONV = """
Shows the conversations of captures and recordings: who took part, when, for how long, how many
messages each sent, and files. A FILE is a capture, as read takes it (- is standard input), or what
-o FILE.jsonl or -o FILE.sqlite wrote; which, is told by its content. Several are one set. A message
that is relayed, and seen on several connections, counts once; so does what several files hold."""


def conv_options(parser: Parser) -> None:
    parser.usage = "streamtap conv FILE... [OPTION...]"
    parser.description = _CONV.strip()
    parser.epilog = "example: streamtap conv -v --account bob@example.com old.pcap chat.sqlite"
    parser.add_argument("files", nargs="*", metavar="FILE", help="a capture or a recording")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="one JSON object a line, each a conversation")
    add(
        *("-v", "--verbose"),
        action="store_true",
        help="below each conversation also kinds of messages, files, errors and connections",
    )
    add(
        "--transcript",
        action="store_true",
        help="below each conversation what was said; needs --content full",
    )
    add = parser.add_argument_group("what is shown").add_argument
    add(
        "--account",
        action="append",
        default=[],
        metavar="NAME",
        help="conversations with this account, also if it was only invited; may be repeated",
    )
    add_content(add, "full: message text, in a --transcript")
    add_connections(add)


def conv(arguments: Arguments) -> int:
    if not arguments.files:
        raise UsageError("nothing to read: no file is named", "streamtap conv FILE.pcap")
    if arguments.files.count("-") > 1:
        raise UsageError("standard input can be read only once")
    if arguments.transcript and arguments.content != "full":
        raise UsageError("--transcript needs --content full")
    with Stop() as stop:
        try:
            from streamtap.service.confine import single_threaded

            with single_threaded():  # NumPy, that is, which starts as many as there are processors
                from streamtap.cli.conversations import show_conversations

            return show_conversations(arguments, stop)
        except KeyboardInterrupt:  # the second signal: something blocked
            return 128 + stop.number
