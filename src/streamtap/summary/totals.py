"""Records added up to conversations."""

from collections import Counter
from collections.abc import Callable, Iterable

from streamtap.events import Body, Event, FlowInfo, Record, StreamGap
from streamtap.patterns.model import (
    CLIENT_CLIENT,
    Data,
    Direct,
    Error,
    File,
    Invite,
    Join,
    Leave,
    Media,
    Message,
    Pattern,
)
from streamtap.summary.conversation import ENDED, SIGNALS, Conversation, Line, Sender, Transfer
from streamtap.summary.copies import Copies
from streamtap.tally import LOSSES

ROOM = 256 << 20  # bytes of memory, about: some 70,000 conversations of two people

# About what CPython needs for each, with what it holds.
_CONVERSATION = 1500
_ENTRY = 250
_COUNT = 100


class Summary:
    """Conversations over the records that it is given, in about the order of time.

    transcript: keep what was said. left_out: conversations, or parts of one, without room.
    repeated: records that another source had given.
    """

    def __init__(self, *, transcript: bool = False, room: int = ROOM) -> None:
        self._transcript = transcript
        self._room = room
        self._found: dict[object, Conversation] = {}
        self._copies = Copies()
        self._records = Copies()
        self._missing: Counter[tuple[str, str, str]] = Counter()
        # The transfers that go on, by who offers what.
        self._running: dict[tuple[object, str, str | None, str | None], Transfer] = {}
        self.left_out = 0
        self.repeated = 0

    def add(self, record: Record, source: str = "") -> None:
        """source: where it is from, if there are several, and one may have what another has."""
        body = record.body
        if source and self._has(record, source):
            self.repeated += 1
            return
        if isinstance(body, Pattern):
            self._add(record, body)
        elif type(body) is StreamGap and body.cause in LOSSES and record.flow is not None:
            name = _name(record.flow)
            if name in self._missing or self._takes(_ENTRY):
                self._missing[name] += body.length

    def _has(self, record: Record, source: str) -> bool:
        """Whether another source said this of the same bytes at the same time. Names may be hashed
        in one of them, and flows and conversations be numbered otherwise."""
        flow, body = record.flow, record.body
        place = (body.offset, body.length) if isinstance(body, Event | StreamGap) else None
        ends = (flow.local, flow.remote) if flow is not None else None
        size = body.size if isinstance(body, Message) else None
        what = (type(body), record.time_ns, ends, record.direction, place, size)
        return self._records.has(what, source, record.time_ns)

    def conversations(self) -> list[Conversation]:
        """Those found so far, in the order in which they began."""
        for found in self._found.values():
            found.missing = sum(self._missing[_name(flow)] for flow in found.flows.values())
            found.transcript.sort(key=lambda line: line.time_ns)
        return sorted(self._found.values(), key=lambda found: found.began_ns)

    def _add(self, record: Record, body: Pattern) -> None:
        flow, time_ns = record.flow, record.time_ns
        key: object = body.conversation
        if key is None:  # between a client and a service, or joined where nothing tells
            if body.pattern != CLIENT_CLIENT or type(body) is Data:
                return
            key = flow and _name(flow)
        found = self._found.get(key)
        if found is None:
            if not self._takes(_CONVERSATION):
                return
            found = Conversation(body.conversation, body.protocol, time_ns, time_ns)
            self._found[key] = found
        elif time_ns > found.ended_ns:
            found.ended_ns = time_ns
        elif time_ns < found.began_ns:
            found.began_ns = time_ns
        if (
            flow is not None
            and found.flows.get(flow.flow) is not flow
            and (flow.flow in found.flows or self._takes(_ENTRY))
        ):
            found.flows[flow.flow] = flow
        take = _TAKERS.get(type(body))
        if take is not None:
            take(self, found, key, record, body)

    def _takes(self, cost: int) -> bool:
        """Whether there is room for this; it is then taken."""
        if cost > self._room:
            self.left_out += 1
            return False
        self._room -= cost
        return True

    def _meet(self, found: Conversation, accounts: Iterable[str | None]) -> None:
        """They take part."""
        for account in accounts:
            if account and account not in found.participants and self._takes(_ENTRY):
                found.participants[account] = None
                found.invited.pop(account, None)

    # -- each kind of pattern

    def _message(self, found: Conversation, key: object, record: Record, body: Message) -> None:
        self._meet(found, (body.sender, *body.recipients))
        flow = record.flow.flow if record.flow is not None else ""
        said = (key, body.sender, body.kind, body.content_type, body.size)
        if self._copies.has(said, flow, record.time_ns):
            return
        sender = found.senders.get(body.sender)
        if sender is None:
            if not self._takes(2 * _ENTRY):
                return
            sender = found.senders[body.sender] = Sender()
        if body.kind in sender.kinds or self._takes(_COUNT):
            sender.kinds[body.kind] = sender.kinds.get(body.kind, 0) + 1
        if body.kind in SIGNALS:
            return
        sender.messages += 1
        sender.bytes += body.size
        if self._transcript and self._takes(_ENTRY + 2 * len(body.content or "")):
            line = Line(record.time_ns, body.sender, body.kind, body.size, body.content)
            found.transcript.append(line)

    def _invite(self, found: Conversation, key: object, record: Record, body: Invite) -> None:
        self._meet(found, (body.by,))
        known = found.participants.keys() | found.invited.keys()
        if body.account not in known and self._takes(_ENTRY):
            found.invited[body.account] = None

    def _member(self, found: Conversation, key: object, record: Record, body: Join | Leave) -> None:
        self._meet(found, (body.account, *body.participants))

    def _file(self, found: Conversation, key: object, record: Record, body: File) -> None:
        transfer = self._transfer(found, key, "file", body.name, body)
        if transfer is None:
            return
        if body.size is not None:
            transfer.size = body.size
        if body.transferred is not None:
            transfer.transferred = max(transfer.transferred or 0, body.transferred)

    def _media(self, found: Conversation, key: object, record: Record, body: Media) -> None:
        self._transfer(found, key, body.kind, None, body)

    def _transfer(
        self, found: Conversation, key: object, kind: str, name: str | None, body: File | Media
    ) -> Transfer | None:
        """The transfer that this is about: one that goes on, or a new one."""
        self._meet(found, (body.sender, *body.recipients))
        place = key, kind, body.sender, name
        transfer = self._running.get(place)
        if transfer is None or (body.action == "offer" and transfer.action in ENDED):
            if not self._takes(2 * _ENTRY):
                return None
            transfer = Transfer(kind, body.sender, body.recipients, body.action, name)
            self._running[place] = transfer
            found.transfers.append(transfer)
        elif transfer.action not in ENDED:
            transfer.action = body.action
        return transfer

    def _direct(self, found: Conversation, key: object, record: Record, body: Direct) -> None:
        self._meet(found, (body.account,))
        way = body.address, body.transport, body.account
        if way not in found.direct and self._takes(_ENTRY):
            found.direct[way] = None

    def _error(self, found: Conversation, key: object, record: Record, body: Error) -> None:
        what = body.code, body.name, body.command
        if what in found.errors or self._takes(_ENTRY):
            found.errors[what] += 1


_Taker = Callable[..., None]
_TAKERS: dict[type[Body], _Taker] = {
    Message: Summary._message,
    Invite: Summary._invite,
    Join: Summary._member,
    Leave: Summary._member,
    File: Summary._file,
    Media: Summary._media,
    Direct: Summary._direct,
    Error: Summary._error,
}


def _name(flow: FlowInfo) -> tuple[str, str, str]:
    """What tells a flow from those of other hosts."""
    return flow.flow, flow.local, flow.remote
