"""An established connection: the steps of a turn, each of which does what can be done now and never waits.

`flow` takes them in order.  The two halves decide what the numbers mean; here they meet the host socket and the link.
"""

import errno
import math
import socket
from typing import Final

from trio_passt.host import readiness, sockets
from trio_passt.host.queue import PEEK_BYTES, ReceiveQueue
from trio_passt.host.send_queue import SendQueue
from trio_passt.tcp import closing, seq, timeouts
from trio_passt.tcp.closing import FromGuestState, ToGuestState
from trio_passt.tcp.from_guest import FromGuest, Receipt
from trio_passt.tcp.keepalive import Keepalive
from trio_passt.tcp.output import Output
from trio_passt.tcp.riding import Riding
from trio_passt.tcp.to_guest import Timeout, ToGuest
from trio_passt.wire import tcp
from trio_passt.wire.tcp import TcpSegment

PIECES_PER_WRITE: Final = 1024
"""IOV_MAX: how many pieces one sendmsg takes."""

MOST_DUPLICATES: Final = 64
"""So many duplicate acknowledgements are sent for one batch at most."""

WINDOW_BEYOND_BYTES: Final = 128 * 1024
"""The window is the free part of the host socket's send buffer and this, less what already waits in front of the
buffer.  So the buffer gets full, and a full one always has something waiting: that is what makes the kernel grow it,
and report the moment there is room again.  (SO_SNDBUF counts overhead, too: of a free megabyte the kernel takes about
half, the rest waits.)"""


SMALL_WINDOW_BYTES: Final = 32 * 1024
"""A guest with less of a window is told at once that there is more."""


class GuestReset(Exception):  # noqa: N818 - what the guest did, not an error of ours
    """The guest reset the connection."""


class Bridge:
    """Both halves of the guest's connection, joined to a connected host socket.  Times are Trio's, in seconds."""

    __slots__ = (
        "_acknowledged_bytes",
        "_answer_now",
        "_duplicates_owed",
        "_fails_at",
        "_failure",
        "_host",
        "_keepalive",
        "_output",
        "_progress_at",
        "_receive_queue",
        "_resend_first",
        "_riding",
        "_send_queue",
        "due",
        "from_guest",
        "has_more",
        "to_guest",
    )

    def __init__(
        self,
        output: Output,
        host: socket.socket,
        receive_queue: ReceiveQueue,
        from_guest: FromGuest,
        to_guest: ToGuest,
        riding: Riding,
        now: float,
        *,
        is_near: bool = False,
    ) -> None:
        """`is_near`: the host's peer was seen to answer at once."""
        self.from_guest = from_guest
        self.to_guest = to_guest
        self.has_more = False
        """After `send`: all that one turn allows went out, so there may be more, and the next turn should come soon."""
        self.due = now
        """When `expire` has something to do, or the host's progress is to be looked up."""
        self._output = output
        self._host = host
        self._receive_queue = receive_queue
        self._send_queue = SendQueue(host, now) if is_near else SendQueue(host)
        self._keepalive = Keepalive(now)
        self._riding = riding
        self._acknowledged_bytes = 0
        self._answer_now = False
        self._duplicates_owed = 0
        self._resend_first = False
        self._progress_at = now
        self._failure: OSError | None = None
        self._fails_at = math.inf

    # -- what happened --------------------------------------------------------------------------------------------

    def host_event(self, mask: int, now: float) -> None:
        """The host socket became ready, or failed."""
        if mask & readiness.ERROR:
            error = sockets.pending_error(self._host)
            if error is not None:
                self._host_failed(error, now)
        if mask & readiness.PEER_CLOSED:
            self._receive_queue.at_end = True
        if mask & readiness.URGENT:
            self._receive_queue.has_urgent = True
        if mask & (readiness.READABLE | readiness.PEER_CLOSED | readiness.HANG_UP):
            self._receive_queue.readable = True
        if mask & readiness.WRITABLE:
            self._send_queue.has_room_again()

    def heeds(self, mask: int) -> bool:
        """Whether a turn is worth taking for an event of the host socket now; if not, the next one is soon enough.

        A flow that waits for the link is called when there is room, and takes what has come by then; and that there is
        room in the send buffer matters to who waits for it.
        """
        if mask & ~(readiness.READABLE | readiness.WRITABLE) or self.from_guest.pending_bytes:
            return True
        return bool(mask & readiness.READABLE) and not self._output.waits_for_link

    def _host_failed(self, error: OSError, now: float) -> None:
        """Reset, most likely.  What came before is still in the receive queue, and the guest's (see `send`)."""
        self._failure = error
        self._fails_at = now + timeouts.AFTER_HOST_RESET_S
        self._receive_queue.at_end = True
        self._receive_queue.readable = True

    def take(self, segment: TcpSegment, now: float) -> None:
        """One segment from the guest, checked in the order of RFC 9293 section 3.10.7.4.

        Raises GuestReset for a reset with the exact sequence number; one that is merely in the window, and a SYN, are
        answered with a challenge ACK (RFC 5961 sections 3 and 4).  What the guest last heard from us counts as exact,
        too: a guest that has forgotten the connection answers with that number, and it lags behind while the host's
        peer has not acknowledged.
        """
        from_guest, flags = self.from_guest, segment.flags
        acceptable = from_guest.is_acceptable(segment)
        if flags & tcp.RST:
            if segment.seq in (from_guest.next, from_guest.acknowledged):
                raise GuestReset
            self._answer_now |= acceptable
            return
        if not acceptable or flags & tcp.SYN:
            self._answer_now = True
            return
        if not flags & tcp.ACK:
            return
        acknowledgement = self.to_guest.acknowledge(segment, now)
        if not acknowledgement.is_valid:
            self._answer_now = True
            return
        self._keepalive.heard(now)
        self._acknowledged_bytes += acknowledgement.data_bytes
        if acknowledgement.resend_first:
            self._resend_first = True
        elif acknowledgement.data_bytes:
            self._resend_first = False  # what was missing is there
        if acknowledgement.went_back:
            self._receive_queue.readable = True
        if not segment.payload and not flags & tcp.FIN:
            return
        if from_guest.acknowledged == from_guest.next:
            self._progress_at = now  # from here on it is the host's peer that is waited for
        match from_guest.receive(segment):
            case Receipt.IN_ORDER:
                self._riding.asked(now)
            case Receipt.FILLS_GAP:
                self._riding.asked(now)
                self._answer_now = True
            case Receipt.NOTHING_NEW:
                self._answer_now = True
            case Receipt.OUT_OF_ORDER:
                self._duplicates_owed += segment.frames

    def answer_at_once(self) -> None:
        """The guest is owed an ACK: the one that completes a handshake."""
        self._answer_now = True

    def expire(self, now: float) -> None:
        """Do what is due.

        Raises TimeoutError when the guest has been silent for too long, and the error of a host socket that failed when
        the guest had time enough for what came before.
        """
        if self._failure is not None and now >= self._fails_at:
            raise self._failure
        if self.to_guest.deadline is not None and now >= self.to_guest.deadline:
            match self.to_guest.timed_out(now):
                case Timeout.RETRANSMIT:
                    self._receive_queue.readable = True  # what was sent is in the queue, to be peeked again
                case Timeout.PROBE:
                    self._probe()
                case Timeout.GIVE_UP:
                    raise TimeoutError(errno.ETIMEDOUT, "the guest does not acknowledge")
        if now >= self._keepalive.due:
            if not self._keepalive.probe(now):
                raise TimeoutError(errno.ETIMEDOUT, "the guest does not answer probes")
            self._probe()

    def is_finished(self) -> bool:
        """Both ways are closed and acknowledged."""
        return closing.is_finished(self.from_guest.state, self.to_guest.state)

    def guest_has_ended(self) -> bool:
        """The guest has closed its way, and all that it sent is the host's kernel's."""
        return self.from_guest.state in (FromGuestState.DELIVERED, FromGuestState.ACKNOWLEDGED)

    # -- what to do ------------------------------------------------------------------------------------------------

    def write_to_host(self, now: float) -> None:
        """Give the host socket what the guest sent, and after its FIN shut it down for writing."""
        from_guest, queue = self.from_guest, self._send_queue
        try:
            while self._failure is None and queue.writable and from_guest.pending_bytes:
                from_guest.delivered(queue.write(from_guest.pending(PIECES_PER_WRITE)))
            if self._failure is None and from_guest.state is FromGuestState.RECEIVED and not from_guest.pending_bytes:
                queue.shut_down()
                from_guest.host_shut_down()
        except OSError as error:
            self._host_failed(error, now)
        if from_guest.pending_bytes:
            from_guest.keep_pending()

    def send(self, now: float) -> None:
        """Send the guest what the host socket has for it, with acknowledgement and window; a bare ACK if one is due.

        What the guest has acknowledged leaves the host's receive queue first, all of it at once.  Raises the error of a
        host socket that has failed, when there is nothing left that came before.
        """
        if self._acknowledged_bytes:
            self._receive_queue.discard(self._acknowledged_bytes)
            self._acknowledged_bytes = 0
        from_guest, riding = self.from_guest, self._riding
        riding.nothing_waits()
        ack = self._acknowledgeable(now)
        window = from_guest.window_after(self._free_bytes(), ack)
        if ack != from_guest.acknowledged:
            self._progress_at = now
        if self._duplicates_owed:
            self._tell_of_the_gap(ack, window)
        if self._send_data(ack, window, now):
            self._acknowledged_to_guest(ack, window)
            riding.answered(now)
        elif self._has_to_be_told(ack, window, now) and self._acknowledge(ack, window):
            self._acknowledged_to_guest(ack, window)
        if self._failure is not None and self._all_is_sent():
            raise self._failure
        self._set_due(now)

    def _tell_of_the_gap(self, ack: int, window: int) -> None:
        """An acknowledgement for each segment behind the gap, however they came.

        Three that repeat another make the guest send again what is missing (RFC 5681 sections 3.2 and 4.2).
        """
        from_guest, count = self.from_guest, min(self._duplicates_owed, MOST_DUPLICATES)
        if ack != from_guest.acknowledged or from_guest.window_gain(window, ack):
            count += 1  # the first one repeats none
        if self._acknowledge(ack, window, count):
            self._acknowledged_to_guest(ack, window)
            self._duplicates_owed = 0

    def _acknowledge(self, ack: int, window: int, copies: int = 1) -> bool:
        """A bare acknowledgement, with what came behind a gap (RFC 2018 section 4); false if the link is full."""
        blocks = self.from_guest.kept_blocks()
        options = tcp.emit_sack(blocks) if blocks else b""
        return self._output.segment(self.to_guest.next, ack, tcp.ACK, window, options, copies)

    def _has_to_be_told(self, ack: int, window: int, now: float) -> bool:
        """Whether acknowledgement and window are worth a segment of their own, now."""
        from_guest, opens_window = self.from_guest, self._opens_window(window, ack)
        if self._answer_now or (opens_window and from_guest.window < SMALL_WINDOW_BYTES):
            return True
        if ack == from_guest.acknowledged and not opens_window:
            return False
        is_little = seq.distance(from_guest.acknowledged, ack) < self.to_guest.mss
        return not (is_little and from_guest.state is FromGuestState.OPEN and self._riding.may_wait(now))

    def _acknowledged_to_guest(self, ack: int, window: int) -> None:
        self._answer_now = False
        self.from_guest.acknowledged_to_guest(ack, window)

    def _all_is_sent(self) -> bool:
        to_guest = self.to_guest
        if to_guest.state is not ToGuestState.OPEN:
            return True
        return sockets.received_bytes(self._host) <= to_guest.queue_offset

    def _set_due(self, now: float) -> None:
        from_guest, to_guest, keepalive = self.from_guest, self.to_guest, self._keepalive
        if closing.has_begun_to_close(from_guest.state, to_guest.state):
            keepalive.half_closed()
        due = min(keepalive.due, self._fails_at, self._riding.due)
        if to_guest.deadline is not None and to_guest.deadline < due:
            due = to_guest.deadline
        is_waiting = from_guest.acknowledged != from_guest.next and from_guest.acknowledged != from_guest.held
        if is_waiting and self._failure is None and not self._output.waits_for_link:
            due = min(due, now + timeouts.ACK_POLL_S)
        self.due = due

    def _send_data(self, ack: int, window: int, now: float) -> bool:
        """True if anything went out, so that no bare ACK is needed."""
        to_guest = self.to_guest
        went_out = self._resend_first and self._resend(ack, window)
        self.has_more = False
        if to_guest.state is ToGuestState.OPEN and self._receive_queue.readable and self._output.has_room():
            left = self._output.share_bytes(to_guest.mss)
            while to_guest.state is ToGuestState.OPEN and self._receive_queue.readable and self._output.has_room():
                if left < to_guest.mss:
                    self.has_more = not self._output.gives_way()
                    break
                taken = self._send_new(ack, window, now, left)
                if not taken:
                    break
                went_out = True
                left -= taken
        if to_guest.state is ToGuestState.DUE and self._output.segment(to_guest.next, ack, tcp.FIN | tcp.ACK, window):
            to_guest.fin_sent(now)
            went_out = True
        return went_out

    def _send_new(self, ack: int, window: int, now: float, most: int) -> int:
        """Send one piece of new data, up to `most` bytes; returns how many went out, 0 when that is all for now."""
        to_guest, queue = self.to_guest, self._receive_queue
        offset = to_guest.queue_offset
        room = min(to_guest.room(), queue.reach - offset)
        if room <= 0:
            if to_guest.window == 0 and not to_guest.in_flight:
                to_guest.window_closed(now)
            return 0
        view = queue.peek(offset, min(room, self._output.whole_frames(min(most, PEEK_BYTES), to_guest.mss)))
        if view is None:
            return 0
        if not view:
            if self._failure is None:
                to_guest.host_ended()
            return 0
        ends = queue.is_last and self._failure is None and len(view) < room
        flags = tcp.ACK | tcp.PSH | tcp.FIN if ends else tcp.ACK | tcp.PSH
        taken = self._output.data(to_guest.next, ack, flags, window, view, to_guest.mss)
        if taken:
            to_guest.sent(taken, now)
        if taken < len(view):
            queue.readable = True  # the rest of it, when the link has room
        elif ends:
            to_guest.host_ended()
            to_guest.fin_sent(now)
        return taken

    def _resend(self, ack: int, window: int) -> bool:
        """Once more the segment that the guest misses, if it still does; on a full link, as soon as there is room."""
        to_guest = self.to_guest
        in_flight = to_guest.queue_offset
        view = self._receive_queue.peek(0, min(to_guest.mss, in_flight)) if in_flight else None
        if view:
            went_out = self._output.data(to_guest.una, ack, tcp.ACK | tcp.PSH, window, view, to_guest.mss) > 0
        elif to_guest.state is ToGuestState.SENT:
            went_out = self._output.segment(to_guest.una, ack, tcp.FIN | tcp.ACK, window)
        else:
            self._resend_first = False
            return False
        self._resend_first = not went_out
        return went_out

    def _probe(self) -> None:
        """A segment just outside of the guest's window, which it has to answer (RFC 9293 section 3.8.4)."""
        ack = self.from_guest.acknowledged
        window = self.from_guest.window_after(self._free_bytes(), ack)
        self._output.segment(seq.add(self.to_guest.una, -1), ack, tcp.ACK, window)

    # -- what the host socket can take, and what its peer has ------------------------------------------------------

    def _acknowledgeable(self, now: float) -> int:
        """How far the guest's data may be acknowledged: as far as the host's peer has, or nearly (see `flow`)."""
        from_guest = self.from_guest
        if from_guest.acknowledged == from_guest.next or self._failure is not None:
            return from_guest.acknowledged
        round_trip_s = self._send_queue.round_trip_s(now)
        is_near = round_trip_s < timeouts.NEAR_PEER_RTT_S
        patience_s = (
            timeouts.STALLED_NEAR_S if is_near else max(timeouts.STALLED_S, timeouts.STALLED_ROUND_TRIPS * round_trip_s)
        )
        if now - self._progress_at >= patience_s:
            return from_guest.held
        return from_guest.acknowledgeable(0 if is_near else self._send_queue.unacknowledged())

    def _free_bytes(self) -> int:
        return max(self._send_queue.free_bytes(), 0) + WINDOW_BEYOND_BYTES - self.from_guest.pending_bytes

    def _opens_window(self, window: int, ack: int) -> bool:
        """Whether telling the guest of this window is worth a segment (RFC 9293 section 3.8.6.2.2)."""
        least = min(self.to_guest.mss, WINDOW_BEYOND_BYTES // 2)
        return self.from_guest.window < 2 * least and self.from_guest.window_gain(window, ack) >= least

    # -- the end ------------------------------------------------------------------------------------------------------

    def reset_numbers(self) -> tuple[int, int]:
        """Sequence and acknowledgement number of a reset that the guest will accept."""
        return self.to_guest.highest, self.from_guest.next
