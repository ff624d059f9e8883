"""The recorders as the keeper has them."""

import fcntl
import os
import resource
import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from streamtap.service import recording
from streamtap.service.recorder import MAX_MESSAGE, Order, Record

HIGH = 1500  # more descriptors than `select` can be asked about


def test_orders_wait_for_a_recorder_however_many_descriptors_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 100), hard))
    ends: list[socket.socket] = []

    def start(argv: Sequence[str], *, pass_fds: Sequence[int], **_: Any) -> SimpleNamespace:
        ends.append(socket.socket(fileno=os.dup(pass_fds[0])))
        return SimpleNamespace()

    monkeypatch.setattr("streamtap.service.recording.subprocess.Popen", start)
    recorder = recording._Recorder(os.getuid(), "somebody")
    try:
        high = fcntl.fcntl(recorder.link, fcntl.F_DUPFD_CLOEXEC, HIGH)
        recorder.link.close()
        recorder.link = socket.socket(fileno=high)
        recorder.link.setblocking(False)
        orders = 1
        while not recorder.waiting:
            recorder.order(Order(record=Record(f"session-{orders}", ("/tmp/x.jsonl",), 1, 1)))
            orders += 1
        recorder.push(0.01)
        assert recorder.waiting == 1
        taken = 0
        while taken < orders:
            assert ends[0].recv(MAX_MESSAGE)
            taken += 1
            recorder.push(0.01)
        assert not recorder.waiting
    finally:
        recorder.close()
        ends[0].close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
