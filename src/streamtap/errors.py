"""The exceptions of streamtap: what failed and why in the message, what to do in `hint`."""


class StreamtapError(Exception):
    """Base of all errors that streamtap raises for a person to read."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class PermissionMissing(StreamtapError):
    """A right is missing; the message names it, the hint the command that gives it."""

    exit_code = 4


class KernelUnsupported(StreamtapError):
    """The kernel, or a library beside it, lacks something that streamtap needs."""

    exit_code = 5

    def __init__(self, feature: str, needs: str, hint: str = "see: streamtap doctor") -> None:
        super().__init__(f"{feature} is not available: {needs}", hint)
        self.feature = feature
        self.needs = needs


class CalloutError(StreamtapError):
    """The kernel refused a callout; `log` keeps the verifier's whole text."""

    exit_code = 5

    def __init__(self, message: str, hint: str = "", log: str = "") -> None:
        tail = "\n  ".join(log.strip().splitlines()[-5:])
        super().__init__(f"{message}\n  {tail}" if tail else message, hint)
        self.log = log


class CaptureFileError(StreamtapError):
    """A capture file is of an unknown form, or damaged at `offset` bytes (None: as a whole)."""

    def __init__(self, path: str, offset: int | None, reason: str) -> None:
        super().__init__(f"{path}: {reason}" + ("" if offset is None else f" at offset {offset}"))
        self.path = path
        self.offset = offset
        self.reason = reason


class NotFound(StreamtapError):
    """No such filter, session, program, process or file."""

    exit_code = 6


class AlreadyExists(StreamtapError):
    """What was to be made is there already."""

    exit_code = 7


class ServiceError(StreamtapError):
    """The service, or a running monitor, is not there or does not answer."""

    exit_code = 3


class NotRunning(ServiceError):
    """No service answers on the control socket."""


class AlreadyRunning(AlreadyExists):
    """A service is to be started, and one runs."""


class Busy(StreamtapError):
    """Another process is just changing the filters."""
