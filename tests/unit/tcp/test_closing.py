"""The half-close tables are complete, every state leads on, and the only end is the one that counts as finished."""

from enum import Enum
from itertools import product

import pytest

from trio_passt.tcp import closing
from trio_passt.tcp.closing import FROM_GUEST_TABLE, TO_GUEST_TABLE, Event, FromGuestState, ToGuestState


def reachable(table: dict[tuple[Enum, Event], Enum], start: Enum) -> set[Enum]:
    found = {start}
    while more := {after for (before, _), after in table.items() if before in found} - found:
        found |= more
    return found


TABLES = [(FROM_GUEST_TABLE, FromGuestState), (TO_GUEST_TABLE, ToGuestState)]


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_every_state_is_reached_from_open(table: dict[tuple[Enum, Event], Enum], states: type[Enum]) -> None:
    assert reachable(table, states["OPEN"]) == set(states)


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_every_state_leads_to_the_end(table: dict[tuple[Enum, Event], Enum], states: type[Enum]) -> None:
    for state in states:
        assert states["ACKNOWLEDGED"] in reachable(table, state)


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_nothing_leads_out_of_the_end(table: dict[tuple[Enum, Event], Enum], states: type[Enum]) -> None:
    assert not [event for before, event in table if before is states["ACKNOWLEDGED"]]


def test_each_event_is_in_one_table_and_all_are_in_one() -> None:
    from_guest = {event for _, event in FROM_GUEST_TABLE}
    to_guest = {event for _, event in TO_GUEST_TABLE}
    assert from_guest | to_guest == set(Event)
    assert not from_guest & to_guest


def test_fin_can_be_acknowledged_in_every_state_in_which_it_may_have_been_sent() -> None:
    """After a timeout the half is OPEN or DUE again, and the acknowledgement of the first FIN may still come."""
    for state in (ToGuestState.OPEN, ToGuestState.DUE, ToGuestState.SENT):
        assert TO_GUEST_TABLE[state, Event.FIN_ACKED] is ToGuestState.ACKNOWLEDGED


def test_finished_is_the_end_of_both_halves_and_nothing_else() -> None:
    finished = [pair for pair in product(FromGuestState, ToGuestState) if closing.is_finished(*pair)]
    assert finished == [(FromGuestState.ACKNOWLEDGED, ToGuestState.ACKNOWLEDGED)]


def test_everything_but_open_has_begun_to_close() -> None:
    for from_guest, to_guest in product(FromGuestState, ToGuestState):
        is_open = from_guest is FromGuestState.OPEN and to_guest is ToGuestState.OPEN
        assert closing.has_begun_to_close(from_guest, to_guest) is not is_open
