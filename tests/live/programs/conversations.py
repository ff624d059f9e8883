"""Mixed traffic, every byte of which is checked where it arrives.

`conversations.py serve` prints its port and sends back what it is sent, on any number of
connections. `conversations.py talk PORT SEED LASTING PAUSE_S` holds so many connections from its
beginning to its end, and speaks on some of them in each turn; now and then it makes a short one,
one that says nothing for long, or sends a lot at once. A pause follows each turn.

Both end with their standard input. `talk` then closes everything and prints JSON: `lasting`, the
local port and the bytes each way of every connection that it held; `short`, `idle`, `bytes` in
all. It fails, with a line on standard error, at the first byte that is not as it was sent.
"""

import json
import random
import select
import selectors
import socket
import sys
import time

TIMEOUT_S = 20.0  # for any single answer
PIECE = 16 << 10  # that no socket has no room for
MESSAGE = 400
BULK = 40  # pieces of one bulk
TURNS_IDLE = 100


def serve() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(sys.stdin, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is sys.stdin:
                        return
                    assert isinstance(key.fileobj, socket.socket)
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        connection.settimeout(TIMEOUT_S)
                        selector.register(connection, selectors.EVENT_READ)
                    else:
                        _send_back(selector, key.fileobj)


def _send_back(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    try:
        data = connection.recv(64 << 10)
        connection.sendall(data)
    except ConnectionError:
        data = b""
    if not data:
        selector.unregister(connection)
        connection.close()


class Talker:
    def __init__(self, port: int, seed: int, lasting: int) -> None:
        self._address = ("127.0.0.1", port)
        self._random = random.Random(seed)
        self._sent: dict[int, int] = {}
        self._idle: list[socket.socket] = []
        self.counts = {"short": 0, "idle": 0, "bytes": 0}
        self._lasting = [self._connect() for _ in range(lasting)]

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, TIMEOUT_S)
        self._sent[connection.fileno()] = 0
        return connection

    def turn(self) -> None:
        """Something is said on several connections at once; then all answers are awaited."""
        speaking = self._random.sample(self._lasting, self._random.randint(1, len(self._lasting)))
        chance = self._random.random()
        if chance < 0.2:
            speaking.append(self._connect())
            self.counts["short"] += 1
        elif chance < 0.22:
            self._idle.append(self._connect())
            self.counts["idle"] += 1
        elif chance < 0.25:
            for _ in range(BULK):
                self._exchange(speaking[:1], PIECE)
        self._exchange(speaking, MESSAGE)
        if 0.0 <= chance < 0.2:
            self._leave(speaking[-1])
        if len(self._idle) > 8 or (self._idle and chance > 1 - 1 / TURNS_IDLE):
            self._leave(self._idle.pop(0))

    def _exchange(self, speaking: list[socket.socket], most: int) -> None:
        said = [self._random.randbytes(self._random.randint(1, most)) for _ in speaking]
        for connection, data in zip(speaking, said, strict=True):
            connection.sendall(data)
        for connection, data in zip(speaking, said, strict=True):
            came = bytearray()
            while len(came) < len(data) and (more := connection.recv(len(data) - len(came))):
                came += more
            if came != data:
                sys.exit(f"{len(data)} bytes were sent, {len(came)} came back, or others")
            self._sent[connection.fileno()] += len(data)
            self.counts["bytes"] += len(data)

    def _leave(self, connection: socket.socket) -> tuple[int, int]:
        """Its port, and the bytes that it carried each way."""
        result = connection.getsockname()[1], self._sent.pop(connection.fileno())
        connection.shutdown(socket.SHUT_WR)
        if connection.recv(1):
            sys.exit("more came back than was sent")
        connection.close()
        return result

    def close(self) -> list[tuple[int, int]]:
        for connection in self._idle:
            self._leave(connection)
        return [self._leave(connection) for connection in self._lasting]


def talk(port: int, seed: int, lasting: int, pause_s: float) -> None:
    talker = Talker(port, seed, lasting)
    print("talking", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        talker.turn()
        time.sleep(pause_s)
    print(json.dumps({"lasting": talker.close(), **talker.counts}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        talk(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
