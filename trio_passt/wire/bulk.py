"""Many frames looked at together: what `coalesce` promises, for a whole batch with a few dozen NumPy calls.

Theory of operation
-------------------
The headers of all frames are read as `columns`.  Comparisons with what a plain frame has to be (see `plain`), and the
sums that the checksums ask for, say which frames are plain and right.  Each is judged by itself: nothing is summed over
several.  Sorted by connection, stably, each frame is then compared with the one before it; where it goes on with it,
both belong to one run.  The sort is by a hash: should two connections have the same, their frames come mixed, and fewer
of them are joined; but never strangers, since what is compared are the addresses and ports.

The payloads are passed on as they lie in the batch, in as many pieces as there are frames.  To copy them into one piece
costs more, with MTU 1500 too: not the copy, but the fresh memory for it.

Datagrams of UDP have a simpler life, and their own page (`bulk_datagrams`).

The cost is a fixed part for each batch and a part that grows with its size, whatever is in it: there is no search, and
so nothing that broken runs could make slow.
"""

import struct
from collections.abc import Iterator
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from attrs import frozen

from trio_passt.wire import bulk_datagrams, columns, finish, tcp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.columns import Offloads, Offsets, Stretch, Words
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.frames import FrameBatch, Segmentation
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.joined import Item, JoinedSegments
from trio_passt.wire.tcp import TcpSegment

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

_NO_ROOM = 1 << 16
"""A payload length that no frame has."""


@frozen(eq=False)
class _Layout:
    """Where things are in the frames of one IP version.

    Words are those of `columns`.  A plain frame has the bits of `shape` under `mask` in the words `columns.SHAPE`.  Two
    frames are compared by the words `compared`: source MAC, addresses, ports; and the last three are sequence number,
    acknowledgement number, and flags with window.

    `length` and `protocol` are fields of IP's header: which word, and by how much it is to be shifted.  The length
    counts `length_beyond` bytes besides the TCP payload.  `fields` reads source MAC, addresses, ports, sequence number,
    acknowledgement number and window.
    """

    ethertype: bytes
    header_bytes: int
    addresses_at: int
    ends: slice
    compared: Numbers
    length: tuple[int, int]
    length_beyond: int
    protocol: tuple[int, int]
    segmentation: Segmentation
    fields: struct.Struct
    shape: Words
    mask: Words


_ETHERTYPE_AT, _ETHERTYPE_WORD = 12, 2
_FLAGS_AND_WINDOW = -2

_TCP_SHAPE, _TCP_SHAPE_MASK = 0x50100000, 0xFFF70000
"""Without options, ACK and perhaps PSH, any window.  A FIN is left to be parsed: there is one in a connection."""

_IPV4 = _Layout(
    ethertype=EtherType.IPV4.to_bytes(2, "big"),
    header_bytes=54,
    addresses_at=26,
    ends=slice(6, 9),
    compared=np.array([1, 2, *range(6, 12)]),
    length=(3, 0),
    length_beyond=40,
    protocol=(5, 16),
    segmentation=Segmentation.TCPV4,
    fields=struct.Struct("!6x6s14x4s4sHHII2xH"),
    #            MAC, EtherType, version TOS, length, id, DF, TTL protocol, sum
    shape=columns.pattern("0000 0800 4500 0000 0000 0000 0006 0000"),
    mask=columns.pattern("0000 ffff ff00 0000 0000 3fff 00ff 0000"),
)

_IPV6 = _Layout(
    ethertype=EtherType.IPV6.to_bytes(2, "big"),
    header_bytes=74,
    addresses_at=22,
    ends=slice(5, 14),
    compared=np.array([1, 2, *range(5, 17)]),
    length=(4, 16),
    length_beyond=20,
    protocol=(4, 8),
    segmentation=Segmentation.TCPV6,
    fields=struct.Struct("!6x6s10x16s16sHHII2xH"),
    #            MAC, EtherType, version class flow, length, next hops, address
    shape=columns.pattern("0000 86dd 60000000 0000 0600 00000000"),
    mask=columns.pattern("0000 ffff f0000000 0000 ff00 00000000"),
)

_ORDERS = (
    (
        (_IPV4, _IPV6, bulk_datagrams.IPV4, bulk_datagrams.IPV6),
        (_IPV6, _IPV4, bulk_datagrams.IPV6, bulk_datagrams.IPV4),
    ),
    (
        (bulk_datagrams.IPV4, _IPV4, bulk_datagrams.IPV6, _IPV6),
        (bulk_datagrams.IPV6, _IPV6, bulk_datagrams.IPV4, _IPV4),
    ),
)
_PLACE = itemgetter(0)


def join(batch: FrameBatch) -> list[Item]:
    """See `coalesce`."""
    view = memoryview(batch.data).toreadonly()
    bounds = batch.bounds
    stretches = columns.stretches(bounds)
    starts = columns.offsets(stretches)
    placed: list[tuple[int, Item]] = []
    done = np.zeros(len(batch), np.bool_)
    for layout in _likeliest_first(view[bounds[0][0] :]):
        if len(view) < layout.header_bytes or np.logical_and.reduce(done):
            continue
        if isinstance(layout, _Layout):
            frames = _Frames(batch, stretches, starts, layout)
            placed += _runs(frames, view)
            done |= frames.right
        else:
            done |= bulk_datagrams.find(batch, stretches, starts, layout, placed)
    left = (~done).nonzero()[0].tolist()
    if batch.offloads is None:
        placed += [(index, view[slice(*bounds[index])]) for index in left]
    else:
        placed += _finished(batch, view, left)
    placed.sort(key=_PLACE)
    return [item for _, item in placed]


def _finished(batch: FrameBatch, view: memoryview, indices: list[int]) -> Iterator[tuple[int, Item]]:
    """These frames, with what was left to do done."""
    assert batch.offloads is not None
    for index in indices:
        frame, offload = view[slice(*batch.bounds[index])], batch.offloads[index]
        for item in [frame] if offload is None else finish.as_items(frame, offload):
            yield index, item


def _likeliest_first(first: memoryview) -> tuple[_Layout | bulk_datagrams.Layout, ...]:
    """What the first frame looks like is what most are, often all: then nothing else is looked for."""
    is_ipv6 = first[_ETHERTYPE_AT : _ETHERTYPE_AT + 2] == _IPV6.ethertype
    protocol_at = 20 if is_ipv6 else 23
    is_udp = len(first) > protocol_at and first[protocol_at] == IPProtocol.UDP
    return _ORDERS[is_udp][is_ipv6]


class _Frames:
    """The frames of a batch as TCP segments over one IP version: arrays with one element for each.

    `right` says which of them are: plain, and with right checksums.
    """

    __slots__ = ("has_plain_ip", "layout", "right", "segment_counts", "sizes", "starts", "words")

    def __init__(self, batch: FrameBatch, stretches: list[Stretch], starts: Offsets, layout: _Layout) -> None:
        self.layout = layout
        self.starts = starts
        words = self.words = columns.words(batch.data, starts + columns.WORDS_AT, layout.header_bytes // 4)
        self.sizes = self.field(*layout.length, 0xFFFF) - layout.length_beyond
        self.has_plain_ip: Flags = (
            np.bitwise_or.reduce((words[columns.SHAPE] ^ layout.shape) & layout.mask, axis=0) == 0
        )
        self.right = self.has_plain_ip & (words[_FLAGS_AND_WINDOW] & _TCP_SHAPE_MASK == _TCP_SHAPE)
        if layout is _IPV4:
            self.right &= np.add.reduce(words[columns.IPV4_HEADER], axis=0, dtype=np.uint64) % 65535 == 0
        if not np.logical_and.reduce(self.right):
            begins = [part.first for part in stretches]
            has_some = np.logical_or.reduceat(self.right, begins).tolist()
            stretches = [part for part, has_it in zip(stretches, has_some, strict=True) if has_it]
        place = (layout.header_bytes - tcp.HEADER_BYTES, tcp.CHECKSUM_AT)
        offloads = columns.offloads(batch, *place, layout.segmentation)
        self.right &= self._has_right_payload(batch, stretches, offloads)
        self.segment_counts = None if offloads is None else offloads.segment_counts(self.sizes)

    def field(self, word: int, shift: int, mask: int) -> Words:
        """A field of the header."""
        field: Words = (self.words[word] >> shift) & mask
        return field

    def _has_right_payload(self, batch: FrameBatch, stretches: list[Stretch], offloads: Offloads | None) -> Flags:
        """Whether the frame, in one of these stretches, is as long as IP says, with a right checksum.

        Of frames with an offload, those are right which it answers for.
        """
        at, header_bytes = self.layout.addresses_at, self.layout.header_bytes
        sums = np.zeros(len(batch), np.uint64)
        rooms = np.empty(len(batch), np.uint32)
        rooms.fill(_NO_ROOM)
        for part, has_to_be_summed in zip(stretches, columns.to_verify(stretches, offloads), strict=True):
            if part.frame_bytes < header_bytes:
                continue
            place = slice(part.first, part.first + part.frames)
            rooms[place] = part.frame_bytes - header_bytes
            if part.frame_bytes == columns.SHORTEST_FRAME_BYTES:
                rooms[place] = np.minimum(rooms[place], self.sizes[place])
                columns.add_up_padded(batch.data, part, at, rooms[place] + (header_bytes - at), sums[place])
            elif has_to_be_summed:
                columns.add_up(batch.data, part, at, sums[place])
        is_right: Flags = (sums * 256 + (self.sizes + (tcp.HEADER_BYTES + IPProtocol.TCP))) % 65535 == 0
        if offloads is not None:
            is_right = np.where(offloads.some, offloads.answered, is_right)
        is_right &= self.sizes == rooms
        return is_right


def _runs(frames: _Frames, view: memoryview) -> list[tuple[int, JoinedSegments]]:
    """Each run, with the index of its first frame."""
    if not np.logical_or.reduce(frames.right):
        return []
    layout, ends = frames.layout, frames.words[frames.layout.ends]
    order = columns.hashes(ends).argsort(kind="stable")
    words, sizes, right = frames.words[layout.compared].take(order, axis=1), frames.sizes.take(order), frames.right
    goes_on, duplicates = _compare(words, sizes, _may_go_on(frames, order))
    begins = (~goes_on).nonzero()[0]
    firsts = order.take(begins)
    stops = [*begins[1:].tolist(), len(order)]
    flags = np.bitwise_or.reduceat(words[-1] >> 16, begins) & (tcp.ACK | tcp.PSH)
    of_each = (firsts, right.take(firsts), begins, flags, np.add.reduceat(duplicates, begins))
    sorted_frames = _Sorted(view, layout, frames.starts.take(order), sizes)
    counts = frames.segment_counts
    segments = None if counts is None else np.add.reduceat(counts.take(order), begins).tolist()
    return [
        (first, sorted_frames.join(begin, stop, flags, duplicates, stop - begin if segments is None else segments[run]))
        for run, (first, is_right, begin, flags, duplicates, stop) in enumerate(
            zip(*(column.tolist() for column in of_each), stops, strict=True)
        )
        if is_right
    ]


def _may_go_on(frames: _Frames, order: Numbers) -> Flags | None:
    """For each frame but the first, in this order: whether it may go on with the one before; `None` if all may."""
    if np.logical_and.reduce(frames.right):
        return None
    right = frames.right.take(order)
    may_go_on: Flags = right[1:] & right[:-1]
    is_of_ip = frames.field(_ETHERTYPE_WORD, 0, 0xFFFF) == int.from_bytes(frames.layout.ethertype, "big")
    is_udp = frames.field(*frames.layout.protocol, 0xFF) == IPProtocol.UDP
    hides_its_ports = is_of_ip & ~is_udp & ~frames.has_plain_ip
    if np.logical_or.reduce(hides_its_ports):
        before = hides_its_ports.cumsum().take(order)
        may_go_on &= before[1:] == before[:-1]
    return may_go_on


def _compare(words: Words, sizes: Words, may_go_on: Flags | None) -> tuple[Flags, Numbers]:
    """For frames sorted by connection: which go on with the one before, and (as 1) which are duplicates of it.

    `words` are the layout's `compared` ones.  A run of acknowledgements does not go on after duplicates: whatever
    follows them is processed after them.
    """
    changes = words[:, 1:] ^ words[:, :-1]
    seq, ack = words[-3], words[-2]
    differs = np.bitwise_or.reduce(changes[:-3], axis=0)
    differs |= (seq[1:] - seq[:-1]) ^ sizes[:-1]
    if may_go_on is not None:
        differs |= ~may_go_on
    news = changes[-2] | (changes[-1] & 0xFFFF)
    goes_on = np.zeros(len(sizes), np.bool_)
    duplicates = np.zeros(len(sizes), np.int64)
    is_pure = sizes == 0
    if np.logical_or.reduce(is_pure):
        goes_back = (ack[1:] - ack[:-1]) >> 31
        differs |= np.where(is_pure[1:], goes_back, news)
        differs |= is_pure[1:] ^ is_pure[:-1]
        repeats = is_pure[1:] & ((differs | news) == 0)
        duplicates[1:] = repeats
        goes_on[1:] = differs == 0
        goes_on[2:] &= ~(repeats[:-1] & (news[1:] != 0))
    else:
        goes_on[1:] = (differs | news) == 0
    return goes_on, duplicates


class _Sorted:
    """Frames sorted by connection: where they are, and how long their payloads."""

    __slots__ = ("_layout", "_sizes", "_starts", "_view")

    def __init__(self, view: memoryview, layout: _Layout, offsets: Offsets, sizes: Words) -> None:
        self._view = view
        self._layout = layout
        self._starts = offsets.tolist()
        self._sizes = sizes.tolist()

    def join(self, begin: int, stop: int, flags: int, duplicates: int, segments: int) -> JoinedSegments:
        """The run from frame `begin` to before `stop`, which stand for so many `segments`."""
        view, starts, unpack = self._view, self._starts, self._layout.fields.unpack_from
        mac, source, destination, source_port, destination_port, seq, ack, window = unpack(view, starts[begin])
        payload: Buffer = b""
        more: tuple[memoryview, ...] = ()
        if self._sizes[begin]:
            payload, *pieces = self._payload(begin, stop)
            more = tuple(pieces)
        elif stop - begin > 1:
            *_, ack, window = unpack(view, starts[stop - 1])
        numbers = (source_port, destination_port, seq, ack, flags, window)
        segment = TcpSegment(*numbers, payload, tcp.NO_OPTIONS, segments, more)
        return JoinedSegments(mac, (source, source_port, destination, destination_port), segment, duplicates)

    def _payload(self, begin: int, stop: int) -> list[memoryview]:
        view, header_bytes = self._view, self._layout.header_bytes
        places = zip(self._starts[begin:stop], self._sizes[begin:stop], strict=True)
        return [view[start + header_bytes : start + header_bytes + size] for start, size in places]
