"""Conversations as lines for people, and as JSON."""

from collections.abc import Iterable, Iterator, Sequence

from streamtap.cli.tables import table_lines
from streamtap.events import FlowInfo
from streamtap.summary import SIGNALS, Conversation, Line, Sender, Transfer
from streamtap.trace.jsonlines import encode_any
from streamtap.trace.text import (
    Clock,
    account,
    app_name,
    duration,
    ends,
    printable,
    quote,
    size,
)

HEAD = ("BEGAN", "LASTED", "MESSAGES", "FILES", "WHO")
SHOWN = 4  # accounts in one line
TEXT = 1 << 20  # characters of a line that somebody wrote


def as_json(found: Conversation, *, transcript: bool) -> bytes:
    """One object; every key is always there, but for the transcript."""
    said = {
        name: {"messages": sender.messages, "bytes": sender.bytes, "kinds": sender.kinds}
        for name, sender in found.senders.items()
    }
    value: dict[str, object] = {
        "conversation": found.conversation,
        "protocol": found.protocol,
        "began_ns": found.began_ns,
        "ended_ns": found.ended_ns,
        "duration_ns": found.ended_ns - found.began_ns,
        "participants": list(found.participants),
        "invited": list(found.invited),
        "messages": found.messages,
        "bytes": found.bytes,
        "senders": [{"account": name, **counts} for name, counts in said.items()],
        "files": [_transfer_keys(one, "name", "size", "transferred") for one in found.files],
        "media": [_transfer_keys(one, "kind") for one in found.media],
        "direct": [
            {"address": address, "transport": transport, "account": name}
            for address, transport, name in found.direct
        ],
        "errors": [
            {"code": code, "name": name, "command": command, "count": count}
            for (code, name, command), count in found.errors.items()
        ],
        "flows": list(found.flows.values()),
        "missing": found.missing,
    }
    if transcript:
        value["transcript"] = found.transcript
    return encode_any(value)


def _transfer_keys(transfer: Transfer, *names: str) -> dict[str, object]:
    always = ("sender", "recipients", "action")
    return {name: getattr(transfer, name) for name in (*always, *names)}


def as_lines(
    conversations: Sequence[Conversation], *, verbose: bool, transcript: bool
) -> Iterator[str]:
    """A table, a line for each, and below that what else was asked for."""
    clock = Clock("%Y-%m-%d %H:%M:%S")
    head, *rows = table_lines(HEAD, (_row(each, clock) for each in conversations), numbers=(2, 3))
    yield head
    for each, row in zip(conversations, rows, strict=True):
        yield row
        if verbose:
            width = max([12, *(len(word) for word, _ in _details(each))])
            for word, text in _details(each):
                yield f"    {word:{width}}  {text}"
        if transcript:
            yield from _transcript(each.transcript, clock)
        if verbose or transcript:
            yield ""


def _row(found: Conversation, clock: Clock) -> tuple[str, ...]:
    lasted = duration(found.ended_ns - found.began_ns)
    more = "+" if found.missing else ""
    files = str(len(found.files) or "")
    return clock.second(found.began_ns), lasted, f"{found.messages}{more}", files, _who(found)


def _who(found: Conversation) -> str:
    """Accounts, each with the number of its messages."""
    names: list[str | None] = [*found.participants, *(None,) * (None in found.senders)]
    nobody = Sender()
    told = [f"{_person(name)} {found.senders.get(name, nobody).messages}" for name in names[:SHOWN]]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(told) or "?") + more


def _person(name: str | None) -> str:
    return account(name) if name else "?"


def _people(names: Iterable[str]) -> str:
    return ", ".join(map(account, names)) or "?"


def _details(found: Conversation) -> Iterator[tuple[str, str]]:
    """A word and what is to be said about it."""
    name = printable(found.conversation) if found.conversation else "without a name"
    yield "conversation", f"{name}  {printable(found.protocol)}"
    for sender, said in found.senders.items():
        yield _person(sender), _said(said)
    for invited in found.invited:
        yield "invited", account(invited)
    for transfer in found.transfers:
        yield ("file" if transfer.kind == "file" else "media"), _transfer(transfer)
    for address, transport, whose in found.direct:
        of = f" of {account(whose)}" if whose else ""
        yield "direct", f"{printable(address)}{of} ({printable(transport)})"
    for (code, meaning, command), count in found.errors.items():
        text = f"{code or ''} {printable(meaning or '')}".strip()  # 0: it has no number
        answer = f" in answer to {printable(command)}" if command else ""
        yield "error", f"{text}{answer}" + (f", {count} times" if count > 1 else "")
    if found.missing:
        yield "missing", f"{size(found.missing)} of its connections were not seen"
    for flow in found.flows.values():
        yield "connection", _flow(flow)


def _said(sender: Sender) -> str:
    """`3 text, 1 nudge, 151 bytes; 2 typing`."""
    real = [f"{n} {printable(kind)}" for kind, n in sender.kinds.items() if kind not in SIGNALS]
    signals = [f"{n} {kind}" for kind, n in sender.kinds.items() if kind in SIGNALS]
    parts = [", ".join([*real, size(sender.bytes)])] if real else []
    return "; ".join([*parts, *([", ".join(signals)] if signals else [])])


def _transfer(transfer: Transfer) -> str:
    people = f"{_person(transfer.sender)} -> {_people(transfer.recipients)}"
    if transfer.kind != "file":
        what = printable(transfer.kind).replace("_", " ")
        return f"{people}  {printable(transfer.action)} {what}"
    name = f" {quote(transfer.name)}" if transfer.name else ""
    whole, done = transfer.size, transfer.transferred
    amount = "" if whole is None else f" {size(whole)}"
    if done is not None and done != whole:
        amount = f" {size(done)} of{amount or ' unknown size'}"
    return f"{people}  {printable(transfer.action)}{name}{amount}"


def _flow(flow: FlowInfo) -> str:
    app = f"  {app_name(flow.app)}" if flow.app else ""
    return f"{printable(flow.flow)}  {ends(flow)}{app}"


def _transcript(lines: Iterable[Line], clock: Clock) -> Iterator[str]:
    """A line of text each, those after its first below it."""
    for line in lines:
        start = f"    {clock.second(line.time_ns)[-8:]}  {_person(line.sender)}"
        if line.content is None or line.kind != "text":
            yield f"{start} ({printable(line.kind)}, {size(line.size)})"
            continue
        first, *rest = line.content.splitlines() or [""]
        yield f"{start}: {printable(first, TEXT)}"
        for text in rest:
            yield f"              {printable(text, TEXT)}"
