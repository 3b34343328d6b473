"""What listens: the kernel's own answers, beside ss(8); and parsers that survive anything."""

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.config import Protocol
from trio_passt.host import listening
from trio_passt.host.listening import BoundSocket, Listing, MalformedListing, parse_part, parse_proc_net, request
from trio_passt.host.side import Here

BOTH = list(Protocol)


def bound(opened: ExitStack, protocol: Protocol, address: str, port: int, **options: int) -> int:
    """A socket that listens there; its inode."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    sock = opened.enter_context(socket.socket(family, kind))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.get("v6only", 0))
    if options.get("at_lo"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    if options.get("shared"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    if protocol is Protocol.TCP:
        sock.listen()
    return os.fstat(sock.fileno()).st_ino


@pytest.fixture
def opened(namespace: None) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def read(protocol: Protocol, *, by_proc: bool = False) -> set[BoundSocket]:
    listing = Listing(_ThisThread())
    listing._uses_proc = by_proc
    try:
        found = await listing.read(protocol)
    finally:
        listing.close()
    assert len(set(found)) == len(found)
    return set(found)


class _ThisThread(Here):
    """The test's thread is in a namespace of its own, where `/proc/net` is not."""

    def proc_net(self, name: str) -> bytes:
        return Path(f"/proc/thread-self/net/{name}").read_bytes()


@pytest.mark.parametrize("protocol", BOTH)
async def test_all_that_listens(opened: ExitStack, protocol: Protocol) -> None:
    """With its interface, and whether it takes IPv4, too."""

    def sock(address: str, port: int, **options: int) -> BoundSocket:
        inode = bound(opened, protocol, address, port, **options)
        packed = ip_address(address.removeprefix("::ffff:")).packed
        is_dual = address == "::" and not options.get("v6only", 0)
        return BoundSocket(protocol, packed, port, inode, options.get("at_lo", 0), is_dual)

    expected = {
        sock("0.0.0.0", 8000),
        sock("127.0.0.53", 53),
        sock("::", 8000, v6only=1),
        sock("::", 8001),
        sock("::1", 8002),
        sock("::ffff:127.0.0.1", 8003),
        sock("0.0.0.0", 8004, at_lo=1),
        sock("0.0.0.0", 8005, shared=1),
        sock("0.0.0.0", 8005, shared=1),
    }
    connected = opened.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    connected.connect(("127.0.0.53", 53))
    client = opened.enter_context(socket.socket())
    client.bind(("127.0.0.1", 8007))
    if protocol is Protocol.TCP:
        client.connect(("127.0.0.1", 8000))
    assert await read(protocol) == expected
    known_to_proc = {sock._replace(interface=0, is_dual=sock.is_dual or not any(sock.address)) for sock in expected}
    known_to_proc = {sock._replace(is_dual=sock.is_dual and len(sock.address) == 16) for sock in known_to_proc}
    assert await read(protocol, by_proc=True) == known_to_proc


async def test_what_others_say_is_not_listened_to(opened: ExitStack) -> None:
    """They would have us forward ports, or wait."""
    bound(opened, Protocol.TCP, "127.0.0.1", 8000)
    other = opened.enter_context(Here().diagnostics())
    listing = Listing(Here())
    opened.callback(listing.close)
    (found,) = await listing.read(Protocol.TCP)
    assert listing._netlink is not None
    there = listing._netlink.getsockname()
    for message in (struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -errno.EIO), b"nonsense"):
        assert other.sendto(message, there) == len(message)
    assert await listing.read(Protocol.TCP) == [found]


def ss(protocol: str) -> str:
    return subprocess.run(["ss", "-Hlne", protocol], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("protocol", BOTH)
async def test_ss_says_the_same(opened: ExitStack, protocol: Protocol) -> None:
    for number in range(300):
        bound(opened, protocol, ("127.0.0.1", "::1", "0.0.0.0", "::")[number % 4], 9000 + number)
    output = ss("-t" if protocol is Protocol.TCP else "-u")
    said = set()
    for line in output.splitlines():
        local = line.split()[3]
        inode = next(int(field[4:]) for field in line.split() if field.startswith("ino:"))
        address, _, port = local.rpartition(":")
        text = address.strip("[]").partition("%")[0]
        said.add((ip_address("::" if text == "*" else text).packed, int(port), inode))
    found = await read(protocol)
    assert {(sock.address, sock.port, sock.inode) for sock in found} == said
    assert len(said) == 300


async def test_connections_in_a_state(opened: ExitStack) -> None:
    """Those that have ended without the peer's acknowledgement: whoever waits for that wants to know."""
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 8000)))
    client = opened.enter_context(socket.create_connection(("127.0.0.1", 8000)))
    listing = Listing(Here())
    opened.callback(listing.close)
    assert await listing.read(Protocol.TCP, (listening.FIN_WAIT_1, 5)) == []
    client.shutdown(socket.SHUT_WR)
    (found,) = await listing.read(Protocol.TCP, (listening.FIN_WAIT_1, 5))
    assert found.inode == os.fstat(client.fileno()).st_ino
    assert listener.fileno() >= 0


class _Elsewhere(Here):
    """A side without sock_diag, or with one that fails."""

    def __init__(self, number: int, text: bytes | None = b"head\n") -> None:
        self._number = number
        self._text = text

    def diagnostics(self) -> socket.socket:
        raise OSError(self._number, os.strerror(self._number))

    def proc_net(self, name: str) -> bytes:
        if self._text is None:
            raise FileNotFoundError(errno.ENOENT, name)
        return self._text


@pytest.mark.parametrize("text", [b"head\n", None])
async def test_kernel_without_sock_diag(text: bytes | None) -> None:
    assert await Listing(_Elsewhere(errno.EPROTONOSUPPORT, text)).read(Protocol.UDP) == []


async def test_other_errors_are_errors() -> None:
    with pytest.raises(OSError, match="Too many open files"):
        await Listing(_Elsewhere(errno.EMFILE)).read(Protocol.TCP)
    with pytest.raises(OSError, match="/proc/net/tcp: a line of something else"):
        await Listing(_Elsewhere(errno.ENOENT, b"head\nnonsense\n")).read(Protocol.TCP)


def test_interface_makes_it_loopback() -> None:
    sock = BoundSocket(Protocol.TCP, bytes(4), 80, 1, listening.LOOPBACK_INTERFACE)
    assert sock.is_loopback
    assert sock.is_wildcard
    assert not sock._replace(interface=2).is_loopback
    assert BoundSocket(Protocol.TCP, bytes((127, 0, 0, 53)), 53, 1).is_loopback


# -- arbitrary bytes ---------------------------------------------------------------------------------------------------

_HEADERS = st.builds(
    lambda length, kind, body: length.to_bytes(4, "little") + kind.to_bytes(2, "little") + bytes(10) + body,
    st.integers(0, 300),
    st.sampled_from([2, 3, 20, 7]),
    st.binary(max_size=200),
)


@given(st.one_of(st.binary(max_size=400), st.lists(_HEADERS, max_size=4).map(b"".join)), st.sampled_from(BOTH))
def test_nonsense_of_the_kernel_raises_one_error_only(data: bytes, protocol: Protocol) -> None:
    try:
        part = parse_part(data, protocol)
    except MalformedListing:
        return
    assert all(0 <= sock.port <= 0xFFFF and len(sock.address) in (4, 16) for sock in part.sockets)
    assert part.error >= 0
    assert part.is_last or not part.error


@given(
    st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.from_regex(
                rb"\A *\d+: [0-9A-F]{8}:[0-9A-F]{4} [0-9A-F]{8}:[0-9A-F]{4} 0A 0 0 0 0 0 \d+ 1\n", fullmatch=True
            )
        ).map(lambda lines: b"head\n" + b"".join(lines)),
    ),
    st.sampled_from([socket.AF_INET, socket.AF_INET6]),
)
def test_nonsense_in_proc_raises_one_error_only(text: bytes, family: int) -> None:
    try:
        found = parse_proc_net(text, Protocol.TCP, family, (listening.LISTEN,))
    except MalformedListing:
        return
    assert all(0 <= sock.port <= 0xFFFF and len(sock.address) in (4, 16) for sock in found)


def test_request_is_for_states() -> None:
    assert request(Protocol.TCP, socket.AF_INET, (10, 4), 1)[20:24] == (1 << 10 | 1 << 4).to_bytes(4, "little")
