"""What the guest's segments mean while a connection is being opened (RFC 9293 sections 3.5 and 3.10.7.3-4).  Pure."""

from enum import Enum

from trio_passt.tcp import seq
from trio_passt.wire import tcp
from trio_passt.wire.tcp import TcpSegment


class Verdict(Enum):
    """What to do about a segment.

    COMPLETES: it acknowledges our SYN, and for an inbound connection is the guest's own: established.
    REPEATS: the guest's SYN once more; our answer was late, or lost.
    RESETS: the guest does not want the connection.
    CHALLENGES: another SYN on the same ports, from a guest that has started anew, or from somebody who guesses; to be
    answered with an ACK, which a guest that has started anew resets (RFC 5961 section 4).
    WRONG: it belongs to some other connection, an old one perhaps; to be answered with a reset.
    MEANS_NOTHING: to be dropped.
    """

    COMPLETES = "completes"
    REPEATS = "repeats"
    RESETS = "resets"
    CHALLENGES = "challenges"
    WRONG = "wrong"
    MEANS_NOTHING = "means nothing"


class Opening:
    """Judges segments against our SYN (`initial_seq`), and the guest's if it was the one who began.

    `ack` is the acknowledgement number of our SYN segment: 0 where it carries none; `next` is the sequence number
    after it.
    """

    __slots__ = ("ack", "guest_syn", "next")

    def __init__(self, initial_seq: int, guest_syn: TcpSegment | None) -> None:
        self.next = seq.add(initial_seq, 1)
        self.guest_syn = guest_syn
        self.ack = 0 if guest_syn is None else seq.add(guest_syn.seq, 1)

    @property
    def reset_numbers(self) -> tuple[int, int]:
        """Sequence and acknowledgement number of a reset that the guest will believe."""
        return self.next, self.ack

    def judge(self, segment: TcpSegment) -> Verdict:
        """The meaning of one segment."""
        flags = segment.flags
        acknowledges = bool(flags & tcp.ACK) and segment.ack == self.next
        if self.guest_syn is None:  # SYN-SENT: only a SYN-ACK will do
            if flags & tcp.RST:
                return Verdict.RESETS if acknowledges else Verdict.MEANS_NOTHING
            if flags & tcp.ACK and not acknowledges:
                return Verdict.WRONG
            return Verdict.COMPLETES if acknowledges and flags & tcp.SYN else Verdict.MEANS_NOTHING
        if flags & tcp.RST:  # SYN-RECEIVED
            return Verdict.RESETS if segment.seq == self.ack else Verdict.MEANS_NOTHING
        if flags & tcp.SYN:
            return Verdict.REPEATS if segment.seq == self.guest_syn.seq else Verdict.CHALLENGES
        if not flags & tcp.ACK:
            return Verdict.MEANS_NOTHING
        if not acknowledges:
            return Verdict.WRONG
        return Verdict.COMPLETES if seq.distance(self.ack, segment.seq) >= 0 else Verdict.MEANS_NOTHING
