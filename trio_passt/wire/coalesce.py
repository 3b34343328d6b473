"""Frames → segments and datagrams: the frames of one connection that go on with one another become one segment.

Theory of operation
-------------------
A guest that sends in bulk sends frames whose headers differ only in sequence number, length, IP identification,
checksums and PSH; one that receives in bulk sends pure acknowledgements.  To process them one by one costs more than
everything else together.  In a batch several connections come mixed, so what is joined are *runs*: frames of one
connection of which each goes on where the one before it ended, whatever came between them.

There are two ways to the same result.  Few frames are parsed one by one (`plain`), and only what comes after that is
saved.  From so many on that its fixed part pays, `bulk` looks at all headers of the batch together.

Datagrams of UDP are not joined to one another, but those of one flow come together, as views, to be sent together.

What is joined is exactly what the frame-by-frame path would have given: a run of data is the concatenation; of a run of
acknowledgements the last one counts, and it is followed by `duplicates` exact copies of it.  FIN and SYN stay alone.
Everything that is not plain, or not right, is left as the frame that it came in: options, RST, fragments, wrong
checksums.  If its sender had left work on it to the link, that is done now (`finish`): it becomes the frame, or frames,
that it stands for.  If that can't be done, what is wrong with it takes its place.

*Order.*  What belongs to one connection stays in order, joined or not, and so does what is neither TCP nor UDP.  Items
of different connections may change places: a run comes where its first frame came.  No run of segments goes on across a
frame of which it is not plain to see whether it belongs to the same connection.  Plain datagrams of a flow stay in
order; those that are not plain (in fragments, with options) may come later than they were sent, as UDP's may.
"""

from trio_passt.wire import bulk, finish, plain, tcp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.joined import Item, JoinedDatagrams, JoinedSegments
from trio_passt.wire.plain import Ends
from trio_passt.wire.tcp import TcpSegment

__all__ = ["Item", "JoinedDatagrams", "JoinedSegments", "coalesce"]

BULK_FROM_FRAMES = 18
BULK_FROM_SMALL_FRAMES = 44
BULK_FROM_ANSWERED_FRAMES = 60
"""From so many frames on it is cheaper to look at all of them together.  Small ones are parsed in half the time; those
with an offload, of which nothing has to be summed, in a third, whatever their size."""

SMALL_FRAME_BYTES = 120
"""On average: those of pure acknowledgements, or with so little data that Python's integers sum it (see `checksum`)."""


def coalesce(batch: FrameBatch) -> list[Item]:
    """The batch as joined segments, and as frames where it holds anything else (for the order, see above)."""
    count = len(batch)
    if batch.offloads is not None:
        return _one_by_one(batch) if count < BULK_FROM_ANSWERED_FRAMES else bulk.join(batch)
    if count < BULK_FROM_FRAMES or (count < BULK_FROM_SMALL_FRAMES and len(batch.data) < SMALL_FRAME_BYTES * count):
        return _one_by_one(batch)
    return bulk.join(batch)


def _one_by_one(batch: FrameBatch) -> list[Item]:
    offloads = batch.offloads
    if len(batch) == 1:
        if offloads is None:
            return list(batch)
        if (alone := plain.parse(batch.first(), offloads[0])) is not None:
            mac, ends, segment = alone
            return [JoinedSegments(mac, ends, segment)]
    items: list[memoryview | _Run | JoinedDatagrams | MalformedPacket] = []
    runs: dict[Ends, _Run] = {}
    datagrams: dict[Ends, JoinedDatagrams] = {}
    for index, frame in enumerate(batch):
        offload = None if offloads is None else offloads[index]
        parsed = plain.parse(frame, offload)
        if parsed is None:
            if (datagram := plain.parse_datagram(frame, offload)) is not None:
                _add_datagram(items, datagrams, datagram, 0 if offload is None else offload.segment_bytes)
                continue
            runs.clear()
            if offload is None:
                items.append(frame)
            else:
                items += finish.as_items(frame, offload)
            continue
        mac, ends, segment = parsed
        run = runs.get(ends)
        if segment.flags & (tcp.FIN | tcp.SYN):
            runs.pop(ends, None)
            items.append(_Run(mac, ends, segment))
        elif run is None or not run.takes(mac, segment):
            runs[ends] = run = _Run(mac, ends, segment)
            items.append(run)
    return [item.joined() if isinstance(item, _Run) else item for item in items]


def _add_datagram(
    items: "list[memoryview | _Run | JoinedDatagrams | MalformedPacket]",
    latest: dict[Ends, JoinedDatagrams],
    datagram: plain.Datagram,
    segment_bytes: int,
) -> None:
    """To the latest ones of its flow, if source MAC and hop limit are the same, or as the first of others.

    With `segment_bytes`, it stands for several of that size.
    """
    mac, ends, hop_limit, payload, packet = datagram
    payloads, last = [payload], packet
    if segment_bytes:
        payloads, last = finish.cut_payload(payload, segment_bytes), finish.last_of(packet, payload, segment_bytes)
    before = latest.get(ends)
    if before is not None and before.hop_limit == hop_limit and before.mac == mac:
        before.payloads += payloads
        before.last = last
    else:
        first = finish.first_of(packet, payload, segment_bytes) if segment_bytes else packet
        latest[ends] = run = JoinedDatagrams(mac, ends, hop_limit, payloads, first, last)
        items.append(run)


class _Run:
    """A run that may go on."""

    __slots__ = ("_ack", "_duplicates", "_ends", "_first", "_flags", "_frames", "_mac", "_more", "_next", "_window")

    def __init__(self, mac: bytes, ends: Ends, segment: TcpSegment) -> None:
        self._mac = mac
        self._ends = ends
        self._first = segment
        self._next = segment.seq + len(segment.payload) & 0xFFFFFFFF
        self._ack = segment.ack
        self._flags = segment.flags
        self._window = segment.window
        self._more: list[memoryview] = []
        self._frames = segment.frames
        self._duplicates = 0

    def takes(self, mac: bytes, segment: TcpSegment) -> bool:
        """Whether it goes on with this segment, which is then a part of it.

        A run of acknowledgements does not go on after duplicates: whatever follows them is processed after them.
        """
        payload = segment.payload
        if segment.seq != self._next or mac != self._mac or bool(payload) != bool(self._first.payload):
            return False
        repeats = segment.ack == self._ack and segment.window == self._window
        if payload:
            if not repeats:
                return False
            self._more.append(memoryview(payload))
            self._next = self._next + len(payload) & 0xFFFFFFFF
        elif repeats:
            self._duplicates += 1
        else:
            if self._duplicates or segment.ack - self._ack & 0xFFFFFFFF >= 1 << 31:
                return False
            self._ack, self._window = segment.ack, segment.window
        self._flags |= segment.flags
        self._frames += segment.frames
        return True

    def joined(self) -> JoinedSegments:
        segment = self._first
        if self._frames > segment.frames:
            segment = TcpSegment(
                segment.source_port,
                segment.destination_port,
                segment.seq,
                self._ack,
                self._flags,
                self._window,
                segment.payload,
                tcp.NO_OPTIONS,
                self._frames,
                tuple(self._more),
            )
        return JoinedSegments(self._mac, self._ends, segment, self._duplicates)
