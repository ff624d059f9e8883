"""What the documentation says is so: pages are current, links lead somewhere, commands exist."""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import streamtap
from streamtap import events, trace
from streamtap.cli.parsing import EXIT_CODES, UsageError, every_verb, parser_of, resolve
from streamtap.flows.scope import Kind
from streamtap.model import Direction
from streamtap.patterns import PATTERNS
from streamtap.protocols import Limits, Parser, Verdict, event_types
from test_architecture import ALLOWED

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

# First folders of absolute paths that mean something on every machine.
STANDARD_FOLDERS = {"bin", "dev", "etc", "opt", "path", "proc", "run", "sys", "usr", "var"}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PROMPT = re.compile(r"^\$ (.*)$", re.MULTILINE)
_ABSOLUTE = re.compile(r"(?<![\w.:/~*>\])}])/(\w[\w.-]*)/\w")


def load(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem.replace("-", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fences(page: Path, *languages: str) -> Iterator[str]:
    for found in _FENCE.finditer(page.read_text()):
        if found[1] in languages:
            yield found[2]


def reference() -> str:
    return "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))


# --- the reference is complete and current --------------------------------------------------------


@pytest.mark.parametrize("name", sorted(load(ROOT / "scripts" / "reference.py").PAGES))
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    made = load(ROOT / "scripts" / "reference.py").PAGES[name]()
    assert (REFERENCE / name).read_text() == made, "run scripts/docs"


def test_every_event_and_each_of_its_fields_is_in_the_reference() -> None:
    text = (REFERENCE / "events.md").read_text()
    bodies = {
        body
        for body in vars(events).values()
        if isinstance(body, type) and issubclass(body, events.Body)
    } - {events.Body, events.Event}
    for body in (*bodies, *PATTERNS, *event_types()):
        tag = str(body.__struct_config__.tag)
        section = text.partition(f"### `{tag}`\n")[2].partition("\n### ")[0]
        assert section, f"{tag} is missing"
        base = {"offset", "length", "protocol", "pattern", "conversation"}
        for name in set(body.__struct_fields__) - base:
            assert f"| `{name}` |" in section, f"{tag} says nothing of {name}"


def test_every_provider_flag_and_level_is_in_the_reference() -> None:
    text = (REFERENCE / "events.md").read_text()
    names = {*events.PROVIDERS, *events.LEVELS}
    names |= {flag for flags in events.PROVIDERS.values() for flag in flags}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_verb_and_option_is_in_the_reference() -> None:
    text = (REFERENCE / "cli.md").read_text()
    for verb in every_verb():
        section = text.partition(f"## `streamtap {verb.name}`\n")[2].partition("\n## ")[0]
        assert section, f"{verb.name} is missing"
        for action in parser_of(verb)._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert re.search(rf"`{re.escape(option)}[` ]", section), f"{verb.name} {option}"


def test_every_exit_code_that_an_exception_has_is_in_the_reference() -> None:
    text = (REFERENCE / "exit-codes.md").read_text()
    assert {code for code, _ in EXIT_CODES if f"| {code} |" not in text} == set()
    codes = {str(error.exit_code) for error in exceptions(streamtap.StreamtapError)}
    assert {code for code in codes if f"| {code} |" not in text} == set()


def test_every_exception_is_in_the_reference() -> None:
    text = (REFERENCE / "errors.md").read_text()
    named = exceptions(streamtap.StreamtapError)
    assert {error.__name__ for error in named if f"`{error.__name__}`" not in text} == set()


def exceptions(
    base: type[streamtap.StreamtapError],
) -> set[type[streamtap.StreamtapError]]:
    below = {base}
    for error in base.__subclasses__():
        below |= exceptions(error)
    return {error for error in below if error.__module__.startswith("streamtap.")}


def test_every_sink_and_scope_is_in_the_reference() -> None:
    outputs = (REFERENCE / "outputs.md").read_text()
    sinks = [
        name
        for name in trace.__all__
        if all(hasattr(getattr(trace, name), method) for method in ("open", "write", "flush"))
    ]
    assert {"Console", "JsonLines", "Sqlite", "Wpp"} <= set(sinks)
    assert {name for name in sinks if name != "Sink" and f"`{name}`" not in outputs} == set()
    scopes = (REFERENCE / "scopes.md").read_text()
    assert {kind for kind in get_args(Kind) if f"| `{kind}`" not in scopes} == set()


def test_every_public_name_of_the_python_interface_is_described() -> None:
    text = (DOCS / "how-to" / "python-api.md").read_text() + reference()
    assert {name for name in streamtap.__all__ if name not in text} == set()


def test_the_import_table_of_the_architecture_is_the_one_that_is_tested() -> None:
    text = (DOCS / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    written = {
        part: (set(re.findall(r"`(\w+)`", parts)), set(re.findall(r"`(\w+)`", third)))
        for part, parts, third in rows
    }
    assert written == ALLOWED


# --- every page -----------------------------------------------------------------------------------


@each_page
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for target in _LINK.findall(text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} is not there"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {as_anchor(title) for title in titles}, f"{target}: no such title"


def as_anchor(title: str) -> str:
    """The anchor that a title gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@each_page
def test_paths_that_are_shown_are_those_of_any_machine(page: Path) -> None:
    assert set(_ABSOLUTE.findall(page.read_text())) <= STANDARD_FOLDERS


@each_page
def test_commands_that_are_shown_exist_with_their_options(page: Path) -> None:
    for block in fences(page, "console", "sh"):
        lines = _PROMPT.findall(block) or block.splitlines()
        for line in lines:
            words = shlex.split(line.split(" # ")[0].split("  #")[0])
            for index, word in enumerate(words):
                if word.startswith("scripts/"):
                    assert os.access(ROOT / word, os.X_OK), f"{word} is not there"
                if os.path.basename(word) == "streamtap" and index + 1 < len(words):
                    own = [*words, "|"][index + 1 :]
                    check_command(own[: own.index("|")], line)
                    break


def check_command(words: list[str], line: str) -> None:
    if not re.fullmatch(r"[a-z]+", words[0]):
        return  # a path that ends in this name
    try:
        verb, rest = resolve(words)
        parser_of(verb).parse(rest)
    except UsageError as error:
        pytest.fail(f"{line}: {error}")


def test_scopes_that_the_readme_names_can_be_written() -> None:
    rows = re.findall(r"^\| (`monitor .*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        for text in re.findall(r"`(.*?)`", row):
            words = shlex.split(text)
            check_command(words if words[0] == "monitor" else ["monitor", *words], text)


def test_records_that_are_shown_can_be_read_back() -> None:
    general = [
        body
        for body in vars(events).values()
        if isinstance(body, type) and issubclass(body, events.Body)
    ]
    types = [body for body in general if body not in (events.Body, events.Event)]
    decoder = trace.RecordDecoder((*types, *PATTERNS, *event_types()))
    shown = [line for page in PAGES for text in fences(page, "json") for line in text.splitlines()]
    assert shown
    for line in shown:
        record = decoder.decode(line.encode())
        assert f'"event":"{events.tag_of(record.body)}"' in line
        assert f'"flag":"{record.body.place()[1]}"' in line


# --- code -----------------------------------------------------------------------------------------


@each_page
def test_python_that_is_shown_compiles_and_imports_what_exists(page: Path) -> None:
    for block in fences(page, "python"):
        check_imports(compile_python(block, str(page)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_says_how_it_is_run_and_uses_what_exists(path: Path) -> None:
    tree = compile_python(path.read_text(), str(path))
    assert f"examples/{path.name}" in (ast.get_docstring(tree) or "")
    assert f"examples/{path.name}" in (DOCS / "how-to" / "python-api.md").read_text()
    check_imports(tree)


def compile_python(text: str, name: str) -> ast.Module:
    tree = ast.parse(text, name)
    compile(tree, name, "exec")
    return tree


def check_imports(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("streamtap"):
            module = __import__(node.module or "", fromlist=["*"])
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "streamtap"
        ):
            assert node.attr in streamtap.__all__, f"streamtap has no {node.attr}"


def test_the_parser_that_the_guide_shows_keeps_the_rules_it_tells(tmp_path: Path) -> None:
    (block,) = fences(DOCS / "how-to" / "add-a-protocol.md", "python")
    path = tmp_path / "lines.py"
    path.write_text(block)
    parser: type[Parser] = load(path).LinesParser
    text = b"LINES one\r\ntwo\n" + b"long " * 20 + b"\nfour\nunfinished"
    assert parser.probe(b"LI", b"") is Verdict.MORE
    assert parser.probe(text, b"") is Verdict.YES
    assert parser.probe(b"GET /", b"") is Verdict.NO
    for midstream in (False, True):
        whole = spoken(parser, [text], midstream)
        assert whole == spoken(parser, [text[i : i + 1] for i in range(len(text))], midstream)
        at = 0
        for event in whole:
            assert event.offset == at
            at += event.length
        assert at == len(text)
    lines = [event.text for event in spoken(parser, [text], False) if hasattr(event, "text")]
    assert lines == ["LINES one", "two", "four"]


def spoken(parser: type[Parser], pieces: list[bytes], midstream: bool) -> list[events.Event]:
    speech = parser(limits=Limits(line=32), midstream=midstream)
    given = [event for piece in pieces for event in speech.receive(Direction.TO_SERVER, piece)]
    return [*given, *speech.end(Direction.TO_SERVER)]


@pytest.mark.root
def test_the_first_screen_of_the_readme_is_what_is_seen(tmp_path: Path) -> None:
    (shown, *_) = fences(ROOT / "README.md", "console")
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (tmp_path / "plan.pdf").write_bytes(bytes(3000))
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = str(server.server_port)
        # Only this port: others may use curl now.
        command = [sys.executable, "-m", "streamtap", "monitor", curl, "--port", port]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as monitor:
            patience = threading.Timer(30, monitor.kill)
            patience.start()
            try:
                assert monitor.stdout is not None
                assert monitor.stderr is not None
                seen = [monitor.stderr.readline()]
                assert "watching" in seen[0], monitor.stderr.read()
                url = f"http://127.0.0.1:{port}/plan.pdf"
                subprocess.run([curl, "-s", "-o", tmp_path / "copy", url], check=True, timeout=30)
                while " closed " not in seen[-1]:
                    seen.append(monitor.stdout.readline())
                    assert seen[-1], "the monitor ended"
                monitor.send_signal(signal.SIGINT)
                rest, summary = monitor.communicate(timeout=30)
            finally:
                patience.cancel()
                monitor.kill()
        server.shutdown()
    assert rest == ""
    assert monitor.returncode == 0
    seen.append(summary)
    wanted = shown.replace("; Ctrl-C ends", "").replace("^C", "").splitlines()[1:]
    assert [shape(line) for line in seen] == [shape(line) for line in wanted]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


def shape(line: str) -> str:
    """The line without what differs from run to run: numbers, and the places of columns."""
    line = re.sub(r"\d+(?:[.:]\d+)*", "N", line).replace("N s:", "N ms:")
    return " ".join(re.sub(r"exe \S+|(?<=  )/\S*curl", "curl", line).split())


DEMO = (sys.executable, "-P", "-m", "streamtap.demo")


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("who-talks.py", ("--", *DEMO), r"alice +127\.0\.0\.1:\d+ +sent +\d+ received +\d+"),
        ("all-seen.py", DEMO, r"127\.0\.0\.1:\d+  \d+ bytes  complete"),
        ("messages.py", DEMO, r"alice@example\.com -> bob@example\.com: text, \d+ bytes"),
    ],
)
def test_an_example_shows_the_demo_when_it_is_run(
    name: str, arguments: tuple[str, ...], expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(expected, done.stdout), done.stdout
