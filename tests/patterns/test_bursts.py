"""Plain send and receive: what is one burst, by the times of the data alone."""

from streamtap.model import Content, Direction, Endpoint, Flow, Role
from streamtap.patterns import Conversations, Data, Meaning
from streamtap.protocols.http import HttpBody, HttpRequest, HttpResponse
from streamtap.protocols.opaque import OpaqueData

C, S = Direction
FLOW = Flow(7, None, Endpoint("10.0.0.1", 5000), Endpoint("1.2.3.4", 99), Role.CLIENT, 0)
MS = 1_000_000


def bursts(
    arrivals: list[tuple[int, Direction, bytes]], content: Content = Content.META
) -> list[tuple[int, str, int, int]]:
    """(time in ms, direction, offset, bytes) of the bursts that arrivals give."""
    return [
        (meaning.time_ns // MS, meaning.direction.name, meaning.pattern.offset, data.bytes)
        for meaning in meanings(arrivals, content)
        if isinstance(data := meaning.pattern, Data)
    ]


def meanings(
    arrivals: list[tuple[int, Direction, bytes]], content: Content = Content.META
) -> list[Meaning]:
    conversations = Conversations(content)
    offsets = [0, 0]
    found: list[Meaning] = []
    for ms, direction, data in arrivals:
        event = OpaqueData(offset=offsets[direction], length=len(data))
        offsets[direction] += len(data)
        shown = data if content is Content.FULL else None
        found += conversations.interpret(FLOW, direction, ms * MS, event, shown)
    return [*found, *conversations.closed(FLOW, 10**18)]


def test_what_comes_without_a_pause_is_one_burst_with_the_time_of_its_last_bytes() -> None:
    assert bursts([(0, C, b"abc"), (5, C, b"de"), (20, C, b"f")]) == [(20, "TO_SERVER", 0, 6)]


def test_a_burst_ends_where_the_direction_changes() -> None:
    assert bursts([(0, C, b"ab"), (1, S, b"c"), (2, C, b"d")]) == [
        (0, "TO_SERVER", 0, 2),
        (1, "TO_CLIENT", 0, 1),
        (2, "TO_SERVER", 2, 1),
    ]


def test_a_burst_ends_after_a_pause_of_20_ms() -> None:
    assert bursts([(0, C, b"ab"), (20, C, b"c")]) == [
        (0, "TO_SERVER", 0, 2),
        (20, "TO_SERVER", 2, 1),
    ]


def test_a_steady_stream_is_told_each_second() -> None:
    arrivals = [(ms, S, b"x") for ms in range(0, 2500, 10)]
    assert [size for _, _, _, size in bursts(arrivals)] == [100, 100, 50]


def test_a_tick_ends_what_has_paused_and_nothing_else() -> None:
    conversations = Conversations()
    conversations.interpret(FLOW, C, 0, OpaqueData(offset=0, length=5))
    assert conversations.pending
    assert not conversations.tick(19 * MS)
    (meaning,) = conversations.tick(20 * MS)
    assert (meaning.flow_id, meaning.time_ns, meaning.pattern.length) == (7, 0, 5)
    assert not conversations.pending
    assert not conversations.closed(FLOW, 30 * MS)


def test_bursts_are_the_same_however_often_time_is_told() -> None:
    arrivals = [(0, C, b"ab"), (15, C, b"c"), (40, C, b"d"), (41, S, b"e")]
    live = Conversations()
    offsets = [0, 0]
    found: list[Meaning] = []
    for ms, direction, data in arrivals:
        found += live.tick(ms * MS)
        event = OpaqueData(offset=offsets[direction], length=len(data))
        offsets[direction] += len(data)
        found += live.interpret(FLOW, direction, ms * MS, event)
    found += live.closed(FLOW, 10**18)
    assert found == meanings(arrivals)


def test_a_gap_ends_a_burst_so_that_it_has_one_place_in_the_stream() -> None:
    conversations = Conversations()
    conversations.interpret(FLOW, S, 0, OpaqueData(offset=0, length=5))
    (meaning,) = conversations.gap(FLOW, S, 1)
    assert meaning.pattern.length == 5


def test_content_is_kept_only_when_it_was_asked_for() -> None:
    arrivals = [(0, C, "naïve ".encode()), (1, C, b"text"), (50, S, b"\xff\x00")]
    first, second = (meaning.pattern for meaning in meanings(arrivals, Content.FULL))
    assert isinstance(first, Data)
    assert isinstance(second, Data)
    assert (first.content, first.content_base64) == ("naïve text", None)
    assert (second.content, second.content_base64) == (None, "/wA=")
    shown = meanings(arrivals)[0].pattern
    assert isinstance(shown, Data)
    assert shown.content is None


def test_content_is_cut_at_64_kib_even_inside_a_character() -> None:
    text = "x" + "é" * 40_000
    (meaning,) = meanings([(0, C, text.encode())], Content.FULL)
    assert isinstance(meaning.pattern, Data)
    assert meaning.pattern.bytes == 80_001
    assert meaning.pattern.content == text[:32_768]


def test_an_http_head_says_what_it_is_and_its_body_is_a_burst() -> None:
    conversations = Conversations()
    events = [
        (C, HttpRequest(offset=0, length=80, method="POST", target="/a?b=c", version="1.1")),
        (C, HttpBody(offset=80, length=20, payload_length=20, final=True)),
        (S, HttpResponse(offset=0, length=50, status=404, reason="Not Found", version="1.1")),
    ]
    found = [
        meaning.pattern
        for direction, event in events
        for meaning in conversations.interpret(FLOW, direction, 0, event)
    ]
    told = [(data.summary, data.bytes) for data in found if isinstance(data, Data)]
    assert told == [("POST /a?b=c", 80), (None, 20), ("404 Not Found", 50)]
    assert {data.place()[1] for data in found} == {"client_server"}


def test_a_burst_ends_where_the_clock_is_put_back() -> None:
    hour = 3600 * 1000
    assert bursts([(hour, C, b"ab"), (5, C, b"c"), (9, C, b"d")]) == [
        (hour, "TO_SERVER", 0, 2),
        (9, "TO_SERVER", 2, 2),
    ]
    conversations = Conversations()
    conversations.interpret(FLOW, C, hour * MS, OpaqueData(offset=0, length=5))
    assert not conversations.tick((hour + 19) * MS)
    assert len(conversations.tick(5 * MS)) == 1
    assert not conversations.pending
