"""Builds the callouts for the wheel: C to BPF objects, with clang or with ziglang from pip alone.

`python hatch_build.py` builds them in place, for work in a checkout.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
OUT = ROOT / "src" / "streamtap" / "capture"
# The second is for kernels before 5.19, which have no dynamic pointers into a ring.
VARIANTS = {"callout.bpf.o": [], "callout_scratch.bpf.o": ["-DSTREAMTAP_SCRATCH"]}
# -mcpu: the compilers' defaults differ; v3 has the atomics and is known from kernel 5.12 on.
# -disable-block-placement: else a loop may go back by running into its own head, not by a jump,
# and older kernels (6.1 among them) refuse that.
FLAGS = [
    *("-O2", "-g", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-ffreestanding"),
    *("-mllvm", "-disable-block-placement"),
]


def compiler() -> list[str]:
    """The command that compiles C to BPF: $STREAMTAP_CLANG, else clang, else pip's ziglang."""
    clang = os.environ.get("STREAMTAP_CLANG") or shutil.which("clang")
    if clang:
        return [clang, "-target", "bpfel", f"-I/usr/include/{os.uname().machine}-linux-gnu"]
    import ziglang  # type: ignore[import-untyped]

    include = Path(ziglang.__file__).parent / "lib" / "libc" / "include"
    return [
        *(sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding"),
        *("-isystem", str(include / "any-linux-any"), "-isystem", str(include / "x86-linux-any")),
    ]


def build(out: Path = OUT) -> list[Path]:
    """Compiles every variant into `out`; raises CalledProcessError if the compiler does."""
    command = [*compiler(), *FLAGS, "-c", str(ROOT / "bpf" / "callout.bpf.c")]
    built = []
    for name, options in VARIANTS.items():
        subprocess.run([*command, *options, "-o", str(out / name)], check=True)
        built.append(out / name)
    return built


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script without hatchling
    pass
else:

    class CalloutBuildHook(BuildHookInterface[Any]):
        """Compiles the callouts into the package before the wheel is put together."""

        PLUGIN_NAME = "custom"

        def dependencies(self) -> list[str]:
            if os.environ.get("STREAMTAP_CLANG") or shutil.which("clang"):
                return []
            return ["ziglang>=0.13"]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            for path in build():
                build_data["artifacts"].append(str(path.relative_to(ROOT)))


if __name__ == "__main__":
    for path in build():
        print(path)
