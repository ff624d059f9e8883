"""Plays the demo: `python -m streamtap.demo`, the server and both clients as children of it."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from streamtap.demo import TIMEOUT_S, run, seconds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="streamtap.demo", description=__doc__)
    parser.add_argument("--pace", type=seconds, default=0.0, help="seconds between the steps")
    parser.add_argument("--timeout", type=seconds, default=TIMEOUT_S, help="besides the pauses")
    parser.add_argument("--transcripts", type=Path, help="directory for what passed, as JSON lines")
    arguments = parser.parse_args(argv)

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)  # unwinds, so that the children are cleaned up

    def announce(ports: list[int]) -> None:
        print("demo: server on ports {} and {}".format(*ports), file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, leave)
    try:
        return run(
            arguments.pace, announce, timeout_s=arguments.timeout, transcripts=arguments.transcripts
        )
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
