"""What TCP does to the order of bytes: losses, copies, overlaps, limits."""

from helpers.corpus import Case, Heard, Hole
from helpers.packets import ACK, PSH, URG, C, Captured, S, Talk, ethernet

TEXT = b" ".join(b"%03d" % number for number in range(75)) + b"\n"  # 300 bytes
ANSWER = b"and the server has read it all\n"


def framed(*packets: bytes | float) -> list[Captured]:
    return [ethernet(packet) if isinstance(packet, bytes) else packet for packet in packets]


def pieces(talk: Talk, size: int, text: bytes = TEXT) -> list[bytes]:
    return [talk.c(at, text[at : at + size]) for at in range(0, len(text), size)]


def shuffled(case_isn: tuple[int, int] = (1000, 500_000)) -> list[Captured]:
    """Pieces of 30 bytes, each group of three the other way around."""
    talk = Talk(isn=case_isn)
    opening, said = talk.opening(), pieces(talk, 30)
    for at in range(0, len(said), 3):
        said[at : at + 3] = said[at : at + 3][::-1]
    return framed(*opening, *said, talk.s(0, ANSWER), *talk.closing(300, len(ANSWER)))


def retransmitted() -> list[Captured]:
    """Again as it was, cut otherwise, and with new bytes behind."""
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.c(0, TEXT[:100]),
        talk.c(100, TEXT[100:200]),
        0.3,
        talk.c(0, TEXT[:100]),
        talk.c(50, TEXT[50:120]),
        talk.c(150, TEXT[150:300]),
        talk.s(0, ANSWER),
        0.3,
        talk.s(0, ANSWER),
        *talk.closing(300, len(ANSWER)),
    )


def differing() -> list[Captured]:
    """Copies that differ: of what was given, and of what waits behind a hole."""
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.c(0, b"abcdef"),
        talk.c(3, b"XYZghi"),
        talk.c(12, b"mno"),
        talk.c(9, b"jklMNO"),
        talk.acks(S, 15),
        *talk.closing(15, 0),
    )


def acknowledged_gap() -> list[Captured]:
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.c(0, b"first "),
        talk.c(13, b"third"),
        talk.acks(S, 18),
        talk.c(18, b" fourth"),
        talk.acks(S, 25),
        *talk.closing(25, 0),
    )


def first_missing() -> list[Captured]:
    talk = Talk()
    return framed(*talk.opening(), talk.c(20, b"seen"), talk.acks(S, 24), *talk.closing(24, 0))


def last_missing() -> list[Captured]:
    """The FIN tells how much there was."""
    talk = Talk()
    return framed(*talk.opening(), talk.c(0, b"seen"), *talk.closing(10, 0))


def last_acknowledged() -> list[Captured]:
    """No FIN was seen: one of the numbers acknowledged may be that of a FIN."""
    talk = Talk()
    return framed(*talk.opening(), talk.c(0, b"seen"), talk.acks(S, 10))


def early_acknowledgment() -> list[Captured]:
    """Two queues of a network card: the acknowledgment stands before the data that it is for."""
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.c(10, TEXT[10:20]),
        talk.acks(S, 20),
        talk.c(0, TEXT[:10]),
        talk.c(20, TEXT[20:]),
        talk.acks(S, 300),
        *talk.closing(300, 0),
    )


def held() -> list[Captured]:
    """Nobody acknowledges, and more waits behind the hole than may be held."""
    talk = Talk()
    block = bytes(60_000)
    many = [talk.c(15 + at * 60_000, block, ack=0) for at in range(145)]
    late = talk.c(5, b"late bytes", ack=0)
    return framed(*talk.opening(), talk.c(0, b"start"), *many, late, *talk.closing(8_700_015, 0))


def duplicated(*, vlans: tuple[int, int] | None = None) -> list[Captured]:
    """Each packet twice, as a mirror of two ports gives them."""
    talk = Talk()
    packets = [*talk.opening(), *pieces(talk, 50), talk.s(0, ANSWER)]
    packets += talk.closing(300, len(ANSWER))
    first, second = ((vlans[0],), (vlans[1],)) if vlans else ((), ())
    copies = [(ethernet(one, vlans=first), ethernet(one, vlans=second)) for one in packets]
    return [copy for pair in copies for copy in pair]


def keep_alive() -> list[Captured]:
    """One byte before the next, whose content means nothing, or none."""
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.c(0, b"hello"),
        talk.acks(S, 5),
        60.0,
        talk.packet(C, 4, b"\0", flags=ACK),
        talk.acks(S, 5),
        60.0,
        talk.packet(C, 4, flags=ACK),
        talk.acks(S, 5),
        talk.c(5, b" world"),
        *talk.closing(11, 0),
    )


def single_bytes() -> list[Captured]:
    talk = Talk()
    return framed(
        *talk.opening(), *pieces(talk, 1), talk.s(0, ANSWER), *talk.closing(300, len(ANSWER))
    )


def far_away() -> list[Captured]:
    """What no window can hold is not of this stream."""
    talk, forger = Talk(), Talk()
    return framed(
        *talk.opening(),
        talk.c(0, b"hello"),
        forger.packet(C, (1 << 30) + 100, b"forged", ack=0),
        forger.packet(C, -(1 << 30) - 100, b"forged", ack=0),
        talk.c(5, b" world"),
        *talk.closing(11, 0),
    )


def refused_data() -> list[Captured]:
    """Within the window, but behind the end that the FIN tells: TCP has not taken it."""
    talk, forger = Talk(), Talk()
    return framed(
        *talk.opening(),
        talk.c(0, b"hello"),
        forger.packet(C, 50_000, b"forged", ack=0),
        talk.c(5, b" world"),
        talk.acks(S, 11),
        *talk.closing(11, 0),
    )


def urgent() -> list[Captured]:
    """Urgent bytes have their place in the stream (RFC 6093)."""
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.c(0, b"abc"),
        talk.packet(C, 3, b"!", flags=PSH | ACK | URG, urgent=1),
        talk.c(4, b"def"),
        *talk.closing(7, 0),
    )


def zero_window() -> list[Captured]:
    """A probe carries the next byte, which the other end does not take yet."""
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.c(0, b"hello"),
        talk.packet(S, 0, flags=ACK, ack=5, window=0),
        0.5,
        talk.packet(C, 5, b" ", flags=ACK),
        talk.packet(S, 0, flags=ACK, ack=5, window=0),
        1.0,
        talk.packet(C, 5, b" ", flags=ACK),
        talk.packet(S, 0, flags=ACK, ack=5, window=0),
        talk.packet(S, 0, flags=ACK, ack=5),
        talk.c(5, b" world"),
        *talk.closing(11, 0),
    )


BOTH = Heard([TEXT], [ANSWER])
HELLO = Heard([b"hello world"])

CASES = [
    Case("reordering", "Segments overtake each other.", shuffled(), [BOTH]),
    Case(
        "sequence-wrap",
        "Sequence numbers pass 2**32 on both sides, out of order.",
        shuffled(((1 << 32) - 40, (1 << 32) - 10)),
        [BOTH],
    ),
    Case(
        "sequence-wrap-at-once",
        "The first byte has the number 0.",
        shuffled(((1 << 32) - 1, (1 << 32) - 1)),
        [BOTH],
    ),
    Case("retransmission", "Segments come again, cut otherwise too.", retransmitted(), [BOTH]),
    Case(
        "differing-overlap",
        "Bytes come again with other content: the first copy counts.",
        differing(),
        [Heard([b"abcdefghijklmno"], overlaps=[(C, 3, 3), (C, 12, 3)])],
    ),
    Case(
        "gap-acknowledged",
        "A segment was not captured; the other end has it.",
        acknowledged_gap(),
        [Heard([b"first ", Hole(7), b"third fourth"])],
    ),
    Case(
        "gap-first", "The first bytes are missing.", first_missing(), [Heard([Hole(20), b"seen"])]
    ),
    Case("gap-last", "The last bytes are missing.", last_missing(), [Heard([b"seen", Hole(6)])]),
    Case(
        "gap-at-end-of-file",
        "The last bytes are missing, and so is the FIN, if there was one.",
        last_acknowledged(),
        [Heard([b"seen", Hole(5)], reason="end")],
    ),
    Case(
        "early-acknowledgment",
        "An acknowledgment stands before the data it is for.",
        early_acknowledgment(),
        [Heard([TEXT])],
    ),
    Case(
        "held-limit",
        "More waits behind a hole than may be held.",
        held(),
        [Heard([b"start", Hole(10, "limit"), bytes(8_700_000)])],
        suffix=".pcap.gz",
    ),
    Case("duplicates", "Every packet twice.", duplicated(), [BOTH]),
    Case(
        "duplicates-two-vlans",
        "Every packet twice, by way of two VLANs.",
        duplicated(vlans=(10, 20)),
        [BOTH],
    ),
    Case("keep-alive", "Keep-alives with a byte and without.", keep_alive(), [HELLO]),
    Case("single-bytes", "A byte in each segment.", single_bytes(), [BOTH]),
    Case(
        "out-of-window",
        "Data farther away than any window.",
        far_away(),
        [Heard([b"hello world"], limits=["window"])],
    ),
    Case("behind-the-end", "Data behind the end of the stream.", refused_data(), [HELLO]),
    Case("urgent", "Urgent data.", urgent(), [Heard([b"abc!def"])]),
    Case("zero-window", "Probes of a closed window.", zero_window(), [HELLO]),
]
