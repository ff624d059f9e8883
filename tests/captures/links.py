"""What lies below IP: link types, tags, padding, and what the capture left out."""

import struct
from collections.abc import Callable

from helpers.corpus import C_HDLC, LOOP, NULL, PPP, RAW, SLL, SLL2, Case, Counted, Heard, Hole
from helpers.packets import (
    C,
    Captured,
    Cut,
    S,
    Talk,
    cooked,
    cooked_2,
    ethernet,
    kind_of,
    loopback,
    mpls,
    pppoe,
    snap,
)

ASK, ANSWER = b"what is the time?\n", b"ten past nine\n"
LONG = b" ".join(b"%03d" % number for number in range(25)) + b"\n"  # 100 bytes
SIX = ("2001:db8::1", 40000), ("2001:db8::2", 7000)


def whole(talk: Talk) -> list[bytes]:
    said = [talk.c(0, ASK), talk.s(0, ANSWER)]
    return [*talk.opening(), *said, *talk.closing(len(ASK), len(ANSWER))]


def both_versions(frame: Callable[[bytes], bytes]) -> list[Captured]:
    """The same conversation over IPv4, then over IPv6."""
    return [frame(packet) for talk in (Talk(), Talk(*SIX)) for packet in whole(talk)]


def framed_ppp(packet: bytes) -> bytes:
    protocol = b"\x00\x57" if packet[0] >> 4 == 6 else b"\x00\x21"
    return b"\xff\x03" + protocol + packet


def cisco(packet: bytes) -> bytes:
    return b"\x0f\x00" + struct.pack(">H", kind_of(packet)) + packet


def padded() -> list[Captured]:
    """What fills a frame up to 60 bytes is no data."""
    talk = Talk()
    packets = [
        *talk.opening(),
        talk.c(0, b"yes"),
        talk.acks(S, 3),
        talk.s(0, b"n"),
        talk.acks(C, 1),
    ]
    return [ethernet(packet, padded=True) for packet in [*packets, *talk.closing(3, 1)]]


def cut_payloads() -> list[Captured]:
    """The first 94 bytes of each frame were kept."""
    talk = Talk()
    said = [talk.c(0, LONG), talk.c(100, LONG), talk.s(0, ANSWER), talk.c(200, b"end")]
    packets = [*talk.opening(), *said, *talk.closing(203, len(ANSWER))]
    return [Cut(frame, min(len(frame), 94)) for frame in map(ethernet, packets)]


def headers_only() -> list[Captured]:
    talk = Talk()
    said = [talk.c(0, LONG), talk.s(0, ANSWER), talk.c(100, LONG)]
    packets = [*talk.opening(), *said, *talk.closing(200, len(ANSWER))]
    return [Cut(frame, min(len(frame), 54)) for frame in map(ethernet, packets)]


def cut_headers() -> list[Captured]:
    """Of one packet not even the TCP header is there; the other end has received it."""
    talk = Talk()
    opening = [ethernet(packet) for packet in talk.opening()]
    lost = Cut(ethernet(talk.c(4, LONG)), 40)
    rest = [talk.c(104, b" behind"), talk.acks(S, 111), *talk.closing(111, 0)]
    return [*opening, ethernet(talk.c(0, b"seen")), lost, *map(ethernet, rest)]


FOUR_HEARD = Heard([ASK], [ANSWER])
SIX_HEARD = Heard([ASK], [ANSWER], client="[2001:db8::1]:40000", server="[2001:db8::2]:7000")
BOTH = [FOUR_HEARD, SIX_HEARD]

CASES = [
    Case("ethernet", "Ethernet II.", both_versions(ethernet), BOTH),
    Case("pcapng", "Ethernet in pcapng.", both_versions(ethernet), BOTH, suffix=".pcapng"),
    Case("snap", "Ethernet with a length and SNAP.", both_versions(snap), BOTH),
    Case("vlan", "A VLAN.", both_versions(lambda packet: ethernet(packet, vlans=[7])), BOTH),
    Case(
        "qinq",
        "A VLAN in another.",
        both_versions(lambda packet: ethernet(packet, vlans=[7, 8])),
        BOTH,
    ),
    Case("linux-cooked", "Linux cooked capture.", both_versions(cooked), BOTH, link=SLL),
    Case(
        "linux-cooked-2",
        "Linux cooked capture, version 2.",
        both_versions(cooked_2),
        BOTH,
        link=SLL2,
    ),
    Case("raw", "IP without a link.", both_versions(bytes), BOTH, link=RAW),
    Case("null", "BSD loopback, little-endian.", both_versions(loopback), BOTH, link=NULL),
    Case(
        "null-big",
        "BSD loopback, big-endian.",
        both_versions(lambda packet: loopback(packet, ">")),
        BOTH,
        link=NULL,
    ),
    Case(
        "loop",
        "OpenBSD loopback.",
        both_versions(lambda packet: loopback(packet, ">")),
        BOTH,
        link=LOOP,
    ),
    Case("ppp", "PPP.", both_versions(framed_ppp), BOTH, link=PPP),
    Case("cisco-hdlc", "Cisco HDLC.", both_versions(cisco), BOTH, link=C_HDLC),
    Case("cisco-hdlc-as-ppp", "Cisco HDLC, said to be PPP.", both_versions(cisco), BOTH, link=PPP),
    Case("pppoe", "PPP over Ethernet.", both_versions(pppoe), BOTH),
    Case("mpls", "Two MPLS labels.", both_versions(lambda packet: mpls(packet, 16, 17)), BOTH),
    Case("padding", "Frames filled up to 60 bytes.", padded(), [Heard([b"yes"], [b"n"])]),
    Case(
        "cut-payloads",
        "The capture kept the first bytes of each payload.",
        cut_payloads(),
        [Heard([LONG[:40], Counted(60), LONG[:40], Counted(60), b"end"], [ANSWER])],
    ),
    Case(
        "headers-only",
        "The capture kept no payload.",
        headers_only(),
        [Heard([Counted(200)], [Counted(len(ANSWER))])],
    ),
    Case(
        "cut-headers",
        "The capture kept only a part of a header.",
        cut_headers(),
        [Heard([b"seen", Hole(100), b" behind"])],
    ),
]
