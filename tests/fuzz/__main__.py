"""A coverage-guided run: `python -m fuzz TARGET [SECONDS]`, as scripts/fuzz does.

libFuzzer mutates what `seeds` gives, with the words of the protocol as a dictionary, and keeps in
build/fuzz/TARGET what reached new code, so that the next run goes on from there. An input that
breaks the target is left as build/fuzz/TARGET-crash-…: with the fix it becomes a file in
tests/fuzz/corpus.
"""

import argparse
import importlib
from pathlib import Path

BUILD = Path("build") / "fuzz"
INSTRUMENTED = [
    *("streamtap.protocols", "streamtap.patterns", "streamtap.streams"),
    *("streamtap.capture", "streamtap.flows", "streamtap.trace.packets", "streamtap.trace.pcapng"),
]
LONGEST = 16 * 1024  # bytes of an input
SLOW_S = 20  # after which an input counts as a hang
MEMORY_MB = 3000  # of all: atheris keeps some 10 KB of each input; `fuzz.reading` bounds one


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz one target.")
    parser.add_argument("target")
    parser.add_argument("seconds", type=int, nargs="?", default=300)
    given = parser.parse_args()
    atheris = importlib.import_module("atheris")  # not a dependency: scripts/fuzz installs it
    with atheris.instrument_imports(include=INSTRUMENTED):
        targets = importlib.import_module("fuzz.targets")
    if given.target not in targets.TARGETS:
        parser.error(f"no such target: {given.target}; there are {', '.join(targets.TARGETS)}")
    corpus = BUILD / given.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(given.target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = BUILD / f"{given.target}.dict"
    words.write_text("".join(f'"{_quoted(word)}"\n' for word in targets.words(given.target)))
    options = {
        "max_total_time": given.seconds,
        "max_len": LONGEST,
        "timeout": SLOW_S,
        "rss_limit_mb": MEMORY_MB,
        "dict": words,
        "artifact_prefix": f"{corpus}-",
    }
    argv = ["fuzz", *(f"-{name}={value}" for name, value in options.items()), str(corpus)]
    atheris.Setup(argv, targets.TARGETS[given.target])
    atheris.Fuzz()


def _quoted(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
