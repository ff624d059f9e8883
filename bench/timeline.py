"""Conversations to TCP packets: who sends which segment and which acknowledgment at what time.

Everything is a column. Sequence numbers here count from the SYN, which is number 0 of its
direction; times are microseconds from the beginning of the capture.

A flow occupies two groups, `2 * flow + direction`. A key `group * SPAN + time` keeps the groups
apart in one sorted array, so that one `searchsorted` answers for all flows what each end had
sent, or had received without a hole, at the time of each packet.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Rows = NDArray[np.void]  # a structured array

SEGMENT_BYTES = 1448  # 1500 less the headers of IPv4 and TCP with timestamps
FIN, SYN, PSH, ACK = 0x01, 0x02, 0x08, 0x10
OPTIONS = bytes.fromhex("020405b4 01030307")  # of a SYN, besides its timestamps: 1460, scale 7
RETRANSMITTED = 0.005  # of the segments
REORDERED = 0.005  # of the pairs that follow each other in one direction
SPAN = 1 << 40  # beyond all times and all sequence numbers
_WITHIN_MESSAGE = 0.01  # time from segment to segment, in times from message to message

PACKET = np.dtype(
    [
        ("time", "i8"),
        ("group", "i8"),
        ("sequence", "i8"),
        ("acknowledgment", "i8"),
        ("position", "i8"),  # of the payload, in the content
        ("length", "i8"),
        ("flags", "u1"),
        ("pure", "?"),  # says nothing, only acknowledges
    ]
)


class Content(NamedTuple):
    """The bytes that are said. It begins with OPTIONS, which no message uses; positions go around
    at `period`, behind which there is a segment more."""

    data: NDArray[np.uint8]
    period: int


class Messages(NamedTuple):
    """What is said, a row a message; ascending in `flow`, and in order within one."""

    flow: Ints
    direction: Ints
    length: Ints
    position: Ints  # of its first byte in the content


class Timing(NamedTuple):
    """When flows live, a row a flow, and how they acknowledge."""

    start: Ints
    duration: Ints
    round_trip: Ints
    acknowledge_every: int  # so many segments
    acknowledge_within: int


def segments(messages: Messages, period: int) -> Rows:
    """The messages cut to segments, without times: ascending in flow, as they are said."""
    pieces = -(-messages.length // SEGMENT_BYTES)
    message = np.repeat(np.arange(len(pieces)), pieces)
    skipped = (np.arange(len(message)) - (np.cumsum(pieces) - pieces)[message]) * SEGMENT_BYTES
    rows = np.zeros(len(message), PACKET)
    rows["group"] = 2 * messages.flow[message] + messages.direction[message]
    rows["length"] = np.minimum(messages.length[message] - skipped, SEGMENT_BYTES)
    rows["position"] = (messages.position[message] + skipped) % period
    last = skipped + rows["length"] == messages.length[message]
    rows["flags"] = np.where(last, PSH | ACK, ACK)
    order = np.argsort(rows["group"], kind="stable")
    grouped = rows[order]
    before = np.cumsum(grouped["length"]) - grouped["length"]
    begins = np.diff(grouped["group"], prepend=-1) != 0
    rows["sequence"][order] = 1 + before - np.maximum.accumulate(np.where(begins, before, 0))
    return rows


def packets(messages: Messages, timing: Timing, period: int, random: np.random.Generator) -> Rows:
    """All packets of the flows, by time; each flow from its SYN to the acknowledgment of its last
    FIN."""
    said = segments(messages, period)
    _schedule(said, timing, random)
    again = said[random.random(len(said)) < RETRANSMITTED]
    flow = again["group"] // 2
    again["time"] += (timing.round_trip[flow] * (1 + random.random(len(again)))).astype(np.int64)
    answers = _acknowledgments(said, timing, random)
    everything = np.concatenate([_handshake(timing), said, again, answers, _farewell(said, timing)])
    everything = everything[np.argsort(everything["time"], kind="stable")]
    pure = everything["pure"]
    spoken = everything[~pure]
    _acknowledge(everything, spoken)
    when, sent = _progress(spoken)
    last = np.searchsorted(when, _key(everything[pure]), "right") - 1
    everything["sequence"][pure] = sent[last]
    return everything


def _schedule(said: Rows, timing: Timing, random: np.random.Generator) -> None:
    """Spreads the segments of each flow over its life, and exchanges some neighbours."""
    flow = said["group"] // 2
    gap = random.exponential(size=len(said))
    follows = np.r_[False, (said["flags"][:-1] & PSH) == 0]
    gap[follows] *= _WITHIN_MESSAGE
    total = np.cumsum(gap)
    ends = np.searchsorted(flow, np.arange(len(timing.start)), "right")
    starts = np.r_[0, ends[:-1]]
    base = np.r_[0.0, total][starts]
    whole = np.maximum(np.r_[0.0, total][ends] - base, 1e-9)
    share = (total - base[flow]) / whole[flow]
    # the handshake takes two round trips before, late copies and the farewell five behind
    room = timing.duration - 7 * timing.round_trip
    time = (timing.start + 2 * timing.round_trip)[flow] + (share * room[flow]).astype(np.int64)
    swap = np.flatnonzero(
        (said["group"][1:] == said["group"][:-1]) & (random.random(len(said) - 1) < REORDERED)
    )
    swap = swap[np.diff(swap, prepend=-2) > 1]
    time[swap], time[swap + 1] = time[swap + 1], time[swap]
    said["time"] = time


def _handshake(timing: Timing) -> Rows:
    flows = np.arange(len(timing.start))
    rows = np.zeros(3 * len(flows), PACKET)
    rows["group"] = np.concatenate([2 * flows, 2 * flows + 1, 2 * flows])
    rows["flags"] = np.repeat([SYN, SYN | ACK, ACK], len(flows))
    rows["pure"] = rows["flags"] == ACK
    late = timing.round_trip
    rows["time"] = np.concatenate([timing.start, timing.start + late, timing.start + late + 20])
    rows["length"][~rows["pure"]] = len(OPTIONS)  # its place is the first of the content
    return rows


def _farewell(said: Rows, timing: Timing) -> Rows:
    flows = np.arange(len(timing.start))
    rows = np.zeros(3 * len(flows), PACKET)
    rows["group"] = np.concatenate([2 * flows, 2 * flows + 1, 2 * flows])
    rows["flags"] = np.repeat([FIN | ACK, FIN | ACK, ACK], len(flows))
    rows["pure"] = rows["flags"] == ACK
    end, trip = timing.start + timing.duration, timing.round_trip
    rows["time"] = np.concatenate([end - 2 * trip, end - trip, end - trip + 20])
    ends = np.ones(2 * len(flows), np.int64)
    np.maximum.at(ends, said["group"], said["sequence"] + said["length"])
    rows["sequence"][~rows["pure"]] = ends[rows["group"][~rows["pure"]]]
    return rows


def _acknowledgments(said: Rows, timing: Timing, random: np.random.Generator) -> Rows:
    """Pure ones, without their numbers: after each so many segments of a direction."""
    order = np.argsort(said["group"], kind="stable")
    group = said["group"][order]
    index = np.arange(len(group))
    begins = np.maximum.accumulate(np.where(np.diff(group, prepend=-1) != 0, index, 0))
    every = timing.acknowledge_every
    chosen = said[order[(index - begins) % every == every - 1]]
    rows = np.zeros(len(chosen), PACKET)
    rows["group"] = chosen["group"] ^ 1
    rows["time"] = chosen["time"] + random.integers(20, timing.acknowledge_within, len(chosen))
    rows["flags"], rows["pure"] = ACK, True
    return rows


def _key(rows: Rows) -> Ints:
    key: Ints = rows["group"] * SPAN + rows["time"]
    return key


def _end(rows: Rows) -> Ints:
    """The sequence number behind each packet; a SYN and a FIN take one."""
    control = rows["flags"] & (SYN | FIN) != 0
    end: Ints = rows["sequence"] + np.where(control, 1, rows["length"])
    return end


def _progress(spoken: Rows) -> tuple[Ints, Ints]:
    """Keys in order, and the highest number that had been sent at each."""
    key = _key(spoken)
    order = np.argsort(key, kind="stable")
    group = spoken["group"][order] * SPAN
    return key[order], np.maximum.accumulate(group + _end(spoken)[order]) - group


def _acknowledge(everything: Rows, spoken: Rows) -> None:
    """Each packet acknowledges what its sender had received without a hole. What was sent twice
    did not arrive the first time."""
    order = np.lexsort((-spoken["time"], spoken["sequence"], spoken["group"]))
    arrived = spoken[order]
    place = arrived["group"] * SPAN + arrived["sequence"]
    arrived = arrived[np.diff(place, prepend=-1) != 0]
    whole = np.maximum.accumulate(_key(arrived))  # once all before it is there, too
    other = everything["group"] ^ 1
    last = np.searchsorted(whole, other * SPAN + everything["time"], "right") - 1
    known = (last >= 0) & (arrived["group"][last] == other)
    everything["acknowledgment"] = np.where(known, _end(arrived)[last], 0)
