"""Capture files, as scapy reads them."""

import io
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import PcapReader, RawPcapReader

from trio_passt.wire import pcap
from trio_passt.wire.frames import MAX_FRAME_BYTES


@given(st.lists(st.binary(min_size=14, max_size=100), max_size=8), st.integers(0, 2**32 * 10**9 - 1))
def test_scapy_reads_what_was_written(frames: list[bytes], time_ns: int) -> None:
    file = io.BytesIO(pcap.file_header() + pcap.records(frames, time_ns))
    reader = RawPcapReader(file)
    assert (reader.linktype, reader.nano, reader.snaplen) == (1, True, 262144)
    read = list(reader)
    assert [data for data, _ in read] == frames
    for data, meta in read:
        assert meta.sec * 10**9 + meta.usec == time_ns
        assert (meta.caplen, meta.wirelen) == (len(data), len(data))


def test_largest_frame_and_time_with_nanoseconds() -> None:
    frame = bytes(12) + b"\x88\xb5" + bytes(MAX_FRAME_BYTES - 14)
    file = io.BytesIO(pcap.file_header() + pcap.records([frame], 1_700_000_000_123_456_789))
    packet = PcapReader(file).read_packet(size=1 << 18)
    assert bytes(packet) == frame
    assert packet.time == Decimal("1700000000.123456789")
