"""The program as a process: what QEMU, here a script, is started with."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from load_qrap import PROGRAM, qrap
from test_qrap_probing import GREETING, FakeDaemon

# Shows its arguments and which signals it ignores, and reads the daemon's greeting from the descriptor in $FD, or else
# from the one that its last argument ends with.
QEMU = """#!/bin/bash
echo "$0" "$@"
grep SigIgn /proc/self/status
last=${!#}
fd=${FD:-${last##*,fd=}}
[[ $fd != [0-9]* ]] || eval "head -c 9 <&$fd"
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "socket")
    yield daemon
    daemon.close()


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """What plain qrap finds first."""
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin/kvm"
    path.write_text(QEMU)
    path.chmod(0o755)
    return path


def run(tmp_path: Path, *words: str, fd: str = "", **options: object) -> "subprocess.CompletedProcess[bytes]":
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "QRAP_SOCKET": str(tmp_path / "socket"),
        "FD": fd,
    }
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, str(PROGRAM), *words],
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        **options,
    )


def lines(tmp_path: Path, *words: str, fd: str = "", **options: object) -> list[bytes]:
    result = run(tmp_path, *words, fd=fd, **options)
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout.split(b"\n")


def test_a_descriptor_and_a_command(tmp_path: Path, daemon: FakeDaemon, qemu: Path) -> None:
    command, _, greeting = lines(tmp_path, "9", "kvm", "-nic", "user", "-m", "1G", fd="9")
    assert command == os.fsencode(f"{qemu} -nic user -m 1G")
    assert greeting == GREETING


def test_the_descriptor_that_qrap_has_anyway(tmp_path: Path, daemon: FakeDaemon, qemu: Path) -> None:
    assert lines(tmp_path, "3", "kvm", fd="3")[-1] == GREETING


def test_a_descriptor_that_was_open(tmp_path: Path, daemon: FakeDaemon, qemu: Path) -> None:
    with open("/dev/null", "rb") as null:
        fd = str(null.fileno())
        assert lines(tmp_path, fd, "kvm", fd=fd, pass_fds=[null.fileno()])[-1] == GREETING


def test_plain(tmp_path: Path, daemon: FakeDaemon, qemu: Path) -> None:
    command, _, greeting = lines(tmp_path, "disk.img", "-nic", "user")
    first, fd = command.rsplit(b"=", 1)
    assert first == os.fsencode(f"{qemu} disk.img -device virtio-net-pci,netdev=qrap -netdev socket,id=qrap,fd")
    assert int(fd) >= 3
    assert greeting == GREETING


def test_plain_with_a_descriptor_in_the_arguments(tmp_path: Path, daemon: FakeDaemon, qemu: Path) -> None:
    command, _, greeting = lines(tmp_path, "-nic", "socket,fd=8", fd="8")
    assert command == os.fsencode(f"{qemu} -nic socket,fd=8")
    assert greeting == GREETING


def test_signals_are_as_they_were(tmp_path: Path, daemon: FakeDaemon, qemu: Path) -> None:
    assert lines(tmp_path, "9", "kvm")[1].split() == [b"SigIgn:", b"0" * 16]


def test_no_daemon_is_needed_to_ask_for_the_version(tmp_path: Path, qemu: Path) -> None:
    assert lines(tmp_path, "-version")[0] == os.fsencode(f"{qemu} -version")


def test_arguments_are_bytes(tmp_path: Path, daemon: FakeDaemon, qemu: Path) -> None:
    assert lines(tmp_path, "9", "kvm", os.fsdecode(b"\xff"))[0].endswith(b"kvm \xff")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["5"], qrap.USAGE),
        (["5", "-m", "1G"], qrap.USAGE),
        (
            ["0", "kvm"],
            "descriptor 0 is for QEMU's standard input or output: use 3 or more",
        ),
        (
            ["-nic", "socket,fd=2"],
            "descriptor 2 is for QEMU's standard input or output: use 3 or more",
        ),
        (["999999999", "kvm"], "can't use descriptor 999999999: see ulimit -n"),
        (["9" * 30, "kvm"], f"can't use descriptor {'9' * 30}: see ulimit -n"),
        (["5", "/dev/null"], "can't find QEMU, or may not execute it: /dev/null"),
        (
            ["5", "qemu-system-absent"],
            "can't find QEMU, or may not execute it: qemu-system-absent",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, daemon: FakeDaemon, qemu: Path, words: list[str], said: str
) -> None:
    result = run(tmp_path, *words)
    assert (result.returncode, result.stdout, result.stderr.decode()) == (
        1,
        b"",
        f"qrap: {said}\n",
    )


def test_a_command_that_the_kernel_does_not_execute(tmp_path: Path, daemon: FakeDaemon, qemu: Path) -> None:
    qemu.write_text("no interpreter is named")
    result = run(tmp_path, "5", "kvm")
    assert (result.returncode, result.stderr.decode()) == (
        1,
        f"qrap: can't execute {qemu}: Exec format error\n",
    )


def test_where_qemu_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(qrap.platform, "machine", lambda: "ppc64le")
    with pytest.raises(qrap.QrapError, match=r"kvm, qemu-kvm, qemu-system-ppc64, /usr/libexec/qemu-kvm"):
        qrap.run([])
