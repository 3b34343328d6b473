"""The programs that start a passt by themselves, as they do it: their argument lists, descriptors and PID files.

Each list is that of the caller's source, with every parameter that it can pass: QEMU 10.1 (net/passt.c), libvirt 9.0
and later (src/qemu/qemu_passt.c), muvm (crates/muvm/src/net.rs) and crun (src/libcrun/handlers/krun.c). They all run
a program named `passt`. A libvirt that does it itself is in test_libvirt.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP
from scapy.layers.dhcp6 import DHCP6_Advertise
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6ND_RA, IPv6

from tests.integration import servers
from tests.integration.caller import (
    END_TIMEOUT_S,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    SILENCE_S,
    Caller,
    Machine,
    Started,
    end_of,
    socket_pair,
)
from tests.integration.daemon import daemon_directory
from tests.integration.topology import (
    GATEWAY4,
    HOST4,
    HOST6,
    PREFIX4,
    REMOTE4,
    RESOLVER4,
    SEARCH,
    UNPRIVILEGED_ID,
    Topology,
)

DNS, SEARCH_LIST, MTU, NAME, FQDN = 6, 119, 26, 12, 81
"""Options of DHCP, which a client has to ask for."""

_numbers = itertools.count(1)


@pytest.fixture
def caller(topology: Topology, directory: Path) -> Caller:
    """Another one for each test."""
    return Caller(topology.host, daemon_directory(directory, f"caller{next(_numbers)}"))


class Qemu:
    """What QEMU 10.1 does for `-netdev passt`: net_init_passt, net_passt_stream_start and net_passt_start_daemon.

    An empty temporary file is there before; a socket pair's end becomes descriptor 3; a status other than 0 is an
    error, else there is a number in the file.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.pid_file = caller.file("passt-XXXXXX.pid")

    @contextlib.contextmanager
    def start(self, *arguments: str) -> Iterator[tuple[Machine, int]]:
        """A machine with its network device, and the daemon's process ID."""
        with socket_pair() as (machine, end):
            started = self.start_daemon(end, *arguments)
            assert (started.status, started.stdout, started.stderr) == (0, "", "")
            end.close()
            process_id = int(self.pid_file.read_text())
            try:
                yield machine, process_id
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGTERM)
                end_of(process_id)

    def start_daemon(self, end: socket.socket, *arguments: str) -> Started:
        """With the arguments that are always there."""
        return self._caller.start("--quiet", *arguments, "--pid", str(self.pid_file), "--fd", "3", fd=end.fileno())


def test_qemu_starts_it_and_it_ends_with_qemu(caller: Caller) -> None:
    qemu = Qemu(caller)
    with qemu.start() as (machine, process_id):
        assert qemu.pid_file.read_text() == f"{process_id}\n"
        assert stat.S_IMODE(qemu.pid_file.stat().st_mode) == 0o600
        assert process_id in caller.host.process_ids()
        assert os.getsid(process_id) == os.getpgid(process_id) != os.getsid(0)
        ack, told = machine.ask_for_lease(DNS)
        assert (ack[BOOTP].yiaddr, told["subnet_mask"], told["router"]) == (HOST4, "255.255.255.0", GATEWAY4)
        assert told["name_server"] == RESOLVER4
        machine.connection.close()
        end_of(process_id)
        assert not qemu.pid_file.exists()


def test_qemu_starts_it_again_while_the_first_ends(caller: Caller) -> None:
    """When the socket pair ends, QEMU sends SIGTERM and starts another one, without waiting, with the same file."""
    qemu = Qemu(caller)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with qemu.start() as (machine, first):
            os.kill(first, number)
            assert machine.closed_by_daemon()
            with qemu.start() as (machine_again, second):
                end_of(first)
                assert qemu.pid_file.read_text() == f"{second}\n"
                assert machine_again.ask_for_lease()[0][BOOTP].yiaddr == HOST4
        qemu.pid_file = caller.file("passt-XXXXXX.pid")


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        pytest.param("--tcp-ports=4022:22", "can't forward TCP port 4022", id="port-in-use"),
        pytest.param("--vhost-user", "unrecognized option '--vhost-user'", id="vhost-user"),
    ],
)
def test_qemu_hears_that_it_could_not_start(caller: Caller, argument: str, reason: str) -> None:
    qemu = Qemu(caller)
    with caller.host.socket(socket.AF_INET, socket.SOCK_STREAM) as taken, socket_pair() as (machine, end):
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", 4022))
        taken.listen()
        started = qemu.start_daemon(end, argument)
        end.close()
        assert started.status == 1
        (line,) = started.stderr.splitlines()
        assert reason in line
        assert machine.closed_by_daemon()


def test_every_parameter_of_qemu(caller: Caller, topology: Topology) -> None:
    guest, gateway, loopback, mine, forward = (f"192.0.2.{number}" for number in (77, 9, 200, 201, 202))
    qemu = Qemu(caller)
    arguments = (
        *("--mtu", "1400", "--address", guest, "--netmask", "255.255.254.0", "--mac-addr", "9a:55:9a:00:00:01"),
        *("--gateway", gateway, "--interface", "uplink", "--outbound", HOST4),
        *("--outbound-if4", "uplink", "--outbound-if6", "uplink", "--dns", RESOLVER4, "--fqdn", "guest.example.com"),
        *("--map-host-loopback", loopback, "--map-guest-addr", mine),
        *("--dns-forward", forward, "--dns-host", RESOLVER4, "--no-icmp", "--freebind"),
        *("--search", "one.example.com two.example.com"),
        *("--tcp-ports", "4022:22,4080-4082,~4081", "--udp-ports", "4053:53"),
        "--debug",  # with "param", any word
    )
    # A quiet one is the default, and can be turned off; it says what it would say to a person then.
    with socket_pair() as (machine, end):
        started = caller.start(*arguments, "--pid", str(qemu.pid_file), "--fd", "3", fd=end.fileno())
        assert started.status == 0, started.stderr
        end.close()
        process_id = int(qemu.pid_file.read_text())
        try:
            ack, told = machine.ask_for_lease(DNS, SEARCH_LIST, MTU, FQDN)
            assert (ack[BOOTP].yiaddr, told["subnet_mask"], told["router"]) == (guest, "255.255.254.0", gateway)
            assert (told["name_server"], told["interface-mtu"]) == (RESOLVER4, 1400)
            assert b"one\x07example" in bytes(ack)
            assert b"two" in bytes(ack)
            assert b"guest" in bytes(ack)
            assert machine.mac_of(gateway) == ack.src == "9a:55:9a:00:00:01"
            _talk(machine, topology, guest, {"gateway": gateway, "loopback": loopback, "mine": mine})
            assert _knocks(topology, machine, 4022) == (guest, 22)
            assert _knocks(topology, machine, 4082) == (guest, 4082)
            with (
                topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
                pytest.raises(ConnectionRefusedError),
            ):
                client.connect((HOST4, 4081))
            machine.connection.close()
            end_of(process_id)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGTERM)


def _talk(machine: Machine, topology: Topology, guest: str, to: dict[str, str]) -> None:
    """UDP to a remote machine, to this host's loopback and to its own address; echo requests are not answered."""
    for address, namespace, server_address in (
        (REMOTE4, topology.remote, REMOTE4),
        (to["loopback"], topology.host, "127.0.0.1"),
        (to["mine"], topology.host, HOST4),
    ):
        with servers.udp_server(namespace, server_address, lambda request: request[::-1]) as server:
            packet = IP(src=guest, dst=address) / UDP(sport=5000, dport=server.port) / b"abc"
            machine.send(packet, to=machine.mac_of(to["gateway"]))
            answer = machine.receive(UDP)
            assert (answer[IP].src, bytes(answer[UDP].payload)) == (address, b"cba")
    machine.send(IP(src=guest, dst=to["gateway"]) / ICMP(id=1, seq=1), to=machine.mac_of(to["gateway"]))
    assert not machine.hears(ICMP)


def _knocks(topology: Topology, machine: Machine, port: int) -> tuple[str, int]:
    """Where a connection to the host's port comes to the machine."""
    with topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect((HOST4, port))
        while (syn := machine.receive(TCP))[TCP].sport != client.getsockname()[1]:
            pass  # of a former client, who was not answered
        assert syn[IP].src == GATEWAY4  # the remote machine's address on that link
    return syn[IP].dst, syn[TCP].dport


def test_everything_that_qemu_can_turn_off(caller: Caller) -> None:
    off = ("--no-tcp", "--no-udp", "--no-icmp", "--no-dhcp", "--no-ndp", "--no-dhcpv6", "--no-ra")
    with Qemu(caller).start("--no-dhcp-dns", "--no-dhcp-search", *off) as (machine, _):
        machine.connection.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            machine.ask_for_lease()
        machine.ask_for_router()
        machine.ask_dhcpv6()
        machine.send(IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1:ff0a:1", hlim=255) / ICMPv6ND_NS(tgt="fe80::a:1"))
        for packet in (UDP(sport=5000, dport=7), TCP(sport=5000, dport=7), ICMP(id=1, seq=1)):
            machine.send(IP(src=HOST4, dst=REMOTE4) / packet)
        assert not machine.hears(ICMPv6ND_RA, DHCP6_Advertise, TCP, UDP, ICMP)


@pytest.mark.parametrize("version", [4, 6])
def test_qemu_can_turn_a_family_off(caller: Caller, version: int) -> None:
    with Qemu(caller).start(f"--ipv{version}-only", "--no-dhcp-dns", "--no-dhcp-search") as (machine, _):
        if version == 4:
            told = machine.ask_for_lease(DNS, SEARCH_LIST)[1]
            assert "name_server" not in told
            assert SEARCH.partition(".")[0].encode() not in bytes(str(told), "utf-8")
            machine.ask_for_router()
            assert not machine.hears(ICMPv6ND_RA)
        else:
            machine.ask_for_router()
            advertisement = machine.receive(ICMPv6ND_RA)
            assert "DNS" not in advertisement.summary()
            assert b"lan" not in bytes(advertisement)
            machine.ask_dhcpv6()
            assert HOST6 in str(machine.receive(DHCP6_Advertise).show(dump=True))
            machine.connection.settimeout(SILENCE_S)
            with pytest.raises(TimeoutError):
                machine.ask_for_lease()


@pytest.mark.parametrize(
    ("published", "fd"),
    [
        pytest.param(("-t", "3334:3334,3335:3335"), 5, id="muvm-0.1"),
        pytest.param((), 12, id="muvm-0.5"),
        pytest.param(("-t", "4080-4080:80-80", "-u", "127.0.0.1/5353-5354:53-54"), 12, id="muvm-0.5-publish"),
    ],
)
def test_muvm_keeps_it_in_the_foreground(
    caller: Caller, topology: Topology, published: tuple[str, ...], fd: int
) -> None:
    with socket_pair() as (machine, end):
        if "3334:3334,3335:3335" in published:
            arguments = ["-q", "-f", *published, "--fd", str(fd)]
        else:
            arguments = ["-q", "-f", "--fd", str(fd), *published]
        with caller.in_foreground(*arguments, fd=end.fileno(), at=fd) as child:
            end.close()
            try:
                assert machine.ask_for_lease()[0][BOOTP].yiaddr == HOST4
                if "4080-4080:80-80" in published:
                    assert _knocks(topology, machine, 4080) == (HOST4, 80)
                machine.connection.close()
                assert child.wait(END_TIMEOUT_S) == 0
            finally:
                child.kill()


def test_crun_forwards_all_ports(caller: Caller, topology: Topology) -> None:
    """For a container in a machine (krun.use_passt): as many ports as its limits allow, the container's among them."""
    with socket_pair() as (machine, end):
        listed = ("-t", "all", "-u", "all", "--no-dhcp-dns", "--no-map-gw", "--fd", "9")
        started = caller.start(*listed, fd=end.fileno(), at=9)
        assert started.status == 0, started.stderr
        end.close()
        (process_id,) = _daemons(caller)
        told = machine.ask_for_lease(DNS)[1]
        assert "name_server" not in told
        assert _knocks(topology, machine, 2000) == (HOST4, 2000)
        machine.connection.close()
        end_of(process_id)


def _daemons(caller: Caller) -> list[int]:
    """Processes whose command line has the caller's own link to the program."""
    name, found = os.fsencode(caller.passt), []
    for pid in caller.host.process_ids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if name in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


PORT_FORWARDS = (
    *("--tcp-ports", f"{HOST4}/2022:22,5000-5020:6000-6020,~5010-5015"),
    *("--tcp-ports", f"{HOST6}%uplink/8443"),
    *("--udp-ports", f"{HOST4}/4053-4054"),
)
"""Of `<portForward>` with `address`, `dev`, and `<range start end to exclude>`."""


def _is_served(machine: Machine, topology: Topology, address: str) -> None:
    ack, told = machine.ask_for_lease(DNS, MTU)
    assert (ack[BOOTP].yiaddr, told["subnet_mask"]) == (address, "255.255.255.0")
    assert _knocks(topology, machine, 2022) == (address, 22)
    assert _knocks(topology, machine, 5020) == (address, 6020)
    with (
        topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        pytest.raises(ConnectionRefusedError),
    ):
        client.connect((HOST4, 5012))


def test_libvirt_9_0(caller: Caller, topology: Topology) -> None:
    """This one gives it the guest's own MAC address, and makes and locks the PID file itself.

    (Debian's build of that version refuses passt. Its list was taken with that check removed.)
    """
    socket_path, log_file = caller.directory / "1-domain-net0.socket", caller.directory / "passt.log"
    pid_file = caller.file("1-domain-net0-passt.pid", "4711\n")
    with pid_file.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        started = caller.start(
            *("--one-off", "--socket", str(socket_path), "--mac-addr", GUEST_MAC, "--interface", "uplink"),
            *("--log-file", str(log_file), "--address", "192.0.2.9", "--netmask", str(PREFIX4), *PORT_FORWARDS),
            passed=[file.fileno()],
        )
        assert started.status == 0, started.stderr
        (process_id,) = _daemons(caller)
        for path in Path(f"/proc/{process_id}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # no file, or closed by now
                assert not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    assert socket_path.stat().st_uid == UNPRIVILEGED_ID
    with Machine.at(socket_path) as machine:
        _is_served(machine, topology, "192.0.2.9")
        assert machine.mac_of(GATEWAY4) == GUEST_MAC
    end_of(process_id)
    assert not socket_path.exists()
    assert pid_file.read_text() == "4711\n"
    assert "guest" in log_file.read_text()


def test_libvirt_later(caller: Caller, topology: Topology) -> None:
    socket_path, pid_file = caller.directory / "1-domain-net0.socket", caller.directory / "1-domain-net0-passt.pid"
    log_file = caller.directory / "passt.log"
    started = caller.start(
        *("--one-off", "--socket", str(socket_path), "--pid", str(pid_file), "--mtu", "1492"),
        *("--interface", "uplink", "--log-file", str(log_file)),
        *("--hostname", "guest", "--fqdn", "guest.example.com"),
        *("--address", "192.0.2.9", "--netmask", str(PREFIX4), "--address", "2001:db8:1::9"),
        *PORT_FORWARDS,
        *("--tcp-ports", "%uplink/4080"),
    )
    assert started.status == 0, started.stderr
    process_id = int(pid_file.read_text())
    assert stat.S_IMODE(pid_file.stat().st_mode) == 0o600
    assert {path.stat().st_uid for path in (socket_path, pid_file, log_file)} == {UNPRIVILEGED_ID}
    with Machine.at(socket_path) as machine:
        _is_served(machine, topology, "192.0.2.9")
        assert _knocks(topology, machine, 4080) == ("192.0.2.9", 4080)
        ack, told = machine.ask_for_lease(NAME, FQDN, MTU)
        assert (told["hostname"], told["interface-mtu"]) == (b"guest", 1492)
        assert b"guest.example.com" in bytes(ack) or b"\x05guest\x07example" in bytes(ack)
        machine.ask_dhcpv6()
        assert "2001:db8:1::9" in str(machine.receive(DHCP6_Advertise).show(dump=True))
        os.kill(process_id, signal.SIGTERM)  # qemuPasstStop
        end_of(process_id)
        assert machine.closed_by_daemon()
    assert not socket_path.exists()
    assert not pid_file.exists()


def test_libvirt_without_ranges(caller: Caller) -> None:
    """`<portForward proto='tcp' address='192.0.2.2'/>`: every port of that address."""
    socket_path, pid_file = caller.directory / "socket", caller.directory / "pid"
    listed = ("--tcp-ports", f"{HOST4}/all", "--udp-ports", "none")
    started = caller.start("--one-off", "--socket", str(socket_path), "--pid", str(pid_file), *listed)
    assert started.status == 0, started.stderr
    process_id = int(pid_file.read_text())
    try:
        assert _open_ports(process_id) >= 1000
    finally:
        os.kill(process_id, signal.SIGTERM)
        end_of(process_id)


def _open_ports(process_id: int) -> int:
    lines = Path(f"/proc/{process_id}/net/tcp").read_text().splitlines()[1:]
    mine = socket.inet_aton(HOST4)[::-1].hex().upper()
    return len({line.split()[1] for line in lines if line.split()[1].startswith(mine)})


def test_libvirt_shows_the_user_why_it_does_not_start(caller: Caller) -> None:
    """It puts standard error into its own message."""
    socket_path, pid_file = caller.directory / "socket", caller.directory / "pid"
    listed = ("--interface", "absent0")
    started = caller.start("--one-off", "--socket", str(socket_path), "--pid", str(pid_file), *listed)
    assert started.status == 1
    (line,) = started.stderr.splitlines()
    assert "absent0" in line
    assert not socket_path.exists()
    assert not pid_file.exists()
