"""Every delay of the TCP code, each with its reason.  All in seconds."""

from typing import Final

HANDSHAKE_S: Final = 10.0
"""How long the guest may take to complete a handshake.  It sits on the same machine; a guest that is booting
retransmits and tries again, so longer only keeps a dead connection's peer waiting."""

CONNECT_S: Final = 130.0
"""How long a host connection may take: a little more than the kernel itself tries (`tcp_syn_retries` 6: 127 s), so that
the error comes from the kernel, and this is only the net below it."""

SYN_FIRST_RETRY_S: Final = 1.0
"""First retransmission of a SYN or SYN-ACK to the guest (RFC 6298 section 2.1); doubled each time."""

RTO_INITIAL_S: Final = 1.0
"""RFC 6298 section 2.1, until the guest's round trip has been measured."""

RTO_MIN_S: Final = 0.2
"""Linux' value, below RFC 6298's one second: the link is local, and its round trip is well under a millisecond."""

RTO_MAX_S: Final = 60.0
"""RFC 6298 section 2.5: at least 60 s."""

EARLY_MIN_S: Final = 0.020
"""What was lost, was sent once more, and is not acknowledged then, is sent a third time after two round trips, but not
within this: a guest that is busy is not to be sent the same again and again."""

RETRANSMISSIONS: Final = 8
"""Unanswered retransmissions in a row before both sides are reset: 0.2 s doubled 8 times makes 102 s in all, just
what RFC 9293 section 3.8.3 (R2) asks for at least; a suspended guest gets that long."""

ACK_POLL_S: Final = 0.010
"""How often the progress of the host's peer is looked up while guest data is unacknowledged: so an ACK to the guest
is never later than this.  Far below the guest's minimal RTO (0.2 s)."""

ACK_RIDES_S: Final = 0.005
"""How long an acknowledgement waits for an answer to ride on, where answers have been quick: half of what the guest
may be kept waiting at all, and a Nagle guest's loss if the answer does not come (Linux' receivers wait for 40 ms)."""

NEAR_PEER_RTT_S = 0.001
"""A peer nearer than this acknowledges before a look-up could be scheduled; the guest gets its ACK at once."""

STALLED_NEAR_S: Final = 0.1
STALLED_S: Final = 2.0
STALLED_ROUND_TRIPS: Final = 4
"""A near peer that has taken nothing for 0.1 s, or another one for 2 s and for four round trips, does not read.  The
guest's data is then acknowledged although it only got as far as the host, and the window closes: that is what a
receiver does, and the guest probes it for as long as it likes, where it would give up a connection that does not
acknowledge.  2 s is more than the kernel needs to repair the loss of a segment."""

PROBE_MAX_S: Final = 60.0
"""Upper limit of the interval between probes of a closed window (RFC 9293 section 3.8.6.1: back off exponentially)."""

HALF_CLOSED_PROBE_S: Final = 60.0
"""A connection that one side has closed and that is silent for so long is probed: a guest whose process died forgets
such a connection without a word (Linux: `tcp_fin_timeout`, 60 s).  If the guest still knows it, it may last."""

KEEPALIVE_S: Final = 7200.0
"""A silent open connection is probed after 2 hours (RFC 9293 section 3.8.4)."""

KEEPALIVE_INTERVAL_S: Final = 10.0
"""Between probes that stay unanswered."""

KEEPALIVE_PROBES: Final = 3
"""Unanswered probes before both sides are reset."""

RESET_PATIENCE_S: Final = 1.0
"""How long a reset to the guest waits for room on a full link before it is given up: the guest then finds out when it
sends next, since a segment of an unknown connection is answered with a reset."""

AFTER_HOST_RESET_S: Final = 60.0
"""How long the guest may take what the host's peer sent before it reset the connection.  A kernel's application could
read it at its leisure; here it holds a descriptor."""
