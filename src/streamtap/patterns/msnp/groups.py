"""Circles and temporary groups: several people who talk through the notification server."""

from streamtap.patterns.links import Links
from streamtap.patterns.model import Pattern
from streamtap.patterns.msnp.membership import came, invited, went
from streamtap.patterns.msnp.participants import Participants
from streamtap.patterns.msnp.words import Routed, roster
from streamtap.protocols.msnp import MsnpCommand

NEW = "00000000-0000-0000-0000-000000000000@live.com"  # the account to which a group is published
GROUPS = 256  # of one client; more are not told apart


class Groups:
    """Who is in the groups that one client sees."""

    __slots__ = ("_created", "_links", "_people", "_scope")

    def __init__(self, scope: str, links: Links) -> None:
        self._scope = scope
        self._links = links
        self._people: dict[str, Participants] = {}
        self._created: str | None = None  # conversation of a group that has no name yet

    def conversation(self, group: str, time_ns: int) -> str:
        """The one that a group has for as long as it is spoken of."""
        if group == NEW:
            self._created = self._created or self._links.new_conversation(time_ns)
            return self._created
        key = ("group", self._scope, group)
        found = self._links.find(key, time_ns)
        conversation = found if isinstance(found, str) else self._links.new_conversation(time_ns)
        self._links.keep(key, conversation, time_ns)
        return conversation

    def named(self, group: str, time_ns: int) -> None:
        """The group that the client made is called this."""
        if self._created is not None and group != NEW:
            self._links.keep(("group", self._scope, group), self._created, time_ns)
            self._created = None

    def recipients(self, group: str, sender: str, own: str | None) -> tuple[str, ...]:
        """Everybody in it but the sender; the group itself where nobody else is known."""
        people = self._of(group)
        if sender != own and sender not in people:
            people.join(sender, "")
        found = tuple(name for name in people.with_user(own) if name != sender)
        return found or (group,)

    def published(
        self, event: MsnpCommand, time_ns: int, route: Routed, own: str | None, *, sent: bool
    ) -> list[Pattern]:
        """Who is in a group now, or whom the client asks in (PUT); who went (DEL)."""
        group = route.group
        removed = event.verb == "DEL" or event.args[:1] == ("DEL",)
        people = self._of(group)
        patterns: list[Pattern] = []
        conversation = self.conversation(group, time_ns)
        accounts = [route.member] if route.member else roster(route.body)
        for account in dict.fromkeys(accounts):
            if removed:
                if account != own and (account not in people or not people.leave(account, "")):
                    continue
                participants = people.recipients if account == own else people.with_user(own)
                patterns.append(went(event, conversation, account, participants))
            elif account == own or account in people:
                continue
            elif sent:
                patterns.append(invited(event, conversation, account, own))
            elif people.join(account, ""):
                patterns.append(came(event, conversation, account, people.with_user(own)))
        return patterns

    def seen(
        self,
        event: MsnpCommand,
        time_ns: int,
        group: str,
        account: str,
        own: str | None,
        status: str,
    ) -> list[Pattern]:
        """Somebody's state within a group: it tells who is in it, and not who is online."""
        if account in (own, group):
            return []
        people = self._of(group)
        there = status != "offline"
        if there is (account in people):
            return []
        conversation = self.conversation(group, time_ns)
        if not there:
            people.leave(account, "")
            return [went(event, conversation, account, people.with_user(own))]
        if not people.join(account, ""):
            return []
        return [came(event, conversation, account, people.with_user(own))]

    def _of(self, group: str) -> Participants:
        people = self._people.get(group)
        if people is None:
            if len(self._people) >= GROUPS:
                del self._people[next(iter(self._people))]
            people = self._people[group] = Participants()
        return people
