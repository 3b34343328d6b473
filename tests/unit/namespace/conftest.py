"""Fixtures of the tests of namespaces."""

import pytest
from processes_here import WAIT_S

from trio_passt.namespace import command, inside, processes


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes are waited for, however busy the machine is; tests of who is not waited for say otherwise."""
    monkeypatch.setattr(processes, "END_WITHIN_S", WAIT_S)
    monkeypatch.setattr(command, "GRACE_S", WAIT_S)
    monkeypatch.setattr(inside, "WITHIN_S", WAIT_S)
    monkeypatch.setattr(inside, "NEW_SOCKET_WITHIN_S", WAIT_S)
