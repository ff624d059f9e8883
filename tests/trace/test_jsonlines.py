"""JSON lines: the contract, and the way back."""

import importlib
import json
import pkgutil
from typing import ClassVar

import msgspec
import pytest

import streamtap.protocols
from helpers.records import (
    ABSTRACT,
    CAPTURED,
    FLOW,
    KINDS,
    PAIRED,
    PIDGIN,
    Kept,
    body,
    every_kind,
    message,
    opened,
    record,
)
from streamtap.events import LEVELS, PROVIDERS, Body, Event, FlowInfo, Place, Record, tag_of
from streamtap.trace.jsonlines import ENVELOPE, JsonLines, RecordDecoder, decode, numbered
from streamtap.trace.sink import Output

BODIES = [kind for kind in KINDS.values() if kind not in ABSTRACT]


class Blob(Event, frozen=True, kw_only=True, tag="test.blob"):
    payload: bytes = b""


def lines(*records: Record) -> list[str]:
    kept = Kept()
    sink = JsonLines(Output(kept))
    for number, each in enumerate(records, 1):
        sink.write(number, [each])
    sink.close()
    return kept.lines


def test_the_line_of_a_pattern_is_the_contract_to_the_letter() -> None:
    said = message(conversation=None, pattern="client-to-client")
    assert lines(record(said, "received")) == [
        '{"number":1,"time_ns":1227567676043000900,"provider":"notify",'
        '"flag":"peer_to_peer","level":"info","event":"im.message",'
        '"app":{"path":"/usr/bin/pidgin","pid":4121,"comm":"pidgin","uid":1000,'
        '"cgroup":"user.slice/pidgin","filter":"chat"},'
        '"flow":"12","local":"10.0.0.1:50000","remote":"1.2.3.4:1863","role":"client",'
        '"direction":"received","offset":5121,"length":1448,'
        '"protocol":"msnp","pattern":"client-to-client","sender":"bob@example.com",'
        '"recipients":["alice@example.com"],"kind":"text","content_type":"text/plain","size":11}'
    ]


@pytest.mark.parametrize("first", [1, 997, 999, 1000, 1001, 9_999_990, 10**12 - 3])
def test_numbers_are_put_before_lines_as_they_count(first: int) -> None:
    rests = [b'"at":%d}\n' % at for at in range(2100)]
    told = numbered(first, rests).splitlines()
    assert told == [b'{"number":%d,"at":%d}' % (first + at, at) for at in range(2100)]
    assert numbered(first, []) == b""


def test_in_captures_the_application_is_null() -> None:
    assert lines(record(opened(), flow=CAPTURED)) == [
        '{"number":1,"time_ns":1227567676043000900,"provider":"monitor",'
        '"flag":"flow_established","level":"info","event":"flow.opened","app":null,'
        '"flow":"3","local":"[::1]:50000","remote":"[::1]:80","role":"client",'
        '"midstream":false}'
    ]


def test_a_record_that_concerns_no_flow_names_none() -> None:
    assert lines(record(body("state.changed", enabled=True), flow=None)) == [
        '{"number":1,"time_ns":1227567676043000900,"provider":"monitor","flag":"state_change",'
        '"level":"info","event":"state.changed","enabled":true}'
    ]


def test_the_other_end_in_scope_is_the_peer() -> None:
    [line] = lines(record(opened(), flow=PAIRED))
    assert json.loads(line)["peer"]["comm"] == "server"
    assert json.loads(line)["app"]["comm"] == "pidgin"


def test_a_gap_tells_direction_offset_and_length() -> None:
    told = json.loads(lines(record(body("stream.gap", cause="lost"), "sent"))[0])
    assert (told["direction"], told["offset"], told["length"]) == ("sent", 5121, 1448)
    assert (told["provider"], told["flag"], told["level"]) == ("stream", "gap", "warn")


def test_every_record_has_its_place_and_its_keys_in_order() -> None:
    order = ["number", "time_ns", "provider", "flag", "level", "event"]
    order += ["app", "flow", "local", "remote", "role", "direction", "offset", "length"]
    for each, line in zip(
        [each for each, _ in every_kind()],
        lines(*(each for each, _ in every_kind())),
        strict=True,
    ):
        told = json.loads(line)
        assert [key for key in told if key in order] == [key for key in order if key in told]
        assert list(told)[:6] == order[:6]
        assert (told["provider"], told["flag"], told["level"]) == each.body.place()
        assert told["flag"] in PROVIDERS[told["provider"]]
        assert told["level"] in LEVELS
        assert told["event"] == tag_of(each.body)


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        (message(pattern="client-to-client"), "peer_to_peer"),
        (message(pattern="client-to-server"), "client_server"),
        (body("data", bytes=1, protocol="opaque"), "unknown"),
        (body("data", bytes=1, protocol="http"), "client_server"),
    ],
)
def test_what_a_pattern_says_decides_its_flag(given: Body, flag: str) -> None:
    assert json.loads(lines(record(given, "sent"))[0])["flag"] == flag


def test_one_kind_of_body_may_come_under_several_flags() -> None:
    class Either(Body, frozen=True, kw_only=True, tag="test.either"):
        flag: ClassVar[str] = "unknown"
        between: ClassVar[Place] = ("notify", "peer_to_peer", "verbose")
        between_people: bool

        def place(self) -> Place:
            return self.between if self.between_people else self.home

    told = [
        json.loads(line)
        for line in lines(*(record(Either(between_people=way)) for way in (True, False, True)))
    ]
    assert [each["flag"] for each in told] == ["peer_to_peer", "unknown", "peer_to_peer"]


def test_every_record_can_be_read_back_as_it_was() -> None:
    decoder = RecordDecoder(BODIES)
    records = [each for each, _ in every_kind()] + [record(opened(), flow=PAIRED)]
    for number, (each, line) in enumerate(zip(records, lines(*records), strict=True), 1):
        assert decoder.decode(line.encode()) == msgspec.structs.replace(each, number=number)


def test_bytes_go_as_base64_and_come_back() -> None:
    blob = record(Blob(offset=0, length=3, payload=b"\x00\xff\n"), "sent")
    [line] = lines(blob)
    assert json.loads(line)["payload"] == "AP8K"
    assert decode(line.encode(), [Blob]).body == blob.body


def test_a_file_name_that_is_not_utf_8_is_escaped() -> None:
    odd = b"/opt/caf\xe9".decode("utf-8", "surrogateescape")
    app = msgspec.structs.replace(PIDGIN, path=odd)
    flow = msgspec.structs.replace(FLOW, app=app)
    [line] = lines(record(message(sender=odd), "sent", flow))
    told = json.loads(line)
    assert told["app"]["path"] == told["sender"] == "/opt/caf\\udce9"


def test_flows_are_not_mixed_up_when_there_are_more_than_are_remembered() -> None:
    def flow(number: int) -> FlowInfo:
        return msgspec.structs.replace(FLOW, flow=str(number))

    # Two rounds, and every flow a new object: identities are used again.
    numbers = [*range(5000), *range(5000)]
    told = lines(*(record(opened(), flow=flow(number)) for number in numbers))
    assert [json.loads(line)["flow"] for line in told] == [str(number) for number in numbers]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"null",
        b'{"number":1',
        b'{"number":1,"time_ns":2,"event":"no.such"}',
        b'{"number":1,"time_ns":2,"event":"flow.opened"}',
        b'{"number":1,"time_ns":2,"event":"flow.opened","midstream":false,"direction":"up"}',
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_record_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(line, BODIES)


def test_a_body_whose_field_the_envelope_would_hide_is_refused() -> None:
    class Clash(Body, frozen=True, kw_only=True, tag="test.clash"):
        flow: str

    with pytest.raises(TypeError, match="Clash has a field 'flow'"):
        RecordDecoder([Clash])


def test_no_event_of_any_protocol_clashes_with_the_envelope_or_another_event() -> None:
    for module in pkgutil.walk_packages(streamtap.protocols.__path__, "streamtap.protocols."):
        importlib.import_module(module.name)
    found: dict[str, type[Body]] = {}
    todo: list[type[Body]] = [Body]
    while todo:
        todo += (kind := todo.pop()).__subclasses__()
        if not kind.__module__.startswith("streamtap.") or kind in ABSTRACT:
            continue
        assert not ENVELOPE & set(kind.__struct_encode_fields__), kind
        tag = str(kind.__struct_config__.tag)
        assert tag not in found, (kind, found[tag])
        found[tag] = kind
    RecordDecoder(found.values())
