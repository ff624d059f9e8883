import os
import pwd
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from streamtap.errors import NotFound, StreamtapError
from streamtap.flows.scope import (
    ARGV_BYTES,
    ENDS_OPTIONS,
    Kind,
    Scope,
    launch,
    matches_cmdline,
    matches_path,
    matches_script,
    resolve,
    runs_scripts,
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return make_program(tmp_path / "program")


def make_program(path: Path, content: bytes = b"\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


# --- executables ---------------------------------------------------------------------------


def test_an_executable_is_known_by_its_path(program: Path) -> None:
    scope = resolve("exe", str(program))
    assert (scope.kind, scope.value, scope.name) == ("exe", str(program), "program")
    assert matches_path(scope, str(program))
    assert matches_path(scope, f"{program} (deleted)"), "replaced by an upgrade"
    assert not matches_path(scope, f"{program}2")


def test_a_relative_path_is_made_absolute(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(program.parent)
    scope = resolve("exe", "./program")
    assert (scope.value, scope.given) == (str(program), "./program")


def test_a_symbolic_link_matches_by_both_its_paths(program: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(program)
    scope = resolve("exe", str(link))
    assert (scope.value, scope.path) == (str(program), str(link))
    assert matches_path(scope, str(link))
    assert matches_path(scope, str(program))
    assert str(scope) == f"exe {program} (through {link})"


def test_a_bare_name_is_the_command_that_a_shell_would_run(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"/nowhere:{program.parent}")
    scope = resolve("exe", "program")
    assert (scope.value, scope.given, scope.name) == (str(program), "program", "program")


def test_a_bare_name_that_is_no_command_says_how_to_name_a_file(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program.parent)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotFound, match="no command program on PATH") as caught:
        resolve("exe", "program")
    assert caught.value.hint == "write ./program"


def test_a_directory_is_refused_with_the_glob_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"is a directory: .* write '{tmp_path}/\*'"):
        resolve("exe", str(tmp_path))


def test_files_that_nobody_can_run_are_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch(0o644)
    with pytest.raises(ValueError, match="is not executable"):
        resolve("exe", str(plain))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o755)
    with pytest.raises(ValueError, match="is not a regular file"):
        resolve("exe", str(fifo))


def test_files_that_are_not_there_are_not_found(tmp_path: Path, program: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        resolve("exe", str(tmp_path / "nothing"))
    with pytest.raises(NotFound, match="no such file"):
        resolve("exe", f"{program}/below")
    dangling = tmp_path / "dangling"
    dangling.symlink_to("/nowhere/at/all")
    with pytest.raises(NotFound, match="points to /nowhere/at/all"):
        resolve("exe", str(dangling))


def test_a_loop_of_links_and_an_endless_name_are_errors_of_one_line(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for text in (str(loop), "/" + "x" * 5000):
        with pytest.raises(StreamtapError) as caught:
            resolve("exe", text)
        assert "\n" not in str(caught.value)


def test_a_glob_matches_whole_paths_also_of_files_to_come(tmp_path: Path) -> None:
    scope = resolve("exe", f"{tmp_path}/app-*/bin/[ab]")
    assert scope.glob
    assert matches_path(scope, f"{tmp_path}/app-1.2/bin/a")
    assert not matches_path(scope, f"{tmp_path}/app-1.2/bin/c")
    assert matches_path(resolve("exe", "*/pidgin"), "/opt/im/pidgin")
    with pytest.raises(ValueError, match=r"write '\*/pidgin\*'"):
        resolve("exe", "pidgin*")


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    odd = make_program(tmp_path / "a[1]")
    scope = resolve("exe", str(odd))
    assert not scope.glob
    assert matches_path(scope, str(odd))


@pytest.mark.parametrize(
    ("line", "interpreter"),
    [
        ("#!{}", "{}"),
        ("#! {} -u", "{}"),
        ("#!/usr/bin/env {}", "{}"),
        ("#!/usr/bin/env -S A=1 {} -u", "{}"),
    ],
)
def test_a_script_is_known_with_its_interpreter(
    tmp_path: Path, line: str, interpreter: str
) -> None:
    python = os.path.realpath(sys.executable)
    script = make_program(tmp_path / "script", f"{line.format(python)}\npass\n".encode())
    scope = resolve("exe", str(script))
    assert scope.script
    assert scope.interpreter == interpreter.format(python)
    assert matches_script(scope, str(script))
    assert not matches_path(scope, python), "other scripts of the interpreter are not meant"


def test_scripts_of_any_content_are_looked_at_without_harm(tmp_path: Path) -> None:
    for content in (b"#!", b"#!\n", b"#!/usr/bin/env\n", b"#!\xff\xfe\n", b"#!" + b"x" * 9999, b""):
        resolve("exe", str(make_program(tmp_path / "script", content)))


def test_a_program_is_not_matched_as_a_script(program: Path) -> None:
    assert not matches_script(resolve("exe", str(program)), str(program))
    assert matches_script(resolve("exe", f"{program.parent}/*.py"), f"{program.parent}/x.py")


@pytest.mark.parametrize(
    ("programs", "answer"),
    [
        (("/usr/bin/python3.11",), True),
        (("/usr/bin/dash", "sh"), True),
        (("/opt/vm", "/usr/bin/node"), True),
        (("/usr/bin/curl", "curl"), False),
        (("/usr/bin/shred", ""), False),
        (("/usr/bin/python3-config",), False),
    ],
)
def test_an_interpreter_is_known_by_its_name(programs: tuple[str, ...], answer: bool) -> None:
    assert runs_scripts(*programs) is answer


@pytest.mark.parametrize(
    ("option", "answer"),
    [("-c", True), ("-m", True), ("-ec", True), ("-u", False), ("-sSP", False)],
)
def test_after_an_option_that_holds_the_program_there_is_no_script(
    option: str, answer: bool
) -> None:
    assert (ENDS_OPTIONS.fullmatch(option) is not None) is answer


# --- names, command lines, processes, users ------------------------------------------------


def test_a_name_longer_than_the_kernel_keeps_says_what_to_write() -> None:
    assert resolve("comm", "exactly15bytes!").value == "exactly15bytes!"
    with pytest.raises(ValueError, match=r"keeps 15 .* write 'gnome-terminal-'"):
        resolve("comm", "gnome-terminal-server")
    with pytest.raises(ValueError, match="has 18 bytes"):
        resolve("comm", "é" * 9)


def test_a_command_line_is_matched_with_its_words_joined() -> None:
    scope = resolve("cmdline", r"python3? .*bot\.py( |$)")
    assert matches_cmdline(scope, b"python3\0/srv/bot.py\0--verbose\0")
    assert matches_cmdline(scope, b"python\0bot.py\0")
    assert not matches_cmdline(scope, b"python3\0/srv/bot.pyc\0")
    assert not matches_cmdline(scope, b"")
    assert not matches_cmdline(scope, b"\0" * 10 + b"\xff" * 10)


def test_only_the_beginning_of_an_endless_command_line_is_looked_at() -> None:
    scope = resolve("cmdline", "needle")
    assert not matches_cmdline(scope, b"x" * ARGV_BYTES + b"needle")


def test_a_broken_regular_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="no regular expression: unterminated"):
        resolve("cmdline", "[a")


def test_a_process_must_exist() -> None:
    scope = resolve("pid", str(os.getpid()))
    assert scope.value == str(os.getpid())
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    with pytest.raises(NotFound, match=f"no process {child.pid}"):
        resolve("pid", str(child.pid))
    for text in ("0", "-1", "1.5", "x", "9" * 5000, "4194305", "١"):
        with pytest.raises(ValueError, match="is no process number"):
            resolve("pid", text)


def test_a_thread_is_not_taken_for_a_process() -> None:
    found: list[str] = []

    def look() -> None:
        try:
            resolve("pid", str(threading.get_native_id()))
        except ValueError as error:
            found.append(str(error))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found
    assert found[0].endswith(f"is a thread: its process is {os.getpid()}")


def test_a_user_is_named_or_numbered() -> None:
    root = pwd.getpwuid(0).pw_name
    assert resolve("uid", root).value == "0"
    assert resolve("uid", "12345").value == "12345"
    with pytest.raises(NotFound, match="no user nobody-at-all"):
        resolve("uid", "nobody-at-all")
    with pytest.raises(NotFound):
        resolve("uid", "4294967295")


# --- cgroups and units ---------------------------------------------------------------------


@pytest.fixture
def cgroups(tmp_path: Path) -> str:
    for path in (
        "system.slice/chat.service",
        "system.slice/system-getty.slice/getty@tty1.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/im.service",
        "user.slice/user-1001.slice/user@1001.service/app.slice/mail.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/mail.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/chat.service",
    ):
        (tmp_path / path).mkdir(parents=True)
    return str(tmp_path)


@pytest.mark.parametrize(
    "form",
    ["system.slice/chat.service", "/system.slice/chat.service/", "{}/system.slice/chat.service"],
)
def test_a_cgroup_is_given_below_the_root_or_with_it(cgroups: str, form: str) -> None:
    scope = resolve("cgroup", form.format(cgroups), cgroup_root=cgroups)
    assert scope.value == scope.cgroup == "system.slice/chat.service"


def test_a_cgroup_must_exist_below_the_root(cgroups: str) -> None:
    with pytest.raises(NotFound, match=r"no cgroup x\.slice"):
        resolve("cgroup", "x.slice", cgroup_root=cgroups)
    with pytest.raises(ValueError, match="lies outside"):
        resolve("cgroup", "../..", cgroup_root=cgroups)
    for text in ("/", ".", cgroups, "system.slice/.."):
        with pytest.raises(ValueError, match="the root cgroup"):
            resolve("cgroup", text, cgroup_root=cgroups)


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        ("chat.service", "system.slice/chat.service"),
        ("chat", "system.slice/chat.service"),
        ("getty@tty1", "system.slice/system-getty.slice/getty@tty1.service"),
        ("im", "user.slice/user-1000.slice/user@1000.service/app.slice/im.service"),
    ],
)
def test_a_unit_is_found_wherever_slices_have_put_it(cgroups: str, unit: str, path: str) -> None:
    scope = resolve("unit", unit, cgroup_root=cgroups)
    assert scope.cgroup == path
    assert scope.value == path.rpartition("/")[2]


def test_a_unit_of_several_users_is_not_guessed(cgroups: str) -> None:
    with pytest.raises(ValueError, match=r"several units are called mail\.service: use"):
        resolve("unit", "mail", cgroup_root=cgroups)


def test_a_unit_that_does_not_run_is_not_found(cgroups: str) -> None:
    with pytest.raises(NotFound, match=r"no cgroup of unit web\.service") as caught:
        resolve("unit", "web", cgroup_root=cgroups)
    assert caught.value.hint == "is it running? systemctl status web.service"


# --- all kinds -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exe", "comm", "cmdline", "pid", "uid", "cgroup", "unit"])
@pytest.mark.parametrize("text", ["", "  ", "a\0b"])
def test_an_empty_value_or_a_nul_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError, match=f"--{kind} needs a value"):
        resolve(kind, text)


def test_a_launched_command_is_watched_with_its_descendants() -> None:
    scope = launch(["/usr/bin/curl", "-d", "a b"])
    assert (scope.kind, scope.name, scope.follow_forks) == ("launch", "curl", True)
    assert scope.value == "/usr/bin/curl -d 'a b'"
    with pytest.raises(ValueError, match="needs a command"):
        launch([])


def test_the_filter_may_be_named(program: Path) -> None:
    scope = resolve("exe", str(program), name="chat", follow_forks=True)
    assert (scope.name, scope.follow_forks) == ("chat", True)
    assert str(scope).endswith("and its descendants")


def test_a_scope_of_one_kind_matches_nothing_of_another() -> None:
    scope = Scope("comm", "curl")
    assert not matches_path(scope, "curl")
    assert not matches_script(scope, "curl")
    assert not matches_cmdline(scope, b"curl")
