"""What came of a run, live or from captures: what the summary says, and what `--strict` judges."""

from collections import Counter

from streamtap.events import FlowClosed, ParserFailed, Record, StreamGap, StreamLimit

# Gaps that are nobody's fault but ours; what passed before we came is no loss.
LOSSES = ("lost", "unseen", "limit")
# Needed for the totals, whether or not anybody wants to see them.
COUNTED = frozenset(
    (body.provider, body.flag, body.level)
    for body in (FlowClosed, StreamGap, StreamLimit, ParserFailed)
)


class Tally:
    """Totals over records.

    records: kept by the owner: those it took, for the last record.
    ended: why it ended: "stop", "duration", "command", "end" of the captures; "" while it has not.
    flows: opened. bytes: sent and received by the flows that are closed. gaps: by cause. limits,
    failures: bounds that were reached, parsers that broke. drops: by what was lost, known at the
    end.
    """

    def __init__(self) -> None:
        self.records = 0
        self.ended = ""
        self.bytes = 0
        self.gaps: Counter[str] = Counter()
        self.limits = 0
        self.failures = 0
        self.drops: dict[str, int] = {}

    @property
    def flows(self) -> int:
        raise NotImplementedError

    @property
    def lost(self) -> bool:
        """Something was lost that should have been seen or understood."""
        return bool(
            any(self.drops.values())
            or any(self.gaps[cause] for cause in LOSSES)
            or self.limits
            or self.failures
        )

    def counted(self, records: list[Record]) -> list[Record]:
        """The records, added to the totals."""
        for record in records:
            body = record.body
            kind = type(body)
            if kind is FlowClosed:
                assert isinstance(body, FlowClosed)
                self.bytes += body.sent + body.sent_counted
                self.bytes += body.received + body.received_counted
            elif kind is StreamGap:
                assert isinstance(body, StreamGap)
                self.gaps[body.cause] += 1
            elif kind is StreamLimit:
                self.limits += 1
            elif kind is ParserFailed:
                self.failures += 1
        return records
