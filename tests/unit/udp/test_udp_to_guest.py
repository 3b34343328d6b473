"""From the host to the guest: what is larger than its MTU, and what its link does not take for the moment.

Each for both kinds of flows: a socket of the flow's own, and a forwarded port.
"""

import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from attrs import frozen
from harness.oracle import SeenFragment, SeenUdp
from harness.stage import V4, Family, Stage, network, on_stage
from harness.waiting import eventually
from udp_script import HEADERS_BYTES, hears, is_asked, port_of

from trio_passt.config import Protocol
from trio_passt.host.datagrams import DatagramBuffer
from trio_passt.udp.flow import IDLE_S

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353


@frozen
class Sender:
    """A host socket that sends to the guest: `ports` are those that the guest sees, of source and destination."""

    guest: Stage
    family: Family
    sock: socket.socket
    to: tuple[str, int]
    ports: tuple[int, int]

    def sends(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.sock.sendto(payload, self.to)

    async def is_heard(self, *payloads: bytes) -> None:
        """These arrive at the guest, in this order."""
        for payload in payloads:
            await hears(self.guest, self.family, payload, self.ports)


async def remote(guest: Stage, family: Family) -> Sender:
    """A remote that the guest has asked something."""
    sock = guest.host_udp(family)
    flow = await is_asked(guest, sock, family)
    return Sender(guest, family, sock, flow, (port_of(sock), 5000))


async def client(guest: Stage, family: Family) -> Sender:
    """A client of a port that is forwarded to the guest."""
    port = guest.forwards(Protocol.UDP, TARGET)
    sock = guest.host_udp(family)
    return Sender(guest, family, sock, (family.local, port), (port_of(sock), TARGET))


Kind = Callable[[Stage, Family], Awaitable[Sender]]
both_kinds = pytest.mark.parametrize("kind", [remote, client], ids=["remote", "client"])


def numbered(count: int, size: int = 50, start: int = 0) -> list[bytes]:
    """No two are alike."""
    return [(b"%d," % number + bytes(range(256)) * (size // 256 + 1))[:size] for number in range(start, start + count)]


# -- beyond the guest's MTU --------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("mtu_bytes", [1280, 1500])
async def test_what_is_larger_than_the_mtu_comes_in_fragments(kind: Kind, family: Family, mtu_bytes: int) -> None:
    async with on_stage(network(mtu_bytes=mtu_bytes)) as guest:
        sender = await kind(guest, family)
        largest = mtu_bytes - HEADERS_BYTES[family.version]
        for size in (largest + 1, 2 * mtu_bytes, 9000, 60_000):
            payload = os.urandom(size)
            sender.sends(payload)
            seen = await guest.expects_in_fragments()
            assert seen == SeenUdp(family.gateway, family.guest, *sender.ports, payload)
        sender.sends(bytes(largest))
        await sender.is_heard(bytes(largest))
        await guest.expects_nothing()
        assert not guest.session.drops


@both_kinds
async def test_large_and_small_ones_keep_their_order(kind: Kind, family: Family) -> None:
    async with on_stage(network(mtu_bytes=1500)) as guest:
        sender = await kind(guest, family)
        sizes = [100, 3000, 3000, 0, 100, 100, 1473, 5000, 1, 3000]
        payloads = [os.urandom(size) for size in sizes]
        sender.sends(*payloads)
        await guest.settles()
        numbers = []
        for payload in payloads:
            if len(payload) <= 1400:
                await sender.is_heard(payload)
            else:
                first = guest.look(lambda seen: isinstance(seen, SeenFragment))
                assert isinstance(first, SeenFragment)
                numbers.append(first.number)
                parts = first.part
                while len(parts) < len(payload) + 8:
                    part = guest.look(lambda seen: isinstance(seen, SeenFragment))
                    assert isinstance(part, SeenFragment)
                    assert part.number == first.number
                    parts += part.part
                assert parts[8:] == payload
        assert len(set(numbers)) == len(numbers), "each has a number of its own"
        await guest.expects_nothing()


# -- a link that is full -----------------------------------------------------------------------------------------------


@both_kinds
async def test_link_that_gets_full_in_the_middle_of_a_reading(kind: Kind, family: Family) -> None:
    """What was read by then is kept, in order, and what comes after it is not read before that is gone."""
    async with on_stage() as guest:
        sender = await kind(guest, family)
        sender.sends(*numbered(10))  # so that it is read in bulk from now on
        await sender.is_heard(*numbered(10))
        budget = guest.session.datagrams
        whole = budget.left_bytes
        guest.link.set_capacity(frames=7)
        sender.sends(*numbered(50, start=10))
        await guest.settles()
        assert len(guest.link.take_sent()) == 7
        await guest.settles()
        assert budget.left_bytes < whole
        guest.link.set_capacity(frames=None)
        await sender.is_heard(*numbered(43, start=17))
        await guest.settles()
        assert budget.left_bytes == whole
        sender.sends(b"after")
        await sender.is_heard(b"after")
        assert not guest.session.drops


@both_kinds
async def test_link_that_takes_one_at_a_time(kind: Kind, family: Family) -> None:
    """None is lost as long as the socket's buffer holds them, however slowly the guest takes them."""
    async with on_stage(capacity_frames=1) as guest:
        sender = await kind(guest, family)
        sent = heard = 0
        for send, take in ((150, 20), (110, 110), (100, 230)):
            sender.sends(*numbered(send, start=sent))
            sent += send
            await sender.is_heard(*numbered(take, start=heard))
            heard += take
        assert heard == sent
        await guest.expects_nothing()
        assert not guest.session.drops
        assert guest.session.link.waiting == 0


@both_kinds
async def test_any_capacity_at_any_time(kind: Kind, family: Family) -> None:
    """All sizes, fragments among them, and a link with room for some bytes."""
    async with on_stage(network(mtu_bytes=1500)) as guest:
        sender = await kind(guest, family)
        budget = guest.session.datagrams.left_bytes
        dice = random.Random(4)
        frames: list[bytes] = []
        payloads: list[bytes] = []
        for _ in range(40):
            some = [os.urandom(dice.choice([0, 20, 20, 1400, 4000])) for _ in range(dice.randrange(8))]
            payloads += some
            guest.link.set_capacity(size=dice.choice([0, 100, 3000, 20_000]))
            sender.sends(*some)
            await guest.settles()
            frames += guest.link.take_sent()
            await guest.settles()
        guest.link.set_capacity(size=None)
        await guest.settles()
        frames += guest.link.take_sent()
        assert datagrams_of(family, frames) == payloads
        assert not guest.session.drops
        assert guest.session.datagrams.left_bytes == budget


def datagrams_of(family: Family, frames: list[bytes]) -> list[bytes]:
    """The payloads of UDP in these frames, of fragments put together."""
    found: list[bytes] = []
    parts = b""
    for frame in frames:
        if family is V4:
            flags, data = int.from_bytes(frame[20:22], "big"), frame[34 : 14 + int.from_bytes(frame[16:18], "big")]
            more, offset = bool(flags & 0x2000), (flags & 0x1FFF) * 8
        elif frame[20] == 44:
            flags, data = int.from_bytes(frame[56:58], "big"), frame[62:]
            more, offset = bool(flags & 1), flags & 0xFFF8
        else:
            more, offset, data = False, 0, frame[54:]
        assert offset == len(parts)
        parts += data
        if not more:
            assert int.from_bytes(parts[4:6], "big") == len(parts)
            found.append(parts[8:])
            parts = b""
    assert not parts
    return found


@both_kinds
async def test_full_link_that_stays_full_costs_nothing(kind: Kind, family: Family) -> None:
    async with on_stage() as guest:
        sender = await kind(guest, family)
        guest.link.set_capacity(frames=1)
        sender.sends(*numbered(100))
        await guest.settles()  # which it would not if somebody was turning in circles
        assert len(guest.link.take_sent()) == 1


@both_kinds
async def test_guest_may_speak_while_its_link_is_full(kind: Kind, family: Family) -> None:
    async with on_stage() as guest:
        sender = await kind(guest, family)
        sender.sends(b"hello")
        await sender.is_heard(b"hello")
        guest.link.set_capacity(frames=0)
        sender.sends(*numbered(20))
        await guest.settles()
        guest.sends_datagram(family, sender.ports[1], sender.ports[0], b"I can't hear you")
        payload = await eventually(lambda: arrives(sender.sock), "a datagram at the host")
        assert payload == b"I can't hear you"
        guest.link.set_capacity(frames=None)
        await sender.is_heard(*numbered(20))


def arrives(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(65535)
    except BlockingIOError:
        return None


async def test_flows_of_a_full_link_take_turns() -> None:
    """Each gets its share when there is room again."""
    async with on_stage() as guest:
        senders = [await remote_at(guest, 5000 + number) for number in range(3)]
        guest.link.set_capacity(frames=5)
        for sender in senders:
            sender.sends(*numbered(60))
        heard: dict[int, list[bytes]] = {sender.ports[0]: [] for sender in senders}
        async for seen in everything(guest, 180):
            heard[seen.source_port].append(seen.payload)
        assert all(payloads == numbered(60) for payloads in heard.values())


async def remote_at(guest: Stage, guest_port: int) -> Sender:
    sock = guest.host_udp(V4)
    flow = await is_asked(guest, sock, V4, guest_port)
    return Sender(guest, V4, sock, flow, (port_of(sock), guest_port))


async def everything(guest: Stage, count: int) -> AsyncIterator[SeenUdp]:
    for _ in range(count):
        yield await guest.expects_datagram()


@both_kinds
async def test_link_that_turns_out_to_be_full(kind: Kind, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take nothing though it was not known to be full: a single datagram is kept, too."""
    async with on_stage() as guest:
        sender = await kind(guest, family)
        send, budget = guest.link.send, guest.session.datagrams.left_bytes
        answers = [0]
        monkeypatch.setattr(guest.link, "send", lambda runs: answers.pop() if answers else send(runs))
        sender.sends(b"one")
        await guest.settles()
        sender.sends(b"two", b"three")
        await sender.is_heard(b"one", b"two", b"three")
        assert guest.session.datagrams.left_bytes == budget
        assert not guest.session.drops


async def test_socket_that_has_nothing_after_all(guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """select(2): of a datagram with a wrong checksum the kernel finds out only when it is read."""
    sender = await remote(guest, family)
    read_one, answers = DatagramBuffer.read_one, [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))]

    def sometimes(buffer: DatagramBuffer, sock: socket.socket) -> memoryview:
        if answers:
            raise answers.pop()
        return read_one(buffer, sock)

    monkeypatch.setattr(DatagramBuffer, "read_one", sometimes)
    sender.sends(b"hello")
    await sender.is_heard(b"hello")
    answers.append(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
    sender.sends(b"about an earlier one")
    await sender.is_heard(b"about an earlier one")
    assert not guest.session.drops, "the error queue has nothing to tell"
    assert len(guest.dispatcher.udp) == 1


# -- what there is no room for -----------------------------------------------------------------------------------------


@both_kinds
async def test_what_is_kept_of_all_flows_is_bounded(kind: Kind, family: Family) -> None:
    """What is beyond it is dropped, and counted."""
    async with on_stage() as guest:
        sender = await kind(guest, family)
        sender.sends(*numbered(10))
        await sender.is_heard(*numbered(10))
        budget = guest.session.datagrams
        budget.left_bytes = 10 * (50 + HEADERS_BYTES[family.version] + 14 + 4)
        guest.link.set_capacity(frames=2)
        for number in range(30):
            sender.sends(*numbered(1, size=50 + number % 2, start=10 + number))
        await guest.settles()
        dropped = guest.session.drops["udp: link to the guest full"]
        assert 15 <= dropped <= 19
        assert budget.left_bytes < 200
        guest.link.set_capacity(frames=None)
        seen = [seen.payload async for seen in everything(guest, 30 - dropped)]
        everyone = [numbered(1, size=50 + number % 2, start=10 + number)[0] for number in range(30)]
        assert seen == everyone[: len(seen)]
        await guest.expects_nothing()
        assert budget.left_bytes == 10 * (50 + HEADERS_BYTES[family.version] + 14 + 4)


@both_kinds
async def test_budget_is_returned_at_the_end(kind: Kind, family: Family) -> None:
    """By silence, and when the guest goes."""
    async with on_stage() as guest:
        budget = guest.session.datagrams
        whole = budget.left_bytes
        sender = await kind(guest, family)
        sender.sends(*numbered(10))
        await sender.is_heard(*numbered(10))
        guest.link.set_capacity(frames=1)
        sender.sends(*numbered(40))
        await guest.settles()
        assert budget.left_bytes < whole
        await guest.passes(IDLE_S + 1)
        assert len(guest.dispatcher.udp) == 0
        assert budget.left_bytes == whole
        guest.link.set_capacity(frames=None)
        await guest.settles()  # there is room for nobody
        guest.forgets()
        await guest.expects_nothing()


async def test_overflow_of_the_hosts_receive_buffer_is_counted(family: Family) -> None:
    """When the flow ends: the kernel has dropped what its receive buffer had no room for."""
    async with on_stage() as guest:
        sender = await remote(guest, family)
        guest.link.set_capacity(frames=0)
        sent = numbered(3000, size=1000)
        sender.sends(*sent)
        await guest.settles()
        assert not guest.session.drops
        guest.link.set_capacity(frames=None)
        await guest.settles()
        heard = datagrams_of(family, guest.link.take_sent())
        assert 0 < len(heard) < 3000
        assert heard == sent[: len(heard)]
        await guest.passes(IDLE_S + 1)
        assert guest.session.drops == {"udp: receive buffer of the host full": 3000 - len(heard)}


async def test_overflow_of_a_forwarded_ports_receive_buffer_is_counted(guest: Stage) -> None:
    """When the guest goes; where there was none, there is nothing to count."""
    for count in (0, 3, 4):
        guest.dispatcher.on_overflow(count)
    assert guest.session.drops == {"udp: receive buffer of the host full": 7}
