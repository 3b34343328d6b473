"""A terrible cable between guests' TCPs and the daemon: it loses, repeats, damages, delays and reorders frames.

What happens to a frame is decided by its connection's own dice, so a connection meets the same fate whatever the others
do at the time.  Frames that are due together arrive together, as one batch.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

import trio
from attrs import define, frozen

from harness.mini_tcp import MiniTcp
from harness.stage import frame_of
from trio_passt.flow.key import FlowKey
from trio_passt.link.memory import MemoryLink
from trio_passt.wire import ethernet, ip, ipv4, ipv6, tcp
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import TcpSegment

SLOT_S = 0.001
"""Frames that are due in the same millisecond arrive together."""

MOST_LOST_IN_A_ROW = 3
SPARED_AFTER = 4
"""After so many losses in a row some frames are spared: a connection that is given up after eight attempts, as it has
to be, would not be an error."""


@frozen
class Weather:
    """Probabilities, for each frame of a connection, in both directions."""

    loss: float = 0.0
    damage: float = 0.0
    repetition: float = 0.0
    delay: float = 0.0
    most_delay_s: float = 0.01


@define(eq=False)
class _Plugged:
    """A connection, its weather, and its dice."""

    end: MiniTcp
    weather: Weather
    dice: random.Random
    lost_in_a_row: int = 0
    spared: int = 0


class TerribleCable:
    """Run it in a nursery of its own; `attach` each connection before its first segment."""

    def __init__(self, link: MemoryLink, dice: random.Random, *, pauses: float = 0.0) -> None:
        """With probability `pauses` the cable stops for a moment to take what the daemon sends: the link fills up."""
        self._link = link
        self._dice = dice
        self._pauses = pauses
        self._plugged: dict[FlowKey, _Plugged] = {}
        self._due: list[tuple[float, int, Callable[[list[bytes]], None]]] = []
        self._count = itertools.count()
        self._news = trio.Event()

    def attach(self, end: MiniTcp, weather: Weather, dice: random.Random) -> None:
        """Frames of this connection go to `end`."""
        self._plugged[end.key] = _Plugged(end, weather, dice)

    def transmit(self, key: FlowKey, segment: TcpSegment) -> None:
        """From the guest."""
        packet = ip.emit_packet(key.guest, key.remote, IPProtocol.TCP, tcp.emit(key.guest, key.remote, segment))
        frame = frame_of(packet)
        plugged = self._plugged[key]
        if plugged.dice.random() < plugged.weather.damage:
            ip_bytes = ipv4.HEADER_BYTES if len(key.guest) == 4 else ipv6.HEADER_BYTES
            frame = _damaged(frame, len(frame) - len(packet) + ip_bytes, plugged.dice)
        self._pass(plugged, lambda batch: batch.append(frame))

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_from_daemon)
            nursery.start_soon(self._deliver)

    async def _take_from_daemon(self) -> None:
        while True:
            frames = [await self._link.next_sent(), *self._link.take_sent()]
            for frame in frames:
                key, segment = _parse(frame)
                plugged = self._plugged.get(key)
                assert plugged is not None, f"segment of no connection: {key} {segment}"
                self._pass(plugged, partial(_to_end, plugged.end, segment))
            if self._dice.random() < self._pauses:
                await trio.sleep(self._dice.random() * 0.02)

    def _pass(self, plugged: _Plugged, deliver: Callable[[list[bytes]], None]) -> None:
        weather, dice = plugged.weather, plugged.dice
        for _ in range(1 + (dice.random() < weather.repetition)):
            if self._is_lost(plugged):
                continue
            delay_s = dice.random() * weather.most_delay_s if dice.random() < weather.delay else 0.0
            slot = round((trio.current_time() + delay_s) / SLOT_S)
            heapq.heappush(self._due, (slot * SLOT_S, next(self._count), deliver))
        self._news.set()

    def _is_lost(self, plugged: _Plugged) -> bool:
        if plugged.spared:
            plugged.spared -= 1
            return False
        if plugged.dice.random() >= plugged.weather.loss:
            plugged.lost_in_a_row = 0
            return False
        plugged.lost_in_a_row += 1
        if plugged.lost_in_a_row == MOST_LOST_IN_A_ROW:
            plugged.lost_in_a_row, plugged.spared = 0, SPARED_AFTER
        return True

    async def _deliver(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()  # whoever sends now, sends before this batch is closed
            batch: list[bytes] = []
            while self._due and self._due[0][0] <= trio.current_time() + SLOT_S / 2:
                heapq.heappop(self._due)[2](batch)
            if batch:
                self._link.push(batch)
            self._news = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else float("inf")):
                await self._news.wait()


def _to_end(end: MiniTcp, segment: TcpSegment, _batch: list[bytes]) -> None:
    end.deliver(segment)


def _damaged(frame: bytes, tcp_at: int, dice: random.Random) -> bytes:
    """One bit of the TCP segment is flipped: its checksum tells."""
    place = dice.randrange(tcp_at, len(frame))
    return frame[:place] + bytes([frame[place] ^ 1 << dice.randrange(8)]) + frame[place + 1 :]


def _parse(frame: bytes) -> tuple[FlowKey, TcpSegment]:
    """The connection, as the guest names it, and the segment."""
    header, packet = ethernet.parse(memoryview(frame))
    ip_header: ipv4.IPv4Header | ipv6.IPv6Header
    if header.ethertype == EtherType.IPV4:
        ip_header, payload = ipv4.parse(packet)
    else:
        ip_header, payload = ipv6.parse(packet)
    source, destination = ip_header.source, ip_header.destination
    segment = tcp.parse(source, destination, payload)
    return FlowKey(destination, segment.destination_port, source, segment.source_port), segment
