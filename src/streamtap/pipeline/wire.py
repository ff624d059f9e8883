"""Words written down, for another process that tells them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Union

import msgspec

from streamtap.events import Event
from streamtap.model import Direction
from streamtap.pipeline.hearing import failure
from streamtap.pipeline.steps import order_of
from streamtap.pipeline.words import Begun, Break, Ended, Note, Shown, Turned, Word
from streamtap.protocols import event_types
from streamtap.protocols.opaque import OpaqueData

MOST = 1 << 17  # words that are put in order together: written, they take little memory
SOME = 256  # words of a piece: they stay in a processor's own cache

_encode = msgspec.msgpack.Encoder().encode


class _Displayed(msgspec.Struct, frozen=True, tag_field="event", tag="shown", gc=False):
    """`Shown`, whose event is written by itself."""

    told: msgspec.Raw
    data: memoryview


def write_words(said: Iterable[Sequence[Word]]) -> Iterator[tuple[list[bytes], bool]]:
    """What each flow said, as pieces in the order of time over all of them; of very many words,
    some at a time. With each: whether that is all."""
    times: list[int] = []
    written: list[bytes] = []
    for words in said:  # at once: a processor has them at hand still
        for word in words:
            times.append(word[0])
            try:
                written.append(_write(word))
            except Exception as error:  # no bytes may end a reading: it is ours to mend
                times.append(word[0])
                written += map(_write, _instead(word, error))
        if len(times) >= MOST:
            yield _pieces(times, written), False
            times, written = [], []
    yield _pieces(times, written), True


def _pieces(times: list[int], written: list[bytes]) -> list[bytes]:
    order = order_of(times)
    pieces: list[bytes] = []
    for begin in range(0, len(order), SOME):
        some = order[begin : begin + SOME]
        # An array of MessagePack, with 32 bits of length.
        pieces.append(b"".join((b"\xdd", len(some).to_bytes(4), *(written[at] for at in some))))
    return pieces


def _write(word: Word) -> bytes:
    told: object
    time_ns, flow_id, direction, told = word
    if type(told) is Shown:
        told = _Displayed(msgspec.Raw(_encode(told.told)), told.data)
    return _encode((time_ns, flow_id, direction, told))


def _instead(word: Word, error: Exception) -> tuple[Word, Word]:
    """Of a word that cannot be written: that it failed, and which bytes it stands for."""
    time_ns, flow_id, direction, told = word
    event = told.told if isinstance(told, Shown) else told
    offset, length = (event.offset, event.length) if isinstance(event, Event) else (0, 0)
    plain = OpaqueData(offset=offset, length=length)
    failed = Note(failure("", error))
    return (time_ns, flow_id, direction, failed), (time_ns, flow_id, direction, plain)


class WordReader:
    """Reads the pieces that `write_words` gave."""

    def __init__(self) -> None:
        events: Any = Union[event_types()]  # noqa: UP007
        told: Any = events | Begun | Break | Ended | Note | Turned | _Displayed
        self._decode = msgspec.msgpack.Decoder(list[tuple[int, int, Direction, told]]).decode
        self._decode_event = msgspec.msgpack.Decoder(events).decode

    def read(self, data: bytes) -> Iterable[Word]:
        """The words, in their order."""
        words: list[tuple[int, int, Direction, Any]] = self._decode(data)
        if any(type(word[3]) is _Displayed for word in words):
            return [self._whole(word) for word in words]
        return words

    def _whole(self, word: tuple[int, int, Direction, Any]) -> Word:
        time_ns, flow_id, direction, told = word
        if type(told) is not _Displayed:
            return word
        event: Event = self._decode_event(told.told)
        return time_ns, flow_id, direction, Shown(event, told.data)
