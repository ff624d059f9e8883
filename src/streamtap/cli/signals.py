"""Signals that ask a monitor to end."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Stop:
    """While it is entered, SIGINT, SIGTERM and SIGHUP are noted, not obeyed: the owner looks at
    `number` and ends in good order. A second one interrupts whatever blocks, an output that
    nobody reads for example, by KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Who was started by nohup is meant to outlive the terminal. SIGINT is taken even
            # where it was ignored, as in the background of a script: it is our way to end.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
