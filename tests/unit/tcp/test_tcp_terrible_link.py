"""A thousand transfers over a link that loses, repeats, damages and reorders frames: all of them arrive intact.

The transfers come in groups, a group's run at once over one link.  Everything about a transfer follows from its name,
which a failure tells; the kernel's part is as the kernel likes.
"""

import os
import random
import socket
from ipaddress import ip_address

import pytest
import trio
from attrs import frozen
from harness.cable import TerribleCable, Weather
from harness.mini_tcp import Habits, MiniTcp
from harness.noise import noise
from harness.stage import V4, V6, Family, Stage, network, on_stage
from trio.testing import MockClock

from trio_passt.flow.key import FlowKey
from trio_passt.host import sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.tcp import bridge, flow, timeouts

GROUPS = 20
TRANSFERS = 50

PATIENCE_S = 100_000.0
"""Of the clock that jumps: while the kernel takes a moment, it jumps far."""

MTUS = [1280, 1500, 9000, 65520]
CAPACITIES = [None, 1, 3, 20]
SMALL_BUFFER_BYTES = 20_000


@frozen
class Plan:
    """What a transfer is like; `stalls`: how probable it is that a reader pauses between two reads."""

    family: Family
    is_inbound: bool
    upload_bytes: int
    download_bytes: int
    habits: Habits
    host_ends_first: bool
    guest_stalls: float
    host_stalls: float
    host_buffer: int | None
    weather: Weather


def size(dice: random.Random, mss: int) -> int:
    """Nothing, about a segment, or anything up to some 100 KiB, smaller ones more often; a few are larger."""
    kind = dice.random()
    if kind < 0.1:
        return 0
    if kind < 0.2:
        return dice.choice([1, mss - 1, mss, mss + 1])
    most = min(100 * mss, 500_000 if kind < 0.3 else 130_000)
    return int(most ** dice.uniform(0.4, 1.0))


def plan(dice: random.Random, mtu_bytes: int) -> Plan:
    mss = dice.choice([None, 400, 1000, 1400, 8960, 65460])
    scale = dice.choice([None, 0, 3, 7, 14])
    buffer_bytes = dice.choice([3000, 10_000, 65535, 65535, 300_000])
    if scale == 14:  # smaller windows can't be told
        buffer_bytes = max(buffer_bytes, 65535)
    order = dice.choice(["guest first", "host first", "at once"])
    largest = min(mss or 536, mtu_bytes - 60)
    near_the_end = 2**32 - 1 - dice.choice([0, 1, 100, 2000, 30_000])
    return Plan(
        family=dice.choice([V4, V6]),
        is_inbound=dice.random() < 0.4,
        upload_bytes=size(dice, largest),
        download_bytes=size(dice, largest),
        habits=Habits(
            mss, scale, buffer_bytes, dice.choice([near_the_end, dice.randrange(2**32)]), order != "host first"
        ),
        host_ends_first=order != "guest first",
        guest_stalls=dice.choice([0.0, 0.0, 0.5]),
        host_stalls=dice.choice([0.0, 0.0, 0.5]),
        host_buffer=dice.choice([None, SMALL_BUFFER_BYTES]),
        weather=Weather(
            loss=dice.choice([0.0, dice.uniform(0, 0.2)]),
            damage=dice.choice([0.0, dice.uniform(0, 0.05)]),
            repetition=dice.choice([0.0, dice.uniform(0, 0.2)]),
            delay=dice.choice([0.0, dice.uniform(0, 0.5)]),
        ),
    )


class Transfer:
    """Both directions at once, from the connection to its end."""

    def __init__(self, guest: Stage, cable: TerribleCable, name: str, number: int) -> None:
        self.name = name
        self._dice = random.Random(name)
        self.plan = plan(self._dice, guest.network.link_mtu_bytes)
        self._upload = noise(self.plan.upload_bytes, 2 * number)
        self._download = noise(self.plan.download_bytes, 2 * number + 1)
        self._guest = guest
        self._cable = cable
        self._number = number

    async def run(self, lingering: trio.Nursery, under_way: list[str]) -> None:
        """All of it; the guest's end lingers afterwards, in a nursery that others end."""
        under_way.append(self.name)
        try:
            await self._run(lingering)
        except BaseException as error:
            error.add_note(f"transfer {self.name!r}: {self.plan}")
            raise
        under_way.remove(self.name)

    async def _run(self, lingering: trio.Nursery) -> None:
        family = self.plan.family
        with socket.create_server((family.local, 0), family=family.socket_family) as listener:
            if self.plan.host_buffer is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.plan.host_buffer)
            port: int = listener.getsockname()[1]
            if self.plan.is_inbound:
                host = socket.create_connection((family.local, port))
                accepted, _ = listener.accept()
                key = self._come_from_host(accepted)
            else:
                key = FlowKey(family.guest_packed, 1024 + self._number, family.gateway_packed, port)
            end = MiniTcp(key, self._upload, self.plan.habits, self._cable.transmit)
            self._cable.attach(end, self.plan.weather, random.Random(self.name))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_in_guest, end)
                if self.plan.is_inbound:
                    nursery.start_soon(self._serve, trio.socket.from_stdlib_socket(host))
                else:
                    nursery.start_soon(self._accept, listener)
                await end.run(opens=not self.plan.is_inbound)
                lingering.start_soon(end.linger)

    def _come_from_host(self, accepted: socket.socket) -> FlowKey:
        """A client of a forwarded port, from anywhere."""
        remote = "203.0.113.9" if self.plan.family is V4 else "2001:db8:9::9"
        peer = Endpoint(ip_address(remote).packed, 1024 + self._number)
        accepted.setblocking(False)
        sockets.prepare_tcp(accepted)
        self._guest.dispatcher.on_connection(accepted, peer, 80)
        return FlowKey(self.plan.family.guest_packed, 80, peer.address, peer.port)

    async def _accept(self, listener: socket.socket) -> None:
        host, _ = await trio.socket.from_stdlib_socket(listener).accept()
        await self._serve(host)

    async def _serve(self, host: trio.socket.SocketType) -> None:
        with host:
            async with trio.open_nursery() as nursery:
                has_all = trio.Event()
                nursery.start_soon(self._send_from_host, host, has_all)
                received = bytearray()
                if self.plan.host_stalls:
                    await trio.sleep(5 * self._dice.random())
                while data := await host.recv(self._dice.choice([1000, 5000, 65536])):
                    received += data
                    if self._dice.random() < self.plan.host_stalls:
                        await trio.sleep(self._dice.random())
                has_all.set()
        assert received == self._upload

    async def _send_from_host(self, host: trio.socket.SocketType, has_all: trio.Event) -> None:
        view = memoryview(self._download)
        while view:
            view = view[await host.send(view) :]
        if not self.plan.host_ends_first:
            await has_all.wait()
        host.shutdown(socket.SHUT_WR)

    async def _read_in_guest(self, end: MiniTcp) -> None:
        received = bytearray()
        while data := await end.read(self._dice.choice([1000, 65536, 1_000_000])):
            received += data
            if self._dice.random() < self.plan.guest_stalls:
                await trio.sleep(3 * self._dice.random())
        assert received == self._download


def use_small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that reads slowly soon closes the window that the guest sees."""
    prepare = sockets.prepare_tcp

    def and_fix_the_buffer(sock: socket.socket) -> None:
        prepare(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)

    monkeypatch.setattr(sockets, "prepare_tcp", and_fix_the_buffer)
    monkeypatch.setattr(bridge, "WINDOW_BEYOND_BYTES", SMALL_BUFFER_BYTES)


@pytest.mark.parametrize("group", range(GROUPS))
async def test_transfers_arrive_intact(group: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    dice = random.Random(group)
    if group % 2:
        monkeypatch.setattr(flow, "has_peek_offset", lambda _family: False)
    if group // 2 % 2:  # all hosts are far, so the guest waits for their acknowledgement
        monkeypatch.setattr(timeouts, "NEAR_PEER_RTT_S", 0.0)
    if group % 3 == 0:
        use_small_windows(monkeypatch)
    mtu_bytes, capacity = dice.choice(MTUS), dice.choice(CAPACITIES)
    async with (
        on_stage(network(mtu_bytes=mtu_bytes), capacity_frames=capacity) as guest,
        trio.open_nursery() as nursery,
    ):
        cable = TerribleCable(guest.link, dice, pauses=dice.choice([0.0, 0.3]))
        nursery.start_soon(cable.run)
        under_way: list[str] = []
        with trio.move_on_after(PATIENCE_S) as patience:
            async with trio.open_nursery() as transfers:
                for number in range(TRANSFERS):
                    transfer = Transfer(guest, cable, f"{group}.{number}", number)
                    transfers.start_soon(transfer.run, nursery, under_way)
            while len(guest.dispatcher.tcp):  # noqa: ASYNC110 - the flow table tells nobody
                await trio.sleep(0.1)
        assert not patience.cancelled_caught, f"not finished: {under_way}, {len(guest.dispatcher.tcp)} flows"
        nursery.cancel_scope.cancel()
    assert len(os.listdir("/proc/self/fd")) == descriptors
