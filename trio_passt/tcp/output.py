"""Segments of one connection on their way to the guest's link."""

from collections.abc import Callable
from typing import Final

from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import Session
from trio_passt.wire.frames import FrameRun
from trio_passt.wire.segment import TcpHeaders

TURN_BYTES: Final = 1024 * 1024
"""What one flow sends before others get their turn, at the most."""

ROUND_BYTES: Final = 8 * TURN_BYTES
"""What is divided among those who wait for the link: more than it takes at once, so that some send much each time, and
not all of them little; turn after turn it is the same."""

LEAST_SHARE_BYTES: Final = 64 * 1024
"""What each sends even if many wait: a large segment."""


class Output:
    """Makes frames of segments and offers them to the link.

    While the link is full nothing is offered.  Who was not served, or has used its share while others wait, queues up:
    `on_room` is called when it is its turn.
    """

    __slots__ = ("_headers", "_is_queued", "_key", "_on_room", "_session")

    def __init__(self, session: Session, key: FlowKey, on_room: Callable[[], None]) -> None:
        self._session = session
        self._key = key
        self._on_room = on_room
        self._headers = self._make_headers()
        self._is_queued = False

    def segment(self, seq: int, ack: int, flags: int, window: int, options: bytes = b"", copies: int = 1) -> bool:
        """Send one segment without data, or several that are the same; false if the link is full."""
        run = self._current_headers().segment(seq, ack, flags, window, b"", options)
        if copies > 1:
            run = FrameRun(run.parts * copies, copies, run.stride, run.offload)
        return self._offer([run], copies) > 0

    def data(self, seq: int, ack: int, flags: int, window: int, payload: memoryview, mss: int) -> int:
        """Send `payload` from `seq` on; returns how many bytes of it the link took."""
        headers = self._current_headers()
        runs = headers.cut(seq, ack, flags, window, payload, mss)
        frames = sum(run.count for run in runs)
        self._session.readiness.moved(len(payload))
        taken = self._offer(runs, frames)
        return len(payload) if taken == frames else taken * headers.payload_per_frame(mss)

    def share_bytes(self, mss: int) -> int:
        """How much data may go out in one turn: the more flows wait for the link, the less each gets at a time.

        Not more than the link has room for, since what was prepared in vain has to be prepared again; but a segment.
        """
        link = self._session.link
        share = min(max(ROUND_BYTES // (1 + link.waiting), LEAST_SHARE_BYTES), TURN_BYTES)
        return max(min(share, link.room_bytes), mss)

    def whole_frames(self, size: int, mss: int) -> int:
        """`size` without what would be left over for a small frame at the end."""
        full = self._headers.payload_per_frame(mss)
        return size - size % (full if full <= size else mss)

    @property
    def waits_for_link(self) -> bool:
        """Whether nothing can be sent until `on_room` is called."""
        return self._is_queued and self._session.link.is_full

    def has_room(self) -> bool:
        """Whether data is worth preparing; if not, `on_room` will be called."""
        is_full = self._session.link.is_full
        if is_full:
            self._queue_up()
        return not is_full

    def gives_way(self) -> bool:
        """After one's share: if others wait for the link, queue up behind them; false if nobody does."""
        if self._session.link.waiting:
            self._queue_up()
        return self._is_queued

    def close(self) -> None:
        """Nothing more is to be sent: the place in the link's queue is given up."""
        if self._is_queued:
            self._is_queued = False
            self._session.link.forget(self._has_room)

    def _queue_up(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._session.link.when_ready(self._has_room)

    def _offer(self, runs: list[FrameRun], frames: int) -> int:
        if not self.has_room():
            return 0
        taken = self._session.link.send(runs)
        if taken < frames:
            self._queue_up()
        return taken

    def _has_room(self) -> None:
        self._is_queued = False
        self._on_room()

    def _current_headers(self) -> TcpHeaders:
        if self._headers.guest_mac != self._session.guest.mac:
            self._headers = self._make_headers()
        return self._headers

    def _make_headers(self) -> TcpHeaders:
        key, session = self._key, self._session
        return TcpHeaders(
            session.network.host_mac,
            session.guest.mac,
            key.remote,
            key.remote_port,
            key.guest,
            key.guest_port,
            session.link.capabilities,
        )
