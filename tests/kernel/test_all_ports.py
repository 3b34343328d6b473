"""Every port there is, `-t all -u all`: 150,000 sockets of an ordinary user, in a guest where that is allowed.

The machine that runs the tests may limit how many files a process has open; the root of a virtual machine may not be
limited. Without KVM everything takes some ten times as long as outside, so time is compared with that of a tenth
of the sockets: what test_ports.py measures of so many outside can then be multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import image
from tests.guest.interpreter import with_program
from tests.guest.machine import Guest

MEMORY_MIB = 3072
"""The kernel's part of a socket is some 2.5 KiB, and everything that is unpacked is in memory, too."""

BOOT_TIMEOUT_S, START_TIMEOUT_S = 180.0, 300.0
ORDINARY_PORTS = 65535 - (60999 - 32768 + 1) - 1023
SOCKETS = 4 * ORDINARY_PORTS
TENTH, ENOUGH = 20_000, 200_000
"""Limits of open files."""

RESIDENT_LIMIT_KIB = 150 * 1024
TIME_RATIO_LIMIT = 1.5
IDLE_S, IDLE_CPU_LIMIT = 5, 0.02

MEASURE = f"""
ulimit -n "$limit"
mkdir -p -m 1777 /measured
rm -f /tmp/log
python3 -c 'import os, sys
os.setgroups([])
os.setgid(1000)
os.setuid(1000)
os.execvp("trio-passt", ["trio-passt", "-f", "-s", "/measured/socket", *sys.argv[1:]])' $arguments >/tmp/log 2>&1 &
daemon=$!
cpu_ns() {{ cut -d " " -f 1 "/proc/$daemon/task/$daemon/schedstat"; }}
until grep -q "^Start the guest" /tmp/log; do
    kill -0 "$daemon" || {{ cat /tmp/log; exit 1; }}
    sleep 0.2
done
echo "cpu_ns $(cpu_ns)"
echo "sockets $(ls "/proc/$daemon/fd" | wc -l)"
sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\) kB/resident_kib \\1/p; s/^Threads:[^0-9]*/threads /p' "/proc/$daemon/status"
before=$(cpu_ns)
sleep {IDLE_S}
echo "idle_ns $(( $(cpu_ns) - before ))"
for port in 1023 1024 32767 65535; do
    python3 -c 'import socket, sys
try:
    print("tcp" + sys.argv[1], int(socket.create_connection(("::1", int(sys.argv[1])), 10).recv(1) != b""))
except ConnectionResetError:
    print("tcp" + sys.argv[1], 1)
except ConnectionRefusedError:
    print("tcp" + sys.argv[1], 0)' "$port"
done
kill "$daemon"
wait "$daemon"
echo "status $?"
"""


@pytest.fixture(scope="module")
def guest(directory: Path) -> Iterator[Guest]:
    """Without a network of its own, and with the program."""
    made = with_program(image.build(), directory)
    with Guest(made, "hubport,id=n,hubid=0", directory, name="all-ports", memory_mib=MEMORY_MIB) as guest:
        yield guest.boot(BOOT_TIMEOUT_S)


def measure(guest: Guest, limit: int, arguments: str) -> dict[str, int]:
    """What the script says of a daemon with these arguments."""
    said = guest.check(f"limit={limit} arguments='{arguments}'\n{MEASURE}", START_TIMEOUT_S)
    return {name: int(value) for name, value in (line.split() for line in said.splitlines())}


def test_all_ports_take_little_memory_and_no_time(guest: Guest, measurements: list[str]) -> None:
    """And what is asked of the first and of the last one is answered."""
    one = measure(guest, TENTH, "-t 65535 -u none")
    tenth = measure(guest, TENTH, "-t all -u all")
    every = measure(guest, ENOUGH, "-t all -u all")
    tenth_us, every_us = (
        (found["cpu_ns"] - one["cpu_ns"]) / 1000 / (found["sockets"] - one["sockets"]) for found in (tenth, every)
    )
    measurements.append(
        f"-t all -u all: {every['sockets']} descriptors, {every['resident_kib'] / 1024:.0f} MiB;"
        f" {every_us:.0f} µs of a CPU for each, of {tenth['sockets']} {tenth_us:.0f}"
    )
    assert SOCKETS < every["sockets"] < SOCKETS + 20
    assert every["resident_kib"] < RESIDENT_LIMIT_KIB
    assert every_us < TIME_RATIO_LIMIT * tenth_us
    for found in (one, tenth, every):
        assert found["threads"] == 1
        assert found["idle_ns"] < IDLE_CPU_LIMIT * IDLE_S * 1e9
        assert found["status"] == 0
        assert found["tcp1023"] == 0
    assert [every[f"tcp{port}"] for port in (1024, 32767, 65535)] == [1, 1, 1]
    assert [one[f"tcp{port}"] for port in (1024, 32767, 65535)] == [0, 0, 1]
