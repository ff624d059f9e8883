"""Filters that persist, the processes that watch and trace, and how to talk to them."""
