"""The way of the data: openings, segments and closings in, records out."""

from streamtap.pipeline.listening import Listening
from streamtap.pipeline.passes import Pipeline
from streamtap.pipeline.telling import Telling
from streamtap.pipeline.wanted import Places, Terms, Wanted
from streamtap.pipeline.wire import WordReader, write_words
from streamtap.pipeline.words import Word

__all__ = [
    "Listening",
    "Pipeline",
    "Places",
    "Telling",
    "Terms",
    "Wanted",
    "Word",
    "WordReader",
    "write_words",
]
