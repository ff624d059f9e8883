"""streamtap shows what one application says over TCP, and to whom, while it runs.

with streamtap.monitor("/usr/bin/curl") as records:
    for record in records:
        print(record.time_ns, record.body)
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"


TYPE_CHECKING = False  # as `typing` has it, which is not imported: programs start faster
if TYPE_CHECKING:
    from streamtap.api import App as App
    from streamtap.api import Body as Body
    from streamtap.api import Capture as Capture
    from streamtap.api import Chunk as Chunk
    from streamtap.api import Client as Client
    from streamtap.api import Closed as Closed
    from streamtap.api import Content as Content
    from streamtap.api import Direction as Direction
    from streamtap.api import Flow as Flow
    from streamtap.api import FlowClosed as FlowClosed
    from streamtap.api import FlowIdentified as FlowIdentified
    from streamtap.api import FlowInfo as FlowInfo
    from streamtap.api import FlowOpened as FlowOpened
    from streamtap.api import Gap as Gap
    from streamtap.api import Monitor as Monitor
    from streamtap.api import Record as Record
    from streamtap.api import Records as Records
    from streamtap.api import Scope as Scope
    from streamtap.api import StreamGap as StreamGap
    from streamtap.api import StreamPart as StreamPart
    from streamtap.api import StreamtapError as StreamtapError
    from streamtap.api import connect as connect
    from streamtap.api import launch as launch
    from streamtap.api import monitor as monitor
    from streamtap.api import new_filter as new_filter
    from streamtap.api import read as read
    from streamtap.api import resolve as resolve
    from streamtap.api import streams as streams

__all__ = (
    "App",
    "Body",
    "Capture",
    "Chunk",
    "Client",
    "Closed",
    "Content",
    "Direction",
    "Flow",
    "FlowClosed",
    "FlowIdentified",
    "FlowInfo",
    "FlowOpened",
    "Gap",
    "Monitor",
    "Record",
    "Records",
    "Scope",
    "StreamGap",
    "StreamPart",
    "StreamtapError",
    "__version__",
    "connect",
    "launch",
    "monitor",
    "new_filter",
    "read",
    "resolve",
    "streams",
)


# Names that need no more than a part of the package: who reads captures waits for nothing else.
_PARTS = {
    **dict.fromkeys(("streams", "StreamPart"), "ordered"),
    **dict.fromkeys(("App", "Chunk", "Closed", "Direction", "Flow", "Gap"), "model"),
}


def __getattr__(name: str) -> object:
    """The public names, when they are first used: importing the package costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'streamtap' has no attribute {name!r}")
    module = import_module(f"streamtap.{_PARTS.get(name, 'api')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """The folder `streams` shares its name with a public function. Imports of the folder set an
    attribute of the package; it is the function that stays."""

    @property
    def streams(self) -> object:
        return __getattr__("streams")

    @streams.setter
    def streams(self, folder: object) -> None:
        """Found in `sys.modules` by who imports from it."""


sys.modules[__name__].__class__ = _Package
