"""A guest's packets in fragments, of each protocol: put together they are as good as whole ones."""

import errno
import os
import random
import socket
import struct
from collections.abc import Sequence
from itertools import permutations

import pytest
from harness.oracle import SeenError
from harness.parts import fragments
from harness.stage import GUEST_MAC, HOST_MAC, V4, V6, Family, Stage, network, on_stage, segment_packet
from harness.waiting import eventually
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Raw

from trio_passt.host import sockets
from trio_passt.icmp.flow import warn_no_permission
from trio_passt.wire import ip, udp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.reassembly import DATAGRAMS, REASSEMBLY_S
from trio_passt.wire.tcp import ACK, SYN
from trio_passt.wire.udp import UdpHeader

pytestmark = pytest.mark.usefixtures("standing_clock")

QUOTED_BYTES = {V4: 576 - 28, V6: 1280 - 48}
MULTICAST = {V4: "224.0.0.251", V6: "ff02::fb"}


def datagram(family: Family, port: int, payload: bytes, *, hop_limit: int = 64, remote: bytes | None = None) -> bytes:
    """The guest's IP packet to a port of the gateway's."""
    ends = family.guest_packed, remote or family.gateway_packed
    return ip.emit_packet(*ends, IPProtocol.UDP, udp.emit(*ends, UdpHeader(5000, port), payload), hop_limit)


def cut(packet: bytes, number: int = 7, mtu_bytes: int = 1280) -> list[bytes]:
    return fragments(packet, mtu_bytes, number)


async def arrives(sock: socket.socket, *payloads: bytes) -> None:
    """These, in this order, and no others."""

    def look() -> bytes | None:
        try:
            return sock.recv(65535)
        except BlockingIOError:
            return None

    for payload in payloads:
        assert await eventually(look, "a datagram at the host") == payload
    assert look() is None


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


class TestDatagrams:
    @pytest.mark.parametrize("size", [1281, 1400, 2000, 9000, 65507])
    async def test_in_order(self, guest: Stage, family: Family, size: int) -> None:
        host, payload = guest.host_udp(family), os.urandom(size)
        guest.sends_packets(*cut(datagram(family, port_of(host), payload)))
        await arrives(host, payload)
        await guest.expects_nothing()
        assert not guest.session.drops

    async def test_in_any_order(self, guest: Stage, family: Family) -> None:
        host, payload = guest.host_udp(family), os.urandom(4500)
        parts = cut(datagram(family, port_of(host), payload))
        assert len(parts) == 4
        for number, order in enumerate(permutations(range(4))):
            parts = cut(datagram(family, port_of(host), payload), number)
            guest.sends_packets(*(parts[index] for index in order))
            await arrives(host, payload)

    async def test_in_batches_of_their_own(self, guest: Stage, family: Family) -> None:
        host, payload = guest.host_udp(family), os.urandom(4500)
        for part in cut(datagram(family, port_of(host), payload)):
            await guest.settles()
            guest.sends_packets(part)
        await arrives(host, payload)

    async def test_of_several_datagrams_mixed(self, guest: Stage, family: Family) -> None:
        host = guest.host_udp(family)
        payloads = [os.urandom(3000 + number) for number in range(10)]
        parts = [
            part
            for number, payload in enumerate(payloads)
            for part in cut(datagram(family, port_of(host), payload), number)
        ]
        random.Random(1).shuffle(parts)
        guest.sends_packets(*parts)
        found = set()
        for _ in payloads:
            found.add(await eventually(lambda: received(host), "a datagram at the host"))
        assert found == set(payloads)

    async def test_among_whole_ones(self, guest: Stage, family: Family) -> None:
        """All are of one flow, and none is lost."""
        host = guest.host_udp(family)
        large = os.urandom(3000)
        parts = cut(datagram(family, port_of(host), large))
        small = [datagram(family, port_of(host), b"%d" % number) for number in range(20)]
        guest.sends_packets(*small[:10], parts[0], *small[10:15], *parts[1:], *small[15:])
        found = []
        for _ in range(21):
            found.append(await eventually(lambda: received(host), "a datagram at the host"))
        assert [payload for payload in found if payload != large] == [b"%d" % number for number in range(20)]
        assert found.count(large) == 1
        assert len(guest.dispatcher.udp) == 1

    @pytest.mark.interpreted
    async def test_hop_limit_is_the_first_ones(
        self, guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        monkeypatch.setattr(sockets, "set_hop_limit", lambda _sock, hop_limit: seen.append(hop_limit))
        host = guest.host_udp(family)
        guest.sends_packets(*cut(datagram(family, port_of(host), bytes(3000), hop_limit=9)))
        await arrives(host, bytes(3000))
        assert seen == [9]

    async def test_without_a_checksum(self, guest: Stage) -> None:
        host = guest.host_udp(V4)
        packet = datagram(V4, port_of(host), bytes(3000))
        guest.sends_packets(*cut(packet[:26] + bytes(2) + packet[28:]))
        await arrives(host, bytes(3000))

    async def test_with_a_wrong_one(self, guest: Stage, family: Family) -> None:
        host = guest.host_udp(family)
        packet = datagram(family, port_of(host), bytes(3000))
        guest.sends_packets(*cut(packet[:-1] + b"\x01"))
        await guest.expects_drop("malformed")
        await arrives(host)

    async def test_error_about_one_quotes_it_as_if_it_was_whole(
        self, guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_arguments: object) -> tuple[socket.socket, bool]:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

        monkeypatch.setattr(sockets, "open_udp", unreachable)
        sent = datagram(family, 9, os.urandom(3000))
        guest.sends_packets(*cut(sent))
        error = await guest.expects_error()
        quoted = IP(error.quoted) if family is V4 else IPv6(error.quoted)
        assert (quoted.src, quoted.dst) == (family.guest, family.gateway)
        assert (quoted.len if family is V4 else quoted.plen + 40) == len(sent)
        header_bytes = 20 if family is V4 else 40
        assert error.quoted[header_bytes:] == sent[header_bytes : QUOTED_BYTES[family]]

    async def test_behind_extension_headers(self, guest: Stage) -> None:
        """Before the fragment header, and in what was cut (RFC 8200 section 4.5)."""
        host, payload = guest.host_udp(V6), os.urandom(2000)
        options = bytes(IPv6ExtHdrDestOpt(nh=17))
        whole = options + datagram(V6, port_of(host), payload)[40:]
        for extensions in (
            IPv6(src=V6.guest, dst=V6.gateway),
            IPv6(src=V6.guest, dst=V6.gateway) / IPv6ExtHdrDestOpt(),
        ):
            guest.sends_packets(
                *(
                    bytes(extensions / IPv6ExtHdrFragment(nh=60, offset=at // 8, m=at == 0, id=7) / Raw(part))
                    for at, part in ((0, whole[:1200]), (1200, whole[1200:]))
                )
            )
            await arrives(host, payload)

    async def test_to_the_neighbours_are_as_nobodys_as_whole_ones(self, guest: Stage, family: Family) -> None:
        remote = socket.inet_pton(family.socket_family, MULTICAST[family])
        guest.sends_packets(*cut(datagram(family, 5353, bytes(3000), remote=remote)))
        await guest.expects_drop("multicast or broadcast")


def received(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(65535)
    except BlockingIOError:
        return None


class TestOtherProtocols:
    async def test_connection(self, guest: Stage, family: Family) -> None:
        """All of it, from the first SYN on: in small fragments, backwards."""
        server = guest.host_serves(family)
        tcp = guest.tcp(family, server.port)
        number = 0

        def sends(*segments_of: bytes) -> None:
            nonlocal number
            for packet in segments_of:
                number += 1
                guest.sends_packets(*reversed(small_parts(packet, number)))

        sends(segment_packet(family, tcp.segment(SYN, mss=1400)))
        await tcp.expects(SYN | ACK)
        sends(segment_packet(family, tcp.segment(ACK)))
        host = await server.accepts()
        data = os.urandom(3000)
        sends(segment_packet(family, tcp.segment(ACK, data)))
        await host.receives(data)

    async def test_echo_of_the_host(self, guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answered by us without permission for ping sockets, in fragments again if the MTU asks for it."""

        def denied(*_arguments: object) -> socket.socket:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(sockets, "open_ping", denied)
        warn_no_permission.cache_clear()
        data = os.urandom(4000)
        if family is V4:
            packet = bytes(IP(src=V4.guest, dst=V4.gateway) / ICMP(type=8, id=9, seq=7) / Raw(data))
        else:
            packet = bytes(IPv6(src=V6.guest, dst=V6.gateway) / ICMPv6EchoRequest(id=9, seq=7, data=data))
        guest.sends_packets(*cut(packet))
        reply = (await guest.expects_other()).packet
        if family is V4:
            assert (reply[ICMP].id, reply[ICMP].seq, bytes(reply[ICMP].payload)) == (9, 7, data)
        else:
            assert (reply[ICMPv6EchoReply].id, reply[ICMPv6EchoReply].seq, reply[ICMPv6EchoReply].data) == (9, 7, data)

    async def test_unknown_one(self, guest: Stage, family: Family) -> None:
        packet = ip.emit_packet(family.guest_packed, family.gateway_packed, 132, bytes(3000))
        guest.sends_packets(*cut(packet))
        await guest.expects_drop("unknown IP protocol")

    async def test_family_that_is_off(self, family: Family) -> None:
        async with on_stage(network(ipv4=family is not V4, ipv6=family is not V6)) as guest:
            parts = cut(datagram(family, 9, bytes(3000)))
            guest.sends_packets(*parts)
            await guest.expects_drop("address family is off", len(parts))
            await guest.passes(REASSEMBLY_S + 1)
            await guest.expects_nothing()


def small_parts(packet: bytes, number: int) -> list[bytes]:
    """Of 8 bytes each for the first three, and the rest."""
    parts = cut(packet, number, 28 if packet[0] >> 4 == 4 else 56)
    return parts if len(parts) < 5 else cut(packet, number, 700)


# -- what never becomes whole ------------------------------------------------------------------------------------------


class TestTime:
    async def test_sender_hears_that_it_is_over(self, guest: Stage, family: Family) -> None:
        """RFC 792, RFC 4443 section 3.3: time exceeded, code 1, with the first fragment."""
        parts = cut(datagram(family, 9, os.urandom(3000)))
        guest.sends_packets(parts[0], parts[2])
        await guest.passes(REASSEMBLY_S - 1)
        await guest.expects_nothing()
        await guest.passes(2)
        error = await guest.expects_error()
        assert (error.source, error.destination) == (family.gateway, family.guest)
        assert (error.type, error.code, error.info) == ((11, 1, 0) if family is V4 else (3, 1, 0))
        assert error.quoted == parts[0][: QUOTED_BYTES[family]]
        await guest.expects_nothing()
        assert guest.session.drops == {"fragment: reassembly time exceeded": 1}

    async def test_sender_does_not_hear_without_the_first_fragment(self, guest: Stage, family: Family) -> None:
        """RFC 1122 section 3.3.2, RFC 8200 section 4.5."""
        parts = cut(datagram(family, 9, os.urandom(3000)))
        guest.sends_packets(*parts[1:])
        await guest.passes(REASSEMBLY_S + 1)
        await guest.expects_nothing()
        assert guest.session.drops == {"fragment: reassembly time exceeded": 1}

    async def test_there_is_no_error_about_what_went_to_a_group(self, guest: Stage, family: Family) -> None:
        """RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)."""
        remote = socket.inet_pton(family.socket_family, MULTICAST[family])
        guest.sends_packets(cut(datagram(family, 5353, bytes(3000), remote=remote))[0])
        await guest.passes(REASSEMBLY_S + 1)
        await guest.expects_drop("fragment: reassembly time exceeded")
        await guest.expects_nothing()

    async def test_each_has_its_own(self, guest: Stage, family: Family) -> None:
        for number in range(3):
            guest.sends_packets(cut(datagram(family, 9, bytes(3000)), number)[0])
            await guest.passes(10)
        await guest.passes(REASSEMBLY_S - 29)
        for left in (2, 1, 0):
            await guest.expects_error()
            await guest.expects_nothing()
            assert guest.session.drops["fragment: reassembly time exceeded"] == 3 - left
            await guest.passes(10)
        await guest.expects_nothing()

    async def test_one_that_becomes_whole_in_time_is_none(self, guest: Stage, family: Family) -> None:
        host = guest.host_udp(family)
        parts = cut(datagram(family, port_of(host), bytes(3000)))
        guest.sends_packets(*parts[:-1])
        await guest.passes(REASSEMBLY_S - 1)
        guest.sends_packets(parts[-1])
        await arrives(host, bytes(3000))
        await guest.passes(REASSEMBLY_S)
        await guest.expects_nothing()
        guest.sends_packets(cut(datagram(family, 9, bytes(3000)))[0])
        await guest.passes(REASSEMBLY_S + 1)
        await guest.expects_error()

    async def test_gateway_says_it_wherever_the_packet_was_to_go(self, guest: Stage, family: Family) -> None:
        remote = "203.0.113.9" if family is V4 else "2001:db8:9::9"
        packed = socket.inet_pton(family.socket_family, remote)
        guest.sends_packets(cut(datagram(family, 9, bytes(3000), remote=packed))[0])
        await guest.passes(REASSEMBLY_S + 1)
        error = await guest.expects_error()
        assert error.source == family.gateway
        quoted = IP(error.quoted) if family is V4 else IPv6(error.quoted)
        assert quoted.dst == remote


# -- what is wrong with them -------------------------------------------------------------------------------------------


async def test_overlap_is_given_up_and_others_go_on(guest: Stage, family: Family) -> None:
    """RFC 5722: the datagram as a whole, and all that still comes of it."""
    host = guest.host_udp(family)
    bad = cut(datagram(family, port_of(host), bytes(4500)), 1)
    other = cut(datagram(family, port_of(host), b"\x01" * 4500), 1)
    good = cut(datagram(family, port_of(host), b"good" * 800), 2)
    guest.sends_packets(bad[0], good[0], other[0], *bad[1:], *good[1:])
    await arrives(host, b"good" * 800)
    await guest.expects_drop("fragment: overlap")
    assert guest.session.drops["fragment: of a refused datagram"] == len(bad) - 1
    await guest.passes(REASSEMBLY_S + 1)
    await guest.expects_nothing()
    guest.sends_packets(*cut(datagram(family, port_of(host), bytes(4500)), 1))
    await arrives(host, bytes(4500))


async def test_duplicate_does_no_harm(guest: Stage, family: Family) -> None:
    host, payload = guest.host_udp(family), os.urandom(3000)
    parts = cut(datagram(family, port_of(host), payload))
    guest.sends_packets(parts[0], parts[0], parts[1], parts[0], *parts[2:])
    await arrives(host, payload)
    assert guest.session.drops == {"fragment: duplicate": 2}


def raw_fragment(family: Family, offset: int, part: bytes, *, more: bool, number: int = 7) -> bytes:
    """Whatever is wrong with it; headers as the daemon would see them."""
    if family is V4:
        flags = "MF" if more else 0
        return bytes(IP(src=V4.guest, dst=V4.gateway, proto=17, id=number, frag=offset // 8, flags=flags) / Raw(part))
    header = IPv6ExtHdrFragment(nh=17, offset=offset // 8, m=more, id=number)
    return bytes(IPv6(src=V6.guest, dst=V6.gateway) / header / Raw(part))


@pytest.mark.parametrize(
    ("offset", "size", "more", "pointer"),
    [(0, 1001, True, 4), (65528, 100, False, 42)],
    ids=["no multiple of 8", "beyond what a packet may have"],
)
async def test_ipv6_sender_hears_what_is_wrong(guest: Stage, offset: int, size: int, more: bool, pointer: int) -> None:
    """RFC 8200 section 4.5: parameter problem, code 0, pointing at the field."""
    sent = raw_fragment(V6, offset, os.urandom(size), more=more)
    guest.sends_packets(sent)
    error = await guest.expects_error()
    assert (error.source, error.destination) == (V6.gateway, V6.guest)
    assert (error.type, error.code, error.info) == (4, 0, pointer)
    assert error.quoted == sent[: QUOTED_BYTES[V6]]
    assert guest.session.drops == {"malformed": 1}
    await guest.passes(REASSEMBLY_S + 1)
    await guest.expects_nothing()


@pytest.mark.parametrize(("offset", "size", "more"), [(0, 1001, True), (65528, 100, False), (8, 0, True)])
async def test_ipv4_sender_does_not(guest: Stage, offset: int, size: int, more: bool) -> None:
    guest.sends_packets(raw_fragment(V4, offset, bytes(size), more=more))
    await guest.expects_drop("malformed")
    await guest.passes(REASSEMBLY_S + 1)
    await guest.expects_nothing()


async def test_there_is_no_such_error_to_nobody(guest: Stage) -> None:
    """From an address that is none, about what went to a group."""
    part = bytes(IPv6ExtHdrFragment(nh=17, m=1, id=7) / Raw(bytes(1001)))
    for source, destination in (("::", V6.gateway), (V6.guest, "ff02::1"), ("ff02::1", V6.gateway)):
        guest.sends_packets(bytes(IPv6(src=source, dst=destination, nh=44) / Raw(part)))
    await guest.expects_drop("malformed", 3)
    await guest.expects_nothing()


async def test_wrong_ones_cost_the_batch_nothing(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    bad = [raw_fragment(family, 0, bytes(1001), more=True), raw_fragment(family, 65528, bytes(100), more=False)]
    good = cut(datagram(family, port_of(host), b"good" * 800), 2)
    guest.sends_packets(bad[0], good[0], bad[1], *good[1:])
    await arrives(host, b"good" * 800)


async def test_rubbish_in_what_becomes_whole(guest: Stage) -> None:
    """Extension headers that lie, which only the whole shows."""
    lying = bytes((17, 200)) + bytes(14)
    guest.sends_packets(
        *(
            bytes(IPv6(src=V6.guest, dst=V6.gateway) / IPv6ExtHdrFragment(nh=60, offset=at, m=1 - at, id=7) / Raw(part))
            for at, part in ((0, lying[:8]), (1, lying[8:]))
        )
    )
    await guest.expects_drop("malformed")
    host = guest.host_udp(V6)
    guest.sends_packets(*cut(datagram(V6, port_of(host), bytes(3000)), 7))
    await arrives(host, bytes(3000))


async def test_flood_of_first_fragments_leaves_the_way_free(guest: Stage, family: Family) -> None:
    """The oldest make way, and nobody hears of those; each whole datagram among them arrives."""
    host = guest.host_udp(family)
    packets: list[bytes] = []
    for number in range(3 * DATAGRAMS):
        packets.append(raw_fragment(family, 0, bytes(64), more=True, number=1000 + number))
        if number % 100 == 0:
            packets += cut(datagram(family, port_of(host), b"%d" % number + bytes(2000)), number)
    guest.sends_packets(*packets)
    await arrives(host, *(b"%d" % number + bytes(2000) for number in range(0, 3 * DATAGRAMS, 100)))
    assert guest.session.drops["fragment: limit of datagrams"] >= 2 * DATAGRAMS


async def test_fragments_teach_the_guests_addresses(guest: Stage, family: Family) -> None:
    """As every packet does."""
    moved = "198.51.100.77" if family is V4 else "2001:db8:1:2::77"
    mac = bytes.fromhex("525400999999")
    packet = bytearray(raw_fragment(family, 0, bytes(64), more=True))
    at = 12 if family is V4 else 8
    packed = socket.inet_pton(family.socket_family, moved)
    packet[at : at + len(packed)] = packed
    if family is V4:
        fix_header_sum(packet)
    guest.sends_frames(HOST_MAC + mac + (b"\x08\0" if family is V4 else b"\x86\xdd") + bytes(packet))
    await guest.settles()
    assert guest.session.guest.mac == mac != GUEST_MAC
    remote = socket.inet_pton(family.socket_family, "203.0.113.9" if family is V4 else "2001:db8:9::9")
    assert guest.session.guest.address_towards(remote) == packed


def fix_header_sum(packet: bytearray) -> None:
    packet[10:12] = bytes(2)
    total = sum(struct.unpack("!10H", packet[:20]))
    packet[10:12] = struct.pack("!H", 0xFFFF ^ (total % 65535))


def errors_of(guest: Stage) -> Sequence[SeenError]:
    """All that are there."""
    found = []
    while (seen := guest.look(lambda seen: isinstance(seen, SeenError))) is not None:
        assert isinstance(seen, SeenError)
        found.append(seen)
    return found


async def test_full_link_does_not_get_an_error(family: Family) -> None:
    async with on_stage(capacity_frames=0) as guest:
        guest.sends_packets(cut(datagram(family, 9, bytes(3000)))[0])
        await guest.passes(REASSEMBLY_S + 1)
        await guest.expects_drop("link to the guest full")
        guest.link.set_capacity(frames=None)
        assert errors_of(guest) == []
