"""What is known of one connection of a capture, and how its opening is told."""

from streamtap.capture.batch import Batch
from streamtap.model import Direction, Flow, Opened, Role

BEHIND = 1 << 20  # bytes before where a stream is that may still belong to it
_MASK = 0xFFFF_FFFF
_RECEIVED, _SENT = 1, 2  # `Strands.way`

# What is remembered of a connection that has ended: when, `client_high`, and `fins`.
Ended = tuple[int, bool, int | None, int | None]


class Connection:
    """A connection as the capture shows it. Lists are indexed by `Direction`.

    strand: whose packet was the first, as `Batch.first_of` tells it; of_client: the client sent it.
    client_high: its client is the higher of the two ends.
    sequences: of the first byte, None where it is not known; next: of the byte expected next.
    fins: of the byte behind the last one. acks: the last acknowledgement that each gave, or -1.
    ragged: there was a hole, so that acknowledgements alone may tell of a gap. Where all has come
        in order they tell the streams nothing until the end.
    challenge: the number of a SYN that begins it anew, if the other end agrees; or -1.
    told: its opening was. reason: how it ended, "" if it has not.
    """

    __slots__ = (
        "acks",
        "challenge",
        "client_high",
        "ended_ns",
        "fins",
        "flow_id",
        "last_ns",
        "midstream",
        "next",
        "of_client",
        "opened_ns",
        "ragged",
        "reason",
        "sequences",
        "strand",
        "told",
    )

    def __init__(
        self,
        flow_id: int,
        batch: Batch,
        strand: int,
        time_ns: int,
        of_client: bool,
        midstream: bool,
    ) -> None:
        self.flow_id = flow_id
        self.strand = batch.first_of(strand)
        self.of_client = of_client
        self.client_high = batch.from_high[strand] is of_client
        self.midstream = midstream
        self.opened_ns = self.last_ns = time_ns
        self.ended_ns = 0
        self.sequences: list[int | None] = [None, None]
        self.next = [-1, -1]
        self.fins: list[int | None] = [None, None]
        self.acks = [-1, -1]
        self.challenge = -1
        self.ragged = False
        self.told = False
        self.reason = ""

    def jump(self, direction: Direction, sequence: int, following: int) -> None:
        """Bytes that are not those expected next."""
        expected = self.next[direction]
        if expected >= 0 and 0 < expected - sequence & _MASK < BEHIND:  # they came again
            if following - expected & _MASK < BEHIND:  # and more with them
                self.next[direction] = following
            return
        self.ragged = self.ragged or expected >= 0
        self.next[direction] = following

    def heard(self, direction: Direction, ack: int) -> int:
        """An acknowledgement in this direction, as far as it is of bytes; a FIN has a number."""
        fin = self.fins[direction.opposite]
        return fin if fin is not None and ack == fin + 1 & _MASK else ack

    def opened(self) -> Opened:
        app, way, source, destination = self.strand
        client, server = (source, destination) if self.of_client else (destination, source)
        # Where it is known whose the packet is, and which way it went, his end is the local one.
        of_server = app is not None and way == (_RECEIVED if self.of_client else _SENT)
        to_server, to_client = self.sequences
        flow = Flow(
            self.flow_id,
            app,
            server if of_server else client,
            client if of_server else server,
            Role.SERVER if of_server else Role.CLIENT,
            self.opened_ns,
            self.midstream,
        )
        return Opened(flow, (to_server, to_client))
