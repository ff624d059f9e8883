"""The messages between people that a command and its descendants exchange.

sudo python examples/messages.py python3 -m streamtap.demo
"""

import sys
from datetime import datetime

import streamtap
from streamtap.patterns import Message


def main(command: list[str]) -> int:
    with streamtap.monitor(command=command, flags=["peer_to_peer"]) as records:
        for record in records:
            body = record.body
            if isinstance(body, Message):
                when = datetime.fromtimestamp(record.time_ns / 1e9).strftime("%H:%M:%S")
                people = ", ".join(body.recipients)
                print(f"{when} {body.sender} -> {people}: {body.kind}, {body.size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
