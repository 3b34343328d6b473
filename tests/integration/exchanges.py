"""What a guest and its daemon say on the link: read from the daemon's capture, by scapy, while it grows."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

from scapy.layers.dhcp import DHCP, DHCPTypes
from scapy.layers.dhcp6 import DHCP6, dhcp6types
from scapy.layers.l2 import Ether
from scapy.packet import Packet

TIMEOUT_S = 60.0
POLL_S = 0.02

_FILE_HEADER_BYTES = 24
_RECORD = struct.Struct("<4I")
"""Of the pcap format, as the daemon writes it: seconds, nanoseconds, how much there is, and how long it was."""


class Wire:
    """What passes on the link, from now on."""

    def __init__(self, capture: Path) -> None:
        self._capture = capture
        self._offset = _FILE_HEADER_BYTES
        self._packets: list[Packet] = []
        self._frames()

    def exchange(self, *awaited: str) -> list[Packet]:
        """The packets since the last exchange until a message of each of these kinds has been seen (see `kind`)."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            packets = self._update()
            first = {name: number for number, packet in reversed([*enumerate(packets, 1)]) if (name := kind(packet))}
            if first.keys() >= set(awaited):
                end = max(first[name] for name in awaited)
                del self._packets[:end]
                return packets[:end]
            if time.monotonic() > deadline:
                raise AssertionError(f"awaited {', '.join(awaited)}, saw {', '.join(kinds(packets)) or 'nothing'}")
            time.sleep(POLL_S)

    def rest(self) -> list[Packet]:
        """The packets since the last exchange."""
        packets = self._update()
        self._packets.clear()
        return packets

    def _update(self) -> list[Packet]:
        """Those that have not been handed out, with those that have come."""
        self._packets += map(Ether, self._frames())
        return self._packets.copy()

    def _frames(self) -> list[bytes]:
        """What the capture has in addition, of which the last one may be there in part: that is for the next time."""
        frames = []
        with self._capture.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        at = 0
        while at + _RECORD.size <= len(data):
            end = at + _RECORD.size + _RECORD.unpack_from(data, at)[2]
            if end > len(data):
                break
            frames.append(data[at + _RECORD.size : end])
            at = end
        self._offset += at
        return frames


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
