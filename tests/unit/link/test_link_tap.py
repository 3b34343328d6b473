"""`TapLink`: the contract over real devices, what it asks the kernel for, what a kernel may do to it, hostile headers.

The devices are in a namespace of the test's own.  What no kernel can be made to do is done by a pair of datagram
sockets in place of a device: they, too, give and take one frame a call.
"""

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from attrs import evolve
from check_link import Guest, LinkContract, frame_of, read_frames, run_of
from harness.own_namespace import own_namespace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.utils import RawPcapReader
from taps import IFF_TUN, TapGuest, ip, open_tap, set_up

from trio_passt.errors import StartupError
from trio_passt.link import tap
from trio_passt.link.base import Link, LinkClosed
from trio_passt.link.capture import CapturingLink, open_capture
from trio_passt.link.tap import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TapLink
from trio_passt.link.trace import TracingLink
from trio_passt.wire import virtio
from trio_passt.wire.frames import (
    MAX_FRAME_BYTES,
    PREFIX_BYTES,
    Capabilities,
    FrameRun,
    Offload,
    Segmentation,
    single,
)

HAS_USO = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 2)

_open: list[TapLink | socket.socket] = []


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield
        _close_all()


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    yield
    _close_all()


def _close_all() -> None:
    while _open:
        _open.pop().close()


def linked(flags: int = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, *, with_header: bool = False) -> tuple[TapLink, TapGuest]:
    """A link, and its guest at a device that is up."""
    name, descriptor = open_tap(flags)
    link = TapLink(descriptor)
    _open.append(link)
    set_up(name)
    guest = TapGuest(name, with_header=with_header)
    _open.append(guest.socket)
    return link, guest


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("namespace")
class TapContract(LinkContract):
    farewell = "interface has been deleted"
    forgets_what_was_unread = True


class TestTapContract(TapContract):
    def make(self) -> tuple[Link, Guest]:
        return linked()


class TestTapWithoutHeaderContract(TapContract):
    """As an old kernel has it."""

    def make(self) -> tuple[Link, Guest]:
        link, guest = linked(IFF_TAP | IFF_NO_PI)
        assert link.capabilities == Capabilities()
        return link, guest


class TestCapturedTapContract(TapContract):
    """With `--pcap` and `--trace`."""

    @pytest.fixture(autouse=True)
    def _with_a_file(self, tmp_path: Path) -> Iterator[None]:
        self.capture = open_capture(tmp_path / "frames.pcap")
        yield
        self.capture.close()

    def make(self) -> tuple[Link, Guest]:
        link, guest = linked()
        return TracingLink(CapturingLink(link, self.capture)), guest


# -- what it asks for --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("namespace")
def test_asks_for_all_that_the_kernel_has() -> None:
    link, _guest = linked()
    assert link.capabilities == Capabilities(checksum=True, tso4=True, tso6=True, uso=HAS_USO)


Ioctl = Callable[[int, int, object], object]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, object], bool]], None]:
    """The kernel does not know of a request, or of what it asks for."""

    def refuse(is_unknown: Callable[[int, object], bool]) -> None:
        really: Ioctl = fcntl.ioctl

        def ioctl(descriptor: int, request: int, argument: object = 0) -> object:
            if is_unknown(request, argument):
                raise OSError(errno.EINVAL, "Invalid argument")
            return really(descriptor, request, argument)

        monkeypatch.setattr(fcntl, "ioctl", ioctl)

    return refuse


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    ("unknown", "capabilities"),
    [
        pytest.param(tap.USO, Capabilities(checksum=True, tso4=True, tso6=True), id="USO"),
        pytest.param(tap.USO | tap.TSO6, Capabilities(checksum=True, tso4=True), id="TSO6"),
        pytest.param(tap.USO | tap.TSO4, Capabilities(checksum=True, tso6=True), id="TSO4"),
        pytest.param(tap.USO | tap.TSO4 | tap.TSO6, Capabilities(checksum=True), id="TSO"),
        pytest.param(~0, Capabilities(), id="all"),
    ],
)
def test_falls_back_feature_by_feature(
    refuse: Callable[[Callable[[int, object], bool]], None], unknown: int, capabilities: Capabilities
) -> None:
    refuse(lambda request, argument: request == tap.TUNSETOFFLOAD and isinstance(argument, int) and argument & unknown)
    link, guest = linked()
    assert link.capabilities == capabilities
    guest.send([frame_of(1)])
    batch = link.receive_now()
    assert batch is not None
    assert list(batch) == [frame_of(1)]
    assert link.send([single(frame_of(2))]) == 1
    assert guest.receive() == [frame_of(2)]


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("unknown", [tap.TUNSETVNETLE, tap.TUNSETVNETHDRSZ])
async def test_headers_of_a_kernel_that_can_be_told_nothing(
    refuse: Callable[[Callable[[int, object], bool]], None], unknown: int
) -> None:
    refuse(lambda request, _: request == unknown)
    link, guest = linked(with_header=True)
    frame = tcp_frame(3000)
    link.send([single(frame, offload=Offload(34, 16, 54, 1000, Segmentation.TCPV4))])
    (received,) = guest.receive()
    offload = virtio.parse(received[:10], virtio.NATIVE)
    assert offload is not None
    assert (offload.checksum_start, offload.checksum_offset, offload.segment_bytes) == (34, 16, 1000)


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        pytest.param(lambda: os.open(os.devnull, os.O_RDWR), "not a tap device: ", id="no tap at all"),
        pytest.param(lambda: os.open("/dev/net/tun", os.O_RDWR), "not a tap device: ", id="no device yet"),
        pytest.param(lambda: open_tap(IFF_TUN | IFF_NO_PI)[1], "but a tun device", id="tun"),
    ],
)
def test_refuses_and_closes_what_it_can_not_use(make: Callable[[], int], problem: str) -> None:
    descriptor = make()
    with pytest.raises(StartupError, match=problem):
        TapLink(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


# -- super-segments ----------------------------------------------------------------------------------------------------


def tcp_frame(payload_bytes: int) -> bytes:
    """Plain, from the guest or to it, with the pseudo-header's sum in place of the checksum."""
    tcp = struct.pack("!HHIIBBHHH", 80, 4000, 1, 1, 0x50, 0x10, 500, 0, 0) + frame_of(7, payload_bytes)
    ip_header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, b"\xc0\0\2\1", b"\xc0\0\2\2")
    total = sum(struct.unpack("!10H", ip_header))
    ip_header = ip_header[:10] + (0xFFFF - (total % 0xFFFF)).to_bytes(2, "big") + ip_header[12:]
    pseudo = (sum(struct.unpack("!4H", ip_header[12:])) + 6 + len(tcp)) % 0xFFFF
    return b"\x02" * 6 + b"\x04" * 6 + b"\x08\0" + ip_header + tcp[:16] + pseudo.to_bytes(2, "big") + tcp[18:]


@pytest.mark.usefixtures("namespace")
class TestSuperSegments:
    OFFLOAD = Offload(34, 16, 54, 1448, Segmentation.TCPV4)

    def test_to_the_guest_in_one_piece(self) -> None:
        link, guest = linked(with_header=True)
        frame = tcp_frame(60_000)
        parts = (frame[:54], memoryview(frame)[54:1000], memoryview(frame)[1000:])
        assert link.send([single(*parts, offload=self.OFFLOAD), single(frame_of(1))]) == 2
        first, second = guest.receive()
        offload = virtio.parse(first[:10])
        assert offload is not None
        assert evolve(offload, header_bytes=54) == self.OFFLOAD, "the kernel's is the size of what it has in one piece"
        assert first[10:] == frame
        assert second == bytes(10) + frame_of(1)

    def test_from_the_guest_in_one_piece(self) -> None:
        link, guest = linked(with_header=True)
        frame = tcp_frame(60_000)
        whole = virtio.emit(Offload(34, 16))
        guest.send([virtio.emit(self.OFFLOAD) + frame, bytes(10) + frame_of(1), whole + tcp_frame(100)])
        batch = link.receive_now()
        assert batch is not None
        assert list(map(bytes, batch)) == [frame, frame_of(1), tcp_frame(100)]
        assert batch.offloads is not None
        first, second, third = batch.offloads
        assert first is not None
        assert (first.segment_bytes, first.segmentation) == (1448, Segmentation.TCPV4)
        assert second is None
        assert third is not None
        assert [(each.checksum_start, each.checksum_offset) for each in (first, third)] == [(34, 16), (34, 16)]

    def test_a_batch_with_nothing_left_to_do(self) -> None:
        link, guest = linked(with_header=True)
        guest.send([bytes(10) + frame_of(1), bytes(10) + frame_of(2)])
        batch = link.receive_now()
        assert batch is not None
        assert batch.offloads is None

    def test_a_header_that_the_kernel_refuses_is_done_without(self) -> None:
        """Headers longer than the frame: the kernel says EINVAL, and gets the segments one by one."""
        link, guest = linked(with_header=True)
        frame = tcp_frame(3000)
        assert link.send([single(frame, offload=Offload(34, 16, 60_000, 1448, Segmentation.TCPV4))]) == 1
        received = guest.receive()
        assert [len(each) - 64 for each in received] == [1448, 1448, 104]
        assert all(each[:10] == bytes(10) for each in received)
        assert b"".join(each[64:] for each in received) == frame[54:]
        assert not link.drops

    def test_what_can_not_be_done_without_is_dropped(self) -> None:
        link, guest = linked()
        nonsense = Offload(34, 16, 60_000, 1448, Segmentation.TCPV6)
        assert link.send([single(tcp_frame(3000), offload=nonsense), single(frame_of(1))]) == 2
        assert guest.receive() == [frame_of(1)]
        assert link.drops == {"link: refused by the kernel": 1}

    def test_a_capture_shows_them_whole(self, tmp_path: Path) -> None:
        """As one does on a network card with offloads: long frames, and checksums that look wrong."""
        inner, guest = linked(with_header=True)
        capture = open_capture(tmp_path / "frames.pcap")
        link = TracingLink(CapturingLink(inner, capture))
        frame = tcp_frame(60_000)
        guest.send([virtio.emit(self.OFFLOAD) + frame])
        assert link.receive_now() is not None
        link.send([single(frame[:54], frame[54:], offload=self.OFFLOAD), run_of([frame_of(1), frame_of(2)])])
        capture.close()
        with RawPcapReader(str(tmp_path / "frames.pcap")) as reader:
            assert [data for data, _ in reader] == [frame, frame, frame_of(1), frame_of(2)]


# -- many frames, and memory -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("namespace")
async def test_a_turn_is_bounded_and_nothing_is_lost() -> None:
    link, guest = linked()
    sent = [frame_of(number) for number in range(900)]
    guest.send(sent)
    first = link.receive_now()
    assert first is not None
    assert len(first) == tap.READ_FRAMES < 900
    rest = await read_frames(link, 900 - len(first))
    assert [*map(bytes, first), *rest] == sent
    assert link.receive_now() is None


@pytest.mark.usefixtures("namespace")
def test_a_turn_of_large_frames_is_bounded() -> None:
    link, guest = linked()
    sent = [frame_of(number, 65_535) for number in range(40)]
    guest.send(sent)
    batches = []
    while (batch := link.receive_now()) is not None:
        batches.append(batch)
        assert len(batch.data) <= tap.READ_BYTES + 65_535 + 10
    assert [bytes(frame) for batch in batches for frame in batch] == sent


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("length", [100, 60_000])
def test_what_is_looked_at_does_not_change(length: int) -> None:
    """Memory is used again only when nobody looks at it."""
    link, guest = linked()
    kept = []
    for number in range(6):
        guest.send([frame_of(number, length)])
        batch = link.receive_now()
        assert batch is not None
        if number % 3:
            kept.append((next(iter(batch)), number))
        del batch
    for frame, number in kept:
        assert frame == frame_of(number, length)


@pytest.mark.usefixtures("namespace")
def test_runs_of_many_parts() -> None:
    """Of each frame its own, as many copies of one, as one block, and cut anywhere."""
    link, guest = linked()
    frames = [frame_of(number, 100) for number in range(4)]
    prefix = (100).to_bytes(PREFIX_BYTES, "big")
    parts = tuple(part for frame in frames for part in (prefix + frame[:54], frame[54:]))
    block = b"".join(parts)
    runs = [
        FrameRun(parts, 4, 104),
        FrameRun((prefix + frames[0],) * 3, 3, 104),
        FrameRun((memoryview(block),), 4, 104),
        FrameRun((block[:50], block[50:300], block[300:]), 4, 104),
        FrameRun((block[:3], block[3:]), 4, 104),
    ]
    assert link.send(runs) == 19
    assert guest.receive() == [*frames, *frames[:1] * 3, *frames * 3]


# -- frames that come one by one ---------------------------------------------------------------------------------------


def come_alone(link: TapLink, guest: TapGuest, turns: int = tap.ALONE_TURNS) -> None:
    """So many turns with one small frame each."""
    for number in range(turns):
        guest.send([frame_of(number)])
        batch = link.receive_now()
        assert batch is not None
        assert list(batch) == [frame_of(number)]


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("flags", [IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, IFF_TAP | IFF_NO_PI])
def test_who_has_come_alone_is_not_asked_for_others(flags: int) -> None:
    """Others wait for the next turns, of which the device tells; and after a while they come together again."""
    link, guest = linked(flags)
    come_alone(link, guest)
    sent = [frame_of(number) for number in range(200)]
    guest.send(sent)
    readable = select.poll()
    descriptor = link.fileno()
    assert descriptor is not None
    readable.register(descriptor, select.POLLIN)
    batches = []
    while readable.poll(0):
        batch = link.receive_now()
        assert batch is not None
        batches.append(list(map(bytes, batch)))
    assert [frame for batch in batches for frame in batch] == sent
    assert [len(batch) for batch in batches[:2]] == [1, 1]
    assert len(batches) <= tap.ALONE_MOST_TURNS
    guest.send(sent[:2])
    batch = link.receive_now()
    assert batch is not None
    assert list(batch) == sent[:2]


@pytest.mark.usefixtures("namespace")
def test_a_large_frame_is_expected_to_have_others_behind_it() -> None:
    link, guest = linked()
    come_alone(link, guest)
    large = [frame_of(number, tap.COPY_UP_TO_BYTES + 1) for number in range(4)]
    guest.send(large)
    first, others = link.receive_now(), link.receive_now()
    assert first is not None
    assert others is not None
    assert [*first] == large[:1]
    assert [*others] == large[1:]


@pytest.mark.usefixtures("namespace")
def test_the_end_of_one_that_came_alone() -> None:
    link, guest = linked()
    come_alone(link, guest, 2 * tap.ALONE_MOST_TURNS)
    assert link.receive_now() is None
    come_alone(link, guest)
    guest.leave()
    with pytest.raises(LinkClosed, match="interface has been deleted"):
        link.receive_now()


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("namespace")
class TestEnds:
    def test_an_interface_that_is_down_takes_frames_and_they_are_counted(self) -> None:
        name, descriptor = open_tap()
        link = TapLink(descriptor)
        _open.append(link)
        assert link.send([single(frame_of(1)), run_of([frame_of(2), frame_of(3)])]) == 3
        assert link.drops == {"link: the guest's interface is down": 3}
        assert link.receive_now() is None
        assert not link.is_full
        watch = select.poll()
        watch.register(descriptor, select.POLLIN)
        assert not watch.poll(0), "its reader need not look"
        set_up(name)
        guest = TapGuest(name)
        _open.append(guest.socket)
        assert link.send([single(frame_of(4))]) == 1
        assert guest.receive() == [frame_of(4)]
        ip("link", "set", name, "down")
        assert link.send([single(frame_of(5))]) == 1
        assert sum(link.drops.values()) == 4

    async def test_a_deleted_interface_wakes_the_reader(self) -> None:
        link, guest = linked()
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(LinkClosed, match="interface has been deleted"):
                    await link.receive_batch()

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            guest.leave()

    async def test_a_writer_finds_out_too(self) -> None:
        link, guest = linked()
        guest.leave()
        assert link.send([run_of([frame_of(1), frame_of(2)])]) == 2
        with pytest.raises(LinkClosed, match="interface has been deleted"):
            link.receive_now()
        assert not link.drops

    def test_it_keeps_its_namespace(self) -> None:
        """The interface is not deleted when all others have left."""
        with own_namespace():
            link, guest = linked()
            guest.send([frame_of(1)])
            guest.socket.close()
        assert link.receive_now() is not None
        assert link.receive_now() is None
        assert link.send([single(frame_of(1))]) == 1

    def test_its_descriptor_is_closed(self) -> None:
        name, descriptor = open_tap()
        link = TapLink(descriptor)
        assert link.fileno() == descriptor
        trio.run(close, link)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        with pytest.raises(OSError, match="no interface with this name"):
            socket.if_nametoindex(name)


async def close(link: TapLink) -> None:
    link.close()
    link.close()


# -- what no kernel does, or no kernel of ours -------------------------------------------------------------------------


class FakeTap:
    """A pair of datagram sockets: `raw` is what the kernel would be, `link` has the other end for a device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ioctl(_descriptor: int, request: int, argument: object = 0) -> object:
            if request == tap.TUNGETIFF:
                return struct.pack("=16sH22x", b"test", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
            return argument

        ours, self.raw = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.raw.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self.raw.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "ioctl", ioctl)
            self.link = TapLink(ours.detach())
        _open.extend([self.link, self.raw])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTap:
    return FakeTap(monkeypatch)


def test_frames_too_long_or_too_short_are_dropped_and_counted(fake: FakeTap) -> None:
    header = bytes(10)
    for size in (0, 13, 14, MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, MAX_FRAME_BYTES + 1000, 14):
        fake.raw.send(header + bytes(size))
    fake.raw.send(b"header")
    batch = fake.link.receive_now()
    assert batch is not None
    assert [end - start for start, end in batch.bounds] == [14, MAX_FRAME_BYTES, 14]
    assert fake.link.drops == {"link: frame too long or too short": 5}
    fake.raw.send(header)
    assert fake.link.receive_now() is None


def test_headers_of_nonsense_are_dropped_and_counted(fake: FakeTap) -> None:
    fake.raw.send(b"\xff" * 10 + frame_of(1))
    fake.raw.send(bytes(10) + frame_of(2))
    fake.raw.send(virtio.emit(Offload(65535, 65535)) + frame_of(3))
    batch = fake.link.receive_now()
    assert batch is not None
    assert list(batch) == [frame_of(2), frame_of(3)]
    assert batch.offloads == [None, Offload(65535, 65535)], "whether it is in the frame is for others to see"
    assert fake.link.drops == {"link: header that asks for what we can't do": 1}


def test_what_is_wrong_with_a_frame_that_comes_alone(fake: FakeTap) -> None:
    for number in range(tap.ALONE_TURNS):
        fake.raw.send(bytes(10) + frame_of(number))
        assert fake.link.receive_now() is not None
    for wrong in (b"\xff" * 10 + frame_of(1), bytes(10 + 13), b"header", bytes(10 + MAX_FRAME_BYTES + 1)):
        fake.raw.send(wrong)
        assert fake.link.receive_now() is None
    fake.raw.send(virtio.emit(Offload(34, 16)) + frame_of(2))
    batch = fake.link.receive_now()
    assert batch is not None
    assert list(batch) == [frame_of(2)]
    assert batch.offloads == [Offload(34, 16)]
    assert fake.link.drops == {
        "link: header that asks for what we can't do": 1,
        "link: frame too long or too short": 3,
    }


@given(frames=st.lists(st.tuples(st.binary(min_size=10, max_size=10), st.integers(0, 100)), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_headers(fake: FakeTap, frames: list[tuple[bytes, int]]) -> None:
    before = sum(fake.link.drops.values())
    for header, size in frames:
        fake.raw.send(header + bytes(size))
    batch = fake.link.receive_now()
    got = 0 if batch is None else len(batch)
    assert got + sum(fake.link.drops.values()) - before == len(frames)


def test_more_kinds_of_headers_than_anybody_remembers(fake: FakeTap) -> None:
    for round_ in range(tap.OFFLOADS_KNOWN // 100 + 5):
        offloads = [Offload(34, 16, 54, 1 + round_ * 100 + number, Segmentation.TCPV4) for number in range(100)]
        for offload in offloads:
            fake.raw.send(virtio.emit(offload) + frame_of(1))
        batch = fake.link.receive_now()
        assert batch is not None
        assert batch.offloads == offloads


async def test_a_kernel_without_memory_is_asked_again(fake: FakeTap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frame was not taken; whoever waits is called when it may be."""
    link, really = fake.link, os.writev
    problems = [errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN]

    def writev(descriptor: int, parts: list[bytes]) -> int:
        if problems and parts[1][:4] == frame_of(2)[:4]:
            number = problems.pop()
            raise OSError(number, os.strerror(number))
        return really(descriptor, parts)

    monkeypatch.setattr(os, "writev", writev)
    frames = [frame_of(1), frame_of(2), frame_of(3)]
    assert link.send([run_of(frames)]) == 1
    assert (link.is_full, link.room_bytes) == (True, 0)
    assert link.send([single(frame_of(9))]) == 0
    called: list[int] = []
    all_sent = trio.Event()

    def again() -> None:
        called.append(link.send([run_of(frames[1:])]))
        if called[-1] == 0:
            link.when_ready(again)
        else:
            all_sent.set()

    link.when_ready(again)
    assert link.waiting == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await all_sent.wait()
        nursery.cancel_scope.cancel()
    assert called == [0, 0, 2]
    assert (link.is_full, link.waiting) == (False, 0)
    assert [fake.raw.recv(1 << 17) for _ in range(3)] == [bytes(10) + frame for frame in frames]
    assert not link.drops


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.EMSGSIZE])
def test_what_the_kernel_refuses_is_dropped(fake: FakeTap, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def writev(_descriptor: int, _parts: list[bytes]) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "writev", writev)
    assert fake.link.send([single(frame_of(1)), single(tcp_frame(100), offload=Offload(34, 16))]) == 2
    assert sum(fake.link.drops.values()) == 2
    assert all(reason.startswith("link: refused by the kernel") for reason in fake.link.drops)


def test_a_reader_that_fails_otherwise(fake: FakeTap) -> None:
    fake.raw.send(bytes(10) + frame_of(1))
    replacement = os.open(os.devnull, os.O_WRONLY)
    descriptor = fake.link.fileno()
    assert descriptor is not None
    os.dup2(replacement, descriptor)
    os.close(replacement)
    with pytest.raises(LinkClosed, match="interface has been deleted"):
        fake.link.receive_now()
    assert fake.link.send([single(frame_of(1))]) == 1
