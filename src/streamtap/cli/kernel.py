"""`status` and `flows`: what is attached in the kernel now, whoever attached it."""

from streamtap.cli.parsing import Arguments, Parser, say
from streamtap.cli.tables import add_json, print_json, print_table

NOT_RUNNING = 3
_COLUMNS = (
    *("FLOW", "APPLICATION", "ROLE", "LOCAL", "REMOTE"),
    *("STATE", "SENT", "RECEIVED", "POLICY", "MONITOR"),
)


def status_options(parser: Parser) -> None:
    add_json(parser)


def flows_options(parser: Parser) -> None:
    add_json(parser)


def status(arguments: Arguments) -> int:
    from streamtap.capture.callouts import require_rights
    from streamtap.capture.inspect import Attached, Lister, attached
    from streamtap.trace.text import counted, duration, printable, size

    require_rights()
    found = attached()
    lister = Lister() if found else None
    flows = [len(lister.flows(one)) for one in found] if lister else []
    if lister:
        lister.close()

    def told(one: Attached, count: int) -> dict[str, object]:
        return {
            "pids": one.pids,
            "command": [_command(pid) for pid in one.pids],
            "uptime_s": round(one.uptime_s, 3),
            "hooks": one.hooks,
            "counters": one.counters,
            "flows": count,
            "abi": one.abi,
        }

    if arguments.json:
        print_json([told(one, count) for one, count in zip(found, flows, strict=True)])
    else:
        for one, count in zip(found, flows, strict=True):
            holder = ", ".join(f"{pid}  {printable(_command(pid))}" for pid in one.pids)
            print(f"monitor {holder or 'held by no process that can be seen here'}")
            print(f"  up       {duration(round(one.uptime_s * 1e9))}")
            print(f"  hooks    {' '.join(one.hooks)}")
            if not one.readable:
                print("  counters of another version of streamtap")
                continue
            counters = one.counters
            print(f"  flows    {count}")
            print(
                f"  seen     {counted(counters['segments'], 'segment')}, "
                f"{size(counters['seen_bytes'])}: {size(counters['captured_bytes'])} copied, "
                f"{size(counters['counted_bytes'])} counted"
            )
            print(
                f"  lost     {counted(counters['lost_segments'], 'segment')}, "
                f"{size(counters['lost_bytes'])}"
            )
    if not found:
        say("streamtap: nothing is attached")
        return NOT_RUNNING
    return 0


def flows(arguments: Arguments) -> int:
    import msgspec

    from streamtap.capture.callouts import require_rights
    from streamtap.capture.inspect import Lister, attached
    from streamtap.trace.text import printable, size

    require_rights()
    found = attached()
    if not found:
        if arguments.json:
            print_json([])
        say("streamtap: no monitor is running")
        return NOT_RUNNING
    lister = Lister()
    try:
        rows = [flow for one in found for flow in lister.flows(one)]
    finally:
        lister.close()
    if arguments.json:
        print_json([msgspec.structs.asdict(flow) for flow in rows])
    else:
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


def _command(pid: int) -> str:
    """The command line of a process; "" where it is gone."""
    from streamtap.capture.identity import process_text

    return process_text(pid).arguments.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
