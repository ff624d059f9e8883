"""What is wanted of the records: where they are placed, and how much they may tell."""

from collections.abc import Mapping
from typing import NamedTuple

from streamtap.events import Body, Place
from streamtap.model import Content, Flow
from streamtap.patterns import Data
from streamtap.protocols.opaque import OpaqueData

Places = frozenset[Place]


class Terms(NamedTuple):
    """How the flows of a filter are told: by this parser whatever they say, and at most so much
    of them; None where the filter does not say."""

    protocol: str | None = None
    content: Content | None = None


class Wanted:
    """places: provider, flag and level of the records to be made; None for all.
    content: the most that any record tells. filters: what holds for the flows of some, by name.
    unwanted: types of protocol events that are known not to be.
    events: what arrives of unknown protocols, piece by piece; plain: their bursts.
    """

    def __init__(self, places: Places | None, content: Content) -> None:
        self.content = content
        self.filters: Mapping[str, Terms] = {}
        self.unwanted: set[type[Body]] = set()
        self.choose(places)

    def choose(self, places: Places | None) -> None:
        self.places = places
        self.unwanted = set()
        self.events = places is None or OpaqueData.home in places
        self.plain = self.events or Data.home in (places or ())

    def wants(self, body: Body) -> bool:
        return self.places is None or body.place() in self.places

    def wants_type(self, body: Body) -> bool:
        """The same for protocol events, whose place is that of their class; `unwanted` keeps what
        is not."""
        wanted = self.wants(body)
        if not wanted:
            self.unwanted.add(type(body))
        return wanted

    def terms_of(self, flow: Flow) -> Terms:
        return (self.filters.get(flow.app.filter) if flow.app else None) or Terms()

    def content_of(self, flow: Flow) -> Content:
        most = self.terms_of(flow).content
        return self.content if most is None else min(self.content, most)

    @property
    def least(self) -> Content:
        """What a record of any flow may tell."""
        given = (terms.content for terms in self.filters.values())
        return min((content for content in given if content is not None), default=self.content)
