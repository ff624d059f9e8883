"""`protocols` and `cleanup`."""

import os
import stat
from collections.abc import Iterator

from streamtap.cli.parsing import Arguments, Parser
from streamtap.cli.tables import add_json, print_json, print_table
from streamtap.errors import AlreadyRunning, PermissionMissing

TYPE_CHECKING = False  # as `typing` has it, which is not imported: programs start faster
if TYPE_CHECKING:
    from streamtap.service.paths import Paths

BPF_DIR = "/sys/fs/bpf/streamtap"
RUN_DIR = "/run/streamtap"


def protocols_options(parser: Parser) -> None:
    add_json(parser)


def protocols(arguments: Arguments) -> int:
    import importlib

    from streamtap.protocols import parsers

    rows = []
    for parser in parsers():
        # The module or package that stands in the folder of protocols tells what it is for.
        name = ".".join(parser.__module__.split(".")[:3])
        about = (importlib.import_module(name).__doc__ or "").strip().split("\n\n")[0]
        events = [str(event.__struct_config__.tag) for event in parser.events]
        rows.append((parser.name, events, " ".join(about.split())))
    if arguments.json:
        print_json(
            [{"name": name, "events": events, "about": about} for name, events, about in rows]
        )
    else:
        print_table(
            ("NAME", "EVENTS", "ABOUT"),
            ((name, " ".join(events), about) for name, events, about in rows),
        )
    return 0


def cleanup_options(parser: Parser) -> None:
    parser.description = (
        "Removes what streamtap has pinned and stored for as long as the machine runs: "
        f"$STREAMTAP_BPF_DIR ({BPF_DIR}) and $STREAMTAP_RUN_DIR ({RUN_DIR}).\n"
        "What others keep in these folders stays.\n"
        "A monitor pins nothing and mounts nothing that others see; those that run are left "
        "alone.\nFilters are kept and come back with the service; delcallouts removes them as well."
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def cleanup(arguments: Arguments) -> int:
    from streamtap.service.listening import is_served
    from streamtap.service.paths import Paths

    paths = Paths.of_environment()
    if is_served(paths.control):
        raise AlreadyRunning("the service runs", "sudo streamtap stop")
    removed = 0
    try:
        for path, is_directory in _ours(paths):
            removed += 1
            if arguments.dry_run:
                print(f"would remove {path}")
                continue
            (os.rmdir if is_directory else os.unlink)(path)
            print(f"removed {path}")
    except PermissionError as error:
        raise PermissionMissing(
            f"{error.filename}: may not be removed: {error.strerror}", "run with sudo"
        ) from error
    if not removed:
        print("nothing to remove")
    return 0


def _ours(paths: "Paths") -> Iterator[tuple[str, bool]]:
    """What is streamtap's in its folders, and whether it is a folder; then they themselves, where
    there is nothing of others in them: who moves them may name any folder."""
    for root in (paths.bpf, paths.run):
        if len(os.path.abspath(root).strip("/").split("/")) < 2:
            raise ValueError(f"{root} is no folder of streamtap's own")
    for root, known in ((paths.bpf, paths.layouts), (paths.run, paths.run_files)):
        try:
            names = set(os.listdir(root))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for path in known:
            if path.name in names:
                yield from _below(str(path))
        if names <= {path.name for path in known}:
            yield str(root), True


def _below(path: str) -> Iterator[tuple[str, bool]]:
    """Everything below a folder and then itself, folders after what is in them, and whether it is
    a folder. Links are not followed."""
    is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
    if is_directory:
        for name in sorted(os.listdir(path)):
            yield from _below(os.path.join(path, name))
    yield path, is_directory
