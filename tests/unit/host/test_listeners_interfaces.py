"""Ports that are forwarded at an interface, which goes and comes again under its name: it is another one then."""

import errno
import logging
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio
from forwarded_ports import BOTH, Recorder
from harness.stage import V4, V6, Family
from harness.waiting import eventually

from trio_passt.config import Binding, PortForward, Protocol
from trio_passt.host.listeners import PortListeners, UdpPort
from trio_passt.host.opener import Opener
from trio_passt.host.spare_ports import SparePorts

pytestmark = pytest.mark.usefixtures("namespace")

ADDRESS = {V4: "192.0.2.1", V6: "2001:db8:9::1"}
PREFIX_LENGTH = {V4: 24, V6: 64}
SO_BINDTOIFINDEX = 62  # asm-generic/socket.h
FAMILIES = [socket.AF_INET, socket.AF_INET6]


def appears(number: int, families: Sequence[Family] = (V4, V6)) -> None:
    """The interface, with a number of its own, and addresses of these families."""
    for words in (
        f"link add cable0 index {number} type veth peer name far0",
        "link set cable0 up",
        "link set far0 up",
        *(f"address add {ADDRESS[family]}/{PREFIX_LENGTH[family]} dev cable0" for family in families),
    ):
        subprocess.run(["ip", *words.split(), *(["nodad"] if "2001" in words else [])], check=True)


def vanishes() -> None:
    subprocess.run(["ip", "link", "delete", "cable0"], check=True)


@asynccontextmanager
async def listening(*forwards: PortForward) -> AsyncIterator[tuple[PortListeners, Recorder]]:
    listeners = PortListeners.bind(forwards, FAMILIES)
    receiver = Recorder()
    listeners.receiver = receiver
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listeners.run)
            yield listeners, receiver
            nursery.cancel_scope.cancel()
    finally:
        listeners.close()


def bound_at(listeners: PortListeners) -> list[int]:
    """The numbers of the interfaces that the sockets are bound to (socket(7)), 0 for none."""
    ports = [*listeners.named, *listeners.spare]
    return [port.socket.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX) for port in ports]


def forward(protocol: Protocol, family: Family, binding: Binding) -> PortForward:
    last = 8003 if binding is Binding.SPARE else 8000
    return PortForward(protocol, 8000, last, 8000, ip_address(ADDRESS[family]), "cable0", binding)


@pytest.mark.parametrize("protocol", BOTH)
@pytest.mark.parametrize("binding", Binding)
async def test_its_ports_are_opened_anew(
    protocol: Protocol, family: Family, binding: Binding, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    appears(1001)
    wanted = forward(protocol, family, binding)
    other = PortForward(protocol, 9000, 9000, 9000)
    async with listening(wanted, other) as (listeners, _):
        assert not listeners.follow_interfaces()
        others = {port for port in listeners.named if port.forward is other}
        assert sorted(bound_at(listeners)) == [0, 0, *[1001] * len(wanted.ports)]
        vanishes()
        appears(1002)
        caplog.clear()
        assert listeners.follow_interfaces()
        assert caplog.messages == ["interface cable0 is another now: ports that are forwarded there are opened anew"]
        await eventually(lambda: set(listeners.bound) == {wanted, other} or None, "all of them are open")
        assert sorted(bound_at(listeners)) == [0, 0, *[1002] * len(wanted.ports)]
        assert {port for port in listeners.named if port.forward is other} == others
        descriptors = listeners.descriptors
        assert not listeners.follow_interfaces()
        assert listeners.descriptors == descriptors


async def test_it_is_gone_for_a_while(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    appears(1001)
    async with listening(forward(Protocol.TCP, family, Binding.REQUIRED)) as (listeners, _):
        vanishes()
        assert listeners.follow_interfaces()
        assert not listeners.follow_interfaces()
        assert caplog.messages == [
            "interface cable0 is gone: ports that are forwarded there are not open until it is back"
        ]
        appears(1002)
        assert listeners.follow_interfaces()
        assert bound_at(listeners) == [1002]


async def test_one_that_has_no_address_yet(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    """It is said, and tried again."""
    appears(1001)
    async with listening(forward(Protocol.TCP, family, Binding.REQUIRED)) as (listeners, _):
        vanishes()
        appears(1002, families=())
        assert listeners.follow_interfaces()
        assert any(f"can't forward TCP port 8000 of {ADDRESS[family]}%cable0" in text for text in caplog.messages)
        vanishes()
        appears(1003)
        assert listeners.follow_interfaces()
        assert bound_at(listeners) == [1003]


async def test_a_former_port_is_asked_nothing_any_more(family: Family) -> None:
    appears(1001)
    async with listening(forward(Protocol.UDP, family, Binding.REQUIRED)) as (listeners, receiver):
        (former,) = listeners.named
        assert isinstance(former, UdpPort)
        vanishes()
        appears(1002)
        listeners.follow_interfaces()
        assert former.socket.fileno() == -1
        assert former.read_errors() is False
        packed = ip_address(ADDRESS[family]).packed
        assert listeners.udp_port(8000, packed) in set(listeners.named) - {former}
        listeners.receiver = None  # the guest goes: what was lost is counted of ports that are there
        listeners.receiver = receiver


@pytest.mark.parametrize("closed", [False, True])
async def test_a_limit_is_met_while_it_goes_again(closed: bool) -> None:
    """What would be given back may have been closed meanwhile, all of it."""
    appears(1001)
    wanted = PortForward(Protocol.TCP, 8000, 8003, 8000, None, "cable0", Binding.SPARE)
    async with listening(wanted) as (listeners, _):
        opened = listeners.descriptors
        attempt = SparePorts(Opener.all_of(wanted, freebind=False), listeners)
        attempt.opened, attempt.stopped_by = opened, errno.EMFILE
        if closed:
            listeners.close_all_at("cable0")
        given_back = attempt.give_back(8003)
        assert given_back == (0 if closed else opened // 4)
        assert listeners.descriptors == (0 if closed else opened - given_back)
        assert f"{opened - given_back} of {opened} sockets" in str(attempt.limit_reached())
