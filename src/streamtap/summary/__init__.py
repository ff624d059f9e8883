"""Records to conversations: who, when, how long, how many messages of each kind, files.

What several flows carry is counted once: a switchboard passes each message on, so that somebody who
watches both ends sees it on the sender's flow and on each receiver's. Memory is bounded; what finds
no room is counted.
"""

from streamtap.summary.conversation import SIGNALS, Conversation, Line, Sender, Transfer
from streamtap.summary.totals import ROOM, Summary

__all__ = ["ROOM", "SIGNALS", "Conversation", "Line", "Sender", "Summary", "Transfer"]
