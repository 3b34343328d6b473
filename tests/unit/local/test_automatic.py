"""What should be forwarded, by what listens: pure."""

from ipaddress import ip_address

import pytest
from attrs import evolve
from joined import packed

from trio_passt.config import Binding, PortForward, Protocol
from trio_passt.host.listening import LOOPBACK_INTERFACE, BoundSocket
from trio_passt.local.automatic import is_taken, settled, to_guest, to_host, without_reserved

TCP, UDP = Protocol.TCP, Protocol.UDP
ALL = [PortForward(protocol, 1, 65535, 1, binding=Binding.SPARE) for protocol in Protocol]
GUEST = (packed("192.0.2.2"), packed("2001:db8::2"))


def sock(address: str, port: int = 80, protocol: Protocol = TCP, **more: int) -> BoundSocket:
    dual = bool(more.pop("dual", 0))
    return BoundSocket(protocol, packed(address), port, more.pop("inode", 1), more.pop("interface", 0), dual)


def places(forwards: set[PortForward]) -> list[str]:
    assert all(forward.binding is Binding.REQUIRED for forward in forwards)
    assert all(len(forward.ports) == 1 for forward in forwards)
    texts = [f"{one.address} {one.first}" + (f">{one.target}" if one.target != one.first else "") for one in forwards]
    return sorted(texts)


@pytest.mark.parametrize(
    ("listener", "expected", "with_loopback"),
    [
        (sock("0.0.0.0"), ["0.0.0.0 80"], ["0.0.0.0 80"]),
        (sock("::"), [":: 80"], [":: 80"]),
        (sock("::", dual=1), ["0.0.0.0 80", ":: 80"], ["0.0.0.0 80", ":: 80"]),
        (sock("192.0.2.2"), ["0.0.0.0 80"], ["0.0.0.0 80"]),
        (sock("2001:db8::2"), [":: 80"], [":: 80"]),
        (sock("198.51.100.9"), [], []),  # a bridge's in there: nothing that we dial leads to it
        (sock("127.0.0.1"), [], ["127.0.0.1 80"]),
        (sock("127.0.0.53"), [], ["127.0.0.53 80"]),
        (sock("::1"), [], ["::1 80"]),
        (sock("0.0.0.0", interface=LOOPBACK_INTERFACE), [], ["127.0.0.1 80"]),
        (sock("0.0.0.0", interface=2), ["0.0.0.0 80"], ["0.0.0.0 80"]),
        (sock("0.0.0.0", 68, UDP), [], []),
        (sock("::", 546, UDP), [], []),
        (sock("0.0.0.0", 68, TCP), ["0.0.0.0 68"], ["0.0.0.0 68"]),
    ],
)
def test_to_the_guest(listener: BoundSocket, expected: list[str], with_loopback: list[str]) -> None:
    assert places(to_guest(ALL, [listener], GUEST, to_loopback=False)) == expected
    assert places(to_guest(ALL, [listener], GUEST, to_loopback=True)) == with_loopback
    assert places(to_guest(ALL, [listener, listener._replace(inode=2)], GUEST, to_loopback=False)) == expected


@pytest.mark.parametrize(
    ("listener", "expected"),
    [
        (sock("0.0.0.0"), ["127.0.0.1 80"]),
        (sock("::"), ["::1 80"]),
        (sock("::", dual=1), ["127.0.0.1 80", "::1 80"]),
        (sock("127.0.0.1"), ["127.0.0.1 80"]),
        (sock("127.0.0.53", 53, UDP), ["127.0.0.53 53"]),
        (sock("::1"), ["::1 80"]),
        (sock("192.0.2.2"), []),
        (sock("0.0.0.0", interface=2), []),
        (sock("0.0.0.0", interface=LOOPBACK_INTERFACE), ["127.0.0.1 80"]),
        (sock("0.0.0.0", 67, UDP), []),
    ],
)
def test_to_the_host(listener: BoundSocket, expected: list[str]) -> None:
    assert places(to_host(ALL, [listener])) == expected


def test_only_what_is_asked_for() -> None:
    """Some ports, a protocol, a target that is another port, an address of one family, an interface."""
    some = PortForward(TCP, 8000, 8009, 80)
    there = [sock("0.0.0.0", port) for port in (79, 80, 89, 90)] + [sock("0.0.0.0", 80, UDP)]
    assert places(to_guest([some], there, GUEST, to_loopback=False)) == ["0.0.0.0 8000>80", "0.0.0.0 8009>89"]
    assert places(to_host([some], there)) == ["127.0.0.1 8000>80", "127.0.0.1 8009>89"]
    local = evolve(some, address=ip_address("127.0.0.9"))
    assert places(to_guest([local], there, GUEST, to_loopback=False)) == ["127.0.0.9 8000>80", "127.0.0.9 8009>89"]
    assert places(to_guest([local], [sock("::")], GUEST, to_loopback=False)) == []
    assert places(to_host([local], [sock("127.0.0.1")])) == []
    at_eth0 = evolve(some, interface="eth0")
    (forward, *_) = to_guest([at_eth0], [sock("0.0.0.0")], GUEST, to_loopback=False)
    assert forward.interface == "eth0"
    assert to_guest([], there, GUEST, to_loopback=True) == to_host([], there) == set()


def test_port_that_a_server_is_expected_at_is_left_to_it() -> None:
    """`-t 8080:80`: what listens at the host's port 80 must not have the namespace's."""
    wanted = to_host(ALL, [sock("0.0.0.0", 80), sock("0.0.0.0", 80, UDP), sock("0.0.0.0", 81)])
    named = [PortForward(TCP, 8080, 8080, 80)]
    left = without_reserved(wanted, named)
    assert {(forward.protocol, forward.first) for forward in left} == {(UDP, 80), (TCP, 81)}
    assert without_reserved(wanted, []) == wanted


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ("0.0.0.0", sock("127.0.0.1"), True),
        ("127.0.0.1", sock("0.0.0.0"), True),
        ("127.0.0.1", sock("::", dual=1), True),
        ("127.0.0.1", sock("::"), False),
        ("127.0.0.1", sock("127.0.0.2"), False),
        ("::", sock("::1"), True),
        ("::", sock("0.0.0.0"), False),
        ("0.0.0.0", sock("0.0.0.0", 81), False),
        ("0.0.0.0", sock("0.0.0.0", 80, UDP), False),
    ],
)
def test_what_is_in_the_way(own: str, other: BoundSocket, expected: bool) -> None:
    assert is_taken(PortForward(TCP, 80, 80, 80, ip_address(own)), [other]) is expected  # type: ignore[arg-type]


def test_udp_clients_are_looked_at_twice() -> None:
    sockets = [sock("0.0.0.0", 40000, UDP, inode=1), sock("0.0.0.0", 53, UDP, inode=2), sock("0.0.0.0", 40000, inode=3)]
    stay, seen = settled(sockets, range(32768, 61000), set())
    assert [one.inode for one in stay] == [2, 3]
    again, seen = settled([*sockets, sock("0.0.0.0", 40001, UDP, inode=4)], range(32768, 61000), seen)
    assert [one.inode for one in again] == [1, 2, 3]
    assert seen == {1, 4}
