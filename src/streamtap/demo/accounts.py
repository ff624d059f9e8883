"""Who lives on the demo's server. Everybody has everybody on the list; carol never signs in."""

from collections.abc import Mapping
from types import MappingProxyType

NAMES: Mapping[str, str] = MappingProxyType(
    {"alice@example.com": "Alice", "bob@example.com": "Bob Müller", "carol@example.com": "Carol"}
)
