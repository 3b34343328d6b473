"""A guest without a machine: the kernel's own TCP/IP stack, in a network namespace.

Its device `tap0` is joined by `relay.c` to the socket on which a daemon (or passt) waits for QEMU. What it cannot
show is what a virtual machine does: DHCP, boot, virtio. What it can is bulk speed without QEMU's share of the CPU,
thousands of connections, and, as there is a relay, a link that loses, duplicates, delays and reorders frames.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.guest.machine import DIE_WITH_PARENT
from tests.guest.native import compiled
from tests.integration.topology import (
    GATEWAY4,
    GATEWAY6,
    HOST4,
    HOST6,
    PREFIX4,
    PREFIX6,
    RESOLVER4,
    Namespace,
    named_namespace,
    run,
)

RELAY = Path(__file__).with_name("relay.c")
DEVICE = "tap0"
QUEUE_FRAMES = 10_000
SOLICITATIONS = 15
"""How often a guest behind a link that loses asks for a neighbour's link-layer address.  The usual three are all lost
once in a thousand times, at 5 % in both directions, and then nobody can be reached."""
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Impairments:
    """What the link does to frames, in each direction; the same seed does the same."""

    loss_permille: int = 0
    duplicate_permille: int = 0
    reorder_permille: int = 0
    delay_ms: int = 0
    seed: int = 1

    def arguments(self) -> list[str]:
        """As the relay takes them."""
        return [
            *("--loss", str(self.loss_permille), "--duplicate", str(self.duplicate_permille)),
            *("--reorder", str(self.reorder_permille), "--delay", str(self.delay_ms), "--seed", str(self.seed)),
        ]


class KernelGuest:
    """A guest with the addresses that a QEMU guest gets; a context manager: it is online inside the block.

    `socket_path` is the socket of a program that is ready for a guest. The link-layer address is the kernel's choice,
    and a new one each time. With `configured=False` its device is down and has no address.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        mtu_bytes: int = 65520,
        impairments: Impairments | None = None,
        configured: bool = True,
    ) -> None:
        self._socket_path = socket_path
        self._mtu_bytes = mtu_bytes
        self._configured = configured
        self._impairments = impairments or Impairments()
        self._said = ""

    def __enter__(self) -> Self:
        relay = compiled(RELAY)
        self.namespace: Namespace = named_namespace(f"guest{next(_numbers)}", f"nameserver {RESOLVER4}\n")
        try:
            self.namespace.ip("tuntap", "add", DEVICE, "mode", "tap")
            if self._configured:
                self._configure()
            self._start(relay)
        except BaseException:
            self.namespace.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.disconnect()
        finally:
            self.namespace.remove()

    def enter(self) -> list[str]:
        """Prefix that runs a command in the guest."""
        return self.namespace.enter()

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """Output of a command in the guest, which must succeed; it is killed with this process, or if it takes long."""
        result = subprocess.run(
            [*DIE_WITH_PARENT, *self.enter(), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {result.returncode}: {result.stdout}{result.stderr}")
        return result.stdout

    def device_index(self) -> int:
        """The scope of a link-local address, which a socket's address is given as a number."""
        return int(self.run("cat", f"/sys/class/net/{DEVICE}/ifindex"))

    def disconnect(self) -> str:
        """Leave the daemon; what the relay has counted, and if it ended by itself, why."""
        if self._relay.poll() is None:
            self._relay.terminate()
        try:
            self._said += self._relay.communicate(timeout=STOP_TIMEOUT_S)[1]
        except subprocess.TimeoutExpired:
            self._relay.kill()
            self._said += self._relay.communicate()[1]
        except ValueError:
            pass  # its output was read before
        return self._said

    def _configure(self) -> None:
        namespace = self.namespace
        for setting in ("accept_ra=0", "accept_dad=0"):
            namespace.sysctl(f"net/ipv6/conf/{DEVICE}/{setting}")
        if self._impairments.loss_permille:
            for family, kind in itertools.product(("ipv4", "ipv6"), ("mcast", "ucast")):
                namespace.sysctl(f"net/{family}/neigh/{DEVICE}/{kind}_solicit={SOLICITATIONS}")
        namespace.ip("link", "set", DEVICE, "mtu", str(self._mtu_bytes), "txqueuelen", str(QUEUE_FRAMES), "up")
        namespace.ip("addr", "add", f"{HOST4}/{PREFIX4}", "dev", DEVICE)
        namespace.ip("route", "add", "default", "via", GATEWAY4, "dev", DEVICE)
        if self._mtu_bytes >= 1280:  # RFC 8200 section 5: less is no IPv6 link
            namespace.ip("addr", "add", f"{HOST6}/{PREFIX6}", "dev", DEVICE, "nodad")
            namespace.ip("-6", "route", "add", "default", "via", GATEWAY6, "dev", DEVICE)

    def _start(self, relay: Path) -> None:
        command = [*self.enter(), str(relay), DEVICE, str(self._socket_path), *self._impairments.arguments()]
        self._relay = subprocess.Popen(
            [*DIE_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._relay.stdout is not None
        descriptor, said = self._relay.stdout.fileno(), b""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while said != b"ready\n":
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(descriptor, 64) if readable else b""
            if not more:
                raise RuntimeError(f"the relay is not ready: {self.disconnect()}")
            said += more
        self._await_device(deadline)

    def _await_device(self, deadline: float) -> None:
        """Until then the kernel drops what is sent by a device that was up before it had a relay.

        There is a carrier at once, but a worker of the kernel's has to start the queue, as soon as it gets a lock that
        all network namespaces share. The state is "up" from then on.
        """
        while True:
            (device,) = json.loads(run("ip", "-n", self.namespace.name, "-json", "link", "show", "dev", DEVICE))
            if "UP" not in device["flags"] or device["operstate"] == "UP":
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the guest's device does not come up: {device}: {self.disconnect()}")
            time.sleep(0.005)
