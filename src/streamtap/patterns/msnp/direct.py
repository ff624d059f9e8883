"""Connections between two clients, whichever of them the application is."""

from collections.abc import Callable, Sequence

from streamtap.model import Direction
from streamtap.patterns.model import Pattern
from streamtap.patterns.msnp.client import Client
from streamtap.patterns.msnp.transfer import Transfer
from streamtap.patterns.msnp.transfers import Transfers
from streamtap.patterns.msnp.words import account_of
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket

Patterns = Sequence[Pattern]
NOTHING: Patterns = ()


class DirectConnection:
    """One of them: MSNP2P over TCP, MSNFTP, or a webcam."""

    __slots__ = ("_client", "_ends", "_transfers")

    def __init__(self, client: Client, transfers: Transfers) -> None:
        self._client = client
        self._transfers = transfers
        self._ends = ""  # transport of a transfer that is over when its connection is

    def step(self, time_ns: int, event: MsnpDirect) -> Patterns:
        """What is neither line nor packet."""
        if event.step == "nonce" and self._client.service == "":
            marks = (event.nonce, event.hashed_nonce)
            return self._opened(time_ns, event, "p2p", marks)
        if event.step == "open" and event.transport == "webcam":
            if self._client.service == "direct":  # the answer of the other end
                return NOTHING
            return self._opened(time_ns, event, "webcam", ())
        if event.step == "block" and self._transfers.active is not None:
            transfer = self._transfers.active
            return transfer.carry(event, transfer.done + event.size)
        return NOTHING

    def _opened(
        self,
        time_ns: int,
        event: MsnpCommand | MsnpDirect,
        transport: str,
        marks: tuple[str | None, ...],
        peer: str | None = None,
    ) -> Patterns:
        client = self._client
        client.service = "direct"
        own = client.own(time_ns)
        patterns = self._transfers.connected(event, time_ns, transport, marks, own, peer)
        if transport != "p2p":  # a session of packets may go on elsewhere
            self._ends = transport
        if self._transfers.active is not None:
            client.conversation = self._transfers.active.conversation
        elif transport == "webcam":
            self._transfers.active = Transfer("webcam", None, (), client.conversation)
        return patterns

    def closed(self, offset: int) -> Patterns:
        """The connection ended: what has no last word of its own ends with it."""
        transfer = self._transfers.active
        if transfer is None or not self._ends or transfer.ended:
            return NOTHING
        end = MsnpDirect(offset=offset, length=0, transport=self._ends, step="end")
        webcam = self._ends == "webcam"
        return [transfer.tell(end, "complete" if webcam else "cancel")]

    def packet(self, time_ns: int, event: MsnpPacket) -> Patterns:
        recipients = (event.recipient,) if event.recipient else ()
        conversation = self._client.conversation
        return self._transfers.packet(event, time_ns, None, recipients, conversation)

    # -- MSNFTP: lines of either end, whichever of them connected

    def receiver(self, direction: Direction, time_ns: int, event: MsnpCommand) -> Patterns:
        """USR: who receives the file. If it is the local end, the peer sends it."""
        receiver = account_of(event.args[0]) if event.args else None
        peer = None if direction is self._client.flow.sent else receiver
        return self._opened(time_ns, event, "msnftp", event.args[1:2], peer)

    def size(self, direction: Direction, time_ns: int, event: MsnpCommand) -> Patterns:
        size = event.args[0] if event.args else ""
        if size.isdecimal() and len(size) < 18:
            self._transfers.begin(int(size))
        return NOTHING

    def ended(self, direction: Direction, time_ns: int, event: MsnpCommand) -> Patterns:
        return self._transfers.ended(event, event.args[0] if event.args else "")


Handler = Callable[[DirectConnection, Direction, int, MsnpCommand], Patterns]
HANDLERS: dict[str, Handler] = {
    "USR": DirectConnection.receiver,
    "FIL": DirectConnection.size,
    "BYE": DirectConnection.ended,
    "CCL": DirectConnection.ended,
}
