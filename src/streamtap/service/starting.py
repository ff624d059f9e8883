"""Starting a parser: a process of its own, with the few descriptors that it is to have."""

import subprocess
import sys
from typing import NamedTuple

from streamtap.service import link
from streamtap.service.board import Board
from streamtap.service.confine import helper_environment
from streamtap.service.link import ParserEnd, Told
from streamtap.service.messages import SetFilters, Setup


class Started(NamedTuple):
    """A parser, which is the caller's to wait for, and the keeper's end of the link to it."""

    process: "subprocess.Popen[bytes]"
    end: ParserEnd


def start_parser(
    data_fd: int,
    control_fd: int,
    board: Board,
    ledger_fd: int,
    told: Told,
    setup: Setup,
    filters: SetFilters,
    *,
    argv: tuple[str, ...] = (sys.executable, "-P", "-m", "streamtap.service.parser"),
) -> Started:
    """Starts it. It reads the rings when it is ordered to `Begin`, which is to follow the orders
    about the sessions that are to miss nothing; then `told.ready` is called. It dies with the
    thread that calls this, so that no second one ever reads them at the same time.

    data_fd, control_fd: of the rings; setup tells their sizes. ledger_fd: as `ledger.prepare`
    leaves it. filters: those of now.
    """
    ours, theirs = link.make()
    try:
        given = (theirs.fileno(), data_fd, control_fd, board.fd, ledger_fd)
        process = subprocess.Popen(
            [*argv, *map(str, given)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=helper_environment(),
            pass_fds=given,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    end = ParserEnd(ours, told)
    end.order(setup)
    end.order(filters)
    return Started(process, end)
