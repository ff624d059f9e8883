"""Segments of one direction of a flow -> its bytes in order, with every hole named."""

from streamtap.streams.reassembler import Pool, Reassembler

__all__ = ["Pool", "Reassembler"]
