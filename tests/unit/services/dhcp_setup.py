"""How the tests of DHCP ask, as clients do, and read what is answered, as clients do: with scapy, and with a reader
of options that is not the codec's.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from attrs import evolve
from link_setup import GUEST_MAC, HOST_MAC_TEXT, NETWORK, dissect
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import UDP
from scapy.packet import Packet

from trio_passt.config import Former, GuestIPv4, GuestNetwork, NetworkBoot
from trio_passt.services import dhcp

XID = 0x1234ABCD
BROADCAST_FLAG = 0x8000
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"

OFFER, ACK, NAK = b"\x02", b"\x05", b"\x06"

GATEWAY_OFF_LINK = evolve(NETWORK, ipv4=GuestIPv4(IPv4Address("192.0.2.5"), 32, IPv4Address("10.0.0.1"), "ppp0"))
ROUTES = bytes.fromhex("20 0a000001 00000000" + "00 0a000001")
"""10.0.0.1 is on the link, everything else is behind it."""

NAMED = evolve(NETWORK, hostname="guest", fqdn="guest.lab.example.com")
BOOT = evolve(NETWORK, boot=NetworkBoot("pxe/ipxe.efi", "boot.example.com", IPv4Address("192.0.2.69")))

KEPT = GuestIPv4(IPv4Address("198.51.100.7"), 26, IPv4Address("198.51.100.1"), "wlan0")
GONE = GuestIPv4(IPv4Address("203.0.113.9"), 24, IPv4Address("203.0.113.1"), "wlan0")
MOVED = evolve(NETWORK, former=(Former(KEPT, True), Former(NETWORK.ipv6, True), Former(GONE, False)))
"""The host has had two other networks, and still has the address of the later one."""


def ask(kind: str | int | None, *options: tuple[object, ...], **fields: object) -> bytes:
    """A client's message; `kind` None is plain BOOTP."""
    head = BOOTP(**({"op": 1, "xid": XID, "chaddr": GUEST_MAC, "flags": 0} | fields))
    types = [] if kind is None else [("message-type", kind)]
    return bytes(head / DHCP(options=[*types, *options, "end"]))


def select(address: str, server: str, *options: tuple[object, ...], **fields: object) -> bytes:
    """The REQUEST after an OFFER."""
    return ask("request", ("requested_addr", address), ("server_id", server), *options, **fields)


def renew(address: str, *options: tuple[object, ...], **fields: object) -> bytes:
    """The REQUEST of a client that has an address, and wants to have it for longer."""
    return ask("request", *options, ciaddr=address, **fields)


def reboot(address: str, *options: tuple[object, ...], **fields: object) -> bytes:
    """The REQUEST of a client that had an address before it was shut down."""
    return ask("request", ("requested_addr", address), *options, **fields)


def answer(payload: bytes, network: GuestNetwork = NETWORK, mac: bytes = GUEST_MAC) -> bytes | None:
    return dhcp.answer(mac, payload, network)


def reply_to(payload: bytes, network: GuestNetwork = NETWORK, mac: bytes = GUEST_MAC) -> Packet:
    """The reply to a client that is not behind a relay."""
    reply = dissect(answer(payload, network, mac))
    assert reply.src == HOST_MAC_TEXT
    assert (reply[UDP].sport, reply[UDP].dport) == (67, 68)
    assert (reply[BOOTP].op, reply[BOOTP].htype, reply[BOOTP].hlen, reply[BOOTP].hops) == (2, 1, 6, 0)
    assert (reply[BOOTP].xid, reply[BOOTP].secs, reply[BOOTP].giaddr) == (XID, 0, "0.0.0.0")
    assert reply[BOOTP].chaddr == BOOTP(payload).chaddr
    return reply


def options_of(reply: Packet) -> dict[str | int, object]:
    """Names to values (a tuple where there are several), in the order of the wire."""
    options = (option for option in reply[DHCP].options if isinstance(option, tuple))
    return {name: values[0] if len(values) == 1 else values for name, *values in options}


def told(reply: Packet) -> dict[int, bytes]:
    """Codes to values, in the order of the wire, also of fields that are overloaded (RFC 2132 section 9.3)."""
    payload = bytes(reply[BOOTP])
    assert payload[236:240] == b"\x63\x82\x53\x63"
    options = _options_in(payload[240:])
    overload = options.pop(52, b"\x00")[0]
    for bit, field in ((1, payload[108:236]), (2, payload[44:108])):
        if overload & bit:
            assert 255 in field, "no END"
            for code, value in _options_in(field).items():
                options[code] = options.get(code, b"") + value
    return options


def _options_in(field: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    while field and field[0] != 255:
        if field[0] == 0:
            field = field[1:]
            continue
        code, length = field[:2]
        assert len(field) >= 2 + length, f"option {code} is truncated"
        options[code] = options.get(code, b"") + field[2 : 2 + length]
        field = field[2 + length :]
    assert field, "no END"
    return options
