"""The command line: `streamtap VERB …`, and `monitor` for `streamtap monitor`.

Modules of verbs are imported when their verb is used, and what is heavy inside their `run`, so
that help comes at once.
"""

import contextlib
import os
import sys
from collections.abc import Sequence

from streamtap.cli.parsing import UsageError, find, help_text, parser_of, resolve, run_of, say
from streamtap.errors import StreamtapError

INTERRUPTED = 130  # 128 + SIGINT
_TRACE_VERBS = ("start", "stop", "rt", "fmt")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; its exit code."""
    _hold_standard_numbers()
    with contextlib.suppress(AttributeError):  # stdout is closed, or is not a text file
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except UsageError as error:
        return _complain(str(error), error.hint, 2)
    except StreamtapError as error:
        return _complain(str(error), error.hint, error.exit_code)
    except UnicodeEncodeError as error:
        # Only what was asked for is repeated: another text may be what somebody said.
        what = f"{error.object!a}" if error.object in words else "a name"
        return _complain(f"{what} is no text in UTF-8, which alone is kept", "", 2)
    except ValueError as error:
        return _complain(str(error), "", 2)
    except OSError as error:
        _silence_stdout()
        return _complain(_told(error), "", 1)


def main_monitor(argv: Sequence[str] | None = None) -> int:
    """The command `monitor`: the verbs of streamtap too, for who knows them by that name."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and find(words[0]) is not None:
        return main(words)
    return main(["monitor", *words])


def main_trace(argv: Sequence[str] | None = None) -> int:
    """The command `monitor_trace COMPONENT LEVEL VERB`: trace sessions with the arguments of the
    sample's script, each component being a session of its own name."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        return main(["trace", "--help"])
    if len(words) < 3 or words[2] not in _TRACE_VERBS:
        return _complain(
            "monitor_trace takes COMPONENT LEVEL VERB",
            f"VERB is one of {', '.join(_TRACE_VERBS)}",
            2,
        )
    component, level, verb, *rest = words
    name = component.lower().removeprefix("trace_")
    chosen = "all" if name == "9" else component
    if verb == "stop":
        return main(["trace", "stop", name, *rest])
    if verb == "fmt":
        from streamtap.service.paths import Paths
        from streamtap.trace.rotation import name_of

        recording = Paths.of_environment().recordings / f"{name}.jsonl"
        full = recording.parent.glob(f"{name}.*.jsonl")
        files = [recording, *sorted(one for one in full if name_of(one)[0] == recording)]
        return main(["trace", "fmt", *map(str, files), f"{chosen}@{level}", *rest])
    return main(["trace", verb, *([name] if verb == "start" else []), f"{chosen}@{level}", *rest])


def _run(argv: list[str]) -> int:
    word = argv[0] if argv else ""
    if word in ("-h", "--help"):
        print(help_text())
        return 0
    if word == "--version":
        from streamtap import __version__

        print(f"streamtap {__version__}")
        return 0
    verb, rest = resolve(argv)
    try:
        arguments = parser_of(verb).parse(rest)
    except SystemExit as leaving:  # --help
        return int(leaving.code or 0)
    return run_of(verb)(arguments)


def _complain(message: str, hint: str, code: int) -> int:
    say(f"streamtap: error: {message}" + (f"\nhint: {hint}" if hint else ""))
    return code


def _told(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _hold_standard_numbers() -> None:
    """What was closed when we were started: no file of ours, nor of a command, gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free


def _silence_stdout() -> None:
    """What is left in its buffer can't be written: it must not fail again when Python ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
