"""Runs a command; says for each connection whether every byte of it was seen.

sudo python examples/all-seen.py curl http://127.0.0.1:8000/
"""

import sys

import streamtap


def main(command: list[str]) -> int:
    incomplete = 0
    with streamtap.monitor(command=command, content="full") as records:
        for record in records:
            body = record.body
            if isinstance(body, streamtap.FlowClosed) and record.flow:
                incomplete += body.complete is not True
                total = (body.sent_total or 0) + (body.received_total or 0)
                verdict = "complete" if body.complete else f"missing: {body.missing_ranges}"
                print(f"{record.flow.remote}  {total} bytes  {verdict}")
    return 1 if incomplete else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
