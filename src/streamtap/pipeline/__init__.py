"""The way of the data: openings, segments and closings in, records out."""

from streamtap.pipeline.passes import Pipeline
from streamtap.pipeline.wanted import Places, Terms

__all__ = ["Pipeline", "Places", "Terms"]
