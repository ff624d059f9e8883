"""One application as a value: what a person wrote, checked and made exact.

`resolve` turns what was written into a `Scope` and says in one line what is wrong with it. The
kernel decides by keys made from a scope; the functions at the end answer the same question where
it falls to user space: candidates, scripts, command lines.
"""

import fnmatch
import os
import pwd
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import msgspec

from streamtap.errors import NotFound, PermissionMissing, StreamtapError

Kind = Literal["exe", "comm", "cmdline", "pid", "uid", "cgroup", "unit", "launch"]

COMM_BYTES = 15  # TASK_COMM_LEN without its NUL
PID_MAX = 1 << 22  # the kernel's PID_MAX_LIMIT on 64 bits
UID_MAX = 2**32 - 2  # the last one means "no user"
SCRIPT_LINE = 256  # BINPRM_BUF_SIZE: the kernel reads no more of a #! line
ARGV_BYTES = 4096  # of a command line that a pattern may look at: bounds what it can cost
CGROUPS = 50_000  # directories that the search for a unit may look at

# Programs that run a file they are given; versions follow the name.
_INTERPRETERS = re.compile(
    r"(python|pypy|perl|ruby|nodejs|node|deno|bun|php|lua|luajit|tclsh|wish|expect|guile|Rscript|"
    r"bash|dash|ash|ksh|mksh|zsh|fish|sh|busybox)[\d.-]*"
)
# An option after which there is no script: the program is in the words (`sh -ec`, `python3 -m`).
ENDS_OPTIONS = re.compile(r"-[A-Za-z]*[cm]")

_DELETED = " (deleted)"  # what /proc/PID/exe says of a file that was replaced
_UNIT_SUFFIXES = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")


class Scope(msgspec.Struct, frozen=True):
    """One application, as a test on processes.

    value: exe: the path after symbolic links, or the glob; comm: the name; cmdline: the regular
        expression; pid, uid: the number; cgroup: the path below the cgroup root; unit: its name;
        launch: the command line.
    given: what the person wrote.
    name: of the filter that is made from it.
    follow_forks: descendants belong to it too.
    path: exe: the path before symbolic links were followed.
    script: exe: the file is a script; the process runs `interpreter`.
    cgroup: cgroup, unit: the path below the cgroup root, without a leading slash.
    """

    kind: Kind
    value: str
    given: str = ""
    name: str = ""
    follow_forks: bool = False
    path: str = ""
    script: bool = False
    interpreter: str = ""
    cgroup: str = ""

    @property
    def glob(self) -> bool:
        """The value is a pattern for paths, not one path."""
        return self.kind == "exe" and not self.path

    def __str__(self) -> str:
        """As an option of the command line would say it: `exe /usr/bin/curl`."""
        text = f"{self.kind} {self.value}"
        if self.kind == "exe" and self.path not in ("", self.value):
            text += f" (through {self.path})"
        if self.script:
            text += f" (a script of {self.interpreter})"
        return text + (" and its descendants" if self.follow_forks else "")


def resolve(
    kind: Kind,
    text: str,
    *,
    name: str = "",
    follow_forks: bool = False,
    cgroup_root: str = "/sys/fs/cgroup",
    proc: str = "/proc",
) -> Scope:
    """The scope that a person means by `text`.

    Raises ValueError for what cannot be meant, NotFound for what is not there, PermissionMissing
    for what may not be looked at; the message is one line.
    """
    if kind not in get_args(Kind) or kind == "launch":
        raise ValueError(f"{kind!r} is no kind of scope that can be written down")
    if not text.strip() or "\0" in text:
        raise ValueError(f"--{kind} needs a value")
    resolvers: dict[str, Callable[[], Scope]] = {
        "exe": lambda: _exe(text),
        "comm": lambda: _comm(text),
        "cmdline": lambda: _cmdline(text),
        "pid": lambda: _pid(text, proc),
        "uid": lambda: _uid(text),
        "cgroup": lambda: _cgroup(text, cgroup_root),
        "unit": lambda: _unit(text, cgroup_root),
    }
    try:
        scope = resolvers[kind]()
    except PermissionError as error:
        raise PermissionMissing(
            f"{text}: may not be looked at: {error.strerror}", "run with sudo"
        ) from error
    except OSError as error:
        raise StreamtapError(f"{text}: {error.strerror}") from error
    return msgspec.structs.replace(
        scope, given=text, name=name or scope.name or text, follow_forks=follow_forks
    )


def launch(argv: Sequence[str], *, name: str = "") -> Scope:
    """The scope of a command that streamtap starts: that process and its descendants."""
    if not argv or not argv[0]:
        raise ValueError("-- needs a command")
    command = shlex.join(argv)
    return Scope("launch", command, command, name or os.path.basename(argv[0]), follow_forks=True)


# --- one resolver a kind ---------------------------------------------------------------------


def _exe(text: str) -> Scope:
    if any(sign in text for sign in "*?[") and not os.path.lexists(text):
        if text[0] not in "/*" and "/" not in text:
            raise ValueError(f"a glob is matched against whole paths: write '*/{text}'")
        pattern = text if text[0] == "*" else os.path.abspath(text)
        return Scope("exe", pattern, name=text)
    path = text
    if "/" not in text:
        found = shutil.which(text)
        if found is None:
            hint = f"write ./{text}" if os.path.exists(text) else "write the path of its file"
            raise NotFound(f"no command {text} on PATH", hint)
        path = found
    path = os.path.abspath(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.islink(path):
            raise NotFound(f"{text} points to {os.readlink(path)}, which is not there") from error
        raise NotFound(f"no such file: {text}", "a glob may name files yet to come") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{text} is a directory: for all programs in it, write '{path}/*'")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{text} is not a regular file")
    if not status.st_mode & 0o111:
        raise ValueError(f"{text} is not executable")
    interpreter = _interpreter(path)
    return Scope(
        "exe",
        os.path.realpath(path),
        name=os.path.basename(path),
        path=path,
        script=interpreter is not None,
        interpreter=interpreter or "",
    )


def _interpreter(path: str) -> str | None:
    """The program that runs the script at `path`; None for anything but a script."""
    try:
        with open(path, "rb") as file:
            head = file.read(SCRIPT_LINE)
    except PermissionError:
        return None  # a program that may be run but not read is none: the kernel reads scripts
    if not head.startswith(b"#!"):
        return None
    words = os.fsdecode(head[2:].split(b"\n", 1)[0]).split()
    if not words:
        return None
    program = words[0]
    if os.path.basename(program) == "env":
        # The options of env, and the variables it sets, come before the command.
        command = next((word for word in words[1:] if word[0] != "-" and "=" not in word), "")
        program = (shutil.which(command) or command) if command else program
    return os.path.realpath(program) if "/" in program else program


def _comm(text: str) -> Scope:
    length = len(os.fsencode(text))
    if length > COMM_BYTES:
        cut = os.fsencode(text)[:COMM_BYTES].decode("utf-8", "ignore")
        raise ValueError(
            f"{text} has {length} bytes; the kernel keeps {COMM_BYTES} of a name: write {cut!r}"
        )
    return Scope("comm", text)


def _cmdline(text: str) -> Scope:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return Scope("cmdline", text)


def _pid(text: str, proc: str) -> Scope:
    pid = _number(text, PID_MAX)
    if not pid:
        raise ValueError(f"{text!r} is no process number")
    try:
        with open(f"{proc}/{pid}/status", "rb") as file:
            found = re.search(rb"^Tgid:\s*(\d+)$", file.read(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(f"no process {pid}") from error
    if found and int(found[1]) != pid:
        raise ValueError(f"{pid} is a thread: its process is {int(found[1])}")
    return Scope("pid", str(pid), name=f"pid-{pid}")


def _uid(text: str) -> Scope:
    uid = _number(text, UID_MAX)
    if uid is None:
        try:
            uid = pwd.getpwnam(text).pw_uid
        except KeyError as error:
            raise NotFound(f"no user {text}") from error
    return Scope("uid", str(uid), name=f"uid-{text}")


def _number(text: str, highest: int) -> int | None:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > highest:
        return None
    return int(text)


def _cgroup(text: str, root: str) -> Scope:
    root = os.path.normpath(root)
    path = os.path.normpath(text)
    if path == root or path.startswith(root + "/"):
        path = path[len(root) :]
    below = path.strip("/")
    if below in ("", "."):
        raise ValueError("the root cgroup holds every process: name one below it")
    if below.split("/")[0] == "..":
        raise ValueError(f"{text} lies outside of {root}")
    if not os.path.isdir(f"{root}/{below}"):
        raise NotFound(f"no cgroup {below} in {root}", "systemd-cgls shows what there is")
    return Scope("cgroup", below, name=os.path.basename(below), cgroup=below)


def _unit(text: str, root: str) -> Scope:
    unit = text if text.endswith(_UNIT_SUFFIXES) else f"{text}.service"
    if "/" in unit:
        raise ValueError(f"{text} is no name of a unit; for a cgroup use --cgroup")
    found = _cgroups_named(unit, root)
    system = [path for path in found if path.startswith("system.slice/")] or found
    if not system:
        raise NotFound(f"no cgroup of unit {unit}", f"is it running? systemctl status {unit}")
    if len(system) > 1:
        raise ValueError(
            f"several units are called {unit}: use --cgroup with one of " + ", ".join(system)
        )
    return Scope("unit", unit, name=unit.rpartition(".")[0], cgroup=system[0])


def _cgroups_named(name: str, root: str) -> list[str]:
    """Paths below `root` of the cgroups with this name, wherever slices have put them."""
    found = []
    for count, (path, directories, _) in enumerate(os.walk(root)):
        if count >= CGROUPS:
            break
        if name in directories:
            found.append(os.path.relpath(os.path.join(path, name), root))
            directories.remove(name)
        directories.sort()
    return found


# --- matching in user space ------------------------------------------------------------------


def matches_path(scope: Scope, path: str) -> bool:
    """Is `path` the executable that the scope means? In a glob, `*` matches slashes too."""
    if scope.kind != "exe" or scope.script:
        return False
    return _same_path(scope, path) or _same_path(scope, path.removesuffix(_DELETED))


def matches_script(scope: Scope, script_path: str) -> bool:
    """Is a process that runs this script (an absolute path) in the scope?"""
    return scope.kind == "exe" and (scope.script or scope.glob) and _same_path(scope, script_path)


def runs_scripts(*programs: str) -> bool:
    """Is one of these, a path or a name, an interpreter, so that a file it is given is a script?"""
    return any(_INTERPRETERS.fullmatch(os.path.basename(program)) for program in programs)


def _same_path(scope: Scope, path: str) -> bool:
    if scope.glob:
        return fnmatch.fnmatchcase(path, scope.value)
    return path in (scope.value, scope.path)


def matches_cmdline(scope: Scope, argv: bytes) -> bool:
    """Does the regular expression find something in a command line?

    argv: as in /proc/PID/cmdline; its words are joined by spaces, its first `ARGV_BYTES` count.
    """
    if scope.kind != "cmdline":
        return False
    line = argv[:ARGV_BYTES].rstrip(b"\0").replace(b"\0", b" ")
    return re.search(scope.value, line.decode("utf-8", "backslashreplace")) is not None
