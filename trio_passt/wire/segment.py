"""Segment → frames: one connection's headers as a template, and payload of any size cut into frames.

Theory of operation
-------------------
Of the 54 (IPv4) or 74 (IPv6) bytes of Ethernet, IP and TCP header, a
connection changes few from one segment to the next: lengths, sequence numbers, flags, window, checksums.
`TcpHeaders` keeps the rest, and the sums of the rest, so that a header is made by one `pack` and two small sums.
(Sequence numbers are added whole, and not as two words: 2**16 ≡ 1 modulo 65535.)

A payload that is larger than the MSS becomes a *run*: a `(count, prefix + headers + mss)` array of bytes into which
NumPy broadcasts the template, writes sequence numbers and checksums as columns and reshapes the payload, about 1 µs a
segment.  Large segments (the link's MTU is 65520 by default) are not copied at all: header and view of the payload go
into one `sendmsg`.  Either way the bytes are the same as if each segment were made by itself; the tests compare them.

The IPv4 identification is 0 throughout: with DF set it means nothing (RFC 6864 section 4).
"""

import functools
import struct
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trio_passt.wire import checksum, ipv4, ipv6, tcp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.ethernet import HEADER_BYTES as ETHERNET_BYTES
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ethernet import emit as emit_ethernet
from trio_passt.wire.frames import PREFIX_BYTES, Capabilities, FrameRun, Offload, Segmentation
from trio_passt.wire.ip import IPProtocol

_IPV4_HEAD: Final = struct.Struct("!I 16s H 6s H 12s IIBBHHH")
"""Frame length; up to the total length; total length; up to the header checksum; that; addresses and ports; TCP."""

_IPV6_HEAD: Final = struct.Struct("!I 18s H 38s IIBBHHH")
"""Frame length; up to the payload length; payload length; up to the ports, included; TCP."""

COPY_BELOW_MSS: Final = 4096
"""Segments below this size are cut by copying into one block; above, a header of its own for each costs less."""

TSO_PAYLOAD_BYTES: Final = 65535 - 40
"""Payload of the largest frame handed to a link that segments by itself: the IP length field is the limit."""


class _Same(NamedTuple):
    """What all connections between the same addresses have in common: pieces of the headers, and sums."""

    before_length: bytes
    after_length: bytes
    after_checksum: bytes
    ip_sum: int
    pseudo_sum: int
    offload: Offload


@functools.lru_cache(maxsize=256)
def _same_between(host_mac: bytes, guest_mac: bytes, source: bytes, destination: bytes) -> _Same:
    """Guests open many connections to few addresses."""
    pseudo_sum = checksum.pseudo_header_sum(source, destination, IPProtocol.TCP, 0)
    if len(source) == 4:
        header = ipv4.emit(ipv4.IPv4Header(source, destination, IPProtocol.TCP), 0)
        before_length = emit_ethernet(EthernetHeader(guest_mac, host_mac, EtherType.IPV4)) + header[:2]
        after_length, after_checksum = header[4:10], header[12:]
        ip_sum = checksum.sum_of(header[:2] + bytes(2) + after_length + bytes(2) + after_checksum)
    else:
        header = ipv6.emit(ipv6.IPv6Header(source, destination, IPProtocol.TCP), 0)
        before_length = emit_ethernet(EthernetHeader(guest_mac, host_mac, EtherType.IPV6)) + header[:4]
        after_length, after_checksum, ip_sum = header[6:], b"", 0
    tcp_at = ETHERNET_BYTES + len(header)
    offload = Offload(tcp_at, tcp.CHECKSUM_AT, tcp_at + tcp.HEADER_BYTES)
    return _Same(before_length, after_length, after_checksum, ip_sum, pseudo_sum, offload)


class TcpHeaders:
    """The headers of all segments that go to the guest in one connection.

    Addresses are packed, all of one family; `source` is the remote peer as the guest sees it.
    """

    __slots__ = (
        "_after_checksum",
        "_after_length",
        "_before_length",
        "_capabilities",
        "_cuts",
        "_ip_sum",
        "_is_ipv4",
        "_offload",
        "_pseudo_sum",
        "_segmented",
        "_tcp_at",
        "_tcp_sum",
        "guest_mac",
        "header_bytes",
    )

    def __init__(
        self,
        host_mac: bytes,
        guest_mac: bytes,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        capabilities: Capabilities,
    ) -> None:
        self.guest_mac = guest_mac
        self._capabilities = capabilities
        self._is_ipv4 = len(source) == 4
        self._cuts = capabilities.tso4 if self._is_ipv4 else capabilities.tso6
        ports = struct.pack("!HH", source_port, destination_port)
        same = _same_between(host_mac, guest_mac, source, destination)
        self._before_length, self._ip_sum, self._pseudo_sum = same.before_length, same.ip_sum, same.pseudo_sum
        if self._is_ipv4:
            self._after_length, self._after_checksum = same.after_length, same.after_checksum + ports
        else:
            self._after_length, self._after_checksum = same.after_length + ports, b""
        self._tcp_at = same.offload.checksum_start
        self.header_bytes = same.offload.header_bytes
        self._offload = self._segmented = same.offload
        self._tcp_sum = self._pseudo_sum + checksum.sum_of(ports)

    def segment(
        self, seq: int, ack: int, flags: int, window: int, payload: Buffer = b"", options: bytes = b""
    ) -> FrameRun:
        """One segment as one frame.  `window` is the field's value; `options` a multiple of four bytes."""
        payload_sum = 0 if self._capabilities.checksum or not payload else checksum.sum_of(payload)
        return self._frame(seq, ack, flags, window, payload, options, payload_sum, 0)

    def cut(self, seq: int, ack: int, flags: int, window: int, payload: memoryview, mss: int) -> list[FrameRun]:
        """`payload` as segments of at most `mss` bytes (a multiple of 4); the last one gets `flags`, the others no PSH
        and no FIN.

        The frames are in order: the first n of them carry the first `min(n * mss, len(payload))` bytes, or with a
        link that segments by itself `TSO_PAYLOAD_BYTES` rounded down to whole segments instead of `mss`
        (`payload_per_frame`).
        """
        step = self.payload_per_frame(mss)
        if len(payload) <= step:
            return [self._payload_frame(seq, ack, flags, window, payload, mss)]
        others = flags & ~(tcp.PSH | tcp.FIN)
        last = (len(payload) - 1) // step * step
        runs: list[FrameRun] = []
        if step == mss < COPY_BELOW_MSS and last > mss:
            runs.append(self._cut_small(seq, ack, others, window, payload[:last], mss))
        elif not self._capabilities.checksum:
            runs.append(self._cut_large(seq, ack, others, window, payload[:last], mss))
        else:
            runs.extend(
                self._payload_frame(seq + at, ack, others, window, payload[at : at + step], mss)
                for at in range(0, last, step)
            )
        runs.append(self._payload_frame(seq + last, ack, flags, window, payload[last:], mss))
        return runs

    def payload_per_frame(self, mss: int) -> int:
        """How many bytes of payload each full frame made by `cut` carries."""
        return max(1, TSO_PAYLOAD_BYTES // mss) * mss if self._cuts else mss

    def _payload_frame(self, seq: int, ack: int, flags: int, window: int, payload: memoryview, mss: int) -> FrameRun:
        payload_sum = 0 if self._capabilities.checksum else checksum.sum_of(payload)
        segment_bytes = mss if len(payload) > mss else 0
        return self._frame(seq & 0xFFFFFFFF, ack, flags, window, payload, b"", payload_sum, segment_bytes)

    def _frame(
        self,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        payload: Buffer,
        options: bytes,
        payload_sum: int,
        segment_bytes: int,
    ) -> FrameRun:
        header_bytes = tcp.HEADER_BYTES + len(options)
        tcp_bytes = header_bytes + len(payload)
        offset = header_bytes << 2
        offload = None
        if self._capabilities.checksum:
            field = checksum.fold(self._pseudo_sum + tcp_bytes)
            offload = self._offload_of(len(options), segment_bytes)
        else:
            total = self._tcp_sum + tcp_bytes + payload_sum + seq + ack + (offset << 8 | flags) + window
            if options:
                total += checksum.sum_of(options)
            field = 0xFFFF ^ (total % 65535 or 65535)
        head = self._head(tcp_bytes, seq, ack, offset, flags, window, field)
        if options:
            head += options
        parts = (head, payload) if payload else (head,)
        return FrameRun(parts, 1, PREFIX_BYTES + self._tcp_at + tcp_bytes, offload)

    def _offload_of(self, options_bytes: int, segment_bytes: int) -> Offload:
        """The latest one is kept: nearly all frames of a connection have one of two."""
        if not segment_bytes:
            at = self.header_bytes
            return Offload(self._tcp_at, tcp.CHECKSUM_AT, at + options_bytes) if options_bytes else self._offload
        if self._segmented.segment_bytes != segment_bytes:
            kind = Segmentation.TCPV4 if self._is_ipv4 else Segmentation.TCPV6
            self._segmented = Offload(self._tcp_at, tcp.CHECKSUM_AT, self.header_bytes, segment_bytes, kind)
        return self._segmented

    def _head(self, tcp_bytes: int, seq: int, ack: int, offset: int, flags: int, window: int, field: int) -> bytes:
        """Prefix and headers, without options, of a segment of `tcp_bytes`; `field` is the TCP checksum."""
        frame_bytes = self._tcp_at + tcp_bytes
        numbers = (seq, ack, offset, flags, window, field, 0)
        if not self._is_ipv4:
            return _IPV6_HEAD.pack(frame_bytes, self._before_length, tcp_bytes, self._after_length, *numbers)
        total = ipv4.HEADER_BYTES + tcp_bytes
        ip_field = 0xFFFF ^ ((self._ip_sum + total) % 65535 or 65535)
        return _IPV4_HEAD.pack(
            frame_bytes, self._before_length, total, self._after_length, ip_field, self._after_checksum, *numbers
        )

    def _cut_large(self, seq: int, ack: int, flags: int, window: int, payload: memoryview, mss: int) -> FrameRun:
        """Equal segments of `mss` bytes each, not copied: a header for each, and the sums of all payloads at once."""
        tcp_bytes = tcp.HEADER_BYTES + mss
        offset = tcp.HEADER_BYTES << 2
        sums = _sums_of_rows(payload, mss).tolist()
        constant = self._tcp_sum + tcp_bytes + ack + (offset << 8 | flags) + window
        parts: list[Buffer] = []
        for number, payload_sum in enumerate(sums):
            at = number * mss
            own_seq = (seq + at) & 0xFFFFFFFF
            field = 0xFFFF ^ ((payload_sum + own_seq + constant) % 65535 or 65535)
            parts.append(self._head(tcp_bytes, own_seq, ack, offset, flags, window, field))
            parts.append(payload[at : at + mss])
        return FrameRun(tuple(parts), len(sums), PREFIX_BYTES + self._tcp_at + tcp_bytes)

    def _cut_small(self, seq: int, ack: int, flags: int, window: int, payload: memoryview, mss: int) -> FrameRun:
        """Equal segments of `mss` bytes each, as one block: the columns of an array, what is the same only once."""
        count = len(payload) // mss
        tcp_bytes = tcp.HEADER_BYTES + mss
        offset = tcp.HEADER_BYTES << 2
        header = self._head(tcp_bytes, 0, ack, offset, flags, window, 0)
        head_bytes = len(header)
        seq_at = PREFIX_BYTES + self._tcp_at + 4
        sum_at = PREFIX_BYTES + self._tcp_at + tcp.CHECKSUM_AT

        block = np.empty((count, head_bytes + mss), np.uint8)
        block[:, :head_bytes] = np.frombuffer(header, np.uint8)
        block[:, head_bytes:] = np.frombuffer(payload, np.uint8).reshape(count, mss)
        seqs = (np.arange(count, dtype=np.uint64) * mss + seq) & 0xFFFFFFFF
        block[:, seq_at : seq_at + 4] = seqs.astype(">u4").view(np.uint8).reshape(count, 4)
        offload = None
        if self._capabilities.checksum:
            field = checksum.fold(self._pseudo_sum + tcp_bytes)
            block[:, sum_at : sum_at + 2] = (field >> 8, field & 0xFF)
            offload = self._offload
        else:
            constant = self._tcp_sum + tcp_bytes + ack + (offset << 8 | flags) + window
            totals = (_sums_of_rows(payload, mss) + seqs + constant) % 65535
            fields = (0xFFFF ^ np.where(totals == 0, 65535, totals)).astype(">u2")
            block[:, sum_at : sum_at + 2] = fields.view(np.uint8).reshape(count, 2)
        return FrameRun((block.reshape(-1).data,), count, head_bytes + mss, offload)


def _sums_of_rows(payload: memoryview, row_bytes: int) -> npt.NDArray[np.uint64]:
    """The sums (see `checksum`) of pieces of `row_bytes`, a multiple of 4."""
    words = np.frombuffer(payload, "<u4").reshape(-1, row_bytes // 4).sum(axis=1, dtype=np.uint64) % 65535
    swapped: npt.NDArray[np.uint64] = ((words & 0xFF) << 8) | (words >> 8)
    return swapped
