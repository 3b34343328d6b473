"""Connections opened and closed by the hundred while their namespace ends, in each way in which one can end.

Whatever was under way, the program ends with the right status, says nothing that it should not, and leaves nothing: no
process, no tap, no listening port.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import tun
from tests.guest.unprivileged import Unprivileged
from tests.integration import servers
from tests.integration.changing_host import wait_for
from tests.integration.daemon import daemon_directory, namespace_program
from tests.integration.namespace_guest import NamespaceDaemon
from tests.integration.topology import HOST4, HOST6, REMOTE4, REMOTE6, Topology, named_namespace

TCP_FORWARDED, UDP_FORWARDED, TO_HOST = 7101, 7102, 7103
"""Forwarded ports, each to the same number; the last from the namespace's loopback to the host's."""

OPTIONS = [
    *("--config-net", "-t", str(TCP_FORWARDED), "-u", str(UDP_FORWARDED), "-T", str(TO_HOST), "-U", str(TO_HOST)),
]
LOAD_S = 0.7
END_TIMEOUT_S = 60.0
LOOPBACKS = ("127.0.0.1", "::1")

_numbers = itertools.count(1)

LOAD = """
import collections, contextlib, itertools, os, random, socket, sys, threading, time

def tcp(address, port):
    \"\"\"Connections, each with some bytes there and, perhaps, back; most end in the middle of something.\"\"\"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    held = []
    for number in itertools.count():
        with contextlib.suppress(OSError):
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.settimeout(0.5)
            connection.connect((address, port))
            connection.send(bytes(random.choice((1, 1000, 100000))))
            counts[f"tcp,{address},{port}"] += 1
            if number % 3 == 0:
                connection.recv(100)
            held.append(connection)
            if len(held) > 20:
                held.pop(random.randrange(20)).close()
            continue
        time.sleep(0.005)

def udp(address, port):
    \"\"\"Datagrams, each from a socket of its own; some wait for the answer.\"\"\"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for number in itertools.count():
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as endpoint:
            endpoint.settimeout(0.2)
            endpoint.sendto(bytes(100), (address, port))
            if number % 3 == 0:
                endpoint.recv(1000)
                counts[f"udp,{address},{port}"] += 1
        time.sleep(0.001)

def echo_tcp(port):
    \"\"\"Answers with as much as it takes.\"\"\"
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
    def serve(connection):
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(65536):
                connection.sendall(data)
                counts[f"echo_tcp,{port}"] += 1
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

def echo_udp(address, port):
    \"\"\"Answers each, from the address that was asked.\"\"\"
    endpoint = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    endpoint.bind((address, port))
    while True:
        with contextlib.suppress(OSError):
            data, peer = endpoint.recvfrom(65536)
            endpoint.sendto(data, peer)
            counts[f"echo_udp,{address},{port}"] += 1

counts = collections.Counter()
for word in sys.argv[2:]:
    kind, *where = word.split(",")
    threading.Thread(target=globals()[kind], args=(*where[:-1], int(where[-1])), daemon=True).start()
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
deadline = time.monotonic() + 60  # on a slow machine, not all have had their turn
while time.monotonic() < deadline:
    found = [counts[word] for word in sys.argv[2:]]
    if all(found) and sum(found) > 100:
        break
    time.sleep(0.01)
for word in sys.argv[2:]:
    print(counts[word], word)
sys.stdout.flush()
os._exit(7)
"""
"""A process that opens connections and serves others, for so many seconds, and until each kind has had an answer; it
says how many.

Its words: FUNCTION,ADDRESS,PORT.
"""

PYTHON = "/usr/bin/python3"
"""An ordinary user may run it, wherever the virtual environment is."""


@pytest.fixture(scope="module")
def busy(topology: Topology) -> Iterator[list[str]]:
    """The rest of the world is at it; what is to run in the namespace, as a command."""
    with contextlib.ExitStack() as opened:

        def run(enter: list[str], *words: str) -> None:
            opened.enter_context(servers.process([*enter, PYTHON, "-c", LOAD, "1000", *words], b"ready"))

        run(topology.remote.enter(), "echo_tcp,7201", *(f"echo_udp,{address},7202" for address in (REMOTE4, REMOTE6)))
        run(topology.host.enter(), f"echo_tcp,{TO_HOST}", *(f"echo_udp,{address},{TO_HOST}" for address in LOOPBACKS))
        run(
            topology.remote.enter(),
            *(f"tcp,{address},{TCP_FORWARDED}" for address in (HOST4, HOST6)),
            f"udp,{HOST4},{UDP_FORWARDED}",
        )
        run(
            topology.host.enter(),
            *(f"tcp,{address},{TCP_FORWARDED}" for address in LOOPBACKS),
            *(f"udp,{address},{UDP_FORWARDED}" for address in LOOPBACKS),
        )
        yield [
            *(PYTHON, "-c", LOAD, "{seconds}", f"echo_tcp,{TCP_FORWARDED}", f"echo_udp,0.0.0.0,{UDP_FORWARDED}"),
            *(f"tcp,{address},7201" for address in (REMOTE4, REMOTE6)),
            *(f"udp,{address},7202" for address in (REMOTE4, REMOTE6)),
            *(f"tcp,{address},{TO_HOST}" for address in LOOPBACKS),
            *(f"udp,{address},{TO_HOST}" for address in LOOPBACKS),
        ]


def load(busy: list[str], seconds: float) -> list[str]:
    """The command for the namespace."""
    return [word.replace("{seconds}", f"{seconds:g}") for word in busy]


@contextlib.contextmanager
def nothing_left(topology: Topology) -> Iterator[None]:
    """After the block, what runs in the host's namespace runs there as before, and listens as before."""
    before = set(topology.host.process_ids())
    with tun.open_to_everybody():
        yield
    wait_for(lambda: set(topology.host.process_ids()) <= before, "the end of all processes")
    for port, kind in ((TCP_FORWARDED, socket.SOCK_STREAM), (UDP_FORWARDED, socket.SOCK_DGRAM)):
        with topology.host.socket(socket.AF_INET6, kind) as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("::", port))


def is_clean(said: str) -> bool:
    """Nothing of what a program says that has met something unforeseen."""
    return not any(word in said for word in ("Traceback", "Error", "error", "Exception", "ResourceWarning"))


def test_a_command_ends(topology: Topology, busy: list[str], directory: Path) -> None:
    """And with it all that was under way; its status is the program's. Ports are told, and then, they are found."""
    own = daemon_directory(directory, f"stress{next(_numbers)}")
    for options, seconds in ((OPTIONS, LOAD_S), ([], 2 + LOAD_S)):
        command = [*topology.host.enter_unprivileged(), *namespace_program(), *options, "--", *load(busy, seconds)]
        with nothing_left(topology):
            result = subprocess.run(
                command, cwd=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
            )
        assert result.returncode == 7, result.stderr
        assert is_clean(result.stderr), result.stderr
        counts = [int(line.split()[0]) for line in result.stdout.splitlines()[1:]]
        assert len(counts) == 10
        assert all(counts), result.stdout  # of each kind something was under way
        assert sum(counts) > 100, result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_program_is_ended(topology: Topology, busy: list[str], directory: Path, number: signal.Signals) -> None:
    """The command goes with it, and all that it has started."""
    own = daemon_directory(directory, f"stress{next(_numbers)}")
    command = [*topology.host.enter_unprivileged(), *namespace_program(), *OPTIONS, "--", *load(busy, 1000)]
    with nothing_left(topology), (own / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(LOAD_S)
            process.send_signal(number)
            status = process.wait(END_TIMEOUT_S)
            assert process.stdout.read() == ""  # nobody has the other end any more
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)
    assert is_clean((own / "log").read_text()), (own / "log").read_text()


@pytest.mark.parametrize("end", ["its process is killed", "SIGTERM", "SIGKILL"])
def test_a_namespace_that_was_joined_ends(topology: Topology, busy: list[str], directory: Path, end: str) -> None:
    """By its process; or it stays, and the program ends. The tap goes in any case."""
    own = daemon_directory(directory, f"stress{next(_numbers)}")
    as_user = topology.host.enter_unprivileged()
    with nothing_left(topology), contextlib.ExitStack() as opened:
        guest = opened.enter_context(Unprivileged(as_user))
        daemon = opened.enter_context(NamespaceDaemon(topology.host, own, *OPTIONS, str(guest.process_id)))
        daemon.wait_ready()
        opened.enter_context(servers.process([*guest.enter(), *load(busy, 1000)], b"ready"))
        time.sleep(LOAD_S)
        if end == "its process is killed":
            os.kill(guest.process_id, signal.SIGKILL)
            status = daemon.process.wait(END_TIMEOUT_S)
        else:
            status = daemon.stop(signal.Signals[end])
            links = subprocess.run([*guest.enter(), "ip", "link"], capture_output=True, text=True, check=True).stdout
            assert "eth0" not in links
    assert status == (-signal.SIGKILL if end == "SIGKILL" else 0)
    assert is_clean(daemon.log.read_text()), daemon.log.read_text()


def test_a_named_namespace_is_deleted(topology: Topology, busy: list[str], directory: Path) -> None:
    """By `ip netns delete`: the processes in it go on without a name for it, and without a network."""
    own = daemon_directory(directory, f"stress{next(_numbers)}")
    guest = named_namespace("stress")
    with nothing_left(topology), contextlib.ExitStack() as opened:
        opened.callback(guest.remove)
        arguments = [*OPTIONS, "--netns", guest.name]
        daemon = opened.enter_context(NamespaceDaemon(topology.host, own, *arguments, as_root=True)).wait_ready()
        opened.enter_context(servers.process([*guest.enter(), *load(busy, 1000)], b"ready"))
        time.sleep(LOAD_S)
        processes = guest.process_ids()
        subprocess.run(["ip", "netns", "delete", guest.name], check=True)
        assert daemon.process.wait(END_TIMEOUT_S) == 0
        for process_id in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
    assert is_clean(daemon.log.read_text()), daemon.log.read_text()
