"""Which records a session wants."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtap.events import LEVELS, PROVIDERS
from streamtap.trace.selection import Selection, choose, parse

EVERY = {(p, flag, level) for p, flags in PROVIDERS.items() for flag in flags for level in LEVELS}


def flags(selection: Selection) -> list[str]:
    return [
        f"{provider}:{flag}"
        for provider, known in PROVIDERS.items()
        for flag in known
        if selection.wants_flag(provider, flag)
    ]


def test_by_default_everything_but_all_traffic_is_wanted() -> None:
    assert choose().places == {place for place in EVERY if place[1] != "all_traffic"}
    assert parse([]) == choose()


@pytest.mark.parametrize("word", ["all:all", "all:9", "all@9", "ALL@all", "all@verbose"])
def test_nine_and_all_are_every_flag(word: str) -> None:
    assert parse([word]).places == EVERY


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("NOTIFY:client_server,peer_to_peer", ["notify:client_server", "notify:peer_to_peer"]),
        ("notify:Peer-To-Peer", ["notify:peer_to_peer"]),
        ("NOTIFY:TRACE_UNKNOWN", ["notify:unknown"]),
        ("monitor:0", ["monitor:flow_established"]),
        ("MONITOR:2", ["monitor:layer_notify"]),
        ("NOTIFY@1", ["notify:peer_to_peer"]),
        ("NOTIFY:3", ["notify:all_traffic"]),
        ("CONTROL:0,2", ["control:init", "control:state"]),
        ("init:1", ["init:shutdown"]),
        ("stream", ["stream:gap", "stream:limit", "stream:parser"]),
        ("notify", ["notify:client_server", "notify:peer_to_peer", "notify:unknown"]),
        ("all:init", ["control:init", "init:init"]),
    ],
)
def test_a_component_and_its_flags_may_be_written_as_in_the_sample(
    word: str, expected: list[str]
) -> None:
    assert flags(parse([word])) == expected


def test_a_level_lets_through_itself_and_what_is_more_severe() -> None:
    chosen = parse(["stream:gap@warn"])
    assert [chosen.wants("stream", "gap", level) for level in LEVELS] == [True, True, False, False]
    assert not chosen.wants("stream", "parser", "error")


def test_several_words_select_what_any_of_them_selects() -> None:
    both = parse(["notify:unknown@error", "stream:gap"])
    assert both == parse(["notify:unknown@error"]) | parse(["stream:gap"])
    assert flags(both) == ["notify:unknown", "stream:gap"]


def test_options_select_what_satisfies_all_of_them() -> None:
    chosen = choose(["monitor,stream", "notify"], ["gap", "client_server"], "warn")
    assert flags(chosen) == ["notify:client_server", "stream:gap"]
    assert not chosen.wants("stream", "gap", "info")


def test_asking_for_the_level_verbose_includes_protocol_events() -> None:
    assert choose(level="verbose").wants("notify", "all_traffic", "verbose")
    assert not choose(level="info").wants_flag("notify", "all_traffic")


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("notfy", ["'notfy'", "monitor, notify, control, init, stream"]),
        ("notify:gap", ["'gap'", "0 client_server, 1 peer_to_peer", "all_traffic"]),
        ("monitor:3", ["'3'", "2 layer_notify"]),
        ("init@2", ["'2'", "1 shutdown"]),
        ("notify@loud", ["'loud'", "error, warn, info, verbose", "9"]),
        ("notify@", ["cut short", "COMPONENT[:FLAG,...][@LEVEL]"]),
        ("notify:", ["cut short"]),
    ],
)
def test_a_wrong_word_is_told_with_the_known_ones(word: str, named: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no |cut") as caught:
        parse([word])
    for part in named:
        assert part in str(caught.value)


@given(st.sets(st.sampled_from(sorted(f"{p}:{f}" for p, f, _ in EVERY)), min_size=1), st.data())
def test_a_selection_can_be_stored_as_text(words: set[str], data: st.DataObject) -> None:
    chosen = parse(f"{word}@{data.draw(st.sampled_from(LEVELS))}" for word in words)
    assert parse(str(chosen).split()) == chosen


@given(st.text(max_size=30))
def test_any_text_selects_something_or_is_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse([text]).places
