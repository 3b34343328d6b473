"""The session's capture: every frame that the daemon sent is whole, and its checksums are right."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.dhcp6 import DHCP6_Advertise
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from tests.integration.capture import DAEMON_MAC, examine
from tests.integration.topology import HOST4, HOST6, REMOTE4, REMOTE6

AT_LEAST = {
    "arp": 1,
    "dhcp": 2,
    "dhcpv6": 2,
    "icmp": 20,
    "icmpv6": 20,
    "tcp": 2000,
    "udp": 20,
    "ip": 1000,
    "ipv6": 1000,
}
"""Frames of each protocol that the session's tests cannot have done without."""

ALL_TESTS = 80
"""When fewer were selected, less has been sent."""


@pytest.mark.last
def test_the_session_sent_no_bad_frame(capture: Path, request: pytest.FixtureRequest) -> None:
    verdict = examine(capture)
    assert verdict.problems == []
    if request.session.testscollected >= ALL_TESTS:
        assert {name: count for name in AT_LEAST if (count := verdict.protocols[name]) < AT_LEAST[name]} == {}


def _from_daemon() -> list[Packet]:
    ether = Ether(src=DAEMON_MAC, dst="52:54:00:12:34:56")
    return [
        ether / IP(src=REMOTE4, dst=HOST4) / TCP(sport=1, dport=2) / Raw(b"payload"),
        ether / IPv6(src=REMOTE6, dst=HOST6) / UDP(sport=9, dport=10) / Raw(b"payload"),
        ether / IPv6(src="fe80::1", dst="fe80::2") / UDP(sport=547, dport=546) / DHCP6_Advertise(),
    ]


def test_whole_frames_pass(tmp_path: Path) -> None:
    wrpcap(str(tmp_path / "good.pcap"), _from_daemon())
    verdict = examine(tmp_path / "good.pcap")
    assert verdict.problems == []
    assert verdict.protocols["tcp"] == 1
    assert verdict.protocols["dhcpv6"] == 1


def test_payload_that_looks_like_another_protocol_passes(tmp_path: Path) -> None:
    """Port 6667 is IRC's: with its dissector on, this frame would be malformed."""
    packet = (
        Ether(src=DAEMON_MAC) / IP(src=REMOTE4, dst=HOST4) / TCP(sport=40000, dport=6667) / Raw(b"\x01\x02\r\n" * 20)
    )
    wrpcap(str(tmp_path / "good.pcap"), [packet])
    verdict = examine(tmp_path / "good.pcap")
    assert verdict.problems == []
    assert verdict.protocols["irc"] == 0


@pytest.mark.parametrize(
    ("frame", "offset", "problem"),
    [
        (0, -1, "bad tcp checksum"),
        (0, 14 + 8, "bad ip checksum"),
        (1, -1, "bad udp checksum"),
    ],
)
def test_a_flipped_bit_is_seen(tmp_path: Path, frame: int, offset: int, problem: str) -> None:
    frames = [bytearray(bytes(packet)) for packet in _from_daemon()]
    frames[frame][offset] ^= 0x10
    wrpcap(str(tmp_path / "bad.pcap"), [Ether(bytes(data)) for data in frames])
    (seen,) = examine(tmp_path / "bad.pcap").problems
    assert seen.startswith(f"frame {frame + 1} ")
    assert seen.endswith(problem)


def test_an_option_that_ends_too_early_is_seen(tmp_path: Path) -> None:
    ether = Ether(src=DAEMON_MAC, dst="52:54:00:12:34:56")
    truncated_option = Raw(b"\x19\x05\0\0")  # RDNSS: 40 octets announced, 4 there
    packet = ether / IPv6(src="fe80::1", dst="fe80::2") / ICMPv6ND_RA() / truncated_option
    wrpcap(str(tmp_path / "bad.pcap"), [packet])
    (seen,) = examine(tmp_path / "bad.pcap").problems
    assert seen.endswith("malformed")
