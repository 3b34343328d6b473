"""A service's reply waits for a link that others have filled."""

import pytest
from harness.stage import GUEST_MAC, V4, on_stage
from scapy.layers.l2 import ARP, Ether

from trio_passt.dispatch import WAITING_REPLIES

pytestmark = pytest.mark.usefixtures("standing_clock")


def question(number: int) -> bytes:
    """Who has the address with this number?"""
    mac = GUEST_MAC.hex(":")
    return bytes(
        Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=mac, psrc=V4.guest, pdst=f"203.0.113.{number}")
    )


def answered(frames: list[bytes]) -> list[int]:
    """The numbers of the addresses that were answered for."""
    return [int(Ether(frame)[ARP].psrc.rpartition(".")[2]) for frame in frames]


async def test_replies_wait_and_go_in_order() -> None:
    async with on_stage(capacity_frames=1) as guest:
        guest.sends_frames(*(question(number) for number in range(10)))
        await guest.settles()
        guest.link.set_capacity(frames=None)
        await guest.settles()
        assert answered(guest.link.take_sent()) == list(range(10))
        assert not guest.session.drops


async def test_new_ones_do_not_overtake_those_that_wait() -> None:
    async with on_stage(capacity_frames=0) as guest:
        for number in range(3):
            guest.sends_frames(question(number))
            await guest.settles()
        guest.link.set_capacity(frames=None)
        guest.sends_frames(question(3))
        await guest.settles()
        assert answered(guest.link.take_sent()) == [0, 1, 2, 3]


async def test_not_more_than_so_many_wait() -> None:
    async with on_stage(capacity_frames=0) as guest:
        guest.sends_frames(*(question(number) for number in range(WAITING_REPLIES + 5)))
        await guest.expects_drop("link to the guest full", 5)
        guest.link.set_capacity(frames=None)
        await guest.settles()
        assert answered(guest.link.take_sent()) == list(range(WAITING_REPLIES))
