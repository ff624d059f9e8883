"""Payloads put together, whatever their lengths: each is copied beyond its end, and what lies there
must have its own bytes in the end."""

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtap.capture.packets import SLACK
from streamtap.capture.payloads import Payloads

LENGTHS = st.lists(
    st.one_of(st.integers(0, 100), st.sampled_from((0, 1, 63, 64, 65, 1448, 5000, 70_000))),
    max_size=80,
)


def put_together(payloads: Payloads, lengths: list[int], seed: int) -> tuple[bytes, bytes]:
    """What stands there, and what should."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, sum(lengths) + SLACK + 1, np.uint8)
    sizes = np.array(lengths, np.int64)
    offsets = np.cumsum(sizes) - sizes
    order = random.permutation(len(sizes))
    payloads.gather(data, offsets[order], sizes[order])
    expected = b"".join(data[offsets[at] : offsets[at] + sizes[at]].tobytes() for at in order)
    if not payloads.size:
        return b"", expected
    with mmap.mmap(payloads.fd, payloads.size, prot=mmap.PROT_READ) as seen:
        return seen[: payloads.size], expected


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_each_payload_has_its_own_bytes(lengths: list[int], seed: int) -> None:
    payloads = Payloads()
    try:
        for turn in range(2):  # the second over what the first has left
            there, expected = put_together(payloads, lengths[turn:], seed)
            assert there == expected
    finally:
        payloads.close()


@pytest.mark.parametrize("count", [3, 100_000])
def test_of_rows_that_go_to_one_place_the_last_stays(count: int) -> None:
    """NumPy says it, and payloads rely on it."""
    target = np.zeros(count + 15, np.uint8)
    rows = np.ndarray((count,), "V16", target, 0, (1,))
    source = np.repeat(np.arange(count) % 251, 16).astype(np.uint8).view("V16")
    rows[np.arange(count)] = source
    assert (target[:count] == np.arange(count) % 251).all()
