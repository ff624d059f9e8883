"""The meaning of MSNP.

flow: the way in, one for each connection; `client`: whose it is; `notification`, `switchboard`,
`direct`: the three kinds of connection; `relayed`, `groups`: what passes through the notification
server; `transfers`, `transfer`: files, pictures and calls; `chunks`: messages in parts; `inner`,
`gateway`, `tunnel`: MSNP that HTTP carries; `participants`, `membership`, `presence`, `lists`,
`mime`, `words`: the smaller nouns.
"""

from streamtap.patterns.msnp.chunks import Chunks
from streamtap.patterns.msnp.client import Place
from streamtap.patterns.msnp.flow import MsnpFlow
from streamtap.patterns.msnp.gateway import Gateway
from streamtap.patterns.msnp.inner import Memory
from streamtap.patterns.msnp.tunnel import Tunnels, Waiting

__all__ = ["Chunks", "Gateway", "Memory", "MsnpFlow", "Place", "Tunnels", "Waiting"]
