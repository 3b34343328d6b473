"""ICMP and ICMPv6 echo from the guest."""

from __future__ import annotations

import re

import pytest

from tests.guest.machine import Guest
from tests.integration.topology import GATEWAY4, GATEWAY6, REMOTE4, REMOTE6


@pytest.mark.parametrize("address", [GATEWAY4, f"{GATEWAY6}%eth0", REMOTE4, REMOTE6])
@pytest.mark.parametrize("size", [8, 1400])
def test_every_echo_request_is_answered(guest: Guest, address: str, size: int) -> None:
    output = guest.check(f"ping -n -c 3 -i 0.2 -W 2 -s {size} {address}")
    assert "3 packets transmitted, 3 received, 0% packet loss" in output


def test_two_pings_at_a_time_do_not_mix(guest: Guest) -> None:
    under_way = [guest.start(f"ping -n -c 5 -i 0.2 -W 2 {address}") for address in (REMOTE4, REMOTE4, REMOTE6)]
    for pending in under_way:
        output = pending.result().check().stdout
        assert "5 packets transmitted, 5 received, 0% packet loss" in output
        assert "DUP" not in output


def test_an_address_that_nobody_has_stays_silent(guest: Guest) -> None:
    result = guest.run("ping -n -c 1 -W 1 203.0.113.99")
    assert result.status == 1
    assert re.search(r"1 packets transmitted, 0 received", result.stdout)
