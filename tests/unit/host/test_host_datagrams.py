"""Many datagrams with one system call, through the kernel's loopback: what was sent is what is read, in order."""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from harness.stage import V4, V6, Family

from trio_passt.host import datagrams, error_queue
from trio_passt.host.datagrams import (
    BULK_IN_A_ROW,
    IP_PKTINFO,
    SEGMENTS_MOST,
    SLOTS,
    TRAIN_BYTES_MOST,
    UDP_GRO,
    DatagramBuffer,
    SocketReader,
    train_stop,
)
from trio_passt.host.endpoint import Endpoint
from trio_passt.wire.datagrams import Train

NOISE = random.Random(11).randbytes(100_000)
LARGEST = {4: 65507, 6: 65527}

Named = tuple[Endpoint, str, bytes]
"""Who sent it, to which local address, and what."""


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def buffer() -> DatagramBuffer:
    """One for all tests, so that each finds what another has left in it."""
    return DatagramBuffer()


def bound(opened: ExitStack, family: Family, address: str | None = None) -> socket.socket:
    sock = opened.enter_context(socket.socket(family.socket_family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    sock.bind((family.local if address is None else address, 0))
    return sock


def connected(opened: ExitStack, family: Family) -> tuple[socket.socket, socket.socket]:
    """A reader and its peer, each connected to the other."""
    reader, peer = bound(opened, family), bound(opened, family)
    reader.connect(peer.getsockname())
    peer.connect(reader.getsockname())
    return reader, peer


def everybodys(opened: ExitStack, family: Family) -> socket.socket:
    """As a forwarded port's: not connected, bound to any address, with packet info and joined datagrams."""
    sock = bound(opened, family, "")
    if family is V4:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    datagrams.expect_bulk(sock)
    return sock


def payload(number: int, size: int) -> bytes:
    """No two are alike, unless there is no room for the difference."""
    return (b"%d," % number + NOISE[number % 9973 :])[:size]


def send_train(sock: socket.socket, payloads: list[bytes], *address: object) -> None:
    """All of one size, but for the last, which may be shorter: the kernel takes them as one."""
    ancillary = datagrams.segments(len(payloads[0])) if len(payloads) > 1 else []
    assert sock.sendmsg(payloads, ancillary, 0, *address) == sum(map(len, payloads))


def payloads_of(buffer: DatagramBuffer, trains: list[Train]) -> list[bytes]:
    return [bytes(payload) for train in trains for payload in train.payloads(buffer.view)]


def read_all(buffer: DatagramBuffer, sock: socket.socket, most: int = SLOTS) -> list[bytes]:
    """Until there is nothing left."""
    found = []
    while True:
        try:
            trains = buffer.read(sock, most)
        except BlockingIOError:
            return found
        found += payloads_of(buffer, trains)


def read_all_named(buffer: DatagramBuffer, sock: socket.socket, most: int = SLOTS) -> list[Named]:
    found = []
    while True:
        try:
            received = buffer.read_named(sock, most)
        except BlockingIOError:
            return found
        for peer, local, trains in received:
            found += [(peer, str(ip_address(local)), payload) for payload in payloads_of(buffer, trains)]


# -- one connected socket ----------------------------------------------------------------------------------------------


def test_read_one_is_one(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    reader, peer = connected(opened, family)
    for sent in (b"one", b"", NOISE[: LARGEST[family.version]]):
        peer.send(sent)
        peer.send(b"next")
        assert buffer.read_one(reader) == sent
        assert buffer.read_one(reader) == b"next"
    with pytest.raises(BlockingIOError):
        buffer.read_one(reader)


@pytest.mark.parametrize("most", [1, 7, SLOTS])
def test_many_sizes_mixed(opened: ExitStack, buffer: DatagramBuffer, family: Family, most: int) -> None:
    reader, peer = connected(opened, family)
    dice = random.Random(most)
    for _ in range(5):
        sent = [payload(number, dice.choice([0, 0, 1, 2, 100, 100, 100, 1400, 3000])) for number in range(70)]
        for one in sent[:60]:
            peer.send(one)
        assert read_all(buffer, reader, most) == sent[:60]


def test_no_more_than_asked_for(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    reader, peer = connected(opened, family)
    sent = [payload(number, 50) for number in range(80)]
    for one in sent:
        peer.send(one)
    assert payloads_of(buffer, buffer.read(reader, 3)) == sent[:3]
    assert payloads_of(buffer, buffer.read(reader, 1)) == sent[3:4]
    assert payloads_of(buffer, buffer.read(reader, SLOTS)) == sent[4 : 4 + SLOTS]
    assert payloads_of(buffer, buffer.read(reader, SLOTS)) == sent[4 + SLOTS :]


def test_datagrams_of_one_size_are_one_train(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    reader, peer = connected(opened, family)
    sizes = [100] * 5 + [99] + [0] * 3 + [100]
    for number, size in enumerate(sizes):
        peer.send(payload(number, size))
    trains = buffer.read(reader, SLOTS)
    assert [(train.size, train.datagrams) for train in trains] == [(100, 5), (99, 1), (0, 3), (100, 1)]


def test_largest_datagrams(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    reader, peer = connected(opened, family)
    datagrams.expect_bulk(reader)
    largest = LARGEST[family.version]
    for size in (largest, largest - 1, 40_000):
        sent = payload(size, size)
        peer.send(sent)
        peer.send(b"after")
        assert read_all(buffer, reader) == [sent, b"after"]


def test_nothing_there(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    reader, _ = connected(opened, family)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            buffer.read(reader, SLOTS)
    reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        buffer.read(reader, SLOTS)


def test_error_of_an_earlier_datagram_costs_none(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    """It comes before or after what is there, once."""
    reader, peer = connected(opened, family)
    sent = [b"one", b"two"]
    for one in sent:
        peer.send(one)
    peer.close()
    reader.send(b"to nobody")
    found, errors = [], []
    while True:
        try:
            found += payloads_of(buffer, buffer.read(reader, SLOTS))
        except BlockingIOError:
            break
        except ConnectionRefusedError as error:
            errors.append(error)
    assert found == sent
    assert len(errors) == 1


# -- joined by the kernel (UDP_GRO) ------------------------------------------------------------------------------------

TRAINS = {
    "all of one size": [[1000] * 10],
    "a shorter last one": [[1000] * 10 + [300]],
    "of one byte": [[1] * 50],
    "as many as there may be": [[100] * SEGMENTS_MOST],
    "as large as there may be": [[1400] * 46 + [400]],
    "one after the other": [[500] * 7 + [1], [500] * 7, [500] * 7 + [499]],
    "single ones between them": [[500] * 3, [500], [7], [], [500] * 4 + [2], [0], [500]],
}


@pytest.mark.parametrize("kind", TRAINS)
@pytest.mark.parametrize("is_joined", [True, False], ids=["joined", "not joined"])
def test_trains_are_taken_apart_again(
    opened: ExitStack, buffer: DatagramBuffer, family: Family, kind: str, is_joined: bool
) -> None:
    reader, peer = connected(opened, family)
    if is_joined:
        datagrams.expect_bulk(reader)
    sent, number = [], 0
    for sizes in TRAINS[kind]:
        train = [payload(number + index, size) for index, size in enumerate(sizes)]
        number += len(train)
        if train:
            send_train(peer, train)
        sent += train
    assert read_all(buffer, reader) == sent


def test_kernel_has_joined_them(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    """Otherwise the tests above would show little: one slot has them all."""
    reader, peer = connected(opened, family)
    datagrams.expect_bulk(reader)
    send_train(peer, [payload(number, 1000) for number in range(20)] + [b"last"])
    assert buffer.read(reader, 1) == [Train(0, 1000, 20, 1000), Train(20_000, 4)]


def test_joined_and_single_ones_of_one_size(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    """In the buffer they lie at different distances."""
    reader, peer = connected(opened, family)
    datagrams.expect_bulk(reader)
    sent = [payload(number, 100) for number in range(12)]
    for one in sent[:3]:
        peer.send(one)
    send_train(peer, sent[3:8])
    for one in sent[8:]:
        peer.send(one)
    assert read_all(buffer, reader) == sent


@pytest.mark.parametrize("seed", range(4))
def test_any_traffic(opened: ExitStack, buffer: DatagramBuffer, family: Family, seed: int) -> None:
    reader, peer = connected(opened, family)
    datagrams.expect_bulk(reader)
    dice = random.Random(seed)
    sent: list[bytes] = []
    found: list[bytes] = []
    for _ in range(60):
        size, count = dice.choice([0, 1, 99, 100, 1400]), dice.choice([1, 1, 1, 2, 20])
        train = [payload(len(sent) + index, size) for index in range(count if size else 1)]
        if len(train) > 1 and dice.random() < 0.5:
            train[-1] = train[-1][: dice.randrange(1, size + 1)]
        send_train(peer, train)
        sent += train
        if dice.random() < 0.5:
            found += payloads_of(buffer, buffer.read(reader, dice.choice([1, 2, SLOTS])))
        if len(sent) - len(found) > 100:
            found += read_all(buffer, reader)
    assert found + read_all(buffer, reader) == sent


def test_socket_that_cannot_join() -> None:
    """An older kernel: then there are more of them, that is all."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        datagrams.expect_bulk(near)
        far.send(b"one")
        assert near.recv(10) == b"one"


def test_bulk_has_a_larger_receive_buffer(opened: ExitStack, family: Family) -> None:
    sock = bound(opened, family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    datagrams.expect_bulk(sock)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > before
    assert sock.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 1


# -- one socket for everybody ------------------------------------------------------------------------------------------


def test_named_ones_say_who_sent_them_and_where_to(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    port = everybodys(opened, family)
    peer = bound(opened, family)
    peer.sendto(b"hello", (family.local, port.getsockname()[1]))
    (received,) = buffer.read_named(port, SLOTS)
    assert received.peer == Endpoint.of(peer.getsockname())
    assert str(ip_address(received.local)) == family.local
    assert payloads_of(buffer, received.trains) == [b"hello"]


def test_those_of_one_peer_in_a_row_come_together(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    port = everybodys(opened, family)
    one, two = bound(opened, family), bound(opened, family)
    for number, peer in enumerate((one, one, one, two, one, two, two)):
        peer.sendto(payload(number, 20), (family.local, port.getsockname()[1]))
    received = buffer.read_named(port, SLOTS)
    of = {Endpoint.of(one.getsockname()): "one", Endpoint.of(two.getsockname()): "two"}
    assert [(of[part.peer], sum(train.datagrams for train in part.trains)) for part in received] == [
        *(("one", 3), ("two", 1)),
        *(("one", 1), ("two", 2)),
    ]


@pytest.mark.parametrize("most", [1, 5, SLOTS])
@pytest.mark.parametrize("seed", range(3))
def test_several_peers_and_local_addresses_interleaved(
    opened: ExitStack, buffer: DatagramBuffer, most: int, seed: int
) -> None:
    """Single ones and trains, of all sizes: who sent what, where to, and in which order."""
    port = everybodys(opened, V4)
    number = port.getsockname()[1]
    peers = [bound(opened, V4, address) for address in ("127.0.0.1", "127.0.0.1", "127.0.0.9")]
    dice = random.Random(seed)
    sent: list[Named] = []
    for _ in range(40):
        peer, local = dice.choice(peers), dice.choice(["127.0.0.1", "127.0.0.2"])
        size, count = dice.choice([0, 1, 100, 100, 1400]), dice.choice([1, 1, 5])
        train = [payload(len(sent) + index, size) for index in range(count if size else 1)]
        send_train(peer, train, (local, number))
        sent += [(Endpoint.of(peer.getsockname()), local, one) for one in train]
    assert read_all_named(buffer, port, most) == sent


def test_several_peers_of_ipv6(opened: ExitStack, buffer: DatagramBuffer) -> None:
    port = everybodys(opened, V6)
    peers = [bound(opened, V6) for _ in range(3)]
    dice = random.Random(5)
    sent: list[Named] = []
    for _ in range(40):
        peer, train = (dice.choice(peers), [payload(len(sent) + index, 200) for index in range(dice.choice([1, 1, 4]))])
        send_train(peer, train, ("::1", port.getsockname()[1]))
        sent += [(Endpoint.of(peer.getsockname()), "::1", one) for one in train]
    assert read_all_named(buffer, port) == sent


def test_one_buffer_for_both_kinds_and_both_versions(opened: ExitStack) -> None:
    """What a call has left in names and control messages is none of the next one's business."""
    buffer = DatagramBuffer()
    ports = {family: everybodys(opened, family) for family in (V4, V6)}
    reader, peer = connected(opened, V4)
    datagrams.expect_bulk(reader)
    for _ in range(3):
        for family, port in ports.items():
            clients = [bound(opened, family) for _ in range(3)]
            for client in clients:
                send_train(client, [payload(7, 100)] * 5, (family.local, port.getsockname()[1]))
            assert read_all_named(buffer, port) == [
                (Endpoint.of(client.getsockname()), family.local, payload(7, 100))
                for client in clients
                for _ in range(5)
            ]
        for size in (100, 250):
            peer.send(payload(9, size))
        assert read_all(buffer, reader) == [payload(9, 100), payload(9, 250)]


def test_without_packet_info_it_belongs_nowhere(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    sock, peer = bound(opened, family), bound(opened, family)
    peer.sendto(b"hello", sock.getsockname())
    assert buffer.read_named(sock, SLOTS) == []


def test_named_error_is_raised(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    port, gone = everybodys(opened, family), bound(opened, family)
    error_queue.enable(port)
    name = gone.getsockname()
    gone.close()
    port.sendto(b"to nobody", name)
    with pytest.raises(ConnectionRefusedError):
        buffer.read_named(port, SLOTS)
    with pytest.raises(BlockingIOError):
        buffer.read_named(port, SLOTS)


# -- from one by one to bulk -------------------------------------------------------------------------------------------


class FlowsSocket:
    """A socket that is read as a flow does it."""

    def __init__(self, sock: socket.socket, buffer: DatagramBuffer) -> None:
        self.sock = sock
        self.reader = SocketReader(sock)
        self._buffer = buffer

    def read(self, most: int = SLOTS) -> list[bytes]:
        if self.reader.expects_one():
            return [bytes(self._buffer.read_one(self.sock))]
        return payloads_of(self._buffer, self._buffer.read(self.sock, most))

    def read_all(self) -> list[bytes]:
        found = []
        while True:
            try:
                found += self.read()
            except BlockingIOError:
                return found

    @property
    def is_in_bulk(self) -> bool:
        return self.sock.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 1


def test_questions_and_answers_stay_one_by_one(opened: ExitStack, buffer: DatagramBuffer, family: Family) -> None:
    sock, peer = connected(opened, family)
    flow = FlowsSocket(sock, buffer)
    for number in range(10 * BULK_IN_A_ROW):
        for _ in range(1 + number % BULK_IN_A_ROW):
            peer.send(payload(number, 30))
            assert flow.read() == [payload(number, 30)]
        flow.reader.answered()
    assert not flow.is_in_bulk


def test_many_without_an_answer_are_bulk_from_then_on(
    opened: ExitStack, buffer: DatagramBuffer, family: Family
) -> None:
    sock, peer = connected(opened, family)
    flow = FlowsSocket(sock, buffer)
    for number in range(BULK_IN_A_ROW):
        peer.send(payload(number, 30))
        assert flow.read() == [payload(number, 30)]
    assert not flow.is_in_bulk
    sent = [payload(number, 30) for number in range(20)]
    for one in sent:
        peer.send(one)
    assert flow.read() == sent
    assert flow.is_in_bulk
    flow.reader.answered()
    send_train(peer, sent)
    assert flow.read(1) == sent


@pytest.mark.parametrize("size", [10, 1400])
@pytest.mark.parametrize("first", range(BULK_IN_A_ROW + 3))
def test_change_to_bulk_loses_and_joins_nothing(
    opened: ExitStack, buffer: DatagramBuffer, family: Family, first: int, size: int
) -> None:
    """However many have been read by then, and however many wait: those that came as one before the change, too."""
    sock, peer = connected(opened, family)
    flow = FlowsSocket(sock, buffer)
    sent: list[bytes] = []
    found: list[bytes] = []
    for _ in range(first):
        sent.append(payload(len(sent), size))
        peer.send(sent[-1])
        found += flow.read()
    for count in (5, 1, 9):
        train = [payload(len(sent) + index, size) for index in range(count)]
        train[-1] = train[-1][: size // 2]
        send_train(peer, train)
        sent += train
    found += flow.read_all()
    assert found == sent
    assert flow.is_in_bulk


# -- what goes out together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "largest", "stop"),
    [
        ([100], 65000, 1),
        ([100, 100], 65000, 2),
        ([100, 100, 100], 65000, 3),
        ([100, 50], 65000, 2),
        ([100, 100, 50, 50], 65000, 3),
        ([100, 101], 65000, 1),
        ([100, 50, 100], 65000, 2),
        ([0, 0], 65000, 1),
        ([0, 100], 65000, 1),
        ([100, 0, 100], 65000, 1),
        ([100, 100, 0], 65000, 2),
        ([101, 101], 100, 1),
        ([100, 100], 100, 2),
        ([100, 100], 0, 1),
        ([10] * 100, 65000, SEGMENTS_MOST),
        ([10] * SEGMENTS_MOST, 65000, SEGMENTS_MOST),
        ([1000] * 70, 65000, SEGMENTS_MOST),
        ([1400] * 60, 65000, TRAIN_BYTES_MOST // 1400),
        ([TRAIN_BYTES_MOST // 2] * 3, 65000, 2),
        ([TRAIN_BYTES_MOST // 2 + 1] * 2, 65000, 1),
        ([64999, 1, 1], 65000, 2),
        ([65000, 1], 65000, 1),
    ],
)
def test_train_stops(sizes: list[int], largest: int, stop: int) -> None:
    assert train_stop([bytes(size) for size in sizes], 0, largest) == stop
    assert train_stop([bytes(7), *(bytes(size) for size in sizes)], 1, largest) == stop + 1


@pytest.mark.parametrize("seed", range(3))
def test_whatever_stops_a_train_the_kernel_takes_it(opened: ExitStack, family: Family, seed: int) -> None:
    reader, peer = connected(opened, family)
    dice = random.Random(seed)
    payloads = [payload(number, dice.choice([0, 1, 10, 10, 10, 1400])) for number in range(100)]
    begin = 0
    received = []
    while begin < len(payloads):
        stop = train_stop(payloads, begin, 65000)
        send_train(peer, payloads[begin:stop])
        received += [reader.recv(65536) for _ in range(begin, stop)]
        begin = stop
    assert received == payloads
