"""Words written down, for another process that tells them."""

from collections.abc import Iterator, Sequence
from typing import Any, Union

import msgspec

from streamtap.events import Event
from streamtap.model import Direction
from streamtap.pipeline.wanted import Wanted
from streamtap.pipeline.words import Begun, Break, Ended, Note, Shown, Turned, Voice, Word
from streamtap.protocols import event_types

NOBODY = -1  # instead of a flow's id

_encode = msgspec.msgpack.Encoder().encode
# Time, flow, direction, what is told, and the bytes of what is shown.
_Written = tuple[int, int, Direction, object, bytes | None]


def write_words(words: Sequence[Word]) -> bytes:
    """Words of flows of captures, in one piece."""
    written: list[_Written] = []
    for time_ns, voice, direction, told in words:
        flow_id = NOBODY if voice is None else voice.flow.flow_id
        if type(told) is Shown:
            written.append((time_ns, flow_id, direction, told.told, bytes(told.data)))
        else:
            written.append((time_ns, flow_id, direction, told, None))
    return _encode(written)


class WordReader:
    """Reads what `write_words` wrote, piece by piece in its order: each flow has one voice, from
    where it begins to where it ends.

    wanted: how much is told of a flow.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        told: Any = Union[(Begun, Break, Ended, Note, Turned, *event_types())]
        self._decode = msgspec.msgpack.Decoder(
            list[tuple[int, int, Direction, told, memoryview | None]]
        ).decode
        self._voices: dict[int, Voice] = {}

    def read(self, data: bytes) -> Iterator[Word]:
        """The words, one after the other."""
        voices = self._voices
        for time_ns, flow_id, direction, told, shown in self._decode(data):
            voice = voices.get(flow_id)
            if voice is None and flow_id != NOBODY:
                assert isinstance(told, Begun)
                voice = voices[flow_id] = Voice(told.flow, self._wanted.content_of(told.flow))
            if shown is not None:
                assert isinstance(told, Event)
                told = Shown(told, shown)
            elif type(told) is Ended:
                del voices[flow_id]
            yield time_ns, voice, direction, told
