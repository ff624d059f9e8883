"""The meaning of MSNP.

flow: the way in, one for each connection; `client`: whose it is; `notification`, `switchboard`,
`direct`: the three kinds of connection; `relayed`: what passes through the notification server;
`transfers`, `transfer`: files, pictures and calls; `chunks`: messages in parts; `participants`,
`lists`, `mime`, `words`: the smaller nouns.
"""

from streamtap.patterns.msnp.chunks import Chunks
from streamtap.patterns.msnp.flow import MsnpFlow

__all__ = ["Chunks", "MsnpFlow"]
