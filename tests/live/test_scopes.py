"""Which programs are watched: every kind of scope, and nobody else."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.live import (
    PUPPET,
    Puppet,
    Watcher,
    copy_interpreter,
    open_files,
    tell,
    told,
)
from streamtap.flows.scope import resolve

pytestmark = pytest.mark.root
Start = Callable[..., Puppet]
Watching = Callable[..., Watcher]


def test_a_path_means_the_program_in_that_file_and_no_other(
    program: Path, puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    twin = copy_interpreter(tmp_path / "twin")
    scope = resolve("exe", str(program))
    older, other = puppet(program), puppet(twin)
    watch = watching(scope)
    newer = puppet(program)
    for speaker in (older, other, newer):
        tell(speaker, server)
    apps = told(watch, 2)
    assert [app.pid for app in apps] == [older.pid, newer.pid]
    for app in apps:
        assert (app.path, app.comm, app.uid) == (str(program), "chatter", os.getuid())
        assert app.filter == scope.name


def test_a_hard_link_and_a_symbolic_link_are_the_same_program(
    program: Path, puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    os.link(program, tmp_path / "hard")
    os.symlink(program, tmp_path / "soft")
    watch = watching(resolve("exe", str(program)))
    for name in ("hard", "soft"):
        tell(puppet(tmp_path / name), server)
    assert [app.comm for app in told(watch, 2)] == ["hard", "soft"]


def test_a_program_replaced_and_started_at_once_is_not_missed(
    program: Path, puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    """As an upgrade does: the path has another file, which no key made so far fits."""
    watch = watching(resolve("exe", str(program)))
    starter = puppet()
    older = puppet(program)
    for number in range(3):
        upgrade = copy_interpreter(tmp_path / f"upgrade-{number}")
        address = server.do("(listener := listen()).getsockname()")
        starter.do(
            "import subprocess\n"
            "os.rename(upgrade, program)\n"
            "subprocess.run([program, '-s', '-S', '-P', '-c', source], check=True)",
            upgrade=str(upgrade),
            program=str(program),
            source=f"import socket; s = socket.create_connection({address!r})\ns.send(b'it is me')",
        )
        assert server.do("receive(listener.accept()[0], 100)") == b"it is me"
    tell(older, server)
    apps = told(watch, 4)
    assert {app.path.removesuffix(" (deleted)") for app in apps} == {str(program)}
    assert apps[3].pid == older.pid


def test_a_file_that_moves_to_the_path_under_another_inode_is_known_from_then_on(
    program: Path, puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    watch = watching(resolve("exe", str(program)))
    os.rename(copy_interpreter(tmp_path / "upgrade"), program)
    for _ in range(2):
        speaker = puppet(program)
        tell(speaker, server)
        watch.poll()
    told(watch, 2)


def test_a_program_that_is_replaced_again_and_again_costs_no_more(
    program: Path,
    puppet: Start,
    server: Puppet,
    watching: Watching,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamtap.capture.filters.HELD_FILES", 2)
    watch = watching(resolve("exe", str(program)))
    held = []
    for number in range(5):
        os.rename(copy_interpreter(tmp_path / f"upgrade-{number}"), program)
        speaker = puppet(program)
        tell(speaker, server)
        watch.until_closed(number + 1)
        speaker.close()
        held.append(sum(link.startswith(str(program)) for link in open_files()))
    assert held == [2] * 5
    told(watch, 5)


def test_a_program_of_the_same_name_elsewhere_is_not_reported(
    program: Path, puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    """The kernel takes it for a candidate; not one byte of it may come out."""
    namesake = copy_interpreter(tmp_path / "elsewhere" / program.name)
    watch = watching(resolve("exe", str(program)))
    speaker = puppet(namesake)
    tell(speaker, server, b"private")
    watch.poll()
    tell(speaker, server, b"still private")
    assert watch.finish() == []
    assert watch.watch.drops == 0


def test_a_link_that_is_moved_to_another_version_is_followed(
    puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    versions = [copy_interpreter(tmp_path / f"chat-{n}.0") for n in (1, 2)]
    link = tmp_path / "chat"
    link.symlink_to(versions[0])
    watch = watching(resolve("exe", str(link)))
    tell(puppet(link), server)
    (tmp_path / "new").symlink_to(versions[1])
    os.rename(tmp_path / "new", link)
    tell(puppet(link), server)
    assert [app.path for app in told(watch, 2)] == [str(version) for version in versions]


@pytest.mark.parametrize("line", ["#!{0} -sSP", "#!/usr/bin/env -S {1} -s -S -P"])
def test_a_script_is_watched_and_not_its_interpreter(
    line: str,
    program: Path,
    puppet: Start,
    server: Puppet,
    watching: Watching,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    scripts = [tmp_path / name for name in ("mine", "other")]
    for script in scripts:
        script.write_text(f"{line.format(program, program.name)}\n{PUPPET.read_text()}")
        script.chmod(0o755)
    watch = watching(resolve("exe", str(scripts[0])))
    speakers = [puppet(script, ()) for script in scripts]
    speakers += [puppet(program, ("-sSP", str(scripts[0]))), puppet(program)]
    for speaker in speakers:
        tell(speaker, server)
    # Started as a script, and given to the interpreter by name: the same program.
    assert [app.pid for app in told(watch, 2)] == [speakers[0].pid, speakers[2].pid]


def test_a_script_that_runs_already_is_watched(
    program: Path, puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    script = tmp_path / "mine"
    script.write_text(f"#!{program} -sSP\n{PUPPET.read_text()}")
    script.chmod(0o755)
    older, other = puppet(script, ()), puppet(program)
    assert older.do("1") == other.do("1")
    watch = watching(resolve("exe", str(script)))
    tell(older, server)
    tell(other, server)
    assert [app.pid for app in told(watch)] == [older.pid]


def test_a_program_that_is_only_given_a_file_is_not_taken_for_a_script(
    program: Path, puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    """As an upload is given what it sends, and a download what to write."""
    script = tmp_path / "folder" / "mine"
    script.parent.mkdir()
    script.write_text(f"#!{program} -sSP\n{PUPPET.read_text()}")
    script.chmod(0o755)
    watch = watching(resolve("exe", str(script)), resolve("exe", f"{script.parent}/*"))
    given = (str(PUPPET), "-o", "out", str(script))
    speakers = [
        puppet(cwd=script.parent),
        puppet("", ("-s", "-S", "-P", *given), cwd=script.parent),
        puppet(program, ("-s", "-S", "-P", *given), cwd=script.parent),
        puppet("", ("-sSP", "mine"), cwd=script.parent),
    ]
    for speaker in speakers:
        tell(speaker, server)
    assert [app.pid for app in told(watch)] == [speakers[-1].pid]


def test_a_glob_means_programs_yet_to_come(
    puppet: Start, server: Puppet, watching: Watching, tmp_path: Path
) -> None:
    watch = watching(resolve("exe", f"{tmp_path}/bin/chat-*"))
    chat = copy_interpreter(tmp_path / "bin" / "chat-7")
    mail = copy_interpreter(tmp_path / "bin" / "mail-7")
    tell(puppet(mail), server)
    tell(puppet(chat), server)
    assert [app.path for app in told(watch)] == [str(chat)]
