"""What a hostile reader found in echo: errors about somebody else's pings, or in no queue, and ways that are lost."""

import socket
import subprocess
from contextlib import suppress
from ipaddress import ip_address

import pytest
import trio
from echo_script import reply, request
from fake_ping import ELSEWHERE, FakeHost, kernels_reply, kernels_request
from harness.own_namespace import answer_for
from harness.stage import V4, V6, Family, Stage, on_stage
from trio.testing import wait_all_tasks_blocked

from trio_passt.host import error_queue, sockets
from trio_passt.wire import icmp, ip
from trio_passt.wire.icmp import Echo, IcmpType, Icmpv6Type
from trio_passt.wire.ip import IPProtocol

NEAR = {V4: "192.0.2.1", V6: "2001:db8:8::1"}
REMOTE = {V4: "203.0.113.9", V6: "2001:db8:9::9"}
SUBNET = {V4: "203.0.113.0/24", V6: "2001:db8:9::/64"}
OTHER = {V4: "198.18.9.9", V6: "2001:db8:77::77"}
PREFIX_LENGTH = {V4: 32, V6: 128}
PROTOCOL = {V4: IPProtocol.ICMP, V6: IPProtocol.ICMPV6}
PORT_UNREACHABLE = {V4: (3, 3), V6: (1, 4)}

standing_clock = pytest.mark.usefixtures("standing_clock")


def somebody_says(family: Family, kind: tuple[int, int], pinged: str, identifier: int, sequence: int) -> None:
    """An ICMP error of this kind arrives, about an echo request of the host's to the address `pinged`."""
    near, far = ip_address(NEAR[family]).packed, ip_address(pinged).packed
    echo = icmp.emit(near, far, icmp.echo_request(len(near), Echo(identifier, sequence, b"")))
    error = icmp.error(*kind, 0, ip.emit_packet(near, far, PROTOCOL[family], echo))
    with socket.socket(family.socket_family, socket.SOCK_RAW, PROTOCOL[family]) as raw:
        raw.bind((NEAR[family], 0))
        raw.sendto(icmp.emit(near, near, error), (NEAR[family], 0))


# -- errors about somebody else's pings --------------------------------------------------------------------------------


@standing_clock
@pytest.mark.parametrize("sequence", [1, 2], ids=["remembered", "unknown"])
async def test_error_about_another_ping_with_the_same_identifier_is_not_told(
    guest: Stage, host: FakeHost, family: Family, sequence: int
) -> None:
    """The kernel looks for the identifier only: the host's own `ping` to elsewhere, or anybody's invention."""
    sent = request(family, 9, 1, b"data", ELSEWHERE[family])
    guest.sends_packets(sent)
    await guest.settles()
    unreachable = (3, 1) if family is V4 else (1, 3)
    host.hears_of(family, *unreachable, kernels_request(family, 9, sequence))
    quoted, control, flags, _ = host.ping.entries.pop()
    host.ping.entries.append((quoted, control, flags, (OTHER[family], 0)))
    guest.sends_packets(request(family, 9, 3, b"more", ELSEWHERE[family]))
    await guest.expects_nothing()
    assert not host.ping.entries, "it is read all the same"
    assert not guest.session.drops
    host.hears_of(family, *unreachable, kernels_request(family, 9, 1))
    guest.sends_packets(request(family, 9, 4, b"more", ELSEWHERE[family]))
    assert (await guest.expects_error()).quoted == sent
    host.far.send(kernels_reply(family, 9, 4))
    assert await reply(guest, family, ELSEWHERE[family]) == (9, 4, b"")


@standing_clock
async def test_forged_error_does_not_pass_the_kernel_and_us(namespace: None, guest: Stage, family: Family) -> None:
    """The same, with the kernel's own sockets."""
    near = f"{NEAR[family]}/{PREFIX_LENGTH[family]}"
    answer_for(SUBNET[family], source=near)
    sent = request(family, 77, 1, b"data", REMOTE[family])
    guest.sends_packets(sent)
    await reply(guest, family, REMOTE[family])
    somebody_says(family, PORT_UNREACHABLE[family], OTHER[family], 77, 1)
    await guest.expects_nothing()
    assert not guest.session.drops
    somebody_says(family, PORT_UNREACHABLE[family], REMOTE[family], 77, 1)
    told = await guest.expects_error()
    assert (told.type, told.code) == PORT_UNREACHABLE[family]
    assert told.quoted == sent


# -- errors that are in no queue ---------------------------------------------------------------------------------------


async def test_error_without_an_entry_is_taken_once(
    namespace: None, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the kernel has no memory for one: epoll would report it for as long as the flow lives."""
    monkeypatch.setattr(error_queue, "enable", lambda _sock: None)
    answer_for(SUBNET[family], source=f"{NEAR[family]}/{PREFIX_LENGTH[family]}")
    async with on_stage() as guest:
        guest.sends_packets(request(family, 77, 1, b"data", REMOTE[family]))
        await reply(guest, family, REMOTE[family])
        somebody_says(family, PORT_UNREACHABLE[family], REMOTE[family], 77, 1)
        with trio.fail_after(30):
            await wait_all_tasks_blocked(0.01)
        guest.sends_packets(request(family, 77, 2, b"data", REMOTE[family]))
        assert await reply(guest, family, REMOTE[family]) == (77, 2, b"data")
        assert len(guest.dispatcher.echo) == 1


# -- ways that are lost ------------------------------------------------------------------------------------------------


def answers_no_more_for(subnet: str, *, source: str) -> None:
    """Take back what `answer_for` has done: the host has gone elsewhere."""
    for gone in (["route", "delete", "local", subnet], ["address", "delete", source]):
        subprocess.run(["ip", *gone, "dev", "lo"], check=True)


@standing_clock
async def test_ping_goes_on_when_the_host_has_another_address(namespace: None, guest: Stage) -> None:
    """It never rests for a minute, so only the lost way can end the flow, whose socket is where the host was."""
    remote = REMOTE[V4]
    answer_for(SUBNET[V4], source="192.0.2.1/32")
    guest.sends_packets(request(V4, 9, 1, b"", remote))
    assert await reply(guest, V4, remote) == (9, 1, b"")
    answers_no_more_for(SUBNET[V4], source="192.0.2.1/32")
    answer_for(SUBNET[V4], source="192.0.2.2/32")
    lost = request(V4, 9, 2, b"lost", remote)
    guest.sends_packets(lost)
    assert (await guest.expects_error()).quoted == lost
    await guest.settles()
    assert len(guest.dispatcher.echo) == 0
    for sequence in (3, 4):
        guest.sends_packets(request(V4, 9, sequence, b"data", remote))
        assert await reply(guest, V4, remote) == (9, sequence, b"data")
    assert sum(guest.session.drops.values()) == 1


@standing_clock
async def test_lost_way_costs_the_others_of_the_batch_nothing(namespace: None, guest: Stage) -> None:
    """Each is told of, and none is left in a flow that has ended."""
    remote = REMOTE[V4]
    answer_for(SUBNET[V4], source="192.0.2.1/32")
    guest.sends_packets(request(V4, 9, 1, b"", remote))
    await reply(guest, V4, remote)
    answers_no_more_for(SUBNET[V4], source="192.0.2.1/32")
    lost = [request(V4, 9, sequence, b"lost", remote) for sequence in range(2, 6)]
    guest.sends_packets(*lost)
    assert [(await guest.expects_error()).quoted for _ in lost] == lost
    await guest.settles()
    assert len(guest.dispatcher.echo) == 0


# -- more than there is room for ---------------------------------------------------------------------------------------


@standing_clock
@pytest.mark.parametrize(("descriptors", "most"), [(64, 8), (80, 10)])
@pytest.mark.interpreted
async def test_an_eighth_of_the_descriptors_is_for_pings(
    namespace: None, monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int
) -> None:
    """What anybody can open leaves room for what the others need."""
    monkeypatch.setattr(sockets, "descriptor_limit", lambda: descriptors)
    async with on_stage() as guest:
        for identifier in range(most + 5):
            guest.sends_packets(request(V4, identifier, 1))
            await reply(guest, V4)
            assert len(guest.dispatcher.echo) == min(identifier + 1, most)
        assert not guest.session.drops


@standing_clock
async def test_more_new_ones_in_one_batch_than_there_is_room_for_are_all_sent(namespace: None, family: Family) -> None:
    """The first ones make way for the last ones, and no socket or task of theirs is left over."""
    async with on_stage(flow_limit=4) as guest:
        kernel = guest.opened.enter_context(socket.socket(family.socket_family, socket.SOCK_RAW, PROTOCOL[family]))
        await guest.settles()
        tasks = trio.lowlevel.current_statistics().tasks_living
        guest.sends_packets(*(request(family, identifier, 1, b"data") for identifier in range(1, 41)))
        assert [(await reply(guest, family))[0] for _ in range(4)] == [37, 38, 39, 40]
        assert identifiers_asked(kernel, family) == set(range(1, 41))
        await guest.settles()
        assert len(guest.dispatcher.echo) == 4
        assert trio.lowlevel.current_statistics().tasks_living == tasks + 4
        assert not guest.session.drops


def identifiers_asked(kernel: socket.socket, family: Family) -> set[int]:
    """Those of the echo requests that have reached the kernel's own side."""
    found = set()
    with suppress(BlockingIOError):
        while True:
            packet = kernel.recv(1000, socket.MSG_DONTWAIT)
            message = packet[20:] if family is V4 else packet
            if message[0] in (IcmpType.ECHO, Icmpv6Type.ECHO_REQUEST):
                found.add(int.from_bytes(message[4:6], "big"))
    return found
