"""Three network namespaces: the host that the daemon runs on, a remote machine, its router and peer, and a far one.

        guest -- daemon [host] uplink 192.0.2.2 ---- veth ---- 192.0.2.1 uplink [remote] lo 198.51.100.2
                               2001:db8:1::2                   fe80::a:1           |        2001:db8:2::2
                                                               2001:db8:1::1       |
                                  203.0.113.1 downlink ----------------------------+
                                  2001:db8:3::1 |
                                                +--- veth, MTU 1400 --- 203.0.113.2 uplink [far] lo 198.18.0.2
                                                                        2001:db8:3::2               2001:db8:4::2

The guest is given the host's own address, and the gateway's address leads it to the host's loopback: what is on
the remote machine is therefore reached at the addresses on its loopback interface. The remote machine routes to the
far one, and says so when it does not: there is an address for each reason. It and the far machine send ICMP errors at
any rate, so that no test waits for another's allowance. Everything is named after this process, so that runs do not
meet, and what a killed run left behind can be told and removed.
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
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

HOST4, HOST6 = "192.0.2.2", "2001:db8:1::2"
GATEWAY4, GATEWAY6 = "192.0.2.1", "fe80::a:1"
REMOTE4, REMOTE6 = "198.51.100.2", "2001:db8:2::2"
RESOLVER4, RESOLVER6 = "198.51.100.53", "2001:db8:2::53"
SEARCH = "lan.example.com"
PREFIX4, PREFIX6 = 24, 64

ROUTER4, ROUTER6 = GATEWAY4, "2001:db8:1::1"
"""Where the remote machine's ICMP errors come from: the addresses of its device towards the host."""

FAR4, FAR6 = "198.18.0.2", "2001:db8:4::2"
"""On the far machine's loopback interface: two hops from the host."""

FAR_LINK4, FAR_LINK6 = "203.0.113", "2001:db8:3"
"""How the addresses on the link to it begin."""

FAR_MTU_BYTES = 1400

ABSENT4, ABSENT6 = "203.0.113.77", "2001:db8:3::77"
"""Nobody has them, on the link to the far machine: address resolution fails, in `RESOLUTION_MS`."""

UNREACHABLE4, UNREACHABLE6 = "198.51.100.201", "2001:db8:2::201"
PROHIBITED4, PROHIBITED6 = "198.51.100.202", "2001:db8:2::202"
"""Routes of these types, see ip-route(8)."""

NOWHERE4, NOWHERE6 = "198.51.100.203", "2001:db8:2::203"
"""The remote machine has no route there."""

SILENT4, SILENT6 = "203.0.113.99", "2001:db8:3::99"
"""What is sent there vanishes."""

RESOLUTION_MS = 100

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
        _make(self._etc)
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

    @contextlib.contextmanager
    def changed(self, setting: str) -> Iterator[None]:
        """A setting, as `sysctl` takes it, until the end of the block."""
        path = setting.partition("=")[0]
        before = run(*self.enter(), "cat", f"/proc/sys/{path}").strip()
        self.sysctl(setting)
        try:
            yield
        finally:
            self.sysctl(f"{path}={before}")

    def forget_path_mtus(self) -> None:
        """What routers have said about the size of packets: the next large one is refused again."""
        for family in ("-4", "-6"):
            self.ip(family, "route", "flush", "cache")

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
    """The three namespaces; a context manager that removes them."""

    def __init__(self, name: str = "") -> None:
        """`name` tells it from another one of this process."""
        self._prefix = f"{name}-" if name else ""
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
        self.far = self._namespace("far", "")
        _join(self.host, "uplink", self.remote, "uplink")
        _join(self.remote, "downlink", self.far, "uplink")
        self.remote.ip("link", "set", "uplink", "addrgenmode", "none")
        for namespace, device, addresses in (
            (self.host, "uplink", (f"{HOST4}/{PREFIX4}", f"{HOST6}/{PREFIX6}")),
            (self.remote, "uplink", (f"{ROUTER4}/{PREFIX4}", f"{ROUTER6}/{PREFIX6}", f"{GATEWAY6}/64")),
            (self.remote, "lo", (REMOTE4, REMOTE6, RESOLVER4, RESOLVER6)),
            (self.remote, "downlink", (f"{FAR_LINK4}.1/24", f"{FAR_LINK6}::1/64")),
            (self.far, "uplink", (f"{FAR_LINK4}.2/24", f"{FAR_LINK6}::2/64")),
            (self.far, "lo", (FAR4, FAR6)),
        ):
            namespace.ip("link", "set", device, "up")
            for address in addresses:
                namespace.ip("addr", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
        self.host.ip("route", "add", "default", "via", GATEWAY4, "dev", "uplink")
        self.host.ip("-6", "route", "add", "default", "via", GATEWAY6, "dev", "uplink")
        self.host.sysctl("net/ipv4/ping_group_range=0 2147483647")
        self._build_routes()

    def _build_routes(self) -> None:
        """From the remote machine on."""
        for device, namespace in (("downlink", self.remote), ("uplink", self.far)):
            namespace.ip("link", "set", device, "mtu", str(FAR_MTU_BYTES))
        for namespace in (self.remote, self.far):
            for setting in ("ipv4/icmp_ratelimit", "ipv4/icmp_ratemask", "ipv6/icmp/ratelimit"):
                namespace.sysctl(f"net/{setting}=0")
            namespace.sysctl("net/ipv6/icmp/ratemask=")  # a list of types, empty
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.remote.sysctl(f"net/{setting}=1")
        for family in ("ipv4", "ipv6"):
            for setting in ("mcast_solicit=1", f"retrans_time_ms={RESOLUTION_MS}"):
                self.remote.sysctl(f"net/{family}/neigh/downlink/{setting}")
        for link, far, unreachable, prohibited, silent in (
            (f"{FAR_LINK4}.", FAR4, UNREACHABLE4, PROHIBITED4, SILENT4),
            (f"{FAR_LINK6}::", FAR6, UNREACHABLE6, PROHIBITED6, SILENT6),
        ):
            self.far.ip("route", "add", "default", "via", f"{link}1")
            self.remote.ip("route", "add", far, "via", f"{link}2")
            for kind, address in (("unreachable", unreachable), ("prohibit", prohibited), ("blackhole", silent)):
                self.remote.ip("route", "add", kind, address)

    def _namespace(self, role: str, resolv_conf: str) -> Namespace:
        namespace = named_namespace(self._prefix + role, resolv_conf)
        self._made.append(namespace)
        return namespace

    def _remove(self) -> None:
        while self._made:
            self._made.pop().remove()


def _join(one: Namespace, one_device: str, other: Namespace, other_device: str) -> None:
    """A cable between two namespaces."""
    run(
        *("ip", "-n", one.name, "link", "add", one_device, "type", "veth"),
        *("peer", "name", other_device, "netns", other.name),
    )


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
            with contextlib.suppress(RuntimeError):  # another run may be at it, too
                _remove(path.name)


def run(*command: str) -> str:
    """Output of a command that must succeed; the error has what it said."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def _make(directory: Path) -> None:
    """With its parent, which another run may remove meanwhile."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return directory.mkdir(parents=True)


def _remove(name: str) -> None:
    if Path("/run/netns", name).exists():
        for process_id in run("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process_id), signal.SIGKILL)
        run("ip", "netns", "delete", name)
    shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)
    with contextlib.suppress(OSError):
        Path("/etc/netns").rmdir()  # only if nobody else has something there
