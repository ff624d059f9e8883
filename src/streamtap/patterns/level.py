"""Whether text is wanted: one setting that all flows share, and that may change while they live."""

from streamtap.model import Content


class Level:
    """full: messages carry their text, and bursts their bytes."""

    __slots__ = ("full",)

    def __init__(self, content: Content) -> None:
        self.full = content is Content.FULL
