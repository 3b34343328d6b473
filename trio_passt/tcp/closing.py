"""Closing, as two half-close tables and one joint rule.

Each direction of a connection ends by itself: the guest's FIN closes the way to the host, the host peer's end of data
closes the way to the guest.  So there are no eleven states of RFC 9293 section 3.3.2 here but two short tables, of
which those states are the product:

    FromGuestState        what has become of the guest's FIN
    ToGuestState          what has become of the end of the host's data

The joint rule, `is_finished`: a connection is over when both ways are acknowledged.  A reset, from either side, ends it
in whatever state, and is not in the tables: it is an exception in `flow`.

`docs/tcp-closing.md` draws its diagram from these tables.
"""

from enum import Enum


class FromGuestState(Enum):
    """The way from the guest to the host.

    OPEN: the guest may send data.
    RECEIVED: the FIN was received in order; data before it may still wait for room in the host socket.
    DELIVERED: the host socket has been shut down for writing, after all data.
    ACKNOWLEDGED: the FIN was acknowledged to the guest; nothing more can come.
    """

    OPEN = "open"
    RECEIVED = "received"
    DELIVERED = "delivered"
    ACKNOWLEDGED = "acknowledged"


class ToGuestState(Enum):
    """The way from the host to the guest.

    OPEN: the host's peer may send data.
    DUE: all its data has been sent, and its end was seen; the FIN has to go out.
    SENT: the FIN went out.  A retransmission goes back to OPEN, and finds the end of the data once more; the guest may
    acknowledge the first FIN meanwhile.
    ACKNOWLEDGED: the guest acknowledged it, and so all data before it.
    """

    OPEN = "open"
    DUE = "due"
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"


class Event(Enum):
    """What moves a half along its table."""

    GUEST_FIN = "FIN from the guest"
    HOST_SHUT_DOWN = "host socket shut down"
    FIN_ACK_SENT = "ACK of the FIN sent"
    HOST_END = "end of the host's data"
    FIN_SENT = "FIN sent"
    REWOUND = "retransmission from before the FIN"
    FIN_ACKED = "FIN acknowledged by the guest"


FROM_GUEST_TABLE: dict[tuple[FromGuestState, Event], FromGuestState] = {
    (FromGuestState.OPEN, Event.GUEST_FIN): FromGuestState.RECEIVED,
    (FromGuestState.RECEIVED, Event.HOST_SHUT_DOWN): FromGuestState.DELIVERED,
    (FromGuestState.DELIVERED, Event.FIN_ACK_SENT): FromGuestState.ACKNOWLEDGED,
}

TO_GUEST_TABLE: dict[tuple[ToGuestState, Event], ToGuestState] = {
    (ToGuestState.OPEN, Event.HOST_END): ToGuestState.DUE,
    (ToGuestState.DUE, Event.FIN_SENT): ToGuestState.SENT,
    (ToGuestState.SENT, Event.REWOUND): ToGuestState.OPEN,
    (ToGuestState.DUE, Event.REWOUND): ToGuestState.OPEN,
    (ToGuestState.SENT, Event.FIN_ACKED): ToGuestState.ACKNOWLEDGED,
    (ToGuestState.OPEN, Event.FIN_ACKED): ToGuestState.ACKNOWLEDGED,
    (ToGuestState.DUE, Event.FIN_ACKED): ToGuestState.ACKNOWLEDGED,
}


def is_finished(from_guest: FromGuestState, to_guest: ToGuestState) -> bool:
    """The joint rule: both ways are acknowledged."""
    return from_guest is FromGuestState.ACKNOWLEDGED and to_guest is ToGuestState.ACKNOWLEDGED


def has_begun_to_close(from_guest: FromGuestState, to_guest: ToGuestState) -> bool:
    """One way or both have begun to close."""
    return from_guest is not FromGuestState.OPEN or to_guest is not ToGuestState.OPEN
