"""What the command line accepts, and how it says what is wrong. No rights are needed."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import run
from streamtap.cli.parsing import VERBS, every_verb, parser_of, resolve

WRONG = {
    "no verb": [],
    "an unknown verb": ["observe"],
    "an unknown option of streamtap": ["--observe"],
    "an unknown option of a verb": ["monitor", "--observe"],
    "an option cut short": ["monitor", "--cont", "full", "/bin/true"],
    "nothing to watch": ["monitor"],
    "an empty command": ["monitor", "--"],
    "-q with -v": ["monitor", "-q", "-v", "/bin/true"],
    "-A with -X": ["monitor", "-A", "-X", "--content", "full", "/bin/true"],
    "-A without content": ["monitor", "-A", "/bin/true"],
    "-X without content": ["monitor", "-X", "--content", "none", "/bin/true"],
    "--pid with a command": ["monitor", "--pid", "1", "--", "true"],
    "-f without --pid": ["monitor", "-f", "/bin/true"],
    "two formats on standard output": ["monitor", "-o", "line", "--json", "/bin/true"],
    "packets and records on standard output": ["monitor", "-w", "-", "--json", "/bin/true"],
    "packets to a file without a name": ["monitor", "-w", "", "/bin/true"],
    "no records": ["monitor", "-c", "0", "/bin/true"],
    "no port": ["monitor", "--port", "65536", "/bin/true"],
    "a name for an address": ["monitor", "--host", "localhost", "/bin/true"],
    "no duration": ["monitor", "--duration", "nan", "/bin/true"],
    "no content level": ["monitor", "--content", "some", "/bin/true"],
    "no provider": ["monitor", "--provider", "nobody", "/bin/true"],
    "no protocol": ["monitor", "--protocol", "gopher", "/bin/true"],
    "words after a verb without any": ["status", "now"],
    "files without content": ["monitor", "--extract", "folder", "/bin/true"],
    "no folder": ["read", "--extract", "", "a.pcap"],
    "nothing to read": ["read"],
    "a flow by another name": ["read", "--flow", "first", "a.pcap"],
    "two files to follow": ["read", "-f", "a.pcap", "b.pcap"],
    "standard input twice": ["read", "-", "-"],
    "-f of a filter without --pid": ["addcallouts", "-f", "/bin/true"],
    "a name for two filters": ["addcallouts", "--name", "a", "/bin/true", "/bin/false"],
    "a name for no filter": ["addcallouts", "--name", "a"],
    "a protocol for no filter": ["addcallouts", "--protocol", "msnp"],
    "a filter of nothing": ["addcallouts", ""],
    "a filter without a name": ["addcallouts", "--name", "", "/bin/true"],
    "a name that is too long": ["addcallouts", "--name", "a" * 256, "/bin/true"],
    "an unknown content of a filter": ["addcallouts", "--content", "some", "/bin/true"],
    "a program under Wine": ["delcallouts", "--wine", "msnmsgr.exe"],
    "all and a filter": ["delcallouts", "--all", "curl"],
    "words after list": ["list", "curl"],
    "two to enable": ["enable", "a", "b"],
    "two to disable": ["disable", "a", "b"],
    "words after start": ["start", "now"],
    "words after stop": ["stop", "now"],
    "words after restart": ["restart", "now"],
    "an unknown option of status": ["status", "--all"],
    "a session without a name": ["trace", "start"],
    "a session whose name is a path": ["trace", "start", "a/b"],
    "a session of an unknown component": ["trace", "start", "a", "nobody"],
    "a session in an unknown kind of file": ["trace", "start", "a", "-o", "a.txt"],
    "a size that is none": ["trace", "start", "a", "--limit", "much"],
    "a word that chooses nothing": ["trace", "start", "a", " "],
    "files that are none": ["trace", "start", "a", "--keep", "-1"],
    "a session to stop without a name": ["trace", "stop"],
    "words after trace list": ["trace", "list", "a"],
    "a time that is none": ["trace", "rt", "--last", "soon"],
    "a time too long ago": ["trace", "rt", "--last", "61m"],
    "two ways to choose what is followed": ["trace", "rt", "notify", "--level", "info"],
    "an unknown component to follow": ["trace", "rt", "nobody"],
    "no word behind trace": ["trace"],
    "an unknown word behind trace": ["trace", "format"],
    "an option behind trace": ["trace", "-q"],
    "no recording": ["trace", "fmt"],
    "only components": ["trace", "fmt", "notify"],
    "two ways to choose": ["trace", "fmt", "notify", "a.jsonl", "--provider", "notify"],
    "no recording to ask": ["query"],
    "no question": ["query", "a.sqlite"],
    "no pace": ["demo", "--pace", "-1"],
}
LATER = {
    "--wine": ["--wine", "msnmsgr.exe"],
    "--container": ["--container", "ab12"],
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_wrong_usage_is_told_in_one_line_and_exit_code_2(words: list[str]) -> None:
    result = run(*words)
    assert result.returncode == 2
    assert result.stdout == ""
    error, *hints = result.stderr.splitlines()
    assert error.startswith("streamtap: error: ")
    assert len(hints) <= 1
    assert all(line.startswith("hint: ") for line in hints)
    assert "`" not in error, "words of a library"
    assert "codec" not in error


def test_behind_two_dashes_no_word_is_an_option(tmp_path: Path) -> None:
    """Filters and files may have such names."""
    record = {"number": 1, "time_ns": 1, "provider": "init", "flag": "init", "level": "info"}
    file = tmp_path / "-q.jsonl"
    file.write_text(
        json.dumps(record | {"event": "init.started", "version": "1", "source": "x"}) + "\n"
    )
    result = run("trace", "fmt", "--json", "init", "--", file.name, cwd=tmp_path)
    assert (result.returncode, json.loads(result.stdout)["number"]) == (0, 1), result.stderr
    for verb in ("delcallouts", "enable", "disable"):
        arguments = parser_of(resolve([verb])[0]).parse(["--", "-dash"])
        assert "-dash" in (getattr(arguments, "name", ""), *getattr(arguments, "paths", ()))


def test_packets_are_not_written_to_a_terminal() -> None:
    terminal, other = pty.openpty()
    try:
        result = run("monitor", "-w", "-", "/bin/true", stdout=other)
    finally:
        os.close(other)
        os.close(terminal)
    assert result.returncode == 2
    assert "hint: -w FILE" in result.stderr


@pytest.mark.parametrize(("option", "words"), LATER.items(), ids=LATER)
def test_what_comes_later_is_told_so_in_one_line(option: str, words: list[str]) -> None:
    result = run("monitor", *words, "/bin/true")
    assert result.returncode == 2
    assert result.stderr == f"streamtap: error: {option} is not available yet\n"


def test_an_unknown_verb_is_answered_with_the_verbs_there_are() -> None:
    stderr = run("observe").stderr
    assert all(verb.name in stderr for verb in VERBS)


def test_nothing_to_watch_is_answered_with_an_example() -> None:
    assert "hint: streamtap monitor /usr/bin/curl" in run("monitor").stderr


@pytest.mark.parametrize(
    "words", [["--help"], *([*verb.name.split(), "--help"] for verb in every_verb())]
)
def test_help_goes_to_standard_output(words: list[str]) -> None:
    result = run(*words, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: streamtap")


def test_help_names_every_verb_and_exit_code() -> None:
    text = run("--help").stdout
    assert all(f"  {verb.name} " in text for verb in VERBS)
    for code in ("0", "1", "2", "3", "4", "5", "6", "8", "124", "126, 127", "128+n"):
        assert f"\n  {code} " in text


@pytest.mark.parametrize("words", [["--help"], ["monitor", "--help"], ["--version"], ["observe"]])
def test_help_and_mistakes_wait_for_no_heavy_import(words: list[str]) -> None:
    source = (
        "import sys; from streamtap.cli import main; main(sys.argv[1:]); "
        "heavy = {'numpy', 'msgspec', 'streamtap.watch', 'streamtap.trace'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", source, *words], check=True, capture_output=True, timeout=20
    )


def test_the_version_is_told() -> None:
    import streamtap

    assert run("--version").stdout == f"streamtap {streamtap.__version__}\n"


@pytest.mark.parametrize(
    ("words", "meaning"),
    [(["--help"], "streamtap monitor"), (["status", "--help"], "streamtap status")],
)
def test_the_command_monitor_is_the_verb_monitor_and_knows_the_others(
    words: list[str], meaning: str
) -> None:
    source = "import sys; from streamtap.cli import main_monitor; sys.exit(main_monitor())"
    result = subprocess.run(
        [sys.executable, "-c", source, *words], capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: {meaning} ")


def test_a_reader_that_goes_away_is_no_error() -> None:
    source = f"exec {sys.executable} -m streamtap protocols"
    result = subprocess.run(
        ["sh", "-c", f"({source}; echo code $? >&2) | true"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "Error" not in result.stderr
    assert "Exception" not in result.stderr


def test_standard_error_that_nobody_reads_does_not_change_the_exit_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        words = [sys.executable, "-m", "streamtap", "observe"]
        assert subprocess.run(words, stderr=writer, timeout=20).returncode == 2
    finally:
        os.close(writer)


def test_a_full_disk_under_a_table_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = run("protocols", stdout=full)
    assert result.returncode == 1
    assert result.stderr == "streamtap: error: No space left on device\n"


def trace_script(*words: str) -> subprocess.CompletedProcess[str]:
    source = "import sys; from streamtap.cli import main_trace; sys.exit(main_trace())"
    command = [sys.executable, "-c", source, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("words", [[], ["notify", "info"], ["notify", "info", "observe"]])
def test_the_trace_script_tells_its_arguments_where_they_are_wrong(words: list[str]) -> None:
    result = trace_script(*words)
    assert result.returncode == 2
    assert "COMPONENT LEVEL VERB" in result.stderr
    assert "start, stop, rt, fmt" in result.stderr


def test_the_trace_script_takes_the_words_of_the_sample(tmp_path: Path) -> None:
    environment = {"STREAMTAP_STATE_DIR": str(tmp_path), "STREAMTAP_RUN_DIR": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert trace_script("NOTIFY", "9", "rt").returncode == 3
        assert trace_script("NOTIFY", "4", "rt").returncode == 2
        assert trace_script("TRACE_NOTIFY", "9", "stop").stderr.startswith(
            "streamtap: error: no session notify\n"
        )
        result = trace_script("NOTIFY", "2", "fmt")
        assert result.returncode == 6
        assert f"{tmp_path}/recordings/notify.jsonl" in result.stderr
        if os.getuid() == 0:
            assert trace_script("NOTIFY", "1", "start").returncode == 0
            assert '"NOTIFY@1"' in (tmp_path / "sessions.json").read_text()
            assert trace_script("NOTIFY", "1", "stop").returncode == 0
