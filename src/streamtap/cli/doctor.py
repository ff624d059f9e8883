"""`doctor`: whether this machine has what streamtap needs, and what to do where it has not."""

import os
import platform
import re
from collections.abc import Iterator
from typing import NamedTuple

from streamtap.cli.parsing import Arguments, Parser
from streamtap.cli.tables import add_json, print_json

KERNEL = (5, 15)
ARCHITECTURES = ("x86_64", "aarch64")
BTF = "/sys/kernel/btf/vmlinux"
LOCKDOWN = "/sys/kernel/security/lockdown"
HOST_PID_NAMESPACE = 4026531836  # PROC_PID_INIT_INO of include/linux/proc_ns.h
OK, WARNING, MISSING = "ok", "warning", "missing"
PERMITTED, UNSUPPORTED = 4, 5
_RIGHTS = "capabilities"
_LOG_LINES = 5
_SIZES = {"segments": 4096, "control": 4096}  # of rings, for a trial


class Check(NamedTuple):
    """One requirement: whether it is met, what was found, and what to do ("" for nothing).

    status: ok; warning, where monitoring works without it; missing.
    """

    name: str
    status: str
    found: str
    advice: str = ""


def doctor_options(parser: Parser) -> None:
    add_json(parser)


def doctor(arguments: Arguments) -> int:
    checks = list(examine())
    if arguments.json:
        print_json([check._asdict() for check in checks])
    else:
        for check in checks:
            print(f"{check.status:8} {check.name:20} {check.found}")
            if check.advice:
                print(" " * 30 + f"-> {check.advice}")
    missing = [check.name for check in checks if check.status == MISSING]
    if not missing:
        return 0
    return PERMITTED if missing == [_RIGHTS] else UNSUPPORTED


def examine() -> Iterator[Check]:
    """All checks, the cheap ones first."""
    from streamtap.capture.rights import missing_capabilities

    yield kernel_check(platform.release())
    machine = platform.machine()
    known = machine in ARCHITECTURES
    yield Check(
        "architecture",
        OK if known else MISSING,
        machine,
        "" if known else "x86-64 or arm64 is needed",
    )
    btf = os.path.exists(BTF)
    yield Check(
        "BTF",
        OK if btf else MISSING,
        BTF if btf else f"no {BTF}",
        "" if btf else "a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed",
    )
    yield from _mounts()
    library = _library()
    yield library
    missing = missing_capabilities()
    yield Check(
        _RIGHTS,
        MISSING if missing else OK,
        f"{', '.join(missing)} missing" if missing else "all that are needed",
        "run with sudo" if missing else "",
    )
    yield _namespace()
    yield from _lockdown()
    if missing or library.status is MISSING:
        why = "not tried: " + ("the rights are missing" if missing else "libbpf is missing")
        yield Check("callouts", WARNING, why, "sudo streamtap doctor" if missing else "")
    else:
        yield from _trials()


def kernel_check(release: str) -> Check:
    found = re.match(r"(\d+)\.(\d+)", release)
    old = found is not None and (int(found[1]), int(found[2])) < KERNEL
    least = ".".join(map(str, KERNEL))
    if old:
        return Check("kernel", MISSING, release, f"{least} or newer is needed")
    return Check("kernel", OK, release)


def _mounts() -> Iterator[Check]:
    from streamtap.capture.identity import find_mount

    cgroup2 = find_mount("cgroup2")
    supported = cgroup2 is not None or _knows_filesystem("cgroup2")
    if supported:
        where = (
            f"mounted on {cgroup2}" if cgroup2 else "not mounted: each monitor has its own mount"
        )
        yield Check("cgroup v2", OK, where)
    else:
        advice = "a kernel built with CONFIG_CGROUPS=y and CONFIG_CGROUP_BPF=y is needed"
        yield Check("cgroup v2", MISSING, "the kernel does not know it", advice)
    bpffs = find_mount("bpf")
    where = f"mounted on {bpffs}" if bpffs else "not mounted"
    yield Check("bpffs", OK, f"{where}; monitor needs none, only callouts that persist do")


def _knows_filesystem(name: str) -> bool:
    with open("/proc/filesystems") as file:
        return any(line.split()[-1] == name for line in file)


def _library() -> Check:
    from streamtap.capture.libbpf import library
    from streamtap.errors import KernelUnsupported

    try:
        version = library().libbpf_version_string()
    except KernelUnsupported as error:
        return Check("libbpf", MISSING, error.needs, error.hint)
    return Check("libbpf", OK, version.decode())


def _namespace() -> Check:
    try:
        number = int(re.sub(r"\D", "", os.readlink("/proc/self/ns/pid")))
    except OSError as error:
        return Check("pid namespace", WARNING, f"not known: {error.strerror}")
    if number == HOST_PID_NAMESPACE:
        return Check("pid namespace", OK, "the host's")
    advice = "run on the host, or in a container with its pid namespace (--pid=host)"
    return Check("pid namespace", WARNING, "not the host's: pids in records are the host's", advice)


def _lockdown() -> Iterator[Check]:
    try:
        with open(LOCKDOWN) as file:
            found = re.search(r"\[(\w+)\]", file.read())
    except OSError:
        return  # there is no lockdown, or it is not shown
    mode = found[1] if found else "none"
    if mode == "confidentiality":
        advice = "boot with lockdown=integrity: kernel memory may not be read in this mode"
        yield Check("lockdown", MISSING, mode, advice)
    else:
        yield Check("lockdown", OK, mode)


def _trials() -> Iterator[Check]:
    """Loads each variant of the callouts; nothing is attached."""
    from streamtap.capture.compiled import VARIANTS, load
    from streamtap.errors import CalloutError, StreamtapError

    good: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for variant in VARIANTS:
        try:
            loaded, _, skipped = load([variant], _SIZES)
            loaded.close()
            good[variant] = skipped
        except StreamtapError as error:
            log = error.log if isinstance(error, CalloutError) else ""
            lines = [str(error).splitlines()[0], *log.strip().splitlines()[-_LOG_LINES:]]
            refused[variant] = "\n".join(lines)
    for variant in VARIANTS:
        name = f"callouts {variant}"
        if variant in good:
            yield Check(name, OK, "load")
        else:
            # One is enough: the second is there for kernels that refuse the first.
            status = WARNING if good else MISSING
            advice = "not needed: the other one loads" if good else "please report this"
            yield Check(name, status, refused[variant], advice)
    if good:
        skipped = next(iter(good.values()))
        found = f"without {', '.join(skipped)}" if skipped else "all load"
        advice = "sockets received from other processes are seen only once connected again"
        yield Check("optional hooks", WARNING if skipped else OK, found, advice if skipped else "")
