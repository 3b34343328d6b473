"""What a DHCPv6 client sends, as scapy writes it, and what it reads of the answer."""

from __future__ import annotations

from ipaddress import IPv6Address

from link_setup import GUEST_LINK_LOCAL, GUEST_MAC, GUEST_MAC_TEXT, HOST_MAC_TEXT, NETWORK, dissect
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Reply,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIA_TA,
    DHCP6OptIAAddress,
    DHCP6OptServerId,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from trio_passt.config import GuestNetwork
from trio_passt.services import dhcpv6, host_side

ADDRESS, OTHER, OFF_LINK = "2001:db8:1:2::5", "2001:db8:1:2::77", "2001:db8:9:9::1"
SERVER_DUID = dhcpv6.server_duid(NETWORK)
CLIENT = DHCP6OptClientId(duid=DUID_LL(lladdr=GUEST_MAC_TEXT))
SERVER = DHCP6OptServerId(duid=DUID_LL(lladdr=HOST_MAC_TEXT))
OTHER_SERVER = DHCP6OptServerId(duid=DUID_LL(lladdr="02:00:00:00:00:09"))
SOURCE = IPv6Address(GUEST_LINK_LOCAL).packed
SUCCESS, NO_ADDRESSES, NO_BINDING, NOT_ON_LINK, USE_MULTICAST, NO_PREFIX = 0, 2, 3, 4, 5, 6


def ia_na(*addresses: str, iaid: int = 1) -> Packet:
    return DHCP6OptIA_NA(iaid=iaid, ianaopts=[DHCP6OptIAAddress(addr=address) for address in addresses])


def ia_ta(*addresses: str, iaid: int = 1) -> Packet:
    return DHCP6OptIA_TA(iaid=iaid, iataopts=[DHCP6OptIAAddress(addr=address) for address in addresses])


def answer(message: Packet | bytes, network: GuestNetwork = NETWORK, *, to_group: bool = True) -> bytes | None:
    duid = dhcpv6.server_duid(network)
    return dhcpv6.answer(GUEST_MAC, SOURCE, bytes(message), network, duid, to_group=to_group)


def reply_to(
    message: Packet, network: GuestNetwork = NETWORK, kind: type[Packet] = DHCP6_Reply, *, to_group: bool = True
) -> Packet:
    """The message that answers, of the right kind and from the right place, or the test fails."""
    reply = dissect(answer(message, network, to_group=to_group))
    assert (reply.src, reply.dst) == (HOST_MAC_TEXT, GUEST_MAC_TEXT)
    assert (reply[IPv6].src, reply[IPv6].dst) == ("fe80::1", GUEST_LINK_LOCAL)
    assert (reply[UDP].sport, reply[UDP].dport) == (547, 546)
    assert isinstance(reply[UDP].payload, kind)
    assert reply[UDP].payload.trid == message.trid
    assert bytes(reply[DHCP6OptServerId].duid) == SERVER_DUID
    return reply[UDP].payload


def layers_of(packet: Packet) -> list[Packet]:
    """A message and its options, in order; scapy nests them."""
    layers = []
    while packet:
        layers.append(packet)
        packet = packet.payload
    return layers


def associations_of(reply: Packet) -> list[Packet]:
    kinds = (DHCP6OptIA_NA, DHCP6OptIA_TA, DHCP6OptIA_PD)
    return [layer for layer in layers_of(reply) if isinstance(layer, kinds)]


def contents_of(reply: Packet) -> dict[int, list[Packet]]:
    """What is in each IA, by its identifier."""
    names = {DHCP6OptIA_NA: "ianaopts", DHCP6OptIA_TA: "iataopts", DHCP6OptIA_PD: "iapdopt"}
    return {ia.iaid: getattr(ia, names[type(ia)]) for ia in associations_of(reply)}


def lifetimes_of(reply: Packet, iaid: int = 1) -> dict[str, tuple[int, int]]:
    """Preferred and valid lifetime of each address in the IA."""
    return {option.addr: (option.preflft, option.validlft) for option in contents_of(reply)[iaid]}


def check_bound(ia: Packet, iaid: int = 1) -> None:
    """The IA has the guest's address, and nothing else."""
    (address,) = ia.ianaopts
    assert (ia.iaid, address.addr) == (iaid, ADDRESS)
    assert (ia.T1, ia.T2) == (host_side.RENEWAL_S, host_side.REBINDING_S)
    assert ia.T1 < ia.T2 < address.preflft == address.validlft == host_side.LEASE_S


def check_parameters(reply: Packet) -> None:
    assert reply[DHCP6OptDNSServers].dnsservers == ["2001:db8::53", "2001:db8::54"]
    assert [name.rstrip(".") for name in reply[DHCP6OptDNSDomains].dnsdomains] == ["lab.example.com", "example.com"]
