"""Somebody who starts our program as another program would, and a machine of hand-made frames at its other end."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DUID_LL, DHCP6_Solicit, DHCP6OptClientId, DHCP6OptIA_NA
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RS, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.integration.daemon import RawGuest, program
from tests.integration.exchanges import kind, options
from tests.integration.topology import UNPRIVILEGED_ID, Namespace

GUEST_MAC = "52:54:00:12:34:56"
GUEST_LINK_LOCAL = "fe80::5054:ff:fe12:3456"
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0
SILENCE_S = 0.3

MOVE = """
import os, sys
source, target = map(int, sys.argv[1:3])
if source != target:
    os.dup2(source, target)
    os.close(source)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""A descriptor is inherited at another number."""


@dataclass
class Caller:
    """Who calls: an ordinary user of the host with a directory, in which our program is a link named `passt`."""

    host: Namespace
    directory: Path
    passt: Path = field(init=False)

    def __post_init__(self) -> None:
        (under_test,) = program()
        self.passt = self.directory / "passt"
        self.passt.symlink_to(under_test)

    def start(self, *arguments: str, fd: int | None = None, at: int = 3, passed: Sequence[int] = ()) -> Started:
        """`passt` with these arguments, and with the descriptor `fd` at the number `at`; returns when it does.

        That it does with its output on a pipe shows that a daemon in the background keeps none of them.
        """
        inherited = [] if fd is None else [fd]
        result = subprocess.run(
            [*self._command(fd, at), *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            pass_fds=[*inherited, *passed],
            timeout=START_TIMEOUT_S,
            check=False,
        )
        return Started(result.returncode, result.stdout, result.stderr)

    def in_foreground(self, *arguments: str, fd: int, at: int) -> subprocess.Popen[bytes]:
        """A child that stays, with its standard error at /dev/null."""
        return subprocess.Popen(
            [*self._command(fd, at), *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[fd],
        )

    def file(self, name: str, content: str = "") -> Path:
        """One of the caller's own files."""
        path = self.directory / name
        path.write_text(content)
        path.chmod(0o600)
        os.chown(path, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        return path

    def _command(self, fd: int | None, at: int) -> list[str]:
        moving = [] if fd is None else [sys.executable, "-c", MOVE, str(fd), str(at)]
        return [*self.host.enter_unprivileged(), *moving, str(self.passt)]


@dataclass(frozen=True)
class Started:
    """How a start ended."""

    status: int
    stdout: str
    stderr: str


class Machine(RawGuest):
    """A machine of hand-made frames whose network device is one end of a socket pair; or connected to a path."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(END_TIMEOUT_S)

    @classmethod
    def at(cls, path: Path) -> Machine:
        """As `-netdev stream` connects."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(path))
        return cls(connection)

    def send(self, packet: Packet, *, to: str = "ff:ff:ff:ff:ff:ff") -> None:
        """One packet, as a frame."""
        self.send_frame(bytes(Ether(src=GUEST_MAC, dst=to) / packet))

    def receive(self, layer: type[Packet]) -> Packet:
        """The next frame with this layer."""
        while frame := self.receive_frame():
            packet = Ether(frame)
            if layer in packet:
                return packet
        raise AssertionError("the daemon has left")

    def hears(self, *layers: type[Packet]) -> bool:
        """Whether a frame with one of these layers comes within a short time."""
        while select.select([self.connection], [], [], SILENCE_S)[0]:
            packet = Ether(self.receive_frame())
            if any(layer in packet for layer in layers):
                return True
        return False

    def ask_for_lease(self, *wanted: int) -> tuple[Packet, dict[str | int, Any]]:
        """DHCP's four messages; what the last one says, and its options."""
        parameters = ("param_req_list", [1, 3, *wanted])
        offer = self._dhcp("discover", parameters)
        assert kind(offer) == "DHCPOFFER"
        address, server = offer[BOOTP].yiaddr, options(offer)["server_id"]
        ack = self._dhcp("request", ("requested_addr", address), ("server_id", server), parameters)
        assert kind(ack) == "DHCPACK"
        assert ack[BOOTP].yiaddr == address
        return ack, options(ack)

    def ask_dhcpv6(self) -> None:
        """A SOLICIT; the answer is to be received."""
        client = DHCP6OptClientId(duid=DUID_LL(lladdr=GUEST_MAC))
        solicit = DHCP6_Solicit(trid=7) / client / DHCP6OptIA_NA(iaid=1)
        self.send(IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1:2") / UDP(sport=546, dport=547) / solicit)

    def ask_for_router(self) -> None:
        """A router solicitation."""
        self.send(IPv6(src=GUEST_LINK_LOCAL, dst="ff02::2", hlim=255) / ICMPv6ND_RS())

    def mac_of(self, address: str) -> str:
        """By ARP."""
        self.send(ARP(op=1, hwsrc=GUEST_MAC, psrc="0.0.0.0", pdst=address))
        while (reply := self.receive(ARP))[ARP].psrc != address:
            pass
        return str(reply[ARP].hwsrc)

    def _dhcp(self, kind_of_message: str, *more: object) -> Packet:
        udp = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
        bootp = BOOTP(chaddr=bytes.fromhex(GUEST_MAC.replace(":", "")), xid=7)
        self.send(udp / bootp / DHCP(options=[("message-type", kind_of_message), *more, "end"]))
        return self.receive(DHCP)


@contextlib.contextmanager
def socket_pair() -> Iterator[tuple[Machine, socket.socket]]:
    """The machine at its end, and the end that is handed over, which is to be closed once it has been."""
    mine, handed_over = socket.socketpair()
    with mine, handed_over:
        yield Machine(mine), handed_over


def end_of(process_id: int, timeout_s: float = END_TIMEOUT_S) -> None:
    """Wait until a process that need not be a child has ended."""
    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], timeout_s)[0], f"process {process_id} goes on"
    finally:
        os.close(descriptor)
