"""What the reassemblers of all flows may hold together."""

from streamtap.room import Room

HOLD_ALL = 64 << 20  # bytes of memory behind holes
HOLD_OWN = 64 << 10  # what a direction may hold whatever the others do: a window without scaling
HOLD_OWN_ALL = 32 << 20  # the same for all: where there are many, each has an equal part of it
REMEMBERED = 2048  # bytes given last, kept to compare retransmissions: a full Ethernet segment
REMEMBERED_ALL = 32 << 20  # the same for all: 8,192 flows remember so much, 65,536 an eighth


class Pool(Room):
    """The room behind holes. remembered: what each remembers of what it gave."""

    __slots__ = ("remembered",)

    def __init__(self, limit: int = HOLD_ALL) -> None:
        super().__init__(limit, most=HOLD_OWN, together=HOLD_OWN_ALL)
        self.remembered = REMEMBERED

    def share(self, more: int) -> None:
        super().share(more)
        self.remembered = min(REMEMBERED, self.part(REMEMBERED_ALL))
