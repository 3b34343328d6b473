"""Single packets to the guest: those that are no part of a stream or of a bulk of datagrams."""

from trio_passt.flow.session import Session
from trio_passt.wire import fragment, ip, ipv4, ipv6
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ethernet import emit as emit_ethernet
from trio_passt.wire.frames import single


def send(session: Session, source: bytes, destination: bytes, protocol: int, payload: bytes) -> bool:
    """One upper-layer packet between packed addresses, in fragments if the link's MTU asks for them.

    False if the link did not take all of it.
    """
    is_ipv4 = len(source) == 4
    ethertype = EtherType.IPV4 if is_ipv4 else EtherType.IPV6
    ethernet = emit_ethernet(EthernetHeader(session.guest.mac, session.network.host_mac, ethertype))
    mtu_bytes = session.network.link_mtu_bytes
    if len(payload) + (ipv4.HEADER_BYTES if is_ipv4 else ipv6.HEADER_BYTES) <= mtu_bytes:
        packet = ip.emit_packet(source, destination, protocol, payload)
        return session.link.send([single(ethernet, packet)]) == 1
    number = next(session.identifications)
    pieces = fragment.fragments(source, destination, protocol, payload, mtu_bytes, number)
    return session.link.send([single(ethernet, *piece) for piece in pieces]) == len(pieces)
