"""The script of what comes, fragment by fragment, and what becomes of it: `guest.sends(0, b"...", more=True)`."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from attrs import evolve
from codec_checks import moderately
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_RR
from scapy.layers.inet import fragment as scapy_fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.packet import Packet, Raw

from trio_passt.wire import ipv4, ipv6, reassembly, udp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ipv4 import IPv4Header
from trio_passt.wire.ipv6 import IPv6Header
from trio_passt.wire.reassembly import FragmentProblem, Reassembly, TimedOut

V4 = (IPv4Address("192.0.2.1").packed, IPv4Address("198.51.100.7").packed)
V6 = (IPv6Address("2001:db8::1").packed, IPv6Address("2001:db8::2").packed)


class Guest:
    """Sends fragments of one IP version; all of datagram 1, at 1000 s, unless told otherwise."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.ends = V4 if version == 4 else V6
        self.most_bytes = 65515 if version == 4 else 65535
        self.drops: Counter[str] = Counter()
        self.reassembly = Reassembly(self.drops)

    def header(self, offset: int, *, more: bool, ident: int = 1, protocol: int = 17) -> IPv4Header | IPv6Header:
        fields = {"more_fragments": more, "fragment_offset": offset, "identification": ident}
        if self.version == 4:
            return IPv4Header(*V4, protocol, ttl=9, dont_fragment=False, **fields)
        return IPv6Header(*V6, protocol, hop_limit=9, **fields)

    def sends(self, offset: int, data: bytes, *, more: bool = True, now: float = 1000.0, **fields: int) -> bytes | None:
        """The whole packet's payload, if this made it whole."""
        taken = self.reassembly.take(self.header(offset, more=more, **fields), data, now)
        return None if taken is None else bytes(taken[1])

    def packet(self, offset: int, data: bytes, *, more: bool) -> bytes:
        """The IP packet that `sends` stands for, made by scapy."""
        if self.version == 4:
            layers = IP(src="192.0.2.1", dst="198.51.100.7", ttl=9, id=1, proto=17, frag=offset // 8, flags=int(more))
        else:
            fragment = IPv6ExtHdrFragment(nh=17, offset=offset // 8, m=int(more), id=1)
            layers = IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=9) / fragment
        return bytes(layers / Raw(data))


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def guest(request: pytest.FixtureRequest) -> Guest:
    return Guest(request.param)


def parsed(packet: bytes) -> tuple[Any, memoryview]:
    return ipv4.parse(packet) if packet[0] >> 4 == 4 else ipv6.parse(packet)


def taken_of(packets: list[bytes], into: Reassembly | None = None) -> list[tuple[Any, memoryview]]:
    """All that comes out."""
    into = Reassembly(Counter()) if into is None else into
    results = [into.take(*parsed(packet), 0.0) for packet in packets]
    return [result for result in results if result is not None]


# -- scapy is the judge ------------------------------------------------------------------------------------------------


def scapy_ipv4(payload: bytes, part_bytes: int, **fields: object) -> list[bytes]:
    packet = IP(src="192.0.2.1", dst="198.51.100.7", id=0x1234, ttl=9, **fields) / UDP(sport=1, dport=2) / payload
    return [bytes(fragment) for fragment in scapy_fragment(packet, part_bytes)]


def scapy_ipv6(payload: bytes, mtu_bytes: int, *extensions: Packet, before: Packet | None = None) -> list[bytes]:
    packet = IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=9, tc=4, fl=5)
    packet = (packet / before if before is not None else packet) / IPv6ExtHdrFragment(id=0xDECADE)
    for extension in extensions:
        packet = packet / extension
    return [bytes(fragment) for fragment in fragment6(packet / UDP(sport=1, dport=2) / Raw(payload), mtu_bytes)]


def any_order(packets: list[bytes]) -> Iterator[list[bytes]]:
    yield packets
    yield packets[::-1]
    for seed in range(3):
        yield random.Random(seed).sample(packets, len(packets))


@pytest.mark.parametrize("fields", [{}, {"options": [IPOption_RR(routers=["1.2.3.4"])]}, {"tos": 4}])
def test_what_scapy_cuts_of_ipv4_becomes_whole(fields: dict[str, object]) -> None:
    data = random.Random(1).randbytes(5001)
    packets = scapy_ipv4(data, 1400, **fields)
    assert len(packets) == 4
    for shuffled in any_order(packets):
        ((header, payload),) = taken_of(shuffled)
        tos = fields.get("tos", 0)
        assert header == IPv4Header(*V4, 17, 9, 0x1234, dont_fragment=False, traffic_class=tos)
        assert udp.parse(*V4, payload) == (udp.UdpHeader(1, 2), data)


@pytest.mark.parametrize("before", [None, IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(addresses=["2001:db8::2"])])
@pytest.mark.parametrize("extensions", [[], [IPv6ExtHdrDestOpt()], [IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt()]])
def test_what_scapy_cuts_of_ipv6_becomes_whole(before: Packet | None, extensions: list[Packet]) -> None:
    data = random.Random(1).randbytes(5001)
    packets = scapy_ipv6(data, 1280, *extensions, before=before)
    assert len(packets) == 5
    for shuffled in any_order(packets):
        ((header, payload),) = taken_of(shuffled)
        assert header == IPv6Header(*V6, 17, 9, 4, 5, identification=0xDECADE)
        assert udp.parse(*V6, payload) == (udp.UdpHeader(1, 2), data)


def test_header_chain_over_several_fragments() -> None:
    """Not refused, whatever RFC 7112 says of the sender: nobody looks at it before it is whole."""
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(124))])
    data = bytes(IPv6() / options / UDP(sport=1, dport=2, chksum=7) / b"end")[40:]
    guest = Guest(6)
    fragment = guest.header(0, more=True, protocol=60)
    assert guest.reassembly.take(fragment, data[:64], 0.0) is None
    taken = guest.reassembly.take(evolve(fragment, fragment_offset=64, more_fragments=False), data[64:], 0.0)
    assert taken is not None
    assert (taken[0].protocol, taken[1]) == (17, data[128:])


def test_atomic_fragment_does_not_touch_what_is_in_assembly() -> None:
    """RFC 6946: it never gets here, as its parser says that it is whole."""
    first, last = scapy_ipv6(bytes(1300), 1280)
    atomic = bytes(IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrFragment(id=0xDECADE) / UDP() / b"x")
    assert not ipv6.parse(atomic)[0].is_fragment
    assert len(taken_of([first, last])) == 1


# -- any order, any cuts -----------------------------------------------------------------------------------------------


@st.composite
def cut_packets(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes, bool]]]:
    """A packet, and all its pieces (offset, data, more), some of them several times, in any order."""
    units = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    tail = draw(st.integers(1, 50))
    whole = draw(st.randoms(use_true_random=False)).randbytes(sum(units) * 8 + tail)
    pieces, start = [], 0
    for count in units:
        pieces.append((start, whole[start : start + count * 8], True))
        start += count * 8
    pieces.append((start, whole[start:], False))
    repeated = draw(st.lists(st.sampled_from(pieces), max_size=4))
    return whole, draw(st.permutations(pieces + repeated))


@moderately
@given(st.sampled_from([4, 6]), cut_packets())
def test_any_permutation_with_duplicates(version: int, cut: tuple[bytes, list[tuple[int, bytes, bool]]]) -> None:
    whole, pieces = cut
    guest = Guest(version)
    missing = {offset for offset, _, _ in pieces}
    for offset, data, more in pieces:
        missing.discard(offset)
        result = guest.sends(offset, data, more=more)
        if not missing:
            assert result == whole
            break
        assert result is None
    assert len(guest.reassembly) == guest.reassembly.bytes_held == 0
    assert set(guest.drops) <= {"fragment: duplicate"}


@moderately
@given(st.lists(cut_packets(), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_datagrams_mixed(cuts: list[tuple[bytes, list[tuple[int, bytes, bool]]]], rng: random.Random) -> None:
    guests = Guest(4), Guest(6)
    guests[1].reassembly = guests[0].reassembly
    sent = [(guest, ident, piece) for guest in guests for ident, (_, pieces) in enumerate(cuts) for piece in pieces]
    rng.shuffle(sent)
    seen = set()
    for guest, ident, (offset, data, more) in sent:
        result = guest.sends(offset, data, more=more, ident=ident)
        if result is not None:
            assert result == cuts[ident][0]
            seen.add((guest.version, ident))
    assert len(seen) == 2 * len(cuts)


def test_the_longest_in_the_smallest_pieces_of_an_mtu_of_68() -> None:
    guest = Guest(4)
    whole = random.Random(5).randbytes(65515)
    starts = list(range(0, len(whole), 48))
    assert len(starts) == reassembly.PIECES
    random.Random(6).shuffle(starts)
    *before, result = [guest.sends(at, whole[at : at + 48], more=at + 48 < len(whole)) for at in starts]
    assert result == whole
    assert set(before) == {None}


# -- what tells datagrams apart ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["source", "destination", "identification"])
def test_key(guest: Guest, field: str) -> None:
    first, last = guest.header(0, more=True), guest.header(8, more=False)
    other = 2 if field == "identification" else guest.ends[field == "source"]
    assert guest.reassembly.take(first, bytes(8), 0.0) is None
    assert guest.reassembly.take(evolve(last, **{field: other}), b"x", 0.0) is None
    assert len(guest.reassembly) == 2
    assert guest.reassembly.take(last, b"x", 0.0) is not None


def test_protocol_is_in_the_key_of_ipv4() -> None:
    guest = Guest(4)
    guest.sends(0, bytes(8), protocol=17)
    assert guest.sends(8, b"x", more=False, protocol=1) is None
    assert len(guest.reassembly) == 2


def test_next_header_of_the_first_fragment_counts_for_ipv6() -> None:
    guest = Guest(6)
    later = evolve(guest.header(8, more=False, protocol=99), hop_limit=200)
    assert guest.reassembly.take(later, b"x", 0.0) is None
    taken = guest.reassembly.take(guest.header(0, more=True, protocol=17), bytes(8), 0.0)
    assert taken is not None
    assert taken == (IPv6Header(*V6, 17, hop_limit=9, identification=1), bytes(8) + b"x")


# -- refused alone: the datagram is as it was --------------------------------------------------------------------------


BAD_ALONE = {
    "empty": (0, b"", True, None),
    "empty, last": (8, b"", False, None),
    "not a multiple of 8": (0, bytes(13), True, 4),
    "not a multiple of 8, later": (64, bytes(7), True, 4),
    "one byte too long": (65512, bytes(24), False, 42),
    "at the last offset": (65528, bytes(8), False, 42),
    "at the last offset, more": (65528, bytes(8), True, 42),
    "not a multiple of 8, and too long": (65528, bytes(9), True, 4),
}


@pytest.mark.parametrize(("offset", "data", "more", "pointer"), BAD_ALONE.values(), ids=BAD_ALONE)
def test_malformed(guest: Guest, offset: int, data: bytes, more: bool, pointer: int | None) -> None:
    guest.sends(8, b"datagram", more=False)
    with pytest.raises(MalformedPacket) as caught:
        guest.sends(offset, data, more=more)
    if guest.version == 4 or pointer is None:
        assert not isinstance(caught.value, FragmentProblem)
    else:
        assert isinstance(caught.value, FragmentProblem)
        assert caught.value.pointer == pointer
        assert caught.value.packet == guest.packet(offset, data, more=more)
    assert not guest.drops
    assert guest.sends(0, b"a whole ") == b"a whole datagram"


def test_malformed_opens_nothing(guest: Guest) -> None:
    with pytest.raises(MalformedPacket):
        guest.sends(0, b"x")
    assert len(guest.reassembly) == 0
    assert guest.reassembly.next_deadline is None


def test_problem_quotes_no_more_than_there_is_room_for() -> None:
    guest = Guest(6)
    with pytest.raises(FragmentProblem) as caught:
        guest.sends(8, bytes(1401))
    assert caught.value.packet == guest.packet(8, bytes(1401), more=True)[:1232]


def test_the_longest_there_may_be(guest: Guest) -> None:
    last = guest.most_bytes - 65504
    whole = bytes(65504) + b"x" * last
    assert guest.sends(65504, whole[65504:], more=False) is None
    assert guest.sends(0, whole[:65504]) == whole
    with pytest.raises(MalformedPacket):
        guest.sends(65504, bytes(last + 1), more=False)


def test_header_chain_that_lies_is_malformed_when_whole() -> None:
    guest = Guest(6)
    guest.sends(0, bytes((17, 9)) + bytes(6), protocol=60)
    with pytest.raises(MalformedPacket) as caught:
        guest.sends(8, bytes(8), more=False, protocol=60)
    assert not isinstance(caught.value, FragmentProblem)
    assert len(guest.reassembly) == guest.reassembly.bytes_held == 0


def test_fragment_header_within_is_malformed_when_whole() -> None:
    guest = Guest(6)
    guest.sends(0, bytes((17, 0, 0, 1, 0, 0, 0, 1)), protocol=44)
    with pytest.raises(MalformedPacket, match="two fragment headers"):
        guest.sends(8, bytes(8), more=False, protocol=44)


# -- refused for good: overlaps and ends that differ -------------------------------------------------------------------


def piece(start: int, stop: int, *, more: bool = True, fill: bytes = b"-") -> tuple[int, bytes, bool]:
    return start, fill * (stop - start), more


HAS = [piece(16, 32), piece(48, 64)]
OVERLAPS = {
    "its tail": (HAS, piece(24, 40)),
    "its head": (HAS, piece(8, 24)),
    "inside": ([piece(0, 64)], piece(8, 16)),
    "around": (HAS, piece(8, 40)),
    "around all": (HAS, piece(0, 80)),
    "same start, shorter": (HAS, piece(16, 24)),
    "same start, longer": (HAS, piece(16, 40)),
    "same end, shorter": (HAS, piece(24, 32)),
    "from one to the other": (HAS, piece(24, 56)),
    "same place, other bytes": (HAS, piece(16, 32, fill=b"+")),
    "same place, but the last": (HAS, piece(48, 64, more=False)),
    "same place, but not the last": ([piece(48, 64, more=False)], piece(48, 64)),
    "by one byte of the last": ([piece(16, 25, more=False)], piece(24, 32)),
}
ENDS = {
    "two ends, the second later": ([piece(16, 25, more=False)], piece(32, 41, more=False)),
    "two ends, the second earlier": ([piece(16, 25, more=False)], piece(8, 15, more=False)),
    "beyond the end": ([piece(16, 24, more=False)], piece(24, 32)),
    "far beyond the end": ([piece(16, 24, more=False)], piece(800, 808)),
    "an end before what came": (HAS, piece(32, 40, more=False)),
    "an end before all that came": (HAS, piece(8, 16, more=False)),
}
CONTRADICTIONS = [
    *(pytest.param("fragment: overlap", *case, id=name) for name, case in OVERLAPS.items()),
    *(pytest.param("fragment: beyond the end", *case, id=name) for name, case in ENDS.items()),
]
Piece = tuple[int, bytes, bool]


@pytest.mark.parametrize(("reason", "before", "bad"), CONTRADICTIONS)
def test_contradiction_ends_the_datagram(guest: Guest, reason: str, before: list[Piece], bad: Piece) -> None:
    for offset, data, more in before:
        assert guest.sends(offset, data, more=more) is None
    assert guest.sends(bad[0], bad[1], more=bad[2]) is None
    assert guest.drops == {reason: 1}
    assert guest.reassembly.bytes_held == 0
    # All of it again, and the rest, until its time is over.
    for offset, data, more in [piece(0, 16), *before, piece(64, 70, more=False), piece(32, 48)]:
        assert guest.sends(offset, data, more=more, now=1059.9) is None
    assert guest.drops == {reason: 1, "fragment: of a refused datagram": 3 + len(before)}
    assert guest.sends(8, b"other", more=False, ident=2) is None
    assert guest.sends(0, b"and the ", ident=2) == b"and the other"
    assert guest.reassembly.expire(1060.0) == []
    assert guest.drops == {reason: 1, "fragment: of a refused datagram": 3 + len(before)}
    assert guest.sends(8, b"again", more=False, now=1060.0) is None
    assert guest.sends(0, b"and yet ", now=1060.0) == b"and yet again"


@pytest.mark.parametrize("duplicate", [piece(0, 16), piece(16, 24), piece(32, 37, more=False)])
def test_exact_duplicates_are_ignored(guest: Guest, duplicate: Piece) -> None:
    for offset, data, more in [piece(0, 16), piece(16, 24), piece(32, 37, more=False)]:
        assert guest.sends(offset, data, more=more) is None
    held = guest.reassembly.bytes_held
    assert guest.sends(duplicate[0], duplicate[1], more=duplicate[2]) is None
    assert guest.reassembly.bytes_held == held
    assert guest.drops == {"fragment: duplicate": 1}
    assert guest.sends(24, b"-" * 8) == b"-" * 37


# -- limits ------------------------------------------------------------------------------------------------------------


def test_pieces_of_a_datagram(guest: Guest) -> None:
    for number in range(reassembly.PIECES):
        assert guest.sends(number * 16, bytes(8)) is None
    assert not guest.drops
    assert guest.sends(8, bytes(8)) is None
    assert guest.drops == {"fragment: too many pieces": 1}
    assert guest.reassembly.bytes_held == 0
    guest.sends(24, bytes(8))
    assert guest.drops["fragment: of a refused datagram"] == 1
    assert guest.reassembly.expire(1060.0) == []


def test_the_oldest_makes_way_for_another(guest: Guest) -> None:
    for ident in range(reassembly.DATAGRAMS):
        guest.sends(0, b"datagram", ident=ident)
    assert not guest.drops
    guest.sends(0, b"datagram", ident=reassembly.DATAGRAMS)
    assert guest.drops == {"fragment: limit of datagrams": 1}
    assert len(guest.reassembly) == reassembly.DATAGRAMS
    assert guest.sends(8, b"!", more=False, ident=1) == b"datagram!"
    assert guest.sends(8, b"!", more=False, ident=reassembly.DATAGRAMS) == b"datagram!"
    assert guest.sends(8, b"!", more=False, ident=0) is None


def test_refused_ones_make_way_too(guest: Guest) -> None:
    guest.sends(0, b"datagram", ident=0)
    guest.sends(0, b"overlaps", ident=0)
    for ident in range(1, reassembly.DATAGRAMS + 1):
        guest.sends(0, b"datagram", ident=ident)
    assert guest.drops == {"fragment: overlap": 1}
    assert len(guest.reassembly) == reassembly.DATAGRAMS
    assert guest.sends(8, b"!", more=False, ident=0) is None


def test_bytes_held(guest: Guest) -> None:
    size = 65504
    cost = size + reassembly.PIECE_COST_BYTES
    fit = reassembly.BYTES_HELD // cost
    for ident in range(fit):
        guest.sends(0, bytes(size), ident=ident)
    assert not guest.drops
    assert guest.reassembly.bytes_held == fit * cost
    guest.sends(0, bytes(size), ident=fit)
    assert guest.drops == {"fragment: limit of bytes": 1}
    assert guest.reassembly.bytes_held == fit * cost
    assert guest.sends(size, b"!", more=False, ident=0) is None
    assert guest.sends(size, b"!", more=False, ident=fit) == bytes(size) + b"!"


def test_what_becomes_whole_needs_no_room(guest: Guest) -> None:
    size = 65504
    fit = reassembly.BYTES_HELD // (size + reassembly.PIECE_COST_BYTES)
    for ident in range(fit):
        guest.sends(0, bytes(size), ident=ident)
    spare = reassembly.BYTES_HELD - guest.reassembly.bytes_held - reassembly.PIECE_COST_BYTES
    guest.sends(8, bytes(spare // 8 * 8), ident=fit)
    assert guest.sends(size, b"!", more=False, ident=0) == bytes(size) + b"!"
    assert not guest.drops


def test_the_oldest_may_be_the_one_that_grows(guest: Guest) -> None:
    size = 65504 - 8
    fit = reassembly.BYTES_HELD // (size + reassembly.PIECE_COST_BYTES)
    guest.sends(0, bytes(8), ident=0)
    for ident in range(1, fit + 1):
        guest.sends(8, bytes(size), ident=ident)
    assert not guest.drops
    guest.sends(8, bytes(size), ident=0)
    assert guest.drops == {"fragment: limit of bytes": 1}
    assert len(guest.reassembly) == fit
    assert guest.sends(size + 8, b"!", more=False, ident=0) is None


def test_bytes_held_are_about_what_is_taken(guest: Guest) -> None:
    """The smallest pieces cost the most beside their data."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for ident in range(20):
            for number in range(500):
                guest.sends(number * 16, bytes(8), ident=ident)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.5 < taken / guest.reassembly.bytes_held < 1.5


def test_thousands_of_hostile_fragments_are_cheap(guest: Guest) -> None:
    """In order, and in the worst order for a sorted list: what comes of a datagram is bounded, then it is refused."""
    starts = list(range(0, 64000, 8))
    for ident in range(10):
        for start in starts if ident % 2 else reversed(starts):
            guest.sends(start, bytes(8), ident=ident)
    assert guest.drops["fragment: too many pieces"] == 10
    for ident in range(20000):
        guest.sends(0, bytes(8), ident=ident)
    assert len(guest.reassembly) == reassembly.DATAGRAMS


# -- time --------------------------------------------------------------------------------------------------------------


def test_deadline_counts_from_what_came_first(guest: Guest) -> None:
    assert guest.reassembly.next_deadline is None
    guest.sends(8, bytes(8), now=5.0)
    guest.sends(0, bytes(8), now=30.0, ident=2)
    guest.sends(16, bytes(8), now=40.0)
    assert guest.reassembly.next_deadline == 65.0
    assert guest.reassembly.expire(64.9) == []
    assert guest.sends(0, bytes(8), now=64.9) is None
    assert guest.sends(24, b"x", more=False, now=64.9) == bytes(24) + b"x"
    assert guest.reassembly.next_deadline == 90.0
    assert len(guest.reassembly.expire(90.0)) == 1
    assert guest.reassembly.next_deadline is None


@pytest.mark.parametrize("size", [8, 520, 528, 536, 1184, 1192, 1400])
def test_first_fragment_is_quoted(guest: Guest, size: int) -> None:
    data = random.Random(2).randbytes(size)
    guest.sends(size, bytes(8))
    guest.sends(0, data)
    (answer,) = guest.reassembly.expire(1060.0)
    quoted = guest.packet(0, data, more=True)[: 548 if guest.version == 4 else 1232]
    assert answer == TimedOut(*guest.ends, quoted)
    assert guest.drops == {"fragment: reassembly time exceeded": 1}
    assert guest.reassembly.expire(1060.0) == []
    assert len(guest.reassembly) == guest.reassembly.bytes_held == 0


@pytest.mark.parametrize(
    ("sent", "dropped"),
    [
        (scapy_ipv4(bytes(3000), 1480), None),
        (scapy_ipv4(bytes(3000), 1480, options=[IPOption_RR(routers=["1.2.3.4"])]), (20, 28)),
        (scapy_ipv6(bytes(3000), 1500, IPv6ExtHdrDestOpt()), None),
        (scapy_ipv6(bytes(3000), 1500, before=IPv6ExtHdrHopByHop()), (40, 48)),
    ],
    ids=["IPv4", "IPv4, options", "IPv6", "IPv6, hop by hop"],
)
def test_what_is_quoted_of_what_scapy_sent(sent: list[bytes], dropped: tuple[int, int] | None) -> None:
    """All of it, but for options and extension headers that came before the fragment header."""
    table = Reassembly(Counter())
    assert taken_of(sent[:-1][::-1], table) == []
    (answer,) = table.expire(60.0)
    if dropped is None:
        assert answer.packet == sent[0][: len(answer.packet)]
        return
    start, stop = dropped
    assert answer.packet[start:] == sent[0][stop : len(answer.packet) + stop - start]
    seen = (IP if len(answer.source) == 4 else IPv6)(answer.packet)
    assert len(answer.packet) in (548, 1232)
    assert (seen.src, seen.dst) == (
        ("192.0.2.1", "198.51.100.7") if seen.version == 4 else ("2001:db8::1", "2001:db8::2")
    )
    assert (seen.len if seen.version == 4 else seen.plen + 40) == len(sent[0]) - (stop - start)


def test_without_first_fragment_nobody_is_told(guest: Guest) -> None:
    guest.sends(8, b"a later ", ident=2)
    guest.sends(0, b"datagram")
    guest.sends(16, b"later st", ident=3)
    assert guest.reassembly.expire(2000.0) == [TimedOut(*guest.ends, guest.packet(0, b"datagram", more=True))]
    assert guest.drops == {"fragment: reassembly time exceeded": 3}


# -- anything at all ---------------------------------------------------------------------------------------------------


def test_what_is_kept_is_a_copy(guest: Guest) -> None:
    memory = bytearray(b"datagram")
    guest.reassembly.take(guest.header(0, more=True), memoryview(memory), 0.0)
    memory[:] = b"changed!"
    assert guest.sends(8, b"!", more=False) == b"datagram!"


garbage = st.tuples(
    st.integers(0, 3),
    st.one_of(st.integers(0, 6), st.integers(0x1FF0, 0x1FFF)).map(lambda units: units * 8),
    st.sampled_from([0, 1, 7, 8, 8, 16, 16, 24, 65512]),
    st.booleans(),
    st.integers(0, 30),
)


@moderately
@given(st.lists(garbage, max_size=60), st.sampled_from([0, 17, 44, 60]))
def test_garbage(sent: list[tuple[int, int, int, bool, int]], protocol: int) -> None:
    guests = Guest(4), Guest(6)
    guests[1].reassembly = table = guests[0].reassembly
    now = 0.0
    for ident, offset, size, more, seconds in sent:
        now += seconds
        for guest in guests:
            if not (offset or more):
                continue
            try:
                whole = guest.sends(offset, bytes(size), more=more, now=now, ident=ident, protocol=protocol)
                assert whole is None or len(whole) <= guest.most_bytes
            except MalformedPacket:
                pass
        assert table.bytes_held <= reassembly.BYTES_HELD
        for answer in table.expire(now):
            header, _ = (ipv4 if answer.packet[0] == 0x45 else ipv6).parse(answer.packet + bytes(70000))
            assert header.more_fragments
            assert not header.fragment_offset
        assert table.next_deadline is None or now < table.next_deadline <= now + reassembly.REASSEMBLY_S
    table.expire(now + reassembly.REASSEMBLY_S)
    assert len(table) == table.bytes_held == 0


@moderately
@given(st.integers(0, 2**32), st.integers(1, 5000))
def test_floods_stay_within_the_limits(seed: int, idents: int) -> None:
    rng = random.Random(seed)
    guest = Guest(rng.choice([4, 6]))
    for _ in range(400):
        data = bytes(8 * rng.choice([1, 1, 5, 180, 8000]))
        offset = 8 * rng.randrange(1, 180)
        guest.sends(offset, data, ident=rng.randrange(idents))
        assert len(guest.reassembly) <= reassembly.DATAGRAMS
        assert guest.reassembly.bytes_held <= reassembly.BYTES_HELD
    guest.reassembly.expire(1060.0)
    assert len(guest.reassembly) == guest.reassembly.bytes_held == 0
