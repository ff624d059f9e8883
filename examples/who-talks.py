"""Who does this program talk to, and how much? Ends with the command, or with Ctrl-C.

sudo python examples/who-talks.py /usr/bin/curl
sudo python examples/who-talks.py -- curl http://127.0.0.1:8000/
"""

import sys
from collections import Counter

import streamtap


def main(words: list[str]) -> int:
    scopes, command = words, []
    if "--" in words:
        scopes, command = words[: words.index("--")], words[words.index("--") + 1 :]
    sent: Counter[tuple[str, str]] = Counter()
    received: Counter[tuple[str, str]] = Counter()
    try:
        with streamtap.monitor(*scopes, command=command, flags=["flow_established"]) as records:
            for record in records:
                body, flow = record.body, record.flow
                if isinstance(body, streamtap.FlowClosed) and flow and flow.app:
                    pair = (flow.app.comm, flow.remote)
                    sent[pair] += body.sent_total or 0
                    received[pair] += body.received_total or 0
    except KeyboardInterrupt:
        pass
    except streamtap.StreamtapError as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
        return error.exit_code
    for program, remote in sent:
        pair = program, remote
        print(f"{program:15} {remote:25} sent {sent[pair]:9} received {received[pair]:9}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
