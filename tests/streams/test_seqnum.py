from hypothesis import given
from hypothesis import strategies as st

from streamtap.streams.seqnum import SPACE, advance, unwrap

numbers = st.integers(0, SPACE - 1)


def test_numbers_wrap_at_the_end_of_their_space() -> None:
    assert advance(SPACE - 1, 2) == 1
    assert advance(1, -2) == SPACE - 1


@given(origin=numbers, near=st.integers(0, 2**60), away=st.integers(-(2**31), 2**31 - 1))
def test_an_offset_is_found_again_from_its_number(origin: int, near: int, away: int) -> None:
    assert unwrap(advance(origin, near + away), near, origin) == near + away


@given(origin=numbers, near=st.integers(0, 2**60), away=st.integers(-(2**30), 3 * 2**30 - 1))
def test_the_window_may_reach_farther_ahead_than_behind(origin: int, near: int, away: int) -> None:
    assert unwrap(advance(origin, near + away), near, origin, 2**30) == near + away
