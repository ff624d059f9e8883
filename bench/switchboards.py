"""MSN switchboard sessions, as bytes: someone signs in, others join, they talk, they leave."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

Said = tuple[int, bytes]  # direction, a command with its payload

MESSAGES = (70, 190)  # of a session, its commands not counted
_TEXTS = 4000  # to choose from
_CAPABILITIES = 1342472230
_WORDS = (
    "yes no maybe later tonight fika train late coffee the a is that you we they photo ball mum "
    "work school homework really lol brb ok hej film seen meet station at nine see"
)


class Texts(NamedTuple):
    """Payloads with the length before them, as both ways of a MSG end; typing controls last."""

    said: Sequence[bytes]
    typing: Sequence[bytes]


def texts(random: Random) -> Texts:
    head = (
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=UTF-8\r\n"
        "X-MMS-IM-Format: FN=Arial; EF=; CO=0; CS=0; PF=22\r\n\r\n"
    )
    words = _WORDS.split()
    said = []
    for _ in range(_TEXTS):
        count = min(int(random.expovariate(1 / 9)) + 1, 200)
        said.append(_counted(head + " ".join(random.choices(words, k=count))))
    typing = [
        _counted(
            "MIME-Version: 1.0\r\nContent-Type: text/x-msmsgscontrol\r\n"
            f"TypingUser: {account(user)}\r\n\r\n\r\n"
        )
        for user in range(1000)
    ]
    return Texts(said, typing)


def _counted(payload: str) -> bytes:
    data = payload.encode()
    return b"%d\r\n%b" % (len(data), data)


def account(user: int) -> str:
    return f"user{user}@example.com"


def session(number: int, user: int, users: int, known: Texts, random: Random) -> Iterator[Said]:
    """One conversation of `user`, who has called or was called; sometimes with a third."""
    me = account(user)
    count = 2 if random.random() < 0.1 else 1
    others = [(user + step) % users for step in random.sample(range(1, users), count)]
    peers = [f"{account(other)} User{other}".encode() for other in others]
    cookie = f"{random.getrandbits(31)}.{random.getrandbits(31)}"
    transaction = 1
    if number % 2:
        yield 0, f"ANS 1 {me} {cookie} {number}\r\n".encode()
        for index, peer in enumerate(peers, 1):
            place = f"{index} {len(peers)}".encode()
            yield 1, b"IRO 1 %b %b %d\r\n" % (place, peer, _CAPABILITIES)
        yield 1, b"ANS 1 OK\r\n"
    else:
        yield 0, f"USR 1 {me} {cookie}\r\n".encode()
        yield 1, f"USR 1 OK {me} User{user}\r\n".encode()
        for peer in peers:
            transaction += 1
            yield 0, b"CAL %d %b\r\n" % (transaction, peer.split()[0])
            yield 1, b"CAL %d RINGING %d\r\n" % (transaction, number)
            yield 1, b"JOI %b %d\r\n" % (peer, _CAPABILITIES)
    my_typing = known.typing[user % len(known.typing)]
    for _ in range(random.randint(*MESSAGES)):
        chance = random.random()
        text = known.said[int(random.random() * len(known.said))]
        if chance < 0.45:
            transaction += 1
            yield 0, b"MSG %d N %b" % (transaction, text)
        elif chance < 0.50:
            transaction += 1
            yield 0, b"MSG %d A %b" % (transaction, text)
            yield 1, b"ACK %d\r\n" % transaction
        elif chance < 0.53:
            transaction += 1
            yield 0, b"MSG %d U %b" % (transaction, my_typing)
        elif chance < 0.56:
            turn = int(random.random() * len(peers))
            yield 1, b"MSG %b %b" % (peers[turn], known.typing[others[turn] % len(known.typing)])
        else:
            yield 1, b"MSG %b %b" % (peers[int(random.random() * len(peers))], text)
    for peer in peers:
        yield 1, b"BYE %b\r\n" % peer.split()[0]
    yield 0, b"OUT\r\n"
