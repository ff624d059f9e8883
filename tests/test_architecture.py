"""Who may import what, as a table. A change to it is a design decision."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "streamtap"
CORE = {"model", "events", "errors"}
PIPELINE = CORE | {"capture", "flows", "streams", "protocols", "patterns", "trace"}

# part -> (parts of streamtap it may import besides itself, third-party packages)
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "__init__": ({"api", "model", "ordered"}, set()),
    "__main__": ({"cli"}, set()),
    "model": (set(), {"msgspec"}),
    "errors": (set(), set()),
    "events": ({"model"}, {"msgspec"}),
    "capture": ({"model", "errors"}, {"numpy", "msgspec", "backports"}),
    "flows": ({"model", "errors"}, {"msgspec"}),
    "room": (set(), set()),
    "streams": ({"model", "errors", "room"}, {"msgspec"}),
    "protocols": ({"model", "events", "room"}, {"msgspec"}),
    "patterns": ({"model", "events", "protocols"}, {"msgspec"}),
    "trace": ({"model", "events", "errors"}, {"msgspec", "numpy"}),
    "demux": ({"model", "errors", "flows", "streams"}, set()),
    "pipeline": ((PIPELINE - {"capture", "trace"}) | {"demux"}, {"msgspec", "numpy"}),
    "command": ({"errors"}, set()),
    "driver": ({"capture", "flows", "model"}, {"numpy"}),
    "holding": ({"capture", "command", "driver", "errors", "flows"}, set()),
    "watch": (CORE | {"capture", "demux", "holding", "pipeline"}, set()),
    "tally": ({"events"}, set()),
    "summary": ({"events", "patterns", "tally"}, {"msgspec"}),
    "ordered": ({"capture", "demux", "flows", "model", "protocols", "streams"}, set()),
    "listener": (CORE | {"capture", "pipeline"}, {"msgspec"}),
    "reading": (
        PIPELINE | {"demux", "listener", "ordered", "pipeline", "tally", "__init__"},
        {"msgspec"},
    ),
    "api": (
        PIPELINE
        | {"demux", "holding", "ordered", "pipeline", "watch", "reading", "service", "tally"}
        | {"__init__"},
        {"msgspec"},
    ),
    "service": (
        PIPELINE | {"__init__", "driver", "holding", "pipeline", "tally"},
        {"msgspec", "numpy"},
    ),
    "demo": (set(), set()),
    "cli": (
        PIPELINE
        | {"pipeline", "watch", "reading", "service", "tally", "summary", "api", "demo"}
        | {"__init__", "command", "holding", "ordered"},
        {"msgspec"},
    ),
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module == "streamtap":
                found |= {f"streamtap.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    import sys

    part = path.relative_to(SRC).parts[0].removesuffix(".py")
    parts, third_party = ALLOWED[part]
    for module in imports_of(path):
        top, _, rest = module.partition(".")
        if top == "streamtap":
            target = rest.split(".")[0] or "__init__"
            if target.startswith("__version"):
                target = "__init__"
            assert target == part or target in parts, f"{path} may not import {module}"
        elif top not in sys.stdlib_module_names | {"compression"}:  # since Python 3.14
            assert top in third_party, f"{path} may not import {module}"
