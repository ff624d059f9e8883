"""`start`, `stop`, `restart` and `status`: the service."""

from streamtap.cli.kernel import NOT_RUNNING, attached_now, print_attached, print_counters
from streamtap.cli.parsing import Arguments, Parser, say
from streamtap.cli.tables import print_json

TYPE_CHECKING = False  # as `typing` has it, which is not imported: programs start faster
if TYPE_CHECKING:
    from streamtap.service.protocol import StatusReply

_START = """
Starts the service in the background, and comes back when it traces; with --foreground it stays,
for a supervisor. The service reads what the callouts of registered filters see."""
_STATUS = """
Tells how the service is, and which callouts are attached. Without a service the exit code is 3, and
it still tells of callouts that are attached, by monitors or pinned."""


def start_options(parser: Parser) -> None:
    parser.description = _START.strip()
    add = parser.add_argument
    add("--foreground", action="store_true", help="stay, and log to standard error")
    add("--force", action="store_true", help="put state that is damaged aside, and begin anew")


def stop_options(parser: Parser) -> None:
    parser.description = "Ends the service. Callouts and filters stay, connections are not touched."


def restart_options(parser: Parser) -> None:
    parser.description = (
        "Ends the service, if it runs, and starts it again, as after an upgrade. What passes "
        "between is read by the new one, as far as the rings have room for it; the rest is counted."
    )


def status_options(parser: Parser) -> None:
    parser.description = _STATUS.strip()
    parser.add_argument("--json", action="store_true", help="one JSON object, on one line")


def start(arguments: Arguments) -> int:
    return _start(foreground=arguments.foreground, force=arguments.force)


def _start(*, foreground: bool = False, force: bool = False) -> int:
    from streamtap.cli.operations import running
    from streamtap.errors import AlreadyRunning, PermissionMissing, StreamtapError
    from streamtap.service.detach import detach
    from streamtap.service.keeper import run
    from streamtap.service.notify import Ready, ready
    from streamtap.service.paths import Paths

    if (client := running()) is not None:
        with client:
            raise AlreadyRunning("the service runs already", "see: streamtap status")
    paths = Paths.of_environment()
    if foreground:

        def tell(status: str) -> None:
            ready(status)
            say(f"streamtap: {status}")

        return run(paths, tell, force=force)
    paths.make()

    def begin(told: Ready) -> int:
        return run(paths, told, force=force)

    try:
        begun = detach(begin, log=paths.log)
    except PermissionError as error:
        raise PermissionMissing(f"{paths.log}: {error.strerror}", "run with sudo") from error
    except OSError as error:
        raise StreamtapError(f"{paths.log}: {error.strerror}") from error
    print(f"started, process {begun.pid}: {begun.status}")
    return 0


def stop(arguments: Arguments) -> int:
    from streamtap.service.client import Client

    with Client() as client:
        client.stop()
        client.wait_until_ended()
    print("stopped; callouts and filters stay")
    return 0


def restart(arguments: Arguments) -> int:
    from streamtap.cli.operations import running

    if (client := running()) is not None:
        with client:
            _check_state()
            client.stop(hold=True)
            client.wait_until_ended()
    return _start()


def _check_state() -> None:
    """What the next service would not begin with is no reason to end the one that runs. Raises
    StreamtapError."""
    from streamtap.service.paths import Paths
    from streamtap.service.state import Filters, Sessions, load

    paths = Paths.of_environment()
    load(paths.filters, Filters)
    load(paths.sessions, Sessions)


def status(arguments: Arguments) -> int:
    from streamtap.cli.operations import running

    client = running()
    if client is None:
        return _status_without(arguments)
    with client:
        told = client.status()
    if arguments.json:
        import msgspec

        print_json({"running": True, **msgspec.structs.asdict(told)})
    else:
        _print_status(told)
    return 0


def _status_without(arguments: Arguments) -> int:
    found = attached_now()
    if arguments.json:
        print_json({"running": False, "attached": [one.as_json() for one in found]})
    else:
        print_attached(found)
    say("streamtap: the service is not running" + ("" if found else ", and nothing is attached"))
    return NOT_RUNNING


def _print_status(told: "StatusReply") -> None:
    from streamtap.trace.text import counted, duration, printable, size

    parser = f"parser {told.parser_pid}" if told.parser_pid else "no parser"
    pids = "".join(f", recorder {pid}" for pid in told.recorder_pids)
    print(f"service {told.version}, keeper {told.pid}, {parser}{pids}")
    print(f"  up       {duration(round(told.uptime_s * 1e9))}")
    print(f"  state    {'enabled' if told.enabled else 'disabled: streamtap enable'}")
    print(f"  filters  {told.filters}")
    print(f"  flows    {told.flows}")
    print(f"  sessions {told.sessions}")
    print(f"  records  {told.records}")
    print(f"  hooks    {' '.join(told.hooks)}")
    if told.missing:
        print(f"  missing  {printable(' '.join(told.missing))}")
    print_counters(told.counters)
    if told.unseen_bytes:
        print(f"  unseen   {size(told.unseen_bytes)}, before the service began")
    if told.parser_restarts:
        print(f"  parser   {counted(told.parser_restarts, 'restart')}")
    if told.confined:
        print(f"  confined {printable(', '.join(told.confined))}")
