import pytest
from fake_ping import FakeHost
from harness.stage import Stage

from trio_passt.host import sockets


@pytest.fixture
def host(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The host's side of the one echo flow of a test."""
    fake = FakeHost()
    guest.opened.callback(fake.close)
    monkeypatch.setattr(sockets, "open_ping", fake.open)
    return fake
