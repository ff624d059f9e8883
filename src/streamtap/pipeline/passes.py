"""All the way of the data in one process."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from streamtap.demux import Tap
from streamtap.events import Body, Record
from streamtap.flows import FlowTable
from streamtap.model import Closed, Content, Flow, Opened, Scoped, Segment
from streamtap.pipeline.listening import Listening, SetPolicy
from streamtap.pipeline.speech import Speech
from streamtap.pipeline.telling import Telling
from streamtap.pipeline.wanted import Places, Terms, Wanted
from streamtap.protocols import Limits
from streamtap.streams import Reassembler


class Pipeline:
    """One application's flows to records. Fed with batches by its owner; does no IO.

    content: the most that any record tells. `set_content`, `set_places` and `set_filters` may be
        called between batches.
    places: where records are wanted (provider, flag, level); None for everywhere. What nobody
        wants is not made, but all of it is understood.
    protocol: forces this parser on every flow; both_ends: a connection with both ends in scope is
        told twice, not once.
    set_policy: asked to copy less of a flow, where the source can do that.
    taps: are shown the flows' segments and bytes on the way.
    """

    def __init__(
        self,
        *,
        content: Content = Content.META,
        places: Places | None = None,
        protocol: str | None = None,
        both_ends: bool = False,
        set_policy: SetPolicy | None = None,
        key: bytes | None = None,
        limits: Limits | None = None,
        wanted: Callable[[Flow], bool] | None = None,
        taps: Sequence[Tap] = (),
        max_flows: int = 65_536,
        idle_ns: int | None = None,
    ) -> None:
        self._wanted = Wanted(places, content)
        self._listening = Listening(
            self._wanted,
            protocol=protocol,
            both_ends=both_ends,
            set_policy=set_policy,
            limits=limits,
            follows=wanted,
            taps=taps,
            max_flows=max_flows,
            idle_ns=idle_ns,
        )
        self._telling = Telling(self._wanted, key=key, rescoped=self._listening.rescoped)

    @property
    def table(self) -> FlowTable[Reassembler, Speech]:
        return self._listening.table

    @property
    def bytes(self) -> int:
        """How many came out of the streams."""
        return self._listening.bytes

    @property
    def gaps(self) -> int:
        """How many came out of the streams."""
        return self._listening.gaps

    @property
    def records(self) -> int:
        """How many there were."""
        return self._telling.records

    def set_places(self, places: Places | None) -> None:
        """Where records are wanted from now on."""
        self._wanted.choose(places)
        self._plan()

    def set_content(self, content: Content) -> None:
        """The most that any record tells from now on."""
        self._wanted.content = content
        self._plan()

    def set_filters(self, filters: Mapping[str, Terms]) -> None:
        """What holds for the flows of some filters, by name: of what they tell at once, of how
        they are parsed for those that open from now on."""
        self._wanted.filters = dict(filters)
        self._plan()

    def _plan(self) -> None:
        self._listening.plan()
        self._telling.plan()

    def feed(self, items: Iterable[Opened | Segment | Closed | Scoped]) -> list[Record]:
        """The records that a batch gives. Views in it are not kept beyond this call."""
        for words, _ in self._listening.feed(items):
            self._telling.tell(words)
        return self._telling.flush()

    @property
    def pending(self) -> bool:
        """A `tick` will soon have something to say."""
        return self._telling.pending

    def tick(self, now_ns: int) -> list[Record]:
        """Time has come to `now_ns` and everything older has been fed."""
        self._telling.tick(now_ns)
        return self.feed(self.table.expire(now_ns))

    def standing(self, now_ns: int) -> list[Record]:
        """The flows that are open, as if they had been found at `now_ns`."""
        return self._telling.standing(self.table, now_ns)

    def note(self, time_ns: int, body: Body) -> list[Record]:
        """A record that is about no flow."""
        self._telling.emit(time_ns, body)
        return self._telling.flush()
