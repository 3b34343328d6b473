"""Segments of one connection on their way to the guest's link."""

from collections.abc import Callable

from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import Session
from trio_passt.wire.frames import FrameRun
from trio_passt.wire.segment import TcpHeaders

TURN_BYTES = 1024 * 1024
"""What one flow sends before others get their turn, if nobody else waits for the link."""

LEAST_SHARE_BYTES = 64 * 1024
"""What it sends even if many wait: a large segment."""


class Output:
    """Makes frames of segments and offers them to the link.

    `waits_for_link` after a segment was not taken, or when it is others' turn, until the link calls back: nothing is
    offered meanwhile.  `on_room` is called then.
    """

    __slots__ = ("_headers", "_key", "_on_room", "_session", "waits_for_link")

    def __init__(self, session: Session, key: FlowKey, on_room: Callable[[], None]) -> None:
        self._session = session
        self._key = key
        self._on_room = on_room
        self._headers = self._make_headers()
        self.waits_for_link = False

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
        taken = self._offer(runs, frames)
        return len(payload) if taken == frames else taken * headers.payload_per_frame(mss)

    def share_bytes(self) -> int:
        """How much data may go out in one turn: the more flows wait for the link, the less each gets at a time."""
        return max(TURN_BYTES // (1 + self._session.link.waiting), LEAST_SHARE_BYTES)

    def has_room(self) -> bool:
        """Whether data is worth preparing; if not, `on_room` will be called."""
        if not self.waits_for_link and self._session.link.is_full:
            self._wait_for_room()
        return not self.waits_for_link

    def queues_up(self) -> bool:
        """After one's share: go to the end of the queue for the link.  False if nobody waits there."""
        if self._session.link.waiting:
            self._wait_for_room()
        return self.waits_for_link

    def _wait_for_room(self) -> None:
        self.waits_for_link = True
        self._session.link.when_ready(self._has_room)

    def _offer(self, runs: list[FrameRun], frames: int) -> int:
        if self.waits_for_link:
            return 0
        taken = self._session.link.send(runs)
        if taken < frames:
            self._wait_for_room()
        return taken

    def _has_room(self) -> None:
        self.waits_for_link = False
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
