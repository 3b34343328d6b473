"""UDP past the tap: each end sees what it would see of the other, but for ICMP."""

import errno
import os
import socket
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from attrs import evolve
from harness.stage import V4, Family
from harness.waiting import eventually
from hypothesis import given
from hypothesis import strategies as st
from joined import Joined, free_port, joined, jump, leads_to, server_at
from trio.testing import wait_all_tasks_blocked

from trio_passt.config import Protocol
from trio_passt.flow.status import Unit
from trio_passt.host import side as side_module
from trio_passt.host.datagrams import SEGMENTS_MOST, TRAIN_BYTES_MOST
from trio_passt.local import datagrams as module
from trio_passt.local.pieces import pieces
from trio_passt.wire.datagrams import Train

UDP, DGRAM = Protocol.UDP, socket.SOCK_DGRAM


@pytest.fixture(autouse=True)
def still(standing_clock: None) -> None:
    """Nothing here waits for a time."""


def client_of(family: Family, port: int, opened: ExitStack, address: str = "") -> socket.socket:
    sock = opened.enter_context(socket.socket(family.socket_family, DGRAM))
    sock.connect((address or family.local, port))
    sock.setblocking(False)
    return sock


async def next_of(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    def look() -> tuple[bytes, tuple[str, int]] | None:
        try:
            payload, name = sock.recvfrom(1 << 16)
        except BlockingIOError:
            return None
        return payload, name

    return await eventually(look, "a datagram")


async def test_questions_and_answers_of_several_clients(family: Family) -> None:
    with ExitStack() as opened:
        server, port = opened.enter_context(server_at(family, DGRAM)), free_port()
        async with joined(leads_to(UDP, port, server.getsockname()[1])) as flows:
            clients = [client_of(family, port, opened) for _ in range(3)]
            peers = []
            for number, client in enumerate(clients):
                client.send(b"question %d" % number)
                question, peer = await next_of(server)
                assert question == b"question %d" % number
                peers.append(peer)
            assert len(set(peers)) == 3
            for number, peer in enumerate(peers):
                server.sendto(b"answer %d" % number, peer)
            for number, client in enumerate(clients):
                assert (await next_of(client))[0] == b"answer %d" % number
            assert len(flows.receiver.flows.udp) == 3
            assert not flows.session.drops


async def test_address_that_was_asked_is_asked_and_answers() -> None:
    """Which loopback address it was decides where it goes, and where the answer comes from."""
    with ExitStack() as opened:
        server = opened.enter_context(socket.socket(type=DGRAM))
        server.bind(("127.0.0.53", 0))
        server.setblocking(False)
        port = free_port()
        forward = leads_to(UDP, port, server.getsockname()[1])
        async with joined(evolve(forward, address=ip_address("127.0.0.53"))):
            client = client_of(V4, port, opened, "127.0.0.53")
            client.send(b"question")
            _, peer = await next_of(server)
            server.sendto(b"answer", peer)
            assert (await next_of(client))[0] == b"answer"


@pytest.mark.parametrize("sizes", [[1400] * 40, [60_000] * 3, [0, 1, 0], [100, 100, 50, 100, 7, 7], [1] * 100])
async def test_bulk_both_ways(family: Family, sizes: list[int]) -> None:
    """Every datagram as it was, in order; sent one by one, and as a train."""
    with ExitStack() as opened:
        server, port = opened.enter_context(server_at(family, DGRAM)), free_port()
        async with joined(leads_to(UDP, port, server.getsockname()[1])) as flows:
            client = client_of(family, port, opened)
            client.send(b"first")
            _, peer = await next_of(server)
            payloads = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
            for _ in range(2):
                for payload in payloads:
                    client.send(payload)
                for payload in payloads:
                    assert (await next_of(server))[0] == payload
                for payload in payloads:
                    server.sendto(payload, peer)
                for payload in payloads:
                    assert (await next_of(client))[0] == payload
            (flow,) = flows.receiver.flows.udp
            status = flow.status()
            assert (status.from_guest, status.to_guest) == (1 + 2 * len(sizes), 2 * len(sizes))
            assert (status.unit, status.state, status.is_opened_by_guest) == (Unit.DATAGRAMS, "answered", True)
            assert not flows.session.drops


@pytest.mark.interpreted
async def test_train_of_the_client_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel joined it, and cuts it again."""
    with ExitStack() as opened:
        server, port = opened.enter_context(server_at(V4, DGRAM)), free_port()
        async with joined(leads_to(UDP, port, server.getsockname()[1])):
            sent = []
            send = module.LocalDatagrams._send_to_server

            def counting(self: module.LocalDatagrams, payloads: list[memoryview], ancillary: object) -> None:
                sent.append(sum(map(len, payloads)))
                send(self, payloads, ancillary)  # type: ignore[arg-type]

            monkeypatch.setattr(module.LocalDatagrams, "_send_to_server", counting)
            client = client_of(V4, port, opened)
            client.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
            client.send(b"x" * 20_500)
            for size in [1000] * 20 + [500]:
                assert len((await next_of(server))[0]) == size
            assert sent == [20_500]


async def test_silence_ends_it() -> None:
    with ExitStack() as opened:
        server, port = opened.enter_context(server_at(V4, DGRAM)), free_port()
        async with joined(leads_to(UDP, port, server.getsockname()[1])) as flows:
            client_of(V4, port, opened).send(b"x")
            await next_of(server)
            jump(module.IDLE_S - 1)
            await wait_all_tasks_blocked()
            assert len(flows.receiver.flows.udp) == 1
            jump(1)
            await flows.is_idle()
            assert not flows.receiver.flows._clients


async def test_resolver_is_asked_and_forgotten(namespace: None) -> None:
    """A flow to port 53 ends when all its questions have been answered."""
    with ExitStack() as opened:
        server = opened.enter_context(socket.socket(type=DGRAM))
        server.bind(("127.0.0.1", 53))
        server.setblocking(False)
        async with joined(leads_to(UDP, 5353, 53)) as flows:
            client = client_of(V4, 5353, opened)
            for question in (b"1", b"2"):
                client.send(question)
            peers = [(await next_of(server))[1] for _ in range(2)]
            server.sendto(b"a", peers[0])
            assert (await next_of(client))[0] == b"a"
            assert len(flows.receiver.flows.udp) == 1
            server.sendto(b"b", peers[1])
            assert (await next_of(client))[0] == b"b"
            await flows.is_idle()
            client.send(b"3")
            assert (await next_of(server))[0] == b"3"


async def test_refusals_are_counted_and_end_nothing() -> None:
    with server_at(V4, DGRAM) as gone:
        target = gone.getsockname()[1]
    port = free_port()
    async with joined(leads_to(UDP, port, target)) as flows:
        with ExitStack() as opened:
            client = client_of(V4, port, opened)
            refused = "udp: Connection refused"
            for number in range(1, 4):
                client.send(b"anybody?")
                await eventually(lambda number=number: flows.session.drops[refused] == number or None, refused)
            server = opened.enter_context(socket.socket(type=DGRAM))
            server.bind((V4.local, target))
            server.setblocking(False)
            client.send(b"now?")
            assert (await next_of(server))[0] == b"now?"


async def test_client_that_is_gone_ends_its_flow() -> None:
    """Its kernel says so, and the server's will tell the server."""
    with ExitStack() as opened:
        server, port = opened.enter_context(server_at(V4, DGRAM)), free_port()
        async with joined(leads_to(UDP, port, server.getsockname()[1])) as flows:
            client = client_of(V4, port, opened)
            client.send(b"x")
            _, peer = await next_of(server)
            client.close()
            server.sendto(b"too late", peer)
            await flows.is_idle()
            server.connect(peer)
            server.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                server.send(b"?")


async def test_idlest_make_way() -> None:
    with ExitStack() as opened:
        server, port = opened.enter_context(server_at(V4, DGRAM)), free_port()
        async with joined(leads_to(UDP, port, server.getsockname()[1]), most_udp=2) as flows:
            for number in range(4):
                client_of(V4, port, opened).send(b"%d" % number)
                assert (await next_of(server))[0] == b"%d" % number
                jump(1)
            assert len(flows.receiver.flows.udp) == 2


async def test_no_descriptors_is_a_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: object, _family: int, _kind: int) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    port = free_port()
    async with joined(leads_to(UDP, port, 9)) as flows:
        monkeypatch.setattr(side_module.Here, "socket", fail)
        with ExitStack() as opened:
            client_of(V4, port, opened).send(b"x")
            await eventually(lambda: flows.session.drops["udp: no way to the host's loopback"] or None, "the drop")


async def test_end_of_the_session_gives_everything_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with ExitStack() as opened:
        server, port = opened.enter_context(server_at(V4, DGRAM)), free_port()
        async with joined(leads_to(UDP, port, server.getsockname()[1])):
            client_of(V4, port, opened).send(b"x")
            await next_of(server)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_port_that_is_taken_away_ends_its_flows_quietly() -> None:
    with ExitStack() as opened:
        server, port = opened.enter_context(server_at(V4, DGRAM)), free_port()
        forward = leads_to(UDP, port, server.getsockname()[1])
        flows: Joined
        async with joined(forward) as flows:
            client_of(V4, port, opened).send(b"x")
            _, peer = await next_of(server)
            assert flows.listeners.remove(forward)
            server.sendto(b"answer", peer)
            await wait_all_tasks_blocked(0.001)
            assert flows.session.drops["udp: Bad file descriptor"] == 1


TRAINS = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 70), st.booleans()), min_size=1, max_size=6)


@given(TRAINS, st.sampled_from([TRAIN_BYTES_MOST, 1000, 0]))
def test_pieces_are_the_datagrams(shapes: list[tuple[int, int, bool]], largest: int) -> None:
    """None is lost, changed or moved, and the kernel takes each piece."""
    trains, parts, at = [], [], 0
    for number, (size, count, is_solid) in enumerate(shapes):
        stride = size if is_solid else size + 7
        trains.append(Train(at, size, count, stride))
        for _ in range(count):
            parts.append(bytes([number]) * size + b"-" * (stride - size))
        at += stride * count
    buffer = memoryview(b"".join(parts))
    expected = [bytes(payload) for train in trains for payload in train.payloads(buffer)]
    got = []
    for piece in pieces(buffer, trains, largest):
        payloads = [bytes(payload) for payload in piece.payloads()]
        assert len(payloads) == piece.datagrams <= SEGMENTS_MOST
        if piece.size:
            assert b"".join(payloads) == b"".join(map(bytes, piece.views))
            assert piece.size <= largest
            assert sum(map(len, payloads)) <= TRAIN_BYTES_MOST
            assert all(len(payload) == piece.size for payload in payloads[:-1])
            assert 0 < len(payloads[-1]) <= piece.size
        got += payloads
    assert got == expected
