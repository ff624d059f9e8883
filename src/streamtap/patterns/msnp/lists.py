"""Contact lists of MSNP, in the shapes of all versions: commands to patterns."""

from collections.abc import Sequence

from streamtap.patterns.model import Contacts, Pattern
from streamtap.patterns.msnp.words import (
    LISTS,
    account_of,
    list_entries,
    lists_of_bits,
)
from streamtap.protocols.msnp import MsnpCommand


def _contacts(
    event: MsnpCommand,
    own: str | None,
    action: str,
    contact: str | None = None,
    lists: tuple[str, ...] = (),
    count: int | None = None,
) -> Contacts:
    return Contacts(
        offset=event.offset,
        length=event.length,
        protocol="msnp",
        account=own,
        action=action,
        count=count,
        contact=contact,
        lists=lists,
    )


def list_sizes(event: MsnpCommand, own: str | None) -> Sequence[Pattern]:
    """SYN: the server's answer names the number of contacts from MSNP8 on."""
    args = event.args
    if len(args) >= 3 and args[-2].isdecimal() and len(args[-2]) < 7:
        return [_contacts(event, own, "list", count=int(args[-2]))]
    return ()


def list_entry(event: MsnpCommand, own: str | None) -> Sequence[Pattern]:
    """LST: one contact of one list (MSNP2 … 7), or of several."""
    args = event.args
    if len(args) >= 5 and args[0] in LISTS:  # list version index total account
        return [_contacts(event, own, "list", account_of(args[4]), (LISTS[args[0]],))]
    contact = next((arg[2:] for arg in args if arg.startswith("N=")), args[0] if args else "")
    if "@" not in contact and not contact.startswith("tel:"):
        return ()
    # The bits are the first number after account, name and id.
    start = sum(arg[1:2] == "=" for arg in args) or 2
    bits = next((arg for arg in args[start:] if arg.isdecimal() and len(arg) < 4), "0")
    return [_contacts(event, own, "list", account_of(contact), lists_of_bits(int(bits)))]


def list_change(event: MsnpCommand, own: str | None) -> Sequence[Pattern]:
    """ADD, ADC and REM, as the server confirms or announces them."""
    args = event.args
    if not args or args[0] not in LISTS:
        return ()
    named = [arg.removeprefix("N=") for arg in args]
    at = next((at for at, arg in enumerate(named) if "@" in arg or arg.startswith("tel:")), 0)
    # Who has only an id is on the list already: what follows it is a group, as behind the account
    # of one who is removed.
    if (event.verb == "REM" or not at) and len(args) > (at or 1) + 1:
        return ()
    contact = named[at] if at else None
    action = "remove" if event.verb == "REM" else "block" if args[0] == "BL" else "add"
    account = account_of(contact) if contact else None
    return [_contacts(event, own, action, account, (LISTS[args[0]],))]


def list_payload(event: MsnpCommand, own: str | None) -> Sequence[Pattern]:
    """ADL and RML: the only form in which lists pass from MSNP13 on."""
    initial, entries = list_entries(event.payload)
    patterns: list[Pattern] = []
    # What the server says unasked is a change, though it is marked as the initial list is.
    listed = initial and event.transaction != 0 and event.verb == "ADL"
    if listed:
        patterns.append(_contacts(event, own, "list", count=len(entries)))
    for contact, bits in entries:
        if event.verb == "RML":
            action = "remove"
        else:
            action = "list" if listed else "block" if bits & 4 else "add"
        patterns.append(_contacts(event, own, action, contact, lists_of_bits(bits)))
    return patterns
