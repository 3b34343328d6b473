"""What every codec's tests share: bounded Hypothesis settings, and what holds for any parser whatever the bytes."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from trio_passt.wire.errors import MalformedPacket

moderately = settings(max_examples=60, deadline=None)

macs = st.binary(min_size=6, max_size=6)
ipv4s = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6s = st.integers(0, 2**128 - 1).map(IPv6Address)
packed_ipv4s = st.binary(min_size=4, max_size=4)
packed_ipv6s = st.binary(min_size=16, max_size=16)
u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
address_pairs = st.one_of(st.tuples(packed_ipv4s, packed_ipv4s), st.tuples(packed_ipv6s, packed_ipv6s))

_label = st.text("abcXYZ019-_", min_size=1, max_size=63)
domain_names = st.lists(_label, min_size=1, max_size=6).map(".".join).filter(lambda name: len(name) <= 253)


def parses_or_is_malformed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """The value, or None if `data` is malformed; any other exception fails the test."""
    try:
        return parse(data)
    except MalformedPacket:
        return None


def survives_truncation(parse: Callable[[bytes], Any], packet: bytes, *, required_bytes: int) -> None:
    """Cut at each byte, `packet` parses or is malformed; with fewer than `required_bytes` it is malformed."""
    for length in range(len(packet)):
        if length < required_bytes:
            with pytest.raises(MalformedPacket):
                parse(packet[:length])
        else:
            parses_or_is_malformed(parse, packet[:length])


def survives_corruption(parse: Callable[[bytes], Any], packet: bytes) -> None:
    """With any one byte made 0 or 255, `packet` parses or is malformed."""
    for index in range(len(packet)):
        for value in (0, 0xFF):
            parses_or_is_malformed(parse, packet[:index] + bytes((value,)) + packet[index + 1 :])
