from ipaddress import IPv6Address

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from link_setup import (
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    GUEST_MAC_TEXT,
    HOST_MAC_TEXT,
    LOCAL_MODE,
    NETWORK,
    NO_NETWORK,
    dissect,
)
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.packet import Packet, Raw
from scapy.utils6 import in6_getnsma, in6_ptop

from trio_passt.config import GuestIPv6, GuestNetwork, HostAddress, Resolvers
from trio_passt.services import ndp
from trio_passt.wire import icmp, ipv6
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.icmp import IcmpMessage

SLLA = ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC_TEXT)


def group_of(target: str) -> str:
    return in6_ptop(IPv6Address(in6_getnsma(IPv6Address(target).packed)).compressed)


def send(packet: Packet, network: GuestNetwork = NETWORK) -> bytes | None:
    """What the dispatcher does with a guest's packet."""
    header, payload = ipv6.parse(bytes(packet))
    message = icmp.parse(header.source, header.destination, payload)
    return ndp.answer(GUEST_MAC, header.source, header.destination, header.hop_limit, message, network)


def solicit(target: str, source: str = GUEST_LINK_LOCAL, to: str | None = None, **fields: int) -> Packet:
    head = IPv6(src=source, dst=to or group_of(target), **({"hlim": 255} | fields)) / ICMPv6ND_NS(tgt=target)
    return head if source == "::" else head / SLLA


def router_solicitation(source: str = GUEST_LINK_LOCAL, to: str = "ff02::2", **fields: int) -> Packet:
    return IPv6(src=source, dst=to, **({"hlim": 255} | fields)) / ICMPv6ND_RS()


@pytest.mark.parametrize(
    ("target", "router"), [("fe80::1", 1), ("2001:db8:1:2::77", 0), ("2001:db8:9::1", 0), ("fe80::77", 0)]
)
def test_the_host_is_every_neighbour(target: str, router: int) -> None:
    reply = dissect(send(solicit(target)))
    assert (reply.dst, reply.src) == (GUEST_MAC_TEXT, HOST_MAC_TEXT)
    assert (reply[IPv6].src, reply[IPv6].dst, reply[IPv6].hlim) == (target, GUEST_LINK_LOCAL, 255)
    advertised = reply[ICMPv6ND_NA]
    assert (advertised.tgt, advertised.R, advertised.S, advertised.O) == (target, router, 1, 1)
    assert advertised[ICMPv6NDOptDstLLAddr].lladdr == HOST_MAC_TEXT


def test_unicast_solicitation_is_answered() -> None:
    assert dissect(send(solicit("fe80::1", source="2001:db8:1:2::5", to="fe80::1")))[ICMPv6ND_NA].S == 1


def with_code(packet: Packet, code: int) -> Packet:
    packet[IPv6].payload.code = code
    return packet


def short(message: Packet, size: int) -> Packet:
    """The message's beginning, with a checksum that is right."""
    ends = {"src": GUEST_LINK_LOCAL, "dst": group_of("fe80::1")}
    packed = IPv6Address(ends["src"]).packed, IPv6Address(ends["dst"]).packed
    body = memoryview(bytes(message)[4:size])
    return IPv6(**ends, hlim=255, nh=58) / Raw(icmp.emit(*packed, IcmpMessage(message.type, 0, body)))


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(solicit("2001:db8:1:2::5"), id="its own address"),
        pytest.param(solicit("2001:db8:1:2::5", source="::"), id="DAD of its own address"),
        pytest.param(solicit(GUEST_LINK_LOCAL, source="::"), id="DAD of its link-local address"),
        pytest.param(solicit("2001:db8:1:2:5054:ff:fe12:3456", source="::"), id="DAD of a SLAAC address"),
        pytest.param(solicit(GUEST_LINK_LOCAL), id="about itself"),
        pytest.param(solicit("::", to="ff02::1:ff00:0"), id="about no address"),
        pytest.param(solicit("::1"), id="about loopback"),
        pytest.param(router_solicitation(to="fe80::77"), id="RS to a neighbour that is no router"),
        pytest.param(router_solicitation(to="2001:db8:1:2::77"), id="RS to a host"),
        pytest.param(router_solicitation(to="ff02::1:ff00:1"), id="RS to another group"),
        pytest.param(IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt="fe80::9"), id="NA"),
        pytest.param(IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1", hlim=255) / ICMPv6ND_RA(), id="RA"),
    ],
)
def test_silence(packet: Packet) -> None:
    assert send(packet) is None


def test_dad_of_an_address_that_stands_for_the_host_finds_it_taken() -> None:
    mapped = evolve(NETWORK, host_addresses=(HostAddress(IPv6Address("2001:db8:1:2::88"), IPv6Address("::1")),))
    probe = solicit("2001:db8:1:2::88", source="::")
    reply = dissect(send(probe, mapped))
    assert (reply[IPv6].dst, reply[ICMPv6ND_NA].tgt, reply[ICMPv6ND_NA].R) == ("ff02::1", "2001:db8:1:2::88", 0)
    assert send(probe) is None


def test_dad_of_the_routers_address_finds_it_taken() -> None:
    reply = dissect(send(solicit("fe80::1", source="::")))
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (reply[ICMPv6ND_NA].S, reply[ICMPv6ND_NA].O) == (0, 1)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(solicit("fe80::1", hlim=254), id="hop limit"),
        pytest.param(solicit("fe80::1", to="ff02::1"), id="all nodes instead of the target's group"),
        pytest.param(solicit("fe80::1", to="ff02::1:ff00:2"), id="another target's group"),
        pytest.param(solicit("fe80::1", source="::", to="fe80::1"), id="DAD by unicast"),
        pytest.param(solicit("fe80::1", source="::") / SLLA, id="DAD with a link-layer address"),
        pytest.param(solicit("ff02::5", to="ff02::1:ff00:5"), id="group as target"),
        pytest.param(solicit("fe80::1", source="ff02::1"), id="group as source"),
        pytest.param(solicit("fe80::1") / ICMPv6NDOptMTU(len=0), id="option of no length"),
        pytest.param(solicit("fe80::1", hlim=0), id="no hop limit"),
        pytest.param(solicit("fe80::1", source="ff02::1:ff00:1"), id="its own group as source"),
        pytest.param(solicit("2001:db8::1", to="ff02::2"), id="all routers instead of the target's group"),
        pytest.param(solicit("fe80::1", source="::", to="ff02::1"), id="DAD to all nodes"),
        pytest.param(with_code(solicit("fe80::1"), 1), id="code"),
        pytest.param(with_code(router_solicitation(), 1), id="code of an RS"),
        pytest.param(short(ICMPv6ND_NS(tgt="fe80::1"), 23), id="23 bytes"),
        pytest.param(short(ICMPv6ND_RS(), 7), id="RS of 7 bytes"),
        pytest.param(router_solicitation() / ICMPv6NDOptMTU(len=0), id="RS with option of no length"),
        pytest.param(router_solicitation("::") / SLLA, id="RS from :: with SLLA"),
        pytest.param(router_solicitation(hlim=64), id="RS from afar"),
        pytest.param(router_solicitation(source="ff02::1"), id="RS from a group"),
    ],
)
def test_what_rfc_4861_wants_discarded_is_malformed(packet: Packet) -> None:
    with pytest.raises(MalformedPacket):
        send(packet)


def check_advertisement(packet: Packet, router_lifetime_s: int = ndp.ROUTER_LIFETIME_S) -> None:
    assert packet.src == HOST_MAC_TEXT
    assert (packet[IPv6].src, packet[IPv6].hlim) == ("fe80::1", 255)
    router = packet[ICMPv6ND_RA]
    assert (router.M, router.O, router.routerlifetime) == (1, 1, router_lifetime_s)
    prefix = packet[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("2001:db8:1:2::", 64, 1, 1)
    assert 0 < prefix.preferredlifetime <= prefix.validlifetime
    assert packet[ICMPv6NDOptMTU].mtu == 65520
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == HOST_MAC_TEXT
    assert packet[ICMPv6NDOptRDNSS].dns == ["2001:db8::53", "2001:db8::54"]
    assert [name.rstrip(".") for name in packet[ICMPv6NDOptDNSSL].searchlist if name != "."] == [
        "lab.example.com",
        "example.com",
    ]
    assert packet[ICMPv6NDOptRDNSS].lifetime == packet[ICMPv6NDOptDNSSL].lifetime == router_lifetime_s


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(router_solicitation() / SLLA, id="to all routers"),
        pytest.param(router_solicitation(), id="without link-layer address"),
        pytest.param(router_solicitation(to="fe80::1"), id="to the router"),
        pytest.param(router_solicitation(to="ff02::1"), id="to all nodes"),
    ],
)
def test_router_solicitation_is_answered_to_its_source(asked: Packet) -> None:
    reply = dissect(send(asked))
    assert (reply.dst, reply[IPv6].dst) == (GUEST_MAC_TEXT, GUEST_LINK_LOCAL)
    check_advertisement(reply)


def test_router_solicitation_from_nowhere_is_answered_to_all() -> None:
    reply = dissect(send(router_solicitation("::")))
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    check_advertisement(reply)


@pytest.mark.parametrize("lifetime_s", [1800, 0])
def test_unsolicited_advertisement(lifetime_s: int) -> None:
    packet = dissect(ndp.advertisement(NETWORK, router_lifetime_s=lifetime_s))
    assert (packet.dst, packet[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    check_advertisement(packet, lifetime_s)


@pytest.mark.parametrize(("mtu_bytes", "told"), [(0, None), (1279, None), (1280, 1280), (1500, 1500)])
def test_mtu_is_told_if_ipv6_may_have_it(mtu_bytes: int, told: int | None) -> None:
    packet = dissect(ndp.advertisement(evolve(NETWORK, mtu_bytes=mtu_bytes)))
    assert (packet[ICMPv6NDOptMTU].mtu if ICMPv6NDOptMTU in packet else None) == told


def test_a_host_without_default_route_is_no_router() -> None:
    offline = evolve(NETWORK, ipv6_offline=True)
    for frame in (ndp.advertisement(offline), send(router_solicitation(), offline)):
        packet = dissect(frame)
        assert packet[ICMPv6ND_RA].routerlifetime == 0
        assert packet[ICMPv6NDOptRDNSS].lifetime == packet[ICMPv6NDOptDNSSL].lifetime == ndp.ROUTER_LIFETIME_S
        prefix = packet[ICMPv6NDOptPrefixInfo]
        assert (prefix.prefix, prefix.validlifetime, prefix.preferredlifetime) == ("2001:db8:1:2::", 86400, 14400)


def test_local_mode_has_a_router_and_no_prefix() -> None:
    packet = dissect(ndp.advertisement(LOCAL_MODE))
    assert packet[IPv6].src == "fe80::1"
    router = packet[ICMPv6ND_RA]
    assert (router.M, router.O, router.routerlifetime) == (0, 1, ndp.ROUTER_LIFETIME_S)
    for option in (ICMPv6NDOptPrefixInfo, ICMPv6NDOptRDNSS, ICMPv6NDOptDNSSL):
        assert option not in packet


def test_prefix_is_the_64_of_the_address_whatever_the_hosts() -> None:
    for length in (48, 128):
        guest = GuestIPv6(IPv6Address("2001:db8:1:2::5"), length, IPv6Address("fe80::1"))
        packet = dissect(ndp.advertisement(evolve(NETWORK, ipv6=guest)))
        assert packet[ICMPv6NDOptPrefixInfo].prefix == "2001:db8:1:2::"


@pytest.mark.parametrize("gateway", ["2001:db8:1:2::1", "::", "2001:db8:1:2::5"])
def test_router_address_is_link_local_even_if_the_gateways_is_not(gateway: str) -> None:
    guest = GuestIPv6(IPv6Address("2001:db8:1:2::5"), 64, IPv6Address(gateway))
    network = evolve(NETWORK, ipv6=guest)
    packet = dissect(ndp.advertisement(network))
    assert packet[IPv6].src == "fe80::9855:9aff:fe55:9a55"
    assert dissect(send(solicit(packet[IPv6].src), network))[ICMPv6ND_NA].R == 1


def test_advertisement_fits_the_smallest_mtu() -> None:
    many = Resolvers(
        ipv6=tuple(IPv6Address(0x20010DB8 << 96 | index) for index in range(100)),
        search=tuple(f"domain-{index}.example.com" for index in range(100)),
    )
    frame = ndp.advertisement(evolve(NETWORK, resolvers=many))
    assert len(frame) <= 14 + 1280
    packet = dissect(frame)
    assert packet[ICMPv6NDOptRDNSS].dns[0] == "2001:db8::"
    assert packet[ICMPv6NDOptDNSSL].searchlist[0].startswith("domain-0.")


def test_names_that_dns_cannot_write_are_left_out() -> None:
    network = evolve(NETWORK, resolvers=Resolvers(search=("bad..name", "ä.example", "good.example.")))
    searchlist = dissect(ndp.advertisement(network))[ICMPv6NDOptDNSSL].searchlist
    assert [name for name in searchlist if name != "."] == ["good.example."]


def test_solicitation_for_the_guests_address() -> None:
    (frame,) = ndp.solicitations(NETWORK)
    packet = dissect(frame)
    assert (packet.dst, packet.src) == ("33:33:ff:00:00:05", HOST_MAC_TEXT)
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == ("fe80::1", "ff02::1:ff00:5", 255)
    assert packet[ICMPv6ND_NS].tgt == "2001:db8:1:2::5"
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == HOST_MAC_TEXT


def test_router_is_never_at_the_address_of_a_guest_that_has_our_mac() -> None:
    """libvirt 9.0 runs passt with the guest's own MAC address as `--mac-addr`."""
    guest = GuestIPv6(IPv6Address("2001:db8:1:2::5"), 64, IPv6Address("2001:db8:1:2::1"))
    network = evolve(NETWORK, ipv6=guest, host_mac=GUEST_MAC)
    assert send(solicit(GUEST_LINK_LOCAL, source="::"), network) is None
    packet = dissect(ndp.advertisement(network))
    assert (packet.src, packet[IPv6].src) == (GUEST_MAC_TEXT, "fe80::9855:9aff:fe55:9a55")


def test_no_ipv6_no_answer() -> None:
    assert send(solicit("fe80::1"), NO_NETWORK) is None
    for function in (ndp.advertisement, ndp.solicitations):
        with pytest.raises(ValueError, match="IPv6"):
            function(NO_NETWORK)


@settings(deadline=None)
@given(st.integers(0, 100), st.floats(0, 1))
def test_intervals_are_those_of_rfc_4861(sent_so_far: int, random_unit: float) -> None:
    interval_s = ndp.next_interval_s(sent_so_far, random_unit)
    if sent_so_far < 3:
        assert interval_s == 16
    else:
        assert 200 <= interval_s <= 600
    assert ndp.next_interval_s(10, 0.0) < ndp.next_interval_s(10, 0.5) < ndp.next_interval_s(10, 1.0)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(132, 137),
    st.sampled_from(["::", GUEST_LINK_LOCAL, "ff02::1", "2001:db8:1:2::5"]),
    st.sampled_from(["fe80::1", "ff02::1", "ff02::2", "ff02::1:ff00:1"]),
    st.sampled_from([b"", bytes(4) + IPv6Address("fe80::1").packed]),
    st.binary(max_size=100),
)
def test_arbitrary_bytes(kind: int, source: str, destination: str, head: bytes, data: bytes) -> None:
    addresses = IPv6Address(source).packed, IPv6Address(destination).packed
    message = IcmpMessage(kind, 0, memoryview(head + data))
    try:
        frame = ndp.answer(GUEST_MAC, *addresses, 255, message, NETWORK)
    except MalformedPacket:
        return
    assert frame is None or dissect(frame)[IPv6].hlim == 255


@pytest.mark.parametrize("packet", [solicit("fe80::1"), router_solicitation() / SLLA])
def test_truncation_and_lying_lengths(packet: Packet) -> None:
    header, payload = ipv6.parse(bytes(packet))
    message = icmp.parse(header.source, header.destination, payload)
    body = bytes(message.body)
    spoilt = [body[:index] + bytes((value,)) + body[index + 1 :] for index in range(len(body)) for value in (0, 1, 255)]
    for each in [body[:index] for index in range(len(body))] + spoilt:
        changed = IcmpMessage(message.type, 0, memoryview(each))
        try:
            frame = ndp.answer(GUEST_MAC, header.source, header.destination, 255, changed, NETWORK)
        except MalformedPacket:
            continue
        assert frame is None or dissect(frame)[IPv6].hlim == 255
