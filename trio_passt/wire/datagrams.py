"""Datagrams → frames: one flow's headers as a template, and datagrams of one size framed together.

Theory of operation
-------------------
Of the 42 (IPv4) or 62 (IPv6) bytes of Ethernet, IP and UDP header, only lengths and checksums differ between the
datagrams of a flow.  `UdpHeaders` keeps the rest and its sums, as `segment.TcpHeaders` does for TCP.

Datagrams that came in bulk are mostly of one size and at equal distances in the buffer that they were received into: a
`Train`.  A train of small ones becomes an array with one frame a row, into which NumPy broadcasts the template and
copies the payloads, and whose checksums are one column.  Large ones are not copied: a header for each, and a view.
Where the link fills in checksums, none is copied; and where it cuts datagrams, a train is one frame, or a few.

What is larger than the link's MTU goes in fragments (`fragment`): UDP has no other way to make it fit.

A checksum that comes out as zero is sent as 0xFFFF (RFC 768), since zero means "none": over IPv6 that is not allowed
(RFC 8200 section 8.1).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trio_passt.wire import checksum, columns, fragment, ipv4, ipv6, udp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.columns import Stretch, Sums
from trio_passt.wire.ethernet import HEADER_BYTES as ETHERNET_BYTES
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ethernet import emit as emit_ethernet
from trio_passt.wire.frames import Capabilities, FrameRun, Offload, Segmentation, single
from trio_passt.wire.ip import IPProtocol

_IPV4_HEAD = struct.Struct("!I 16s H 6s H 12s HH")
"""Frame length; up to the total length; total length; up to the header checksum; that; up to the UDP length; UDP."""


_IPV6_HEAD = struct.Struct("!I 18s H 38s HH")
"""Frame length; up to the payload length; payload length; up to the UDP length; UDP length and checksum."""

COPY_BELOW_BYTES = 4096
"""Datagrams below this size are copied into one block; above, a header of its own for each costs less."""


JOINED_MOST = 64
"""Datagrams that a link cuts from one frame (UDP_MAX_SEGMENTS; newer kernels take 128)."""

JOINED_BYTES_MOST = 65535 - ipv4.HEADER_BYTES - udp.HEADER_BYTES
"""Payload of one frame, over either IP version."""


class Train(NamedTuple):
    """`datagrams` payloads of `size` bytes each in a buffer, the first at `start`, one every `stride` bytes."""

    start: int
    size: int
    datagrams: int = 1
    stride: int = 0

    def payloads(self, buffer: memoryview) -> Iterator[memoryview]:
        """Each of them, as a view."""
        start, size, count, stride = self
        return (buffer[start + number * stride :][:size] for number in range(count))


def _joined_most(size: int) -> int:
    """How many datagrams of this size go in one frame."""
    return min(JOINED_MOST, max(1, JOINED_BYTES_MOST // size))


def _end_of(train: Train, following: Train) -> Train | None:
    """`following`, if it is one datagram that may be the last one in the frame that the train ends with."""
    has_room = train.datagrams % _joined_most(train.size) > 0
    return following if has_room and following.datagrams == 1 and 0 < following.size < train.size else None


class UdpHeaders:
    """The headers of all datagrams that go to the guest in one flow.

    Addresses are packed, both of one family; they come from the remote as the guest sees it.  `largest_bytes` is the
    largest payload that is not fragmented, `capabilities` are those of the link.
    """

    __slots__ = (
        "_after_checksum",
        "_after_length",
        "_before_length",
        "_capabilities",
        "_ends",
        "_ethernet",
        "_ip_sum",
        "_is_ipv4",
        "_latest",
        "_mtu_bytes",
        "_offload",
        "_ports",
        "_pseudo_sum",
        "_udp_at",
        "_udp_sum",
        "guest_mac",
        "largest_bytes",
    )

    def __init__(
        self,
        macs: tuple[bytes, bytes],
        addresses: tuple[bytes, bytes],
        ports: tuple[int, int],
        mtu_bytes: int,
        capabilities: Capabilities,
    ) -> None:
        """Each pair is (from, to)."""
        self._capabilities = capabilities
        host_mac, self.guest_mac = macs
        self._ends = source, destination = addresses
        self._ports = struct.pack("!HH", *ports)
        self._mtu_bytes = mtu_bytes
        self._is_ipv4 = len(source) == 4
        self._pseudo_sum = checksum.pseudo_header_sum(source, destination, IPProtocol.UDP, 0)
        self._udp_sum = self._pseudo_sum + sum(ports)
        if self._is_ipv4:
            header = ipv4.emit(ipv4.IPv4Header(source, destination, IPProtocol.UDP), 0)
            ethernet = emit_ethernet(EthernetHeader(self.guest_mac, host_mac, EtherType.IPV4))
            self._before_length = ethernet + header[:2]
            self._after_length = header[4:10]
            self._after_checksum = header[12:] + self._ports
            # The checksum is the complement of the sum of all but itself, with no payload: 20 bytes, not counted yet.
            self._ip_sum = 0xFFFF - int.from_bytes(header[10:12], "big") - ipv4.HEADER_BYTES
        else:
            header = ipv6.emit(ipv6.IPv6Header(source, destination, IPProtocol.UDP), 0)
            ethernet = emit_ethernet(EthernetHeader(self.guest_mac, host_mac, EtherType.IPV6))
            self._before_length = ethernet + header[:4]
            self._after_length = header[6:] + self._ports
            self._after_checksum = b""
            self._ip_sum = 0
        self._ethernet = ethernet
        self._udp_at = ETHERNET_BYTES + len(header)
        self.largest_bytes = mtu_bytes - len(header) - udp.HEADER_BYTES
        filled_in = Offload(self._udp_at, udp.CHECKSUM_AT, self._udp_at + udp.HEADER_BYTES)
        self._offload = filled_in if capabilities.checksum else None
        self._latest = filled_in

    def frames(self, buffer: memoryview, trains: list[Train], identifications: Iterator[int]) -> list[FrameRun]:
        """Frames for the datagrams of all trains, in order; what is too large takes an identification, and is cut.

        The parts may be views of `buffer`.
        """
        runs: list[FrameRun] = []
        end: Train | None = None
        for index, train in enumerate(trains):
            if train is end:
                continue  # it went with the one before
            if train.size > self.largest_bytes:
                for payload in train.payloads(buffer):
                    runs += self._fragments(payload, next(identifications))
            elif train.datagrams == 1 or not train.size:
                runs += [self.single(payload) for payload in train.payloads(buffer)]
            elif self._capabilities.uso:
                end = _end_of(train, trains[index + 1]) if index + 1 < len(trains) else None
                runs += self._joined(buffer, train, end)
            elif train.size < COPY_BELOW_BYTES and self._offload is None:
                runs.append(self._block(buffer, train))
            else:
                runs.append(self._headed(buffer, train))
        return runs

    def single(self, payload: memoryview) -> FrameRun:
        """The frame for one datagram that is not too large; a part of it is `payload` itself."""
        size = len(payload)
        offload = self._offload
        field = self._checksum(size, checksum.sum_of(payload)) if offload is None else self._unfinished(size)
        head = self._head(size, field)
        return FrameRun((head, payload) if size else (head,), 1, len(head) + size, offload)

    def _unfinished(self, size: int) -> int:
        """The field of a checksum that the link fills in: the sum of the pseudo-header."""
        return checksum.fold(self._pseudo_sum + udp.HEADER_BYTES + size)

    def _checksum(self, size: int, payload_sum: int) -> int:
        udp_bytes = udp.HEADER_BYTES + size
        return checksum.finish(self._udp_sum + 2 * udp_bytes + payload_sum) or 0xFFFF

    def _head(self, size: int, field: int) -> bytes:
        """Prefix and headers of a datagram with a payload of `size`; `field` is the UDP checksum."""
        udp_bytes = udp.HEADER_BYTES + size
        frame_bytes = self._udp_at + udp_bytes
        if not self._is_ipv4:
            return _IPV6_HEAD.pack(frame_bytes, self._before_length, udp_bytes, self._after_length, udp_bytes, field)
        total = ipv4.HEADER_BYTES + udp_bytes
        before, after = self._before_length, self._after_length
        ip_field = checksum.finish(self._ip_sum + total)
        return _IPV4_HEAD.pack(frame_bytes, before, total, after, ip_field, self._after_checksum, udp_bytes, field)

    def _block(self, buffer: memoryview, train: Train) -> FrameRun:
        """A train as one block: the columns of an array, what is the same only once."""
        start, size, count, stride = train
        header = np.frombuffer(self._head(size, 0), np.uint8)
        head_bytes = len(header)
        block = np.empty((count, head_bytes + size), np.uint8)
        block[:, :head_bytes] = header
        fields = self._checksums(buffer, train).astype(">u2")
        block[:, head_bytes - 2 : head_bytes] = fields.view(np.uint8).reshape(count, 2)
        block[:, head_bytes:] = np.ndarray((count, size), np.uint8, buffer, start, (stride, 1))
        return FrameRun((block.reshape(-1).data,), count, head_bytes + size)

    def _joined(self, buffer: memoryview, train: Train, end: Train | None) -> list[FrameRun]:
        """A train, and a smaller datagram at its end, as frames that the link cuts into datagrams; not copied."""
        start, size, count, stride = train
        most = _joined_most(size)
        runs = []
        for first in range(0, count, most):
            part = Train(start + first * stride, size, min(most, count - first), stride)
            payloads = part.payloads(buffer)
            pieces = [buffer[part.start :][: part.datagrams * size]] if stride == size else list(payloads)
            if end is not None and first + most >= count:
                pieces += end.payloads(buffer)
            total = sum(map(len, pieces))
            head = self._head(total, self._unfinished(total))
            offload = self._offload if total == size else self._joined_offload(size)
            runs.append(FrameRun((head, *pieces), 1, len(head) + total, offload))
        return runs

    def _joined_offload(self, size: int) -> Offload:
        """The latest one is kept, since sizes change seldom."""
        if self._latest.segment_bytes != size:
            header_bytes = self._udp_at + udp.HEADER_BYTES
            self._latest = Offload(self._udp_at, udp.CHECKSUM_AT, header_bytes, size, Segmentation.UDP)
        return self._latest

    def _headed(self, buffer: memoryview, train: Train) -> FrameRun:
        """A train with a header of its own for each, not copied."""
        if self._offload is not None:
            head = self._head(train.size, self._unfinished(train.size))
            alike = tuple(part for payload in train.payloads(buffer) for part in (head, payload))
            return FrameRun(alike, train.datagrams, len(head) + train.size, self._offload)
        parts: list[Buffer] = []
        for field, payload in zip(self._checksums(buffer, train).tolist(), train.payloads(buffer), strict=True):
            parts += (self._head(train.size, field), payload)
        return FrameRun(tuple(parts), train.datagrams, len(parts[0]) + train.size)

    def _checksums(self, buffer: memoryview, train: Train) -> Sums:
        """The UDP checksum of each, 0xFFFF for both kinds of zero."""
        start, size, count, stride = train
        sums = np.empty(count, np.uint64)
        columns.add_up(buffer, Stretch(0, count, size, start, stride), 0, sums)
        sums *= 256  # to the order of bytes of the wire (see `checksum`)
        sums += self._udp_sum + 2 * (udp.HEADER_BYTES + size)
        fields: Sums = 65535 - sums % 65535
        return fields

    def _fragments(self, payload: memoryview, identification: int) -> list[FrameRun]:
        size = len(payload)
        lengths = struct.pack("!HH", udp.HEADER_BYTES + size, self._checksum(size, checksum.sum_of(payload)))
        datagram = b"".join((self._ports, lengths, payload))
        pieces = fragment.fragments(*self._ends, IPProtocol.UDP, datagram, self._mtu_bytes, identification)
        return [single(self._ethernet, *piece) for piece in pieces]
