"""A guest that plays its part by itself: a small TCP, enough to finish whatever the cable does.

It keeps nothing that comes out of order, goes back to the first unacknowledged byte after each timeout, and then starts
slowly.  What it is strict about is the daemon: data beyond its window, an acknowledgement of what it never
sent, a changed byte of a number are errors, not to be forgiven.
"""

import math
from collections.abc import Callable

import trio
from attrs import frozen

from trio_passt.flow.key import FlowKey
from trio_passt.tcp import seq
from trio_passt.wire import tcp
from trio_passt.wire.tcp import ACK, FIN, RST, SYN, TcpOptions, TcpSegment

TIMEOUT_S = 0.3
MOST_TIMEOUT_S = 5.0
DEFAULT_MSS = 536
MOST_SEGMENTS = 64
"""In flight, at most; after a timeout it is one, and grows with each acknowledgement."""


@frozen
class Habits:
    """How a guest's TCP behaves: what its SYN offers (`None`: no such option), and how much it can hold unread.

    `ends_first`: it sends its FIN behind its data, and does not wait for the other side's end.
    """

    mss: int | None = 1400
    scale: int | None = 3
    buffer_bytes: int = 65535
    initial_seq: int = 2**32 - 2000
    ends_first: bool = True


class MiniTcp:
    """One connection: sends `data` and FIN, and holds what comes until the application reads it.

    `run` opens it and sees it through to both ends' acknowledgement; `linger` is TIME-WAIT.  What the application has
    not read makes the window smaller.
    """

    def __init__(
        self, key: FlowKey, data: bytes, habits: Habits, transmit: Callable[[FlowKey, TcpSegment], None]
    ) -> None:
        self.key = key
        self._data = data
        self._habits = habits
        self._transmit = transmit
        self._mss = DEFAULT_MSS
        self._sent = 0
        """Of SYN, data and FIN, in sequence numbers: how much was sent, how much ever, how much is acknowledged."""
        self._ever_sent = 0
        self._acknowledged = 0
        self._room = 0
        self._most_segments = MOST_SEGMENTS
        self._scale = 0
        self._host_scale = 0
        self._next: int | None = None
        self._edge = 0
        self._unread = bytearray()
        self._read_bytes = 0
        self._is_at_end = False
        self._timeout_s = TIMEOUT_S
        self._answers = False
        self._is_active = True
        self._news_for_reader = trio.Event()
        self._news, self._inbox = trio.open_memory_channel[TcpSegment](math.inf)

    # -- the cable's side, and the application's ---------------------------------------------------------------------

    def deliver(self, segment: TcpSegment) -> None:
        """A segment came."""
        self._news.send_nowait(segment)

    async def read(self, most: int) -> bytes:
        """Up to `most` bytes, as soon as there are any; none at the end.

        The window that opens again is told if it is worth it (RFC 9293 section 3.8.6.2.2).
        """
        while not self._unread and not self._is_at_end:
            self._news_for_reader = trio.Event()
            await self._news_for_reader.wait()
        before = self._window()
        data = bytes(self._unread[:most])
        del self._unread[:most]
        self._read_bytes += len(data)
        worth_it = min(self._mss, self._habits.buffer_bytes // 2)
        if before < worth_it <= self._window():
            self._emit(ACK, self._sent)
        return data

    # -- a connection's life -----------------------------------------------------------------------------------------

    async def run(self, *, opens: bool = True) -> None:
        """From SYN to the acknowledgement of both FINs."""
        self._is_active = opens
        while not opens and self._next is None:
            self._take(await self._inbox.receive())
        while not (self._is_at_end and self._acknowledged == self._length):
            self._send()
            with trio.move_on_after(self._timeout_s) as silence:
                await self._take_all()
            if silence.cancelled_caught:
                self._time_out()

    async def linger(self) -> None:
        """TIME-WAIT: acknowledge what comes again, until cancelled."""
        while True:
            segment = await self._inbox.receive()
            if not segment.flags & RST and (segment.sequence_length or segment.seq != self._next):
                self._emit(ACK, self._sent)

    @property
    def _length(self) -> int:
        """SYN, data, and the FIN as soon as it may be sent."""
        return 1 + len(self._data) + (self._habits.ends_first or self._is_at_end)

    # -- sending -------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        if self._sent == 0:
            self._emit(SYN if self._is_active else SYN | ACK, 0)
            self._note_sent(1)
        if self._acknowledged == 0:
            return
        data_end = 1 + len(self._data)
        edge = self._acknowledged + min(self._room, self._most_segments * self._mss)
        while self._sent < self._length:
            end = min(self._sent + self._mss, data_end, edge)
            piece = self._data[self._sent - 1 : max(end - 1, 0)]
            with_fin = self._sent + len(piece) == data_end < self._length
            if not piece and not with_fin:
                break
            self._emit(ACK | (FIN if with_fin else 0), self._sent, piece)
            self._answers = False
            self._note_sent(self._sent + len(piece) + with_fin)
        if self._answers:
            self._emit(ACK, self._sent)
            self._answers = False

    def _note_sent(self, sent: int) -> None:
        self._sent = sent
        self._ever_sent = max(self._ever_sent, sent)

    def _time_out(self) -> None:
        """Back to what is not acknowledged; a window that is closed is probed with one byte (RFC 9293 3.8.6.1)."""
        self._timeout_s = min(self._timeout_s * 2, MOST_TIMEOUT_S)
        self._most_segments = 1
        self._sent = self._acknowledged
        if self._acknowledged and not self._room and (byte := self._data[self._sent - 1 : self._sent]):
            self._emit(ACK, self._sent, byte)
            self._ever_sent = max(self._ever_sent, self._sent + 1)

    # -- receiving -----------------------------------------------------------------------------------------------------

    async def _take_all(self) -> None:
        """What is there, at least one segment."""
        self._take(await self._inbox.receive())
        while self._inbox.statistics().current_buffer_used:
            self._take(self._inbox.receive_nowait())

    def _take(self, segment: TcpSegment) -> None:
        if segment.flags & RST:
            self._take_reset(segment)
            return
        if segment.flags & SYN and self._next is None:
            self._take_syn(segment)
        if self._next is None:
            return
        if segment.flags & ACK:
            self._take_acknowledgement(segment)
        if segment.flags & SYN or segment.seq != self._next or self._is_at_end:
            if segment.sequence_length or segment.seq != self._next:
                self._emit(ACK, self._sent)  # at once: three of these make the other side send again
            return
        assert len(segment.payload) <= self._edge - self._position, f"{self.key}: beyond the window: {segment}"
        self._unread += segment.payload
        self._is_at_end = bool(segment.flags & FIN)
        self._next = seq.add(self._next, segment.sequence_length)
        self._answers |= segment.sequence_length > 0
        self._news_for_reader.set()

    def _take_reset(self, segment: TcpSegment) -> None:
        """LAST-ACK: the acknowledgement of our FIN was lost, and the daemon knows no TIME-WAIT.  Else an error."""
        is_last = self._is_at_end and self._ever_sent == self._length
        if not is_last:
            raise ConnectionResetError(f"{self.key}: {segment}")
        self._acknowledged = self._length

    def _take_syn(self, syn: TcpSegment) -> None:
        self._next = seq.add(syn.seq, 1)
        self._mss = min(syn.options.mss or DEFAULT_MSS, self._habits.mss or 65535)
        if syn.options.window_scale is not None and self._habits.scale is not None:
            self._scale, self._host_scale = self._habits.scale, syn.options.window_scale
        assert syn.options.window_scale is None or not self._is_active or self._habits.scale is not None
        self._answers = self._is_active
        self._edge = min(self._habits.buffer_bytes, 65535)

    def _take_acknowledgement(self, segment: TcpSegment) -> None:
        acknowledged = seq.distance(self._habits.initial_seq, segment.ack)
        assert acknowledged <= self._ever_sent, f"{self.key}: acknowledges what was never sent: {segment}"
        if acknowledged < self._acknowledged:
            return
        if acknowledged > self._acknowledged or not self._room:
            self._timeout_s = TIMEOUT_S
            self._most_segments = min(2 * self._most_segments, MOST_SEGMENTS)
        self._acknowledged = acknowledged
        self._sent = max(self._sent, acknowledged)
        self._room = segment.window << (0 if segment.flags & SYN else self._host_scale)

    # -- segments -----------------------------------------------------------------------------------------------------

    @property
    def _position(self) -> int:
        """How much data has come, in order."""
        return self._read_bytes + len(self._unread)

    def _window(self) -> int:
        return max(self._habits.buffer_bytes - len(self._unread), 0)

    def _emit(self, flags: int, at: int, payload: bytes = b"") -> None:
        key, habits = self.key, self._habits
        number = seq.add(habits.initial_seq, at)
        options = tcp.NO_OPTIONS
        if flags & SYN:
            field = min(self._window(), 65535)
            options = TcpOptions(habits.mss, habits.scale)
        else:
            field = min(self._window() >> self._scale, 65535)
            self._edge = max(self._edge, self._position + (field << self._scale))
        segment = TcpSegment(key.guest_port, key.remote_port, number, self._next or 0, flags, field, payload, options)
        self._transmit(key, segment)
