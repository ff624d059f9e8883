"""How connections begin and end, and how they are taken for one another."""

from helpers.corpus import Case, Heard, Hole
from helpers.packets import ACK, RST, SYN, C, Captured, S, Talk, ethernet

ASK, ANSWER = b"what is the time?\n", b"ten past nine\n"
A, B = len(ASK), len(ANSWER)


def framed(*packets: bytes | float) -> list[Captured]:
    return [ethernet(packet) if isinstance(packet, bytes) else packet for packet in packets]


def exchange(talk: Talk) -> list[bytes]:
    return [talk.c(0, ASK), talk.s(0, ANSWER)]


def whole(talk: Talk) -> list[bytes]:
    return [*talk.opening(), *exchange(talk), *talk.closing(A, B)]


def repeated_handshake() -> list[Captured]:
    talk = Talk()
    syn, answer, last = talk.opening()
    return framed(
        syn, 1.0, syn, 2.0, syn, answer, 1.0, answer, last, *exchange(talk), *talk.closing(A, B)
    )


def reused(pause: float, *, reset: bool = False, isn: int = 9_000_000) -> list[Captured]:
    """The same ends again."""
    first, second = Talk(), Talk(isn=(isn, isn + 77))
    ending = [first.rst(S, B)] if reset else first.closing(A, B)
    return framed(*first.opening(), *exchange(first), *ending, pause, *whole(second))


def abandoned() -> list[Captured]:
    """The client lost its memory, and begins anew."""
    first, second = Talk(), Talk(isn=(9_000_000, 9_000_077))
    return framed(*first.opening(), *exchange(first), 20.0, *whole(second))


def midstream() -> list[Captured]:
    talk = Talk()
    talk.said = [100_000, 200_000]
    return framed(
        talk.c(100_000, ASK), talk.s(200_000, ANSWER), *talk.closing(100_000 + A, 200_000 + B)
    )


def midstream_server_first() -> list[Captured]:
    talk = Talk()
    talk.said = [100_000, 200_000]
    return framed(
        talk.s(200_000, ANSWER), talk.c(100_000, ASK), *talk.closing(100_000 + A, 200_000 + B)
    )


def midstream_reordered() -> list[Captured]:
    """The first segment that was captured is not the first that was sent."""
    talk = Talk()
    talk.said = [100_000, 200_000]
    return framed(
        talk.c(100_005, ASK[5:], ack=200_000),
        talk.c(100_000, ASK[:5], ack=200_000),
        talk.s(200_000, ANSWER),
        *talk.closing(100_000 + A, 200_000 + B),
    )


def unanswered() -> list[Captured]:
    """Nobody is there, or says no: no connection comes to be."""
    silent, refused = Talk(), Talk(client=("10.0.0.1", 40001))
    return framed(
        silent.syn(),
        refused.syn(),
        refused.packet(S, -1, flags=RST | ACK, ack=0),
        1.0,
        silent.syn(),
        2.0,
        silent.syn(),
    )


def second_try() -> list[Captured]:
    """Refused, then accepted."""
    first, second = Talk(), Talk(isn=(9_000_000, 9_000_077))
    refusal = first.packet(S, -1, flags=RST | ACK, ack=0)
    return framed(first.syn(), refusal, 1.0, *whole(second))


def half_open() -> list[Captured]:
    """The server has forgotten the connection."""
    talk = Talk()
    return framed(
        *talk.opening(),
        *exchange(talk),
        300.0,
        talk.c(A, ASK),
        talk.packet(S, B, flags=RST),
    )


def one_side(side: int) -> list[Captured]:
    talk = Talk()
    packets = whole(talk)
    from_client = [0, 2, 3, 5, 7]
    return framed(
        *(packet for at, packet in enumerate(packets) if (at in from_client) is (side == C))
    )


def reset() -> list[Captured]:
    """What a reset carries is a message to people, no part of the stream (RFC 9293 §3.5.3)."""
    talk = Talk()
    return framed(*talk.opening(), *exchange(talk), talk.rst(S, B, b"go away"))


def forged_reset() -> list[Captured]:
    """A reset outside the window is not obeyed (RFC 9293 §3.10.7.4)."""
    talk, forger = Talk(), Talk()
    return framed(
        *talk.opening(),
        talk.c(0, ASK),
        forger.packet(S, 90_000_000, flags=RST),
        5.0,
        talk.s(0, ANSWER),
        *talk.closing(A, B),
    )


def forged_syn() -> list[Captured]:
    """Answered by an acknowledgment, and nothing else (RFC 5961 §4)."""
    talk, forger = Talk(), Talk(isn=(77_777_777, 0))
    return framed(
        *talk.opening(),
        talk.c(0, ASK),
        forger.syn(),
        talk.acks(S, A),
        talk.s(0, ANSWER),
        *talk.closing(A, B),
    )


def simultaneous() -> list[Captured]:
    """Both ends open, and neither listens (RFC 9293 §3.5)."""
    talk = Talk(server=("192.0.2.1", 40000))
    first, second = talk.syn(), talk.open(S, SYN)
    return framed(
        first,
        second,
        talk.open(C, SYN | ACK),
        talk.syn_ack(),
        *exchange(talk),
        *talk.closing(A, B),
    )


def repeated_fin() -> list[Captured]:
    """Until they are acknowledged, and once more."""
    talk = Talk()
    client, server, last = (*talk.opening(), *exchange(talk)), *talk.closing(A, B)[:2]
    final = talk.packet(C, A + 1, flags=ACK, ack=B + 1)
    return framed(*client, server, 0.2, server, last, final, 0.2, last, final, 3.0, last, final)


def fin_with_data() -> list[Captured]:
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.c(0, ASK[:5]),
        talk.fin(C, 5, ASK[5:]),
        talk.fin(S, 0, ANSWER),
        talk.packet(C, A + 1, flags=ACK, ack=B + 1),
    )


def fin_first() -> list[Captured]:
    """The FIN overtakes the last segment."""
    talk = Talk()
    opening = talk.opening()
    early, late = talk.c(0, ASK[:5]), talk.c(5, ASK[5:])
    return framed(*opening, early, talk.fin(C, A), late, talk.s(0, ANSWER), talk.fin(S, B))


def moved_fin() -> list[Captured]:
    """A proxy that finishes a second time, and counts its first FIN as a byte."""
    talk = Talk()
    client, server = talk.fin(C, A, ack=B + 1), talk.fin(S, B, ack=A)
    again = [talk.fin(S, B + 1, ack=A + 1), talk.packet(C, A + 1, flags=ACK, ack=B + 2)]
    return framed(*talk.opening(), *exchange(talk), server, client, *again)


def half_closed() -> list[Captured]:
    """The client has no more to say, but listens for long."""
    talk = Talk()
    return framed(
        *talk.opening(),
        talk.fin(C, 0, ASK),
        talk.acks(S, A + 1),
        100.0,
        talk.s(0, ANSWER),
        100.0,
        talk.fin(S, B),
        talk.packet(C, A + 1, flags=ACK, ack=B + 1),
    )


def late_copies() -> list[Captured]:
    """Copies that were under way when both had finished begin no connection."""
    talk = Talk()
    return framed(*whole(talk), 0.1, talk.s(0, ANSWER), 5.0, talk.c(0, ASK), talk.acks(S, A))


def fast_open(*, accepted: bool) -> list[Captured]:
    """Data on the SYN (RFC 7413); the server may ignore it, and it comes again."""
    talk = Talk()
    syn = talk.syn(ASK)
    if accepted:
        rest = [talk.syn_ack(ack=A), talk.c(A, b"and the date?\n")]
    else:
        rest = [talk.syn_ack(), talk.c(0, ASK), talk.c(A, b"and the date?\n")]
    return framed(syn, *rest, talk.s(0, ANSWER), *talk.closing(A + 14, B))


def interleaved() -> list[Captured]:
    """Only a port, or the direction of the ports, tells them apart."""
    talks = [
        Talk(),
        Talk(client=("10.0.0.1", 40001)),
        Talk(client=("10.0.0.1", 7000), server=("192.0.2.1", 40000)),
    ]
    return framed(*(packet for turn in zip(*map(whole, talks), strict=True) for packet in turn))


BOTH = Heard([ASK], [ANSWER])

CASES = [
    Case("syn-retransmits", "SYN and SYN-ACK come again.", repeated_handshake(), [BOTH]),
    Case("port-reuse", "The same ends again, a minute later.", reused(60.0), [BOTH, BOTH]),
    Case(
        "port-reuse-at-once",
        "The same ends again, within milliseconds.",
        reused(0.001),
        [BOTH, BOTH],
    ),
    Case(
        "port-reuse-lower",
        "The same ends again, with a lower sequence number.",
        reused(0.5, isn=300),
        [BOTH, BOTH],
    ),
    Case(
        "port-reuse-after-reset",
        "The same ends again, within milliseconds of a reset.",
        reused(0.001, reset=True),
        [BOTH._replace(reason="rst"), BOTH],
    ),
    Case(
        "abandoned",
        "The same ends again; the first connection has never ended.",
        abandoned(),
        [BOTH._replace(reason="end"), BOTH],
    ),
    Case(
        "midstream",
        "The beginning was not captured.",
        midstream(),
        [BOTH._replace(midstream=True)],
    ),
    Case(
        "midstream-server-first",
        "The beginning was not captured, and the server speaks first.",
        midstream_server_first(),
        [BOTH._replace(midstream=True)],
    ),
    Case(
        "midstream-reordered",
        "The beginning was not captured, and the first segment seen was the second sent.",
        midstream_reordered(),
        [BOTH._replace(midstream=True)],
    ),
    Case("unanswered", "SYNs to nobody, and to who says no.", unanswered(), []),
    Case("second-try", "Refused at first.", second_try(), [BOTH]),
    Case(
        "half-open",
        "One end has forgotten the connection.",
        half_open(),
        [Heard([ASK + ASK], [ANSWER], reason="rst")],
    ),
    Case(
        "client-only",
        "Only what the client sends was captured.",
        one_side(C),
        [Heard([ASK], [], reason="end")],
    ),
    Case(
        "server-only",
        "Only what the server sends was captured; it acknowledges the rest.",
        one_side(S),
        [Heard([Hole(A)], [ANSWER], reason="end")],
    ),
    Case("reset", "A reset that carries text.", reset(), [BOTH._replace(reason="rst")]),
    Case("forged-reset", "A reset that no end would obey.", forged_reset(), [BOTH]),
    Case("forged-syn", "A SYN within a connection.", forged_syn(), [BOTH]),
    Case(
        "simultaneous-open",
        "Both ends open at once.",
        simultaneous(),
        [BOTH._replace(server="192.0.2.1:40000")],
    ),
    Case("fin-retransmits", "FINs come again, after the end too.", repeated_fin(), [BOTH]),
    Case("fin-with-data", "The last data is on the FIN.", fin_with_data(), [BOTH]),
    Case("fin-first", "The FIN overtakes data.", fin_first(), [BOTH]),
    Case("fin-moved", "A second FIN behind the first.", moved_fin(), [BOTH]),
    Case("half-closed", "One end finishes long before the other.", half_closed(), [BOTH]),
    Case("late-copies", "Data comes again after the end.", late_copies(), [BOTH]),
    Case(
        "fast-open",
        "Data on the SYN.",
        fast_open(accepted=True),
        [Heard([ASK + b"and the date?\n"], [ANSWER])],
    ),
    Case(
        "fast-open-ignored",
        "Data on the SYN, and again behind it.",
        fast_open(accepted=False),
        [Heard([ASK + b"and the date?\n"], [ANSWER])],
    ),
    Case(
        "interleaved",
        "Connections with nearly the same ends.",
        interleaved(),
        [
            BOTH,
            BOTH._replace(client="10.0.0.1:40001"),
            BOTH._replace(client="10.0.0.1:7000", server="192.0.2.1:40000"),
        ],
    ),
]
