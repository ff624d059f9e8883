"""MSNP2 … MSNP21: notification and switchboard connections, and clients' direct connections.

events: what is told; `commands`: the tables; `framing`: bytes to commands; `seek`: the way back
into a stream; `secrets`: credentials out; `p2p`: packets and MSNSLP; `carried`: those inside
messages; `direct`: connections between clients; `prelude`: what proxies are told before.
"""

from streamtap.protocols.msnp.events import MsnpCommand, MsnpDirect, MsnpPacket, MsnpPrelude, Slp
from streamtap.protocols.msnp.parser import MsnpParser

__all__ = ["MsnpCommand", "MsnpDirect", "MsnpPacket", "MsnpParser", "MsnpPrelude", "Slp"]
