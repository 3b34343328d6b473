"""IP fragments by scapy: made by hand, as no honest kernel would send them, and reassembled from a capture."""

from __future__ import annotations

import itertools
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from scapy.layers.inet import IP, UDP, defragment, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapReader, checksum

from tests.integration.capture import DAEMON_MAC
from tests.integration.topology import HOST4, HOST6, Namespace

IPV6_HEADERS_BYTES = 40 + 8
LAST_OFFSET = 65528
"""What the field can hold, with its 13 bits for units of eight bytes."""

FLOOD_LIMIT = 40_000
"""Identifications below are for floods; IPv4 has 65,536."""

_IP = 14  # where the IP header begins in a frame
_IPV4_HEADER = slice(_IP, _IP + 20)
_IPV4_IDENTIFICATION = slice(_IP + 4, _IP + 6)
_IPV4_CHECKSUM = slice(_IP + 10, _IP + 12)
_IPV6_IDENTIFICATION = slice(_IP + 44, _IP + 48)

_identifications = itertools.count(FLOOD_LIMIT)  # what a test leaves unfinished must not meet the next one's


def split(ether: Ether, packet: Packet, size: int) -> list[Packet]:
    """Frames with the fragments of an IP packet; `size` is that of their data, except for the last one's.

    An IPv6 packet has a fragment header already, as scapy wants it.
    """
    by_scapy: Callable[[Packet, int], list[Packet]] = fragment6 if IPv6 in packet else fragment
    parts = by_scapy(packet, IPV6_HEADERS_BYTES + size if IPv6 in packet else size)
    return [Ether(bytes(ether / part)) for part in parts]


def moved(part: Packet, by_bytes: int) -> Packet:
    """The same fragment at another offset."""
    part = part.copy()
    if IPv6ExtHdrFragment in part:
        part[IPv6ExtHdrFragment].offset += by_bytes // 8
    else:
        part[IP].frag += by_bytes // 8
        del part[IP].chksum
    return part


def is_fragment(packet: Packet) -> bool:
    """Whether there is more of it in other frames."""
    return IPv6ExtHdrFragment in packet or (IP in packet and bool(packet[IP].flags.MF or packet[IP].frag))


def sent_by_daemon(capture: Path) -> list[Packet]:
    """The frames of a capture that are the daemon's."""
    with PcapReader(str(capture)) as reader:
        return [packet for packet in reader if packet[Ether].src == DAEMON_MAC]


def reassembled(frames: Iterable[Packet]) -> list[Packet]:
    """The datagrams that scapy makes of the fragments among the frames."""
    trains: defaultdict[tuple[type[Packet], int], list[Packet]] = defaultdict(list)
    for frame in filter(is_fragment, frames):
        if IP in frame:
            trains[IP, frame[IP].id].append(frame)
        else:
            trains[IPv6, frame[IPv6ExtHdrFragment].id].append(frame)
    whole: list[Packet] = []
    for (layer, _), train in trains.items():
        if layer is IP:
            whole += defragment(train)  # type: ignore[no-untyped-call]
        else:
            whole.append(defragment6(train))  # type: ignore[no-untyped-call]
    assert len(whole) == len(trains), "fragments that are no datagram"
    return whole


def udp_payload(packet: Packet) -> bytes:
    """What UDP carries, if its checksum is right."""
    again = packet.copy()
    del again[UDP].chksum
    assert type(packet)(bytes(again))[UDP].chksum == packet[UDP].chksum
    return bytes(packet[UDP].payload)


class Sender:
    """Fragments of UDP datagrams, as a test wants them, from a device to who has the link-layer address `to`.

    Each datagram is from the host's (and the guest's) address, and has an identification of its own.
    """

    def __init__(
        self, namespace: Namespace, device: str, to: str, *, source_port: int, destination: tuple[str, int]
    ) -> None:
        self._address, port = destination
        self._udp = UDP(sport=source_port, dport=port)
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((device, 0))
        self._ether = Ether(src=self._socket.getsockname()[4].hex(":"), dst=to)

    def datagram(self, payload: bytes, size: int = 1024) -> list[Packet]:
        """Its fragments in order, with `size` bytes of it in each."""
        headers: Packet
        if ":" in self._address:
            headers = IPv6(src=HOST6, dst=self._address) / IPv6ExtHdrFragment(id=next(_identifications))
        else:
            headers = IP(src=HOST4, dst=self._address, id=next(_identifications))
        return split(self._ether, headers / self._udp / Raw(payload), size)

    def send(self, *parts: Packet) -> None:
        """In this order."""
        for part in parts:
            self._socket.send(bytes(part))

    def flood(self, identifications: range) -> None:
        """First fragments, each of another datagram, that are all that comes of it."""
        assert identifications.stop <= FLOOD_LIMIT
        frame = bytearray(bytes(self.datagram(bytes(2800), size=1400)[0]))
        for identification in identifications:
            if ":" in self._address:
                frame[_IPV6_IDENTIFICATION] = identification.to_bytes(4, "big")
            else:
                frame[_IPV4_IDENTIFICATION] = identification.to_bytes(2, "big")
                frame[_IPV4_CHECKSUM] = bytes(2)
                frame[_IPV4_CHECKSUM] = checksum(bytes(frame[_IPV4_HEADER])).to_bytes(2, "big")
            self._socket.send(frame)

    def close(self) -> None:
        """Done with it."""
        self._socket.close()
