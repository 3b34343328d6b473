"""What the guest is told about a packet of its own that did not arrive: ICMP and ICMPv6 errors.

The host's kernel gets them, from routers, from the destination or from itself, for packets that *it* had sent: those of
our sockets.  They are passed on as errors about the guest's packet, which they quote (RFC 792, RFC 4443 section 2.4).
"""

import errno

from trio_passt.flow import packets
from trio_passt.flow.session import Session
from trio_passt.host import error_queue
from trio_passt.host.error_queue import DatagramError
from trio_passt.wire import icmp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.icmp import IcmpMessage, IcmpType
from trio_passt.wire.ip import IPProtocol


def report(session: Session, remote: bytes, guest: bytes, message: IcmpMessage, reporter: bytes | None = None) -> None:
    """Send `message` to the guest, about a packet from `guest` to `remote` (packed addresses, as the guest sees them).

    It comes from `reporter`, an address of the host's side, or if that has none for the guest, from the gateway.  A
    link that is full does not get it: the next packet will bring another.
    """
    source = session.addresses.source_for_guest(reporter) if reporter is not None else None
    if source is None or len(source) != len(guest):
        source = session.addresses.router_of(remote)
    protocol = IPProtocol.ICMP if len(source) == 4 else IPProtocol.ICMPV6
    if not packets.send(session, source, guest, protocol, icmp.emit(source, guest, message)):
        session.drops["link to the guest full"] += 1


def report_failure(session: Session, remote: bytes, guest: bytes, number: int, packet: Buffer) -> None:
    """The host's kernel refused at once to send what was the guest's IP `packet`; `number` is the errno."""
    message = icmp.unreachable(number, packet)
    if message is not None:
        report(session, remote, guest, message)


def report_error(session: Session, remote: bytes, guest: bytes, error: DatagramError, packet: Buffer) -> None:
    """The host's kernel has learned of an error about what was the guest's IP `packet`."""
    if error.origin == error_queue.ORIGIN_LOCAL:
        if error.number == errno.EMSGSIZE and error.info:
            report(session, remote, guest, icmp.too_big(error.info, packet))
        else:
            report_failure(session, remote, guest, error.number, packet)
    elif error.origin in (error_queue.ORIGIN_ICMP, error_queue.ORIGIN_ICMPV6) and icmp.is_error(len(guest), error.type):
        is_pointer = len(guest) == 4 and error.type == IcmpType.PARAMETER_PROBLEM
        info = error.info << 24 & 0xFFFFFFFF if is_pointer else error.info
        report(session, remote, guest, icmp.error(error.type, error.code, info, packet), error.reporter)
