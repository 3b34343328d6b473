"""What guest and host say to each other in the tests of UDP."""

import socket
from ipaddress import ip_address

from harness.oracle import SeenUdp
from harness.ports import free_udp_port
from harness.stage import Family, Stage
from harness.waiting import eventually

from trio_passt.wire import ip, udp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

GUEST_PORT = 5000

Name = tuple[str, int]
"""Address and port."""

HEADERS_BYTES = {4: 28, 6: 48}


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def free_port(family: Family) -> int:
    """One of the host's that nobody has."""
    return free_udp_port(family.socket_family, family.local)


def arrived(sock: socket.socket) -> tuple[bytes, Name] | None:
    """The next datagram of a host socket, if it is there, and who sent it."""
    try:
        payload, name = sock.recvfrom(65535)
    except BlockingIOError:
        return None
    return payload, name[:2]


async def received(sock: socket.socket) -> tuple[bytes, Name]:
    """The next datagram of a host socket, and who sent it."""
    return await eventually(lambda: arrived(sock), "a datagram at the host")


async def receives(sock: socket.socket, *payloads: bytes) -> Name:
    """These datagrams arrive at the host, in this order, and no others; who sent them all."""
    names = set()
    for payload in payloads:
        got, name = await received(sock)
        assert got == payload
        names.add(name)
    assert arrived(sock) is None
    (name,) = names
    return name


def datagram(
    family: Family,
    guest_port: int,
    remote_port: int,
    payload: bytes,
    *,
    remote: str | None = None,
    source: str | None = None,
    hop_limit: int = 64,
) -> bytes:
    """The guest's IP packet to the gateway's address, or another one's."""
    ends = (ip_address(source or family.guest).packed, ip_address(remote or family.gateway).packed)
    packet = udp.emit(*ends, UdpHeader(guest_port, remote_port), payload)
    return ip.emit_packet(*ends, IPProtocol.UDP, packet, hop_limit)


async def is_asked(guest: Stage, host: socket.socket, family: Family, guest_port: int = GUEST_PORT) -> Name:
    """The host gets a request of the guest's; its view of the guest: the flow's socket."""
    guest.sends_datagram(family, guest_port, port_of(host), b"request")
    return await receives(host, b"request")


async def hears(guest: Stage, family: Family, payload: bytes, ports: tuple[int, int]) -> SeenUdp:
    """The guest gets this datagram from the gateway's address; `ports` are those of source and destination."""
    seen = await guest.expects_datagram()
    assert (seen.source, seen.destination) == (family.gateway, family.guest)
    assert (seen.source_port, seen.destination_port) == ports
    assert seen.payload == payload
    return seen


async def exchange(guest: Stage, host: socket.socket, family: Family, guest_port: int = GUEST_PORT) -> Name:
    """A request and its reply; returns the host's view of the guest: the flow's socket."""
    flow = await is_asked(guest, host, family, guest_port)
    host.sendto(b"reply", flow)
    await hears(guest, family, b"reply", (port_of(host), guest_port))
    return flow
