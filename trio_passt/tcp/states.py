"""The two half-close states by the name that RFC 9293 section 3.3.2 has for both: that of the guest's end.  Pure.

It is what ss(8) shows in the guest.  The host's socket stands for the guest towards its peer, so once the connection is
open on both sides it is in the same state, or will be soon.
"""

from trio_passt.tcp.closing import FromGuestState, ToGuestState


def name(from_guest: FromGuestState, to_guest: ToGuestState) -> str:
    """Of an established connection."""
    match from_guest, to_guest:
        case FromGuestState.OPEN, ToGuestState.OPEN:
            return "ESTABLISHED"
        case FromGuestState.OPEN, _:  # its peer has closed
            return "CLOSE-WAIT"
        case ((FromGuestState.RECEIVED | FromGuestState.DELIVERED), ToGuestState.ACKNOWLEDGED):
            return "LAST-ACK"
        case ((FromGuestState.RECEIVED | FromGuestState.DELIVERED), ToGuestState.SENT):
            return "CLOSING"
        case ((FromGuestState.RECEIVED | FromGuestState.DELIVERED), _):
            return "FIN-WAIT-1"
        case FromGuestState.ACKNOWLEDGED, ToGuestState.ACKNOWLEDGED:
            return "TIME-WAIT"
        case _:
            return "FIN-WAIT-2"
