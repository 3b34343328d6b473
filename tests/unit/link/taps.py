"""Tap devices in a namespace of the test's own, and their guest: what the namespace's kernel sends and hears there."""

import fcntl
import itertools
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trio_passt.link.tap import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR

TUNSETIFF, IFF_TUN = 0x400454CA, 0x0001  # linux/if_tun.h
ETH_P_ALL = 3  # linux/if_ether.h
PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 15, 23  # linux/if_packet.h
SOL_PACKET = 263
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32  # asm-generic/socket.h
BUFFER_BYTES = 16 << 20
MTU_BYTES = 65521
"""The largest that the kernel has for a tap: with Ethernet's header it is 65535."""

_numbers = itertools.count()


def open_tap(flags: int = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) -> tuple[str, int]:
    """A new device, down, and its descriptor."""
    name = f"test{next(_numbers)}"
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
    return name, descriptor


def set_up(name: str) -> None:
    """Up, without a word of the kernel's own."""
    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    ip("link", "set", name, "mtu", str(MTU_BYTES), "up")


def ip(*arguments: str) -> None:
    """ip(8)"""
    subprocess.run(["ip", *arguments], check=True)


class TapGuest:
    """Sends and receives raw frames at a device, below the kernel's protocols (packet(7)).

    `with_header`: each has a header of virtio-net before it, both ways.
    """

    def __init__(self, name: str, *, with_header: bool = False) -> None:
        self._name = name
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, with_header)
        for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
            self.socket.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self.socket.bind((name, 0))

    def send(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            assert self.socket.send(frame) == len(frame)

    def receive(self) -> list[bytes]:
        frames = []
        with suppress(BlockingIOError):
            while True:
                frames.append(self.socket.recv(1 << 17))
        return frames

    def leave(self) -> None:
        """The device is deleted."""
        ip("link", "delete", self._name)
