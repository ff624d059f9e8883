"""What each event says in words, for lines that people read.

`Fields` is the only way to the values of a body: text comes out of it safe for a terminal, cut to
a bearable length, and a value that is missing or of another kind comes out empty. So nothing
here can raise, or forget to escape, whatever was on the wire.
"""

from collections.abc import Callable
from typing import NamedTuple

from streamtap.events import Event, Record, tag_of
from streamtap.trace.text import (
    LONG,
    account,
    counted,
    duration,
    ends,
    printable,
    quote,
    size,
)


class Words(NamedTuple):
    """One event in words. `about` comes first and always; `detail` is left out with `-q`."""

    word: str
    about: str
    detail: str = ""


class Fields:
    """The values of a record's body, by name.

    client: the protocol and client that the flow was opened with, where that was seen.
    inline: text that was said (`--content full`) belongs into the line.
    """

    __slots__ = ("_body", "client", "direction", "flow", "inline")

    def __init__(self, record: Record, client: str = "", *, inline: bool = True) -> None:
        self._body = record.body
        self.flow = record.flow
        self.direction = record.direction or ""
        self.client = client
        self.inline = inline

    def text(self, name: str, limit: int = LONG) -> str:
        value = getattr(self._body, name, None)
        return printable(value, limit) if isinstance(value, str) else ""

    def quoted(self, name: str) -> str:
        """The text in quotation marks, or nothing if there is none."""
        value = getattr(self._body, name, None)
        return quote(value) if isinstance(value, str) and value else ""

    def person(self, name: str, missing: str = "?") -> str:
        value = getattr(self._body, name, None)
        return account(value) if isinstance(value, str) and value else missing

    def people(self, name: str) -> str:
        """Up to four accounts, and how many more there are."""
        value = getattr(self._body, name, None)
        if not isinstance(value, tuple) or not value:
            return "?"
        shown = ", ".join([account(str(item)) for item in value[:4]])
        return f"{shown} and {len(value) - 4} more" if len(value) > 4 else shown

    def texts(self, name: str, separator: str = ", ") -> str:
        value = getattr(self._body, name, None)
        items = value if isinstance(value, tuple) else ()
        return printable(separator.join(str(item) for item in items[:32]))

    def number(self, name: str) -> int | None:
        value = getattr(self._body, name, None)
        return value if isinstance(value, int) else None

    def is_true(self, name: str) -> bool:
        return getattr(self._body, name, None) is True

    def amount(self, name: str, missing: str = "") -> str:
        value = self.number(name)
        return missing if value is None else size(value)

    def ranges(self, name: str) -> str:
        value = getattr(self._body, name, None)
        items = value if isinstance(value, tuple) else ()
        return ", ".join(f"{way} {offset}+{length}" for way, offset, length in items)

    def content(self) -> str:
        """What was said, as the end of a line."""
        return f": {self.quoted('content')}" if self.inline and self.quoted("content") else ""

    @property
    def place(self) -> str:
        """Where the bytes are: `5121 (received)`."""
        way = f" ({self.direction})" if self.direction else ""
        return f"{self.number('offset') or 0}{way}"

    def rest(self) -> str:
        """Every field as `key=value`, but those that stand for the place in the stream."""
        parts = []
        for name in self._body.__struct_encode_fields__:
            value = getattr(self._body, name, None)
            if value in (None, "", b"", ()) or name in Event.__struct_fields__:
                continue
            if isinstance(value, bytes):
                text = printable(value.decode("latin-1"), LONG // 2)
            elif isinstance(value, tuple):
                text = printable(" ".join(str(item) for item in value[:32]), LONG // 2)
            else:
                text = printable(str(value), LONG // 2)
            parts.append(f"{name}={text if text and ' ' not in text else quote(text)}")
        return printable(" ".join(parts), 4 * LONG)


Teller = Callable[[Fields], Words]


def tell(record: Record, client: str = "", *, inline: bool = True) -> Words:
    """The event in words; an event without words of its own tells its fields."""
    tag = tag_of(record.body)
    fields = Fields(record, client, inline=inline)
    teller = TELLERS.get(tag)
    return teller(fields) if teller is not None else Words(printable(tag), fields.rest())


def _in_brackets(*parts: str) -> str:
    text = ", ".join(part for part in parts if part)
    return f" ({text})" if text else ""


# Flows and streams


def _opened(fields: Fields) -> Words:
    flow = fields.flow
    about = "a flow" if flow is None else ends(flow)
    path = f"  {printable(flow.app.path)}" if flow is not None and flow.app is not None else ""
    return Words("opened", about, path + ("  (open before)" if fields.is_true("midstream") else ""))


def _identified(fields: Fields) -> Words:
    confidence = fields.text("confidence")
    if confidence == "none":
        return Words("protocol", "none known", " (shown as plain data)")
    how = {"content": "by its content", "forced": "as asked"}.get(confidence, confidence)
    return Words("protocol", fields.text("protocol"), _in_brackets(how))


def _closed(fields: Fields) -> Words:
    reason = fields.text("reason")
    why = {
        "fin": "ended",
        "rst": "reset",
        "idle": "idle for long",
        "removed": "left the scope",
        "end": "still open at the end",
    }.get(reason, reason)
    sent_counted = fields.number("sent_counted") or 0
    received_counted = fields.number("received_counted") or 0
    sent = size((fields.number("sent") or 0) + sent_counted)
    received = size((fields.number("received") or 0) + received_counted)
    parts = [f"sent {sent}, received {received}"]
    if uncopied := sent_counted + received_counted:
        parts[0] += f" ({size(uncopied)} counted, not copied)"
    if missing := fields.number("missing"):
        where = fields.ranges("missing_ranges")
        parts.append(f"{size(missing)} missing" + (f" at {where}" if where else ""))
    elif fields.is_true("complete"):
        parts.append("complete")
    lasted = fields.number("duration_ns")
    after = "" if lasted is None else f" after {duration(lasted)}"
    return Words("closed", f"{why}{after}: {', '.join(parts)}")


_CAUSES = {
    "lost": "lost",
    "unseen": "not seen",
    "limit": "given up, too much waited behind them",
    "midstream": "passed before watching began",
    "policy": "counted, not copied",
}


def _gap(fields: Fields) -> Words:
    cause = fields.text("cause")
    length = fields.number("length") or 0
    # Exact, for offset and length are there to be compared.
    return Words("gap", f"{counted(length, 'byte')} {_CAUSES.get(cause, cause)} at {fields.place}")


def _stretch(fields: Fields) -> str:
    return f"{counted(fields.number('length'), 'byte')} at {fields.place}"


def _malformed(fields: Fields) -> Words:
    return Words("malformed", fields.text("reason"), f"  {_stretch(fields)}")


def _skipped(fields: Fields) -> Words:
    return Words("skipped", f"{_stretch(fields)}: {fields.text('reason')}")


def _overlap(fields: Fields) -> Words:
    return Words("overlap", f"{_stretch(fields)} came again, different; the first copy counts")


def _limit(fields: Fields) -> Words:
    times = counted(fields.number("count"), "time")
    return Words(
        "limit", f"{fields.text('limit')} reached {times}", f"  at {fields.number('value')}"
    )


def _parser_failed(fields: Fields) -> Words:
    about = f"the {fields.text('protocol')} parser: {fields.text('error')}"
    return Words("defect", about, "  (the flow goes on as plain data)")


# streamtap itself


def _state_changed(fields: Fields) -> Words:
    name = fields.quoted("filter")
    word = "enabled" if fields.is_true("enabled") else "disabled"
    return Words(word, f"filter {name}" if name else "everything")


def _filter_changed(fields: Fields) -> Words:
    about = f"{fields.text('action')} {fields.quoted('filter')}"
    return Words("filter", about, f" for {fields.text('scope')} at {fields.text('layer')}")


def _request(fields: Fields) -> Words:
    who = fields.text("user") or "?"
    about = f"{fields.text('request')} by {who}: {fields.text('result')}"
    return Words(
        "request", about, _in_brackets(f"uid {fields.number('uid')}", f"pid {fields.number('pid')}")
    )


def _control_opened(fields: Fields) -> Words:
    return Words("control", f"can be asked at {fields.text('path')}")


def _control_state(fields: Fields) -> Words:
    hooks, missing = fields.texts("hooks"), fields.texts("missing")
    detail = (f"  hooks: {hooks}" if hooks else "") + (f"  missing: {missing}" if missing else "")
    return Words("state", fields.text("state"), detail)


def _started(fields: Fields) -> Words:
    return Words("started", f"streamtap {fields.text('version')}", f" on {fields.text('source')}")


def _stopped(fields: Fields) -> Words:
    parts = [counted(fields.number("flows"), "flow"), fields.amount("bytes")]
    parts += [counted(fields.number(name), name[:-1]) for name in ("records", "gaps", "drops")]
    return Words("stopped", ", ".join(parts))


# Patterns


def _people(fields: Fields) -> str:
    return f"{fields.person('sender')} -> {fields.people('recipients')}"


def _connect(fields: Fields) -> Words:
    version, client = fields.text("protocol_version"), fields.text("client")
    return Words("connect", fields.text("service"), _in_brackets(version, client))


def _sign_in(fields: Fields) -> Words:
    name = fields.quoted("display_name")
    detail = (f" {name}" if name else "") + _in_brackets(fields.client)
    return Words("sign-in", fields.person("account"), detail)


def _sign_out(fields: Fields) -> Words:
    return Words("sign-out", fields.person("account"), _in_brackets(fields.text("reason")))


def _presence(fields: Fields) -> Words:
    name = fields.quoted("display_name")
    about = f"{fields.person('account')} is {fields.text('status')}"
    return Words("presence", about, f"  {name}" if name else "")


def _contacts(fields: Fields) -> Words:
    count = fields.number("count")
    whom = fields.person("contact", "") or (counted(count, "contact") if count is not None else "")
    about = f"{fields.person('account')}  {fields.text('action')} {whom}".rstrip()
    return Words("contacts", about, _in_brackets(fields.texts("lists", " ")))


def _redirect(fields: Fields) -> Words:
    return Words("redirect", f"to {fields.text('service')} {fields.text('to')}")


def _invite(fields: Fields) -> Words:
    return Words("invite", f"{fields.person('by')} invites {fields.person('account')}")


def _join(fields: Fields) -> Words:
    return Words("join", fields.person("account"), f"  now {fields.people('participants')}")


def _leave(fields: Fields) -> Words:
    left = fields.people("participants")
    detail = "  nobody is left" if left == "?" else f"  now {left}"
    return Words("leave", fields.person("account"), detail)


def _message(fields: Fields) -> Words:
    detail = f"  {fields.text('kind')}, {fields.amount('size', 'unknown size')}"
    return Words("message", _people(fields), detail + fields.content())


def _file(fields: Fields) -> Words:
    about = f"{_people(fields)}  {fields.text('action')}"
    name, whole, done = fields.quoted("name"), fields.amount("size"), fields.amount("transferred")
    amount = f"{done} of {whole}" if done and whole and done != whole else whole or done
    return Words("file", f"{about} {name}".rstrip(), f" {amount}" if amount else "")


def _media(fields: Fields) -> Words:
    kind = fields.text("kind").replace("_", " ")
    return Words("media", f"{_people(fields)}  {fields.text('action')} {kind}")


def _direct(fields: Fields) -> Words:
    account = fields.person("account", "")
    about = fields.text("address") + (f" of {account}" if account else "")
    return Words("direct", about, _in_brackets(fields.text("transport")))


def _error(fields: Fields) -> Words:
    name, command = fields.text("name"), fields.text("command")
    about = f"{fields.number('code')}" + (f" {name}" if name else "")
    return Words("error", about, f" in answer to {command}" if command else "")


def _data(fields: Fields) -> Words:
    summary = fields.text("summary")
    about = fields.amount("bytes", "0 bytes") + (f"  {summary}" if summary else "")
    return Words("data", about, fields.content())


TELLERS: dict[str, Teller] = {
    "flow.opened": _opened,
    "flow.identified": _identified,
    "flow.closed": _closed,
    "stream.gap": _gap,
    "stream.malformed": _malformed,
    "stream.skipped": _skipped,
    "stream.overlap": _overlap,
    "stream.limit": _limit,
    "stream.parser_failed": _parser_failed,
    "state.changed": _state_changed,
    "filter.changed": _filter_changed,
    "control.opened": _control_opened,
    "control.request": _request,
    "control.state": _control_state,
    "init.started": _started,
    "init.stopped": _stopped,
    "im.connect": _connect,
    "im.sign_in": _sign_in,
    "im.sign_out": _sign_out,
    "im.presence": _presence,
    "im.contacts": _contacts,
    "im.redirect": _redirect,
    "im.invite": _invite,
    "im.join": _join,
    "im.leave": _leave,
    "im.message": _message,
    "im.file": _file,
    "im.media": _media,
    "im.direct": _direct,
    "im.error": _error,
    "data": _data,
}
