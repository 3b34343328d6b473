"""Transfers over a link that loses, repeats and reorders: all of them arrive intact."""

import random
import socket

import pytest
import trio
from harness.mini_tcp import MiniTcp, TerribleCable
from harness.noise import noise
from harness.stage import V4, V6, Stage, network, on_stage
from trio.testing import MockClock

from trio_passt.flow.key import FlowKey
from trio_passt.tcp import flow

TRANSFERS = 12
MOST_BYTES = 30_000


async def transfer(guest: Stage, cable: TerribleCable, number: int, dice: random.Random) -> None:
    """The guest uploads some data, and gets some other in return."""
    family = dice.choice([V4, V6])
    upload, download = (noise(dice.randrange(MOST_BYTES), number + salt) for salt in (0, 1000))
    listener = socket.create_server((family.local, 0), family=family.socket_family)
    guest.opened.callback(listener.close)
    key = FlowKey(family.guest_packed, 40_000 + number, family.gateway_packed, listener.getsockname()[1])
    end = MiniTcp(key, upload, dice.choice([2000, 10_000, 65535]), cable.transmit)
    cable.attach(end)
    at_host = bytearray()

    async def serve() -> None:
        host, _ = await trio.socket.from_stdlib_socket(listener).accept()
        with host:
            while data := await host.recv(dice.choice([100, 5000, 65536])):
                at_host.extend(data)
            await trio.SocketStream(host).send_all(download)
            host.shutdown(socket.SHUT_WR)
            await guest.until_over(key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await end.run()
        nursery.start_soon(end.linger)
        await guest.until_over(key)
        nursery.cancel_scope.cancel()
    assert at_host == upload
    assert end.received == download


@pytest.mark.parametrize("peek_offset", [True, False], ids=["SO_PEEK_OFF", "no SO_PEEK_OFF"])
@pytest.mark.parametrize(("seed", "loss"), [(1, 0.0), (2, 0.05), (3, 0.15)])
async def test_transfers_arrive_intact(
    seed: int, loss: float, peek_offset: bool, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    if not peek_offset:
        monkeypatch.setattr(flow, "has_peek_offset", lambda _family: False)
    dice = random.Random(seed)
    async with on_stage(network(mtu_bytes=1500)) as guest, trio.open_nursery() as nursery:
        cable = TerribleCable(guest.link, nursery, dice, loss=loss)
        nursery.start_soon(cable.run)
        async with trio.open_nursery() as transfers:
            for number in range(TRANSFERS):
                transfers.start_soon(transfer, guest, cable, number, dice)
        assert len(guest.dispatcher.tcp) == 0
        nursery.cancel_scope.cancel()
