"""The tables of a recording in SQLite, and what is counted in them.

The file format is a contract with those who query it: `docs/reference/outputs.md`. A change that
old queries would notice takes a new `VERSION`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from streamtap.events import Body, tag_of
from streamtap.trace.jsonlines import clean_text

APPLICATION_ID = 0x53545450  # "STTP" in the header of the file tells that it is ours
VERSION = 2  # PRAGMA user_version; files of version 1 say 0, and have a view `conversations`
LATEST = 2**63 - 1  # what an INTEGER holds; damaged captures know later times

TABLES = (
    *("records", "flows", "conversations", "participants", "conversation_flows", "recording"),
)
SCHEMA = f"""
CREATE TABLE records (
  number INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL,
  provider TEXT NOT NULL, flag TEXT NOT NULL, level TEXT NOT NULL, event TEXT NOT NULL,
  flow TEXT, direction TEXT, "offset" INTEGER, length INTEGER, conversation TEXT,
  body TEXT NOT NULL
);
CREATE TABLE flows (
  flow TEXT PRIMARY KEY,
  path TEXT, pid INTEGER, comm TEXT, uid INTEGER, cgroup TEXT, filter TEXT,
  local TEXT NOT NULL, remote TEXT NOT NULL, role TEXT NOT NULL, peer TEXT,
  opened_ns INTEGER, midstream INTEGER,
  closed_ns INTEGER, reason TEXT, sent INTEGER, received INTEGER, missing INTEGER, complete INTEGER
) WITHOUT ROWID;
CREATE TABLE conversations (
  conversation TEXT PRIMARY KEY, protocol TEXT, service TEXT,
  first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL,
  records INTEGER NOT NULL, flows INTEGER NOT NULL,
  messages INTEGER NOT NULL, bytes INTEGER NOT NULL, files INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE participants (
  conversation TEXT NOT NULL, account TEXT NOT NULL,
  first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL,
  messages INTEGER NOT NULL, bytes INTEGER NOT NULL, received INTEGER NOT NULL,
  PRIMARY KEY (conversation, account)
) WITHOUT ROWID;
CREATE TABLE conversation_flows (
  conversation TEXT NOT NULL, flow TEXT NOT NULL, PRIMARY KEY (conversation, flow)
) WITHOUT ROWID;
CREATE TABLE recording (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX records_time ON records (time_ns);
CREATE INDEX records_event ON records (event);
CREATE INDEX records_flow ON records (flow, direction, "offset");
CREATE INDEX records_conversation ON records (conversation) WHERE conversation IS NOT NULL;
CREATE INDEX conversations_first ON conversations (first_ns);
CREATE INDEX participants_account ON participants (account);
CREATE INDEX conversation_flows_flow ON conversation_flows (flow);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

RECORD = f"INSERT INTO records VALUES ({', '.join('?' * 12)})"
FLOW = f"""INSERT INTO flows VALUES ({", ".join("?" * 11)}{", NULL" * 8})
  ON CONFLICT (flow) DO UPDATE SET path = excluded.path, pid = excluded.pid, comm = excluded.comm,
  uid = excluded.uid, cgroup = excluded.cgroup, filter = excluded.filter, peer = excluded.peer"""
OPENED = "UPDATE flows SET opened_ns = ?, midstream = ? WHERE flow = ?"
CLOSED = """UPDATE flows SET closed_ns = ?, reason = ?, sent = ?, received = ?, missing = ?,
  complete = ? WHERE flow = ?"""
LINK = "INSERT OR IGNORE INTO conversation_flows VALUES (?, ?)"
_SPAN = "first_ns = min(first_ns, excluded.first_ns), last_ns = max(last_ns, excluded.last_ns)"
CONVERSATION = f"""INSERT INTO conversations VALUES ({", ".join("?" * 10)})
  ON CONFLICT (conversation) DO UPDATE SET {_SPAN},
  protocol = coalesce(protocol, excluded.protocol), service = coalesce(service, excluded.service),
  records = records + excluded.records, flows = flows + excluded.flows,
  messages = messages + excluded.messages, bytes = bytes + excluded.bytes,
  files = files + excluded.files"""
PARTICIPANT = f"""INSERT INTO participants VALUES ({", ".join("?" * 7)})
  ON CONFLICT (conversation, account) DO UPDATE SET {_SPAN},
  messages = messages + excluded.messages, bytes = bytes + excluded.bytes,
  received = received + excluded.received"""

Row = tuple[str | int | None, ...]

# Fields of the patterns of a conversation that name who takes part in it.
_PEOPLE: dict[str, tuple[str, ...]] = {
    "im.message": ("sender", "recipients"),
    "im.file": ("sender", "recipients"),
    "im.media": ("sender", "recipients"),
    "im.invite": ("by",),
    "im.join": ("account", "participants"),
    "im.leave": ("account", "participants"),
    "im.direct": ("account",),
}
_SIGNALS = frozenset({"typing", "control"})  # kinds of messages that say nothing by themselves


@dataclass
class _Person:
    """What is added to a participant's row."""

    first_ns: int
    last_ns: int
    messages: int = 0
    bytes: int = 0
    received: int = 0


@dataclass
class Talk:
    """What some records add to the rows of one conversation; flows: those that it may not be known
    to be on."""

    first_ns: int
    last_ns: int
    protocol: str | None = None
    service: str | None = None
    records: int = 0
    messages: int = 0
    bytes: int = 0
    files: int = 0
    flows: set[str] = field(default_factory=set)
    people: dict[str, _Person] = field(default_factory=dict)

    def add(self, time_ns: int, body: Body) -> None:
        tag = tag_of(body)
        self.first_ns = min(self.first_ns, time_ns)
        self.last_ns = max(self.last_ns, time_ns)
        self.records += 1
        self.protocol = self.protocol or _text(body, "protocol")
        if tag == "im.connect":
            self.service = self.service or _text(body, "service")
        for name in _PEOPLE.get(tag, ()):
            for account in _accounts(body, name):
                self._meet(account, time_ns)
        if tag == "im.message" and getattr(body, "kind", None) not in _SIGNALS:
            self._count(body)
        elif tag == "im.file" and getattr(body, "action", None) == "offer":
            self.files += 1

    def _meet(self, account: str, time_ns: int) -> None:
        person = self.people.get(account)
        if person is None:
            self.people[account] = _Person(time_ns, time_ns)
        else:
            person.first_ns = min(person.first_ns, time_ns)
            person.last_ns = max(person.last_ns, time_ns)

    def _count(self, body: Body) -> None:
        size = getattr(body, "size", 0)
        self.messages += 1
        self.bytes += size
        for account in _accounts(body, "sender"):
            self.people[account].messages += 1
            self.people[account].bytes += size
        for account in set(_accounts(body, "recipients")):
            self.people[account].received += 1

    def row(self, name: str, flows: int) -> Row:
        """Of the table `conversations`; flows: how many of them are new."""
        counts = (self.records, flows, self.messages, self.bytes, self.files)
        return (name, self.protocol, self.service, self.first_ns, self.last_ns, *counts)

    def rows(self, name: str) -> Iterator[Row]:
        """Of the table `participants`."""
        for account, person in self.people.items():
            times = (person.first_ns, person.last_ns)
            yield (name, account, *times, person.messages, person.bytes, person.received)


def _text(body: Body, name: str) -> str | None:
    value = getattr(body, name, None)
    return clean_text(value) if isinstance(value, str) and value else None


def _accounts(body: Body, name: str) -> Iterator[str]:
    value = getattr(body, name, None)
    for account in value if isinstance(value, tuple) else (value,):
        if isinstance(account, str) and account:
            yield clean_text(account)
