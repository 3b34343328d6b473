"""A guest that plays its part by itself: a small TCP, and a terrible cable between it and the daemon.

The TCP keeps nothing that comes out of order, goes back to the first unacknowledged byte after each timeout, and has no
congestion control: enough to finish whatever the cable does.
"""

import random
from collections.abc import Callable
from functools import partial

import trio

from trio_passt.flow.key import FlowKey
from trio_passt.link.memory import MemoryLink
from trio_passt.tcp import seq
from trio_passt.wire import ethernet, ip, ipv4, ipv6, tcp
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import ACK, FIN, RST, SYN, TcpOptions, TcpSegment

TIMEOUT_S = 0.3
MSS = 1400
SCALE = 3

DELAYED = 0.2
MOST_DELAY_S = 0.01


class MiniTcp:
    """One connection: sends `data` and FIN, and keeps what it receives until the peer's FIN."""

    def __init__(self, key: FlowKey, data: bytes, window: int, transmit: Callable[[FlowKey, TcpSegment], None]) -> None:
        self.received = bytearray()
        self.key = key
        self._data = data
        self._window = window
        self._transmit = transmit
        self._start = 2**32 - 2000  # so that the numbers of most transfers wrap
        self._sent = 0
        """Of SYN, data and FIN, in sequence numbers: how much was sent, and how much is acknowledged."""
        self._acknowledged = 0
        self._room = 0
        self._next: int | None = None
        self._fin_seen = False
        self._news, self._inbox = trio.open_memory_channel[TcpSegment](10_000)

    def deliver(self, segment: TcpSegment) -> None:
        """A segment came."""
        self._news.send_nowait(segment)

    async def run(self) -> None:
        """From SYN to the acknowledgement of both FINs."""
        while not (self._fin_seen and self._acknowledged == self._length):
            self._send()
            with trio.move_on_after(TIMEOUT_S) as silence:
                self._take(await self._inbox.receive())
            if silence.cancelled_caught:
                self._sent = self._acknowledged

    async def linger(self) -> None:
        """TIME-WAIT: acknowledge what comes again, until cancelled."""
        while True:
            segment = await self._inbox.receive()
            if not segment.flags & RST and (segment.sequence_length or segment.seq != self._next):
                self._acknowledge()

    @property
    def _length(self) -> int:
        return 1 + len(self._data) + 1

    def _send(self) -> None:
        if self._next is None:
            if self._sent == 0:
                self._emit(SYN, 0, b"", TcpOptions(MSS, SCALE))
                self._sent = 1
            return
        end = min(self._acknowledged + self._room, self._length)
        while self._sent < end or self._sent == self._length - 1:
            piece = self._data[self._sent - 1 : min(self._sent - 1 + MSS, end - 1)]
            is_last = self._sent - 1 + len(piece) == len(self._data)
            self._emit(ACK | (FIN if is_last else 0), self._sent, piece)
            self._sent += len(piece) + is_last

    def _take(self, segment: TcpSegment) -> None:
        if segment.flags & RST:
            if self._fin_seen and self._sent == self._length:  # LAST-ACK, and the acknowledgement was lost
                self._acknowledged = self._length
                return
            raise ConnectionResetError(f"{self.key}: {segment}")
        if segment.flags & SYN:
            self._next = seq.add(segment.seq, 1)
        if self._next is None:
            return
        acknowledged = seq.distance(self._start, segment.ack)
        if self._acknowledged <= acknowledged <= self._length:
            self._acknowledged = acknowledged
            self._sent = max(self._sent, acknowledged)
            self._room = segment.window << (0 if segment.flags & SYN else 7)
        expected = self._next
        if segment.seq == self._next and not segment.flags & SYN and not self._fin_seen:
            self.received += segment.payload
            self._fin_seen = bool(segment.flags & FIN)
            self._next = seq.add(self._next, segment.sequence_length)
        if segment.sequence_length or segment.seq != expected:
            self._acknowledge()

    def _acknowledge(self) -> None:
        self._emit(ACK, self._sent, b"")

    def _emit(self, flags: int, at: int, payload: bytes, options: TcpOptions = tcp.NO_OPTIONS) -> None:
        key = self.key
        window = self._window if flags & SYN else self._window >> SCALE
        number = seq.add(self._start, at)
        ack = self._next or 0
        segment = TcpSegment(key.guest_port, key.remote_port, number, ack, flags, window, payload, options)
        self._transmit(key, segment)


class TerribleCable:
    """Loses, repeats and delays frames, both ways, as `dice` has it; what is delayed is overtaken."""

    def __init__(self, link: MemoryLink, nursery: trio.Nursery, dice: random.Random, *, loss: float) -> None:
        self._link = link
        self._nursery = nursery
        self._dice = dice
        self._loss = loss
        self._ends: dict[tuple[int, int], MiniTcp] = {}

    def attach(self, end: MiniTcp) -> None:
        """Frames of this connection go to `end`."""
        self._ends[end.key.guest_port, end.key.remote_port] = end

    def transmit(self, key: FlowKey, segment: TcpSegment) -> None:
        """From the guest."""
        packet = ip.emit_packet(key.guest, key.remote, IPProtocol.TCP, tcp.emit(key.guest, key.remote, segment))
        frame = ip.frame_packet(bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55"), packet)
        self._pass(lambda: self._link.push([frame]))

    async def run(self) -> None:
        """To the guest."""
        while True:
            frame = await self._link.next_sent()
            header, packet = ethernet.parse(memoryview(frame))
            source, destination, segment = _parse(header, packet)
            end = self._ends.get((segment.destination_port, segment.source_port))
            assert end is not None, f"segment of no connection: {segment}"
            assert (destination, source) == (end.key.guest, end.key.remote)
            self._pass(partial(end.deliver, segment))

    def _pass(self, deliver: Callable[[], None]) -> None:
        for _ in range(self._dice.choices([0, 1, 2], [self._loss, 1 - 2 * self._loss, self._loss])[0]):
            delay_s = self._dice.random() * MOST_DELAY_S if self._dice.random() < DELAYED else 0.0
            self._nursery.start_soon(self._later, delay_s, deliver)

    async def _later(self, delay_s: float, deliver: Callable[[], None]) -> None:
        await trio.sleep(delay_s)
        deliver()


def _parse(header: EthernetHeader, packet: memoryview) -> tuple[bytes, bytes, TcpSegment]:
    ip_header: ipv4.IPv4Header | ipv6.IPv6Header
    if header.ethertype == EtherType.IPV4:
        ip_header, payload = ipv4.parse(packet)
    else:
        ip_header, payload = ipv6.parse(packet)
    return ip_header.source, ip_header.destination, tcp.parse(ip_header.source, ip_header.destination, payload)
