"""The header of virtio-net: what it says, what it may not say, and both orders of bytes."""

import struct

import pytest
from codec_checks import u8, u16
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.wire import virtio
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import Offload, Segmentation

NEEDS_CSUM, DATA_VALID, RSC_INFO = 1, 2, 4
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80
"""linux/virtio_net.h"""

layouts = pytest.mark.parametrize("layout", [virtio.LITTLE_ENDIAN, virtio.NATIVE, struct.Struct(">BBHHHH")])


@layouts
def test_every_field(layout: struct.Struct) -> None:
    header = layout.pack(NEEDS_CSUM, GSO_TCPV6, 74, 1428, 54, 16)
    offload = Offload(54, 16, 74, 1428, Segmentation.TCPV6)
    assert virtio.parse(header, layout) == offload
    assert virtio.emit(offload, layout) == header


def test_bytes_of_a_little_endian_header() -> None:
    header = virtio.emit(Offload(0x0102, 0x0304, 0x0506, 0x0708, Segmentation.TCPV4))
    assert header == bytes.fromhex("01 01 0605 0807 0201 0403")


@pytest.mark.parametrize(
    ("kind", "segmentation"),
    [(GSO_TCPV4, Segmentation.TCPV4), (GSO_TCPV6, Segmentation.TCPV6), (GSO_UDP_L4, Segmentation.UDP)],
)
def test_kinds_of_segmentation(kind: int, segmentation: Segmentation) -> None:
    offload = virtio.parse(struct.pack("<BBHHHH", NEEDS_CSUM, kind, 66, 1448, 34, 16))
    assert offload is not None
    assert offload.segmentation is segmentation
    assert virtio.emit(offload)[1] == kind


def test_nothing_left_to_do() -> None:
    assert virtio.parse(bytes(10)) is None
    assert virtio.emit(None) == bytes(10)
    assert virtio.parse(struct.pack("<BBHHHH", 0, GSO_NONE, 66, 1448, 34, 16)) is None, "fields without a flag"


def test_verified_by_whoever_hands_it_in() -> None:
    offload = virtio.parse(struct.pack("<BBHHHH", DATA_VALID, GSO_NONE, 0, 0, 0, 0))
    assert offload is not None
    assert offload.is_verified
    assert virtio.emit(offload) == bytes([DATA_VALID, *bytes(9)])
    both = virtio.parse(struct.pack("<BBHHHH", NEEDS_CSUM | DATA_VALID, GSO_NONE, 0, 0, 34, 16))
    assert both == Offload(34, 16), "it has to be filled in all the same"


@pytest.mark.parametrize(
    ("flags", "kind", "size"),
    [
        pytest.param(NEEDS_CSUM | RSC_INFO, GSO_NONE, 0, id="coalesced by hardware"),
        pytest.param(0x80, GSO_NONE, 0, id="unknown flag"),
        pytest.param(0, GSO_TCPV4, 1448, id="segments without checksum"),
        pytest.param(DATA_VALID, GSO_TCPV4, 1448, id="segments with a verified checksum"),
        pytest.param(NEEDS_CSUM, GSO_UDP, 1480, id="UFO"),
        pytest.param(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 1448, id="ECN"),
        pytest.param(NEEDS_CSUM, 2, 1448, id="unknown kind"),
        pytest.param(NEEDS_CSUM, GSO_TCPV4, 0, id="segments of nothing"),
    ],
)
def test_what_nobody_asked_for_is_malformed(flags: int, kind: int, size: int) -> None:
    with pytest.raises(MalformedPacket, match="virtio header"):
        virtio.parse(struct.pack("<BBHHHH", flags, kind, 54, size, 34, 16))


offloads = st.builds(Offload, u16, u16, u16) | st.builds(
    Offload,
    u16,
    u16,
    u16,
    st.integers(1, 0xFFFF),
    st.sampled_from([Segmentation.TCPV4, Segmentation.TCPV6, Segmentation.UDP]),
)


@given(offloads)
def test_what_was_emitted_is_parsed(offload: Offload) -> None:
    assert virtio.parse(virtio.emit(offload)) == offload


@given(st.binary(min_size=10, max_size=10) | st.tuples(u8, u8).map(lambda two: bytes([*two, *bytes(range(8))])))
def test_any_header_parses_or_is_malformed(header: bytes) -> None:
    try:
        offload = virtio.parse(header)
    except MalformedPacket:
        return
    assert offload is None or offload.is_verified or virtio.parse(virtio.emit(offload)) == offload
