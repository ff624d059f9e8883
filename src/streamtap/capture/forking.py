"""Processes of ours that work for this one, and end when it has gone."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn


class Fork:
    """A process that was forked here, with all that there is.

    pid, pipe: of it.
    """

    def __init__(
        self, work: Callable[[Connection], None], others: Sequence[Connection] = ()
    ) -> None:
        """work: what it does, given its end of the pipe; it ends when that is closed. others: our
        ends of the pipes of earlier ones, which it must not hold open."""
        self.pipe, theirs = Pipe()
        self._owner = os.getpid()
        with warnings.catch_warnings():
            # NumPy's own threads are idle; this process has no others.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            _live(work, theirs, (*others, self.pipe))
        theirs.close()

    def end(self) -> None:
        """Whatever it is doing. Where this process was itself forked since, it is another's."""
        self.pipe.close()
        if os.getpid() != self._owner:
            return
        with suppress(ProcessLookupError, ChildProcessError):  # where the host reaps what has ended
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)


def _live(
    work: Callable[[Connection], None], pipe: Connection, others: Sequence[Connection]
) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who has begun us
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for other in others:  # or nobody would notice that the other end has gone
            other.close()
        work(pipe)
        code = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # it has gone
    except BaseException as error:
        # The places alone: what an exception says may quote what was said on the wire.
        traceback.print_tb(error.__traceback__)
        print(type(error).__name__, file=sys.stderr)
    finally:
        os._exit(code)  # what this process would do at its end is for the one it came from
