"""Protocols: ordered bytes to protocol events that tile the stream.

Each parser is one module or package of this folder; importing the folder imports none of them.
"""

from streamtap.protocols._base import Limits, Parser, Pool, Verdict
from streamtap.protocols._detect import by_name, detect, event_types, parsers, way_of

__all__ = [
    "Limits",
    "Parser",
    "Pool",
    "Verdict",
    "by_name",
    "detect",
    "event_types",
    "parsers",
    "way_of",
]
