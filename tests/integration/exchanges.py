"""What a guest and its daemon say on the link: read from the daemon's capture, by scapy, while it grows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from scapy.layers.dhcp import DHCP, DHCPTypes
from scapy.layers.dhcp6 import DHCP6, dhcp6types
from scapy.packet import Packet
from scapy.utils import PcapReader

TIMEOUT_S = 20.0
POLL_S = 0.02


class Wire:
    """What passes on the link, from now on."""

    def __init__(self, capture: Path) -> None:
        self._capture = capture
        self._seen = len(self._read())

    def exchange(self, *awaited: str) -> list[Packet]:
        """The packets since the last exchange until a message of each of these kinds has been seen (see `kind`)."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            packets = self._read()[self._seen :]
            first = {name: number for number, packet in reversed([*enumerate(packets, 1)]) if (name := kind(packet))}
            if first.keys() >= set(awaited):
                end = max(first[name] for name in awaited)
                self._seen += end
                return packets[:end]
            if time.monotonic() > deadline:
                raise AssertionError(f"awaited {', '.join(awaited)}, saw {', '.join(kinds(packets)) or 'nothing'}")
            time.sleep(POLL_S)

    def rest(self) -> list[Packet]:
        """The packets since the last exchange."""
        packets = self._read()[self._seen :]
        self._seen += len(packets)
        return packets

    def _read(self) -> list[Packet]:
        with PcapReader(str(self._capture)) as reader:
            return list(reader)


def kind(packet: Packet) -> str | None:
    """The name of a DHCP message as in RFC 2131 (DHCPACK), of a DHCPv6 message as in RFC 8415 (REPLY)."""
    if DHCP in packet:
        number = options(packet).get("message-type")
        return f"DHCP{DHCPTypes[number]}".upper() if number else None
    dhcpv6 = packet.getlayer(DHCP6, _subclass=True)
    return str(dhcp6types[dhcpv6.msgtype]) if dhcpv6 else None


def kinds(packets: list[Packet]) -> list[str]:
    """The kinds of messages in order of their first appearance: on a slow machine, some may have been repeated."""
    return list(dict.fromkeys(name for packet in packets if (name := kind(packet))))


def message(packets: list[Packet], name: str) -> Packet:
    """The first message of a kind."""
    return next(packet for packet in packets if kind(packet) == name)


def options(packet: Packet) -> dict[str | int, Any]:
    """DHCP's options, named by scapy."""
    return dict(option[:2] for option in packet[DHCP].options if isinstance(option, tuple))
