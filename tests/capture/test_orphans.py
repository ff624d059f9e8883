"""Payloads that came with a listener: claimed by their connection, or bounded and forgotten."""

from streamtap.capture.orphans import (
    ORPHAN_BYTES,
    ORPHAN_NS,
    ORPHANS,
    ORPHANS_OF_ONE,
    Ends,
    Orphans,
)
from streamtap.model import Direction, Segment


def ends(port: int) -> Ends:
    return Ends(1, bytes(16), 80, bytes(16), port)


def payload(data: bytes = b"hello", time_ns: int = 0, sequence: int = 0) -> Segment:
    return Segment(0, Direction.TO_SERVER, sequence, data, time_ns)


def test_a_connection_gets_what_came_before_it_in_order() -> None:
    orphans = Orphans()
    orphans.add(ends(1), payload(b"one"))
    orphans.add(ends(2), payload(b"other"))
    orphans.add(ends(1), payload(b"two", sequence=3))
    claimed = orphans.claim(ends(1), 77)
    assert [(one.flow_id, one.data) for one in claimed] == [(77, b"one"), (77, b"two")]
    assert orphans.claim(ends(1), 77) == []
    assert orphans.lost == 0


def test_packets_that_open_nothing_are_forgotten_and_are_no_loss() -> None:
    orphans = Orphans()
    for number in range(10 * ORPHANS):
        orphans.add(ends(number), payload(time_ns=number * ORPHAN_NS // 100))
    assert orphans.lost == 0
    assert orphans.claim(ends(0), 1) == []
    assert len(orphans.claim(ends(10 * ORPHANS - 1), 1)) == 1


def test_a_flood_from_one_address_leaves_the_others_alone() -> None:
    orphans = Orphans()
    orphans.add(ends(1), payload())
    for _ in range(100_000):
        orphans.add(ends(2), payload())
    assert len(orphans.claim(ends(1), 1)) == 1
    assert len(orphans.claim(ends(2), 2)) == ORPHANS_OF_ONE
    assert orphans.lost == 100_000 - ORPHANS_OF_ONE


def test_a_flood_from_many_addresses_keeps_the_newest_and_counts_the_rest() -> None:
    orphans = Orphans()
    for number in range(3 * ORPHANS):
        orphans.add(ends(number), payload())
    kept = [number for number in range(3 * ORPHANS) if orphans.claim(ends(number), 1)]
    assert kept == list(range(2 * ORPHANS, 3 * ORPHANS))
    assert orphans.lost == 2 * ORPHANS


def test_large_payloads_are_bounded_in_bytes() -> None:
    orphans = Orphans()
    size = ORPHAN_BYTES // 4
    for number in range(10):
        orphans.add(ends(number), payload(bytes(size)))
    assert sum(len(orphans.claim(ends(number), 1)) for number in range(10)) == 4
    assert orphans.lost == 6
