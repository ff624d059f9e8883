"""streamtap shows what one application says over TCP, and to whom, while it runs."""

__version__ = "0.1.0"
