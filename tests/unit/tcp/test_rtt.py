"""RFC 6298, by its own formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.tcp import timeouts
from trio_passt.tcp.rtt import RoundTrip


def test_one_second_until_something_is_measured() -> None:
    assert RoundTrip().timeout_s == 1.0


def test_first_measurement() -> None:
    trip = RoundTrip()
    trip.sample(0.5)
    assert trip.timeout_s == pytest.approx(0.5 + 4 * 0.25)


def test_next_measurement_is_weighed_in() -> None:
    trip = RoundTrip()
    trip.sample(0.5)
    trip.sample(0.7)
    variation = 3 / 4 * 0.25 + 1 / 4 * abs(0.5 - 0.7)
    smoothed = 7 / 8 * 0.5 + 1 / 8 * 0.7
    assert trip.timeout_s == pytest.approx(smoothed + 4 * variation)


def test_back_off_doubles_up_to_a_limit_and_a_measurement_ends_it() -> None:
    trip = RoundTrip()
    expected = 1.0
    for _ in range(10):
        trip.back_off(0.0)
        expected = min(expected * 2, timeouts.RTO_MAX_S)
        assert trip.timeout_s == expected
    trip.sample(0.001)
    assert trip.timeout_s == timeouts.RTO_MIN_S


@pytest.mark.parametrize(("measured_s", "timeout_s"), [(None, 1.0), (0.1, 0.3), (0.001, 0.2)])
def test_back_off_ends_when_its_time_has_passed_without_another_one(measured_s: float | None, timeout_s: float) -> None:
    """RFC 8961 section 4, requirement 3, case b."""
    trip = RoundTrip()
    if measured_s is not None:
        trip.sample(measured_s)
    trip.back_off(10.0)
    trip.back_off(11.0)
    assert trip.timeout_s == pytest.approx(4 * timeout_s)
    trip.progressed(11 + 3.99 * timeout_s)
    assert trip.timeout_s == pytest.approx(4 * timeout_s)
    trip.progressed(11 + 4.01 * timeout_s)
    assert trip.timeout_s == pytest.approx(timeout_s)
    trip.back_off(20.0)
    assert trip.timeout_s == pytest.approx(2 * timeout_s)


@pytest.mark.parametrize(
    ("measured_s", "early_s"), [(None, 1.0), (0.0, 0.02), (0.009, 0.02), (0.02, 0.04), (0.09, 0.18), (1.0, 2.0)]
)
def test_two_round_trips_are_early(measured_s: float | None, early_s: float) -> None:
    trip = RoundTrip()
    if measured_s is not None:
        trip.sample(measured_s)
    assert trip.early_s == pytest.approx(early_s)
    assert trip.early_s <= trip.timeout_s


def test_guest_that_answers_now_soon_and_now_late_gets_more_time() -> None:
    """Twice the variation on top of the round trip: a pause like those before it is no loss."""
    trip = RoundTrip()
    for _ in range(50):
        trip.sample(0.001)
        trip.sample(0.051)
    assert 0.051 < trip.early_s < trip.timeout_s
    for _ in range(100):
        trip.sample(0.03)
    assert trip.early_s == pytest.approx(0.06, rel=0.01)


@given(st.lists(st.one_of(st.floats(0, 1000), st.none())))
def test_timeout_stays_within_its_limits(history: list[float | None]) -> None:
    trip = RoundTrip()
    for measured_s in history:
        if measured_s is None:
            trip.back_off(0.0)
        else:
            trip.sample(measured_s)
        assert math.isfinite(trip.timeout_s)
        assert timeouts.RTO_MIN_S <= trip.timeout_s <= timeouts.RTO_MAX_S


@given(st.floats(0.2, 10))
def test_timeout_is_longer_than_a_steady_round_trip(steady_s: float) -> None:
    trip = RoundTrip()
    for _ in range(50):
        trip.sample(steady_s)
        assert trip.timeout_s > steady_s
