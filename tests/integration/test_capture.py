"""The session's capture: every frame that the daemon sent is whole, and its checksums are right."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP
from scapy.layers.dhcp6 import DHCP6_Advertise
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_RA,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from tests.integration import fragments
from tests.integration.capture import DAEMON_MAC, Verdict, examine, merge
from tests.integration.clients import CAPTURE
from tests.integration.topology import HOST4, HOST6, REMOTE4, REMOTE6, ROUTER4, ROUTER6

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

AT_LEAST_OF_KIND = {
    "ipv4 fragment": 6,
    "ipv6 fragment": 6,
    "icmp 3": 20,
    "icmp 11": 6,
    "icmpv6 1": 20,
    "icmpv6 2": 1,
    "icmpv6 3": 6,
}
"""Fragments; destination unreachable and time exceeded; packet too big."""

AT_LEAST_TO_CLIENTS = {
    "dhcp 2": 10,  # offer
    "dhcp 5": 20,  # ack
    "dhcp 6": 2,  # nak
    "dhcpv6 2": 3,  # advertise
    "dhcpv6 7": 15,  # reply
    "icmpv6 134": 20,  # router advertisement
    "icmpv6 136": 3,  # neighbor advertisement
}
"""Kinds that the tests of clients and observers cannot have done without."""

ETHER = Ether(src=DAEMON_MAC, dst="52:54:00:12:34:56")

ALL_TESTS = 80
"""When fewer were selected, less has been sent."""


@pytest.mark.last
def test_the_session_sent_no_bad_frame(capture: Path, request: pytest.FixtureRequest) -> None:
    verdict = examine(capture)
    assert verdict.problems == []
    if request.session.testscollected >= ALL_TESTS:
        assert {name: count for name in AT_LEAST if (count := verdict.protocols[name]) < AT_LEAST[name]} == {}
        kinds = AT_LEAST_OF_KIND
        assert {name: count for name in kinds if (count := verdict.kinds[name]) < kinds[name]} == {}


@pytest.mark.last
def test_clients_were_sent_no_bad_frame(directory: Path, request: pytest.FixtureRequest) -> None:
    """Each of their daemons wrote a capture; without such a test in this run there is none."""
    captures = sorted(directory.glob(f"*/{CAPTURE}"))
    verdict = examine(merge(captures, directory / "clients.pcapng")) if captures else Verdict()
    assert verdict.problems == []
    if request.session.testscollected >= ALL_TESTS:
        assert verdict.protocols.keys() >= {"arp", "dhcp", "dhcpv6", "icmpv6"}
        kinds = AT_LEAST_TO_CLIENTS
        assert {name: count for name in kinds if (count := verdict.kinds[name]) < kinds[name]} == {}


def _from_daemon() -> list[Packet]:
    return [
        ETHER / IP(src=REMOTE4, dst=HOST4) / TCP(sport=1, dport=2) / Raw(b"payload"),
        ETHER / IPv6(src=REMOTE6, dst=HOST6) / UDP(sport=9, dport=10) / Raw(b"payload"),
        ETHER / IPv6(src="fe80::1", dst="fe80::2") / UDP(sport=547, dport=546) / DHCP6_Advertise(),
    ]


def test_whole_frames_pass(tmp_path: Path) -> None:
    wrpcap(str(tmp_path / "good.pcap"), _from_daemon())
    verdict = examine(tmp_path / "good.pcap")
    assert verdict.problems == []
    assert verdict.protocols["tcp"] == 1
    assert verdict.protocols["dhcpv6"] == 1


def test_payload_that_looks_like_another_protocol_passes(tmp_path: Path) -> None:
    """Port 6667 is IRC's: with its dissector on, this frame would be malformed."""
    packet = ETHER / IP(src=REMOTE4, dst=HOST4) / TCP(sport=40000, dport=6667) / Raw(b"\x01\x02\r\n" * 20)
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
    truncated_option = Raw(b"\x19\x05\0\0")  # RDNSS: 40 octets announced, 4 there
    packet = ETHER / IPv6(src="fe80::1", dst="fe80::2") / ICMPv6ND_RA() / truncated_option
    wrpcap(str(tmp_path / "bad.pcap"), [packet])
    (seen,) = examine(tmp_path / "bad.pcap").problems
    assert seen.endswith("malformed")


def _fragments() -> dict[str, list[Packet]]:
    udp = UDP(sport=9, dport=10) / Raw(bytes(3000))
    ipv4 = IP(src=REMOTE4, dst=HOST4, id=7) / udp
    ipv6 = IPv6(src=REMOTE6, dst=HOST6) / IPv6ExtHdrFragment(id=7) / udp
    return {"ipv4": fragments.split(ETHER, ipv4, 1400), "ipv6": fragments.split(ETHER, ipv6, 1400)}


def _errors() -> dict[str, Packet]:
    """What quotes the guest's datagrams: whole, and as little as RFC 792 allows."""
    ipv4 = bytes(IP(src=HOST4, dst=REMOTE4) / UDP(sport=9, dport=10) / Raw(b"question"))
    ipv6 = bytes(IPv6(src=HOST6, dst=REMOTE6) / UDP(sport=9, dport=10) / Raw(bytes(9000)))[: 1280 - 48]
    from_router4 = ETHER / IP(src=ROUTER4, dst=HOST4)
    from_router6 = ETHER / IPv6(src=ROUTER6, dst=HOST6)
    return {
        "icmp 3": from_router4 / ICMP(type=3, code=3) / Raw(ipv4),
        "icmp 11": from_router4 / ICMP(type=11) / Raw(ipv4[:28]),
        "icmpv6 1": from_router6 / ICMPv6DestUnreach(code=4) / Raw(ipv6),
        "icmpv6 2": from_router6 / ICMPv6PacketTooBig(mtu=1400) / Raw(ipv6),
        "icmpv6 3": from_router6 / ICMPv6TimeExceeded() / Raw(ipv6),
    }


def test_an_option_of_a_wrong_length_is_seen(tmp_path: Path) -> None:
    options = Raw(b"\x35\x01\x05" + b"\x33\x02\0\0" + b"\xff")  # a lease time of two bytes
    message = BOOTP(op=2, options=b"\x63\x82\x53\x63") / options
    packet = ETHER / IP(src=ROUTER4, dst=HOST4) / UDP(sport=67, dport=68) / message
    wrpcap(str(tmp_path / "bad.pcap"), [packet])
    verdict = examine(tmp_path / "bad.pcap")
    assert verdict.kinds == {"dhcp 5": 1}
    (seen,) = verdict.problems
    assert seen.endswith("an error: length isn't 4")


def test_fragments_and_errors_pass_and_are_counted(tmp_path: Path) -> None:
    parts, errors = _fragments(), _errors()
    wrpcap(str(tmp_path / "good.pcap"), [*parts["ipv4"], *parts["ipv6"], *errors.values()])
    verdict = examine(tmp_path / "good.pcap")
    assert verdict.problems == []
    assert verdict.kinds == {"ipv4 fragment": 3, "ipv6 fragment": 3} | dict.fromkeys(errors, 1)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_fragment_that_lacks_is_seen(tmp_path: Path, version: str, lacking: int) -> None:
    parts = _fragments()[version]
    del parts[lacking]
    wrpcap(str(tmp_path / "bad.pcap"), parts)
    problems = examine(tmp_path / "bad.pcap").problems
    assert len(problems) == 2
    assert all(problem.endswith("a fragment of what never is whole") for problem in problems)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_a_flipped_bit_in_a_fragment_is_seen(tmp_path: Path, version: str) -> None:
    frames = [bytearray(bytes(packet)) for packet in _fragments()[version]]
    frames[1][-1] ^= 0x10
    wrpcap(str(tmp_path / "bad.pcap"), [Ether(bytes(data)) for data in frames])
    (seen,) = examine(tmp_path / "bad.pcap").problems
    assert seen.startswith("frame 3 ")
    assert seen.endswith("bad udp checksum")


def test_a_flipped_bit_in_what_an_error_quotes_is_seen(tmp_path: Path) -> None:
    data = bytearray(bytes(_errors()["icmp 3"]))
    data[14 + 20 + 8 + 8] ^= 0x10  # the time to live in the quoted header
    packet = Ether(bytes(data))
    del packet[ICMP].chksum
    wrpcap(str(tmp_path / "bad.pcap"), [packet])
    (seen,) = examine(tmp_path / "bad.pcap").problems
    assert seen.endswith("bad ip checksum")


def test_an_icmpv6_error_that_is_too_long_is_seen(tmp_path: Path) -> None:
    packet = _errors()["icmpv6 2"]
    packet[Raw].load += b"!"
    wrpcap(str(tmp_path / "bad.pcap"), [packet])
    (seen,) = examine(tmp_path / "bad.pcap").problems
    assert seen.endswith("an ICMPv6 error of more than 1280 bytes")
