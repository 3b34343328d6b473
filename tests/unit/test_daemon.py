"""The daemon as a whole: a guest at one end of a real socket, forwarded ports and host servers at the other."""

import errno
import logging
import os
import resource
import signal
import socket
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from harness.running import StreamGuest, ends, running
from harness.stage import V4, Family, network
from harness.waiting import eventually
from scapy.layers.l2 import ARP, Ether

from trio_passt import daemon, guests
from trio_passt.config import Attachment, Config, Outbound, PortForward, Protocol, RunAs, Transports
from trio_passt.errors import StartupError
from trio_passt.guests import Current, Serving
from trio_passt.host.listeners import PortListeners
from trio_passt.link.base import LinkClosed
from trio_passt.link.memory import MemoryLink
from trio_passt.wire.tcp import ACK, RST, SYN, TcpOptions, TcpSegment

CONFIG = Config(network=network())


def at_path(tmp_path: Path, **changes: Any) -> Config:
    return evolve(CONFIG, attachment=Attachment(socket_path=tmp_path / "guest.socket"), **changes)


async def test_connected_descriptor_end_to_end(family: Family) -> None:
    ours, theirs = socket.socketpair()
    server = socket.create_server((family.local, 0), family=family.socket_family)
    server.settimeout(30)
    guest = StreamGuest(ours)
    fd = theirs.detach()
    async with running(evolve(CONFIG, attachment=Attachment(fd=fd))) as daemon_:
        assert daemon_.path is None
        ports = (40_000, server.getsockname()[1])
        guest.sends_segment(family, TcpSegment(*ports, 100, 0, SYN, 65535, b"", TcpOptions(1460)))
        answer = await guest.segment(family)
        assert answer.flags == SYN | ACK
        guest.sends_segment(family, TcpSegment(*ports, 101, answer.seq + 1, ACK, 65535, b"hello"))
        host, _ = server.accept()
        with host:
            host.settimeout(30)
            assert (await guest.segment(family)).ack == 106
            assert host.recv(100) == b"hello"
            host.sendall(b"hello yourself")
            assert (await guest.segment(family)).payload == b"hello yourself"
            guest.leaves()
            await ends(daemon_)
            with pytest.raises(ConnectionResetError):
                host.recv(1)
    server.close()


async def test_unknown_guest_is_asked_who_it_is(tmp_path: Path) -> None:
    async with running(at_path(tmp_path)) as daemon_:
        assert daemon_.path == tmp_path / "guest.socket"
        guest = StreamGuest.at(daemon_.path)
        assert Ether(await guest.frame())[ARP].pdst == V4.guest
        assert Ether(await guest.frame()).haslayer("ICMPv6ND_NS")
        guest.leaves()


async def test_forwarded_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    forward = PortForward(Protocol.TCP, port, port, 80, IPv4Address("127.0.0.1"))
    async with running(at_path(tmp_path, forwards=(forward,))) as daemon_:
        early = socket.create_connection(("127.0.0.1", port))
        early.setblocking(False)
        await eventually(lambda: _is_reset(early), "a reset while there is no guest")
        assert daemon_.path is not None
        guest = StreamGuest.at(daemon_.path)
        await guest.frame()  # the daemon knows that it has a guest
        with socket.create_connection(("127.0.0.1", port)) as client:
            guest.sends_segment(V4, TcpSegment(1, 2, 3, 4, RST, 0))
            syn = await guest.segment(V4)
            assert (syn.destination_port, syn.flags) == (80, SYN)
            guest.leaves()
            client.setblocking(False)
            await eventually(lambda: _is_reset(client), "a reset when the guest goes")
        late = socket.create_connection(("127.0.0.1", port))
        late.setblocking(False)
        await eventually(lambda: _is_reset(late), "a reset when the guest is gone")
        early.close()
        late.close()


def _is_reset(sock: socket.socket) -> bool | None:
    try:
        assert sock.recv(1) != b"", "an orderly end"
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return True
    return None


@pytest.mark.parametrize("number", daemon.END_SIGNALS, ids=str)
@pytest.mark.parametrize("with_guest", [True, False])
async def test_signal_ends_everything_in_order(
    tmp_path: Path, number: signal.Signals, with_guest: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handler = signal.getsignal(number)
    async with running(at_path(tmp_path)) as daemon_:
        assert daemon_.path is not None
        if with_guest:
            guest = StreamGuest.at(daemon_.path)
            await guest.frame()
        signal.raise_signal(number)
        await ends(daemon_)
        assert not daemon_.path.exists()
        if with_guest:
            guest.leaves()
    assert signal.getsignal(number) is handler
    assert f"ended by {number.name}" in caplog.text


async def test_next_guest_may_come_and_a_second_one_at_the_same_time_may_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(at_path(tmp_path)) as daemon_:
        assert daemon_.path is not None
        for _ in range(3):
            first = StreamGuest.at(daemon_.path)
            await first.frame()
            caplog.clear()
            second = StreamGuest.at(daemon_.path)
            await second.is_turned_away()
            assert [record.getMessage() for record in caplog.records] == [
                "refused a second guest: one is connected already"
            ]
            second.leaves()
            first.sends_segment(V4, TcpSegment(1, 2, 3, 4, ACK, 0))
            assert (await first.segment(V4)).flags == RST  # it is none the worse for it
            first.leaves()
            await eventually(lambda: "guest gone: " in caplog.text or None, "the end of the session")
        assert not daemon_.ended


async def test_guest_that_comes_back_at_once_is_not_turned_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A virtual machine that is started anew connects before the daemon has noticed that the old one is gone."""
    caplog.set_level(logging.INFO)
    async with running(at_path(tmp_path)) as daemon_:
        assert daemon_.path is not None
        guest = StreamGuest.at(daemon_.path)
        await guest.frame()
        for _ in range(30):
            guest.leaves()
            guest = StreamGuest.at(daemon_.path)
            await guest.frame()
        assert "refused" not in caplog.text
        guest.leaves()


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
async def test_traffic_at_a_forwarded_port_while_guests_come_and_go(tmp_path: Path, protocol: Protocol) -> None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forward = PortForward(protocol, port, port, 80, IPv4Address("127.0.0.1"))
    async with running(at_path(tmp_path, forwards=(forward,))) as daemon_:
        assert daemon_.path is not None
        for _ in range(60):
            guest = StreamGuest.at(daemon_.path)
            await guest.frame()
            guest.leaves()
            for _ in range(12):  # some before the daemon notices, some while it clears up, some after
                with socket.socket(socket.AF_INET, kind) as client:
                    client.connect(("127.0.0.1", port))
                    if protocol is Protocol.UDP:
                        client.send(b"hello")
                await trio.lowlevel.checkpoint()
        assert not daemon_.ended


async def test_guest_that_comes_back_at_once_is_served(tmp_path: Path) -> None:
    async with running(at_path(tmp_path)) as daemon_:
        assert daemon_.path is not None
        guest = StreamGuest.at(daemon_.path)
        await guest.frame()
        for _ in range(5):
            guest.leaves()
            guest = StreamGuest.at(daemon_.path)
            await guest.frame()
        guest.leaves()


async def test_only_guest_goes_while_another_comes(tmp_path: Path) -> None:
    async with running(at_path(tmp_path, one_off=True)) as daemon_:
        assert daemon_.path is not None
        guest = StreamGuest.at(daemon_.path)
        await guest.frame()
        guest.leaves()
        late = StreamGuest.at(daemon_.path)
        await ends(daemon_)
        await late.is_turned_away()
        late.leaves()


async def test_guest_for_whom_there_are_no_descriptors_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(at_path(tmp_path)) as daemon_:
        assert daemon_.path is not None
        with monkeypatch.context() as patch:
            patch.setattr(guests, "Readiness", _no_descriptors)
            guest = StreamGuest.at(daemon_.path)
            await guest.is_turned_away()
            guest.leaves()
            assert "can't serve the guest: Too many open files" in caplog.text
        guest = StreamGuest.at(daemon_.path)
        await guest.frame()
        guest.leaves()


def _no_descriptors(*, lingers: bool) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_guest_that_breaks_the_protocol_is_closed_and_the_daemon_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(at_path(tmp_path)) as daemon_:
        assert daemon_.path is not None
        guest = StreamGuest.at(daemon_.path)
        await guest.frame()
        await guest.frame()
        guest.sends(b"short")
        await guest.is_turned_away()
        guest.leaves()
        assert "guest gone: " in caplog.text
        other = StreamGuest.at(daemon_.path)
        await other.frame()
        other.leaves()


async def test_one_off_ends_with_its_guest(tmp_path: Path) -> None:
    async with running(at_path(tmp_path, one_off=True)) as daemon_:
        assert daemon_.path is not None
        guest = StreamGuest.at(daemon_.path)
        await guest.frame()
        guest.leaves()
        await ends(daemon_)
        assert not daemon_.path.exists()


async def test_capture(tmp_path: Path) -> None:
    pcap = tmp_path / "frames.pcap"
    async with running(at_path(tmp_path, pcap=pcap)) as daemon_:
        assert daemon_.path is not None
        guest = StreamGuest.at(daemon_.path)
        frames = [await guest.frame(), await guest.frame()]
        guest.leaves()
    captured = pcap.read_bytes()
    assert all(frame in captured for frame in frames)


@pytest.mark.parametrize("broken", ["port", "pcap", "path", "fd", "way out"])
async def test_what_was_opened_is_closed_when_something_else_cannot_be(tmp_path: Path, broken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = {
            "port": at_path(tmp_path, forwards=(PortForward(Protocol.TCP, port, port, 80),)),
            "pcap": at_path(tmp_path, pcap=tmp_path / "no such directory" / "x.pcap"),
            "path": evolve(CONFIG, attachment=Attachment(socket_path=tmp_path / "no such directory" / "x.socket")),
            "fd": evolve(CONFIG, attachment=Attachment(fd=taken.fileno())),
            "way out": at_path(tmp_path, outbound=Outbound(ipv4_interface="gone0")),
        }[broken]
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(StartupError):
            await daemon.run(config, on_ready=_must_not_be_called)
        assert set(os.listdir("/proc/self/fd")) == before
    assert not (tmp_path / "guest.socket").exists()


@pytest.mark.parametrize("icmp", [True, False])
async def test_permission_for_pings_is_of_interest_only_if_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, icmp: bool
) -> None:
    asked: list[None] = []
    monkeypatch.setattr(daemon, "check_ping_permission", lambda: asked.append(None))

    def end(_path: Path | None, _forwards: object) -> None:
        raise StartupError("that is enough")

    with pytest.raises(StartupError, match="enough"):
        await daemon.run(at_path(tmp_path, network=evolve(network(), transports=Transports(icmp=icmp))), on_ready=end)
    assert len(asked) == icmp


def _must_not_be_called(_path: Path | None, _forwards: object) -> None:
    pytest.fail("ready although something could not be opened")


async def test_drops_are_told_at_the_end_of_the_session(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    link = MemoryLink()
    link.push([bytes(3), bytes(14)])
    link.disconnect("bye")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guests, "advertise_router", _nothing)
        listeners = PortListeners.bind([])
        serving = Serving(CONFIG, Current(CONFIG.network), listeners)
        await guests.serve_guest(link, serving)
        assert serving.current.responder is None
        assert listeners.receiver is None
        listeners.close()
    assert "guest gone: bye" in caplog.text
    assert "dropped: malformed: 1" in caplog.text
    with pytest.raises(LinkClosed):
        await link.receive_batch()


async def _nothing(*_arguments: object) -> None:
    await trio.lowlevel.checkpoint()


def test_descriptor_limit_is_raised_to_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 50_000))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: raised.append(limits))
    daemon.raise_descriptor_limit()
    assert raised == [(50_000, 50_000)]


async def test_all_is_open_when_privileges_may_be_given_up(tmp_path: Path) -> None:
    """The socket's file is the next user's by then, and nobody has been told that it is there."""
    done: list[str] = []
    user = RunAs(os.geteuid(), os.getegid())
    if os.geteuid() == 0:
        user = RunAs(61124, 61125)

    def on_open() -> None:
        status = os.stat(tmp_path / "guest.socket")
        assert (status.st_uid, status.st_gid) == (user.uid, user.gid)
        done.append("open")

    def on_ready(_path: Path | None, _forwards: object) -> None:
        done.append("ready")
        signal.raise_signal(signal.SIGTERM)

    await daemon.run(at_path(tmp_path, run_as=user), on_open=on_open, on_ready=on_ready)
    assert done == ["open", "ready"]


async def test_a_socket_that_is_somebody_elses_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(tmp_path / "door"))
        door.listen()
        config = evolve(CONFIG, attachment=Attachment(listen_fd=os.dup(door.fileno())), run_as=RunAs(61124, 61125))
        async with running(config) as daemon_:
            assert daemon_.path == tmp_path / "door"
            guest = StreamGuest.at(daemon_.path)
            await guest.frame()
            guest.leaves()
        assert os.stat(tmp_path / "door").st_uid == os.geteuid()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
            late.connect(str(tmp_path / "door"))


def test_hanging_up_on_a_program_of_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert daemon.end_signals() == list(daemon.END_SIGNALS)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert daemon.end_signals() == [number for number in daemon.END_SIGNALS if number != signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)
