"""Single packets to the guest, whole or in fragments."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator

import pytest
from harness.oracle import SeenFragment, SeenUdp, see, whole
from harness.stage import GUEST_MAC, HOST_MAC, Family, network

from trio_passt.flow import packets
from trio_passt.flow.guest import Guest
from trio_passt.flow.session import Session
from trio_passt.flow.translate import AddressMap
from trio_passt.host.readiness import Readiness
from trio_passt.link.memory import MemoryLink
from trio_passt.wire import ip, udp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

MTU_BYTES = 1500
IP_HEADER_BYTES = {4: 20, 6: 40}


@pytest.fixture
def session() -> Iterator[Session]:
    ours = network(mtu_bytes=MTU_BYTES)
    readiness = Readiness()
    made = Session(
        link=MemoryLink(),
        network=ours,
        guest=Guest(ours),
        addresses=AddressMap(ours),
        readiness=readiness,
        drops=Counter(),
        scratch=memoryview(b""),
        secret=b"",
        identifications=itertools.count(0xABCD),
    )
    made.guest.learn_mac(GUEST_MAC)
    yield made
    readiness.close()


def datagram(family: Family, size: int) -> bytes:
    """Of so many bytes, with its header."""
    ends = family.gateway_packed, family.guest_packed
    return udp.emit(*ends, UdpHeader(53, 5000), os.urandom(size - 8))


def send(session: Session, family: Family, payload: bytes) -> tuple[bool, list[bytes]]:
    """Whether all was taken, and what was."""
    link = session.link
    assert isinstance(link, MemoryLink)
    is_taken = packets.send(session, family.gateway_packed, family.guest_packed, IPProtocol.UDP, payload)
    return is_taken, link.take_sent()


@pytest.mark.parametrize("size", [8, 9, 100])
def test_whole(session: Session, family: Family, size: int) -> None:
    payload = datagram(family, size)
    packet = ip.emit_packet(family.gateway_packed, family.guest_packed, IPProtocol.UDP, payload)
    assert send(session, family, payload) == (True, [ip.frame_packet(HOST_MAC, GUEST_MAC, packet)])


@pytest.mark.parametrize("beyond", [-1, 0, 1, 2, 1000, 60_000])
def test_no_packet_is_larger_than_the_mtu(session: Session, family: Family, beyond: int) -> None:
    payload = datagram(family, MTU_BYTES - IP_HEADER_BYTES[family.version] + beyond)
    is_taken, frames = send(session, family, payload)
    assert is_taken
    assert max(map(len, frames)) <= 14 + MTU_BYTES
    assert (len(frames) > 1) == (beyond > 0)
    seen = [see(frame, GUEST_MAC.hex(":")) for frame in frames]
    if beyond > 0:
        fragments = [part for part in seen if isinstance(part, SeenFragment)]
        assert {part.number for part in fragments} == {0xABCD}
        seen = [whole(fragments, GUEST_MAC.hex(":"))]
    assert seen == [SeenUdp(family.gateway, family.guest, 53, 5000, payload[8:])]


def test_whole_ones_take_no_number(session: Session, family: Family) -> None:
    for size in (100, 3000, 100, 3000):
        send(session, family, datagram(family, size))
    assert next(session.identifications) == 0xABCD + 2


@pytest.mark.parametrize(("size", "frames"), [(100, 1), (4000, 3)])
def test_link_that_does_not_take_all(session: Session, family: Family, size: int, frames: int) -> None:
    link = session.link
    assert isinstance(link, MemoryLink)
    for capacity in range(frames):
        link.set_capacity(frames=capacity)
        is_taken, sent = send(session, family, datagram(family, size))
        assert not is_taken
        assert len(sent) == capacity
    link.set_capacity(frames=frames)
    assert send(session, family, datagram(family, size))[0]


def test_guests_latest_mac_address_is_used(session: Session, family: Family) -> None:
    other = bytes.fromhex("525400999999")
    session.guest.learn_mac(other)
    for size in (100, 3000):
        _, frames = send(session, family, datagram(family, size))
        assert {frame[:6] for frame in frames} == {other}
