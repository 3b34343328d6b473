"""Errors of a socket that are not in its error queue: each is heeded once, and nobody turns in circles because of it.

The kernel has such when somebody aborts a socket (`ss -K`), or has no memory for an entry.  epoll reports an error for
as long as nobody takes it.
"""

import errno
import os
import socket
import subprocess

import pytest
import trio
from forwarded_ports import Recorder, free_port, listening
from harness.oracle import SeenUdp
from harness.stage import V4, Family, Stage, frame_of, on_stage
from harness.waiting import eventually
from trio.testing import wait_all_tasks_blocked

from trio_passt.config import PortForward, Protocol
from trio_passt.host import error_queue
from trio_passt.host.error_queue import DatagramError
from trio_passt.wire import framing, ip, udp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

ABORTED = f"udp: {os.strerror(errno.ECONNABORTED)}"

pytestmark = pytest.mark.usefixtures("namespace")


def aborted(port: int, end: str = "sport") -> None:
    """What an administrator does to the UDP sockets with this port at one end."""
    killed = subprocess.run(["ss", "-KuanH", end, "=", f":{port}"], check=False, capture_output=True, text=True).stdout
    if f":{port} " not in killed.replace("\n", " "):
        pytest.skip("a kernel without CONFIG_INET_DIAG_DESTROY")


async def nobody_turns_in_circles() -> None:
    """All tasks come to rest; this is on the real clock, since theirs would wait for them."""
    with trio.fail_after(30):
        await wait_all_tasks_blocked(0.01)


async def asked(guest: Stage, host: socket.socket, family: Family) -> tuple[str, int]:
    """A flow of the guest's to this host socket; where its answer goes."""
    guest.sends_datagram(family, 5000, host.getsockname()[1], b"request")

    def look() -> tuple[str, int] | None:
        try:
            return host.recvfrom(100)[1][:2]  # type: ignore[no-any-return]
        except BlockingIOError:
            return None

    return await eventually(look, "the request")


async def test_forwarded_port_that_was_aborted_goes_on(family: Family) -> None:
    """It has no peer that it could lose."""
    receiver, number = Recorder(), free_port()
    async with listening(PortForward(Protocol.UDP, number, number, 80), receiver=receiver):
        aborted(number)
        await nobody_turns_in_circles()
        assert receiver.datagram_errors == []
        with socket.socket(family.socket_family, socket.SOCK_DGRAM) as client:
            client.sendto(b"still there?", (family.local, number))
            await receiver.receives(b"still there?")


async def test_forwarded_port_without_a_guest(family: Family) -> None:
    number = free_port()
    async with listening(PortForward(Protocol.UDP, number, number, 80)) as listeners:
        aborted(number)
        await nobody_turns_in_circles()
        listeners.receiver = receiver = Recorder()
        with socket.socket(family.socket_family, socket.SOCK_DGRAM) as client:
            client.sendto(b"still there?", (family.local, number))
            await receiver.receives(b"still there?")


async def test_flow_that_was_aborted_ends_and_hears_no_strangers(family: Family) -> None:
    """Its socket has no peer any more, so the kernel would let anybody speak to the guest as the remote."""
    async with on_stage() as guest:
        host, stranger = guest.host_udp(family), guest.host_udp(family)
        flow = await asked(guest, host, family)
        aborted(flow[1])
        await nobody_turns_in_circles()
        assert len(guest.dispatcher.udp) == 0
        assert guest.session.drops == {ABORTED: 1}
        stranger.sendto(b"from a stranger", flow)
        await guest.expects_nothing()
        assert await asked(guest, host, family) == flow, "the next datagram opens it anew"


async def test_stranger_who_comes_with_the_abort_is_not_heard(family: Family) -> None:
    async with on_stage() as guest:
        host, stranger = guest.host_udp(family), guest.host_udp(family)
        flow = await asked(guest, host, family)
        aborted(flow[1])
        stranger.sendto(b"from a stranger", flow)
        await nobody_turns_in_circles()
        await guest.expects_nothing()
        assert len(guest.dispatcher.udp) == 0


async def test_next_datagram_of_the_guests_meets_the_abort_first(family: Family) -> None:
    """In the round in which epoll would report it."""
    async with on_stage() as guest:
        host, stranger = guest.host_udp(family), guest.host_udp(family)
        flow = await asked(guest, host, family)
        aborted(flow[1])
        header, ends = UdpHeader(5000, host.getsockname()[1]), (family.guest_packed, family.gateway_packed)
        again = ip.emit_packet(*ends, IPProtocol.UDP, udp.emit(*ends, header, b"another request"))
        guest.dispatcher.dispatch(framing.join([frame_of(again)]))
        assert all(flow.is_over for flow in guest.dispatcher.udp), "at once"
        stranger.sendto(b"from a stranger", flow)
        await nobody_turns_in_circles()
        assert guest.look(lambda seen: isinstance(seen, SeenUdp)) is None
        assert await asked(guest, host, family) == flow


@pytest.mark.parametrize("speaks", [True, False], ids=["guest speaks", "guest is silent"])
async def test_flow_that_was_aborted_while_its_socket_is_not_read(family: Family, *, speaks: bool) -> None:
    """The link is full; what is to be sent meanwhile meets the error first, or the reading when there is room."""
    async with on_stage() as guest:
        host, stranger = guest.host_udp(family), guest.host_udp(family)
        flow = await asked(guest, host, family)
        guest.link.set_capacity(frames=0)
        host.sendto(b"reply", flow)
        await guest.settles()
        aborted(flow[1])
        if speaks:
            guest.sends_datagram(family, 5000, host.getsockname()[1], b"another request")
        await nobody_turns_in_circles()
        stranger.sendto(b"from a stranger", flow)
        guest.link.set_capacity()
        await nobody_turns_in_circles()
        heard = guest.look(lambda seen: isinstance(seen, SeenUdp) and seen.payload == b"from a stranger")
        assert heard is None
        assert await asked(guest, host, family) == flow, "it is not lost for good"


async def test_refusal_without_an_entry_is_taken_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the kernel has no memory for one.  The flow lives on: the remote may come back."""
    monkeypatch.setattr(error_queue, "enable", lambda _sock: None)
    async with on_stage() as guest:
        host = guest.host_udp(family)
        name = host.getsockname()[:2]
        flow = await asked(guest, host, family)
        host.close()
        guest.sends_datagram(family, 5000, name[1], b"is refused")
        await nobody_turns_in_circles()
        assert len(guest.dispatcher.udp) == 1
        assert await asked(guest, guest.host_udp(family, name), family) == flow


async def test_entry_is_told_and_the_error_taken_too(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at once: what is in the queue is told, whatever else there is."""
    read_all = error_queue.read_all

    def leaves_the_error(sock: socket.socket) -> list[DatagramError]:
        found = read_all(sock)
        if found and sock.getsockname()[1] == flow[1]:
            aborted(flow[1])
        return found

    async with on_stage() as guest:
        host = guest.host_udp(family)
        flow = await asked(guest, host, family)
        port = host.getsockname()[1]
        host.close()
        monkeypatch.setattr(error_queue, "read_all", leaves_the_error)
        guest.sends_datagram(family, 5000, port, b"is refused")
        await nobody_turns_in_circles()
        told = await guest.expects_error()
        assert told.quoted.endswith(b"is refused")
        assert len(guest.dispatcher.udp) == 0
        assert guest.session.drops == {ABORTED: 1, f"udp: {os.strerror(errno.ECONNREFUSED)}": 1}


async def test_abort_is_no_matter_of_other_flows() -> None:
    """They share the guest's port, each with another remote."""
    async with on_stage() as guest:
        hosts = [guest.host_udp(V4) for _ in range(2)]
        flows = [await asked(guest, host, V4) for host in hosts]
        assert flows[0] == flows[1]
        aborted(hosts[0].getsockname()[1], "dport")
        await nobody_turns_in_circles()
        assert len(guest.dispatcher.udp) <= 1
        hosts[1].sendto(b"reply", flows[1])
        assert (await guest.expects_datagram()).payload == b"reply"
