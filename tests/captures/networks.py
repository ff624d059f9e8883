"""What lies between the link and TCP: options, extension headers, fragments, tunnels, and what only
looks like TCP."""

import struct

from helpers.corpus import Case, Heard, Hole
from helpers.packets import (
    ACK,
    PSH,
    TIMESTAMPS,
    C,
    Captured,
    S,
    Talk,
    ethernet,
    fragments_of_ipv4,
    fragments_of_ipv6,
    gre,
    internet_checksum,
    ipv4,
    ipv6,
    kind_of,
    padded_options,
    tcp,
    udp,
    vxlan,
)

ASK, ANSWER = b"what is the time?\n", b"ten past nine\n"
A, B = len(ASK), len(ANSWER)
TEXT = b" ".join(b"%03d" % number for number in range(75)) + b"\n"  # 300 bytes
SIX = ("2001:db8::1", 40000), ("2001:db8::2", 7000)
ROUTER_ALERT, NO_OPERATIONS = bytes.fromhex("94040000"), bytes([1, 1, 1, 1])
ROUTING = bytes(7)  # type 0, of 8 bytes, without addresses
ENDS = "203.0.113.1", "203.0.113.2"  # of a tunnel


def framed(*packets: bytes) -> list[Captured]:
    return [ethernet(packet) for packet in packets]


def whole(talk: Talk) -> list[bytes]:
    return [*talk.opening(), talk.c(0, ASK), talk.s(0, ANSWER), *talk.closing(A, B)]


def with_ip_options() -> list[Captured]:
    """IPv4 headers of 28 bytes, and timestamps in TCP."""
    talk = Talk()
    said = talk.segment(C, 0, ASK, options=TIMESTAMPS)
    long = ipv4("10.0.0.1", "192.0.2.1", said, options=ROUTER_ALERT + NO_OPERATIONS)
    return framed(*talk.opening(), long, talk.s(0, ANSWER), *talk.closing(A, B))


def with_extensions() -> list[Captured]:
    """Hop-by-hop options, routing, destination options, all before one segment, in that order."""
    talk = Talk(*SIX)
    extensions = [(0, padded_options(16)), (43, ROUTING), (60, padded_options(8))]
    long = ipv6("2001:db8::1", "2001:db8::2", talk.segment(C, 0, ASK), extensions=extensions)
    return framed(*talk.opening(), long, talk.s(0, ANSWER), *talk.closing(A, B))


def offloaded(talk: Talk, *, known: bool) -> list[Captured]:
    """A large segment before the network card has cut it: its checksum is not right yet, and its
    length may not be filled in."""
    big = TEXT * 10
    segment = tcp((40000, 7000), talk.isn[0] + 1, talk.isn[1] + 1, PSH | ACK, big)
    if ":" in talk.ends[0][0]:
        packet = ipv6(talk.ends[0][0], talk.ends[1][0], segment, length=None if known else 0)
    else:
        packet = ipv4(talk.ends[0][0], talk.ends[1][0], segment, total=None if known else 0)
    at = packet.index(segment[:16])
    packet = packet[: at + 16] + b"\xde\xad" + packet[at + 18 :]
    opening = talk.opening()
    return framed(*opening, packet, talk.acks(S, 3000), *talk.closing(3000, 0))


def fragmented(
    order: str, *, cuts: tuple[int, ...] = (64, 128), acknowledged: bool = True
) -> list[Captured]:
    """One segment in fragments; order: which of them, as digits."""
    talk = Talk()
    opening = talk.opening()
    pieces = fragments_of_ipv4(talk.c(0, TEXT), *cuts)
    chosen = [pieces[int(digit)] for digit in order]
    rest = [talk.c(300, ASK), *([talk.acks(S, 300 + A)] if acknowledged else [])]
    return framed(*opening, *chosen, *rest, *talk.closing(300 + A, 0))


def overlapping_fragments() -> list[Captured]:
    """A middle piece that repeats bytes of both its neighbours."""
    talk = Talk()
    opening = talk.opening()
    packet = talk.c(0, TEXT)
    first, _, last = fragments_of_ipv4(packet, 128, 200)
    _, middle, _ = fragments_of_ipv4(packet, 64, 256)
    return framed(*opening, first, middle, last, *talk.closing(300, 0))


def crossed_fragments() -> list[Captured]:
    """Fragments of two segments, in turn."""
    talk = Talk()
    opening = talk.opening()
    first = fragments_of_ipv4(talk.c(0, TEXT), 64, 128, identification=7)
    second = fragments_of_ipv4(talk.c(300, TEXT), 64, 128, identification=8)
    mixed = [piece for pair in zip(first, second, strict=True) for piece in pair]
    return framed(*opening, *mixed, *talk.closing(600, 0))


def fragmented_6(order: str) -> list[Captured]:
    """Behind a hop-by-hop header, which each fragment has, and with a destination header within."""
    talk = Talk(*SIX)
    opening = talk.opening()
    extensions = [(0, padded_options(8)), (60, padded_options(8))]
    packet = ipv6("2001:db8::1", "2001:db8::2", talk.segment(C, 0, TEXT), extensions=extensions)
    pieces = fragments_of_ipv6(packet, 64, 128, before=8)
    return framed(*opening, *(pieces[int(digit)] for digit in order), *talk.closing(300, 0))


def atomic_fragment() -> list[Captured]:
    """A fragment header on a packet that is whole (RFC 6946)."""
    talk = Talk(*SIX)
    opening = talk.opening()
    return framed(*opening, *fragments_of_ipv6(talk.c(0, TEXT)), *talk.closing(300, 0))


def in_gre(*, key: int | None = None) -> list[Captured]:
    return framed(*(gre(*ENDS, packet, key=key) for packet in whole(Talk())))


def in_vxlan() -> list[Captured]:
    """With a VLAN inside."""
    return framed(*(vxlan(*ENDS, ethernet(packet, vlans=[7])) for packet in whole(Talk())))


def in_ipv4(talk: Talk) -> list[Captured]:
    return framed(
        *(
            ipv4(*ENDS, packet, protocol=41 if kind_of(packet) == 0x86DD else 4)
            for packet in whole(talk)
        )
    )


def in_ipv6(talk: Talk) -> list[Captured]:
    return framed(
        *(
            ipv6(
                "2001:db8:f::1",
                "2001:db8:f::2",
                packet,
                protocol=41 if kind_of(packet) == 0x86DD else 4,
            )
            for packet in whole(talk)
        )
    )


def other_protocols() -> list[Captured]:
    """UDP, ARP, and an ICMP error that quotes a segment of the connection."""
    talk = Talk()
    opening, said = talk.opening(), talk.c(0, ASK)
    error = struct.pack(">BBHI", 3, 4, 0, 1400) + said
    error = error[:2] + struct.pack(">H", internet_checksum(error)) + error[4:]
    arp = bytes.fromhex("0001080006040001") + bytes(20)
    return [
        *framed(*opening),
        ethernet(arp, kind=0x0806),
        *framed(
            ipv4("192.0.2.1", "10.0.0.1", error, protocol=1),
            ipv4("10.0.0.1", "192.0.2.1", udp((40000, 7000), ASK * 3), protocol=17),
            said,
            talk.s(0, ANSWER),
            *talk.closing(A, B),
        ),
    ]


def claimed() -> list[Captured]:
    """A total length beyond the frame's end: the frame is what was on the wire."""
    talk = Talk()
    syn, answer, last = talk.opening()
    claims = answer[:2] + b"\x10\x34" + answer[4:]
    said = [talk.c(0, ASK), talk.s(0, ANSWER)]
    return framed(syn, claims, last, *said, *talk.closing(A, B))


def no_tcp() -> list[Captured]:
    return framed(ipv4("10.0.0.1", "192.0.2.1", udp((40000, 53), ASK), protocol=17))


def malformed() -> list[Captured]:
    """Headers that can't be: each is passed over, and the connection goes on."""
    talk = Talk()
    opening = talk.opening()
    ends, ports = ("10.0.0.1", "192.0.2.1"), (40000, 7000)
    numbers = talk.isn[0] + 1, talk.isn[1] + 1
    no_header = tcp(ports, *numbers, PSH | ACK, b"junk", words=4)
    long_header = tcp(ports, *numbers, PSH | ACK, b"junk", words=15)
    good = ipv4(*ends, tcp(ports, *numbers, PSH | ACK, b"junk"))
    return [
        *framed(*opening, ipv4(*ends, no_header), ipv4(*ends, long_header)),
        *framed(
            b"\x44" + good[1:],  # a header of 16 bytes
            b"\x65" + good[1:],  # version 6 in a frame that says 4
            good[:2] + b"\x00\x13" + good[4:],  # a total length below the header's
            good[:2] + b"\x00\x20" + good[4:],  # … and one that ends in the TCP header
        ),
        ethernet(good[:3]),
        b"\x02\0\0",
        b"",
        *framed(talk.c(0, ASK), talk.s(0, ANSWER), *talk.closing(A, B)),
    ]


BOTH = Heard([ASK], [ANSWER])
BOTH_6 = BOTH._replace(client="[2001:db8::1]:40000", server="[2001:db8::2]:7000")
ONE = Heard([TEXT + ASK])
BIG = Heard([TEXT * 10])
TEXT_6 = Heard([TEXT], client=BOTH_6.client, server=BOTH_6.server)

CASES = [
    Case("ipv4-options", "Options in IPv4 and in TCP.", with_ip_options(), [BOTH]),
    Case("ipv6-extensions", "Three extension headers.", with_extensions(), [BOTH_6]),
    Case(
        "offloaded",
        "A large segment, its checksum not right.",
        offloaded(Talk(), known=True),
        [BIG],
    ),
    Case("offloaded-length", "… and its length 0.", offloaded(Talk(), known=False), [BIG]),
    Case(
        "offloaded-ipv6",
        "The same over IPv6.",
        offloaded(Talk(*SIX), known=False),
        [BIG._replace(client=BOTH_6.client, server=BOTH_6.server)],
    ),
    Case("fragments", "A segment in fragments.", fragmented("012"), [ONE]),
    Case("fragments-reordered", "… out of order.", fragmented("201"), [ONE]),
    Case("fragments-twice", "… each twice.", fragmented("00112201"), [ONE]),
    Case(
        "fragments-small",
        "… the TCP header itself in three of them.",
        fragmented("0123", cuts=(8, 16, 24)),
        [ONE],
    ),
    Case(
        "fragments-incomplete",
        "… the last one missing; the other end has it.",
        fragmented("01"),
        [Heard([Hole(300), ASK])],
    ),
    Case("fragments-crossed", "… those of two at once.", crossed_fragments(), [Heard([TEXT * 2])]),
    Case("fragments-overlapping", "… that overlap.", overlapping_fragments(), [Heard([TEXT])]),
    Case("ipv6-fragments", "A segment in fragments of IPv6.", fragmented_6("012"), [TEXT_6]),
    Case("ipv6-fragments-reordered", "… out of order.", fragmented_6("120"), [TEXT_6]),
    Case("ipv6-fragment-atomic", "… a single one.", atomic_fragment(), [TEXT_6]),
    Case("gre", "GRE.", in_gre(), [BOTH], tunnels=True),
    Case("gre-key", "GRE with a key.", in_gre(key=42), [BOTH], tunnels=True),
    Case("vxlan", "VXLAN, with a VLAN inside.", in_vxlan(), [BOTH], tunnels=True),
    Case("ipv4-in-ipv4", "IP in IP.", in_ipv4(Talk()), [BOTH], tunnels=True),
    Case("ipv6-in-ipv4", "IPv6 in IPv4.", in_ipv4(Talk(*SIX)), [BOTH_6], tunnels=True),
    Case("ipv4-in-ipv6", "IPv4 in IPv6.", in_ipv6(Talk()), [BOTH], tunnels=True),
    Case("ipv6-in-ipv6", "IPv6 in IPv6.", in_ipv6(Talk(*SIX)), [BOTH_6], tunnels=True),
    Case("other-protocols", "What is not TCP, and a quoted segment.", other_protocols(), [BOTH]),
    Case("claimed-length", "An IP header that claims too much.", claimed(), [BOTH]),
    Case("no-tcp", "A capture without TCP.", no_tcp(), []),
    Case("malformed", "Headers that can't be.", malformed(), [BOTH]),
]
