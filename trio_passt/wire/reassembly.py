"""IP fragments → whole packets (RFC 791 section 3.2, RFC 815, RFC 8200 section 4.5).

Theory of operation
-------------------
A datagram in assembly is a list of pieces in order of their offsets.  No two of them overlap, and none lies beyond the
end that the last fragment (no more fragments) gave.  So the datagram is whole when as many bytes have come as it is
long, and there is no need for a list of its holes (RFC 815).  What `take` then returns is what `ipv4.parse` or
`ipv6.parse` would have returned had the packet come in one piece, and can be processed by the same code.

*Refusal.*  What overlaps, other than an exact duplicate, what gives the datagram another end, and what lies beyond the
end says that somebody plays games: nobody can tell which bytes are the right ones.  The datagram is given up with all
that came of it, and what still comes of it is refused until its time is over (RFC 5722, RFC 8200 section 4.5).  RFC 791
would have later bytes overwrite earlier ones; no honest sender needs that, so IPv4 is treated the same.

*Limits.*  Nobody but the guest fills this memory, but one program of the guest must not take it from another.  Where a
limit is reached, the oldest datagram makes way: one that is going to be whole takes milliseconds, so the oldest is one
that never will be.  This may be a refused one, of which nothing is remembered then; its later fragments open a datagram
that lacks the earlier bytes, and what overlapped is still never delivered.

*Time* runs from the first fragment that came, whichever it is, and is the same for all; so those in the order of their
arrival are in the order of their deadlines, and the next one is at the front.  It ends in `expire` only: until that is
called, a fragment may still complete what is too old.

What is not done:

- Extension headers before the fragment header are not kept: their bytes do not count against the 65535 that a packet
  may have, and they are missing where a fragment is quoted, as are IPv4's options.
- A first fragment without all of the headers (RFC 7112) is not refused: nobody looks at it before the packet is whole.
- Completed datagrams are forgotten: a duplicate that comes later opens a datagram that will time out.
- Marks of congestion on single fragments are not merged (RFC 3168 section 5.3), since nothing here reads them.
"""

from bisect import bisect_right
from collections import Counter, OrderedDict
from typing import overload

from attrs import evolve, frozen

from trio_passt.wire import icmp, ipv4, ipv6
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ipv4 import IPv4Header
from trio_passt.wire.ipv6 import IPv6Header

REASSEMBLY_S = 60.0
"""RFC 8200 section 4.5 for IPv6; for IPv4, RFC 1122 section 3.3.2 wants a fixed value between 60 and 120 seconds."""

DATAGRAMS = 256
"""In assembly at a time, refused ones included.  A guest's queue sends the fragments of a datagram one after the other,
so honest ones are as many as it has queues that send, and all others have lost a fragment."""

BYTES_HELD = 4 << 20
"""In all pieces together, with what they cost: about sixty of the longest datagrams, and as much as Linux takes by
default for each family (net.ipv4.ipfrag_high_thresh)."""

PIECE_COST_BYTES = 96
"""What a piece takes beside its data: the head of a `bytes` and of an `int`, and their places in two lists.  Without
it, pieces of 8 bytes would take ten times the memory that they count for."""

PIECES = 1365
"""Of one datagram: as many as an MTU of 68 bytes, the least there may be (RFC 791), makes of the longest one, with 48
bytes in each.  More would be cut small for its own sake."""

_MOST_BYTES = {4: 0xFFFF - ipv4.HEADER_BYTES, 16: 0xFFFF}
"""So long a payload fits the length field of a whole packet, by length of the address."""

_PAYLOAD_LENGTH_POINTER = 4
_FRAGMENT_OFFSET_POINTER = ipv6.HEADER_BYTES + 2
"""Where these fields are in an IPv6 fragment (RFC 8200 sections 3 and 4.5)."""

_DUPLICATE = "fragment: duplicate"

_Key = tuple[bytes, bytes, int] | tuple[bytes, bytes, int, int]


class FragmentProblem(MalformedPacket):
    """An IPv6 fragment that its sender is to hear about: ICMPv6 parameter problem, code 0 (RFC 8200 section 4.5).

    `packet`: the fragment, as much of it as an ICMPv6 error quotes, without extension headers before the fragment
    header; `pointer`: where in it the field is that is wrong, in bytes.
    """

    def __init__(self, text: str, packet: bytes, pointer: int) -> None:
        super().__init__(text)
        self.packet = packet
        self.pointer = pointer

    @property
    def source(self) -> bytes:
        """The packed address of the sender."""
        return self.packet[8:24]

    @property
    def destination(self) -> bytes:
        """The packed address that it was sent to."""
        return self.packet[24:40]


@frozen
class TimedOut:
    """A datagram whose sender is to hear that it never became whole: ICMP time exceeded, code 1.

    `packet`: its first fragment as the sender sent it, but without options or extension headers, and as much of it as
    an ICMP error of its version quotes.  Addresses are packed.  Whether they may be answered at all is not looked at
    here: there are no errors about a packet to a group or to everybody (RFC 1122 section 3.2.2, RFC 4443 section
    2.4 (e)).
    """

    source: bytes
    destination: bytes
    packet: bytes


class Reassembly:
    """All datagrams in assembly, of both versions.  Times are in seconds, of one clock that does not go back.

    `drops` counts what is not going to be delivered, by reason: fragments that are refused (one each), and datagrams
    that are given up for their age or for lack of room (one each, whatever came of it).  What raises is for the caller
    to count.
    """

    def __init__(self, drops: Counter[str]) -> None:
        self._drops = drops
        self._datagrams: OrderedDict[_Key, _Datagram] = OrderedDict()
        self._bytes_held = 0

    def __len__(self) -> int:
        """Datagrams in assembly, and refused ones whose time is not over: at most `DATAGRAMS`."""
        return len(self._datagrams)

    @property
    def bytes_held(self) -> int:
        """What all pieces take together, about: at most `BYTES_HELD`."""
        return self._bytes_held

    @property
    def next_deadline(self) -> float | None:
        """When to call `expire`, if nothing comes before then."""
        if not self._datagrams:
            return None
        return next(iter(self._datagrams.values())).deadline

    @overload
    def take(self, header: IPv4Header, payload: Buffer, now: float) -> tuple[IPv4Header, memoryview] | None: ...

    @overload
    def take(self, header: IPv6Header, payload: Buffer, now: float) -> tuple[IPv6Header, memoryview] | None: ...

    def take(
        self, header: IPv4Header | IPv6Header, payload: Buffer, now: float
    ) -> tuple[IPv4Header | IPv6Header, memoryview] | None:
        """A fragment, as parsed; `None` as long as its datagram is not whole.

        Then, what a parser would return of the whole packet: the header is that of the first fragment, with nothing in
        it of a fragment but the identification, and with the upper layer's `protocol`; the payload is all of the upper
        layer's packet.  `payload` is copied.  `header` must be that of a fragment.

        Malformed: an empty fragment, one before the last whose length is not a multiple of 8, one that ends where no
        packet can (65535 bytes); of these, those of IPv6 that RFC 8200 wants reported are a `FragmentProblem`.  They
        leave the datagram as it was.  Also malformed is a whole IPv6 packet with extension headers that lie.
        """
        assert header.is_fragment
        _check(header, payload)
        key = _key(header)
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._open(key, now)
        elif datagram.is_refused:
            self._drops["fragment: of a refused datagram"] += 1
            return None
        fault = datagram.add(header, payload)
        if fault is not None:
            self._drops[fault] += 1
            if fault != _DUPLICATE:
                self._bytes_held -= datagram.bytes_held
                datagram.refuse()
            return None
        self._bytes_held += len(payload) + PIECE_COST_BYTES
        if datagram.is_whole:
            del self._datagrams[key]
            self._bytes_held -= datagram.bytes_held
            return _whole(datagram)
        while self._bytes_held > BYTES_HELD:
            self._give_up_oldest("fragment: limit of bytes")
        return None

    def expire(self, now: float) -> list[TimedOut]:
        """Give up what is too old; of that, what is to be answered: the first fragment came, and nothing was wrong."""
        answers = []
        while (deadline := self.next_deadline) is not None and deadline <= now:
            datagram = self._give_up_oldest("fragment: reassembly time exceeded")
            if datagram.first is not None:
                first = datagram.first
                answers.append(TimedOut(first.source, first.destination, _quote(first, datagram.pieces[0])))
        return answers

    def _open(self, key: _Key, now: float) -> "_Datagram":
        self._datagrams[key] = datagram = _Datagram(now + REASSEMBLY_S)
        if len(self._datagrams) > DATAGRAMS:
            self._give_up_oldest("fragment: limit of datagrams")
        return datagram

    def _give_up_oldest(self, reason: str) -> "_Datagram":
        _, datagram = self._datagrams.popitem(last=False)
        self._bytes_held -= datagram.bytes_held
        if not datagram.is_refused:
            self._drops[reason] += 1
        return datagram


class _Datagram:
    """The pieces of one datagram, in order; none after `refuse`.  `first` is the header of the one at offset 0."""

    __slots__ = ("_end", "_length", "_starts", "deadline", "first", "is_refused", "pieces")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.first: IPv4Header | IPv6Header | None = None
        self.pieces: list[bytes] = []
        self.is_refused = False
        self._starts: list[int] = []
        self._length = 0
        self._end: int | None = None

    @property
    def is_whole(self) -> bool:
        return self._length == self._end

    @property
    def bytes_held(self) -> int:
        return self._length + len(self.pieces) * PIECE_COST_BYTES

    def add(self, header: IPv4Header | IPv6Header, payload: Buffer) -> str | None:
        """Keep a copy of a piece that is not empty; or the reason why not, and nothing has changed."""
        start = header.fragment_offset
        stop = start + len(payload)
        is_last = not header.more_fragments
        place = bisect_right(self._starts, start)
        if place:
            earlier_start, earlier = self._starts[place - 1], self.pieces[place - 1]
            if earlier_start + len(earlier) > start:
                # A piece that reaches the end is the last one: no two overlap.
                is_same = earlier_start == start and is_last == (self._end == stop) and earlier == bytes(payload)
                return _DUPLICATE if is_same else "fragment: overlap"
        if place < len(self._starts):
            if stop > self._starts[place]:
                return "fragment: overlap"
            if is_last:
                return "fragment: beyond the end"
        if self._end is not None and stop > self._end:
            return "fragment: beyond the end"
        if len(self.pieces) == PIECES:
            return "fragment: too many pieces"
        self._starts.insert(place, start)
        self.pieces.insert(place, bytes(payload))
        self._length += len(payload)
        if start == 0:
            self.first = header
        if is_last:
            self._end = stop
        return None

    def refuse(self) -> None:
        """Forget all that came; nothing is added any more."""
        self.is_refused = True
        self.first = None
        self.pieces, self._starts, self._length = [], [], 0


def _key(header: IPv4Header | IPv6Header) -> _Key:
    """RFC 791 section 3.2; RFC 8200 section 4.5, where fragments may differ in their next header."""
    if isinstance(header, IPv4Header):
        return header.source, header.destination, header.identification, header.protocol
    return header.source, header.destination, header.identification


def _check(header: IPv4Header | IPv6Header, payload: Buffer) -> None:
    """What can be said of a fragment by itself."""
    size = len(payload)
    if not size:
        raise MalformedPacket("empty fragment")
    if header.more_fragments and size & 7:
        raise _malformed(f"fragment of {size} bytes, not the last", header, payload, _PAYLOAD_LENGTH_POINTER)
    end = header.fragment_offset + size
    if end > _MOST_BYTES[len(header.source)]:
        raise _malformed(f"fragment that ends at {end}", header, payload, _FRAGMENT_OFFSET_POINTER)


def _malformed(text: str, header: IPv4Header | IPv6Header, payload: Buffer, pointer: int) -> MalformedPacket:
    if isinstance(header, IPv4Header):
        return MalformedPacket(text)
    return FragmentProblem(text, _quote(header, payload), pointer)


def _quote(header: IPv4Header | IPv6Header, payload: Buffer) -> bytes:
    """The fragment again, as much of it as an ICMP error of its version has room for."""
    size = len(payload)
    emitted = ipv4.emit(header, size) if isinstance(header, IPv4Header) else ipv6.emit(header, size)
    return (emitted + payload)[: icmp.QUOTED_BYTES[len(header.source)]]


def _whole(datagram: _Datagram) -> tuple[IPv4Header | IPv6Header, memoryview]:
    payload = b"".join(datagram.pieces)
    header = datagram.first
    assert header is not None
    if isinstance(header, IPv4Header):
        return evolve(header, more_fragments=False, fragment_offset=0), memoryview(payload)
    protocol, rest = ipv6.upper_layer(header.protocol, payload)
    return evolve(header, protocol=protocol, more_fragments=False, fragment_offset=0), rest
