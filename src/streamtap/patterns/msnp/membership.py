"""Who is asked into a conversation, comes, and goes: told alike of switchboards and groups."""

from streamtap.patterns.model import CLIENT_CLIENT, Invite, Join, Leave
from streamtap.protocols.msnp import MsnpCommand


def invited(event: MsnpCommand, conversation: str, account: str, by: str | None) -> Invite:
    """by: who asks."""
    return Invite(
        offset=event.offset,
        length=event.length,
        protocol="msnp",
        pattern=CLIENT_CLIENT,
        conversation=conversation,
        account=account,
        by=by,
    )


def came(
    event: MsnpCommand, conversation: str, account: str, participants: tuple[str, ...]
) -> Join:
    """participants: who is in it now."""
    return Join(
        offset=event.offset,
        length=event.length,
        protocol="msnp",
        pattern=CLIENT_CLIENT,
        conversation=conversation,
        account=account,
        participants=participants,
    )


def went(
    event: MsnpCommand, conversation: str | None, account: str, participants: tuple[str, ...]
) -> Leave:
    """participants: who is still in it."""
    return Leave(
        offset=event.offset,
        length=event.length,
        protocol="msnp",
        pattern=CLIENT_CLIENT,
        conversation=conversation,
        account=account,
        participants=participants,
    )
