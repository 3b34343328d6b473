"""The handshake's decisions: initial sequence numbers, MSS, window scale, selective acknowledgements.

What is sent when, and how long it is waited for, is told in `flow`.
"""

import functools
import struct
from hashlib import blake2s

from attrs import frozen

from trio_passt.flow.key import FlowKey
from trio_passt.tcp import seq
from trio_passt.wire import ipv4, ipv6, tcp
from trio_passt.wire.tcp import TcpOptions

DEFAULT_MSS = {4: 536, 16: 1220}
"""A peer that names no MSS takes this (RFC 9293 section 3.7.1), by the length of its address."""

MIN_MSS = 64
"""A smaller MSS is taken as this.  A guest that asks for one-byte segments asks the host to do its work a thousand
times; the smallest MTU of IPv4 (68) leaves 28 bytes, which no stack in use announces."""

WINDOW_SCALE = 7
"""The scale offered to the guest: windows up to 8 MiB, in steps of 128 bytes."""

ISN_TICK_NS = 4000
"""RFC 9293 section 3.4.1: the initial sequence number's clock ticks every 4 µs."""


@frozen
class Terms:
    """What both sides agreed upon.

    `mss`: largest payload in a segment to the guest, a multiple of 4 so that it can be cut vectorised. `guest_scale`,
    `own_scale`: shift of the windows the guest sends, and of those sent to it; both 0 unless both offered.
    `takes_sack`: whether the guest may be told what came behind a gap.
    """

    mss: int
    guest_scale: int
    own_scale: int
    takes_sack: bool


def terms(guest_options: TcpOptions, link_mtu_bytes: int, address_bytes: int) -> Terms:
    """The terms that follow from the options of the guest's SYN and from the link (RFC 9293 3.7.1, RFC 7323 2.2).

    We take selective acknowledgements, so that the guest alone decides whether they are sent (RFC 2018 section 2).
    """
    offered = DEFAULT_MSS[address_bytes] if guest_options.mss is None else guest_options.mss
    mss = min(max(MIN_MSS, offered), link_mss(link_mtu_bytes, address_bytes))
    if guest_options.window_scale is None:
        return Terms(mss & ~3, 0, 0, guest_options.takes_sack)
    return Terms(mss & ~3, guest_options.window_scale, WINDOW_SCALE, guest_options.takes_sack)


def link_mss(link_mtu_bytes: int, address_bytes: int) -> int:
    """The largest TCP payload of an IP packet of `link_mtu_bytes`."""
    ip_header_bytes = ipv4.HEADER_BYTES if address_bytes == 4 else ipv6.HEADER_BYTES
    return link_mtu_bytes - ip_header_bytes - tcp.HEADER_BYTES


def offer(link_mtu_bytes: int, address_bytes: int, guest_options: TcpOptions | None) -> bytes:
    """The options of a SYN (`guest_options` None) or of the SYN-ACK that answers the guest's, as bytes.

    A window scale is put into a SYN-ACK only if the SYN had one (RFC 7323 section 2.2), and so is SACK-permitted.
    """
    scaling = guest_options is None or guest_options.window_scale is not None
    takes_sack = guest_options is None or guest_options.takes_sack
    return _offer(link_mss(link_mtu_bytes, address_bytes), scaling, takes_sack)


@functools.cache  # there are few, and each is offered again and again
def _offer(mss: int, scaling: bool, takes_sack: bool) -> bytes:
    return tcp.emit_options(TcpOptions(mss, WINDOW_SCALE if scaling else None, takes_sack))


def initial_sequence(secret: bytes, key: FlowKey, now_ns: int) -> int:
    """RFC 6528: a clock of 4 µs plus a keyed hash of the connection's addresses and ports."""
    ports = struct.pack("!HH", key.guest_port, key.remote_port)
    digest = blake2s(key.guest + key.remote + ports, key=secret, digest_size=4).digest()
    return seq.add(int.from_bytes(digest, "big"), now_ns // ISN_TICK_NS)
