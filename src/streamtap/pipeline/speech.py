"""What a flow says: its protocol, told by the first bytes, and the parser that understands it."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from streamtap.model import Content, Direction, Gap
from streamtap.protocols import Limits, Parser, detect

OPAQUE = "opaque"
HELD = 1024  # bytes of a line that tells the size of what follows in a body: a dozen, mostly
SECOND_LOOKS = 16  # runs of a flow joined midstream that may show what it speaks

# Offset, bytes (None where they were counted), ends and times of segments. The bytes may be a view
# that is valid only during the call.
Bytes = tuple[int, bytes | memoryview | None, Sequence[int], Sequence[int]]
Run = Bytes | Gap


class Speech:
    """What is known of the protocol of a flow; until it is, what the flow said so far.

    name: of the protocol; "" while it is not decided.
    secondary: the other end of the connection tells the same, and is told in its stead.
    plain: bursts are all that is told of it: no parser knows it, and nobody wants every arrival.
    fluent: its protocol is understood, and what it says is told.
    content: the most that is told of it.
    held: what its parser was given and has not told of yet, where a protocol may carry another.
    unheard: nobody wants what it says: its bytes are counted and go no further.
    offsets: where each direction is, as far as it went to a parser.
    looks: so many more runs of a flow joined midstream, and not understood at first, may show what
        it speaks: it may have been joined inside a payload.
    """

    __slots__ = (
        "_heads",
        "_limits",
        "_waiting",
        "content",
        "fluent",
        "forced",
        "held",
        "looks",
        "name",
        "offsets",
        "parser",
        "plain",
        "secondary",
        "unheard",
    )

    def __init__(
        self,
        limits: Limits,
        *,
        secondary: bool,
        content: Content,
        forced: type[Parser] | None = None,
    ) -> None:
        """forced: the parser, whatever the bytes are."""
        self.secondary = secondary
        self.content = content
        self.forced = forced
        self.fluent = False
        self.plain = False
        self.unheard = secondary
        self.name = ""
        self.parser: Parser | None = None
        self.offsets = [0, 0]
        self.held = [b"", b""]
        self.looks = 0
        self._limits = limits
        self._heads = (bytearray(), bytearray())
        self._waiting: list[tuple[Direction, Run]] = []

    def keep(self, direction: Direction, run: Run) -> bool:
        """Let a run wait until the protocol is known. True if it has to be told by what there is:
        after a hole, or bytes that were only counted, the beginning will not come."""
        final = False
        if not isinstance(run, tuple):
            final = run.cause != "midstream"
        elif run[1] is None:
            final = True
        else:
            data = bytes(run[1])
            run = (run[0], data, *run[2:])
            self._heads[direction].extend(data[: self._limits.probe])
        self._waiting.append((direction, run))
        return final

    def identify(self, *, final: bool) -> type[Parser] | None:
        """The parser for what waits; None while that does not decide, or where nothing does."""
        if self.forced is not None and self._waiting:
            return self.forced
        if not self._waiting or not (any(self._heads) or final):
            return None
        to_server, to_client = map(bytes, self._heads)
        return detect(to_server, to_client, final=final, limits=self._limits)

    def hold(self, direction: Direction, data: memoryview) -> None:
        """The parser waits for more before it tells of these bytes: a line in a body, of which all
        bytes are shown, or a head, of which none are."""
        self.held[direction] = bytes(data) if len(data) <= HELD else b""

    def look_again(self, direction: Direction, run: Run) -> type[Parser] | None:
        """The parser that this run tells: one often begins where a message does."""
        if not isinstance(run, tuple) or run[1] is None:
            return None
        self.looks -= 1
        head = bytes(run[1][: self._limits.probe])
        to_server, to_client = (head, b"") if direction is Direction.TO_SERVER else (b"", head)
        found = detect(to_server, to_client, final=True, limits=self._limits)
        return None if found is None or found.name == OPAQUE else found

    def settle(self, parser: type[Parser], *, midstream: bool) -> list[tuple[Direction, Run]]:
        """It is this protocol: the runs that waited, for its parser."""
        waiting, self._waiting = self._waiting, []
        self._heads = (bytearray(), bytearray())
        # With its beginning unseen, or a hole in it, a parser has to find its feet first.
        midstream = midstream or any(isinstance(run, Gap) for _, run in waiting)
        self.name = parser.name
        self.fluent = parser.name != OPAQUE and not self.secondary
        unknown = parser.name == OPAQUE and self.forced is None
        self.looks = SECOND_LOOKS if unknown and midstream else 0
        self._begin(parser, midstream)
        return waiting

    @property
    def sides_apart(self) -> bool:
        """Its parser hears each direction for itself, as far ahead of the other as one likes."""
        return self.fluent and self.parser is not None and self.parser.sides_apart

    @property
    def is_plain(self) -> bool:
        """It is decided that no parser knows what it says."""
        return self.name == OPAQUE and not self.looks

    def give_up(self, opaque: type[Parser]) -> None:
        """Its parser broke: from now on it is told what passes, and nothing else."""
        if self.parser is not None:
            with suppress(Exception):  # what it held counts no more, whatever it says of that
                for direction in Direction:
                    deque(self.parser.end(direction), maxlen=0)
        self.name = opaque.name
        self.fluent = False
        self.looks = 0
        self._waiting = []
        self._begin(opaque, True)

    def _begin(self, parser: type[Parser], midstream: bool) -> None:
        self.parser = parser(limits=self._limits, midstream=midstream)
        for direction in Direction:
            if self.offsets[direction]:  # it joins late: it is told how much has passed
                # It holds nothing yet: there is nothing to tell.
                deque(self.parser.gap(direction, self.offsets[direction]), maxlen=0)
