"""The way from the host to the guest: what was sent, what of it was acknowledged, and when to send it again.

Pure: no Trio, no sockets; the time (seconds, any epoch) is an argument.  The data itself stays in the host socket's
receive queue until the guest has acknowledged it, so this half only counts: byte `una` is the first one of that queue.

    una       oldest unacknowledged (SND.UNA)
    next      next to send (SND.NXT); a timeout, or a second loss, takes it back to `una`
    highest   one beyond the last one ever sent
    window    how far beyond `una` the guest has room, in bytes
"""

from enum import Enum
from typing import Final, NamedTuple

from trio_passt.tcp import seq, timeouts
from trio_passt.tcp.closing import TO_GUEST_TABLE, Event, ToGuestState
from trio_passt.tcp.rtt import RoundTrip
from trio_passt.wire import tcp
from trio_passt.wire.tcp import TcpSegment

DUPLICATE_ACKS: Final = 3
"""RFC 5681 section 3.2: so many duplicates say that a segment is lost."""


class Timeout(Enum):
    """What to do when `deadline` has passed."""

    RETRANSMIT = "retransmit"
    PROBE = "probe"
    GIVE_UP = "give up"


class Acknowledgement(NamedTuple):
    """What an acknowledgement brought.

    `data_bytes`: so many bytes leave the host's receive queue.  `resend_first`: send the segment at `una` once more.
    `went_back`: `next` was taken back to `una`, and everything from there on is to be sent once more.
    `is_valid`: false for one of data that was never sent; the segment is to be dropped, and answered with an ACK.
    """

    data_bytes: int = 0
    resend_first: bool = False
    went_back: bool = False
    is_valid: bool = True


_NOTHING = Acknowledgement()


class ToGuest:
    """The sending half of the synthetic endpoint; finished when `state` is ACKNOWLEDGED."""

    __slots__ = (
        "_duplicates",
        "_fin_end",
        "_is_early",
        "_largest_window",
        "_may_be_early",
        "_probe_interval_s",
        "_progress_at",
        "_recover",
        "_retransmissions",
        "_scale",
        "_timed",
        "_went_back_from",
        "_window_ack",
        "_window_seq",
        "deadline",
        "highest",
        "mss",
        "next",
        "round_trip",
        "state",
        "una",
        "window",
    )

    def __init__(self, initial_seq: int, mss: int, window_scale: int, first: TcpSegment) -> None:
        """After the handshake: our SYN (`initial_seq`) is acknowledged; `first` is the segment that completed it."""
        self.una = self.next = self.highest = seq.add(initial_seq, 1)
        self.mss = mss
        self.state = ToGuestState.OPEN
        self.round_trip = RoundTrip()
        self.deadline: float | None = None
        self._scale = window_scale
        self.window = self._largest_window = first.window << (0 if first.flags & tcp.SYN else window_scale)
        self._window_seq = first.seq
        self._window_ack = first.ack
        self._duplicates = 0
        self._retransmissions = 0
        self._recover: int | None = None
        self._went_back_from: int | None = None
        self._may_be_early = False
        self._is_early = False
        self._progress_at = 0.0
        self._timed: tuple[int, float] | None = None
        self._fin_end: int | None = None
        self._probe_interval_s = 0.0

    # -- sending -------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How much is sent and unacknowledged, a FIN counted as one."""
        return seq.distance(self.una, self.next)

    @property
    def queue_offset(self) -> int:
        """Where in the host's receive queue the next byte to send lies."""
        return self.in_flight - (self.state is ToGuestState.SENT)

    def room(self) -> int:
        """How many bytes may be sent now, without making silly windows worse (RFC 9293 section 3.8.6.2.1).

        Less than a full segment is sent only if nothing is in flight, or if it is half of what the guest ever offered.
        """
        room = self.window - self.in_flight
        if room <= 0:
            return 0
        if room < self.mss and room * 2 < self._largest_window and self.in_flight:
            return 0
        return room

    def sent(self, count: int, now: float) -> None:
        """`count` bytes from `next` on went out (for a FIN: `fin_sent`)."""
        first, new_data = self.next, self.next == self.highest
        self.next = seq.add(first, count)
        if seq.distance(self.highest, self.next) > 0:
            self.highest = self.next
        if new_data and self._timed is None and self._retransmissions == 0:
            self._timed = (seq.add(first, min(count, self.mss)), now)
        if self.deadline is None or self._probe_interval_s:
            self._probe_interval_s = 0.0
            self._start_timer(now)

    def _start_timer(self, now: float) -> None:
        """The retransmission timeout; less, once after each progress, while everything is being sent again.

        The link is known to lose then, and most of what is in flight the guest has already, so too few duplicates may
        come to tell of another loss.  It is the idea of the tail loss probe (RFC 8985 section 7).
        """
        self._is_early = self._may_be_early and self._is_going_back()
        self.deadline = now + (self.round_trip.early_s if self._is_early else self.round_trip.timeout_s)

    def host_ended(self) -> None:
        """The end of the host's data was found at `queue_offset`."""
        self.state = TO_GUEST_TABLE[self.state, Event.HOST_END]

    def fin_sent(self, now: float) -> None:
        """The FIN went out; it takes one sequence number."""
        self.state = TO_GUEST_TABLE[self.state, Event.FIN_SENT]
        self.sent(1, now)
        self._fin_end = self.next

    def window_closed(self, now: float) -> None:
        """There may be data to send, nothing is in flight, and no window: start probing, unless that goes on
        already."""
        if self.deadline is None:
            self._probe_interval_s = self.round_trip.timeout_s
            self.deadline = now + self._probe_interval_s

    # -- acknowledgements ----------------------------------------------------------------------------------------

    def acknowledge(self, segment: TcpSegment, now: float) -> Acknowledgement:
        """Take acknowledgement number and window of an acceptable segment (RFC 9293 section 3.10.7.4, "ACK bit")."""
        una = self.una
        if segment.ack == una == self.highest and self.window and segment.window << self._scale == self.window:
            if seq.distance(self._window_seq, segment.seq) > 0:  # one of many that only bring data
                self._window_seq, self._window_ack = segment.seq, una
            return _NOTHING
        advance = seq.distance(una, segment.ack)
        if advance > seq.distance(una, self.highest):
            return Acknowledgement(is_valid=False)
        if advance < 0:  # an old one; too old is a guess (RFC 5961 section 5)
            return Acknowledgement(is_valid=-advance <= self._largest_window)
        window_before = self.window
        self._take_window(segment, advance)
        if advance == 0:
            return self._unmoved(segment, window_before, now)
        return self._moved(segment.ack, advance, now)

    def _take_window(self, segment: TcpSegment, advance: int) -> None:
        """The window of a newer segment (RFC 9293 section 3.10.7.4, SND.WL1 and SND.WL2), and of one that is older but
        acknowledges more, as a retransmission may: its window counts from there."""
        newer = seq.distance(self._window_seq, segment.seq)
        if newer > 0 or advance > 0 or (newer == 0 and seq.distance(self._window_ack, segment.ack) >= 0):
            self.window = segment.window << self._scale
            self._largest_window = max(self._largest_window, self.window)
            self._window_seq, self._window_ack = segment.seq, segment.ack
            if self._probe_interval_s and self.window > 0:
                self._probe_interval_s = 0.0
                self.deadline = None
        if self.window == 0:
            self._retransmissions = 0  # it is alive, and may keep the window closed for as long as it likes

    def _unmoved(self, segment: TcpSegment, window_before: int, now: float) -> Acknowledgement:
        """An acknowledgement of what was acknowledged before: a duplicate by RFC 5681 section 2, or not."""
        if segment.sequence_length or self.window != window_before or not self.in_flight:
            return _NOTHING
        if self.una == self._went_back_from:
            return _NOTHING  # the echo of what was sent once more though the guest had it
        self._duplicates += 1
        if self._is_going_back():
            # A handshake takes microseconds, but an echo as long as all takes that waits in the link: after the least
            # timeout, not before, it tells of a loss.  And only once after each progress: then timeouts back off.
            patience_s = max(self.round_trip.expected_s, timeouts.RTO_MIN_S)
            if not self._may_be_early or now - self._progress_at <= patience_s:
                return _NOTHING
            self._may_be_early = False
            self._go_back(now)  # what was sent again is lost again, or it would be acknowledged by now
            return Acknowledgement(went_back=True)
        if self._duplicates == DUPLICATE_ACKS and self._recover is None:
            self._recover = self.highest
            self._timed = None
            return Acknowledgement(resend_first=True)
        return _NOTHING

    def _is_going_back(self) -> bool:
        """Everything is being sent again: duplicates are the echo of what the guest had, not of a loss (RFC 6582)."""
        return self._went_back_from is not None and seq.distance(self.una, self._went_back_from) > 0

    def _moved(self, ack: int, advance: int, now: float) -> Acknowledgement:
        data_bytes = advance
        if self._fin_end is not None and ack == self._fin_end:
            data_bytes -= 1
            self.state = TO_GUEST_TABLE[self.state, Event.FIN_ACKED]
        self.una = ack
        self._progress_at = now
        if seq.distance(self.next, ack) > 0:
            self.next = ack
        if self._timed is not None and seq.distance(self._timed[0], ack) >= 0:
            self.round_trip.sample(now - self._timed[1])
            self._timed = None
        self._duplicates = self._retransmissions = 0
        self.round_trip.progressed(now)
        self._may_be_early = True
        if self.in_flight:
            self._start_timer(now)
        else:
            self.deadline = None
        went_back = False
        if self._recover is not None:
            # A partial acknowledgement uncovers a second hole, and where there are two there are more.  RFC 6582 sends
            # one a round trip; the guest's link is no bottleneck that would have to be spared, so all goes once more.
            went_back = seq.distance(ack, self._recover) > 0
            if went_back:
                self._go_back(now)
            self._recover = None
        return Acknowledgement(data_bytes, went_back=went_back)

    def _go_back(self, now: float) -> None:
        """Everything unacknowledged is to be sent once more."""
        self._progress_at = now
        self._timed = None
        self._recover = None
        self._went_back_from = self.highest
        self._duplicates = 0
        if self.state in (ToGuestState.DUE, ToGuestState.SENT):
            self.state = TO_GUEST_TABLE[self.state, Event.REWOUND]
        self.next = self.una
        self.deadline = None

    # -- timeouts ------------------------------------------------------------------------------------------------

    def timed_out(self, now: float) -> Timeout:
        """`deadline` has passed: what is to be done; the next deadline is set."""
        if self._probe_interval_s:
            self._probe_interval_s = min(self._probe_interval_s * 2, timeouts.PROBE_MAX_S)
            self.deadline = now + self._probe_interval_s
            self._retransmissions += 1
            return Timeout.GIVE_UP if self._retransmissions > timeouts.RETRANSMISSIONS else Timeout.PROBE
        self._may_be_early = False
        if self._is_early:
            self._go_back(now)
            return Timeout.RETRANSMIT
        self._retransmissions += 1
        if self._retransmissions > timeouts.RETRANSMISSIONS:
            return Timeout.GIVE_UP
        self.round_trip.back_off(now)
        self._go_back(now)
        return Timeout.RETRANSMIT
