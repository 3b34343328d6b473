"""`TracingLink`: the contract again, and the lines that it leaves."""

import logging

import pytest
from check_link import FillingLinkContract, Guest, frame_of, run_of
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from test_link_memory import MemoryGuest

from trio_passt.link.base import Link
from trio_passt.link.memory import MemoryLink
from trio_passt.link.trace import TracingLink
from trio_passt.wire import framing
from trio_passt.wire.describe import describe
from trio_passt.wire.frames import FrameBatch, Offload, single

ETHERNET = Ether(src="52:54:00:12:34:56", dst="9a:55:9a:55:9a:55")


class TestContract(FillingLinkContract):
    @pytest.fixture(autouse=True)
    def _with_a_log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "trio_passt.trace")

    def make(self) -> tuple[Link, Guest]:
        link = MemoryLink(capacity_frames=30)
        return TracingLink(link), MemoryGuest(link)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "trio_passt.trace")
    return caplog


async def test_a_line_for_each_frame_both_ways(log: pytest.LogCaptureFixture) -> None:
    inner = MemoryLink(capacity_frames=3)
    link = TracingLink(inner)
    request = bytes(ETHERNET / ARP(hwsrc="52:54:00:12:34:56", psrc="192.0.2.10", pdst="192.0.2.1"))
    inner.push([request, frame_of(1)])
    assert len(await link.receive_batch()) == 2
    inner.push([request])
    assert link.receive_now() is not None
    assert link.send([single(frame_of(3)), run_of([frame_of(number) for number in range(4, 9)])]) == 3
    assert link.send([single(frame_of(9))]) == 0
    who = "52:54:00:12:34:56 > 9a:55:9a:55:9a:55 42 bytes: ARP request: who has 192.0.2.1, asks 192.0.2.10"
    assert log.messages == [
        f"from guest: {who} (52:54:00:12:34:56)",
        f"from guest: {describe(frame_of(1))}",
        f"from guest: {who} (52:54:00:12:34:56)",
        *(f"to guest:   {describe(frame_of(number))}" for number in (3, 4, 5)),
    ]
    assert {(record.name, record.levelno) for record in log.records} == {("trio_passt.trace", logging.DEBUG)}


class OffloadingLink(MemoryLink):
    """One whose guest leaves checksums to it."""

    def receive_now(self) -> FrameBatch | None:
        batch = super().receive_now()
        return batch and framing.join(batch, [Offload(34, 6)] * len(batch))


async def test_a_checksum_that_is_left_to_the_link_is_not_called_wrong(log: pytest.LogCaptureFixture) -> None:
    frame = bytes(ETHERNET / IP(src="192.0.2.10", dst="198.51.100.1") / UDP(sport=1, dport=2, chksum=1) / b"abc")
    inner = OffloadingLink()
    link = TracingLink(inner)
    for pushed in (True, False):
        if pushed:
            inner.push([frame])
            link.receive_now()
        link.send([single(frame, offload=Offload(34, 6) if pushed else None)])
    assert [message.endswith("(wrong checksum)") for message in log.messages] == [False, False, True]
