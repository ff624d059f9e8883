"""Captures and recordings read to conversations, and those printed."""

import gc
import os
import sys
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import chain, repeat
from pathlib import Path

from streamtap.capture.identity import host_key
from streamtap.cli.ending import FAILED, SIGINT, SIGNALLED, losses_of
from streamtap.cli.options import wanted_flows
from streamtap.cli.parsing import Arguments, say
from streamtap.cli.reading import GARBAGE_AFTER
from streamtap.cli.recordings import cleaned, of_wanted_flows, records_of
from streamtap.cli.signals import Stop
from streamtap.cli.talks import as_json, as_lines
from streamtap.events import Record
from streamtap.model import Content
from streamtap.ordered import choose
from streamtap.patterns import SignIn, clean
from streamtap.reading import Reading
from streamtap.summary import Conversation, Summary
from streamtap.trace import is_recording, parse
from streamtap.trace.text import counted, printable

WANTED = parse(["notify:client_server,peer_to_peer", "stream:gap"])


def show_conversations(arguments: Arguments, stop: Stop) -> int:
    """Reads all files, or until a signal; shows what was found; the exit code."""
    gc.set_threshold(GARBAGE_AFTER)
    content, key = Content.named(arguments.content), host_key() or os.urandom(16)
    summary = Summary(transcript=arguments.transcript)
    recordings = [Path(name) for name in arguments.files if is_recording(Path(name))]
    captures = [name for name in arguments.files if Path(name) not in recordings]
    problems: list[str] = []
    losses: list[str] = []
    sources: list[Iterable[Record]] = []
    reading: Reading | None = None
    if captures:
        reading = Reading(
            captures,
            selection=WANTED,
            chosen=choose(arguments.port, arguments.host),
            content=content if arguments.transcript else min(content, Content.META),
            wanted=wanted_flows(arguments),
            key=key,
            stop=lambda: bool(stop.number),
        )
        sources.append(chain.from_iterable(reading.batches()))
    sources += (_of_recording(path, arguments, stop, key, problems) for path in recordings)
    try:
        if len(sources) == 1:
            for record in sources[0]:
                summary.add(record)
        else:
            named = (zip(each, repeat(f"{at}")) for at, each in enumerate(sources))
            for record, source in merge(*named, key=_time):
                summary.add(record, source)
    finally:
        if reading is not None:
            reading.close()
    if reading is not None:
        problems[:0] = map(str, reading.problems)
        losses += losses_of(reading)
    if summary.left_out:
        losses.append(f"{counted(summary.left_out, 'part')} of conversations: no room for more")

    found = summary.conversations()
    accounts = [_as_recorded(name, content, key) for name in arguments.account]
    shown = [each for each in found if not accounts or each.concerns(accounts)]
    _show(arguments, shown)
    for problem in problems:
        say(f"streamtap: error: {printable(problem, 1000)}")
    if summary.repeated:
        many = counted(summary.repeated, "record")
        say(f"streamtap: passed over {many} that another of these files has too")
    of_all = f" of {len(found)}" if accounts else ""
    messages = counted(sum(each.messages for each in shown), "message")
    say(f"streamtap: {counted(len(shown), 'conversation')}{of_all}, {messages}")
    if losses:
        say("streamtap: lost: " + "; ".join(losses))
    if stop.number and stop.number != SIGINT:
        return SIGNALLED + stop.number
    return FAILED if problems else 0


def _of_recording(
    path: Path, arguments: Arguments, stop: Stop, key: bytes, problems: list[str]
) -> Iterator[Record]:
    """What is wanted of a recording, until a signal."""
    content, wanted = Content.named(arguments.content), of_wanted_flows(arguments)
    for record in records_of(path, problems):
        if stop.number:
            return
        if wanted is None or (record.flow is not None and wanted(record.flow)):
            yield cleaned(record, content, key)


def _time(named: tuple[Record, str]) -> int:
    return named[0].time_ns


def _show(arguments: Arguments, shown: list[Conversation]) -> None:
    if arguments.json:
        for each in shown:
            sys.stdout.write(as_json(each, transcript=arguments.transcript).decode() + "\n")
    elif shown:
        lines = as_lines(shown, verbose=arguments.verbose, transcript=arguments.transcript)
        for line in lines:
            print(line)


def _as_recorded(account: str, content: Content, key: bytes) -> str:
    """What an account is called at this level."""
    body = clean(SignIn(offset=0, length=0, protocol="", account=account.lower()), content, key)
    assert isinstance(body, SignIn)
    return body.account
