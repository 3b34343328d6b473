"""Many UDP datagrams looked at together: the part of `bulk` that is UDP's.

The headers of all frames as columns say which are plain (see `plain.parse_datagram`) and have right checksums.  Sorted
by flow, stably, those that have the same ends, source MAC and hop limit as the one before them go with it.
"""

import struct

import numpy as np
import numpy.typing as npt
from attrs import frozen

from trio_passt.wire import columns, ethernet, finish, plain, udp
from trio_passt.wire.columns import Offloads, Offsets, Stretch, Words
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.frames import MOST_DATAGRAMS, FrameBatch, Segmentation
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.joined import Item, JoinedDatagrams

Flags = npt.NDArray[np.bool_]


@frozen(eq=False)
class Layout:
    """Where things are in the UDP frames of one IP version; words are those of `columns`, counted as in `bulk`.

    Two frames are compared by the words `compared`, the first of which holds the hop limit under `hop_limit_mask`.
    """

    ethertype: bytes
    header_bytes: int
    addresses_at: int
    ends: slice
    compared: npt.NDArray[np.int64]
    hop_limit_mask: int
    length: tuple[int, int]
    length_beyond: int
    service_port: int
    fields: struct.Struct
    shape: Words
    mask: Words


_PORTS, _LENGTH_AND_SUM = -2, -1

IPV4 = Layout(
    ethertype=EtherType.IPV4.to_bytes(2, "big"),
    header_bytes=42,
    addresses_at=26,
    ends=slice(6, 9),
    compared=np.array([5, 1, 2, 6, 7, 8]),
    hop_limit_mask=0xFF000000,
    length=(3, 0),
    length_beyond=20,
    service_port=plain.DHCP_SERVER_PORT,
    fields=struct.Struct("!6x6s10xB3x4s4sHH"),
    #            MAC, EtherType, version TOS, length, id, DF, TTL protocol, sum
    shape=columns.pattern("0000 0800 4500 0000 0000 0000 0011 0000"),
    mask=columns.pattern("0000 ffff ff00 0000 0000 3fff 00ff 0000"),
)

IPV6 = Layout(
    ethertype=EtherType.IPV6.to_bytes(2, "big"),
    header_bytes=62,
    addresses_at=22,
    ends=slice(5, 14),
    compared=np.array([4, 1, 2, *range(5, 14)]),
    hop_limit_mask=0x000000FF,
    length=(4, 16),
    length_beyond=0,
    service_port=plain.DHCPV6_SERVER_PORT,
    fields=struct.Struct("!6x6s9xB16s16sHH"),
    #            MAC, EtherType, version class flow, length, next hops, address
    shape=columns.pattern("0000 86dd 60000000 0000 1100 00000000"),
    mask=columns.pattern("0000 ffff f0000000 0000 ff00 00000000"),
)


def find(
    batch: FrameBatch,
    stretches: list[Stretch],
    starts: Offsets,
    layout: Layout,
    placed: list[tuple[int, Item]],
) -> Flags:
    """Which frames are plain datagrams over one IP version; they are added to `placed`, with where each run begins."""
    words = columns.words(batch.data, starts + columns.WORDS_AT, layout.header_bytes // 4)
    right: Flags = np.bitwise_or.reduce((words[columns.SHAPE] ^ layout.shape) & layout.mask, axis=0) == 0
    if not np.logical_or.reduce(right):
        return right
    word, shift = layout.length
    lengths = ((words[word] >> shift) & 0xFFFF) - layout.length_beyond
    right &= words[_LENGTH_AND_SUM] >> 16 == lengths
    right &= words[_PORTS] & 0xFFFF != layout.service_port
    right &= words[layout.compared[0]] & layout.hop_limit_mask != 0
    if layout is IPV4:
        right &= np.add.reduce(words[columns.IPV4_HEADER], axis=0, dtype=np.uint64) % 65535 == 0
    place = (layout.header_bytes - udp.HEADER_BYTES, udp.CHECKSUM_AT)
    offloads = columns.offloads(batch, *place, Segmentation.UDP)
    right &= _has_right_payload(batch, stretches, layout, lengths, words[_LENGTH_AND_SUM] & 0xFFFF, offloads)
    segment_sizes = None if offloads is None else offloads.sizes
    if segment_sizes is not None:
        right &= (segment_sizes == 0) | (
            segment_sizes * MOST_DATAGRAMS >= lengths + layout.header_bytes - udp.HEADER_BYTES
        )
    indices = right.nonzero()[0]
    if len(indices):
        _place(memoryview(batch.data).toreadonly(), layout, words, starts, lengths, indices, placed, segment_sizes)
    return right


def _has_right_payload(
    batch: FrameBatch,
    stretches: list[Stretch],
    layout: Layout,
    lengths: Words,
    fields: Words,
    offloads: Offloads | None,
) -> Flags:
    """Whether the frame is as long as IP says, with a right checksum, or, over IPv4, none.

    Of frames with an offload, those are right which it answers for.
    """
    at, header_bytes = layout.addresses_at, layout.header_bytes
    sizes = lengths - udp.HEADER_BYTES
    sums = np.zeros(len(batch), np.uint64)
    fits = np.zeros(len(batch), np.bool_)
    for part, has_to_be_summed in zip(stretches, columns.to_verify(stretches, offloads), strict=True):
        if part.frame_bytes < header_bytes:
            continue
        place = slice(part.first, part.first + part.frames)
        room = part.frame_bytes - header_bytes
        if part.frame_bytes == columns.SHORTEST_FRAME_BYTES:
            fits[place] = sizes[place] <= room
            columns.add_up_padded(
                batch.data, part, at, np.minimum(sizes[place], room) + (header_bytes - at), sums[place]
            )
        else:
            fits[place] = sizes[place] == room
            if has_to_be_summed:
                columns.add_up(batch.data, part, at, sums[place])
    is_right: Flags = (sums * 256 + (lengths + int(IPProtocol.UDP))) % 65535 == 0
    if layout is IPV4:
        is_right |= fields == 0
    if offloads is not None:
        is_right = np.where(offloads.some, offloads.answered, is_right)
    if layout is IPV6:
        is_right &= fields != 0
    is_right &= fits
    return is_right


def _place(
    view: memoryview,
    layout: Layout,
    words: Words,
    starts: Offsets,
    lengths: Words,
    indices: npt.NDArray[np.int64],
    placed: list[tuple[int, Item]],
    segment_sizes: Offsets | None,
) -> None:
    """The frames of these indices as runs, each with the index of its first frame."""
    order = indices.take(columns.hashes(words[layout.ends].take(indices, axis=1)).argsort(kind="stable"))
    compared = words[layout.compared].take(order, axis=1)
    compared[0] &= layout.hop_limit_mask
    compared[2] &= 0xFFFF0000
    changes = np.bitwise_or.reduce(compared[:, 1:] ^ compared[:, :-1], axis=0)
    begins = [0, *(changes.nonzero()[0] + 1).tolist()]
    firsts, places, sizes = order.tolist(), starts.take(order).tolist(), lengths.take(order).tolist()
    payload_at, end_beyond = layout.header_bytes, layout.header_bytes - udp.HEADER_BYTES
    for begin, stop in zip(begins, [*begins[1:], len(firsts)], strict=True):
        start = places[begin]
        mac, hop_limit, source, destination, source_port, destination_port = layout.fields.unpack_from(view, start)
        payloads = [
            view[start + payload_at : start + end_beyond + size]
            for start, size in zip(places[begin:stop], sizes[begin:stop], strict=True)
        ]
        first, last = (
            view[places[index] + ethernet.HEADER_BYTES : places[index] + end_beyond + sizes[index]]
            for index in (begin, stop - 1)
        )
        if segment_sizes is not None:
            cuts = segment_sizes.take(firsts[begin:stop]).tolist()
            payloads, first, last = _cut(payloads, cuts, first, last)
        ends = (source, source_port, destination, destination_port)
        placed.append((firsts[begin], JoinedDatagrams(mac, ends, hop_limit, payloads, first, last)))


def _cut(
    payloads: list[memoryview], sizes: list[int], first: memoryview, last: memoryview
) -> tuple[list[memoryview], memoryview, memoryview]:
    """The payloads in datagrams of these sizes (0: as they are); the packet of the first one, and of the last."""
    pieces: list[memoryview] = []
    for payload, size in zip(payloads, sizes, strict=True):
        pieces += finish.cut_payload(payload, size)
    if sizes[0]:
        first = finish.first_of(first, payloads[0], sizes[0])
    if sizes[-1]:
        last = finish.last_of(last, payloads[-1], sizes[-1])
    return pieces, first, last
