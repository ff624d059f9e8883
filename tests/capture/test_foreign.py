"""Flows of no filter, of which the ring may hold segments."""

import numpy as np

from streamtap.capture.foreign import FOREIGN, Foreign


def test_flows_are_told_apart_however_large_their_numbers_are() -> None:
    foreign = Foreign()
    foreign.add(1 << 60, 100)
    flows = np.array([1 << 60, (1 << 60) + 1], np.uint64)
    assert foreign.others(flows).tolist() == [False, True]


def test_a_flow_is_forgotten_when_what_the_ring_held_was_passed_long_ago() -> None:
    foreign = Foreign()
    foreign.add(1, 100)
    foreign.forget(100)
    assert 1 in foreign, "what was read just now may wait to be joined"
    foreign.forget(100)
    assert 1 not in foreign
    assert not foreign


def test_of_too_many_the_oldest_is_forgotten() -> None:
    foreign = Foreign()
    for flow_id in range(FOREIGN + 1):
        foreign.add(flow_id, 100)
    assert 0 not in foreign
    assert FOREIGN in foreign
