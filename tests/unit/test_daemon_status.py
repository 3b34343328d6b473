"""SIGUSR1 and `--trace` at the daemon as a whole."""

import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from harness.running import StreamGuest, running
from harness.stage import V4, network
from harness.waiting import eventually

from trio_passt import daemon, status
from trio_passt.config import Attachment, Config, LogLevel
from trio_passt.wire.tcp import ACK, RST, TcpSegment

CONFIG = Config(network=network())


def at_path(tmp_path: Path, **changes: Any) -> Config:
    return evolve(CONFIG, attachment=Attachment(socket_path=tmp_path / "guest.socket"), **changes)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that is logged at INFO by default."""
    caplog.set_level(logging.INFO, "trio_passt")
    return caplog


async def until_said(log: pytest.LogCaptureFixture, pattern: str) -> None:
    await eventually(lambda: re.search(pattern, log.text), pattern)


async def test_with_a_guest_and_without(
    tmp_path: Path, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "REST_S", 0.0)
    handler = signal.getsignal(daemon.STATUS_SIGNAL)
    async with running(at_path(tmp_path)) as daemon_:
        assert daemon_.path is not None
        signal.raise_signal(daemon.STATUS_SIGNAL)
        await until_said(told, "no guest is connected")
        guest = StreamGuest.at(daemon_.path)
        await guest.frame()
        signal.raise_signal(daemon.STATUS_SIGNAL)
        await until_said(told, r"a guest is connected, for \d+\.\d s")
        await until_said(told, r"flows: 0 TCP \(of ")
        guest.leaves()
        await until_said(told, "guest gone: ")
        told.clear()
        signal.raise_signal(daemon.STATUS_SIGNAL)
        await until_said(told, "no guest is connected")
        assert not daemon_.ended
    assert signal.getsignal(daemon.STATUS_SIGNAL) is handler


async def test_a_signal_before_anything_is_open_is_answered(
    tmp_path: Path, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither kills, nor is it forgotten."""
    check = daemon.raise_descriptor_limit

    def and_signal() -> None:
        signal.raise_signal(daemon.STATUS_SIGNAL)
        check()

    monkeypatch.setattr(daemon, "raise_descriptor_limit", and_signal)
    async with running(at_path(tmp_path)):
        await until_said(told, r"status after \d+\.\d s: no guest is connected")


@pytest.mark.parametrize("level", LogLevel)
async def test_frames_are_described_with_trace_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, level: LogLevel
) -> None:
    caplog.set_level(logging.DEBUG, "trio_passt")
    async with running(at_path(tmp_path, log_level=level)) as daemon_:
        assert daemon_.path is not None
        guest = StreamGuest.at(daemon_.path)
        guest.sends_segment(V4, TcpSegment(40_000, 9, 3, 4, ACK, 0))
        assert (await guest.segment(V4)).flags == RST
        guest.leaves()
    lines = [record.getMessage() for record in caplog.records if record.name == "trio_passt.trace"]
    there = f"IPv4 {V4.guest}:40000 > {V4.gateway}:9 ttl=64 TCP ACK seq=3 ack=4 win=0 len=0"
    back = f"IPv4 {V4.gateway}:9 > {V4.guest}:40000 ttl=64 TCP RST seq=4 win=0 len=0"
    shown = [line.partition(" bytes: ")[2] for line in lines]
    assert (there in shown, back in shown) == ((True, True) if level is LogLevel.TRACE else (False, False))
    assert bool(lines) == (level is LogLevel.TRACE)
