"""A flow as it is told."""

from typing import Literal

from msgspec.structs import replace

from streamtap.events import FlowInfo
from streamtap.model import App, Content, Flow, Role, Scoped

_SIDES: dict[Role, tuple[Literal["sent", "received"], Literal["sent", "received"]]] = {
    Role.CLIENT: ("sent", "received"),
    Role.SERVER: ("received", "sent"),
}


class Voice:
    """What records say of a flow, and how much.

    flow, info: the flow, and what records have of it; peer: the application at the other end.
    sides: what they call each direction. content: the most that they tell.
    protocol: "" until it was told. other: the voice of the connection's other end, if that is
    followed too.
    broken: what its parser gave could not be told; it is told as plain bytes.
    """

    __slots__ = ("broken", "content", "flow", "info", "other", "protocol", "sides")

    def __init__(self, flow: Flow, content: Content, peer: App | None) -> None:
        self.flow = flow
        self.info = FlowInfo(
            app=flow.app,
            flow=f"{flow.flow_id:x}",
            local=str(flow.local),
            remote=str(flow.remote),
            role=flow.role.value,
            peer=peer,
            filters=flow.filters,
        )
        self.sides = _SIDES[flow.role]
        self.content = content
        self.protocol = ""
        self.other: Voice | None = None
        self.broken = False

    def meet(self, other: "Voice") -> None:
        """The other end of the connection is open too."""
        self.other, other.other = other, self
        other.info = replace(other.info, peer=self.flow.app)

    def rescope(self, scoped: Scoped) -> None:
        """It is in other filters from now on."""
        flow = self.flow
        app = replace(flow.app, filter=scoped.filter) if flow.app else None
        self.flow = replace(flow, app=app, filters=scoped.filters)
        self.info = replace(self.info, app=app, filters=scoped.filters)
        if self.other is not None:
            self.other.info = replace(self.other.info, peer=app)
