"""Datagrams of one flow that come together, against the frame-by-frame path: what is in each, and which are left alone.

`check` does it for both ways, few frames and many; the tests say what should have become of them, too.
"""

import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
from attrs import evolve, frozen
from coalesce_checks import (
    ENDS,
    GUEST_MAC,
    HOST_MAC,
    Check,
    Frame,
    acks_of,
    as_bytes,
    both_ways,
    check_both,
    check_bulk,
    check_items,
    check_one_by_one,
    datagram_of,
    dealt,
    shape,
    shuffled,
    stream_of,
    versions,
    with_header_sum,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_passt.wire import bulk, coalesce, columns, ethernet, framing, ipv4, ipv6, udp
from trio_passt.wire.coalesce import BULK_FROM_FRAMES, Item, JoinedDatagrams
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.ip import IPProtocol

NOISE = random.Random(3).randbytes(70_000)


@frozen
class Sent:
    """What a frame with a datagram is made from; `number` says which one it is."""

    version: int = 4
    number: int = 0
    size: int = 100
    source_port: int = 40000
    destination_port: int = 9999
    source_mac: bytes = GUEST_MAC
    hop_limit: int = 64
    traffic_class: int = 0
    identification: int = 0
    padding: int = 0
    has_checksum: bool = True
    damage: tuple[int, int] | None = None

    @property
    def payload(self) -> bytes:
        return NOISE[self.number % 1000 :][: self.size]

    @property
    def header_bytes(self) -> int:
        return 42 if self.version == 4 else 62

    def bytes(self) -> bytes:
        source, destination = ENDS[self.version]
        ports = udp.UdpHeader(self.source_port, self.destination_port)
        datagram = udp.emit(source, destination, ports, self.payload)
        if not self.has_checksum:
            datagram = datagram[:6] + bytes(2) + datagram[8:]
        if self.version == 4:
            header = ipv4.emit(
                ipv4.IPv4Header(
                    source,
                    destination,
                    IPProtocol.UDP,
                    self.hop_limit,
                    self.identification,
                    traffic_class=self.traffic_class,
                ),
                len(datagram),
            )
        else:
            header = ipv6.emit(
                ipv6.IPv6Header(
                    source, destination, IPProtocol.UDP, self.hop_limit, self.traffic_class, self.identification
                ),
                len(datagram),
            )
        ethertype = EtherType.IPV4 if self.version == 4 else EtherType.IPV6
        frame = ethernet.emit(EthernetHeader(HOST_MAC, self.source_mac, ethertype)) + header + datagram
        frame += bytes(self.padding)
        if self.damage is not None:
            place, change = self.damage
            place %= len(frame)
            frame = frame[:place] + bytes([frame[place] ^ change]) + frame[place + 1 :]
        return frame


def several(count: int, first: Sent) -> list[Sent]:
    """One after the other, as a kernel numbers them."""
    return [evolve(first, number=number, identification=number) for number in range(count)]


def made(datagrams: list[Sent]) -> list[bytes]:
    return [datagram.bytes() for datagram in datagrams]


sizes = pytest.mark.parametrize("size", [0, 1, 2, 3, 18, 19, 63, 64, 1400, 1401, 8972])


# -- what becomes of one flow ------------------------------------------------------------------------------------------


@both_ways
@versions
@sizes
def test_datagrams_of_a_flow_come_together(check: Check, version: int, size: int) -> None:
    datagrams = several(50, Sent(version, size=size))
    ((run, _),) = check(made(datagrams))
    assert isinstance(run, JoinedDatagrams)
    assert run.payloads == [datagram.payload for datagram in datagrams]
    assert run.mac == GUEST_MAC
    assert run.ends == (ENDS[version][0], 40000, ENDS[version][1], 9999)
    assert run.hop_limit == 64
    assert run.last == made(datagrams)[-1][14:]


@both_ways
@versions
def test_datagrams_of_any_sizes(check: Check, version: int) -> None:
    dice = random.Random(5)
    sizes = [dice.choice([0, 1, 17, 18, 19, 1400, 1401, 8972, 60_000]) for _ in range(60)]
    ((run, _),) = check([Sent(version, number=number, size=size).bytes() for number, size in enumerate(sizes)])
    assert isinstance(run, JoinedDatagrams)
    assert [len(payload) for payload in run.payloads] == sizes


@both_ways
@versions
def test_order_within_a_flow_is_kept_whatever_comes_between(check: Check, version: int) -> None:
    flows = [made(several(20, Sent(version, source_port=port))) for port in range(1, 9)]
    for seed in range(5):
        found = check(shuffled(flows, seed))
        assert shape(found) == [20] * 8
        for run, _ in found:
            assert isinstance(run, JoinedDatagrams)
            assert run.payloads == [datagram.payload for datagram in several(20, Sent())]


@both_ways
@versions
@pytest.mark.parametrize(
    "other",
    [Sent(source_port=1), Sent(destination_port=1), Sent(source_mac=b"\x02" * 6), Sent(hop_limit=63)],
    ids=["source port", "destination port", "MAC address", "hop limit"],
)
def test_two_kinds_in_turns(check: Check, version: int, other: Sent) -> None:
    """Of other ends they are two flows; what changes within a flow begins anew each time."""
    other = evolve(other, version=version)
    frames = dealt(made(several(20, Sent(version))), made(several(20, other)))
    is_a_flow_of_its_own = (other.source_port, other.destination_port) != (40000, 9999)
    assert shape(check(frames)) == ([20, 20] if is_a_flow_of_its_own else [1] * 40)


@both_ways
@versions
def test_hop_limit_that_changes_once(check: Check, version: int) -> None:
    datagrams = several(30, Sent(version))
    datagrams[12:] = [evolve(datagram, hop_limit=5) for datagram in datagrams[12:]]
    found = check(made(datagrams))
    assert shape(found) == [12, 18]
    assert [run.hop_limit for run, _ in found if isinstance(run, JoinedDatagrams)] == [64, 5]


@both_ways
@versions
@pytest.mark.parametrize("hop_limit", [1, 2, 128, 255])
def test_any_hop_limit_is_told(check: Check, version: int, hop_limit: int) -> None:
    ((run, _),) = check(made(several(30, Sent(version, hop_limit=hop_limit))))
    assert isinstance(run, JoinedDatagrams)
    assert run.hop_limit == hop_limit


@both_ways
@versions
def test_traffic_class_and_identification_mean_nothing(check: Check, version: int) -> None:
    frames = [Sent(version, number=number, traffic_class=number, identification=number * 7) for number in range(30)]
    assert shape(check(made(frames))) == [30]


@both_ways
def test_both_versions_in_frames_of_one_length(check: Check) -> None:
    frames = dealt(made(several(20, Sent(4, size=120))), made(several(20, Sent(6, size=100))))
    assert len(set(map(len, frames))) == 1
    assert shape(check(frames)) == [20, 20]


@both_ways
@versions
@pytest.mark.parametrize("size", [20, 1400])
def test_datagrams_and_segments_in_frames_of_one_length(check: Check, version: int, size: int) -> None:
    segments = as_bytes(stream_of(20, Frame(version, payload_bytes=size - 12)))
    datagrams = made(several(20, Sent(version, size=size)))
    assert {len(frame) for frame in segments} == {len(frame) for frame in datagrams}
    for frames in (dealt(segments, datagrams), dealt(datagrams, segments), segments + datagrams):
        assert sorted(shape(check(frames))) == [20, 20]


def test_strangers_with_one_hash_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_HASH_FACTORS", np.zeros(9, np.uint64))
    frames = dealt(made(several(12, Sent(source_port=1))), made(several(12, Sent(source_port=2))))
    items = bulk.join(framing.join(frames))
    for port in (1, 2):
        of_port = [item for item in items if isinstance(item, JoinedDatagrams) and item.ends[1] == port]
        payloads = [payload for item in of_port for payload in item.payloads]
        assert payloads == [datagram.payload for datagram in several(12, Sent())]


def test_few_are_found_too() -> None:
    for count in range(2, BULK_FROM_FRAMES + 2):
        frames = made(several(count, Sent(size=900)))
        assert shape(check_items(coalesce.coalesce(framing.join(frames)), frames)) == [count]
    frame = Sent().bytes()
    assert coalesce.coalesce(framing.join([frame])) == [frame]


@pytest.mark.parametrize("size", [10, 1400])
@pytest.mark.parametrize("count", [2, 17, 18, 19, 43, 44, 45, 200])
def test_either_way_at_any_count(count: int, size: int) -> None:
    frames = dealt(*(made(several(count, Sent(size=size, source_port=port))) for port in (1, 2)))[:count]
    assert shape(check_items(coalesce.coalesce(framing.join(frames)), frames)) == [(count + 1) // 2, count // 2]


@versions
def test_payloads_are_passed_on_where_they_lie(version: int) -> None:
    batch = framing.join(made(several(50, Sent(version, size=1000))))
    (run,) = bulk.join(batch)
    assert isinstance(run, JoinedDatagrams)
    assert all(piece.obj is batch.data for piece in (*run.payloads, run.first, run.last))


# -- padding -----------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("size", [0, 1, 2, 3, 16, 17])
def test_frames_padded_to_sixty_bytes(check: Check, size: int) -> None:
    """As some network cards' drivers do; the payload is what UDP says, not what the frame has."""
    frames = made(several(20, Sent(size=size, padding=18 - size)))
    assert {len(frame) for frame in frames} == {60}
    ((run, _),) = check(frames)
    assert isinstance(run, JoinedDatagrams)
    assert {len(payload) for payload in run.payloads} == {size}
    assert len(run.last) == 28 + size


@both_ways
def test_padding_does_not_count(check: Check) -> None:
    frames = made(several(20, Sent(size=5, padding=13)))
    assert shape(check([frame[:-13] + bytes([number] * 13) for number, frame in enumerate(frames)])) == [20]


@both_ways
def test_padded_ones_of_different_sizes(check: Check) -> None:
    frames = made([Sent(number=size, size=size, padding=18 - size) for size in range(19)])
    ((run, _),) = check(frames)
    assert isinstance(run, JoinedDatagrams)
    assert [len(payload) for payload in run.payloads] == list(range(19))


@versions
@pytest.mark.parametrize("padding", [1, 2, 500])
def test_other_padding_is_for_those_who_look_at_each(version: int, padding: int) -> None:
    frames = made(several(20, Sent(version, padding=padding)))
    assert shape(check_one_by_one(frames)) == [20]
    assert shape(check_bulk(frames)) == [0] * 20


# -- checksums ---------------------------------------------------------------------------------------------------------


@both_ways
@sizes
def test_none_over_ipv4(check: Check, size: int) -> None:
    """RFC 768: zero means that the sender made none."""
    assert shape(check(made(several(20, Sent(size=size, has_checksum=False))))) == [20]


@both_ways
def test_none_over_ipv4_in_padded_frames(check: Check) -> None:
    assert shape(check(made(several(20, Sent(size=5, padding=13, has_checksum=False))))) == [20]


@both_ways
@sizes
def test_none_over_ipv6_is_wrong(check: Check, size: int) -> None:
    """RFC 8200 section 8.1."""
    datagrams = several(20, Sent(6, size=size))
    datagrams[10] = evolve(datagrams[10], has_checksum=False)
    found = check(made(datagrams))
    assert shape(found) == [19, 0]
    assert found[1][1] == [10]


@both_ways
def test_some_with_and_some_without(check: Check) -> None:
    datagrams = [evolve(datagram, has_checksum=datagram.number % 3 > 0) for datagram in several(40, Sent())]
    assert shape(check(made(datagrams))) == [40]


@both_ways
@versions
@pytest.mark.parametrize("size", [1, 64, 1400])
@pytest.mark.parametrize("place", [-1, -9], ids=["payload", "before the end"])
def test_wrong_ones_are_left_alone(check: Check, version: int, size: int, place: int) -> None:
    datagrams = several(20, Sent(version, size=size))
    datagrams[10] = evolve(datagrams[10], damage=(place, 1))
    found = check(made(datagrams))
    assert shape(found) == [19, 0]


@both_ways
@versions
def test_right_one_of_which_the_field_is_all_ones(check: Check, version: int) -> None:
    """Zero is sent as 0xFFFF (RFC 768); as zero it says that there is none, though all adds up."""
    frame, ports = Sent(version).bytes(), udp.UdpHeader(40000, 9999)
    payload = Sent(version).payload[2:]
    field = udp.emit(*ENDS[version], ports, bytes(2) + payload)[6:8]
    datagram = udp.emit(*ENDS[version], ports, field + payload)  # its words add up to 0xFFFF
    assert datagram[6:8] == b"\xff\xff"
    assert shape(check([frame, frame[: -len(datagram)] + datagram] * 10)) == [20]
    none = frame[: -len(datagram)] + datagram[:6] + bytes(2) + datagram[8:]
    assert sorted(shape(check([frame, none] * 10))) == ([20] if version == 4 else [*([0] * 10), 10])


@both_ways
def test_errors_that_cancel_out_between_frames(check: Check) -> None:
    """What one has too much the other has too little: a sum over both would be right."""
    frames = [bytearray(frame) for frame in made(several(20, Sent(size=1000)))]
    frames[7][100] ^= 1
    frames[8][100] ^= 1
    assert shape(check([bytes(frame) for frame in frames])) == [18, 0, 0]


# -- frames that are different -----------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Sent], Sent]] = {
    "no hops left": lambda sent: evolve(sent, hop_limit=0),
    "DHCP server": lambda sent: evolve(sent, destination_port=67 if sent.version == 4 else 547),
    "IP version": lambda sent: evolve(sent, damage=(14, 0x30)),
    "EtherType": lambda sent: evolve(sent, damage=(13, 1)),
    "address": lambda sent: evolve(sent, damage=(30, 1)),
    "port": lambda sent: evolve(sent, damage=(sent.header_bytes - 8, 1)),
    "UDP length, longer": lambda sent: evolve(sent, damage=(sent.header_bytes - 3, 0x80)),
    "UDP checksum": lambda sent: evolve(sent, damage=(sent.header_bytes - 1, 1)),
    "protocol": lambda sent: evolve(sent, damage=(23 if sent.version == 4 else 20, 1)),
}


@both_ways
@versions
@pytest.mark.parametrize("kind", CHANGES)
def test_a_frame_that_is_not_plain_is_left_alone(check: Check, version: int, kind: str) -> None:
    datagrams = several(20, Sent(version))
    datagrams[10] = CHANGES[kind](datagrams[10])
    found = check(made(datagrams))
    assert shape(found) == [19, 0]
    assert found[1][0] == made(datagrams)[10]


@both_ways
@pytest.mark.parametrize(("version", "port"), [(4, 547), (6, 67)])
def test_port_of_the_other_version_is_nothing_special(check: Check, version: int, port: int) -> None:
    assert shape(check(made(several(20, Sent(version, destination_port=port))))) == [20]


@both_ways
@pytest.mark.parametrize(("version", "port"), [(4, 67), (6, 547)])
def test_service_as_the_source_is_nothing_special(check: Check, version: int, port: int) -> None:
    assert shape(check(made(several(20, Sent(version, source_port=port))))) == [20]


def with_ip(frame: bytes, **changes: object) -> bytes:
    """Another IPv4 header, with a right checksum."""
    header, payload = ipv4.parse(frame[14:])
    return frame[:14] + ipv4.emit(evolve(header, **changes), len(payload)) + payload


@both_ways
@pytest.mark.parametrize(
    ("changes", "is_fragment"),
    [({"more_fragments": True}, True), ({"fragment_offset": 8}, True), ({"dont_fragment": False}, False)],
)
def test_fragments_are_left_alone(check: Check, changes: dict[str, object], is_fragment: bool) -> None:
    frames = made(several(20, Sent()))
    frames[10] = with_ip(frames[10], **changes)
    assert shape(check(frames)) == ([19, 0] if is_fragment else [20])


@both_ways
@pytest.mark.parametrize("next_header", [0, 43, 44, 60])
def test_extension_headers_are_left_alone(check: Check, next_header: int) -> None:
    frames = made(several(20, Sent(6)))
    packet, extension = frames[10][14:], bytes((17, 0, 0, 0, 0, 0, 0, 0))
    length = struct.pack("!HB", len(packet) - 40 + 8, next_header)
    frames[10] = frames[10][:14] + packet[:4] + length + packet[7:40] + extension + packet[40:]
    assert shape(check(frames)) == [19, 0]


@both_ways
def test_ip_options_are_left_alone(check: Check) -> None:
    frames = made(several(20, Sent()))
    packet = frames[10][14:34] + b"\x01\x01\x01\x00" + frames[10][34:]
    frames[10] = frames[10][:14] + with_header_sum(b"\x46" + packet[1:2] + struct.pack("!H", len(packet)) + packet[4:])
    assert shape(check(frames)) == [19, 0]


@both_ways
@pytest.mark.parametrize("total", [0, 19, 20, 27, 28, 29, 127, 129, 140, 65535])
def test_lengths_that_ip_does_not_have(check: Check, total: int) -> None:
    """With room behind it, so that a longer one is not beyond the frame by itself."""
    frames = made(several(20, Sent(size=100)))
    frame = frames[10] + bytes(20)
    frames[10] = frame[:14] + with_header_sum(frame[14:16] + struct.pack("!H", total) + frame[18:])
    assert shape(check(frames)) == [19, 0]


@both_ways
@pytest.mark.parametrize("length", [0, 7, 8, 9, 107, 109, 120, 65535])
def test_lengths_that_ipv6_does_not_have(check: Check, length: int) -> None:
    frames = made(several(20, Sent(6, size=100)))
    frame = frames[10] + bytes(20)
    frames[10] = frame[:18] + struct.pack("!H", length) + frame[20:]
    assert shape(check(frames)) == [19, 0]


@both_ways
@versions
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 107, 109, 120, 65535])
def test_lengths_that_udp_does_not_have(check: Check, version: int, length: int) -> None:
    """Without a checksum that would tell, where there can be none."""
    frames = made(several(20, Sent(version, size=100, has_checksum=version == 6)))
    at = Sent(version).header_bytes - 4
    frames[10] = frames[10][:at] + struct.pack("!H", length) + frames[10][at + 2 :]
    assert shape(check(frames)) == [19, 0]


@both_ways
@versions
@pytest.mark.parametrize("length", [8, 9, 107, 109])
def test_length_of_udp_that_its_checksum_hides(check: Check, version: int, length: int) -> None:
    """All adds up, if the payload is what IP says."""
    frames = made(several(20, Sent(version, size=100)))
    at = Sent(version).header_bytes - 4
    field = int.from_bytes(frames[10][at + 2 : at + 4], "big") + 108 - length
    lying = struct.pack("!HH", length, field % 65535)
    frames[10] = frames[10][:at] + lying + frames[10][at + 4 :]
    assert shape(check(frames)) == [19, 0]


@both_ways
@versions
def test_frame_that_is_cut_off(check: Check, version: int) -> None:
    frames = made(several(20, Sent(version, size=100, has_checksum=version == 6)))
    frames[10] = frames[10][:-1]
    assert shape(check(frames)) == [19, 0]


@both_ways
def test_what_is_not_plain_may_come_later_than_it_was_sent(check: Check) -> None:
    """As UDP's datagrams may; but neither is lost."""
    datagrams = several(20, Sent())
    datagrams[1] = evolve(datagrams[1], destination_port=67)
    found = check(made(datagrams))
    assert [indices for _, indices in found] == [[0, *range(2, 20)], [1]]


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("join", [coalesce.coalesce, bulk.join])
@pytest.mark.parametrize("count", [10, 60])
def test_memory_that_can_be_written_to(join: Callable[[FrameBatch], list[Item]], count: int) -> None:
    """A link that uses its memory again hands in a `bytearray`, or a view of it."""
    frames = made(several(count, Sent(size=1000)))
    batch = framing.join(frames)
    for memory in (bytearray(batch.data), memoryview(bytearray(batch.data))):
        items = join(FrameBatch(memory, batch.bounds))  # type: ignore[arg-type]
        (run,) = items
        assert isinstance(run, JoinedDatagrams)
        assert run.payloads == [datagram.payload for datagram in several(count, Sent(size=1000))]


@versions
@pytest.mark.parametrize("gaps", [[0], [0, 4, 4, 7], [1]])
def test_frames_at_any_distances(version: int, gaps: list[int]) -> None:
    """Also without room before the first."""
    frames = made(several(60, Sent(version, size=1000)))
    data, bounds = b"", []
    for number, frame in enumerate(frames):
        data += bytes(gaps[number % len(gaps)])
        bounds.append((len(data), len(data) + len(frame)))
        data += frame
    assert shape(check_items(coalesce.coalesce(FrameBatch(data, bounds)), frames)) == [60]


# -- anything ----------------------------------------------------------------------------------------------------------

datagrams = st.builds(
    Sent,
    version=st.sampled_from([4, 6]),
    number=st.integers(0, 999),
    size=st.integers(0, 30) | st.sampled_from([100, 100, 1400]),
    source_port=st.integers(1, 3),
    destination_port=st.sampled_from([53, 53, 53, 67, 547]),
    source_mac=st.sampled_from([GUEST_MAC, GUEST_MAC, GUEST_MAC, b"\x02" * 6]),
    hop_limit=st.sampled_from([64, 64, 64, 64, 1, 0]),
    has_checksum=st.sampled_from([True, True, True, False]),
    padding=st.sampled_from([0, 0, 0, 0, 1]),
    damage=st.none() | st.none() | st.none() | st.tuples(st.integers(0, 200), st.integers(1, 255)),
)


def padded(frame: bytes) -> bytes:
    return frame + bytes(max(0, 60 - len(frame)))


@given(st.lists(datagrams, min_size=1, max_size=40), st.booleans(), st.integers(0, 2**32))
@settings(deadline=None)
def test_any_datagrams_are_as_frame_by_frame(sent: list[Sent], are_padded: bool, seed: int) -> None:
    """With segments of TCP among them, and of both versions."""
    frames = [padded(frame) if are_padded else frame for frame in made(sent)]
    others = as_bytes([*stream_of(5, Frame(4, payload_bytes=7)), *acks_of(5, Frame(6))])
    check_both(shuffled([frames, others], seed))


@given(
    st.sampled_from([4, 6]),
    st.sampled_from([0, 1, 2, 17, 18, 19, 90, 1400]),
    st.integers(0, 39),
    st.integers(0, 1500),
    st.integers(1, 255),
    st.booleans(),
)
@settings(deadline=None)
def test_any_damaged_byte_is_as_frame_by_frame(
    version: int, size: int, number: int, place: int, change: int, has_checksum: bool
) -> None:
    flows = [several(20, Sent(version, size=size, source_port=port, has_checksum=has_checksum)) for port in (1, 2)]
    damaged = evolve(flows[number % 2][number // 2], damage=(place, change))
    flows[number % 2][number // 2] = damaged
    check_both(dealt(*map(made, flows)))


@versions
@pytest.mark.parametrize("size", [0, 4])
def test_every_bit_of_a_frame(version: int, size: int) -> None:
    """Each one turned over, with a checksum, and over IPv4 without, that would hide it."""
    for has_checksum in (True, False) if version == 4 else (True,):
        frames = made(several(4, Sent(version, size=size, has_checksum=has_checksum)))
        for bit in range(8 * len(frames[2])):
            frame = bytearray(frames[2])
            frame[bit // 8] ^= 1 << bit % 8
            check_both([*frames[:2], bytes(frame), frames[3]])
            if version == 4 and 14 * 8 <= bit < 34 * 8:
                check_both([*frames[:2], bytes(frame[:14]) + with_header_sum(bytes(frame[14:])), frames[3]])


@given(st.lists(st.integers(0, 66), min_size=1, max_size=50), st.sampled_from([4, 6]))
def test_cut_off_frames(lengths: list[int], version: int) -> None:
    whole = Sent(version, size=4).bytes()
    check_both([*(whole[:length] for length in lengths), whole])


def test_the_oracle_sees_what_is_wrong() -> None:
    assert datagram_of(Sent().bytes()) is not None
    for kind in CHANGES:
        assert datagram_of(CHANGES[kind](Sent()).bytes()) is None, kind
