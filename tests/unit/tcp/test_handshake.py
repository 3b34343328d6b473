"""What both sides agree upon."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.flow.key import FlowKey
from trio_passt.tcp import handshake
from trio_passt.tcp.handshake import Terms
from trio_passt.wire import tcp
from trio_passt.wire.tcp import TcpOptions

V4_KEY = FlowKey(bytes(4), 1000, b"\1\2\3\4", 80)
V6_KEY = FlowKey(bytes(16), 1000, bytes(range(16)), 80)


@pytest.mark.parametrize(
    ("offered", "mtu_bytes", "address_bytes", "mss"),
    [
        (1460, 65520, 4, 1460),
        (1460, 1500, 4, 1460),
        (1460, 1280, 4, 1240),
        (1460, 1500, 16, 1440),
        (65535, 65520, 4, 65480),
        (65535, 65520, 16, 65460),
        (1459, 65520, 4, 1456),
        (None, 65520, 4, 536),
        (None, 65520, 16, 1220),
        (0, 65520, 4, 64),
        (1, 65520, 16, 64),
    ],
)
def test_mss(offered: int | None, mtu_bytes: int, address_bytes: int, mss: int) -> None:
    assert handshake.terms(TcpOptions(offered), mtu_bytes, address_bytes).mss == mss


@given(st.one_of(st.none(), st.integers(0, 65535)), st.integers(1280, 65520), st.sampled_from([4, 16]))
def test_mss_is_a_multiple_of_four_that_both_take(offered: int | None, mtu_bytes: int, address_bytes: int) -> None:
    mss = handshake.terms(TcpOptions(offered), mtu_bytes, address_bytes).mss
    assert mss % 4 == 0
    assert mss >= handshake.MIN_MSS
    assert mss <= max(handshake.MIN_MSS, offered if offered is not None else mss)
    assert mss + 20 + (20 if address_bytes == 4 else 40) <= mtu_bytes


def test_windows_are_scaled_both_ways_or_not_at_all() -> None:
    assert handshake.terms(TcpOptions(1460, 9), 65520, 4) == Terms(1460, 9, handshake.WINDOW_SCALE, takes_sack=False)
    assert handshake.terms(TcpOptions(1460, 0), 65520, 4) == Terms(1460, 0, handshake.WINDOW_SCALE, takes_sack=False)
    assert handshake.terms(TcpOptions(1460), 65520, 4) == Terms(1460, 0, 0, takes_sack=False)


@pytest.mark.parametrize("scale", [None, 7])
@pytest.mark.parametrize("takes_sack", [True, False])
def test_guest_says_whether_it_takes_selective_acknowledgements(scale: int | None, takes_sack: bool) -> None:
    options = TcpOptions(1460, scale, takes_sack)
    assert handshake.terms(options, 1500, 4).takes_sack is takes_sack
    assert tcp.parse_options(handshake.offer(1500, 4, options)).takes_sack is takes_sack


@pytest.mark.parametrize(
    ("guest_options", "scale"),
    [(None, handshake.WINDOW_SCALE), (TcpOptions(1460), None), (TcpOptions(1460, 0), handshake.WINDOW_SCALE)],
)
def test_scale_is_offered_unless_the_guest_did_not(guest_options: TcpOptions | None, scale: int | None) -> None:
    options = handshake.offer(1500, 4, guest_options)
    assert len(options) % 4 == 0
    assert tcp.parse_options(options) == TcpOptions(1460, scale, guest_options is None)


@pytest.mark.parametrize("key", [V4_KEY, V6_KEY])
def test_initial_sequence_number_is_a_clock_and_a_keyed_hash(key: FlowKey) -> None:
    secret, other_secret = bytes(32), bytes(31) + b"\1"
    number = handshake.initial_sequence(secret, key, 0)
    assert handshake.initial_sequence(secret, key, 0) == number
    assert handshake.initial_sequence(secret, key, 4_000_000) == (number + 1000) % 2**32
    assert handshake.initial_sequence(other_secret, key, 0) != number
    for other in (
        key._replace(guest_port=1001),
        key._replace(remote_port=81),
        key._replace(guest=key.guest[1:] + b"\1"),
        key._replace(remote=key.remote[1:] + b"\1"),
    ):
        assert handshake.initial_sequence(secret, other, 0) != number


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**63))
def test_initial_sequence_number_has_32_bits(secret: bytes, now_ns: int) -> None:
    assert 0 <= handshake.initial_sequence(secret, V4_KEY, now_ns) < 2**32
