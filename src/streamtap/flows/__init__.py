"""Which conversation a segment belongs to, whose it is, and which applications are watched."""

from streamtap.flows.scope import Scope
from streamtap.flows.table import Certificate, Ending, FlowState, FlowTable

__all__ = ["Certificate", "Ending", "FlowState", "FlowTable", "Scope"]
