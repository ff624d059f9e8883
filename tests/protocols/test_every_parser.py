"""What holds for every registered parser, whatever it is fed."""

import random
from collections import deque
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.streams import Script, Step, assert_tiles, bytewise, run, split
from protocols.samples import SAMPLES
from streamtap.events import Event
from streamtap.model import Direction
from streamtap.protocols import Limits, Parser, Pool, _base, by_name, event_types, parsers

NAMES = [parser.name for parser in parsers()]
CASES = [(name, number) for name in NAMES for number in range(len(SAMPLES.get(name, ())))]
each_parser = pytest.mark.parametrize("name", NAMES)
each_sample = pytest.mark.parametrize(("name", "number"), CASES)
few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)
SMALL = Limits(line=64, headers=256, payload=256, probe=64)
FLOOD = 5_000_000
# What a parser may hold: a payload it wants to understand and a block of headers in each
# direction, and what one call brings.
PIECE = 64 * 1024
FLOODED = Limits(payload=32 * 1024, headers=16 * 1024, line=4 * 1024)
BOUND = 2 * (FLOODED.payload + FLOODED.headers + FLOODED.line + PIECE)


def sample(name: str, number: int) -> tuple[type[Parser], Script]:
    return by_name(name), SAMPLES[name][number]


def with_gaps(script: Script, draw: random.Random) -> list[Step]:
    """The script with a few stretches lost, anywhere in it."""
    steps: list[Step] = []
    for direction, data in script:
        assert isinstance(data, bytes)
        while data and draw.random() < 0.4:
            begin = draw.randrange(len(data))
            length = draw.randint(1, len(data) - begin)
            steps += [(direction, data[:begin]), (direction, length)]
            data = data[begin + length :]
        steps.append((direction, data))
    return steps


def mutated(script: Script, draw: random.Random) -> list[Step]:
    """The script with bytes changed, dropped or doubled."""
    steps: list[Step] = []
    for direction, data in script:
        assert isinstance(data, bytes)
        changed = bytearray(data)
        for _ in range(draw.randint(0, 4)):
            at = draw.randrange(len(changed) or 1)
            match draw.randrange(3):
                case 0:
                    changed[at : at + 1] = draw.randbytes(1)
                case 1:
                    del changed[at : at + draw.randint(1, 8)]
                case _:
                    changed[at:at] = changed[at : at + draw.randint(1, 30)]
        steps.append((direction, bytes(changed)))
    return steps


def begins_apart(parser: type[Parser], steps: Sequence[Step]) -> int:
    """How many steps it takes until the parser says that its sides are apart."""
    heard = parser(limits=Limits(), midstream=False)
    for number, (direction, data) in enumerate(steps, 1):
        deque(
            heard.gap(direction, data) if isinstance(data, int) else heard.receive(direction, data)
        )
        if heard.sides_apart:
            return number
    return len(steps)


@each_parser
def test_a_parser_has_samples_and_names_its_events(name: str) -> None:
    parser = by_name(name)
    assert SAMPLES.get(name), "tests/protocols/samples.py has none"
    tags = [str(event.__struct_config__.tag) for event in parser.events]
    own = [tag for tag in tags if not tag.startswith("stream.")]
    assert own
    assert all(tag.startswith(f"{name}.") for tag in own)
    assert set(parser.events) <= set(event_types())


@each_sample
def test_samples_are_detected_as_their_protocol(name: str, number: int) -> None:
    from streamtap.protocols import detect

    streams = [b"", b""]
    for direction, data in SAMPLES[name][number]:
        assert isinstance(data, bytes)
        streams[direction] += data
    assert detect(streams[0], streams[1], final=True) is by_name(name)


@each_sample
def test_what_one_end_says_is_never_taken_for_the_other_ends(name: str, number: int) -> None:
    """From the beginning of what it says at a time, and from anywhere in it."""
    parser, script = sample(name, number)
    for direction, data in script:
        assert isinstance(data, bytes)
        found = {parser.speaks(data[begin:]) for begin in range(len(data))}
        assert found <= {direction, None}


@each_sample
def test_only_declared_events_are_given(name: str, number: int) -> None:
    parser, script = sample(name, number)
    trace = run(parser, script)
    assert_tiles(trace)
    assert {type(event) for direction in Direction for event in trace.of(direction)} <= set(
        parser.events
    )


@each_sample
@pytest.mark.parametrize("midstream", [False, True])
def test_byte_by_byte_gives_the_same_events(name: str, number: int, midstream: bool) -> None:
    parser, script = sample(name, number)
    whole = run(parser, script, midstream=midstream)
    single = run(parser, bytewise(script), midstream=midstream)
    assert single.merged() == whole.merged()


@each_sample
@few
@given(sizes=SIZES, seed=st.integers(0, 2**32), midstream=st.booleans(), small=st.booleans())
def test_any_split_gives_the_same_events(
    name: str, number: int, sizes: list[int], seed: int, midstream: bool, small: bool
) -> None:
    parser, script = sample(name, number)
    draw = random.Random(seed)
    limits = SMALL if small else Limits()
    for steps in (script, with_gaps(script, draw), mutated(script, draw)):
        whole = run(parser, steps, midstream=midstream, limits=limits)
        pieces = run(parser, split(steps, sizes), midstream=midstream, limits=limits)
        assert_tiles(whole)
        assert_tiles(pieces)
        assert pieces.merged() == whole.merged()


@each_sample
@few
@given(sizes=SIZES, seed=st.integers(0, 2**32), midstream=st.booleans(), own=st.integers(0, 80))
def test_who_finds_no_room_tells_it_and_counts_right(
    name: str, number: int, sizes: list[int], seed: int, midstream: bool, own: int
) -> None:
    parser, script = sample(name, number)
    draw = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_base, "OWN_LEAST", own)
        patch.setattr(_base, "OWN_MOST", own)
        pool = Pool(limit=draw.choice([0, 200]))
        for steps in (script, with_gaps(script, draw), mutated(script, draw)):
            limits = Limits(pool=pool)
            assert_tiles(run(parser, split(steps, sizes), midstream=midstream, limits=limits))
            assert (pool.held, pool._sharers) == (0, 0)


@each_sample
@few
@given(seed=st.integers(0, 2**32), first=st.sampled_from(Direction))
def test_sides_that_are_apart_may_be_heard_one_after_the_other(
    name: str, number: int, seed: int, first: Direction
) -> None:
    parser, script = sample(name, number)
    draw = random.Random(seed)
    for steps in (script, with_gaps(script, draw), mutated(script, draw)):
        at = begins_apart(parser, steps)
        apart = [*steps[:at], *sorted(steps[at:], key=lambda step: step[0] != first)]
        assert run(parser, apart).merged() == run(parser, steps).merged()


@each_sample
@few
@given(seed=st.integers(0, 2**32))
def test_mutations_gaps_and_any_order_of_directions_tile(name: str, number: int, seed: int) -> None:
    parser, script = sample(name, number)
    draw = random.Random(seed)
    steps = with_gaps(mutated(script, draw), draw)
    assert_tiles(run(parser, steps, midstream=draw.random() < 0.5))
    assert_tiles(run(parser, sorted(steps, key=lambda step: draw.random()), limits=SMALL))
    # One direction wholly before the other, either way.
    for first in Direction:
        assert_tiles(run(parser, sorted(script, key=lambda step: step[0] != first)))


@each_parser
@few
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(Direction),
            st.one_of(
                st.binary(max_size=80),
                st.text("GETHPVRMSUOK 0129/.:\r\n", max_size=60).map(str.encode),
                st.integers(1, 5000),
            ),
        ),
        max_size=12,
    ),
    midstream=st.booleans(),
)
def test_arbitrary_bytes_never_raise_and_tile(
    name: str, steps: list[Step], midstream: bool
) -> None:
    for limits in (Limits(), SMALL):
        assert_tiles(run(by_name(name), steps, midstream=midstream, limits=limits))
    by_name(name).probe(
        *(
            b"".join(d for way, d in steps if way is one and isinstance(d, bytes))
            for one in Direction
        )
    )


@each_sample
def test_an_iterator_that_is_not_used_up_loses_nothing(name: str, number: int) -> None:
    parser, script = sample(name, number)
    instance = parser(limits=Limits(), midstream=False)
    events: tuple[list[Event], list[Event]] = ([], [])
    for direction, data in script:
        assert isinstance(data, bytes)
        first = next(instance.receive(direction, data), None)
        events[direction].extend([first] if first else [])
    for direction in Direction:
        events[direction].extend(instance.end(direction))
    assert events == run(parser, script).events


FLOODS = {
    "one endless line": b"x" * PIECE,
    "blanks": b" " * PIECE,
    "empty lines": b"\r\n" * (PIECE // 2),
    "lines": b"name: value\r\n" * (PIECE // 13),
    "binary": random.Random(7).randbytes(PIECE),
    "request lines": b"GET / HTTP/1.1\r\n" * (PIECE // 16),
    "heads that never end": b"GET / HTTP/1.1\r\na: bGET / HTTP/1.1\r\n" * (PIECE // 36),
    "versions": b" HTTP/1.1 HTTP/1." * (PIECE // 17),
    "command lines": b"MSG a b 1664\r\nMIME-Version: 1.0\r\n" * (PIECE // 33),
}


def openings(name: str) -> Iterator[list[Step]]:
    """Ways into a conversation: from nothing, and cut off in the middle of each sample."""
    yield []
    for script in SAMPLES.get(name, ()):
        steps = list(script)
        half = len(steps) // 2
        direction, data = steps[half]
        assert isinstance(data, bytes)
        yield [*steps[:half], (direction, data[: len(data) // 2])]


@each_parser
@pytest.mark.parametrize("flood", FLOODS)
def test_five_megabytes_of_anything_are_held_within_bounds(name: str, flood: str) -> None:
    data = FLOODS[flood]
    for number, opening in enumerate(openings(name)):
        for direction in Direction:
            # The whole flood once; for the other openings enough to pass every limit.
            amount = FLOOD if number == 0 and direction == 0 else BOUND // 2
            steps = [*opening, *[(direction, data)] * (amount // len(data) + 1)]
            trace = run(by_name(name), steps, limits=FLOODED)
            assert trace.held <= BOUND
            assert_tiles(trace)


@each_parser
@pytest.mark.parametrize("flood", FLOODS)
def test_bytes_that_come_one_by_one_are_not_searched_again_and_again(name: str, flood: str) -> None:
    # A parser that looks at all it holds for every byte would need minutes for this.
    for number, opening in enumerate(openings(name)):
        data = FLOODS[flood][: 50_000 if number == 0 else 3_000]
        steps = [*opening, *bytewise([(opening[-1][0] if opening else Direction.TO_SERVER, data)])]
        assert_tiles(run(by_name(name), steps))


@each_parser
def test_two_hundred_kilobytes_come_byte_by_byte(name: str) -> None:
    data = b"x" * 100_000 + b"name: value\r\n" * 8_000
    assert_tiles(run(by_name(name), bytewise([(Direction.TO_CLIENT, data)])))
