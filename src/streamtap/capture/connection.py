"""What is known of one connection of a capture, and how its opening is told."""

import socket

from streamtap.capture.batch import Batch
from streamtap.model import Direction, Endpoint, Flow, Opened, Role

# Servers' ports above 1023. Of two ends whose beginning was not seen, the one with such a port, or
# one below 1024, is taken for the server; where both have one, or neither, the lower one.
SERVER_PORTS = frozenset(
    (
        *(1863, 5050, 5190, 5222, 5223, 5269, *range(6660, 6670), 6697, 6891, 6901),
        *(1080, 3128, 5060, 5061, 8000, 8008, 8080, 8081, 8443, 8888, 9050),
        *(1433, 1521, 3306, 3389, 5432, 5900, 6379, 9092, 9200, 11211, 27017),
    )
)
BEHIND = 1 << 20  # bytes before where a stream is that may still belong to it
_MASK = 0xFFFF_FFFF
_RECEIVED, _SENT = 1, 2  # `Strands.way`


class First:
    """The strand that began a connection: what is needed of it to open a flow."""

    __slots__ = ("app", "from_high", "header", "ports", "time_ns", "version", "way")

    def __init__(self, batch: Batch, strand: int, time_ns: int) -> None:
        self.from_high = batch.from_high[strand]
        self.header = batch.header_of(strand)
        self.version = batch.version[strand]
        self.ports = batch.source_port[strand], batch.destination_port[strand]
        process = batch.process[strand]
        self.app = batch.apps[process] if process else None
        self.way = batch.way[strand]
        self.time_ns = time_ns

    def ends(self) -> tuple[Endpoint, Endpoint]:
        """Source and destination."""
        header, (source, destination) = self.header, self.ports
        text = socket.inet_ntop
        if self.version == 4:
            family = socket.AF_INET
            addresses = text(family, header[12:16]), text(family, header[16:20])
        else:
            family = socket.AF_INET6
            addresses = text(family, header[8:24]), text(family, header[24:40])
        return Endpoint(addresses[0], source), Endpoint(addresses[1], destination)

    def is_from_client(self) -> bool:
        """By the ports alone."""
        source, destination = self.ports
        return (not _serves(destination), destination) <= (not _serves(source), source)


class Connection:
    """A connection as the capture shows it. Lists are indexed by `Direction`.

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
        "first",
        "flow_id",
        "last_ns",
        "midstream",
        "next",
        "opened_ns",
        "ragged",
        "reason",
        "sequences",
        "told",
    )

    def __init__(self, flow_id: int, first: First, *, client_high: bool, midstream: bool):
        self.flow_id = flow_id
        self.first = first
        self.client_high = client_high
        self.midstream = midstream
        self.opened_ns = self.last_ns = first.time_ns
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

    def opened(self) -> Opened:
        first = self.first
        source, destination = first.ends()
        by_client = first.from_high is self.client_high
        client, server = (source, destination) if by_client else (destination, source)
        # Where it is known whose the packet is, and which way it went, his end is the local one.
        of_server = first.app is not None and first.way == (_RECEIVED if by_client else _SENT)
        to_server, to_client = self.sequences
        flow = Flow(
            self.flow_id,
            first.app,
            server if of_server else client,
            client if of_server else server,
            Role.SERVER if of_server else Role.CLIENT,
            self.opened_ns,
            self.midstream,
        )
        return Opened(flow, (to_server, to_client))


def _serves(port: int) -> bool:
    return port < 1024 or port in SERVER_PORTS
