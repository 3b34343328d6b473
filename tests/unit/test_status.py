"""The table that SIGUSR1 asks for: how it looks, and that it keeps nobody waiting."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from trio_passt import status
from trio_passt.config import PortForward, Protocol
from trio_passt.flow.key import FlowKey
from trio_passt.flow.status import FlowStatus, Unit
from trio_passt.flow.table import FlowLimit
from trio_passt.host.endpoint import Endpoint
from trio_passt.status import Flows, GuestStatus, Status, answer, open_descriptors, table


def key(guest: str, guest_port: int, remote: str, remote_port: int) -> FlowKey:
    return FlowKey(ip_address(guest).packed, guest_port, ip_address(remote).packed, remote_port)


def endpoint(address: str, port: int) -> Endpoint:
    return Endpoint(ip_address(address).packed, port)


WEB = FlowStatus(
    key("192.0.2.10", 40000, "198.51.100.1", 80),
    "ESTABLISHED",
    True,
    endpoint("198.51.100.1", 80),
    0.25,
    999,
    34_500_000_000,
)
SSH = FlowStatus(
    key("2001:db8::10", 22, "2001:db8::1", 50000), "FIN-WAIT-2", False, endpoint("::1", 50000), 7265.0, 2048, 1
)
OPENING = FlowStatus(key("192.0.2.10", 40001, "192.0.2.1", 80), "SYN-SENT", True, endpoint("127.0.0.1", 80))
DNS = FlowStatus(
    key("192.0.2.10", 5353, "192.0.2.1", 53), "answered", True, endpoint("203.0.113.53", 53), 59.0, 2, 1, Unit.DATAGRAMS
)
PING = FlowStatus(key("192.0.2.10", 7, "198.51.100.1", 0), "open", True, endpoint("198.51.100.1", 0), 12.0)
PING_OF_HOST = evolve(PING, key=key("192.0.2.10", 8, "192.0.2.1", 0), on_host=endpoint("127.0.0.1", 0))

GUEST = GuestStatus(
    connected_s=723.0,
    mac=bytes.fromhex("525400123456"),
    addresses=(ip_address("192.0.2.10").packed, ip_address("2001:db8::10").packed),
    flows_waiting=2,
    waiting_bytes=1500,
    drops=(("udp: link to the guest full", 12), ("malformed", 1)),
    flows=(
        Flows("TCP", 3, 65536, (WEB, SSH, OPENING)),
        Flows("UDP", 41, 16384, (DNS,)),
        Flows("echo", 2, 1024, (PING, PING_OF_HOST)),
    ),
)
FORWARDS = (
    PortForward(Protocol.TCP, 22, 22, 22),
    PortForward(Protocol.TCP, 8000, 8010, 9000, IPv4Address("192.0.2.10")),
    PortForward(Protocol.TCP, 80, 81, 80, interface="eth0"),
)
STATUS = Status(up_s=3720.0, descriptors=57, descriptor_limit=20000, forwards=FORWARDS, guest=GUEST)

EXPECTED = """\
status after 1 h 2 min: a guest is connected, for 12 min 3 s
descriptors: 57 of 20000 are open
forwarded: TCP 22, 192.0.2.10/8000-8010 -> 9000-9010, %eth0/80-81
forwarded: UDP none
guest: 52:54:00:12:34:56, 192.0.2.10, 2001:db8::10
link: has room, 2 flows wait; 1500 bytes of datagrams wait
dropped: 12 (udp: link to the guest full)
dropped: 1 (malformed)
flows: 3 TCP (of 65536), 41 UDP (of 16384), 2 echo (of 1024)
PROTOCOL  STATE        GUEST                  REMOTE               ON THE HOST           IDLE   FROM GUEST    TO GUEST
TCP       ESTABLISHED  192.0.2.10:40000   ->  198.51.100.1:80                           0.2 s        999 B    32.1 GiB
TCP       FIN-WAIT-2   [2001:db8::10]:22  <-  [2001:db8::1]:50000  [::1]:50000      2 h 1 min      2.0 KiB         1 B
TCP       SYN-SENT     192.0.2.10:40001   ->  192.0.2.1:80         127.0.0.1:80             -            -           -
UDP       answered     192.0.2.10:5353    ->  192.0.2.1:53         203.0.113.53:53       59 s  2 datagrams  1 datagram
... and 40 more of UDP
echo      open         192.0.2.10 id 7    ->  198.51.100.1                               12 s            -           -
echo      open         192.0.2.10 id 8    ->  192.0.2.1            127.0.0.1             12 s            -           -
""".splitlines()


def test_table_with_a_guest() -> None:
    assert table(STATUS) == EXPECTED


def test_table_without_a_guest() -> None:
    assert table(evolve(STATUS, guest=None, forwards=(), descriptors=None, up_s=5.0)) == [
        "status after 5.0 s: no guest is connected",
        "descriptors: an unknown number of 20000 are open",
        "forwarded: TCP none",
        "forwarded: UDP none",
    ]


def test_table_of_a_guest_that_has_not_spoken() -> None:
    quiet = GuestStatus(connected_s=0.0, is_link_full=True, flows=(Flows("TCP", 0, 9), Flows("UDP", 0, 8)))
    assert table(evolve(STATUS, guest=quiet))[-3:] == [
        "guest: MAC address not known yet, no address",
        "link: full, 0 flows wait; 0 bytes of datagrams wait",
        "flows: 0 TCP (of 9), 0 UDP (of 8)",
    ]


def test_of_many_forwards_only_some_are_listed() -> None:
    forwards = tuple(PortForward(Protocol.UDP, port, port, port) for port in range(1000, 3000, 2))
    assert table(evolve(STATUS, forwards=forwards))[3].endswith("1018, 1020, 1022 ... and 988 more")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (10.0, "10 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (1e7, "115 d 17 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert table(evolve(STATUS, up_s=seconds))[0].startswith(f"status after {text}:")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 + 2**19, "1.5 MiB"),
        (2**43, "8.0 TiB"),
        (2**54, "16384.0"),
    ],
)
def test_amounts(count: int, text: str) -> None:
    guest = evolve(GUEST, flows=(Flows("TCP", 1, 1, (evolve(WEB, to_guest=count),)),))
    assert text in table(evolve(STATUS, guest=guest))[-1]


# -- collected while traffic goes on ----------------------------------------------------------------------------------


class Crowd:
    """Ten thousand flows, each of which counts when it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.limit = FlowLimit(65536)

    def __len__(self) -> int:
        return 10_000

    def newest(self, most: int) -> list[Crowd]:
        return [self] * min(most, len(self))

    def status(self) -> FlowStatus:
        self.asked += 1
        return WEB


def attached(crowd: Any) -> Any:
    """What `daemon` has of a guest with these flows of each protocol."""
    guest = SimpleNamespace(is_known=True, mac=b"\2" * 6, addresses=[])
    link = SimpleNamespace(is_full=False, waiting=0)
    drops = SimpleNamespace(most_common=lambda: [("malformed", 3)])
    session = SimpleNamespace(guest=guest, link=link, drops=drops, datagrams=SimpleNamespace(left_bytes=0))
    dispatcher = SimpleNamespace(tcp=crowd, udp=crowd, echo=crowd)
    return SimpleNamespace(session=session, dispatcher=dispatcher, since=0.0, flows=(), forwards_to_host=None)


async def asked(times: int, at_the_end: trio.Event | None = None) -> AsyncIterator[int]:
    for number in range(times):
        yield number
    if at_the_end is not None:
        at_the_end.set()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged, as it comes."""
    logging.getLogger("trio_passt").setLevel(logging.WARNING)  # --quiet
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("trio_passt").addHandler(handler)
    yield seen
    logging.getLogger("trio_passt").removeHandler(handler)
    logging.getLogger("trio_passt").setLevel(logging.NOTSET)


async def test_others_have_their_turn_meanwhile(autojump_clock: MockClock, lines: list[str]) -> None:
    crowd = Crowd()
    steps: list[tuple[int, int]] = []
    ended = trio.Event()

    async def watch() -> None:
        while True:
            steps.append((crowd.asked, len(lines)))
            await trio.sleep(status.PAUSE_S / 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await answer(asked(1, ended), lambda: attached(crowd), lambda: FORWARDS)
        nursery.cancel_scope.cancel()
    assert crowd.asked == 3 * status.FLOWS_SHOWN
    assert len([line for line in lines if line.startswith(("TCP", "UDP", "echo"))]) == crowd.asked
    assert [line for line in lines if line.startswith("...")] == [
        f"... and {10_000 - status.FLOWS_SHOWN} more of {protocol}" for protocol in ("TCP", "UDP", "echo")
    ]
    for before, after in itertools.pairwise(steps):
        assert after[0] - before[0] <= status.AT_ONCE
        assert after[1] - before[1] <= status.AT_ONCE


async def test_there_is_a_rest_between_two_tables(autojump_clock: MockClock, lines: list[str]) -> None:
    await answer(asked(3), lambda: None, lambda: ())
    assert [line for line in lines if line.startswith("status")] == [
        "status after 0.0 s: no guest is connected",
        "status after 1.0 s: no guest is connected",
        "status after 2.0 s: no guest is connected",
    ]
    assert trio.current_time() >= 3 * status.REST_S


async def test_a_mistake_in_it_harms_nobody(
    autojump_clock: MockClock, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = iter([SimpleNamespace(), None])
    await answer(asked(2), lambda: next(guests), lambda: ())  # type: ignore[arg-type, return-value]
    assert lines[:2] == [
        "internal error in the status; please report this",
        "status after 1.0 s: no guest is connected",
    ]


# -- descriptors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_says", [True, False])
async def test_open_descriptors(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, kernel_says: bool) -> None:
    if not kernel_says:
        monkeypatch.setattr(
            status, "os", SimpleNamespace(stat=lambda _: SimpleNamespace(st_size=0), scandir=os.scandir)
        )
    before = await open_descriptors()
    pipes = [os.pipe() for _ in range(400)]
    try:
        after = await open_descriptors()
    finally:
        for fd in (fd for pair in pipes for fd in pair):
            os.close(fd)
    assert before is not None
    assert before >= 3
    assert after == before + 800
    assert await open_descriptors() == before


async def test_without_proc_the_number_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(status, "_DIRECTORY", str(tmp_path / "none"))
    assert await open_descriptors() is None
