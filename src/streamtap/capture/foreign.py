"""Flows that are in no filter, and of which the data ring may hold segments all the same."""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from streamtap.capture.candidates import remember

FOREIGN = 4096  # flows


class Foreign:
    """Each is known until all is read that the ring held when it was added: the callouts drop what
    comes later."""

    def __init__(self) -> None:
        self._until: OrderedDict[int, int] = OrderedDict()
        self._passed = 0  # position in the data ring at the last `forget`

    def __bool__(self) -> bool:
        return bool(self._until)

    def __contains__(self, flow_id: int) -> bool:
        return flow_id in self._until

    def add(self, flow_id: int, until: int) -> None:
        """until: position up to which the data ring may hold segments of it."""
        remember(self._until, flow_id, until, FOREIGN)

    def discard(self, flow_id: int) -> None:
        self._until.pop(flow_id, None)

    def forget(self, position: int) -> None:
        """The data ring is read up to `position`: those are forgotten that were passed by the last
        time, long ago."""
        for flow_id, until in list(self._until.items()):
            if until <= self._passed:
                del self._until[flow_id]
        self._passed = position

    def others(self, flow_ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(n,) bool: which of the flows are not among them."""
        return ~np.isin(flow_ids, list(self._until))
