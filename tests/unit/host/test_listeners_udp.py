"""Forwarded UDP ports: datagrams, errors about replies, and a guest that takes no more for the moment."""

import errno
import os
import socket
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
import trio
from forwarded_ports import Recorder, client, free_port, listening
from harness.own_namespace import has_address
from harness.stage import V4, V6, Family
from harness.waiting import eventually
from trio.testing import wait_all_tasks_blocked

from trio_passt.config import PortForward, Protocol
from trio_passt.host import datagrams
from trio_passt.host.datagrams import DatagramBuffer, Received
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.listeners import UdpPort


async def test_datagram_goes_to_the_receiver_with_the_address_it_was_sent_to(family: Family) -> None:
    receiver, port = Recorder(), free_port()
    async with listening(PortForward(Protocol.UDP, port, port, 53), receiver=receiver):
        with client(family, socket.SOCK_DGRAM, port) as sock:
            sock.send(b"question")
            sock.send(b"")
            question, _ = await receiver.receives(b"question", b"")
            assert question.port.target == 53
            assert question.peer == Endpoint.of(sock.getsockname())
            assert question.local == family.local
            question.port.send([b"answer"], [], question.peer, ip_address(question.local).packed)
            assert sock.recv(100) == b"answer"


class TestErrors:
    """About what had been sent through a port, which all its clients share."""

    async def test_go_to_the_receiver(self, family: Family) -> None:
        receiver, number = Recorder(), free_port()
        async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver) as listeners:
            port = listeners.udp_port(80, ip_address(family.local).packed)
            assert port is not None
            gone = [gone_client(family) for _ in range(2)]
            for peer in gone:
                send_to(port, b"reply", peer)
            await eventually(lambda: True if len(receiver.datagram_errors) == 2 else None, "two errors")
            assert [(of, error.destination) for of, error in receiver.datagram_errors] == [
                (port, peer) for peer in gone
            ]
            assert {error.quoted for _, error in receiver.datagram_errors} == {b"reply"}
            assert {error.number for _, error in receiver.datagram_errors} == {errno.ECONNREFUSED}

    async def test_cost_no_datagram(self, family: Family) -> None:
        receiver, number = Recorder(), free_port()
        async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver) as listeners:
            port = listeners.udp_port(80, ip_address(family.local).packed)
            assert port is not None
            with client(family, socket.SOCK_DGRAM, number) as sock:
                sock.send(b"before")
                send_to(port, b"reply", gone_client(family))
                sock.send(b"after")
                await receiver.receives(b"before", b"after")
            assert len(receiver.datagram_errors) == 1

    async def test_are_nobodys_without_a_guest(self, family: Family) -> None:
        number = free_port()
        async with listening(PortForward(Protocol.UDP, number, number, 80)) as listeners:
            port = listeners.udp_port(80, ip_address(family.local).packed)
            assert port is not None
            send_to(port, b"reply", gone_client(family))
            await wait_all_tasks_blocked(0.001)
            receiver = Recorder()
            listeners.receiver = receiver
            with client(family, socket.SOCK_DGRAM, number) as sock:
                sock.send(b"x")
                await receiver.receives(b"x")
            assert receiver.datagram_errors == []


def gone_client(family: Family) -> Endpoint:
    with socket.socket(family.socket_family, socket.SOCK_DGRAM) as sock:
        sock.bind((family.local, 0))
        return Endpoint.of(sock.getsockname())


def send_to(port: UdpPort, payload: bytes, peer: Endpoint) -> None:
    """From an address of the kernel's choice, past the error of an earlier one."""
    source = bytes(len(peer.address))
    try:
        port.send([payload], [], peer, source)
    except ConnectionRefusedError:
        port.read_errors()
        port.send([payload], [], peer, source)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ECONNREFUSED, errno.EHOSTUNREACH])
async def test_port_that_cannot_be_read_now(family: Family, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """There was nothing after all, or an earlier reply's error comes first: what is there is read the next time."""
    read_named, answers = DatagramBuffer.read_named, [OSError(number, os.strerror(number)) for _ in range(3)]

    def sometimes(buffer: DatagramBuffer, sock: socket.socket, most: int) -> list[Received]:
        if answers:
            raise answers.pop()
        return read_named(buffer, sock, most)

    monkeypatch.setattr(DatagramBuffer, "read_named", sometimes)
    receiver, port = Recorder(), free_port()
    async with listening(PortForward(Protocol.UDP, port, port, 80), receiver=receiver):
        with client(family, socket.SOCK_DGRAM, port) as sock:
            sock.send(b"x")
            await receiver.receives(b"x")
    assert not answers


class TestFullReceiver:
    """What it can't take stays in the sockets' receive buffers."""

    async def test_gets_all_when_there_is_room(self, family: Family) -> None:
        receiver, number = Recorder(), free_port()
        receiver.is_full = True
        async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver):
            with client(family, socket.SOCK_DGRAM, number) as sock:
                sent = [b"%d" % number for number in range(100)]
                for payload in sent:
                    sock.send(payload)
                await eventually(lambda: receiver.callbacks or None, "a question")
                await wait_all_tasks_blocked(0.001)
                assert receiver.datagrams == []
                assert len(receiver.callbacks) == 1
                receiver.is_ready()
                await receiver.receives(*sent)
                sock.send(b"more")
                await receiver.receives(b"more")

    async def test_is_asked_once_for_all_ports(self) -> None:
        receiver, numbers = Recorder(), [free_port() for _ in range(3)]
        receiver.is_full = True
        async with listening(*(PortForward(Protocol.UDP, number, number, 80) for number in numbers), receiver=receiver):
            with ExitStack() as opened:
                for number in numbers:
                    opened.enter_context(client(V4, socket.SOCK_DGRAM, number)).send(b"x")
                await eventually(lambda: receiver.callbacks or None, "a question")
                await wait_all_tasks_blocked(0.001)
                assert len(receiver.callbacks) == 1
                receiver.is_ready()
                await receiver.receives(b"x", b"x", b"x")

    async def test_that_is_full_again(self) -> None:
        receiver, number = Recorder(), free_port()
        receiver.is_full = True
        async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver):
            with client(V4, socket.SOCK_DGRAM, number) as sock:
                sock.send(b"one")
                for _ in range(3):
                    await wait_all_tasks_blocked(0.001)
                    assert receiver.datagrams == []
                    receiver.is_ready()
                    receiver.is_full = True
                await wait_all_tasks_blocked(0.001)
                receiver.is_ready()
                await receiver.receives(b"one")

    async def test_costs_nothing(self) -> None:
        """A socket that is not read would be reported again and again."""
        receiver, number = Recorder(), free_port()
        receiver.is_full = True
        async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver):
            with client(V4, socket.SOCK_DGRAM, number) as sock:
                sock.send(b"one")
                await eventually(lambda: receiver.callbacks or None, "a question")
                with trio.fail_after(30):
                    await wait_all_tasks_blocked(0.01)
                assert len(receiver.callbacks) == 1

    async def test_next_guest_gets_what_waits(self) -> None:
        """A full one that goes leaves nothing parked."""
        full, receiver, number = Recorder(), Recorder(), free_port()
        full.is_full = True
        async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=full) as listeners:
            with client(V4, socket.SOCK_DGRAM, number) as sock:
                sock.send(b"one")
                await wait_all_tasks_blocked(0.001)
                listeners.receiver = receiver
                await receiver.receives(b"one")
                full.is_ready()  # too late to matter
                sock.send(b"two")
                await receiver.receives(b"two")

    async def test_ports_that_are_closed_meanwhile(self) -> None:
        receiver, number = Recorder(), free_port()
        receiver.is_full = True
        async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver) as listeners:
            with client(V4, socket.SOCK_DGRAM, number) as sock:
                sock.send(b"one")
                await wait_all_tasks_blocked(0.001)
                listeners.close()
                receiver.is_ready()


class TestOverflow:
    """What the kernel has dropped of a guest's datagrams, since the port's receive buffer was full."""

    FLOOD = 20_000

    async def floods(self, receiver: Recorder, sock: socket.socket) -> int:
        """Far more than there is room for while nobody reads; how many the guest gets of it."""
        receiver.is_full = True
        for _ in range(self.FLOOD):
            sock.send(bytes(700))
        await wait_all_tasks_blocked(0.001)
        receiver.is_ready()
        await wait_all_tasks_blocked(0.001)
        datagrams, receiver.datagrams = receiver.datagrams, []
        assert 0 < len(datagrams) < self.FLOOD
        return len(datagrams)

    async def test_is_told_when_the_guest_goes(self, family: Family) -> None:
        receiver, number = Recorder(), free_port()
        async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver) as listeners:
            with client(family, socket.SOCK_DGRAM, number) as sock:
                sock.send(b"x")
                await receiver.receives(b"x")
                there = await self.floods(receiver, sock)
                assert receiver.overflows == []
                listeners.receiver = None
                assert receiver.overflows == [self.FLOOD - there]

    async def test_is_that_of_each_guest_by_itself(self) -> None:
        """And that of no guest is nobody's."""
        guests, number = [Recorder(), Recorder()], free_port()
        async with listening(PortForward(Protocol.UDP, number, number, 80)) as listeners:
            with client(V4, socket.SOCK_DGRAM, number) as sock:
                for guest in guests:
                    for _ in range(self.FLOOD):
                        sock.send(bytes(700))
                    await wait_all_tasks_blocked(0.001)
                    listeners.receiver = guest
                    sock.send(b"x")
                    await guest.receives(b"x")
                    there = await self.floods(guest, sock)
                    listeners.receiver = None
                    assert guest.overflows == [self.FLOOD - there]

    async def test_is_not_told_of_ports_that_nobody_sent_to(self) -> None:
        receiver, numbers = Recorder(), [free_port(), free_port()]
        forwards = [PortForward(Protocol.UDP, number, number, 80) for number in numbers]
        async with listening(*forwards, receiver=receiver) as listeners:
            with client(V4, socket.SOCK_DGRAM, numbers[0]) as sock:
                sock.send(b"x")
                await receiver.receives(b"x")
            listeners.receiver = None
            assert receiver.overflows == [0]


async def test_receiver_that_has_a_bug_does_not_cost_the_port(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    """It outlives that guest."""
    receiver, number = Recorder(), free_port()
    receiver.error = ZeroDivisionError("oops")
    async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver):
        with client(family, socket.SOCK_DGRAM, number) as sock:
            sock.send(b"lost")
            await wait_all_tasks_blocked(0.001)
            receiver.error = None
            sock.send(b"x")
            await receiver.receives(b"x")
    (record,) = caplog.records
    assert "please report this" in record.getMessage()
    assert "oops" in caplog.text


LOOPBACK, ELSEWHERE = {V4: "127.0.0.1", V6: "::1"}, {V4: "203.0.113.9", V6: "2001:db8:9::9"}


class TestUdpPort:
    """By which forwarded port the guest's port speaks to a remote."""

    async def test_is_found_by_its_target(self, family: Family) -> None:
        numbers = [free_port(), free_port()]
        forwards = [PortForward(Protocol.UDP, number, number, 5000 + index) for index, number in enumerate(numbers)]
        async with listening(*forwards, PortForward(Protocol.TCP, numbers[0], numbers[0], 5002)) as listeners:
            for remote in (ip_address(LOOPBACK[family]).packed, ip_address(ELSEWHERE[family]).packed):
                for index, number in enumerate(numbers):
                    port = listeners.udp_port(5000 + index, remote)
                    assert port is not None
                    assert port.target == 5000 + index
                    assert port.socket.family == family.socket_family
                    assert port.socket.getsockname()[1] == number
                assert listeners.udp_port(5002, remote) is None

    async def test_of_loopback_reaches_loopback_only(self, family: Family) -> None:
        """What leaves from there is dropped by other machines, and has no way there in the first place."""
        number = free_port()
        forward = PortForward(Protocol.UDP, number, number, 5000, ip_address(LOOPBACK[family]))
        async with listening(forward) as listeners:
            port = listeners.udp_port(5000, ip_address(LOOPBACK[family]).packed)
            assert port is not None
            assert port.socket.getsockname()[:2] == (LOOPBACK[family], number)
            assert listeners.udp_port(5000, ip_address(ELSEWHERE[family]).packed) is None

    async def test_of_one_address_elsewhere_does_not_reach_loopback(self, namespace: None, family: Family) -> None:
        has_address(ELSEWHERE[family])
        number = free_port()
        forward = PortForward(Protocol.UDP, number, number, 5000, ip_address(ELSEWHERE[family]))
        async with listening(forward) as listeners:
            assert listeners.udp_port(5000, ip_address(LOOPBACK[family]).packed) is None
            port = listeners.udp_port(5000, ip_address("192.0.2.7" if family is V4 else "2001:db8:7::7").packed)
            assert port is not None
            assert port.socket.getsockname()[0] == ELSEWHERE[family]

    async def test_of_all_addresses_comes_first(self, family: Family) -> None:
        """Of two of a kind, the first one."""
        numbers = [free_port() for _ in range(3)]
        forwards = [
            PortForward(Protocol.UDP, numbers[0], numbers[0], 5000, ip_address(LOOPBACK[family])),
            PortForward(Protocol.UDP, numbers[1], numbers[1], 5000),
            PortForward(Protocol.UDP, numbers[2], numbers[2], 5000, ip_address(LOOPBACK[family])),
        ]
        async with listening(*forwards) as listeners:
            port = listeners.udp_port(5000, ip_address(LOOPBACK[family]).packed)
            assert port is not None
            assert port.socket.getsockname()[1] == numbers[1]
        async with listening(forwards[0], forwards[2]) as listeners:
            port = listeners.udp_port(5000, ip_address(LOOPBACK[family]).packed)
            assert port is not None
            assert port.socket.getsockname()[1] == numbers[0]

    async def test_of_an_interface_reaches_what_is_on_its_side_of_the_host(
        self, namespace: None, family: Family
    ) -> None:
        """Loopback is one, too."""
        numbers = free_port(), free_port()
        forwards = [
            PortForward(Protocol.UDP, numbers[0], numbers[0], 5000, interface="lo"),
            PortForward(Protocol.UDP, numbers[1], numbers[1], 5001, interface="lo"),
        ]
        async with listening(*forwards) as listeners:
            port = listeners.udp_port(5000, ip_address(LOOPBACK[family]).packed)
            assert port is not None
            assert port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"
            assert listeners.udp_port(5000, ip_address(ELSEWHERE[family]).packed) is None

    @pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2", "0.0.0.0"])
    async def test_sends_from_the_address_that_is_asked_for(self, source: str) -> None:
        number = free_port()
        async with listening(PortForward(Protocol.UDP, number, number, 5000)) as listeners:
            port = listeners.udp_port(5000, ip_address("127.0.0.1").packed)
            assert port is not None
            with client(V4, socket.SOCK_DGRAM, 9) as sock:
                sock.connect((source if source != "0.0.0.0" else "127.0.0.1", number))
                peer = Endpoint.of(sock.getsockname())
                port.send([b"some", b"more", b"end"], datagrams.segments(4), peer, ip_address(source).packed)
                assert [sock.recv(100) for _ in range(3)] == [b"some", b"more", b"end"]
