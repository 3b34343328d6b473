"""Flows to a resolver end with the answer; and where there are too many flows, those idle for longest make way."""

import os
import socket

import pytest
from harness.stage import V4, Family, Stage, on_stage
from harness.waiting import eventually
from udp_script import Name, arrived, datagram, exchange, hears, is_asked, port_of, received, receives

from trio_passt.config import Protocol
from trio_passt.udp import flow as udp_flow
from trio_passt.udp.flow import DNS_IDLE_S, DNS_PORT

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353


@pytest.fixture
def resolver(guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """A host socket with a resolver's port: that of this test, since 53 may be somebody's."""
    sock = guest.host_udp(family)
    monkeypatch.setattr(udp_flow, "DNS_PORT", port_of(sock))
    return sock


def flows(guest: Stage) -> int:
    return len(guest.dispatcher.udp)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestQuestions:
    async def test_end_with_the_answer(self, guest: Stage, family: Family, resolver: socket.socket) -> None:
        before = descriptors()
        for _ in range(3):
            await exchange(guest, resolver, family)
            assert flows(guest) == 0
            assert descriptors() == before

    async def test_two_of_one_batch_end_with_the_second_answer(
        self, guest: Stage, family: Family, resolver: socket.socket
    ) -> None:
        """A library asks for both kinds of addresses at once (getaddrinfo(3))."""
        guest.sends_packets(*(datagram(family, 5000, port_of(resolver), payload) for payload in (b"A", b"AAAA")))
        flow = await receives(resolver, b"A", b"AAAA")
        for payload, left in ((b"AAAA", 1), (b"A", 0)):
            resolver.sendto(payload, flow)
            await hears(guest, family, payload, (port_of(resolver), 5000))
            assert flows(guest) == left

    async def test_second_one_before_the_answer(self, guest: Stage, family: Family, resolver: socket.socket) -> None:
        """As when a question is repeated: then both answers are waited for."""
        flow = await is_asked(guest, resolver, family)
        assert await is_asked(guest, resolver, family) == flow
        for left in (1, 0):
            resolver.sendto(b"reply", flow)
            await hears(guest, family, b"reply", (port_of(resolver), 5000))
            assert flows(guest) == left

    async def test_answers_in_one_batch(self, guest: Stage, family: Family, resolver: socket.socket) -> None:
        """More than there were questions, too: all that came are passed on."""
        guest.sends_packets(*(datagram(family, 5000, port_of(resolver), b"?%d" % number) for number in range(20)))
        flow = await receives(resolver, *(b"?%d" % number for number in range(20)))
        for number in range(20):
            resolver.sendto(b"!%d" % number, flow)
        for number in range(20):
            await hears(guest, family, b"!%d" % number, (port_of(resolver), 5000))
        assert flows(guest) == 0

    async def test_unanswered_are_given_up(self, guest: Stage, family: Family, resolver: socket.socket) -> None:
        flow = await is_asked(guest, resolver, family)
        await guest.passes(DNS_IDLE_S - 1)
        assert flows(guest) == 1
        await guest.passes(2)
        assert flows(guest) == 0
        resolver.sendto(b"too late", flow)
        await guest.expects_nothing()

    async def test_that_are_refused_end_at_once(self, guest: Stage, family: Family, resolver: socket.socket) -> None:
        port = port_of(resolver)
        resolver.close()
        guest.sends_datagram(family, 5000, port, b"question")
        await guest.expects_error()
        await guest.settles()
        assert flows(guest) == 0

    async def test_answer_that_a_full_link_does_not_take_is_not_lost(
        self, guest: Stage, family: Family, resolver: socket.socket
    ) -> None:
        """Whether it was read by then or not."""
        numbers = range(12)
        guest.sends_packets(*(datagram(family, 5000, port_of(resolver), b"?%d" % number) for number in numbers))
        flow = await receives(resolver, *(b"?%d" % number for number in numbers))
        for capacity, some in ((1, numbers[:6]), (6, numbers[6:])):
            guest.link.set_capacity(frames=capacity)
            for number in some:
                resolver.sendto(b"!%d" % number, flow)
            await guest.settles()
            assert flows(guest) == 1
        for number in numbers:
            await hears(guest, family, b"!%d" % number, (port_of(resolver), 5000))
        await guest.settles()
        assert flows(guest) == 0

    async def test_one_after_the_other_leave_nothing_behind(
        self, guest: Stage, family: Family, resolver: socket.socket
    ) -> None:
        """A library asks from a new port each time: a thousand of them hold no more than one socket."""
        before, port, most = descriptors(), port_of(resolver), 0
        for number in range(1000):
            guest.sends_datagram(family, 10_000 + number, port, b"question")
            _, flow = await received(resolver)
            most = max(most, flows(guest))
            resolver.sendto(b"answer", flow)
            (frame,) = await eventually(lambda: guest.link.take_sent() or None, "an answer")
            assert frame.endswith(b"answer")
        await guest.settles()
        assert most == 1
        assert flows(guest) == 0
        assert descriptors() == before

    async def test_of_other_ports_are_no_questions(self, guest: Stage, family: Family, resolver: socket.socket) -> None:
        """RFC 4787, REQ-5: those live for more than two minutes."""
        assert DNS_PORT == 53
        await exchange(guest, guest.host_udp(family), family)
        await guest.passes(121)
        assert flows(guest) == 1

    async def test_from_a_forwarded_port_end_with_the_answer_too(
        self, guest: Stage, family: Family, resolver: socket.socket
    ) -> None:
        """At the latest when the time of an unanswered one is over; the next one is answered as well."""
        port = guest.forwards(Protocol.UDP, TARGET)
        for _ in range(2):
            assert await exchange(guest, resolver, family, TARGET) == (family.local, port)
            await guest.passes(DNS_IDLE_S + 1)
            assert flows(guest) == 0


class TestLimit:
    async def test_idlest_makes_way(self) -> None:
        async with on_stage(flow_limit=3) as guest:
            host = guest.host_udp(V4)
            seen: dict[int, Name] = {}
            for port in (5000, 5001, 5002):
                seen[port] = await exchange(guest, host, V4, port)
                await guest.passes(1)
            assert await exchange(guest, host, V4, 5000) == seen[5000]
            await guest.passes(1)
            await exchange(guest, host, V4, 5003)  # instead of 5001
            assert flows(guest) == 3
            for port in (5000, 5002):
                host.sendto(b"still there?", seen[port])
                await hears(guest, V4, b"still there?", (port_of(host), port))
            host.sendto(b"still there?", seen[5001])
            await guest.expects_nothing()
            assert not guest.session.drops

    async def test_what_made_way_comes_back_by_the_next_datagram(self, family: Family) -> None:
        async with on_stage(flow_limit=2) as guest:
            host = guest.host_udp(family)
            for _ in range(3):
                for port in (5000, 5001, 5002):
                    await exchange(guest, host, family, port)
                    assert flows(guest) <= 2
            assert not guest.session.drops

    async def test_clients_of_forwarded_ports_count(self) -> None:
        async with on_stage(flow_limit=2) as guest:
            port = guest.forwards(Protocol.UDP, TARGET)
            clients = [guest.host_udp(V4) for _ in range(5)]
            for _ in range(2):
                for client in clients:
                    client.sendto(b"hello", (V4.local, port))
                    await hears(guest, V4, b"hello", (port_of(client), TARGET))
                    guest.sends_datagram(V4, TARGET, port_of(client), b"reply")
                    assert await received(client) == (b"reply", (V4.local, port))
                    assert flows(guest) <= 2
            assert not guest.session.drops

    async def test_sockets_of_those_that_made_way_are_closed(self) -> None:
        async with on_stage(flow_limit=4) as guest:
            host = guest.host_udp(V4)
            before = descriptors()
            for port in range(5000, 5050):
                await exchange(guest, host, V4, port)
                assert descriptors() <= before + 4

    async def test_many_new_ones_in_one_batch(self) -> None:
        """There is no room for all of them at once; what is dropped is counted, and the last ones are served."""
        async with on_stage(flow_limit=4) as guest:
            host = guest.host_udp(V4)
            ports = range(5000, 5040)
            guest.sends_packets(*(datagram(V4, port, port_of(host), b"%d" % port) for port in ports))
            await guest.settles()
            assert flows(guest) <= 4
            there = 0
            while arrived(host) is not None:
                there += 1
            assert there + guest.session.drops["udp: limit of flows"] == len(ports)
            await exchange(guest, host, V4, 6000)

    async def test_many_new_clients_in_one_batch(self) -> None:
        async with on_stage(flow_limit=4) as guest:
            port = guest.forwards(Protocol.UDP, TARGET)
            clients = [guest.host_udp(V4) for _ in range(40)]
            for client in clients:
                client.sendto(b"hello", (V4.local, port))
            await guest.settles()
            assert flows(guest) <= 4
            there = len(guest.link.take_sent())
            assert there >= 4
            assert there + guest.session.drops["udp: limit of flows"] == len(clients)
            clients[0].sendto(b"again", (V4.local, port))
            assert (await guest.expects_datagram()).payload == b"again"

    async def test_budget_of_those_that_made_way_is_returned(self) -> None:
        async with on_stage(flow_limit=1) as guest:
            host = guest.host_udp(V4)
            whole = guest.session.datagrams.left_bytes
            flow = await exchange(guest, host, V4, 5000)
            guest.link.set_capacity(frames=0)
            for number in range(10):
                host.sendto(b"%d" % number, flow)
            await guest.settles()
            await is_asked(guest, host, V4, 5001)
            assert guest.session.datagrams.left_bytes == whole
            guest.link.set_capacity(frames=None)
            await guest.settles()
            await exchange(guest, host, V4, 5001)
