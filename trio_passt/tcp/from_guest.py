"""The way from the guest to the host: what was received, what of it the host has, and the window.

Pure: no Trio, no sockets, no clock.  The numbers, in the order in which a byte passes them:

    right edge      the guest may send up to here (it never moves back)
    next            received in order up to here (RCV.NXT)
      - pending     received, waits for room in the host socket's send buffer
      - unconfirmed in the host's kernel, not yet acknowledged by the host's peer
    acknowledged    the acknowledgement number last sent to the guest

Nothing that the guest sent in order and within its window is ever dropped: what the host socket does not take stays in
`pending`, and the window is the smaller for it.  What comes behind a gap is kept (`kept`) until the gap is filled.
"""

from collections import deque
from enum import Enum
from itertools import islice
from typing import Final

from trio_passt.flow.budget import Budget
from trio_passt.tcp import seq
from trio_passt.tcp.closing import FROM_GUEST_TABLE, Event, FromGuestState
from trio_passt.tcp.kept import MOST_BYTES, Kept
from trio_passt.wire import tcp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.tcp import TcpSegment

MAX_WINDOW_FIELD: Final = 65535

SMALL_PIECE_BYTES: Final = 4096
"""Pieces smaller than this are not kept one by one: a guest may send single bytes, and an object for each is large."""


class Receipt(Enum):
    """What a segment's data was good for.

    IN_ORDER: new data or a FIN, right after what was there.
    NOTHING_NEW: no data, or only such as was there before.
    OUT_OF_ORDER: a gap before it; kept, and the guest is to be told at once (RFC 5681 section 4.2).
    FILLS_GAP: in order, and what was kept behind it may go on; the guest is to be told at once, too.
    """

    IN_ORDER = "in order"
    NOTHING_NEW = "nothing new"
    OUT_OF_ORDER = "out of order"
    FILLS_GAP = "fills a gap"


class FromGuest:
    """The receiving half of the synthetic endpoint; finished when `state` is ACKNOWLEDGED."""

    __slots__ = (
        "_borrowed",
        "_fin_at",
        "_kept",
        "_memory",
        "_pending",
        "_scale",
        "_tells_of_kept",
        "acknowledged",
        "next",
        "pending_bytes",
        "state",
        "window",
    )

    def __init__(
        self,
        initial_seq: int,
        window_scale: int,
        first_window: int,
        *,
        tells_of_kept: bool = False,
        memory: Budget | None = None,
    ) -> None:
        """`initial_seq` is that of the guest's SYN, `first_window` the (unscaled) window of our own SYN, and
        `tells_of_kept` says whether the guest understands selective acknowledgements.

        `memory` is what all connections share for what comes behind gaps; where none is left, that is dropped.
        """
        self.next = seq.add(initial_seq, 1)
        self.acknowledged = self.next
        self.state = FromGuestState.OPEN
        self.pending_bytes = 0
        self._pending: deque[Buffer] = deque()
        self._borrowed = 0
        self._kept: Kept | None = None
        self._fin_at: int | None = None
        self._tells_of_kept = tells_of_kept
        self._memory = memory
        self._scale = window_scale
        self.window = first_window
        """How much the guest may still send, in bytes: from `next` to the right edge."""

    def is_acceptable(self, segment: TcpSegment) -> bool:
        """The four cases of RFC 9293 section 3.10.7.4: does any of it lie in the window?"""
        window = self.window
        if window and segment.seq == self.next:
            return True
        start = seq.distance(self.next, segment.seq)
        length = segment.sequence_length
        if length == 0:
            return start == 0 if window == 0 else 0 <= start < window
        if window == 0:
            return False
        return 0 <= start < window or 0 <= start + length - 1 < window

    def receive(self, segment: TcpSegment) -> Receipt:
        """Take the part of an acceptable segment that is new and in the window."""
        pieces: tuple[Buffer, ...] = (segment.payload, *segment.more)
        count = segment.payload_bytes
        has_fin = bool(segment.flags & tcp.FIN)
        if not count and not has_fin:
            return Receipt.NOTHING_NEW
        start = seq.distance(self.next, segment.seq)
        if start > 0:
            self._keep(segment, start, count)
            return Receipt.OUT_OF_ORDER
        if self.state is not FromGuestState.OPEN:
            return Receipt.NOTHING_NEW
        if start < 0 or count > self.window:
            has_fin = has_fin and 0 <= start + count <= self.window
            pieces = (b"".join(pieces)[-start:][: self.window],)
            count = len(pieces[0])
        if count:
            self._pending.extend(pieces)
            self._borrowed += len(pieces)
            self.pending_bytes += count
            self._advance(count)
        receipt = Receipt.IN_ORDER if count or has_fin else Receipt.NOTHING_NEW
        if self._kept is not None and count and not has_fin:
            receipt = Receipt.FILLS_GAP
            has_fin = self._fill_gap(self._kept)
        if has_fin:
            self.forget_kept()
            self._advance(1)
            self.state = FROM_GUEST_TABLE[self.state, Event.GUEST_FIN]
        return receipt

    def _fill_gap(self, kept: Kept) -> bool:
        """Go on with what was kept; whether the FIN follows then.

        A guest that has gone on behind its FIN contradicts itself: then nothing is kept, least of all the octet that
        stands for that FIN, and the guest sends it again.
        """
        fin_at = self._fin_at
        if fin_at is not None and seq.distance(fin_at, self.next) > 0:
            self.forget_kept()
            return False
        going_on = kept.take(self.next)
        if fin_at is not None:
            going_on = going_on[: seq.distance(self.next, fin_at)]
        if going_on:
            self._pending.append(going_on)
            self._borrowed += 1
            self.pending_bytes += len(going_on)
            self._advance(len(going_on))
        if kept.is_empty and fin_at is None:
            self.forget_kept()
        return self.next == fin_at

    def _keep(self, segment: TcpSegment, start: int, count: int) -> None:
        """Of a segment that lies `start` bytes behind `next` what the window holds, and is not too far.

        A FIN is kept as the octet that it takes of the sequence space: so it is told with the data before it.
        """
        if self.state is not FromGuestState.OPEN:
            return
        room = max(min(self.window, MOST_BYTES) - start, 0)
        data = b"".join((segment.payload, *segment.more))[:room]
        has_fin = bool(segment.flags & tcp.FIN) and start + count <= self.window and len(data) == count
        if not data and not has_fin:
            return
        if self._kept is None:
            if self._memory is not None and not self._memory.take(MOST_BYTES):
                return
            self._kept = Kept()
        if has_fin:
            fin_at = seq.add(segment.seq, count)
            if self._fin_at is None or seq.distance(fin_at, self._fin_at) > 0:
                self._fin_at = fin_at  # what lies behind the first one is nothing
            data += b"\0"
        self._kept.keep(segment.seq, data)

    def forget_kept(self) -> None:
        """What came behind gaps is given up, or was taken; also to be called when the connection has ended."""
        if self._kept is not None and self._memory is not None:
            self._memory.give_back(MOST_BYTES)
        self._kept = self._fin_at = None

    def _advance(self, count: int) -> None:
        self.next = seq.add(self.next, count)
        self.window -= count

    def kept_blocks(self) -> list[tuple[int, int]]:
        """What the guest is to be told of what came behind a gap, if it wants to hear of it (RFC 2018 section 4)."""
        return [] if self._kept is None or not self._tells_of_kept else self._kept.blocks()

    def pending(self, most: int) -> list[Buffer]:
        """Up to `most` pieces that the host has to be given, in order."""
        return list(islice(self._pending, most))

    def delivered(self, count: int) -> None:
        """The host socket took `count` bytes of what was pending."""
        self.pending_bytes -= count
        if not self.pending_bytes:
            self._pending.clear()
            self._borrowed = 0
            return
        while count:
            piece = self._pending.popleft()
            if len(piece) > count:
                self._pending.appendleft(memoryview(piece)[count:])
                return
            count -= len(piece)

    def keep_pending(self) -> None:
        """Copy what stays pending, since the memory of the batch that it came in is used again.

        What was copied before stays as it is, unless it is little; what is new becomes one piece.
        """
        if not self._borrowed:
            return
        pending = self._pending
        new = [pending.pop() for _ in range(min(self._borrowed, len(pending)))]
        self._borrowed = 0
        if new and pending and len(pending[-1]) < SMALL_PIECE_BYTES:
            new.append(pending.pop())
        if new:
            pending.append(b"".join(reversed(new)))

    def host_shut_down(self) -> None:
        """The host socket was shut down for writing, after the guest's FIN and all its data."""
        self.state = FROM_GUEST_TABLE[self.state, Event.HOST_SHUT_DOWN]

    def acknowledgeable(self, unconfirmed: int) -> int:
        """The acknowledgement number to send, when `unconfirmed` bytes of what was delivered must not be covered.

        `unconfirmed` counts a delivered FIN as one.  What is pending is never covered.  The number never goes back.
        """
        number = seq.add(self.held, -self.pending_bytes - unconfirmed)
        return number if seq.distance(self.acknowledged, number) > 0 else self.acknowledged

    @property
    def held(self) -> int:
        """The acknowledgement number that covers everything received, but not a FIN that is not delivered."""
        return seq.add(self.next, -1) if self.state is FromGuestState.RECEIVED else self.next

    def window_after(self, free_bytes: int, ack_number: int) -> int:
        """The window field to send with `ack_number` when `free_bytes` more could be taken than what was received.

        It does not take back what was offered, but for the rounding to the window's scale (RFC 7323 section 2.4).
        """
        wanted = max(free_bytes, self.window)
        reach = seq.distance(ack_number, self.next) + wanted
        return min(reach >> self._scale, MAX_WINDOW_FIELD)

    def window_gain(self, window_field: int, ack_number: int) -> int:
        """By how many bytes a segment with these two would move the right edge."""
        return seq.distance(self.next, ack_number) + (window_field << self._scale) - self.window

    def acknowledged_to_guest(self, ack_number: int, window_field: int) -> None:
        """A segment with these two went out."""
        gain = self.window_gain(window_field, ack_number)
        if gain > 0:
            self.window += gain
        self.acknowledged = ack_number
        if self.state is FromGuestState.DELIVERED and ack_number == self.next:
            self.state = FROM_GUEST_TABLE[self.state, Event.FIN_ACK_SENT]
