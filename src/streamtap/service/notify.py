"""Telling the service manager how it goes. Source: sd_notify(3), sd_watchdog_enabled(3).

Without a manager, nothing is told and nothing fails.
"""

import logging
import os
import socket
from collections.abc import Callable

Ready = Callable[[str], object]  # called once, with one line on what is up

_log = logging.getLogger(__name__)


def ready(status: str) -> bool:
    """The service is up; False where nobody wants to know."""
    return _tell(f"READY=1\n{_status(status)}")


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return _tell(_status(text))


def stopping() -> bool:
    return _tell("STOPPING=1")


def watchdog() -> bool:
    """Still alive: to be said every second or so, where the manager waits for that; else it takes
    the service for hung."""
    if not os.environ.get("WATCHDOG_USEC"):
        return False
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return False  # meant for a process that started this one
    return _tell("WATCHDOG=1")


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def _tell(message: str) -> bool:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(address)
            # A manager that does not read must not hold the service up.
            channel.send(message.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError as error:
        _log.debug("the service manager was not told %s: %s", message.split("\n")[0], error)
        return False
    return True
