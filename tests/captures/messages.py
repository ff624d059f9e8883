"""A switchboard session, whole and with a hole: what is told of it."""

from typing import Any

from helpers.corpus import Case, Heard, Hole
from helpers.packets import C, Captured, S, Talk, ethernet
from streamtap.model import Direction

ALICE, BOB = "alice@example.com", "bob@example.com"
CLIENT, SERVER = ("10.0.0.2", 1026), ("192.0.2.30", 1863)


def message(head: str, content_type: str, body: str) -> bytes:
    payload = f"MIME-Version: 1.0\r\nContent-Type: {content_type}\r\n{body}".encode()
    return f"{head} {len(payload)}\r\n".encode() + payload


SAID: list[tuple[Direction, bytes]] = [
    (C, b"USR 1 alice@example.com 40817733.220194857.90211\r\n"),
    (S, b"USR 1 OK alice@example.com Alice%20L\r\n"),
    (C, b"CAL 2 bob@example.com\r\n"),
    (S, b"CAL 2 RINGING 40817733\r\n"),
    (S, b"JOI bob@example.com Bob 1342472230\r\n"),
    (C, message("MSG 3 U", "text/x-msmsgscontrol", f"TypingUser: {ALICE}\r\n\r\n\r\n")),
    (C, message("MSG 4 A", "text/plain; charset=UTF-8", "\r\nsee you at nine")),
    (S, b"ACK 4\r\n"),
    (S, message(f"MSG {BOB} Bob", "text/plain; charset=UTF-8", "\r\nor at ten?")),
    (S, message(f"MSG {BOB} Bob", "text/x-msnmsgr-datacast", "\r\nID: 1\r\n\r\n")),
    (S, b"BYE bob@example.com\r\n"),
    (C, b"OUT\r\n"),
]


def session(*, lost: int | None = None) -> tuple[list[Captured], Heard]:
    """lost: which of the sayings was not captured."""
    talk = Talk(CLIENT, SERVER)
    packets = talk.opening()
    parts: tuple[list[bytes | Hole], list[bytes | Hole]] = ([], [])
    for number, (direction, data) in enumerate(SAID):
        packet = talk.packet(direction, talk.said[direction], data)
        if number == lost:
            parts[direction].append(Hole(len(data)))
        else:
            packets.append(packet)
            parts[direction].append(data)
        packets.append(talk.acks(direction.opposite, talk.said[direction]))
    packets += talk.closing(*talk.said)
    heard = Heard(*parts, client="10.0.0.2:1026", server="192.0.2.30:1863")
    return [ethernet(packet) for packet in packets], heard


WHOLE, WHOLE_HEARD = session()
HOLED, HOLED_HEARD = session(lost=8)
BEGIN: list[tuple[str, dict[str, Any]]] = [
    ("flow.opened", {"midstream": False, "local": "10.0.0.2:1026", "remote": "192.0.2.30:1863"}),
    ("im.connect", {"service": "switchboard"}),
    ("im.invite", {"account": BOB, "by": ALICE}),
    ("im.join", {"account": BOB}),
    ("im.message", {"sender": ALICE, "kind": "typing"}),
    ("im.message", {"sender": ALICE, "recipients": (BOB,), "kind": "text", "size": 15}),
]
END: list[tuple[str, dict[str, Any]]] = [
    ("im.message", {"sender": BOB, "recipients": (ALICE,), "kind": "nudge"}),
    ("im.leave", {"account": BOB}),
    ("flow.closed", {"reason": "fin"}),
]

CASES = [
    Case(
        "switchboard",
        "A conversation of two.",
        WHOLE,
        [WHOLE_HEARD],
        records=[
            *BEGIN,
            ("im.message", {"sender": BOB, "kind": "text", "size": 10, "direction": "received"}),
            *END,
        ],
    ),
    Case(
        "switchboard-with-gap",
        "A message of it was not captured.",
        HOLED,
        [HOLED_HEARD],
        records=[*BEGIN, ("stream.gap", {"direction": "received", "cause": "unseen"}), *END],
    ),
]
