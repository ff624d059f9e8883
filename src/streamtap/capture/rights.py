"""What this process may do, as far as the callouts need it."""

from streamtap.capture.identity import in_host_user_namespace
from streamtap.errors import PermissionMissing

CAPABILITIES = {12: "CAP_NET_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}
_CAP_SYS_ADMIN = 21


def missing_capabilities() -> list[str]:
    """Names of the capabilities that loading and attaching need and this process lacks. Those
    held in a user namespace do not count for the kernel's own objects."""
    if not in_host_user_namespace():
        return list(CAPABILITIES.values())
    if is_administrator():
        return []
    return [name for number, name in CAPABILITIES.items() if not _effective(number)]


def require_rights() -> None:
    """Raises PermissionMissing naming what is missing."""
    if missing := missing_capabilities():
        where = "" if in_host_user_namespace() else " outside of this user namespace"
        raise PermissionMissing(
            "watching other programs needs administrator rights: "
            f"{', '.join(missing)} missing{where}",
            "run with sudo" if not where else "run on the host with sudo",
        )


def is_administrator() -> bool:
    """It has the one capability that older kernels ask for everything."""
    return _effective(_CAP_SYS_ADMIN)


def _effective(capability: int) -> bool:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False
