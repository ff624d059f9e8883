"""Records to write and read back, one or more of every kind."""

import io

import msgspec

from streamtap import events
from streamtap.events import Body, Event, FlowInfo, Record
from streamtap.model import App
from streamtap.patterns import model as patterns

TIME = 1_227_567_676_043_000_900  # 2008-11-24 23:01:16.043 UTC
PIDGIN = App("/usr/bin/pidgin", 4121, "pidgin", 1000, "user.slice/pidgin", "chat")
SERVER = App("/usr/bin/server", 77, "server", 0, "", "chat")
FLOW = FlowInfo(PIDGIN, "12", "10.0.0.1:50000", "1.2.3.4:1863", "client")
CAPTURED = FlowInfo(None, "3", "[::1]:50000", "[::1]:80", "client")
PAIRED = FlowInfo(PIDGIN, "13", "[::1]:50000", "[::1]:80", "client", SERVER)


def record(body: Body, direction: str | None = None, flow: FlowInfo | None = FLOW) -> Record:
    return Record(time_ns=TIME, body=body, flow=flow, direction=direction)


class Kept(io.BytesIO):
    """A stream that keeps what was written."""

    @property
    def lines(self) -> list[str]:
        return self.getvalue().decode().splitlines()


KINDS: dict[str, type[Body]] = {
    str(kind.__struct_config__.tag): kind
    for module in (events, patterns)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Body)
}
ABSTRACT = (Body, Event, patterns.Pattern)
_USUAL: dict[str, object] = {"offset": 5121, "length": 1448, "protocol": "msnp"}
BOB, ALICE = "bob@example.com", "alice@example.com"


def body(event: str, **fields: object) -> Body:
    """The body of an event; where it has a place in the stream or a protocol, the usual one."""
    kind = KINDS[event]
    usual = {name: value for name, value in _USUAL.items() if name in kind.__struct_fields__}
    return msgspec.convert(usual | {"event": event} | fields, kind)


def message(**fields: object) -> Body:
    usual = {"pattern": "client-to-client", "conversation": "c1", "sender": BOB, "size": 11}
    usual |= {"recipients": (ALICE,), "kind": "text", "content_type": "text/plain"}
    return body("im.message", **(usual | fields))


def opened(midstream: bool = False) -> Body:
    return body("flow.opened", midstream=midstream)


def closed(**fields: object) -> Body:
    usual = {"reason": "fin", "sent": 812, "received": 25_300, "sent_total": 812}
    usual |= {"received_total": 25_300, "missing": 0, "complete": True}
    return body("flow.closed", **(usual | {"duration_ns": 72_000_000_000} | fields))


def every_kind() -> list[tuple[Record, str]]:
    """Records of every body of `events` and `patterns.model`, and what the console says of each,
    after the time and the application."""
    told: list[tuple[Record, str]] = []

    def on(flow: FlowInfo | None, given: Body, direction: str | None, line: str) -> None:
        told.append((record(given, direction, flow), line))

    def sent(event: str, line: str, **fields: object) -> None:
        on(FLOW, body(event, **fields), "sent", line)

    def received(event: str, line: str, **fields: object) -> None:
        on(FLOW, body(event, **fields), "received", line)

    def neither(event: str, line: str, **fields: object) -> None:
        on(FLOW, body(event, **fields), None, line)

    def ours(event: str, line: str, **fields: object) -> None:
        on(None, body(event, **fields), None, line)

    on(
        FLOW,
        opened(),
        None,
        "* -   opened    10.0.0.1:50000 -> 1.2.3.4:1863  /usr/bin/pidgin",
    )
    on(
        CAPTURED,
        opened(midstream=True),
        None,
        "* -   opened    [::1]:50000 -> [::1]:80  (open before)",
    )
    neither(
        "flow.identified",
        "* MSNP protocol  msnp (by its content)",
        confidence="content",
    )
    neither(
        "flow.identified",
        "* -   protocol  none known (shown as plain data)",
        protocol="opaque",
        confidence="none",
    )
    on(
        FLOW,
        closed(),
        None,
        "* -   closed    ended after 1 min 12 s: sent 812 bytes, received 25.3 kB, complete",
    )
    on(
        FLOW,
        closed(
            reason="rst",
            missing=1448,
            complete=False,
            received_counted=5_000_000,
            missing_ranges=(("received", 5121, 1448),),
        ),
        None,
        "* -   closed    reset after 1 min 12 s: sent 812 bytes, received 5.0 MB "
        "(5.0 MB counted, not copied), 1448 bytes missing at received 5121+1448",
    )
    received(
        "stream.gap",
        "! -   gap       1448 bytes lost at 5121 (received)",
        cause="lost",
    )
    sent(
        "stream.overlap",
        "! -   overlap   1448 bytes at 5121 (sent) came again, different; the first copy counts",
    )
    sent(
        "stream.malformed",
        "! -   malformed no such command  1448 bytes at 5121 (sent)",
        reason="no such command",
    )
    received(
        "stream.skipped",
        "< -   skipped   1448 bytes at 5121 (received): looking for a command",
        reason="looking for a command",
    )
    neither(
        "stream.limit",
        "! -   limit     bytes held reached 3 times  at 1000000",
        limit="bytes held",
        value=1_000_000,
        count=3,
    )
    neither(
        "stream.parser_failed",
        "! MSNP defect    the msnp parser: KeyError  (the flow goes on as plain data)",
        error="KeyError",
    )
    ours("state.changed", "* -   enabled   everything", enabled=True)
    ours("state.changed", '* -   disabled  filter "chat"', enabled=False, filter="chat")
    ours(
        "filter.changed",
        '* -   filter    added "chat" for /usr/bin/pidgin at sockops',
        action="added",
        layer="sockops",
        filter="chat",
        scope="/usr/bin/pidgin",
    )
    ours(
        "control.request",
        "* -   request   disable by root: done (uid 0, pid 9)",
        request="disable",
        user="root",
        uid=0,
        pid=9,
        result="done",
    )
    ours(
        "control.opened",
        "* -   control   can be asked at /run/streamtap/control.sock",
        path="/run/streamtap/control.sock",
    )
    ours(
        "control.state",
        "* -   state     attached  hooks: sockops, egress  missing: exit",
        state="attached",
        hooks=("sockops", "egress"),
        missing=("exit",),
    )
    ours(
        "init.started",
        "* -   started   streamtap 1.0 on live callouts",
        version="1.0",
        source="live callouts",
    )
    ours(
        "init.stopped",
        "* -   stopped   3 flows, 12.3 kB, 42 records, 1 gap, 0 drops",
        flows=3,
        bytes=12_345,
        records=42,
        gaps=1,
        drops=0,
    )
    sent(
        "im.connect",
        "> NS  connect   notification (MSNP15, Pidgin 2.14)",
        service="notification",
        protocol_version="MSNP15",
        client="Pidgin 2.14",
    )
    received(
        "im.sign_in",
        r'< MSNP sign-in   alice@example.com "Al \"i\" ce"',
        account=ALICE,
        display_name='Al "i" ce',
    )
    received(
        "im.sign_out",
        "< MSNP sign-out  alice@example.com (elsewhere)",
        account=ALICE,
        reason="elsewhere",
    )
    received(
        "im.presence",
        "< MSNP presence  bob@example.com is busy",
        account=BOB,
        status="busy",
    )
    received(
        "im.contacts",
        "< MSNP contacts  alice@example.com  list 12 contacts",
        account=ALICE,
        action="list",
        count=12,
    )
    sent(
        "im.contacts",
        "> MSNP contacts  alice@example.com  add bob@example.com (FL AL)",
        account=ALICE,
        action="add",
        contact=BOB,
        lists=("FL", "AL"),
    )
    received(
        "im.redirect",
        "< MSNP redirect  to switchboard 1.2.3.5:1863",
        to="1.2.3.5:1863",
        service="switchboard",
    )
    sent(
        "im.invite",
        "> MSNP invite    alice@example.com invites bob@example.com",
        account=BOB,
        by=ALICE,
    )
    received(
        "im.join",
        "< MSNP join      bob@example.com  now bob@example.com, alice@example.com",
        account=BOB,
        participants=(BOB, ALICE),
    )
    received(
        "im.leave",
        "< MSNP leave     bob@example.com  nobody is left",
        account=BOB,
        participants=(),
    )
    on(
        FLOW,
        message(),
        "received",
        "< MSNP message   bob@example.com -> alice@example.com  text, 11 bytes",
    )
    on(
        FLOW,
        message(content="hello\x1b[2J", sender=None, recipients=("a",) * 6),
        "received",
        r'< MSNP message   ? -> a, a, a, a and 2 more  text, 11 bytes: "hello\x1b[2J"',
    )
    sent(
        "im.file",
        '> P2P file      alice@example.com -> bob@example.com  offer "plan.pdf" 802 kB',
        action="offer",
        sender=ALICE,
        recipients=(BOB,),
        name="plan.pdf",
        size=802_113,
    )
    sent(
        "im.file",
        "> P2P file      alice@example.com -> bob@example.com  progress 20.5 kB of 802 kB",
        action="progress",
        sender=ALICE,
        recipients=(BOB,),
        size=802_113,
        transferred=20_480,
    )
    sent(
        "im.media",
        "> P2P media     alice@example.com -> bob@example.com  offer display picture",
        action="offer",
        kind="display_picture",
        sender=ALICE,
        recipients=(BOB,),
    )
    sent(
        "im.direct",
        "> P2P direct    10.0.0.9:6891 of bob@example.com (tcp)",
        address="10.0.0.9:6891",
        transport="tcp",
        account=BOB,
    )
    received(
        "im.error",
        "< MSNP error     911 authentication failed in answer to USR",
        code=911,
        name="authentication failed",
        command="USR",
    )
    sent(
        "data",
        "> HTTP data      1448 bytes  GET / HTTP/1.1",
        protocol="http",
        bytes=1448,
        summary="GET / HTTP/1.1",
    )
    return told
