"""Which tests stay together when several processes share them: pytest -n 2, of pytest-xdist.

Each process has a session of its own: namespaces, directory, and if it needs one a guest, named after the process. So
any file's tests may run in any process, but what test_capture.py looks at in the end must all have happened in its
own: what the session's daemon sent, and what was sent to clients. A process that has nothing to do gets the next file.
"""

from __future__ import annotations

from pathlib import PurePath

import pytest
from xdist.scheduler import LoadScopeScheduling

SESSION, CLIENTS = "session", "clients"

SESSION_FILES = {
    *("test_capture", "test_configure", "test_forward", "test_ping", "test_tcp", "test_traceroute", "test_udp"),
}
CLIENT_FILES = {
    *("test_clients_dhcp", "test_clients_dual_stack", "test_clients_ipv6", "test_clients_names"),
    *("test_network_boot", "test_observers"),
}
OWN_DAEMON_FILES = {"test_pasta_guest", "test_pasta_guest_root"}
"""They have fixtures of the same names for another guest."""

EXCEPTIONS = {
    "test_a_second_guest_is_turned_away_and_the_first_goes_on": SESSION,
    "test_clients_were_sent_no_bad_frame": CLIENTS,
}
"""Tests that are not with the others of their file."""


def together(node_id: str) -> str:
    """Tests for which this is the same run in one process, one after the other."""
    path, _, test = node_id.partition("::")
    stem = PurePath(path).stem
    if test in EXCEPTIONS:
        return EXCEPTIONS[test]
    return SESSION if stem in SESSION_FILES else CLIENTS if stem in CLIENT_FILES else stem


def check(item: pytest.Item) -> None:
    """A test of the session's daemon that is elsewhere would start another one, whose frames nobody looks at."""
    if item.path.stem in OWN_DAEMON_FILES:
        return
    if "daemon" in getattr(item, "fixturenames", ()) and together(item.nodeid) != SESSION:
        raise pytest.UsageError(f"{item.nodeid} uses the session's daemon: see {__file__}")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    """As xdist's loadscope, with other scopes."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)
