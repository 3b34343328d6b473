import socket
from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_passt.host.endpoint import Endpoint

ports = st.integers(0, 65535)
ipv4 = st.builds(Endpoint, st.binary(min_size=4, max_size=4), ports)
ipv6 = st.builds(Endpoint, st.binary(min_size=16, max_size=16), ports, st.integers(0, 2**32 - 1)).filter(
    lambda endpoint: IPv6Address(endpoint.address).ipv4_mapped is None
)


def packed(text: str) -> bytes:
    return ip_address(text).packed


@settings(deadline=None)
@given(ipv4 | ipv6)
def test_there_and_back(endpoint: Endpoint) -> None:
    assert Endpoint.of(endpoint.sockaddr()) == endpoint
    assert endpoint.family is (socket.AF_INET if len(endpoint.address) == 4 else socket.AF_INET6)


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [
        (("192.0.2.1", 80), Endpoint(packed("192.0.2.1"), 80)),
        (("2001:db8::1", 80, 0, 0), Endpoint(packed("2001:db8::1"), 80)),
        (("2001:db8::1", 80, 7, 0), Endpoint(packed("2001:db8::1"), 80)),
        (("fe80::1", 80, 0, 3), Endpoint(packed("fe80::1"), 80, 3)),
        (("fe80::1%eth0", 80, 0, 3), Endpoint(packed("fe80::1"), 80, 3)),
        (("::ffff:192.0.2.1", 80, 0, 0), Endpoint(packed("192.0.2.1"), 80)),
        (("::ffff:192.0.2.1", 80, 0, 9), Endpoint(packed("192.0.2.1"), 80)),
    ],
)
def test_from_what_sockets_give(name: tuple[str, int] | tuple[str, int, int, int], endpoint: Endpoint) -> None:
    assert Endpoint.of(name) == endpoint


@pytest.mark.parametrize("local", ["127.0.0.1", "::1"])
def test_kernel_and_endpoint_agree(local: str) -> None:
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as other:
        one.bind(Endpoint(packed(local), 0).sockaddr())
        other.connect(Endpoint.of(one.getsockname()).sockaddr())
        other.send(b"hello")
        _, name = one.recvfrom(10)
        assert Endpoint.of(name) == Endpoint.of(other.getsockname())
        assert Endpoint.of(name).address == packed(local)


def test_ipv4_client_of_a_socket_of_both_families_is_an_ipv4_client() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            connection, name = server.accept()
            connection.close()
            assert Endpoint.of(name) == Endpoint(packed("127.0.0.1"), client.getsockname()[1])


def test_as_text() -> None:
    assert str(Endpoint(packed("192.0.2.1"), 80)) == "192.0.2.1:80"
    assert str(Endpoint(packed("2001:db8::1"), 80)) == "[2001:db8::1]:80"
