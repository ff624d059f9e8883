"""Segments of one direction of a flow -> its bytes in order, with every hole named."""

from streamtap.streams.pool import Pool
from streamtap.streams.reassembler import Reassembler

__all__ = ["Pool", "Reassembler"]
