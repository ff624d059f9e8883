"""Who is there: statuses and personal messages, in the shapes of all versions."""

from collections.abc import Sequence

from streamtap.patterns.level import Level
from streamtap.patterns.model import Pattern, Presence
from streamtap.patterns.msnp.words import (
    STATUS,
    account_of,
    personal_message,
    presence_of,
    unquoted,
)
from streamtap.protocols.msnp import MsnpCommand

PEERS = 1024  # people of whom it is remembered what was told last
SHOWN = 2048  # characters of a personal message; clients allow far fewer


class _Told:
    """What was told last of one person."""

    __slots__ = ("message", "name", "pending", "status")

    def __init__(self) -> None:
        self.status = ""
        self.name: str | None = None
        self.message = 0  # hash of the personal message; 0 for none
        self.pending: str | None = None  # a message that came before any status


class Presences:
    """What one client was told of people, itself included."""

    __slots__ = ("_level", "_told")

    def __init__(self, level: Level) -> None:
        self._level = level
        self._told: dict[str, _Told] = {}

    def status_of(self, account: str) -> str:
        """As told last; "" where nothing was."""
        told = self._told.get(account)
        return told.status if told else ""

    def tell(
        self,
        event: MsnpCommand,
        account: str,
        status: str,
        name: str | None,
        message: str | None = None,
    ) -> Presence:
        """Somebody's state; message: None where it does not say."""
        told = self._of(account)
        told.status = status
        told.name = name or told.name
        if message is None:
            message = told.pending
        else:
            told.message = _mark(message)
        told.pending = None
        return Presence(
            offset=event.offset,
            length=event.length,
            protocol="msnp",
            account=account,
            status=status,
            display_name=name,
            personal_message=message[:SHOWN] if message and self._level.full else None,
        )

    def own(self, event: MsnpCommand, account: str | None, name: str | None) -> Sequence[Pattern]:
        """CHG, as the server confirms it."""
        status = STATUS.get(event.args[0] if event.args else "")
        if account is None or status is None:
            return ()
        return (self.tell(event, account, status, name),)

    def contact(self, event: MsnpCommand) -> Sequence[Pattern]:
        """NLN, ILN and FLN."""
        args = event.args
        if event.verb == "FLN":
            return (self.tell(event, account_of(args[0]), "offline", None),) if args else ()
        found = presence_of(args)
        return () if found is None else (self.tell(event, *found),)

    def personal(self, event: MsnpCommand, account: str | None) -> Sequence[Pattern]:
        """UUX and UBX: told if the words changed, with the status that was told last."""
        message = personal_message(event.payload)
        if account is None or message is None:
            return ()
        told = self._of(account)
        if told.message == _mark(message):
            return ()
        told.message = _mark(message)
        if not told.status:
            told.pending = message[:SHOWN]
            return ()
        return (self.tell(event, account, told.status, told.name, message),)

    def renamed(self, account: str | None, name: str) -> None:
        if account is not None:
            self._of(account).name = name

    def _of(self, account: str) -> _Told:
        told = self._told.get(account)
        if told is None:
            if len(self._told) >= PEERS:
                del self._told[next(iter(self._told))]
            told = self._told[account] = _Told()
        return told


def name_of(event: MsnpCommand) -> str | None:
    """PRP MFN: the user's own name."""
    args = event.args
    if "MFN" in args and (at := args.index("MFN") + 1) < len(args):
        return unquoted(args[at])
    return None


def _mark(message: str) -> int:
    return hash(message) or 1 if message else 0
