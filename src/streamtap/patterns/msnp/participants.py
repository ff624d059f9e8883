"""Who takes part in a switchboard session, besides the user at the client's end of the flow."""

from streamtap.patterns.msnp.words import ACCOUNT, ENDPOINT

PEOPLE = 128  # of one session; more are not told apart, for each join tells all of them
ENDPOINTS = 64  # of one person


class Participants:
    """People and the endpoints that each of them is signed in at: one person is counted once.

    recipients: everybody but the user, in order.
    """

    __slots__ = ("_endpoints", "_received", "recipients")

    def __init__(self) -> None:
        self._endpoints: dict[str, set[str]] = {}  # "" is the account as such
        self._received: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.recipients: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._endpoints)

    def __contains__(self, account: str) -> bool:
        return account in self._endpoints

    def with_user(self, user: str | None) -> tuple[str, ...]:
        """All of them and the user, in order."""
        return tuple(sorted({*self._endpoints, user} if user else self._endpoints))

    def join(self, account: str, endpoint: str) -> bool:
        """Whether a person came who was not there; else it is one more endpoint."""
        known = self._endpoints.get(account)
        endpoint = endpoint[:ENDPOINT]
        if known is not None:
            if len(known) < ENDPOINTS:
                known.add(endpoint)
            return False
        if len(self._endpoints) >= PEOPLE:
            return False
        self._endpoints[account] = {endpoint}
        self._changed()
        return True

    def leave(self, account: str, endpoint: str) -> bool:
        """Whether the last of a known person went."""
        endpoints = self._endpoints[account]
        endpoints.discard(endpoint[:ENDPOINT])
        if endpoints and endpoint:  # signed in elsewhere still
            return False
        del self._endpoints[account]
        self._changed()
        return True

    def _changed(self) -> None:
        self.recipients = tuple(sorted(self._endpoints))
        self._received.clear()

    def received(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        """What `remember` was told of this sender; forgotten when somebody comes or goes."""
        return self._received.get(text)

    def remember(self, text: str, sender: str, user: str | None) -> tuple[str, tuple[str, ...]]:
        """Who sent a message that the user received, and to whom."""
        others = {account for account in self._endpoints if account != sender}
        known = sender, tuple(sorted({*others, user} if user and user != sender else others))
        if len(self._received) < PEOPLE and len(text) < 2 * ACCOUNT:
            self._received[text] = known
        return known
