"""The two ends of one TCP connection: the guest's, segment by segment, and the host's, a socket."""

from __future__ import annotations

import itertools
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING

from trio.testing import wait_all_tasks_blocked

from harness.oracle import Seen, SeenTcp
from harness.waiting import eventually
from trio_passt.tcp import seq as numbers
from trio_passt.wire import tcp
from trio_passt.wire.tcp import TcpOptions, TcpSegment

if TYPE_CHECKING:
    from harness.stage import Family, Stage

_guest_ports = itertools.cycle(range(40_000, 60_000))

ACK_OF_MINE = -1
"""What `expects` takes for granted: all that the guest has sent is acknowledged."""


class GuestTcp:
    """The guest's end.  Sequence numbers go on by themselves, unless a test names others.

    `next` is the sequence number of what is sent next, `expected` that of what comes next; `window` is what is
    advertised, in bytes; `told` is the SACK option of the segment that came last, as left and right edges.
    """

    def __init__(self, stage: Stage, family: Family, remote: str, port: int, guest_port: int | None) -> None:
        self.family = family
        self.remote = remote
        self.port = port
        self.guest_port = next(_guest_ports) if guest_port is None else guest_port
        self.next = 1_000_000
        self.expected = 0
        self.window = 65535
        self.scale = 0
        self.host_scale = 0
        self.host_window = 0
        self.told: tuple[int, ...] = ()
        self._own_scale: int | None = None
        self._is_asked = False
        self._edge: int | None = None
        self._host_edge: int | None = None
        self._fin_behind: TcpSegment | None = None
        self._stage = stage

    # -- sending ---------------------------------------------------------------------------------------------------

    def segment(
        self,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        mss: int | None = None,
        scale: int | None = None,
        takes_sack: bool = False,
    ) -> TcpSegment:
        """A segment as `sends` sends it."""
        number = self.next if seq is None else seq % 2**32
        if window is None:
            window = self.window
        if flags & tcp.SYN:
            self._own_scale = scale
            if flags & tcp.ACK and self._is_asked:  # an answer, and so the last word on scaling
                self.scale = min(scale or 0, tcp.MAX_WINDOW_SCALE)
                self.host_scale = self.host_scale if scale is not None else 0
            self._edge = None
            field = min(window, 65535)
        else:
            field = min(window >> self.scale, 65535)
        if ack is None:
            ack = self.expected if flags & tcp.ACK else 0
        if flags & tcp.ACK:
            self._move_edge(ack + (field if flags & tcp.SYN else field << self.scale))
        options = TcpOptions(mss, scale, takes_sack)
        segment = TcpSegment(self.guest_port, self.port, number, ack % 2**32, flags, field, payload, options)
        if seq is None:
            self.next = (self.next + segment.sequence_length) % 2**32
        return segment

    def sends(
        self,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        mss: int | None = None,
        scale: int | None = None,
        takes_sack: bool = False,
    ) -> None:
        """Send one segment.  Named numbers are for this segment only; others follow from what went before."""
        segment = self.segment(
            flags, payload, seq=seq, ack=ack, window=window, mss=mss, scale=scale, takes_sack=takes_sack
        )
        self._stage.sends_segments(self.family, [segment], self.remote)

    def sends_batch(self, *segments: TcpSegment) -> None:
        """Segments that arrive together."""
        self._stage.sends_segments(self.family, segments, self.remote)

    # -- receiving -------------------------------------------------------------------------------------------------

    def takes_syn(self, syn: TcpSegment) -> None:
        """The other end's SYN was received."""
        self._is_asked = not syn.flags & tcp.ACK
        self.expected = (syn.seq + 1) % 2**32
        self.host_window = syn.window
        self._host_edge = None
        if syn.options.window_scale is not None and (self._own_scale is not None or not syn.flags & tcp.ACK):
            self.host_scale = syn.options.window_scale
        self.scale = (self._own_scale or 0) if syn.options.window_scale is not None else 0

    async def arrives(self) -> TcpSegment:
        """The next segment of this connection, whatever it is.  A FIN that rides on data is seen as one behind it."""
        if self._fin_behind is not None:
            fin, self._fin_behind = self._fin_behind, None
            return fin
        seen = await self._stage.expects_segment(self._is_mine)
        self._check_windows(seen.segment)
        self.told = seen.sack
        return self._without_fin(seen.segment)

    def _without_fin(self, got: TcpSegment) -> TcpSegment:
        if not got.payload or not got.flags & tcp.FIN:
            return got
        end = numbers.add(got.seq, len(got.payload))
        self._fin_behind = got._replace(seq=end, payload=b"", flags=got.flags & ~tcp.PSH)
        return got._replace(flags=got.flags & ~tcp.FIN)

    async def expects(
        self,
        flags: int,
        payload: bytes | None = None,
        *,
        seq: int | None = None,
        ack: int = ACK_OF_MINE,
    ) -> TcpSegment:
        """The next segment: these flags (PSH does not matter), next in sequence, and all acknowledged that was sent.

        `payload` is compared if given, and must be empty if not.  `seq` and `ack` say what is expected instead.
        """
        got = await self.arrives()
        wanted = "|".join(name for name in ("FIN", "SYN", "RST", "ACK") if flags & getattr(tcp, name))
        assert got.flags & ~tcp.PSH == flags, f"expected {wanted}, got {got}"
        assert got.payload == (payload or b""), f"expected {len(payload or b'')} bytes, got {got}"
        if not got.flags & tcp.SYN:
            assert got.seq == (self.expected if seq is None else seq % 2**32), f"expected {self.expected}, got {got}"
        if got.flags & tcp.ACK:
            assert got.ack == (self.next if ack == ACK_OF_MINE else ack % 2**32), f"expected ack {self.next}, got {got}"
        self._take(got)
        return got

    async def expects_data(self, data: bytes, *, acknowledge: bool = True) -> None:
        """`data` in segments in order, each within the window that was last told; acknowledged one by one, or not."""
        received = bytearray()
        while len(received) < len(data):
            got = await self.arrives()
            assert got.flags & ~tcp.PSH == tcp.ACK, f"expected data, got {got}"
            if not got.payload:
                continue
            assert got.seq == self.expected, f"expected {self.expected}, got {got}"
            received += got.payload
            self._take(got)
            if acknowledge:
                self.sends(tcp.ACK)
        assert len(received) == len(data)
        assert received == data

    async def uploads(self, data: bytes, segment_bytes: int = 65460) -> None:
        """Send `data` as the host's window allows, in batches, until all of it is acknowledged."""
        start, sent = self.next, 0
        acknowledged = 0
        while acknowledged < len(data):
            room = acknowledged + self.host_window - sent
            pieces = []
            while sent < len(data) and (size := min(segment_bytes, room, len(data) - sent)) > 0:
                pieces.append(self.segment(tcp.ACK, data[sent : sent + size]))
                sent += size
                room -= size
            if pieces:
                self.sends_batch(*pieces)
            got = await self.arrives()
            assert got.flags & ~tcp.PSH == tcp.ACK, f"expected an acknowledgement, got {got}"
            self._take(got)
            acknowledged = max(acknowledged, numbers.distance(start, got.ack))

    @property
    def room(self) -> int:
        """How much the host's window has room for."""
        assert self._host_edge is not None
        return numbers.distance(self.next, self._host_edge)

    async def fills_window(self, data: bytes, segment_bytes: int = 65460, *, but: int = 0) -> int:
        """Send from `data` until the host's window is full for good, but for some bytes; returns how much was sent."""
        start, sent = self.next, 0
        edge = self.host_window - but
        while True:
            pieces = []
            while sent < edge and sent < len(data):
                piece = data[sent : min(sent + segment_bytes, edge)]
                pieces.append(self.segment(tcp.ACK, piece))
                sent += len(piece)
            if pieces:
                self.sends_batch(*pieces)
            got = await self.arrives_or_none()
            if got is None:
                return sent
            edge = max(edge, numbers.distance(start, got.ack) + (got.window << self.host_scale) - but)

    async def arrives_or_none(self) -> TcpSegment | None:
        """The next segment of this connection, if there is one without waiting for time."""
        if self._fin_behind is not None:
            fin, self._fin_behind = self._fin_behind, None
            self._take(fin)
            return fin
        await self._stage.settles()
        seen = self._stage.look(self._is_mine)
        if not isinstance(seen, SeenTcp):
            return None
        self._check_windows(seen.segment)
        self.told = seen.sack
        got = self._without_fin(seen.segment)
        self._take(got)
        return got

    async def expects_reset(self, *, ack: int | None = ACK_OF_MINE) -> TcpSegment:
        """A reset that a guest has to accept: exactly the next sequence number (RFC 5961 section 3.2)."""
        got = await self.arrives()
        assert got.flags & tcp.RST, f"expected a reset, got {got}"
        assert got.seq == self.expected, f"expected {self.expected}, got {got}"
        return got

    async def expects_nothing(self) -> None:
        """Nothing of this connection came, and nothing comes."""
        assert self._fin_behind is None, f"unexpected: {self._fin_behind}"
        await self._stage.settles()
        seen = self._stage.look(self._is_mine)
        assert seen is None, f"unexpected: {seen}"

    def _move_edge(self, edge: int) -> None:
        """Up to `edge` the host may send; a window that shrinks does not take back what was allowed."""
        if self._edge is None or numbers.distance(self._edge, edge) > 0:
            self._edge = edge

    def _check_windows(self, got: TcpSegment) -> None:
        """The host never sends beyond the guest's window, and never takes back its own (RFC 9293 section 3.8.6)."""
        if self._edge is not None:
            beyond = numbers.distance(self._edge, got.seq + len(got.payload))
            assert beyond <= 0, f"{beyond} bytes beyond the window: {got}"
        if got.flags & tcp.ACK and not got.flags & (tcp.SYN | tcp.RST):
            edge = got.ack + (got.window << self.host_scale)
            if self._host_edge is not None:
                taken_back = numbers.distance(edge, self._host_edge)
                assert taken_back < 1 << self.host_scale, f"window taken back by {taken_back} bytes: {got}"
            self._host_edge = edge

    def _take(self, got: TcpSegment) -> None:
        if got.flags & tcp.SYN:
            self.takes_syn(got)
            return
        self.host_window = got.window << self.host_scale
        if got.seq == self.expected:
            self.expected = (self.expected + got.sequence_length) % 2**32

    def _is_mine(self, seen: Seen) -> bool:
        if not isinstance(seen, SeenTcp):
            return False
        segment = seen.segment
        return (segment.source_port, segment.destination_port, seen.source) == (self.port, self.guest_port, self.remote)


class HostSocket:
    """The host's end: a non-blocking socket, in the words of a script."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)

    def sends(self, data: bytes) -> None:
        """All of `data`, which has to fit into the socket's buffer."""
        assert self.socket.send(data) == len(data)

    async def sends_all(self, data: bytes) -> None:
        """All of `data`, as there is room."""
        view = memoryview(data)
        while view:
            view = view[await eventually(partial(self._send, view), "room in the host's socket") :]

    def _send(self, view: memoryview) -> int | None:
        try:
            return self.socket.send(view)
        except BlockingIOError:
            return None

    async def receives(self, data: bytes) -> None:
        """Exactly `data` comes next."""
        received = bytearray()
        while len(received) < len(data):
            piece = await eventually(partial(self._receive, len(data) - len(received)), "data at the host")
            assert piece, f"the end of the data after {len(received)} of {len(data)} bytes"
            received += piece
        assert len(received) == len(data)
        assert received == data

    def _receive(self, most: int) -> bytes | None:
        try:
            return self.socket.recv(most)
        except BlockingIOError:
            return None

    async def receives_end(self) -> None:
        """The end of the data comes next."""
        assert await eventually(lambda: self._receive(1), "the end of the data at the host") == b""

    async def is_reset(self) -> None:
        """The connection is reset."""

        def look() -> bool | None:
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                return True
            assert data, "the end of the data instead of a reset"
            return None

        await eventually(look, "a reset at the host")

    async def receives_nothing(self) -> None:
        """No data, no end, no reset."""
        await wait_all_tasks_blocked(0.001)
        assert self._receive(1) is None

    def half_closes(self) -> None:
        """No more data from the host."""
        self.socket.shutdown(socket.SHUT_WR)

    def resets(self) -> None:
        """Reset the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class HostServer:
    """A listening socket on the host."""

    def __init__(self, family: socket.AddressFamily, address: str, backlog: int = 128) -> None:
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind((address, 0))
        self._socket.listen(backlog)
        self._accepted: list[socket.socket] = []
        self.port: int = self._socket.getsockname()[1]

    def receive_buffer(self, size: int) -> None:
        """Connections get a receive buffer of this size, which does not grow."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    async def accepts(self) -> HostSocket:
        """The next connection."""
        return await eventually(self._accept, "a connection to the host's server")

    def accepts_none(self) -> None:
        """There is no connection."""
        assert self._accept() is None

    def _accept(self) -> HostSocket | None:
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return None
        self._accepted.append(connection)
        return HostSocket(connection)

    def close(self) -> None:
        """Stop listening; connections are closed too."""
        self._socket.close()
        for connection in self._accepted:
            connection.close()
