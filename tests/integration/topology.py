"""Two network namespaces: the host that the daemon runs on, and a remote machine, its router and peer.

        guest -- daemon [host] uplink 192.0.2.2 ---- veth ---- 192.0.2.1 uplink [remote] lo 198.51.100.2
                               2001:db8:1::2                   fe80::a:1                    2001:db8:2::2

The guest is given the host's own address, and the gateway's address leads it to the host's loopback: what is on
the remote machine is therefore reached at the addresses on its loopback interface. Everything is named after
this process, so that runs do not meet, and what a killed run left behind can be told and removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

HOST4, HOST6 = "192.0.2.2", "2001:db8:1::2"
GATEWAY4, GATEWAY6 = "192.0.2.1", "fe80::a:1"
REMOTE4, REMOTE6 = "198.51.100.2", "2001:db8:2::2"
RESOLVER4, RESOLVER6 = "198.51.100.53", "2001:db8:2::53"
SEARCH = "lan.example.com"
PREFIX4, PREFIX6 = 24, 64

UNPRIVILEGED_ID = 61123
"""User and group that daemons run as; no account is needed for it."""

NAME_PREFIX = "tpasst"
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A named network namespace, and sockets and processes in it."""

    def __init__(self, name: str, resolv_conf: str) -> None:
        """Create it. Inside `ip netns exec`, /etc/resolv.conf has the text given."""
        self.name = name
        self._etc = Path("/etc/netns", name)
        self._etc.mkdir(parents=True)
        (self._etc / "resolv.conf").write_text(resolv_conf)
        run("ip", "netns", "add", name)
        self._descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for setting in ("all/disable_ipv6=0", "default/disable_ipv6=0", "default/accept_dad=0"):
            self.sysctl(f"net/ipv6/conf/{setting}")
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> None:
        """Run iproute2 in the namespace."""
        run("ip", "-n", self.name, *arguments)

    def sysctl(self, setting: str) -> None:
        """Write a setting given as path=value, below /proc/sys."""
        path, _, value = setting.partition("=")
        run(*self.enter(), "sh", "-c", f'echo "{value}" >/proc/sys/{path}')

    def enter(self) -> list[str]:
        """Prefix that runs a command in the namespace as root, under the process id of the prefix."""
        return ["ip", "netns", "exec", self.name]

    def enter_unprivileged(self) -> list[str]:
        """The same, as a user without capabilities or a way to get any; it is killed when this thread ends."""
        return [
            *self.enter(),
            *("setpriv", f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}", "--clear-groups"),
            *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL", "--"),
        ]

    def sockets(self, count: int, family: socket.AddressFamily, kind: socket.SocketKind) -> list[socket.socket]:
        """Sockets that belong to the namespace for their whole life, whoever uses them."""
        made: list[socket.socket] = []

        def make() -> None:
            if _libc.setns(self._descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            made.extend(socket.socket(family, kind) for _ in range(count))

        thread = threading.Thread(target=make)  # setns concerns the thread that calls it, and it ends here
        thread.start()
        thread.join()
        if len(made) != count:
            raise OSError(f"no sockets in {self.name}")
        return made

    def socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """One such socket."""
        return self.sockets(1, family, kind)[0]

    def process_ids(self) -> list[int]:
        """Every process in the namespace."""
        return [int(line) for line in run("ip", "netns", "pids", self.name).split()]

    def remove(self) -> None:
        """Kill what still runs in the namespace, and delete it."""
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)
        _remove(self.name)


class Topology:
    """The two namespaces; a context manager that removes them."""

    def __init__(self) -> None:
        self._made: list[Namespace] = []

    def __enter__(self) -> Self:
        remove_leftovers()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        resolvers = f"search {SEARCH}\nnameserver {RESOLVER4}\nnameserver {RESOLVER6}\n"
        self.host = self._namespace("host", resolvers)
        self.remote = self._namespace("remote", "")
        run(
            *("ip", "-n", self.host.name, "link", "add", "uplink", "type", "veth"),
            *("peer", "name", "uplink", "netns", self.remote.name),
        )
        self.remote.ip("link", "set", "uplink", "addrgenmode", "none")
        for namespace, device, addresses in (
            (self.host, "uplink", (f"{HOST4}/{PREFIX4}", f"{HOST6}/{PREFIX6}")),
            (self.remote, "uplink", (f"{GATEWAY4}/{PREFIX4}", f"2001:db8:1::1/{PREFIX6}", f"{GATEWAY6}/64")),
            (self.remote, "lo", (REMOTE4, REMOTE6, RESOLVER4, RESOLVER6)),
        ):
            namespace.ip("link", "set", device, "up")
            for address in addresses:
                namespace.ip("addr", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
        self.host.ip("route", "add", "default", "via", GATEWAY4, "dev", "uplink")
        self.host.ip("-6", "route", "add", "default", "via", GATEWAY6, "dev", "uplink")
        self.host.sysctl("net/ipv4/ping_group_range=0 2147483647")

    def _namespace(self, role: str, resolv_conf: str) -> Namespace:
        namespace = named_namespace(role, resolv_conf)
        self._made.append(namespace)
        return namespace

    def _remove(self) -> None:
        while self._made:
            self._made.pop().remove()


def named_namespace(role: str, resolv_conf: str = "") -> Namespace:
    """A namespace that is named after this process and its role; the caller removes it."""
    name = f"{NAME_PREFIX}{os.getpid()}-{role}"
    try:
        return Namespace(name, resolv_conf)
    except FileExistsError:
        raise  # it is someone else's
    except BaseException:
        _remove(name)
        raise


def remove_leftovers() -> None:
    """Remove the namespaces of test runs whose process is not there any more."""
    for path in [
        *Path("/run/netns").glob(f"{NAME_PREFIX}*-*"),
        *Path("/etc/netns").glob(f"{NAME_PREFIX}*-*"),
    ]:
        pid = path.name.removeprefix(NAME_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            _remove(path.name)


def run(*command: str) -> str:
    """Output of a command that must succeed; the error has what it said."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def _remove(name: str) -> None:
    if Path("/run/netns", name).exists():
        for process_id in run("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process_id), signal.SIGKILL)
        run("ip", "netns", "delete", name)
    shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)
    with contextlib.suppress(OSError):
        Path("/etc/netns").rmdir()  # only if nobody else has something there
