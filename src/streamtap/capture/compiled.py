"""The callouts as they are compiled: what is in their objects, and which of them a kernel takes."""

import errno
import os
from functools import cache
from hashlib import sha256
from pathlib import Path

from streamtap.capture.libbpf import Log, Object
from streamtap.capture.rights import is_administrator
from streamtap.errors import CalloutError, KernelUnsupported, PermissionMissing

FOLDER = Path(__file__).parent
VARIANTS = {"dynptr": "callout.bpf.o", "scratch": "callout_scratch.bpf.o"}
# Before the sockets are looked at, every process must be known; before a socket is marked, its
# packets must be seen.
PROCESS_HOOKS = ("process_exec", "process_fork", "process_exit")
CGROUP_HOOKS = ("stream_received", "stream_sent", "flow_established", "socket_created")
OPTIONAL_HOOKS = ("socket_sent", "socket_received")
MAPS = (
    *("apps", "names", "scripts", "comms", "uids", "cgroups", "processes", "verdicts"),
    *("policies", "settings", "counters", "flows", "segments", "control"),
)


def load(
    variants: list[str],
    sizes: dict[str, int],
    optional: bool = True,
    reuse: dict[str, int] | None = None,
) -> tuple[Object, str, tuple[str, ...]]:
    """The first variant that the kernel takes, with the optional hooks if it takes them too: the
    loaded object, the variant, and the hooks left out. Raises CalloutError for none.

    reuse: maps that exist already, by name."""
    said = ""
    for variant in variants:
        for skipped in ((), OPTIONAL_HOOKS) if optional else (OPTIONAL_HOOKS,):
            log = Log()
            try:
                path = str(FOLDER / VARIANTS[variant])
                if not os.path.exists(path):
                    raise KernelUnsupported(
                        "the callout object", f"{path} is not there", "build the package again"
                    )
                return Object(path, skip=skipped, sizes=sizes, reuse=reuse), variant, skipped
            except OSError as error:
                reason, said = error, log.text
            finally:
                log.close()
    if reason.errno in (errno.EPERM, errno.EACCES) and not is_administrator():
        raise PermissionMissing(
            "the kernel refuses the callouts: a capability is missing", "run with sudo"
        ) from reason
    raise CalloutError(
        f"the kernel refuses the callouts: {os.strerror(reason.errno or 0)}",
        "see: streamtap doctor",
        said,
    ) from reason


@cache
def build(variant: str) -> int:
    """Tells one build of the callouts from another."""
    digest = sha256((FOLDER / VARIANTS[variant]).read_bytes()).digest()
    return int.from_bytes(digest[:8], "little") or 1
