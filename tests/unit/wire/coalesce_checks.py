"""Items against the frame-by-frame path, for the tests of `coalesce`: each is what its frames say by themselves.

`check_one_by_one` and `check_bulk` do it for both ways of joining, whatever the frames are.
"""

import random
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from attrs import evolve, frozen

from trio_passt.wire import bulk, checksum, coalesce, ethernet, framing, ipv4, ipv6, plain, tcp, udp
from trio_passt.wire.coalesce import Item, JoinedDatagrams, JoinedSegments
from trio_passt.wire.columns import SHORTEST_FRAME_BYTES
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ip import IPProtocol, emit_packet
from trio_passt.wire.tcp import ACK, FIN, PSH, TcpOptions, TcpSegment

GUEST_MAC, HOST_MAC = bytes.fromhex("525400000002"), bytes.fromhex("9a559a559a55")
ENDS = {4: (b"\x0a\x00\x00\x02", b"\xc0\x00\x02\x01"), 6: (b"\xfd" + bytes(14) + b"\x02", b"\x20\x01" + bytes(14))}
PATTERN = bytes(range(251)) * 300
TOP = 0xFFFFFFFF


@frozen
class Frame:
    """What a frame is made from; `evolve` makes the next one."""

    version: int = 4
    seq: int = 1
    ack: int = 1
    payload_bytes: int = 0
    window: int = 500
    flags: int = ACK
    source_port: int = 40000
    source_mac: bytes = GUEST_MAC
    hop_limit: int = 64
    identification: int = 0
    tos: int = 0
    urgent: int = 0
    options: TcpOptions = tcp.NO_OPTIONS
    padding: int = 0
    damage: tuple[int, int] | None = None

    def next_data(self) -> "Frame":
        return evolve(
            self, seq=(self.seq + self.payload_bytes) & TOP, identification=(self.identification + 1) & 0xFFFF
        )

    def next_ack(self, step: int) -> "Frame":
        return evolve(self, ack=(self.ack + step) & TOP, identification=(self.identification + 1) & 0xFFFF)

    @property
    def payload(self) -> bytes:
        start = self.seq % 1000
        return PATTERN[start : start + self.payload_bytes]

    def bytes(self) -> bytes:
        source, destination = ENDS[self.version]
        segment = TcpSegment(
            self.source_port, 80, self.seq, self.ack, self.flags, self.window, self.payload, self.options
        )
        packet = bytearray(tcp.emit(source, destination, segment))
        struct.pack_into("!HH", packet, 16, 0, self.urgent)
        pseudo = checksum.pseudo_header_sum(source, destination, IPProtocol.TCP, len(packet))
        struct.pack_into("!H", packet, 16, checksum.finish(pseudo + checksum.sum_of(packet)))
        if self.version == 4:
            header = ipv4.IPv4Header(
                source, destination, IPProtocol.TCP, self.hop_limit, self.identification, traffic_class=self.tos
            )
            whole = ipv4.emit(header, len(packet)) + packet
        else:
            whole = emit_packet(source, destination, IPProtocol.TCP, bytes(packet), self.hop_limit)
        ethertype = EtherType.IPV4 if self.version == 4 else EtherType.IPV6
        frame = ethernet.emit(EthernetHeader(HOST_MAC, self.source_mac, ethertype)) + whole + bytes(self.padding)
        if self.damage is not None:
            place, change = self.damage
            place %= len(frame)
            frame = frame[:place] + bytes([frame[place] ^ change]) + frame[place + 1 :]
        return frame


def one_by_one(frame: bytes | memoryview) -> tuple[EthernetHeader, bytes, bytes, TcpSegment]:
    """The frame-by-frame path."""
    header, packet = ethernet.parse(frame)
    if header.ethertype == EtherType.IPV4:
        ip_header, payload = ipv4.parse(packet)
        assert not ip_header.is_fragment
        assert ip_header.protocol == IPProtocol.TCP
        return (
            header,
            ip_header.source,
            ip_header.destination,
            tcp.parse(ip_header.source, ip_header.destination, payload),
        )
    assert header.ethertype == EtherType.IPV6
    assert packet[6] == IPProtocol.TCP, "no extension headers"
    ip6_header, payload = ipv6.parse(packet)[:2]
    return (
        header,
        ip6_header.source,
        ip6_header.destination,
        tcp.parse(ip6_header.source, ip6_header.destination, payload),
    )


Ends = tuple[bytes, int, bytes, int]
Flow = tuple[str, Ends] | None
"""TCP or UDP, and the ends; `None` for what is neither, or not right, or, for UDP, not plain."""

Found = list[tuple[Item, list[int]]]
"""Each item, with the frames that it was made from."""


def ends_of(frame: bytes | memoryview) -> Ends | None:
    """The connection that a frame belongs to on the frame-by-frame path; `None` for what is not TCP, or not right."""
    try:
        _, source, destination, segment = one_by_one(frame)
    except (MalformedPacket, AssertionError, IndexError):
        return None
    return source, segment.source_port, destination, segment.destination_port


@frozen
class Datagram:
    """What the frame of a datagram says on the frame-by-frame path."""

    mac: bytes
    ends: Ends
    hop_limit: int
    payload: bytes
    packet: bytes


SERVICE_PORTS = {4: 67, 6: 547}  # RFC 2131, RFC 8415


def datagram_of(frame: bytes | memoryview, *, takes_padding: bool = True) -> Datagram | None:
    """A datagram that may be taken by the short way.

    It has to be right, in a packet of its own without options or extension headers, of the length that all headers
    agree about, and not be for one of the services, and it has to have hops left.
    """
    try:
        header, packet = ethernet.parse(frame)
        if header.ethertype == EtherType.IPV4:
            ip_header, rest = ipv4.parse(packet)
            is_plain, size, hop_limit = packet[0] == 0x45, 20 + len(rest), ip_header.ttl
            source, destination, protocol = (ip_header.source, ip_header.destination, ip_header.protocol)
            is_plain &= not ip_header.is_fragment
        elif header.ethertype == EtherType.IPV6:
            ip6_header, rest = ipv6.parse(packet)
            is_plain, size, hop_limit = (packet[6] == IPProtocol.UDP, 40 + len(rest), ip6_header.hop_limit)
            source, destination, protocol = (ip6_header.source, ip6_header.destination, ip6_header.protocol)
        else:
            return None
        if not is_plain or protocol != IPProtocol.UDP:
            return None
        ports, payload = udp.parse(source, destination, rest)
    except MalformedPacket:
        return None
    version = 4 if len(source) == 4 else 6
    if len(payload) + 8 != len(rest) or ports.destination_port == SERVICE_PORTS[version] or not hop_limit:
        return None
    if is_padded(bytes(frame)) and not takes_padding:
        return None
    ends = (source, ports.source_port, destination, ports.destination_port)
    return Datagram(header.source, ends, hop_limit, bytes(payload), bytes(packet[:size]))


def flow_of(frame: bytes | memoryview, *, takes_padding: bool = True) -> Flow:
    """What has to stay in order."""
    if (ends := ends_of(frame)) is not None:
        return "TCP", ends
    datagram = datagram_of(frame, takes_padding=takes_padding)
    return None if datagram is None else ("UDP", datagram.ends)


def is_padded(frame: bytes) -> bool:
    """Longer than IP says, though Ethernet does not ask for it."""
    size = 14 + int.from_bytes(frame[16:18], "big") if frame[12] == 8 else 54 + int.from_bytes(frame[18:20], "big")
    return size < len(frame) != SHORTEST_FRAME_BYTES


def payload_of(run: JoinedSegments) -> bytes:
    return b"".join((run.segment.payload, *run.segment.more))


def check_run(run: JoinedSegments, frames: list[bytes]) -> None:
    parsed = [one_by_one(frame) for frame in frames]
    assert {run.mac} == {header.source for header, *_ in parsed}
    assert {run.ends} == {ends_of(frame) for frame in frames}
    segments = [part[3] for part in parsed]
    first, last = segments[0], segments[-1]
    joined = run.segment
    assert joined.frames == run.frames == len(frames)
    assert (joined.seq, joined.ack, joined.window) == (first.seq, last.ack, last.window)
    assert (joined.source_port, joined.destination_port) == (run.ends[1], run.ends[3])
    assert len(frames) == 1 or all(segment.flags in (ACK, ACK | PSH) for segment in segments)
    assert joined.flags == segments[0].flags | PSH * any(segment.flags & PSH for segment in segments)
    assert payload_of(run) == b"".join(segment.payload for segment in segments)
    assert joined.payload_bytes == sum(len(segment.payload) for segment in segments)
    assert joined.sequence_length == sum(segment.sequence_length for segment in segments)
    assert all(joined.more), "no piece is empty"
    assert bool(joined.payload) >= bool(joined.more)
    assert len({bool(segment.payload) for segment in segments}) == 1
    position = first.seq
    for segment in segments:
        assert segment.seq == position
        position = (position + len(segment.payload)) & TOP
    if joined.payload:
        assert run.duplicates == 0
        assert len({(segment.ack, segment.window) for segment in segments}) == 1
    else:
        check_acknowledgements(run, [(segment.ack, segment.window) for segment in segments])


def check_acknowledgements(run: JoinedSegments, seen: list[tuple[int, int]]) -> None:
    """First those that make progress, or change the window, then duplicates of the last one of these."""
    progress = len(seen) - run.duplicates
    assert progress >= 1
    for before, after in pairwise(seen[:progress]):
        assert after != before
        assert (after[0] - before[0]) & TOP < 1 << 31
    assert all(again == seen[progress - 1] for again in seen[progress:])


def without_checksum(packet: bytes | memoryview) -> bytes:
    """A plain IP packet with UDP in it."""
    at = 26 if packet[0] >> 4 == 4 else 46
    return bytes(packet[:at]) + bytes(packet[at + 2 :])


def check_datagrams(run: JoinedDatagrams, frames: list[bytes], *, quotes_checksums: bool = True) -> None:
    datagrams = [datagram for frame in frames if (datagram := datagram_of(frame)) is not None]
    assert len(datagrams) == len(frames) > 0
    assert {(run.mac, run.ends, run.hop_limit)} == {(made.mac, made.ends, made.hop_limit) for made in datagrams}
    assert run.payloads == [datagram.payload for datagram in datagrams]
    for quoted, packet in ((run.first, datagrams[0].packet), (run.last, datagrams[-1].packet)):
        assert without_checksum(quoted) == without_checksum(packet)
        assert quoted == packet or not quotes_checksums
    views = (*run.payloads, run.first, run.last)
    assert all(memoryview(part).readonly and memoryview(part).format == "B" for part in views)


def check_items(
    items: list[Item], frames: list[bytes], *, takes_padding: bool = True, quotes_checksums: bool = True
) -> Found:
    """Compare with the frame-by-frame path: everything is there, in the order of its flow, as it should be.

    Which frames of TCP are left as they are is exactly what `plain` says, but for FINs and for padding that no Ethernet
    needs; which ones of UDP, what `datagram_of` says.
    """
    waiting: dict[Flow, deque[int]] = defaultdict(deque)
    for index, frame in enumerate(frames):
        waiting[flow_of(frame, takes_padding=takes_padding)].append(index)
    latest: dict[Ends, tuple[bytes, int]] = {}
    found: Found = []
    for item in items:
        if isinstance(item, JoinedSegments):
            indices = [waiting["TCP", item.ends].popleft() for _ in range(item.frames)]
            check_run(item, [frames[index] for index in indices])
        elif isinstance(item, JoinedDatagrams):
            indices = [waiting["UDP", item.ends].popleft() for _ in item.payloads]
            check_datagrams(item, [frames[index] for index in indices], quotes_checksums=quotes_checksums)
            assert latest.get(item.ends) != (item.mac, item.hop_limit), "it goes on with the one before it"
            latest[item.ends] = (item.mac, item.hop_limit)
        else:
            assert isinstance(item, memoryview)
            flow = flow_of(item, takes_padding=takes_padding)
            indices = [waiting[flow].popleft()]
            assert item == frames[indices[0]]
            expected = plain.parse(item)
            assert len(frames) == 1 or expected is None or expected[2].flags & FIN or is_padded(frames[indices[0]])
            assert len(frames) == 1 or flow is None or flow[0] == "TCP"
        found.append((item, indices))
    assert not any(waiting.values())
    firsts = [indices[0] for _, indices in found]
    assert firsts == sorted(firsts)
    return found


def check_one_by_one(frames: list[bytes]) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coalesce, "BULK_FROM_FRAMES", len(frames) + 1)
        patch.setattr(coalesce, "BULK_FROM_SMALL_FRAMES", len(frames) + 1)
        return check_items(coalesce.coalesce(framing.join(frames)), frames)


def check_bulk(frames: list[bytes]) -> Found:
    return check_items(bulk.join(framing.join(frames)), frames, takes_padding=False)


WAYS = (check_one_by_one, check_bulk)
both_ways = pytest.mark.parametrize("check", WAYS)
Check = Callable[[list[bytes]], Found]


def check_both(frames: list[bytes]) -> None:
    for check in WAYS:
        check(frames)


def frames_in(item: Item) -> int:
    """How many frames it stands for; 0 for one that was left as it is."""
    match item:
        case JoinedSegments():
            return item.frames
        case JoinedDatagrams():
            return len(item.payloads)
        case _:
            return 0


def shape(found: Found | list[Item]) -> list[int]:
    """`frames_in` each item."""
    return [frames_in(part[0] if isinstance(part, tuple) else part) for part in found]


def stream_of(count: int, first: Frame, following: Callable[[Frame], Frame] = Frame.next_data) -> list[Frame]:
    frames = [first]
    while len(frames) < count:
        frames.append(following(frames[-1]))
    return frames


def acks_of(count: int, first: Frame, step: int = 1000) -> list[Frame]:
    return stream_of(count, first, lambda frame: frame.next_ack(step))


def as_bytes(frames: Iterable[Frame]) -> list[bytes]:
    return [frame.bytes() for frame in frames]


def dealt(*streams: list[bytes]) -> list[bytes]:
    """One frame of each, again and again."""
    return [frame for turn in zip(*streams, strict=True) for frame in turn]


def shuffled(streams: list[list[bytes]], seed: int) -> list[bytes]:
    """The streams mixed at random; each stays in order."""
    dice = random.Random(seed)
    turns = [number for number, stream in enumerate(streams) for _ in stream]
    dice.shuffle(turns)
    left = [iter(stream) for stream in streams]
    return [next(left[number]) for number in turns]


versions = pytest.mark.parametrize("version", [4, 6])


def with_header_sum(packet: bytes) -> bytes:
    header_bytes = (packet[0] & 0xF) * 4
    cleared = packet[:10] + bytes(2) + packet[12:]
    return packet[:10] + struct.pack("!H", checksum.checksum(cleared[:header_bytes])) + packet[12:]
