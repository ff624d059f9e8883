"""What may be said on the control socket, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtap.errors import AlreadyExists, NotFound, PermissionMissing, StreamtapError
from streamtap.service.bounds import Bounds
from streamtap.service.paths import Paths
from streamtap.service.protocol import (
    MAX_FILTERS,
    MAX_LAST_S,
    MAX_LINE,
    MAX_REPLY,
    MAX_WORDS,
    REQUESTS,
    AddFilters,
    Attach,
    Failure,
    NewFilter,
    SessionInfo,
    Status,
    StatusReply,
    TraceStart,
)
from streamtap.service.registry import Registry
from streamtap.service.state import Recorded
from streamtap.service.wire import (
    VERBS,
    Malformed,
    decode_reply,
    decode_request,
    encode_failure,
    encode_request,
    encode_result,
    error_of,
    failure_of,
    told,
)

REFERENCE = Path(__file__).parent.parent.parent / "docs" / "reference" / "control-socket.md"
CURL = NewFilter(kind="exe", given="curl", path="/usr/bin/curl")
START = TraceStart(id=3, name="chat", outputs=("/var/tmp/chat.jsonl",))
WRONG = {
    "no JSON": (b"hello", None),
    "nothing": (b"", None),
    "no object": (b"[1, 2]", None),
    "bytes that are no text": (b'{"id":1,"verb":"\xff"}', None),
    "deep nesting": (b'{"id":1,"x":' + b"[" * 30_000, None),
    "an id that is no number": (b'{"id":"1","verb":"status"}', None),
    "a negative id": (b'{"id":-1,"verb":"status"}', -1),
    "no verb": (b'{"id":1}', 1),
    "an unknown verb": (b'{"id":1,"verb":"observe"}', 1),
    "a misspelt field": (b'{"id":1,"verb":"enable","nmae":"curl"}', 1),
    "a field of another verb": (b'{"id":1,"verb":"status","name":"curl"}', 1),
    "no filters": (b'{"id":1,"verb":"add_filters"}', 1),
    "a filter by launch": (
        b'{"id":1,"verb":"add_filters","filters":[{"kind":"launch","given":"a"}]}',
        1,
    ),
    "an unknown content": (b'{"id":1,"verb":"attach","content":"all"}', 1),
    "a time that is no number": (b'{"id":1,"verb":"attach","last_s":NaN}', None),
    "a time before": (b'{"id":1,"verb":"attach","last_s":-1}', 1),
    "a session whose name leaves its folder": (
        b'{"id":1,"verb":"trace_stop","name":"../passwd"}',
        1,
    ),
    "a name with a line end": (b'{"id":1,"verb":"trace_stop","name":"a\\n"}', 1),
    "a name without end": (
        b'{"id":1,"verb":"enable","name":"' + b"n" * 300 + b'"}',
        1,
    ),
    "too many words": (
        json.dumps({"id": 1, "verb": "attach", "selection": ["all"] * 65}).encode(),
        1,
    ),
    "a recording without limit": (
        b'{"id":1,"verb":"trace_start","name":"a","outputs":["/a.jsonl"],"limit_bytes":0}',
        1,
    ),
}


@pytest.mark.parametrize(("line", "number"), WRONG.values(), ids=WRONG)
def test_what_is_no_request_is_refused_and_its_number_is_known_where_it_can_be(
    line: bytes, number: int | None
) -> None:
    with pytest.raises(Malformed) as refused:
        decode_request(line)
    head = refused.value.head
    assert (head.id if head is not None else None) == number
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "a/b"}, "name: letters, digits"),
        ({"limit_bytes": 1}, "no recording of 1 bytes"),
        ({"keep": 99999}, "99999 files cannot be kept"),
        ({"filters": ("",)}, "filters[0]: at least 1 letter"),
        ({"outputs": ("/a.jsonl", "/a.jsonl")}, "named twice"),
        ({"outputs": ("/a.txt",)}, "no output"),
    ],
    ids=lambda one: str(one),
)
def test_without_a_service_no_session_is_stored_that_it_would_not_take(
    fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    wanted = Recorded(name="a", selection=(), outputs=("/a.jsonl",))
    paths = Paths(tmp_path / "state", tmp_path / "run", tmp_path / "bpf")
    with Registry(paths) as registry:
        with pytest.raises(ValueError, match=re.escape(reason)):
            registry.add_session(msgspec.structs.replace(wanted, **fields))
        assert not registry.recorded


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_malformed(line: bytes) -> None:
    with pytest.raises(Malformed):
        decode_request(line)


@pytest.mark.parametrize(
    "request_",
    [Status(id=1, version="0.1.0"), AddFilters(filters=(CURL,), temporary=True), START, Attach()],
    ids=lambda one: type(one).__name__,
)
def test_a_request_is_read_back_as_it_was_written(request_: msgspec.Struct) -> None:
    line = encode_request(request_)  # type: ignore[arg-type]
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_request(line) == request_


def test_every_request_has_a_verb_of_its_own() -> None:
    assert len(set(VERBS)) == len(REQUESTS)


def test_a_request_that_is_too_long_is_refused_before_it_is_sent() -> None:
    filters = tuple(NewFilter(kind="cmdline", given="x" * 4000) for _ in range(20))
    with pytest.raises(ValueError, match=str(MAX_LINE)):
        encode_request(AddFilters(filters=filters))


def test_a_file_name_that_is_no_text_can_be_sent() -> None:
    asked = AddFilters(filters=(NewFilter(kind="exe", given="/opt/\udcff"),))
    read = decode_request(encode_request(asked))
    assert isinstance(read, AddFilters)
    assert read.filters[0].given == "/opt/\\udcff"


def test_results_and_failures_are_read_back() -> None:
    reply = decode_reply(encode_result(7, "0.1.0", StatusReply(version="0.1.0", pid=9)))
    assert (reply.id, reply.version, reply.error) == (7, "0.1.0", None)
    assert msgspec.json.decode(reply.result, type=StatusReply).pid == 9
    failure = Failure("no filter curl", "see: streamtap list", 6)
    assert decode_reply(encode_failure(None, "0.1.0", failure)).error == failure


def test_a_reply_that_is_too_long_is_an_error() -> None:
    reply = decode_reply(encode_result(1, "0.1.0", "x" * MAX_REPLY))
    assert reply.error is not None
    assert str(MAX_REPLY) in reply.error.message


@pytest.mark.parametrize("error", [NotFound("a", "b"), AlreadyExists("a"), PermissionMissing("a")])
def test_an_error_is_of_the_same_class_on_the_other_side(error: StreamtapError) -> None:
    raised = error_of(failure_of(error))
    assert type(raised) is type(error)
    assert (str(raised), raised.hint) == (str(error), error.hint)


def test_wrong_arguments_stay_wrong_arguments_and_defects_tell_no_details() -> None:
    assert isinstance(error_of(failure_of(ValueError("no flag"))), ValueError)
    assert "secret" not in failure_of(RuntimeError("secret")).message


def test_an_exit_code_without_a_class_is_kept() -> None:
    raised = error_of(Failure("odd", code=8))
    assert isinstance(raised, StreamtapError)
    assert raised.exit_code == 8


def test_a_record_of_a_request_names_what_it_concerns_and_nothing_else() -> None:
    assert told(Status()) == "status"
    assert told(AddFilters(filters=(CURL,))) == "add_filters exe curl"
    assert told(Attach(content="full", filters=("a", "b"))) == "attach content full, a, b"
    assert told(START) == "trace_start chat, content meta"
    assert "\x1b" not in told(AddFilters(filters=(NewFilter(kind="comm", given="\x1b[2J"),)))


@pytest.mark.parametrize("path", ["chat.jsonl", "/var/tmp/chat.txt", "/var/tmp/a\0.jsonl"])
def test_a_recording_goes_to_an_absolute_path_of_a_known_kind(path: str) -> None:
    asked = msgspec.structs.replace(START, outputs=(path,))
    with pytest.raises(ValueError, match=r"no absolute path|no output"):
        asked.recorded(0, "root", 1)


def test_a_filter_is_resolved_by_its_whole_path_and_keeps_what_was_written() -> None:
    scope = NewFilter(kind="exe", given="env", path="/usr/bin/env").resolve()
    assert (scope.path, scope.given) == ("/usr/bin/env", "env")


def test_the_reference_tells_every_verb_with_its_fields_and_what_comes_back() -> None:
    text = REFERENCE.read_text()
    for kind in REQUESTS:
        verb = str(kind.__struct_config__.tag)
        assert f"`{verb}`" in text
        for name in set(kind.__struct_fields__) - {"id", "version"}:
            rows = [row for row in text.splitlines() if row.startswith("|") and f"`{verb}`" in row]
            assert any(f"`{name}`" in row for row in rows), f"{verb} {name}"
    for result in (StatusReply, SessionInfo):
        for name in result.__struct_fields__:
            assert f"`{name}`" in text, f"{result.__name__} {name}"


def test_the_limits_that_the_reference_tells_are_those_in_force() -> None:
    text, bounds = REFERENCE.read_text(), Bounds()
    for row in (
        f"| a request | {MAX_LINE >> 10} KiB |",
        f"| a reply | {MAX_REPLY >> 20} MiB |",
        f"| connections of one user | {bounds.per_user}; of root {bounds.root} |",
        f"| connections of all users but root | {bounds.connections} |",
        f"| requests of one user | {bounds.rate:.0f} a second, {bounds.burst} at once |",
        f"| requests of root | {bounds.root_rate:.0f} a second, {bounds.root_burst} at once |",
        f"| time without a whole request | {bounds.idle_s:.0f} s, ",
        f"| time in which a waiting reply is not read at all | {bounds.stall_s:.0f} s |",
        f"| replies that wait for one user | {bounds.pending >> 20} MiB |",
        f"| filters in a request | {MAX_FILTERS} |",
        f"| words of a selection | {MAX_WORDS} |",
        f"| `last_s` | {MAX_LAST_S:.0f} s |",
    ):
        assert row in text
