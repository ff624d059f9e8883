"""`flows`, and what is attached in the kernel now, whoever attached it."""

from collections.abc import Sequence
from typing import NamedTuple

from streamtap.cli.parsing import Arguments, Parser, say
from streamtap.cli.tables import add_json, print_json, print_table

TYPE_CHECKING = False  # as `typing` has it, which is not imported: programs start faster
if TYPE_CHECKING:
    from streamtap.capture.inspect import Attached, LiveFlow

NOT_RUNNING = 3
_BYTES = ("seen", "captured", "counted")
_COLUMNS = (
    *("FLOW", "APPLICATION", "ROLE", "LOCAL", "REMOTE"),
    *("STATE", "SENT", "RECEIVED", "POLICY", "MONITOR"),
)


class Holder(NamedTuple):
    """Callouts that are attached, and how many connections they watch."""

    attached: "Attached"
    flows: int

    def as_json(self) -> dict[str, object]:
        one = self.attached
        return {
            "pids": one.pids,
            "command": [_command(pid) for pid in one.pids],
            "uptime_s": round(one.uptime_s, 3),
            "hooks": one.hooks,
            "counters": one.counters,
            "flows": self.flows,
            "abi": one.abi,
        }


def attached_now() -> list[Holder]:
    """Of all processes, and what is pinned. Raises PermissionMissing."""
    from streamtap.capture.inspect import Lister, attached
    from streamtap.capture.rights import require_rights

    require_rights()
    found = attached()
    if not found:
        return []
    lister = Lister()
    try:
        return [Holder(one, len(lister.flows(one))) for one in found]
    finally:
        lister.close()


def print_attached(found: Sequence[Holder]) -> None:
    from streamtap.trace.text import duration, printable

    for one, count in found:
        holder = ", ".join(f"{pid}  {printable(_command(pid))}" for pid in one.pids)
        print(f"monitor {holder}" if holder else "callouts that no process here holds: pinned")
        print(f"  up       {duration(round(one.uptime_s * 1e9))}")
        print(f"  hooks    {' '.join(one.hooks)}")
        if not one.readable:
            print("  counters of another version of streamtap")
            continue
        print(f"  flows    {count}")
        print_counters(one.counters)


def print_counters(counters: dict[str, int]) -> None:
    """Nothing where they are of another version."""
    if "segments" not in counters:
        return
    from streamtap.trace.text import counted, size

    segments = counted(counters["segments"], "segment")
    seen, copied, left = (size(counters[f"{what}_bytes"]) for what in _BYTES)
    print(f"  seen     {segments}, {seen}: {copied} copied, {left} counted")
    lost = counted(counters["lost_segments"], "segment")
    unsure = counters.get("candidates_lost", 0)
    more = f"; {unsure} more of programs that were not judged yet" if unsure else ""
    print(f"  lost     {lost}, {size(counters['lost_bytes'])}{more}")


def flows_options(parser: Parser) -> None:
    parser.description = (
        "Lists the connections that are watched now: by the service where it runs, "
        "else by monitors and pinned callouts."
    )
    add_json(parser)


def flows(arguments: Arguments) -> int:
    import msgspec

    from streamtap.trace.text import printable, size

    rows = _rows()
    if arguments.json:
        print_json([msgspec.structs.asdict(flow) for flow in rows or ()])
    if rows is None:
        say("streamtap: nothing watches: no service, no monitor, no callouts")
        return NOT_RUNNING
    if not arguments.json:
        print_table(
            _COLUMNS,
            (
                (
                    flow.flow,
                    f"{printable(flow.comm, 32)}[{flow.pid}]",
                    *(flow.role, flow.local, flow.remote, flow.state),
                    *(size(flow.sent), size(flow.received), flow.policy, flow.monitor or "-"),
                )
                for flow in rows
            ),
        )
    return 0


def _rows() -> "Sequence[LiveFlow] | None":
    """None where nothing watches."""
    from streamtap.cli.operations import running

    if (client := running()) is not None:
        with client:
            return client.flows()
    from streamtap.capture.inspect import Lister, attached
    from streamtap.capture.rights import require_rights

    require_rights()
    found = attached()
    if not found:
        return None
    lister = Lister()
    try:
        return [flow for one in found for flow in lister.flows(one)]
    finally:
        lister.close()


def _command(pid: int) -> str:
    """The command line of a process; "" where it is gone."""
    from streamtap.capture.identity import process_text

    return process_text(pid).arguments.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
