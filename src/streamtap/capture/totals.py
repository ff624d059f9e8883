"""How many payload bytes a connection has carried, by the kernel's counters for its socket."""

from typing import Any

from streamtap.capture.layout import FlowFlag


def kernel_totals(record: dict[str, Any], passed: tuple[int, int]) -> tuple[int, int]:
    """Payload bytes sent and received by the counters of a CLOSED record.

    The sequence numbers are exact but wrap; the 64-bit counters tell which turn it is. SYN and
    FIN take a number each and are no payload (RFC 9293 §3.4).
    """
    flags = record["flags"]
    sent = record["snd_nxt"] - record["origin"][0]
    if flags & FlowFlag.FIN_SENT and _follows(record["snd_nxt"], record["fin"][0]):
        sent -= 1
    received = record["rcv_nxt"] - record["origin"][1]
    if flags & FlowFlag.FIN_RECEIVED and _follows(record["rcv_nxt"], record["fin"][1]):
        received -= 1
    in_flight = (record["snd_nxt"] - record["snd_una"]) & 0xFFFFFFFF
    return (
        _nearest(passed[0] + sent, record["bytes_acked"] + in_flight),
        _nearest(passed[1] + received, record["bytes_received"]),
    )


def _follows(sequence: int, fin: int) -> bool:
    """Whether the FIN with this number is covered by `sequence`."""
    return (sequence - fin - 1) & 0xFFFFFFFF < 1 << 31


def _nearest(value: int, estimate: int) -> int:
    """The number equal to `value` modulo 2**32 that is nearest to `estimate`."""
    offset = (value - estimate + (1 << 31)) % (1 << 32) - (1 << 31)
    return max(0, estimate + offset)
