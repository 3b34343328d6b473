"""What the scripted guest says and hears of echo, made and read by scapy."""

from harness.oracle import SeenOther
from harness.stage import Family, Stage
from scapy.config import conf
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

conf.ipv6_enabled = True


def request(
    family: Family,
    identifier: int,
    sequence: int,
    data: bytes = b"",
    remote: str | None = None,
    *,
    hop_limit: int = 64,
) -> bytes:
    """An echo request of the guest's to the gateway, or to another remote."""
    destination = remote or family.gateway
    if family.version == 4:
        message = ICMP(type=8, id=identifier, seq=sequence) / Raw(data)
        return bytes(IP(src=family.guest, dst=destination, ttl=hop_limit) / message)
    message6 = ICMPv6EchoRequest(id=identifier, seq=sequence, data=data)
    return bytes(IPv6(src=family.guest, dst=destination, hlim=hop_limit) / message6)


async def reply(guest: Stage, family: Family, remote: str | None = None) -> tuple[int, int, bytes]:
    """The next echo reply to the guest, from the gateway or another remote: identifier, sequence number, data."""
    return what_replies(await guest.expects_other(), family, remote)


async def reply_in_fragments(guest: Stage, family: Family, remote: str | None = None) -> tuple[int, int, bytes]:
    """The same for one that is larger than the guest's MTU."""
    seen = await guest.expects_in_fragments()
    assert isinstance(seen, SeenOther)
    return what_replies(seen, family, remote)


def what_replies(seen: SeenOther, family: Family, remote: str | None = None) -> tuple[int, int, bytes]:
    """What this reply says."""
    assert (seen.source, seen.destination) == (remote or family.gateway, family.guest)
    if family.version == 4:
        message = seen.packet[ICMP]
        assert (message.type, message.code) == (0, 0)
        return message.id, message.seq, bytes(message.payload)
    message = seen.packet[ICMPv6EchoReply]
    assert message.code == 0
    return message.id, message.seq, bytes(message.data)
