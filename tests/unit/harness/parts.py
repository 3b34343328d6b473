"""A guest's packet in fragments, cut by scapy."""

from scapy.config import conf
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Raw

conf.ipv6_enabled = True


def fragments(packet: bytes, mtu_bytes: int, number: int) -> list[bytes]:
    """An IP packet without extension headers in as few fragments as this MTU lets it, in order, with this number."""
    if packet[0] >> 4 == 4:
        header4, payload = IP(packet[:20]), packet[20:]
        step = (mtu_bytes - 20) // 8 * 8
        return [
            bytes(
                IP(
                    src=header4.src,
                    dst=header4.dst,
                    proto=header4.proto,
                    ttl=header4.ttl,
                    id=number,
                    frag=at // 8,
                    flags="MF" if at + step < len(payload) else 0,
                )
                / Raw(payload[at : at + step])
            )
            for at in range(0, len(payload), step)
        ]
    header6, payload = IPv6(packet[:40]), packet[40:]
    step = (mtu_bytes - 48) // 8 * 8
    return [
        bytes(
            IPv6(src=header6.src, dst=header6.dst, hlim=header6.hlim, nh=44)
            / IPv6ExtHdrFragment(nh=header6.nh, offset=at // 8, m=at + step < len(payload), id=number)
            / Raw(payload[at : at + step])
        )
        for at in range(0, len(payload), step)
    ]
