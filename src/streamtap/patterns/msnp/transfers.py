"""Files, pictures and calls between people: offers, answers, progress, direct connections.

Three ways of asking (an invitation in a message, MSNSLP in peer-to-peer packets, MSNFTP) come down
to one `Transfer` that several flows may carry on.
"""

from streamtap.model import Role
from streamtap.patterns.model import CLIENT_CLIENT, Direct, Pattern
from streamtap.patterns.msnp.client import Client
from streamtap.patterns.msnp.mime import fields_of
from streamtap.patterns.msnp.transfer import Transfer
from streamtap.patterns.msnp.words import is_place
from streamtap.protocols.msnp import MsnpCommand, MsnpDirect, MsnpPacket, Slp
from streamtap.protocols.msnp.p2p import file_name

FILE_GUIDS = frozenset({"{5D3E02AB-6190-11D3-BBBB-00C04F795683}"})
# EUF-GUID or Application-GUID -> kind of im.media
MEDIA_GUIDS = {
    "{1C9AA97E-9C05-4583-A3BD-908A196F1E92}": "webcam",
    "{4BD96FC0-AB17-4425-A14A-439185962DC8}": "video_call",
    "{6A13AF9C-5308-4F35-923A-67E8DDA40C2F}": "game",
    "{02D3C01F-BF30-4825-A83A-DE7AF41648AA}": "voice_call",
    "{44BBA842-CC51-11CF-AAFA-00AA00B6015C}": "video_call",  # NetMeeting
    "{F1B1920C-6A3C-4CE7-B18C-AFAB305FD03D}": "whiteboard",
}
OBJECT_TYPES = {2: "emoticon", 3: "display_picture", 7: "display_picture"}
PORT_MASK = 0x3141  # PortX is the port under this mask
COMPLETED = frozenset({"16777987", "16777989"})
DATA = 0x4  # flag of a version 2 packet with bytes of an object or file
ADDRESSES = 16  # addresses of one negotiation that are followed
ADDRESS_LISTS = (
    ("ipv4internal-addrs", "ipv4internal-port"),
    ("ipv4external-addrs", "ipv4external-port"),
    ("ipv6-addrs", "ipv6-port"),
)
ADDRESS_AND_PORT_LISTS = ("ipv4internaladdrsandports", "ipv4externaladdrsandports", "ipv6-global")


class Transfers:
    """The transfers that one flow takes part in, in the links that it shares with others."""

    __slots__ = ("_client", "_links", "_scope", "active")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._links = client.links
        self._scope = client.scope
        self.active: Transfer | None = None  # of a direct connection

    # -- in messages of a switchboard

    def invitation(
        self,
        event: MsnpCommand,
        time_ns: int,
        body: bytes,
        sender: str | None,
        recipients: tuple[str, ...],
        conversation: str | None,
    ) -> list[Pattern]:
        """text/x-msmsgsinvite."""
        fields = fields_of(body)
        command = fields.get("invitation-command", "").upper()
        people = hash(frozenset((sender or "", *recipients)))  # there may be a thousand of them
        key = ("invitation", self._scope, people, fields.get("invitation-cookie", ""))
        found = self._links.find(key, time_ns)
        transfer = found if isinstance(found, Transfer) else None
        if command == "INVITE":
            guid = fields.get("application-guid", "").upper()
            kind = "file" if guid in FILE_GUIDS or "application-file" in fields else None
            offer = Transfer(
                kind or MEDIA_GUIDS.get(guid, "other"),
                sender,
                recipients,
                conversation,
                file_name(fields.get("application-file", "")) or None,
                _number(fields.get("application-filesize", "")),
            )
            offer.flow_id = self._client.flow.flow_id
            if transfer is not None and transfer.passed_on_as(offer):
                return []
            self._links.keep(key, offer, time_ns)
            return [offer.tell(event, "offer")]
        if transfer is None or transfer.ended:
            return []
        patterns: list[Pattern] = []
        if command == "CANCEL":
            rejected = fields.get("cancel-code", "").upper().startswith("REJECT")
            patterns.append(transfer.tell(event, "decline" if rejected else "cancel"))
        elif command == "ACCEPT":
            if sender != transfer.sender and transfer.state == "offer":
                patterns.append(transfer.tell(event, "accept"))
            port = _number(fields.get("port", ""))
            if port is None and (masked := _number(fields.get("portx", ""))) is not None:
                port = masked ^ PORT_MASK
            hosts = [fields.get(name, "") for name in ("ip-address", "ip-address-internal")]
            addresses = [f"{host}:{port}" for host in hosts]
            secrets = [fields["authcookie"]] if "authcookie" in fields else []
            transport = "msnftp" if transfer.kind == "file" else "tcp"
            patterns += self._negotiated(
                event, time_ns, transfer, addresses, secrets, transport, sender
            )
        return patterns

    # -- in packets

    def packet(
        self,
        event: MsnpPacket,
        time_ns: int,
        sender: str | None,
        recipients: tuple[str, ...],
        conversation: str | None,
    ) -> list[Pattern]:
        """A packet of a switchboard message or of a direct connection."""
        if event.slp is not None:
            return self.slp(event, time_ns, event.slp, sender, recipients, conversation)
        if event.session == 0 or not event.size:
            return []
        transfer = self._session(event.session, time_ns)
        if transfer is None:
            return []
        if transfer.live:
            return []
        if self.active is None and sender is None:
            self.active = transfer
        if transfer.kind != "file":
            if event.total == 4:  # data preparation: four bytes of zero before the object
                return []
            transfer.size = event.total
        elif transfer.size is None:
            transfer.size = event.total
        if event.version == 2 and not event.flags & DATA:
            return []  # data preparation, as above
        if event.version == 1:
            done = event.position + event.size
        else:  # the header says what is still to come
            done = (transfer.size or 0) - (event.total - event.size)
        return transfer.carry(event, done)

    def slp(
        self,
        event: MsnpCommand | MsnpPacket,
        time_ns: int,
        slp: Slp,
        sender: str | None,
        recipients: tuple[str, ...],
        conversation: str | None,
    ) -> list[Pattern]:
        """One MSNSLP message."""
        sender = slp.by or sender
        recipients = (slp.to,) if slp.to else recipients
        key = ("dialogue", self._scope, slp.call_id)
        found = self._links.find(key, time_ns)
        transfer = found if isinstance(found, Transfer) else None
        if slp.content_type == "sessionreqbody" and slp.method == "INVITE":
            if transfer is not None:  # the same offer, seen on another flow
                return []
            return [self._offer(event, time_ns, slp, sender, recipients, conversation)]
        if transfer is None:
            transfer = self._session(_number(slp.fields.get("sessionid", "")) or 0, time_ns)
        if "transrespbody" in slp.content_type:
            if transfer is None:
                transfer = Transfer("other", sender, recipients, conversation)
            return self._transport(event, time_ns, slp, transfer, sender)
        if transfer is None or transfer.ended:
            return []
        if slp.method == "BYE":
            ended = transfer.live and transfer.state == "accept"
            return [transfer.tell(event, "complete" if ended else "cancel")]
        if slp.content_type == "sessionreqbody" and slp.code is not None:
            if slp.code == 200 and transfer.state == "offer":
                return [transfer.tell(event, "accept")]
            if slp.code == 603 and transfer.state == "offer":
                return [transfer.tell(event, "decline")]
            return [] if slp.code == 200 else [transfer.tell(event, "cancel")]
        return []

    def _offer(
        self,
        event: MsnpCommand | MsnpPacket,
        time_ns: int,
        slp: Slp,
        sender: str | None,
        recipients: tuple[str, ...],
        conversation: str | None,
    ) -> Pattern:
        guid = slp.fields.get("euf-guid", "").upper()
        if guid in FILE_GUIDS:
            kind = "file"
        elif slp.object_type is not None:
            kind = OBJECT_TYPES.get(slp.object_type, "other")
        else:
            kind = MEDIA_GUIDS.get(guid, "other")
        transfer = Transfer(kind, sender, recipients, conversation, slp.name, slp.size)
        self._links.keep(("dialogue", self._scope, slp.call_id), transfer, time_ns)
        session = _number(slp.fields.get("sessionid", ""))
        if session:
            self._links.keep(("p2p", self._scope, session), transfer, time_ns)
        return transfer.tell(event, "offer")

    def _session(self, session: int, time_ns: int) -> Transfer | None:
        found = self._links.find(("p2p", self._scope, session), time_ns) if session else None
        return found if isinstance(found, Transfer) else None

    # -- direct connections

    def _transport(
        self,
        event: MsnpCommand | MsnpPacket,
        time_ns: int,
        slp: Slp,
        transfer: Transfer,
        account: str | None,
    ) -> list[Pattern]:
        fields = slp.fields
        secrets = [fields[name] for name in ("nonce", "hashed-nonce") if name in fields]
        addresses: list[str] = []
        for names, port in ADDRESS_LISTS:
            addresses += [
                f"[{host}]:{fields.get(port)}" if ":" in host else f"{host}:{fields.get(port)}"
                for host in fields.get(names, "").split()
            ]
        for names in ADDRESS_AND_PORT_LISTS:
            addresses += fields.get(names, "").split()
        if fields.get("listening", "").lower() == "false":
            addresses = []
        return self._negotiated(event, time_ns, transfer, addresses, secrets, "p2p", account)

    def _negotiated(
        self,
        event: MsnpCommand | MsnpPacket,
        time_ns: int,
        transfer: Transfer,
        addresses: list[str],
        secrets: list[str],
        transport: str,
        account: str | None,
    ) -> list[Pattern]:
        """Addresses at which one of the two will wait; the connection is awaited there."""
        addresses = list(filter(is_place, dict.fromkeys(addresses)))[:ADDRESSES]
        if addresses:
            transfer.listener = account
        for mark in secrets:
            self._links.await_(("secret", self._scope, mark), transfer, time_ns)
        for address in addresses:
            self._links.await_(("listening", self._scope, address), transfer, time_ns)
        return [
            Direct(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                pattern=CLIENT_CLIENT,
                conversation=transfer.conversation,
                address=address,
                transport=transport,
                account=account,
            )
            for address in addresses
        ]

    def connected(
        self,
        event: MsnpCommand | MsnpDirect,
        time_ns: int,
        transport: str,
        marks: tuple[str | None, ...],
        own: str | None,
        peer: str | None = None,
    ) -> list[Pattern]:
        """A direct connection shows who it is by a nonce or cookie; else its address tells."""
        keys = [("secret", self._scope, mark) for mark in marks if mark]
        keys.append(("listening", self._scope, self._client.server))
        for key in keys:
            found = self._links.find(key, time_ns)
            if isinstance(found, Transfer):
                self.active = found
                break
        transfer = self.active
        if transfer is not None and peer is None:
            if own is not None:
                peer = transfer.other(own)
            elif self._client.flow.role is Role.CLIENT:
                peer = transfer.listener
            elif transfer.listener is not None:
                peer = transfer.other(transfer.listener)
        return [
            Direct(
                offset=event.offset,
                length=event.length,
                protocol="msnp",
                pattern=CLIENT_CLIENT,
                conversation=transfer.conversation if transfer else None,
                address=str(self._client.flow.remote),
                transport=transport,
                account=peer,
            )
        ]

    def begin(self, size: int) -> None:
        """FIL of MSNFTP: the size of the file that comes."""
        if self.active is None:  # its offer was not seen
            self.active = Transfer("file", None, (), None)
        self.active.size = size

    def ended(self, event: MsnpCommand, code: str) -> list[Pattern]:
        """BYE or CCL of MSNFTP."""
        transfer = self.active
        if transfer is None or transfer.ended:
            return []
        return [transfer.tell(event, "complete" if code in COMPLETED else "cancel")]


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= 18 else None
