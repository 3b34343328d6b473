"""/dev/net/tun, which the benchmark and tests open to everybody, and put back."""

import os
import stat
from pathlib import Path

import pytest

from tests.guest.tun import open_to_everybody


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "tun"
    path.touch()
    path.chmod(0o600)
    return path


def test_it_is_open_in_the_block_only(device: Path, tmp_path: Path) -> None:
    with open_to_everybody(device, tmp_path / "work"):
        assert mode_of(device) == 0o666
    assert mode_of(device) == 0o600


def test_the_last_one_puts_it_back(device: Path, tmp_path: Path) -> None:
    first, second = (open_to_everybody(device, tmp_path) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert mode_of(device) == 0o666
    second.__exit__(None, None, None)
    assert mode_of(device) == 0o600


def test_what_is_open_already_stays_so(device: Path, tmp_path: Path) -> None:
    device.chmod(0o666)
    with open_to_everybody(device, tmp_path):
        assert mode_of(device) == 0o666
    assert mode_of(device) == 0o666


def test_also_for_one_that_was_killed(device: Path, tmp_path: Path) -> None:
    process_id = os.fork()
    if not process_id:
        user = open_to_everybody(device, tmp_path)
        user.__enter__()
        os._exit(0)
    os.waitpid(process_id, 0)
    assert mode_of(device) == 0o666
    with open_to_everybody(device, tmp_path):
        pass
    assert mode_of(device) == 0o600


def test_a_failure_puts_it_back(device: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="failed"), open_to_everybody(device, tmp_path):
        raise ValueError("failed")
    assert mode_of(device) == 0o600
