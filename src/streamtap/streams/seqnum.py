"""TCP sequence numbers (RFC 9293 §3.4): the only place that wraps at 2**32.

Everywhere else a position is a stream offset: a plain integer that never wraps.
"""

SPACE = 1 << 32
_MASK = SPACE - 1
_HALF = SPACE // 2


def advance(sequence: int, length: int) -> int:
    """The sequence number `length` bytes after `sequence`; `length` may be negative."""
    return (sequence + length) & _MASK


def unwrap(sequence: int, near: int, origin: int, behind: int = _HALF) -> int:
    """The stream offset of `sequence`, given that it lies near the offset `near`.

    origin: sequence number of offset 0.
    behind: how far before `near` the answer may lie. Of all the offsets that share the sequence
        number, the one in `near - behind` … `near - behind + 2**32 - 1` is given.
    """
    lowest = near - behind
    return lowest + ((sequence - origin - lowest) & _MASK)
