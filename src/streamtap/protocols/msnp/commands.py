"""The command tables of MSNP2 … MSNP21, to be read against the protocol descriptions.

Sources: draft-movva-msn-messenger-protocol-00, the hypothetic.org and MSNPiki pages, and the
forms seen in published traffic of clients and servers. Counts are arguments after the verb,
transaction id and payload length included.
"""

import re
from typing import NamedTuple

from streamtap.model import Direction
from streamtap.protocols._base import Limits


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A line is garbage past Limits.line; the payload of MSG is far smaller than that of list commands.
MESSAGE_PAYLOAD = 64 * 1024

# Commands that carry a payload: their last argument is its length, if the line has one of these
# argument counts and that argument is a number. (`ADL 6 OK` and `QRY 10` carry none.)
PAYLOADS_TO_SERVER: dict[str, tuple[int, ...]] = {
    "MSG": (3,),  # transaction ack length
    "PAG": (3,),  # transaction address length
    "PGD": (4,),  # transaction account type length
    "SDC": (9,),  # transaction account lcid library client X X name length
    "QRY": (3,),  # transaction product 32
    "UUX": (2,),
    "UUN": (4,),  # transaction account type length
    "UUM": (4, 5),  # transaction netid:account type length, or account netid type length
    "ADL": (2,),
    "RML": (2,),
    "FQY": (2,),
    "VAS": (5,),
    "PUT": (2,),
    "DEL": (2,),
    "SDG": (2,),
    "GET": (2, 3, 4),  # not confirmed by two sources: looked at before it is believed
}
PAYLOADS_TO_CLIENT: dict[str, tuple[int, ...]] = {
    "MSG": tuple(range(3, 64)),  # account name length; careless clients leave spaces in names
    "NOT": (1,),
    "IPG": (1,),
    "GCF": (2, 3),  # 0 length, or transaction file length
    "UUX": (2,),
    "UBX": (2, 3),  # account length, account netid length, netid:account length
    "UUN": (3, 4),
    "UBN": (3,),
    "UBM": (4, 5, 6),
    "ADL": (2,),
    "RML": (2,),
    "FQY": (2,),
    "PUT": (2, 3),  # transaction length, or transaction OK length
    "DEL": (2, 3),
    "SDG": (2, 3),
    "NFY": (2,),  # PUT|DEL length
    "GET": (2, 3, 4),
}
# Commands that never carry one, whatever their last argument looks like.
PLAIN_TO_SERVER = _words(
    "VER CVR CVQ INF USR XFR ANS CAL CHG SYN PRP GTC BLP ADD ADC REM REA ADG RMG REG SBP SBS IMS "
    "URL FND LKP CHL PNG OUT FSL SND GCF LST CNT"
)
PLAIN_TO_CLIENT = _words(
    "VER CVR CVQ INF USR XFR RNG ANS IRO JOI CAL BYE ACK NAK CHG NLN ILN FLN SYN LST LSG PRP BPR "
    "GTC BLP ADD ADC REM REA ADG RMG REG SBP SBS IMS URL FND LKP QNG CHL OUT FSL SND SDC QRY UUM "
    "PAG PGD VAS CNT"
)
ERRORS = tuple(f"{code:03}" for code in range(1000))

# A second number after an error may be a payload length (from MSNP13 on) or may not: these are
# believed only if what follows the line does not begin a command.
DOUBTFUL = frozenset((*ERRORS, "GET"))

# No transaction id; any other command has one when its first argument is a number.
NO_TRANSACTION = _words("PNG OUT RNG NLN FLN UBX UBN UBM NOT IPG QNG JOI BYE NFY BPR")


class Form(NamedTuple):
    """How the line of a verb is read.

    counts: of arguments with which the last one is a payload's length; empty for no payload.
    doubtful: and then only by a second look. numbered: it has a transaction id if its first
        argument is a number.
    """

    counts: frozenset[int] = frozenset()
    doubtful: bool = False
    numbered: bool = True


Forms = dict[str, Form]


def _forms(
    payloads: dict[str, tuple[int, ...]], plain: frozenset[str], unnumbered: frozenset[str]
) -> Forms:
    counts = dict.fromkeys(plain, ()) | payloads
    return {
        verb: Form(frozenset(counts[verb]), verb in DOUBTFUL, verb not in unnumbered)
        for verb in counts
    }


UNKNOWN = Form()  # any other verb
# By direction. What a server tells of a message is who sent it.
FORMS: tuple[Forms, Forms] = (
    _forms(PAYLOADS_TO_SERVER, PLAIN_TO_SERVER, NO_TRANSACTION),
    _forms(
        PAYLOADS_TO_CLIENT | dict.fromkeys(ERRORS, (2,)), PLAIN_TO_CLIENT, NO_TRANSACTION | {"MSG"}
    ),
)

# The headers that a message may begin with. MIME-Version comes first from the clients of old, not
# from those of others.
_HEADERS = (
    b"mime-version:",
    b"message-id:",
    b"content-type:",
    b"x-mms-im-format:",
    b"typinguser:",
    b"p2p-dest:",
)

# How a payload begins (lower case), used to find the way back into a stream.
OPENINGS: dict[str, tuple[bytes, ...]] = {
    "MSG": _HEADERS,
    "UBX": (b"<data", b"<endpointdata", b"<privateendpointdata"),
    "UUX": (b"<data", b"<endpointdata", b"<privateendpointdata"),
    "ADL": (b"<ml",),
    "RML": (b"<ml",),
    "FQY": (b"<ml",),
    "NOT": (b"<notification",),
    "GCF": (b"<?xml", b"<policies", b"<config"),
    "PUT": (b"routing:",),
    "DEL": (b"routing:",),
    "NFY": (b"routing:",),
    "SDG": (b"routing:",),
    "UUM": _HEADERS,
    "UBM": _HEADERS,
}
OPENING = max(len(opening) for openings in OPENINGS.values() for opening in openings)

# MSNP22 and later are framed in another way. They begin with CNT, or a VER that offers no other.
NEWEST = 21
TELLS_VERSION = frozenset({"VER", "CNT", "XFR"})

STATUSES = _words("NLN BSY IDL BRB AWY PHN LUN HDN FLN")
METHODS = _words("MD5 TWN SSO CTP SHA")

_SESSION = re.compile(r"[0-9A-Za-z-]{1,64}")


def is_number(word: str) -> bool:
    """Whether a word is a decimal number of a size that any field of MSNP may have."""
    return len(word) <= 10 and word.isdecimal() and word.isascii()


def is_session(word: str) -> bool:
    """Whether a word may be the id of a switchboard session: decimal from the servers of old, of
    other forms from those that people run today; never with the dots of a cookie."""
    return _SESSION.fullmatch(word) is not None


def plausible(direction: Direction, words: list[str]) -> bool:
    """Whether the arguments of a known command look right: the test while seeking."""
    verb, *args = words
    if verb in ("PNG", "QNG", "OUT"):
        return len(args) <= 2 and all(is_number(arg) or arg.isupper() for arg in args)
    if not args or "" in args[:1]:
        return False
    first = args[0]
    if verb == "NLN":
        return first in STATUSES and len(args) >= 3
    if verb in ("FLN", "JOI", "BYE", "UBX", "UBN", "UBM"):
        return "@" in first and len(args) <= 6
    if verb == "MSG" and direction is Direction.TO_CLIENT:
        return len(args) >= 3 and ("@" in first or first == "Hotmail")
    if verb == "RNG":
        return len(args) >= 6 and is_session(first) and args[2] == "CKI"
    if verb == "NFY":
        return first in ("PUT", "DEL")
    if verb in ("LST", "LSG", "PRP", "BPR", "GTC", "BLP"):
        return len(args) <= 8
    if verb.isdigit():
        return len(args) <= 2 and all(map(is_number, args))
    return is_number(first)


def begins_command(forms: Forms, data: bytes, at: int) -> bool:
    """Whether a known command begins at `at`."""
    head = data[at : at + 4]
    return len(head) == 4 and head[3] in b" \r\n" and str(head[:3], "latin-1") in forms


def longest_payload(verb: str, limits: Limits) -> int:
    """Bytes past which a payload length is taken for garbage."""
    return min(MESSAGE_PAYLOAD, limits.payload) if verb == "MSG" else limits.payload


def version_of(direction: Direction, verb: str, args: list[str]) -> tuple[int, bool]:
    """The version of MSNP that a command of `TELLS_VERSION` agrees on (0 for none), and whether
    what follows is of a later one than we know. args: without transaction id."""
    if verb != "VER":
        return 0, verb == "CNT" or args[:1] == ["CON"]
    offered = [int(arg[4:]) for arg in args if arg.startswith("MSNP") and is_number(arg[4:])]
    if direction is Direction.TO_CLIENT:
        offered = offered[:1]
    agreed = offered[0] if offered and direction is Direction.TO_CLIENT else 0
    return agreed, bool(offered) and min(offered) > NEWEST
